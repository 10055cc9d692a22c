"""Each rewrite: how often it matches, that outputs stay, and what it must leave alone."""

import operator
import sys
import types
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.nn import functional

from edgevit.errors import GraphError
from edgevit.export import rewrite as runner
from edgevit.export.rewrite import PASSES, rewrite, sweep
from edgevit.export.trace import trace
from edgevit.stages import InputSpec

ATEN = torch.ops.aten
SPEC = InputSpec(1, 32, 32)
IMAGES = torch.rand(SPEC.shape, generator=torch.Generator().manual_seed(5)) * 2 - 1
EXACT = 1e-5  # of the largest output: the same sums in float32, in another order


def run(module, *names):
    """Apply passes one after the other; returns how often each matched. Checks the outputs itself."""
    with torch.no_grad():
        before = module(IMAGES)
        counts = []
        for name in names:
            where, function = PASSES[name].split(":")
            counts.append(getattr(import_module(where), function)(module))
            sweep(module)
            module.graph.lint()
            assert float((module(IMAGES) - before).abs().max()) <= EXACT * float(before.abs().max())
    return counts


def uses(module, target):
    return sum(node.target is target for node in module.graph.nodes)


def unlifted(model, spec=SPEC):
    return trace(model.eval(), spec).program.module()


@pytest.mark.parametrize("schedule", ["none", "tome:r=3", "evit:keep=0.5@2"])
def test_patch_convolution_becomes_one_linear(traced, schedule):
    module = traced(schedule).program.module()
    linears = uses(module, ATEN.linear.default)
    assert run(module, "patches_as_linear") == [1]
    assert uses(module, ATEN.conv2d.default) == 0
    assert uses(module, ATEN.linear.default) == linears + 1


def test_qkv_becomes_three_linears_in_every_block(traced):
    module = traced().program.module()
    linears = uses(module, ATEN.linear.default)
    assert run(module, "split_qkv") == [2]
    assert uses(module, ATEN.linear.default) == linears + 4
    assert uses(module, ATEN.unbind.int) == 0


def test_attention_scale_moves_into_the_query_once_it_has_its_own_linear(traced):
    module = traced().program.module()
    assert run(module, "fold_attention_scale") == [0]  # the fused Linear also makes keys and values
    assert run(module, "split_qkv", "fold_attention_scale") == [2, 2]
    scales = [n.kwargs["scale"] for n in module.graph.nodes if n.target is ATEN.scaled_dot_product_attention.default]
    assert scales == [1.0, 1.0]
    assert run(module, "fold_attention_scale") == [0]


@pytest.mark.parametrize("first", [(), ("split_qkv",)])
def test_norm_affine_moves_into_the_linears_that_read_it(traced, first):
    module = traced().program.module()
    # norm1 and norm2 of two blocks; the final norm is read by a select, not by the head's Linear
    assert run(module, *first, "fold_norm_affine")[-1] == 4
    plain = [n for n in module.graph.nodes if n.target is ATEN.layer_norm.default and n.args[2] is None]
    assert len(plain) == 4


def test_merged_tokens_leave_the_scale_foldable_and_scored_tokens_do_not(traced):
    passes = ("split_qkv", "fold_attention_scale")
    assert run(traced("tome:r=3").program.module(), *passes) == [2, 2]
    # EViT reads the query of block 2 for its scores; block 1 is free
    assert run(traced("evit:keep=0.5@2").program.module(), *passes) == [2, 1]


def test_unread_tokens_of_the_last_block_are_dropped(traced):
    module = traced().program.module()
    assert run(module, "split_qkv", "fold_attention_scale", "drop_unread_tokens")[-1] == 1
    attentions = [n for n in module.graph.nodes if n.target is ATEN.scaled_dot_product_attention.default]
    assert [tuple(n.meta["val"].shape)[2] for n in attentions] == [17, 1]
    pooled = traced(global_pool="avg").program.module()
    assert run(pooled, "split_qkv", "drop_unread_tokens")[-1] == 0


@pytest.mark.parametrize(
    ("schedule", "options"),
    [
        ("none", {}),
        ("tome:r=3", {}),
        ("evit:keep=0.5@1,2", {}),
        ("tome:r=3", {"qk_norm": True}),
        ("tome:r=3", {"global_pool": "avg", "class_token": False}),
    ],
    ids=str,
)
def test_all_passes_together_keep_the_function(traced, schedule, options):
    module = traced(schedule, **options).program.module()
    with torch.no_grad():
        before = module(IMAGES)
        done = rewrite(module, SPEC, list(PASSES))
        after = module(IMAGES)
    assert set(done) <= set(PASSES)
    assert {"patches_as_linear", "split_qkv", "fold_norm_affine"} <= set(done)
    assert float((after - before).abs().max()) <= EXACT * float(before.abs().max())


