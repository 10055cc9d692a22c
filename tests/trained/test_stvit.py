"""STViT-R: windows against torch's own pooling and unfolding, the stage against one window at a time."""

import pytest
import torch
import torch.nn.functional as F

from edgevit.errors import LoadError
from edgevit.trained.stvit import bins, local_context, pool_windows, to_windows

SUM_ORDER = {"rtol": 1e-4, "atol": 1e-5}  # float32 through six blocks, sums in another order


def grid(height, width, channels=5):
    return torch.randn(2, height, width, channels, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("window", "count"), [((7, 7), 3), ((4, 4), 2), ((7, 7), 2), ((6, 4), 3), ((3, 3), 3)])
def test_pooling_is_torchs_adaptive_one_in_every_window(window, count):
    h, w = window
    x = grid(2 * h, 3 * w)
    got = to_windows(pool_windows(x, window, count), count).reshape(2, 6, count * count, 5)
    for i in range(2):
        for j in range(3):
            tile = x[:, i * h : (i + 1) * h, j * w : (j + 1) * w].permute(0, 3, 1, 2)
            want = F.adaptive_max_pool2d(tile, count).flatten(2).transpose(1, 2)
            assert torch.equal(got[:, i * 3 + j], want)


def test_local_context_at_14_is_unfolding_by_10_at_stride_4():
    x = grid(14, 14)
    want = F.unfold(x.permute(0, 3, 1, 2), 10, stride=4).reshape(2, 5, 100, 4).permute(0, 3, 2, 1)
    assert torch.equal(local_context(x, (7, 7)), want.reshape(8, 100, 5))


@pytest.mark.parametrize(("size", "first_rows"), [(7, [0]), (21, [0, 5, 11]), (28, [0, 6, 12, 18])])
def test_local_context_of_other_grids_reaches_from_edge_to_edge(size, first_rows):
    rows = torch.arange(size).float().reshape(1, size, 1, 1).expand(1, size, size, 1)
    windows = size // 7
    got = local_context(rows, (7, 7)).reshape(windows, windows, -1)
    assert got[:, 0, 0].tolist() == first_rows
    assert got.max() == size - 1


def test_bins_cover_the_window():
    assert bins(7, 3) == [(0, 3), (2, 5), (4, 7)]
    assert bins(4, 1) == [(0, 4)]


def test_the_stage_equals_one_window_at_a_time(tiny, images):
    module = tiny("stvit")
    swin, generate, globally, self1, self2, recover = module.backbone.layers[2].blocks
    with torch.no_grad():
        x = grid(8, 8, 48)
        got = module.backbone.layers[2].blocks(x)
        x = swin(x)
        starts = [(0, 0), (0, 4), (4, 0), (4, 4)]
        pooled = torch.zeros(2, 48, 4, 4)
        for i, j in starts:
            tile = x[:, i : i + 4, j : j + 4].permute(0, 3, 1, 2)
            pooled[:, :, i // 2 : i // 2 + 2, j // 2 : j // 2 + 2] = F.adaptive_max_pool2d(tile, 2)
        pooled = pooled + generate.position(pooled)
        semantic = []
        for i, j in starts:
            own = pooled[:, :, i // 2 : i // 2 + 2, j // 2 : j // 2 + 2].flatten(2).transpose(1, 2)
            around = x[:, i // 4 : i // 4 + 7, j // 4 : j // 4 + 7].flatten(1, 2)  # 7 x 7 around 4 x 4, from 0 or 1
            semantic.append(generate.cross(own, torch.cat([own, around], dim=1)))
        s, image = torch.cat(semantic, dim=1), x.flatten(1, 2)
        s = globally.cross(s + torch.cat([globally.start] * 4, dim=1), torch.cat([s, image], dim=1))
        want = recover(image, self2(self1(s))).reshape(x.shape)
    torch.testing.assert_close(got, want, **SUM_ORDER)
    assert module.tokens == (64, 64, 16, 16, 16, 64)


def test_keys_of_microsofts_swin_are_renamed(tiny, images):
    module = tiny("stvit")
    own = module.state_dict()
    theirs = {}
    for key, value in own.items():
        key = key.removeprefix("backbone.").replace("head.fc.", "head.")
        for later in (1, 2):
            key = key.replace(f"layers.{later}.downsample", f"layers.{later - 1}.downsample")
        theirs[key] = value
    theirs["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(16, 16)
    theirs["layers.1.blocks.0.attn_mask"] = torch.zeros(4, 16, 16)
    assert {"layers.0.downsample.reduction.weight", "head.weight", "patch_embed.norm.weight"} <= set(theirs)
    assert list(module.own_keys(theirs)) == list(own)
    module.load_state_dict(theirs)


SWIN = {"patch_size": 2, "embed_dim": 12, "depths": (1, 1, 6), "num_heads": (1, 1, 2), "window_size": 4}
WRONG = [
    ({"depths": (1, 1, 5)}, "has 5 blocks; they are replaced in sixes"),
    ({"window_size": 3}, r"grid \(8, 8\) is not a multiple of its windows \(3, 3\)"),
    ({"depths": (1, 6), "num_heads": (1, 1)}, "has 2 stages; the third is replaced"),
]


@pytest.mark.parametrize(("more", "text"), WRONG)
def test_a_swin_that_does_not_fit_is_refused(tiny, more, text):
    with pytest.raises(LoadError, match=text):
        tiny("stvit", options={**SWIN, **more})


def test_two_sixes_follow_each_other(tiny, images):
    module = tiny("stvit", options={**SWIN, "depths": (1, 1, 12)})
    with torch.no_grad():
        assert module(images("stvit", 1)).shape == (1, 5)
    kinds = [type(block).__name__ for block in module.backbone.layers[2].blocks]
    six = ["SwinTransformerBlock", "Generate", "GenerateGlobally", "Block", "Block", "CrossBlock"]
    assert kinds == six * 2
