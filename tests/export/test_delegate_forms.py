"""Attention, products and moves in the operators that delegates know: the same function, none of the others left."""

import pytest
import torch
from torch.nn import functional

from edgevit.export.attention_as_products import attention_as_products
from edgevit.export.dequantize_by_reader import dequantize_by_reader
from edgevit.export.drop_empty_parts import drop_empty_parts
from edgevit.export.fold_constants import fold_constants
from edgevit.export.lengths_as_sums import lengths_as_sums
from edgevit.export.moves_as_reshapes import moves_as_reshapes
from edgevit.export.pool_as_mean import pool_as_mean
from edgevit.export.rewrite import sweep

EXACT = 1e-6  # the scale on one side of the product instead of its root on both


class Attention(torch.nn.Module):
    """Windows `[B, W, H, N, d]`, or heads `[B, H, N, d]`, with a mask that broadcasts."""

    def __init__(self, masked, scale=None):
        super().__init__()
        self.masked, self.scale = masked, scale

    def forward(self, x):
        q, k, v = x.reshape(2, 6, 3, 4, 8).permute(2, 0, 3, 1, 4).unbind(0)
        mask = x[:, None, None, :, 0] if self.masked else None
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=self.scale)


def program(module, *inputs):
    return torch.export.export(module.eval(), inputs).module()


def operators(module):
    return {str(node.target).removeprefix("aten.") for node in module.graph.nodes if node.op == "call_function"}


@pytest.mark.parametrize(("masked", "scale"), [(False, None), (True, None), (True, 0.5)])
def test_attention_is_two_products_of_three_dimensions(masked, scale):
    x = torch.randn(2, 6, 96, generator=torch.Generator().manual_seed(0))
    module = program(Attention(masked, scale), x)
    want = module(x)
    assert attention_as_products(module) == 1
    sweep(module)
    assert (module(x) - want).abs().max() <= EXACT * want.abs().max()
    assert "scaled_dot_product_attention.default" not in operators(module)
    products = [node for node in module.graph.nodes if node.target is torch.ops.aten.bmm.default]
    assert [tuple(node.meta["val"].shape) for node in products] == [(8, 6, 6), (8, 6, 8)]


def test_attention_that_means_more_is_left_alone():
    class Causal(torch.nn.Module):
        def forward(self, x):
            return functional.scaled_dot_product_attention(x, x, x, is_causal=True)

    module = program(Causal(), torch.zeros(1, 2, 3, 4))
    assert attention_as_products(module) == 0
    assert "scaled_dot_product_attention.default" in operators(module)


def test_products_of_equal_batches_are_batched_products_and_others_stay():
    class Products(torch.nn.Module):
        def forward(self, x):
            return x @ x.transpose(-2, -1) @ x, x @ x[0, 0].T

    x = torch.randn(2, 3, 4, 5, generator=torch.Generator().manual_seed(0))
    module = program(Products(), x)
    want = module(x)
    assert attention_as_products(module) == 2
    sweep(module)
    for got, expected in zip(module(x), want, strict=True):
        torch.testing.assert_close(got, expected)
    assert "matmul.default" in operators(module)  # by one matrix: a Linear in all but name


class Moves(torch.nn.Module):
    """Every operator of the pass."""

    def __init__(self):
        super().__init__()
        self.token = torch.nn.Parameter(torch.arange(4.0).reshape(1, 1, 4))

    def forward(self, x):
        x = torch.cat([self.token.expand(2, -1, -1), x], 1)
        first, last = x.split([3, 4], 1)
        halves = x.chunk(2, 2)
        several = [x[:, -1], x[:, 2].unsqueeze(1).squeeze(1), first.sum(1), last[:, 0], halves[1].flatten(1)[:, :4]]
        return torch.stack([*several, *x[:, :2].unbind(1)], 1)


def test_moves_are_slices_and_reshapes():
    x = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(0))
    module = program(Moves(), x)
    want = module(x)
    assert fold_constants(module) == 1  # the expanded token
    assert moves_as_reshapes(module) > 8
    sweep(module)
    assert torch.equal(module(x), want)
    left = operators(module)
    assert not left & {
        "select.int", "unsqueeze.default", "squeeze.dim", "flatten.using_ints", "unbind.int", "expand.default",
        "split_with_sizes.default", "chunk.default",
    }  # fmt: skip


def test_an_expand_of_what_depends_on_the_image_stays():
    class Broadcast(torch.nn.Module):
        def forward(self, x):
            return x.expand(3, -1), x.expand(1, 4)

    module = program(Broadcast(), torch.zeros(1, 4))
    assert moves_as_reshapes(module) == 1  # the one that changes no shape
    assert "expand.default" in operators(module)


