"""MCTF against loops: three criteria, both directions, weighted pooling, and the attention of the fused tokens."""

import dataclasses

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError
from edgevit.reduce import reduce
from edgevit.stages import InputSpec
from edgevit.tokens.mctf import MCTF
from edgevit.tokens.protocol import Tokens
from edgevit.tokens.schedule import parse_schedule

SUM_ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of at most 15 terms, in another order


def received(made, i):
    """Attention that each token gets, mean over heads and queries."""
    heads = made.tap.probabilities[i].tolist()
    rows = [row for head in heads for row in head]
    return [sum(row[j] for row in rows) / len(rows) for j in range(made.count)]


def score(made, i, loops):
    """W of two tokens, the product as the paper writes it."""
    x, sizes, gets = made.x[i].tolist(), made.sizes(i), received(made, i)
    rare = [min(gets) / g for g in gets]  # (1 / a) / max(1 / a)
    small = [min(sizes) / s for s in sizes]

    def w(p, q):
        alike = (loops.cosine(x[p], x[q]) + 1) / 2
        return alike * (rare[p] * rare[q]) ** (1 / 20) * (small[p] * small[q]) ** (1 / 40)

    return w


def reference(made, i, r, loops):
    """Order, {source: slot} with two hops resolved, weights."""
    a, b = loops.even_and_odd(made.prefix, made.count)
    w = score(made, i, loops)
    forth = loops.join(a, b, w, r // 2)
    left = [p for p in a if p not in forth]
    back = loops.join(b, left, w, r - r // 2)
    order = [*range(made.prefix), *left, *(p for p in b if p not in back)]
    joins = {q: order.index(p) for q, p in back.items()}
    joins |= {p: order.index(back.get(q, q)) for p, q in forth.items()}
    sizes = made.sizes(i)
    weights = [g * s / max(sizes) for g, s in zip(received(made, i), sizes, strict=True)]
    return order, joins, weights


CASES = [(p, n, r) for p in (0, 1, 2, 5) for n in (14, 15) for r in (1, 2, (n - p) // 2)]


@pytest.mark.parametrize("sized", [False, True], ids=["sizes_none", "sizes_given"])
@pytest.mark.parametrize(("prefix", "count", "r"), CASES)
def test_rows_sizes_and_attention_equal_the_loop_written_reference(seen, loops, prefix, count, r, sized):
    made = seen(2, count, prefix, sized, seed=count + prefix + r)
    plan = MCTF.plan(made.site(count - r))
    rows, size = plan.apply(made.x, made.size)
    mixed = plan.mix(made.tap.probabilities)
    assert mixed.shape == (2, 2, count - r, count - r)
    for i in range(2):
        order, joins, weights = reference(made, i, r, loops)
        torch.testing.assert_close(
            rows[i], torch.tensor(loops.means(made.x[i].tolist(), order, joins, weights)), **SUM_ROUNDING
        )
        sizes = made.sizes(i)
        groups = [[own, *(t for t, slot in joins.items() if slot == s)] for s, own in enumerate(order)]
        assert size[i].tolist() == [sum(sizes[t] for t in group) for group in groups]
        for head, got in zip(made.tap.probabilities[i].tolist(), mixed[i], strict=True):
            keys = [[sum(row[t] for t in group) for group in groups] for row in head]
            torch.testing.assert_close(got, torch.tensor(loops.means(keys, order, joins, weights)), **SUM_ROUNDING)


@pytest.mark.parametrize("lowering", ["gather", "matmul"])
def test_rows_of_the_fused_attention_sum_to_one(seen, lowering):
    made = seen(3, 15, 1)
    mixed = MCTF.plan(made.site(9, lowering)).mix(made.tap.probabilities)
    torch.testing.assert_close(mixed.sum(dim=-1), torch.ones(3, 2, 9), **SUM_ROUNDING)
    torch.testing.assert_close(
        mixed, MCTF.plan(made.site(9, "matmul" if lowering == "gather" else "gather")).mix(made.tap.probabilities)
    )


def test_two_hops_end_in_one_group(seen, loops):
    """Some image of many must have them, or the case is not covered."""
    found = 0
    for seed in range(20):
        made = seen(1, 15, 1, seed=seed)
        a, b = loops.even_and_odd(1, 15)
        w = score(made, 0, loops)
        forth = loops.join(a, b, w, 3)
        back = loops.join(b, [p for p in a if p not in forth], w, 4)
        slots = MCTF.plan(made.site(8)).slots()[0].tolist()
        for p, q in forth.items():
            found += q in back
            assert slots[p] == slots[q] == slots[back.get(q, q)]
    assert found


def test_attention_that_underflows_gives_no_nan(seen):
    made = seen(1, 15, 1)
    nothing = torch.zeros_like(made.tap.probabilities)
    nothing[..., 0] = 1  # all look at the class token
    site = dataclasses.replace(made.site(8), tap=made.tap._replace(probabilities=nothing.half()), x=made.x.half())
    plan = MCTF.plan(site)
    rows, size = plan.apply(site.x, made.size.half())
    assert rows.dtype == torch.float16
    for value in (rows, size, plan.mix(nothing.half())):
        assert torch.isfinite(value).all()


@pytest.mark.parametrize(
    ("tokens", "prefix", "r", "after"),
    [(197, 1, 16, 181), (21, 1, 16, 11), (12, 1, 5, 10), (10, 1, 2, 10), (8, 1, 2, 8), (24, 2, 20, 13)],
)
def test_r_is_capped_at_half_of_the_patches_and_ten_tokens(tokens, prefix, r, after):
    assert MCTF.tokens_after(tokens, prefix, "r", r) == after


def test_the_fast_form_is_a_share_of_the_patches_at_three_blocks():
    now = 197
    for _ in range(3):
        now = MCTF.tokens_after(now, 1, "keep", 0.65)
    assert now == 56  # as published for r = 0.35


def test_the_whole_block_equals_its_formula(tiny_vit):
    """Out = A' V' + reduced x, V' from the reduced tokens; then the feed-forward."""
    pytest.importorskip("timm")
    vit = adapt(tiny_vit())
    module = reduce(vit, parse_schedule("mctf:r=4@2")).module
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    block = vit.blocks[1].block
    with torch.no_grad():
        x = module.stem(images)
        x = module.blocks[0](x, Tokens())[0]
        got, tokens, plan, _ = module.blocks[1](x, Tokens())
        q, k, _ = block.attn.qkv(block.norm1(x)).reshape(2, 17, 3, 2, 16).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(2, 3) / 4).softmax(-1)
        member = (plan.slots().unsqueeze(1) == torch.arange(13).unsqueeze(-1)).float()  # M, [B, N', N]
        w = attention.mean(dim=(1, 2))
        pooled = (member * w.unsqueeze(1)) / (member @ w.unsqueeze(-1))
        fused = pooled @ x
        v = block.attn.qkv(block.norm1(fused)).reshape(2, 13, 3, 2, 16).permute(2, 0, 3, 1, 4)[2]
        mixed = pooled.unsqueeze(1) @ attention @ member.transpose(1, 2).unsqueeze(1)
        out = fused + block.attn.proj((mixed @ v).transpose(1, 2).flatten(2))
        want = out + block.mlp(block.norm2(out))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)  # float32 through two products and a GELU
    assert torch.equal(tokens.size, member.sum(dim=-1))


@pytest.mark.slow
def test_it_exports_and_both_batches_agree(tiny_vit):
    pytest.importorskip("timm")
    from edgevit.export.trace import trace

    module = reduce(adapt(tiny_vit(depth=3)), parse_schedule("mctf:r=3")).module
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        want = module(images)
        for batch in (1, 2):
            program = trace(module, InputSpec(batch, 32, 32)).program.module()
            got = torch.cat([program(part) for part in images.split(batch)])
            assert (got - want).abs().max() < 1e-5 * want.abs().max()  # kernels may block other batch sizes differently


def test_a_gate_on_the_attention_is_that_of_the_fused_tokens(tiny_vit):
    pytest.importorskip("timm")
    model = tiny_vit()
    module = reduce(adapt(model), parse_schedule("mctf:r=4@2")).module
    images = torch.rand(1, 3, 32, 32)
    attention = model.blocks[1].attn
    with torch.no_grad():
        open_gate = module(images)
        attention.gate = torch.nn.Linear(32, 32)
        attention.gate.weight.zero_(), attention.gate.bias.fill_(20)  # sigmoid 1
        torch.testing.assert_close(module(images), open_gate)
        attention.gate.bias.fill_(-20)  # shut: nothing is added
        attention.proj.bias.zero_()
        shut = module(images)
        attention.proj.weight.zero_()
        torch.testing.assert_close(shut, module(images), rtol=1e-5, atol=1e-5)
    assert (shut - open_gate).abs().max() > 1e-2


def test_a_family_whose_values_cannot_wait_is_refused(tiny_vit):
    pytest.importorskip("timm")
    vit = adapt(tiny_vit())

    class Whole(torch.nn.Module):
        pass

    stage = dataclasses.replace(vit.stages[0], blocks=(Whole(), Whole()))
    other = dataclasses.replace(vit, family="another family", stages=(stage,))
    assert "the blocks of another family are not taken apart there; use tome" in MCTF.check_model(other, False)
    assert MCTF.check_model(vit, False) is None
    with pytest.raises(ScheduleError, match=r"r=2\.5 must be a whole number of tokens"):
        parse_schedule("mctf:r=2.5")
