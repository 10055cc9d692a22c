"""The static primitives, and the operators that a traced reduction step is made of."""

import pytest
import torch
from torch import nn

from edgevit.export.gate import FORBIDDEN_ATEN, check_program
from edgevit.stages import Tap
from edgevit.tokens import METHODS, method
from edgevit.tokens.lowering import LOWERINGS, ascending, one_hot, take_rows
from edgevit.tokens.protocol import Site

QUICK = [("gather", 1), ("matmul", 3)]
# what decides on a block alone; selectors and trained methods have tests of their own, and expedit, which takes a
# whole grid and so stands once
UNTRAINED = [
    n for n in METHODS if n != "expedit" and not method(n).selector and getattr(method(n), "weights", None) is None
]


class Steps(nn.Module):
    """Two reduction steps in a row on a `[B, N, C]` stream that serves as query, key and value."""

    def __init__(self, name, lowering, prefix=1):
        super().__init__()
        self.method, self.lowering, self.prefix = method(name), lowering, prefix

    def forward(self, images):
        x, size = images, None
        for out in (10, 7):
            heads = x.unflatten(2, (2, -1)).transpose(1, 2)
            tap = Tap(heads, heads, heads, 0.5, None if size is None else size.log())
            if self.method.probabilities:
                tap = tap._replace(probabilities=(heads @ heads.transpose(2, 3) * 0.5).softmax(-1))
            site = Site(tap, x, size, self.prefix, out, grid=(3, 4), lowering=self.lowering)
            x, size = self.method.plan(site).apply(x, size)
        return x


@pytest.mark.parametrize(("lowering", "batch"), [
    pytest.param(lowering, batch, marks=[] if (lowering, batch) in QUICK else pytest.mark.slow)
    for lowering in LOWERINGS
    for batch in (1, 3)
])  # fmt: skip
@pytest.mark.parametrize("name", UNTRAINED)
def test_a_traced_step_is_static_and_has_no_scatter_and_no_nonzero(name, lowering, batch):
    x = torch.randn(batch, 13, 8, generator=torch.Generator().manual_seed(0))
    module = Steps(name, lowering)
    program = torch.export.export(module, (x,))
    check_program(program)
    used = {str(n.target).removeprefix("aten.").split(".")[0] for n in program.graph.nodes}
    assert not used & set(FORBIDDEN_ATEN)
    assert "sort" not in used
    assert ("index_select" in used) is (lowering == "gather")
    torch.testing.assert_close(program.module()(x), module(x), rtol=0, atol=0)  # the same kernels in the same order


@pytest.mark.parametrize("lowering", LOWERINGS)
@pytest.mark.parametrize("batch", [1, 3])
def test_take_rows_takes_them_in_the_given_order(batch, lowering):
    x = torch.randn(batch, 9, 5, generator=torch.Generator().manual_seed(0))
    index = torch.stack([torch.tensor([7, 0, 3]).roll(i) for i in range(batch)])
    want = torch.stack([torch.stack([x[b, i] for i in index[b]]) for b in range(batch)])
    assert torch.equal(take_rows(x, index, lowering), want)  # a copy, or a product with one 1 in each row


@pytest.mark.parametrize("lowering", LOWERINGS)
def test_take_rows_of_nothing_is_empty(lowering):
    assert take_rows(torch.ones(2, 9, 5), torch.zeros(2, 0, dtype=torch.int64), lowering).shape == (2, 0, 5)


def test_one_hot_marks_exactly_the_index():
    assert one_hot(torch.tensor([[2, 0]]), 3, torch.float32).tolist() == [[[0, 0, 1], [1, 0, 0]]]


def test_ascending_sorts_and_keeps_integers_exact():
    index = torch.randperm(5000, generator=torch.Generator().manual_seed(0)).unsqueeze(0) + 2**23
    got = ascending(index)
    assert torch.equal(got, index.sort(dim=1).values)
    assert got.dtype == torch.int64
