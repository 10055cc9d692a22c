"""Target coreml in float16: sums over tokens that are divided by one another stay float32."""

import numpy as np
import pytest
import torch
from torch import nn

from edgevit.errors import MissingExtra
from edgevit.export.to_coreml import import_coremltools
from edgevit.export.trace import trace
from edgevit.runtimes import runtime
from edgevit.runtimes.mil_file import read_program
from edgevit.stages import InputSpec

LARGEST = 65504


class Linear(nn.Module):
    """Attention by sums over tokens, divided by one another (EfficientViT's form)."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 4, 4)
        self.head = nn.Linear(4, 7)

    def sums(self, images):
        """Of weighted values, and of weights: `[B, tokens, 4 + 1]`."""
        q, k, v = (60 * self.stem(images)).flatten(2).transpose(1, 2).split(4, -1)
        return q.relu() @ (k.relu().transpose(1, 2) @ nn.functional.pad(v, (0, 1), value=1.0))

    def forward(self, images):
        sums = self.sums(images)
        return self.head((sums[..., :-1] / (sums[..., -1:] + 1e-5)).mean(1))


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Factory: (runtime, engine) of a module in float16."""
    try:
        import_coremltools()
    except MissingExtra as error:
        pytest.skip(str(error))

    def get(program):
        target = runtime("coreml", {})
        return target, target.build(program, tmp_path_factory.mktemp("half"), "fp16")

    return get


def decibel(target, engine, program, images):
    """Signal-to-noise ratio of an engine against its float32 program."""
    with torch.no_grad():
        want = program.program.module()(images).numpy()
    got = target.open(engine, threads=1).run(images.numpy())
    return 10 * np.log10(np.square(want).mean() / np.square(got - want).mean())


def types(engine):
    """Operator → the types it gives."""
    found = {}
    for operation in read_program(engine.folder / engine.entry).operations:
        found.setdefault(operation.kind, set()).update(declared.dtype for _, declared in operation.outputs)
    return found


def test_linear_attention_keeps_its_sums_and_their_quotient_in_float32(built):
    torch.manual_seed(0)
    module, images = Linear().eval(), torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        assert module.sums(images).abs().max() > LARGEST
    program = trace(module, InputSpec(1, 32, 32))
    target, engine = built(program)
    assert decibel(target, engine, program, images) > 50  # a rounding is 66 dB; all in half: infinite
    found = types(engine)
    assert found["matmul"] == found["real_div"] == found["slice_by_index"] == {"FLOAT32"}
    assert found["conv"] == found["linear"] == found["reduce_mean"] == {"FLOAT16"}


@pytest.mark.slow
def test_efficientvit_on_large_images_is_near_float32(built):
    pytest.importorskip("timm")
    from tests.quant.hybrids import draw, traced_family

    _, program = traced_family("efficientvit_mit")
    target, engine = built(program)
    # large numbers in front of its first norm: all in half, infinite sums and -1.8 dB
    assert decibel(target, engine, program, 20 * draw("efficientvit_mit", 1)) > 40
    assert types(engine)["real_div"] == {"FLOAT32"}
    assert types(engine)["conv"] == {"FLOAT16"}