def test_a_rewritten_program_still_exports_and_the_source_is_untouched(traced):
    graph = traced()
    code = graph.program.graph_module.code
    module = graph.program.module()
    rewrite(module, SPEC, list(PASSES))
    again = trace(module, SPEC)
    with torch.no_grad():
        torch.testing.assert_close(again.program.module()(IMAGES), module(IMAGES), rtol=0, atol=0)
    assert graph.program.graph_module.code == code


class Convolution(nn.Module):
    """conv → tokens, the shape of a patch embedding."""

    def __init__(self, *args, **options):
        super().__init__()
        self.conv = nn.Conv2d(*args, **options)

    def forward(self, images):
        return self.conv(images).flatten(2).transpose(1, 2)


LEFT_CONVOLUTIONS = {
    "padded": Convolution(3, 6, 8, stride=8, padding=4),
    "overlapping": Convolution(3, 6, 8, stride=4),
    "gaps": Convolution(3, 6, 4, stride=8),
    "dilated": Convolution(3, 6, 4, stride=4, dilation=2),
    "grouped": Convolution(3, 6, 8, stride=8, groups=3),
    "cut off": Convolution(3, 6, 7, stride=7),
}


@pytest.mark.parametrize("name", LEFT_CONVOLUTIONS)
def test_a_convolution_that_is_no_patch_embedding_stays(name):
    assert run(unlifted(LEFT_CONVOLUTIONS[name]), "patches_as_linear") == [0]


@pytest.mark.parametrize("options", [{}, {"bias": False}], ids=["bias", "no bias"])
def test_a_patch_convolution_of_any_rectangle_is_taken(options):
    assert run(unlifted(Convolution(3, 6, (8, 4), stride=(8, 4), **options)), "patches_as_linear") == [1]


class ReadsConvolution(Convolution):
    """The feature map has a second reader."""

    def forward(self, images):
        features = self.conv(images)
        return features.flatten(2).transpose(1, 2) + features.mean()


def test_a_convolution_with_another_reader_stays():
    assert run(unlifted(ReadsConvolution(3, 6, 8, stride=8)), "patches_as_linear") == [0]


class SplitsConvolution(Convolution):
    """Its one reader has several results."""

    def forward(self, images):
        first, second = self.conv(images).split([2, 4], dim=1)
        return first.mean(1) + second.mean(1)


def test_a_convolution_that_is_split_stays():
    assert run(unlifted(SplitsConvolution(3, 6, 8, stride=8)), "patches_as_linear") == [0]


class Attends(nn.Module):
    """Self-attention on 8-pixel patches; `tail(qkv, q, k)` adds another reader."""

    def __init__(self, tail=None, q_norm=None, shared=False, scale=None):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.query = nn.Linear(192, 96), nn.Linear(192, 32)
        self.q_norm = q_norm or nn.Identity()
        self.tail, self.shared, self.scale = tail, shared, scale

    def forward(self, images):
        tokens = images.reshape(1, 16, 192)
        if self.shared:
            q = k = v = self.query(tokens).reshape(1, 16, 2, 16).permute(0, 2, 1, 3)
            qkv = q
        else:
            qkv = self.qkv(tokens)
            q, k, v = qkv.reshape(1, 16, 3, 2, 16).permute(2, 0, 3, 1, 4).unbind(0)
            q = self.q_norm(q)
        out = functional.scaled_dot_product_attention(q, k, v, scale=self.scale)
        return out + self.tail(qkv, q, k) if self.tail else out


def test_qkv_with_another_reader_stays():
    module = unlifted(Attends(lambda qkv, q, k: qkv.mean()))
    assert run(module, "split_qkv") == [0]


@pytest.mark.parametrize(
    "model",
    [Attends(q_norm=nn.LayerNorm(16)), Attends(lambda qkv, q, k: q.mean()), Attends(shared=True), Attends(scale=1.0)],
    ids=["query has a norm", "query has another reader", "query is the key too", "scale is 1"],
)
def test_a_query_that_is_not_the_attention_s_alone_keeps_its_scale(model):
    assert run(unlifted(model), "split_qkv", "fold_attention_scale")[-1] == 0


def test_a_query_of_a_given_scale_is_folded_by_that_scale():
    module = unlifted(Attends(scale=0.125))
    assert run(module, "split_qkv", "fold_attention_scale") == [1, 1]