@pytest.mark.parametrize("alone", [False, True])
def test_an_expand_goes_where_arithmetic_broadcasts_to_the_same_shape(alone):
    class Scaled(torch.nn.Module):
        def forward(self, x):
            size = x.sum(-1, keepdim=True).expand(2, 4)
            return size * size.sum(0) if alone else x * size

    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    module = program(Scaled(), x)
    want = module(x)
    assert moves_as_reshapes(module) == (not alone)
    sweep(module)
    assert torch.equal(module(x), want)
    assert ("expand.default" in operators(module)) is alone  # the product would be smaller without it


def test_parts_of_a_cat_that_hold_nothing_go():
    class Joined(torch.nn.Module):
        def forward(self, x):
            return torch.cat([x[:, :0], x], 1), torch.cat([x, x[:, 2:2], x], 1)

    x = torch.arange(8.0).reshape(2, 4)
    module = program(Joined(), x)
    want = module(x)
    assert drop_empty_parts(module) == 2
    sweep(module)
    assert all(torch.equal(a, b) for a, b in zip(module(x), want, strict=True))
    assert [node.target for node in module.graph.nodes if node.op == "call_function"] == [torch.ops.aten.cat.default]


def test_of_reshapes_in_a_row_one_is_left():
    class Reshapes(torch.nn.Module):
        def forward(self, x):
            return x.reshape(8).reshape(4, 2).reshape(2, 2, 2), x.reshape(8).reshape(2, 4)

    x = torch.arange(8.0).reshape(2, 4)
    module = program(Reshapes(), x)
    moves_as_reshapes(module)
    sweep(module)
    got = module(x)
    assert torch.equal(got[0], x.reshape(2, 2, 2))
    assert torch.equal(got[1], x)
    assert [node.target for node in module.graph.nodes if node.op == "call_function"] == [
        torch.ops.aten.reshape.default
    ]


def test_what_no_image_changes_is_computed_once_but_integer_weights_stay_integers():
    from torch.ao.quantization.fx import _decomposed  # noqa: F401 (defines the operator)

    class Placed(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Buffer(torch.arange(-4, 4, dtype=torch.int8).reshape(2, 4))
            self.scale = torch.nn.Buffer(torch.tensor([0.5, 2.0]))

        def forward(self, x):
            place = torch.arange(4, device=x.device).float() / 4
            zero = torch.zeros(2, dtype=torch.int64)
            weight = torch.ops.quantized_decomposed.dequantize_per_channel(
                self.weight, self.scale, zero, 0, -128, 127, torch.int8
            )
            return functional.linear(x + place.sin(), weight)

    x = torch.randn(3, 4, generator=torch.Generator().manual_seed(0))
    module = program(Placed(), x)
    want = module(x)
    assert fold_constants(module) == 2  # positions, zero points
    sweep(module)
    assert torch.equal(module(x), want)
    assert operators(module) == {"add.Tensor", "linear.default", "quantized_decomposed.dequantize_per_channel.default"}
    assert fold_constants(module) == 0


def test_pooling_to_one_place_is_a_mean_and_other_pooling_stays():
    class Pools(torch.nn.Module):
        def forward(self, x):
            x = x.permute(0, 3, 1, 2)
            return functional.adaptive_avg_pool2d(x, 1), functional.adaptive_avg_pool2d(x, 2)

    x = torch.randn(1, 4, 4, 3, generator=torch.Generator().manual_seed(0))
    module = program(Pools(), x)
    want = module(x)
    assert pool_as_mean(module) == 1
    for got, expected in zip(module(x), want, strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("keepdim", [True, False])
def test_lengths_are_roots_of_sums(keepdim):
    class Lengths(torch.nn.Module):
        def forward(self, x):
            return (
                torch.linalg.vector_norm(x, dim=-1, keepdim=keepdim),
                functional.normalize(x, dim=1),
                x.norm(p=1, dim=0),
            )

    x = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0))
    module = program(Lengths(), x)
    want = module(x)
    assert lengths_as_sums(module) == 2
    sweep(module)
    for got, expected in zip(module(x), want, strict=True):
        torch.testing.assert_close(got, expected)


def test_every_reader_of_a_quantized_tensor_has_its_own_dequantizer():
    """Through a dropout too, which does nothing here."""

    class Residual(torch.nn.Module):
        def forward(self, x):
            integers = torch.ops.quantized_decomposed.quantize_per_tensor.default(x, 0.1, 0, -128, 127, torch.int8)
            x = functional.dropout(
                torch.ops.quantized_decomposed.dequantize_per_tensor.default(integers, 0.1, 0, -128, 127, torch.int8),
                training=False,
            )
            return functional.gelu(x) + x

    x = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    module = program(Residual(), x)
    want = module(x)
    moves_as_reshapes(module)
    assert dequantize_by_reader(module) >= 1
    sweep(module)
    assert torch.equal(module(x), want)
    readers = [len(n.users) for n in module.graph.nodes if "dequantize_per_tensor" in str(n.target)]
    assert readers == [1, 1]
