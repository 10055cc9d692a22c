"""`scope=attention`: fewer tokens inside the attention product, all of them outside."""

import math

import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError
from edgevit.narrow import NarrowAttention
from edgevit.reduce import dense_macs, reduce
from edgevit.stages import Tap
from edgevit.tokens.protocol import Tokens
from edgevit.tokens.schedule import parse_schedule
from edgevit.tokens.tome import ToMe

IMAGES = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1)) * 2 - 1


def narrow(model, spec="tome:r=6,scope=attention@1"):
    return reduce(adapt(model), parse_schedule(spec))


def attention_by_loops(q, k, v, scale):
    """[n][d] lists → [n][d]."""
    out = []
    for query in q:
        powers = [math.exp(scale * sum(a * b for a, b in zip(query, key, strict=True))) for key in k]
        shares = [power / sum(powers) for power in powers]
        out.append([sum(s * row[c] for s, row in zip(shares, v, strict=True)) for c in range(len(v[0]))])
    return out


def test_the_attention_equals_a_loop_over_groups(tiny_vit):
    reduced = narrow(tiny_vit(depth=1))
    module = reduced.module.blocks[0].narrow
    block = reduced.module.stages[0].blocks[0]
    with torch.no_grad():
        x = reduced.module.stem(IMAGES)
        tap = block.project(x, Tokens())
        got = module(block, tap, x, Tokens())
        slots = ToMe.plan(module.step.site(tap, x, Tokens())).slots()
    assert got.shape == tap.v.shape
    for image in range(2):
        slot = slots[image].tolist()
        groups = [[i for i, s in enumerate(slot) if s == j] for j in range(max(slot) + 1)]
        assert len(groups) == 17 - 6
        for head in range(2):
            parts = (
                [[sum(rows[i][c] for i in group) / len(group) for c in range(len(rows[0]))] for group in groups]
                for rows in (part[image, head].tolist() for part in (tap.q, tap.k, tap.v))
            )
            want = attention_by_loops(*parts, tap.scale)
            expected = torch.tensor([want[s] for s in slot])
            torch.testing.assert_close(got[image, head], expected, rtol=1e-4, atol=1e-5)  # float32 sums of 17 terms


def test_the_stream_keeps_its_tokens_and_the_decision_is_not_a_plan_of_the_stream(tiny_vit):
    reduced = narrow(tiny_vit(depth=3, global_pool=""), "tome:r=6,scope=attention")
    with torch.no_grad():
        out, plans = reduced.module.run(IMAGES)
    assert out.shape[1] == 17
    assert plans == [None, None, None]
    assert reduced.tokens == (17, 17, 17)


def test_equal_tokens_lose_nothing(tiny_vit):
    """Where all patches are alike, a group's mean is each of its members; only weights among equal keys change."""
    model = tiny_vit(depth=1)
    with torch.no_grad():
        model.pos_embed.zero_()
        model.patch_embed.proj.weight.zero_()
        model.patch_embed.proj.bias.copy_(model.cls_token[0, 0])  # class token and patches are the same vector
        dense = model(IMAGES)
        assert dense.abs().max() > 0.1
        torch.testing.assert_close(narrow(model).module(IMAGES), dense, rtol=1e-5, atol=1e-5)  # float32 sums of 17


def test_no_reduction_is_the_original_module(tiny_vit):
    model = tiny_vit()
    reduced = narrow(model, "tome:r=0,scope=attention")
    assert reduced.module is model
    assert reduced.reduced_macs == reduced.dense_macs


def test_macs_count_the_two_products_on_merged_tokens_and_the_rest_on_all(tiny_vit):
    reduced = narrow(tiny_vit(depth=2), "tome:r=6/8,scope=attention@1,2")
    assert reduced.dense_macs - reduced.reduced_macs == 2 * 32 * (2 * 17**2 - 11**2 - 9**2)
    measured = dense_macs(reduced.module, (1, 3, 32, 32))
    # the reduction's own products (similarity, one-hot) are left out by convention: 3 % of this small model
    assert reduced.reduced_macs <= measured < 1.05 * reduced.reduced_macs


def test_both_lowerings_agree_and_an_image_does_not_depend_on_its_batch(tiny_vit):
    parts = adapt(tiny_vit(depth=2))
    schedule = parse_schedule("tome:r=6,scope=attention")
    with torch.no_grad():
        gather, matmul = (reduce(parts, schedule, lowering).module(IMAGES) for lowering in ("gather", "matmul"))
        alone = torch.cat([reduce(parts, schedule).module(IMAGES[i : i + 1]) for i in range(2)])
    assert (gather - matmul).abs().max() < 1e-5 * gather.abs().max()  # a product with one 1 in each row is exact
    assert (gather - alone).abs().max() < 1e-5 * gather.abs().max()  # kernels may block other batch sizes differently


@pytest.mark.parametrize("spec", ["tome:r=4", "tps:keep=0.6", "tokentransforming:keep=0.6"])
def test_every_method_that_merges_behind_the_attention_can_stand_inside(tiny_vit, spec):
    with torch.no_grad():
        out = narrow(tiny_vit(), f"{spec},scope=attention@1,2").module(IMAGES)
    assert torch.isfinite(out).all()


@pytest.mark.parametrize(
    ("spec", "reason"),
    [
        ("tome:r=4,scope=block", "the only scope is attention"),
        ("evit:keep=0.7,scope=attention", "evit cannot stand inside the attention"),
        ("ats:keep=0.7,scope=attention", "ats cannot"),
        ("zerotprune:keep=0.7,scope=attention", "zerotprune cannot"),
        ("expedit:keep=0.25,scope=attention", "expedit cannot"),
        ("tome:r=4,scope=attention,until=2", "nothing to bring back"),
    ],
)
def test_what_cannot_stand_inside_is_refused(spec, reason):
    with pytest.raises(ScheduleError, match=reason):
        parse_schedule(spec)


def test_a_bias_on_pairs_of_tokens_is_refused():
    q = torch.zeros(1, 1, 4, 2)
    with pytest.raises(ScheduleError, match="adds a bias to each pair"):
        NarrowAttention(None)(nn.Identity(), Tap(q, q, q, 1.0, bias=torch.zeros(1, 1, 4, 4)), q[:, 0], Tokens())
