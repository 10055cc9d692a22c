"""What decides about tokens is float32 under OpenVINO's bf16 hint: by the runtime graph and by numbers."""

import numpy as np
import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.export.trace import trace
from edgevit.quant import decisions
from edgevit.quant.apply import quantize
from edgevit.reduce import reduce
from edgevit.runtimes import runtime
from edgevit.stages import InputSpec
from edgevit.tokens.schedule import parse_schedule
from tests.quant.conftest import INPUTS, build_vit

openvino = pytest.importorskip("openvino")
pytest.importorskip("timm")
TARGET = runtime("openvino")
pytestmark = pytest.mark.skipif(
    "BF16" not in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"), reason="this CPU has no bf16"
)


def precisions(session):
    """Runtime operator → the precisions it runs in."""
    found = {}
    for node in session.compiled.get_runtime_model().get_ordered_ops():
        info = node.get_rt_info()
        found.setdefault(info["layerType"].astype(str), set()).add(info["runtimePrecision"].astype(str))
    return found


@pytest.fixture
def unmarked(monkeypatch):
    """The file as the converter writes it."""
    monkeypatch.setattr(decisions, "deciding", lambda module: set())


def reduced(schedule):
    policy = TARGET.policy
    return trace(reduce(adapt(build_vit()), parse_schedule(schedule), policy.lowering, policy.explicit).module, INPUTS)


@pytest.mark.parametrize("schedule", [
    "tome:r=3@1",
    pytest.param("evit:keep=0.5@1", marks=pytest.mark.slow),
    pytest.param("pitome:ratio=0.8@1", marks=pytest.mark.slow),
])  # fmt: skip
def test_top_k_and_the_product_it_reads_run_in_float32(schedule, tmp_path):
    found = precisions(TARGET.open(TARGET.build(reduced(schedule), tmp_path, "bf16"), 1))
    assert found["TopK"] <= {"f32", "i32"}
    assert "f32" in found["MatMul"]
    assert found["FullyConnected"] == {"bf16"}


@pytest.mark.slow
def test_so_it_is_beside_int8(tmp_path):
    images = [np.random.default_rng(i).standard_normal(INPUTS.shape).astype(np.float32) for i in range(2)]
    graph = quantize(reduced("tome:r=3@1"), TARGET.policy.scheme, TARGET.policy.rewrites, images, 2)
    found = precisions(TARGET.open(TARGET.build(graph, tmp_path, "int8+bf16"), 1))
    assert found["TopK"] <= {"f32", "i32"}
    assert "f32" in found["MatMul"]
    assert found["FullyConnected"] & {"i8", "u8", "I8", "U8"}


class Pick(nn.Module):
    """The six of 12 tokens with the largest squares: small integers are exact in bf16, their sums only in float32."""

    def __init__(self):
        super().__init__()
        self.keys = nn.Linear(64, 64, bias=False)
        nn.init.eye_(self.keys.weight)

    def forward(self, images):
        tokens = self.keys(images.reshape(1, 12, 64))
        scores = (tokens @ tokens.transpose(1, 2)).amax(-1)  # of a token with itself
        index = scores.topk(6).indices
        return torch.gather(tokens, 1, index.unsqueeze(-1).expand(-1, -1, 64)).flatten(1)


@pytest.fixture
def nearly_equal():
    """Tokens whose squares sum up to 1024 + 1, + 2, ..., which bf16 rounds to one number."""
    tokens = torch.zeros(12, 64)
    tokens[:, :16] = 8.0
    for row, extra in enumerate([5, 11, 2, 8, 1, 10, 7, 3, 12, 6, 9, 4]):
        tokens[row, 16 : 16 + extra] = 1.0
    return tokens.reshape(1, 3, 16, 16)


def picked(images, folder):
    session = TARGET.open(TARGET.build(trace(Pick(), InputSpec(1, 16, 16)), folder, "bf16"), 1)
    return session.run(images.numpy())


def test_tokens_nearer_than_a_rounding_step_are_told_apart(nearly_equal, tmp_path):
    want = Pick()(nearly_equal).detach().numpy()
    np.testing.assert_array_equal(picked(nearly_equal, tmp_path), want)  # all integers: no tolerance


def test_without_the_marks_they_are_not(nearly_equal, unmarked, tmp_path):
    want = Pick()(nearly_equal).detach().numpy()
    assert (picked(nearly_equal, tmp_path) != want).any()
