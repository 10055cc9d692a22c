"""LookupViT against its formulas, head by head; one set of weights on several grids."""

import pytest
import torch
import torch.nn.functional as F

from edgevit.trained.lookupvit import resize_matrix

SUM_ORDER = {"rtol": 1e-4, "atol": 1e-5}  # float32 through three blocks, sums in another order


def written_out(module, images, grid):
    model = module.backbone
    tokens = model._pos_embed(model.patch_embed(images))
    batch, _, width = tokens.shape
    lookup = tokens
    image = tokens.transpose(1, 2).reshape(batch, width, *model.patch_embed.grid_size)
    small = F.interpolate(image, grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    d = width // 2
    for block, exchange in zip(model.blocks, module.exchanges, strict=True):
        cross, context = exchange.cross, exchange.norm_lookup(lookup)
        q, k, v = cross.q(exchange.norm_compressed(small)), cross.k(context), cross.v(context)
        heads = [slice(0, d), slice(d, 2 * d)]
        attention = [(q[..., h] @ k[..., h].transpose(1, 2) / d**0.5).softmax(-1) for h in heads]
        small = small + cross.proj(torch.cat([a @ v[..., h] for a, h in zip(attention, heads, strict=True)], -1))
        small = block(small)
        if exchange.infuse is None:
            continue
        back = exchange.infuse
        v = back.v(back.norm(small))
        mixed = torch.cat([a.transpose(1, 2) @ v[..., h] for a, h in zip(attention, heads, strict=True)], -1)
        lookup = lookup + back.proj(mixed)
        lookup = lookup + back.light(back.norm_light(lookup))
    return model.head(model.norm(small).mean(dim=1))


@pytest.mark.parametrize("grid", [(1, 1), (2, 2), (3, 2), (4, 4)])
def test_one_set_of_weights_serves_every_grid(tiny, images, grid):
    trained, module = tiny("lookupvit"), tiny("lookupvit", compressed=grid)
    module.load_state_dict(trained.state_dict())
    assert module.tokens == (grid[0] * grid[1],) * 3
    with torch.no_grad():
        x = images("lookupvit", 2)
        torch.testing.assert_close(module(x), written_out(module, x, grid), **SUM_ORDER)


@pytest.mark.parametrize("grid", [(5, 5), (7, 7), (10, 10), (3, 14)])
def test_the_constant_product_is_bilinear_resizing(grid):
    x = torch.randn(2, 6, 14, 14, generator=torch.Generator().manual_seed(0))
    want = F.interpolate(x, grid, mode="bilinear", align_corners=False).flatten(2).transpose(1, 2)
    torch.testing.assert_close(resize_matrix((14, 14), grid) @ x.flatten(2).transpose(1, 2), want)


def test_the_grid_is_no_weight(tiny):
    assert not [key for key in tiny("lookupvit").state_dict() if "resize" in key]


def test_a_backbone_of_its_own_options_with_a_class_token_is_refused(tiny):
    from edgevit.errors import LoadError

    options = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "class_token": True}
    with pytest.raises(LoadError, match="has 1 prefix tokens; it must have none"):
        tiny("lookupvit", options=options)