class Normalizes(nn.Module):
    """LayerNorm of any shape in front of what `reader` does."""

    def __init__(self, reader, shape=(32,), **options):
        super().__init__()
        torch.manual_seed(0)
        self.norm, self.linear, self.reader = nn.LayerNorm(shape, **options), nn.Linear(32, 32), reader
        with torch.no_grad():
            for parameter in self.norm.parameters():
                parameter.uniform_(0.2, 0.8)

    def forward(self, images):
        return self.reader(self.linear, self.norm(images))


LEFT_NORMS = {
    "reader is not a Linear": Normalizes(lambda linear, x: functional.gelu(x)),
    "one of two readers is not a Linear": Normalizes(lambda linear, x: linear(x) + x),
    "weight of the Linear is computed": Normalizes(lambda linear, x: functional.linear(x, x[0, 0])),
    "normalizes two dimensions": Normalizes(lambda linear, x: linear(x), shape=(32, 32)),
    "no gain": Normalizes(lambda linear, x: linear(x), elementwise_affine=False),
}


@pytest.mark.parametrize("name", LEFT_NORMS)
def test_a_norm_whose_affine_cannot_move_stays(name):
    assert run(unlifted(LEFT_NORMS[name]), "fold_norm_affine") == [0]


def test_a_norm_in_front_of_a_linear_without_bias_moves():
    model = Normalizes(lambda linear, x: linear(x))
    model.linear = nn.Linear(32, 8, bias=False)
    assert run(unlifted(model), "fold_norm_affine") == [1]


def broken(name, function, monkeypatch):
    """Put a pass into the table under `name`."""
    module = types.ModuleType(f"broken_pass_{name}")
    module.run = function
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setitem(runner.PASSES, name, f"{module.__name__}:run")


def doubles(module):
    """A pass with a bug: the last Linear's weight is doubled."""
    linear = [n for n in module.graph.nodes if n.target is ATEN.linear.default][-1]
    weight = runner.attribute(module, linear.args[1])
    linear.args = (linear.args[0], runner.constant(module, linear, "twice", weight * 2), *linear.args[2:])
    return 1


def poisons(module):
    """A pass with a bug: NaN."""
    linear = [n for n in module.graph.nodes if n.target is ATEN.linear.default][-1]
    weight = runner.attribute(module, linear.args[1])
    linear.args = (linear.args[0], runner.constant(module, linear, "nan", weight * float("nan")), *linear.args[2:])
    return 1


@pytest.mark.parametrize(("function", "size"), [(doubles, r"\de[+-]\d\d"), (poisons, "nan")])
def test_a_pass_that_changes_the_outputs_is_caught(traced, monkeypatch, function, size):
    broken(function.__name__, function, monkeypatch)
    module = traced().program.module()
    with pytest.raises(GraphError, match=rf"pass {function.__name__} changed the outputs by .*{size} \(limit 1e-05\)"):
        rewrite(module, SPEC, [function.__name__])


class Cancels(nn.Module):
    """A norm's output of about 1000, of which the last thousandth is returned: float32 keeps four digits of it."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.linear = nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.Linear(30, 4)
        self.norm.bias.data.fill_(1000.0)

    def forward(self, images):
        return self.linear(self.norm(self.conv(images)) - 1000.0)


def test_what_float32_loses_by_itself_is_no_bug_of_a_pass_and_a_bug_is_still_caught(monkeypatch):
    module = unlifted(Cancels())
    images = torch.rand(SPEC.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        before = module(images)
        assert rewrite(module, SPEC, ["fold_batch_norm"]) == ("fold_batch_norm",)
        assert float((module(images) - before).abs().max()) > EXACT * float(before.abs().max())
    broken("doubles", doubles, monkeypatch)
    with pytest.raises(GraphError, match="pass doubles changed the outputs"):
        rewrite(module, SPEC, ["doubles"])


def test_only_passes_that_matched_are_recorded_in_order(traced):
    module = traced().program.module()
    assert rewrite(module, SPEC, ["fold_attention_scale", "patches_as_linear"]) == ("patches_as_linear",)
    module = traced().program.module()
    done = rewrite(module, SPEC, ["patches_as_linear", "split_qkv", "fold_attention_scale"])
    assert done == ("patches_as_linear", "split_qkv", "fold_attention_scale")


def test_new_nodes_belong_to_the_layer_they_replace(traced):
    module = traced().program.module()
    run(module, "patches_as_linear", "split_qkv")
    for node in module.graph.nodes:
        if node.target in (ATEN.linear.default, operator.getitem):
            assert node.meta.get("nn_module_stack"), node.name
