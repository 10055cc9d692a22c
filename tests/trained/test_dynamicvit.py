"""DynamicViT against the paper's form: one image at a time, a boolean mask over its patches."""

import pytest
import torch
import torch.nn.functional as F

from edgevit.trained.dynamicvit import Predictor, kept, scores

REORDERED = {"rtol": 1e-4, "atol": 1e-5}  # tokens in another order: float32 sums in another order


def masked(module, image):
    """One image; kept patches stay in the order of the image."""
    model = module.backbone
    x = model.norm_pre(model._pos_embed(model.patch_embed(image.unsqueeze(0))))
    prefix, seen = model.num_prefix_tokens, []
    for index, block in enumerate(model.blocks):
        if index in module.stages:
            stage, keep = module.stages[index]
            patches = x[:, prefix:]
            score = scores(module.predictors[stage], patches)[0]
            stays = score >= score.sort(descending=True).values[keep - 1]
            x = torch.cat([x[:, :prefix], patches[:, stays]], dim=1)
        seen.append(x.shape[1])
        x = block(x)
    return model.forward_head(model.norm(x)), seen


def deit(**more):
    return {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, **more}


CASES = [(0.7, {}), (0.45, {}), (1.0, {}), (0.7, {"reg_tokens": 2}), (0.7, {"global_pool": "avg"})]


@pytest.mark.parametrize(("keep", "more"), CASES)
@pytest.mark.parametrize("lowering", ["gather", "matmul"])
def test_equals_boolean_masks_image_by_image(tiny, images, keep, more, lowering):
    module = tiny("dynamicvit", keep=keep, lowering=lowering, options=deit(**more))
    with torch.no_grad():
        batch = images("dynamicvit", 3)
        got = module(batch)
        for row, image in zip(got, batch, strict=True):
            want, seen = masked(module, image)
            assert tuple(seen) == module.tokens
            torch.testing.assert_close(row, want[0], **REORDERED)


def test_keeping_everything_is_the_backbone(tiny, images):
    module, batch = tiny("dynamicvit", keep=1.0), images("dynamicvit", 2)
    with torch.no_grad():
        torch.testing.assert_close(module(batch), module.backbone(batch), **REORDERED)


def test_two_images_keep_different_patches(tiny, images):
    module, batch = tiny("dynamicvit"), images("dynamicvit", 2)
    model = module.backbone
    with torch.no_grad():
        patches = model._pos_embed(model.patch_embed(batch))[:, 1:]
        first, second = scores(module.predictors[0], patches).topk(11).indices.sort().values
    assert first.tolist() != second.tolist()


def test_the_counts_of_deit():
    assert [1 + n for n in (196, *kept(196, 0.7, 3))] == [197, 138, 97, 68]  # the table of the published model


def test_the_score_is_the_papers_formula():
    predictor = Predictor(8).eval()
    patches = torch.randn(1, 5, 8, generator=torch.Generator().manual_seed(0))
    state = predictor.state_dict()

    def linear(key, x):
        return F.linear(x, state[f"{key}.weight"], state[f"{key}.bias"])

    z = F.gelu(linear("in_conv.1", F.layer_norm(patches, (8,), state["in_conv.0.weight"], state["in_conv.0.bias"])))
    rows = []
    for i in range(5):
        u = torch.cat([z[0, i, :4], sum(z[0, j, 4:] for j in range(5)) / 5])
        out = linear("out_conv.4", F.gelu(linear("out_conv.2", F.gelu(linear("out_conv.0", u)))))
        rows.append(out[0] - torch.logsumexp(out, 0))
    with torch.no_grad():
        torch.testing.assert_close(scores(predictor, patches)[0], torch.stack(rows))


def test_a_checkpoint_in_the_repositorys_keys_loads(tiny, images):
    module = tiny("dynamicvit")
    theirs = {}
    for key, value in module.state_dict().items():
        theirs[key.removeprefix("backbone.").replace("predictors.", "score_predictor.")] = value
    expected = {f"score_predictor.2.in_conv.{i}.{p}" for i in (0, 1) for p in ("weight", "bias")}
    expected |= {f"score_predictor.2.out_conv.{i}.{p}" for i in (0, 2, 4) for p in ("weight", "bias")}
    assert {k for k in theirs if k.startswith("score_predictor.2.")} == expected
    assert {"cls_token", "pos_embed", "blocks.0.attn.qkv.weight", "head.weight"} <= set(theirs)
    other = tiny("dynamicvit", keep=0.7)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
        other.load_state_dict(theirs)
        assert torch.equal(other(images("dynamicvit", 1)), module(images("dynamicvit", 1)))
