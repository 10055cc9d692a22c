"""The pass that drops the batch axis of one image: what moves, what stays, and that outputs do not change."""

import onnx
import pytest
import torch
from torch import nn

from edgevit.export.drop_batch_axis import drop_batch_axis
from edgevit.export.rewrite import PASSES, rewrite, rewritten, sweep
from edgevit.export.to_onnx import to_onnx
from edgevit.export.trace import trace
from edgevit.stages import InputSpec

ATEN = torch.ops.aten
SPEC = InputSpec(1, 32, 32)
EXACT = 1e-6  # the same sums; a matrix kernel may order them another way
IMAGES = torch.rand(SPEC.shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
FORMS = ("split_qkv", "attention_by_head")


def dropped(module, images=IMAGES):
    """Run the pass; returns how often it matched. Checks the outputs itself."""
    with torch.no_grad():
        before = module(images)
        count = drop_batch_axis(module)
        sweep(module)
        module.graph.lint()
        after = module(images)
    assert after.shape == before.shape
    assert float((after - before).abs().max()) <= EXACT * float(before.abs().max())
    return count


def ranks(module, target):
    return {node.meta["val"].ndim for node in module.graph.nodes if node.target is target}


def uses(module, target):
    return sum(node.target is target for node in module.graph.nodes)


def operators(graph, path):
    to_onnx(graph, path)
    return [node.op_type for node in onnx.load(path).graph.node]


@pytest.mark.parametrize("schedule", ["none", "tome:r=3", "evit:keep=0.5@1", "evit:keep=0.5@1,2"])
@pytest.mark.parametrize("first", [(), FORMS], ids=["fused", "by head"])
def test_the_stream_is_a_matrix_and_outputs_stay(traced, schedule, first):
    module = traced(schedule).program.module()
    rewrite(module, SPEC, first)
    assert dropped(module) > 20
    assert ranks(module, ATEN.linear.default) == ranks(module, ATEN.gelu.default) == {2}
    # the last norm is read by a select of the class token, which loses the axis as well
    assert ranks(module, ATEN.layer_norm.default) == {2}


def test_index_vectors_lose_the_axis_too(traced):
    module = traced("tome:r=3").program.module()
    rewrite(module, SPEC, FORMS)
    dropped(module)
    assert ranks(module, ATEN.argmax.default) == {1}
    assert uses(module, ATEN.index_select.default) == 0 < uses(module, ATEN.embedding.default)
    assert not ranks(module, ATEN.squeeze.dim) - {2}  # the head mean's; none of an index


@pytest.mark.slow
@pytest.mark.parametrize("schedule", ["none", "tome:r=3", "evit:keep=0.5@1,2"])
def test_every_linear_is_one_gemm_in_the_file(traced, schedule, tmp_path):
    plain = rewritten(traced(schedule), FORMS)
    bare = rewritten(traced(schedule), (*FORMS, "drop_batch_axis"))
    assert bare.passes == (*plain.passes, "drop_batch_axis")
    before, after = operators(plain, tmp_path / "plain.onnx"), operators(bare, tmp_path / "bare.onnx")
    assert after.count("Gemm") == 2 * 6 + 1  # q, k, v, projection and two of the MLP, in two blocks; the head
    assert len(after) < len(before)
    shaping = ("Reshape", "Squeeze", "Unsqueeze", "Expand")
    if schedule != "none":  # a dense file has no index vectors
        assert sum(op in shaping for op in after) < sum(op in shaping for op in before)


def test_two_images_keep_their_axis(traced):
    spec = InputSpec(2, 32, 32)
    from tests.export.conftest import build_vit

    graph = trace(build_vit(), spec)
    assert drop_batch_axis(graph.program.module()) == 0
    assert rewritten(graph, ("drop_batch_axis",)) is graph


class Odd(nn.Module):
    """Operators on the first axis, beside it, and one that the pass does not know."""

    def __init__(self, step):
        super().__init__()
        self.line = nn.Linear(32, 32)
        self.step = step

    def forward(self, images):
        return self.step(self.line(images.mean(1)))  # [1, 32, 32]


STEPS = {
    "cat on the first axis": lambda x: torch.cat([x, x], 0).sum(0),
    "sum over the first axis": lambda x: (x * 2).sum((0, 1)),
    "sum over all": lambda x: (x * 2).amax() + x,
    "transpose of the first axis": lambda x: x.transpose(0, 1) + 1,
    "permute of the first axis": lambda x: x.permute(1, 0, 2) + 1,
    "unknown operator": lambda x: torch.roll(x, 1, 0) + torch.cumsum(x, 1),
    "select of the first axis": lambda x: x[0] + x[:, 0],
    "a batch made by broadcasting": lambda x: x + torch.arange(3.0).reshape(3, 1, 1),
    "a vector times a matrix": lambda x: x.sum(1) @ x.squeeze(0),
    "a norm over every axis": lambda x: nn.functional.layer_norm(x, x.shape),
    "negative axes": lambda x: x.softmax(-2).mean((-1,), keepdim=True).topk(4, dim=-2)[0],
    "topk and split of the last axis": lambda x: torch.cat([x.topk(5)[0], *x.split([30, 2], dim=2)], dim=-1),
    "four dimensions": lambda x: (x.reshape(1, 32, 4, 8).permute(0, 2, 1, 3) @ x.reshape(1, 4, 8, 32)).sum(2),
    "a new axis": lambda x: x.unsqueeze(-1) * x.unsqueeze(1) + x.unsqueeze(0).squeeze(0).unsqueeze(2),
}


@pytest.mark.parametrize("name", STEPS)
def test_any_other_operator_reads_the_tensor_it_read(name):
    module = trace(Odd(STEPS[name]).eval(), SPEC).program.module()
    assert dropped(module) >= 1  # the Linear


def test_chains_of_reshapes_become_one():
    module = trace(Odd(lambda x: x.reshape(1, 4, 8, 32).reshape(1, 32, 32) + 1).eval(), SPEC).program.module()
    dropped(module)
    assert sum(node.target is ATEN.reshape.default for node in module.graph.nodes) == 2  # in and out


def test_it_comes_last():
    assert list(PASSES)[-1] == "drop_batch_axis"
