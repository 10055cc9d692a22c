"""DTEM against a slow reference: one image, pairs in loops, on the trained embedding."""

import math

import pytest
import torch

from edgevit.stages import Tap
from edgevit.trained.dtem import counts, decoupled, embed

SUM_ORDER = {"rtol": 1e-4, "atol": 1e-5}  # float32 through three blocks, sums in another order
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


def merged(x, sizes, embeddings, prefix, r):
    """Rows `[N, C]`, sizes and embeddings as lists of tensors → the rows and sizes behind the merge."""
    count = len(x)
    unit = [e / e.norm() for e in embeddings]
    a = [i for i in range(prefix, count) if i % 2 == 0]
    b = [i for i in range(prefix, count) if i % 2 == 1]
    best = {i: max(b, key=lambda j: float(unit[i] @ unit[j])) for i in a}
    ranked = sorted(a, key=lambda i: -float(unit[i] @ unit[best[i]]))
    go = set(ranked[:r])
    rows, new = [], []
    for i in [*range(prefix), *(i for i in a if i not in go), *b]:
        group = [i, *(j for j in go if best[j] == i)]
        total = sum(sizes[j] for j in group)
        rows.append(sum(sizes[j] * x[j] for j in group) / total)
        new.append(total)
    return rows, new


def slow(module, image, r, proportional=True):
    model = module.backbone
    x = model.norm_pre(model._pos_embed(model.patch_embed(image.unsqueeze(0))))
    prefix, sizes, seen = model.num_prefix_tokens, [1.0] * x.shape[1], []
    for block, embedding in zip(model.blocks, module.embeddings, strict=True):
        seen.append(x.shape[1])
        normed = block.norm1(x)
        mask = torch.tensor([math.log(s) for s in sizes])[None, None, None, :] if proportional else None
        x = x + block.attn(normed, attn_mask=mask)
        keep = min(r, (x.shape[1] - prefix) // 2)
        rows, sizes = merged(list(x[0]), sizes, list(embed(embedding, normed)[0]), prefix, keep)
        x = torch.stack(rows).unsqueeze(0)
        x = x + block.mlp(block.norm2(x))
    return model.forward_head(model.norm(x))[0], seen


@pytest.mark.parametrize(("r", "more"), [(3, {}), (8, {}), (3, {"reg_tokens": 1})])
@pytest.mark.parametrize("lowering", ["gather", "matmul"])
def test_equals_the_loop_written_reference(tiny, images, r, more, lowering):
    module = tiny("dtem", r=r, lowering=lowering, options={**VIT, **more})
    with torch.no_grad():
        batch = images("dtem", 2)
        for row, image in zip(module(batch), batch, strict=True):
            want, seen = slow(module, image, r)
            assert tuple(seen) == module.tokens
            torch.testing.assert_close(row, want, **SUM_ORDER)


def test_without_proportional_attention(tiny, images):
    module = tiny("dtem", proportional=False)
    with torch.no_grad():
        image = images("dtem", 1)
        torch.testing.assert_close(module(image)[0], slow(module, image[0], 3, proportional=False)[0], **SUM_ORDER)


def test_merging_nothing_is_the_backbone(tiny, images):
    module, batch = tiny("dtem", r=0), images("dtem", 2)
    with torch.no_grad():
        torch.testing.assert_close(module(batch), module.backbone(batch), **SUM_ORDER)


def test_the_embedding_decides_and_not_the_keys(tiny, images):
    module, batch = tiny("dtem", r=3, blocks=(1,)), images("dtem", 1)
    with torch.no_grad():
        before = module(batch)
        module.embeddings[0].weight.copy_(torch.randn(64, 32, generator=torch.Generator().manual_seed(9)))
        after = module(batch)
    assert (before - after).abs().max() > 1e-4


def test_a_tap_reads_the_embedding_as_its_only_head():
    heads = torch.zeros(2, 3, 7, 4)
    tap = Tap(heads, heads, heads, 0.5)
    e = torch.randn(2, 7, 64)
    assert torch.equal(decoupled(tap, e).k.mean(dim=1), e)
    assert decoupled(tap, e).q is tap.q


def test_counts_follow_the_cap():
    assert counts(21, 1, {1: 16, 2: 16}, 3) == (11, 6, 6)


def test_no_module_appears_twice_in_the_state_dict(tiny):
    assert {key.split(".")[0] for key in tiny("dtem").state_dict()} == {"backbone", "embeddings"}
