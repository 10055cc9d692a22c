"""DToP against the paper's form: boolean masks, unique classes and variable counts, one image at a time."""

import pytest
import torch

from edgevit.trained.dtop import choose, class_scores, context_rank, write

REORDERED = {"rtol": 1e-4, "atol": 1e-5}  # tokens in another order: float32 sums in another order


def dynamic(module, image):
    """Class scores `[c, h, w]` and how many tokens each stage leaves active."""
    model, prefix = module.backbone, module.prefix
    x = model.norm_pre(model._pos_embed(model.patch_embed(image.unsqueeze(0))))
    alive, counts, canvas, heads = torch.arange(x.shape[1] - prefix), [], None, list(module.heads)
    for index, block in enumerate(model.blocks):
        x = block(x)
        if index not in module.stages:
            continue
        presence, masks = heads.pop(0)(x[:, prefix:], None)
        canvas = torch.zeros_like(masks[0]) if canvas is None else canvas
        canvas[alive] = masks[0]
        conf, cls = (presence[0] * masks[0].sigmoid()).max(dim=-1)
        stays = conf <= module.threshold
        for c in cls.unique():
            members = (cls == c).nonzero().squeeze(1)
            stays[members[conf[members].topk(min(module.context, len(members))).indices]] = True
        alive = alive[stays]
        counts.append(len(alive))
        x = torch.cat([x[:, :prefix], x[:, prefix:][:, stays]], dim=1)
    presence, masks = heads.pop(0)(model.norm(x)[:, prefix:], None)
    canvas[alive] = masks[0]
    return (presence[0] * canvas.sigmoid()).T.reshape(-1, *module.grid), counts


@pytest.mark.parametrize("lowering", ["gather", "matmul"])
@pytest.mark.parametrize("context", [1, 2])
def test_large_budgets_are_exactly_the_papers(tiny, images, context, lowering):
    module = tiny("dtop", budgets=None, context=context, lowering=lowering)
    batch = images("dtop", 4)
    with torch.no_grad():
        got = module(batch)
        counts = []
        for row, image in zip(got, batch, strict=True):
            want, active = dynamic(module, image)
            torch.testing.assert_close(row, want, **REORDERED)
            counts.append(active)
    assert any(0 < second < first < 16 for first, second in counts)  # both stages finish some, and not all
    assert len({tuple(active) for active in counts}) > 1  # and images differ


def test_a_budget_of_the_active_count_is_exact_and_one_below_is_not(tiny, images):
    batch = images("dtop", 4)
    with torch.no_grad():
        free = tiny("dtop", budgets=None)
        runs = [dynamic(free, image) for image in batch]
        want, (first, second) = next((w, c) for w, c in runs if c[0] > c[1] > 1)
        image = batch[next(i for i, run in enumerate(runs) if run[0] is want)].unsqueeze(0)
        tight = tiny("dtop", budgets=(first, second))
        assert tight.tokens == (17, 1 + first, 1 + second)
        torch.testing.assert_close(tight(image)[0], want, **REORDERED)
        short = tiny("dtop", budgets=(first - 1, min(second, first - 1)))
        assert (short(image)[0] - want).abs().max() > 1e-4


def test_tokens_beyond_the_budget_keep_the_logits_of_their_stage(tiny, images):
    module = tiny("dtop", budgets=(4, 2))
    model = module.backbone
    with torch.no_grad():
        image = images("dtop", 1)
        _, canvas = module.run(image)
        x = model.blocks[0](model._pos_embed(model.patch_embed(image)))
        presence, masks = module.heads[0](x[:, 1:], None)
        order, valid = choose(class_scores(presence, masks), None, module.threshold, module.context, 4)
    later = set(order[0, :4][valid[0]].tolist())
    assert len(later) == 4
    for token in range(16):
        assert torch.equal(canvas[0, token], masks[0, token]) is (token not in later)


def test_choose_takes_context_first_then_the_least_confident():
    conf, cls = [0.95, 0.99, 0.2, 0.5, 0.97, 0.9], [0, 0, 0, 1, 0, 1]
    scores = torch.zeros(1, 6, 2)
    for token, (value, c) in enumerate(zip(conf, cls, strict=True)):
        scores[0, token, c] = value
    order, valid = choose(scores, None, threshold=0.9, context=1, budget=5)
    assert set(order[0, :2].tolist()) == {1, 5}  # the most confident of class 0 and of class 1
    assert order[0, 2:4].tolist() == [2, 3]
    assert valid.tolist() == [[True, True, True, True, False]]
    dead = torch.tensor([[True, False, True, True, True, True]])
    order, valid = choose(scores, dead, threshold=0.9, context=1, budget=3)
    assert set(order[0, :2].tolist()) == {4, 5}  # a finished token is nobody's context
    assert valid.all()


def test_ranks_of_equal_tokens_go_by_position():
    conf, cls = torch.tensor([[0.5, 0.5, 0.7, 0.5]]), torch.tensor([[1, 1, 1, 0]])
    assert context_rank(conf, cls, None).tolist() == [[1, 2, 0, 0]]
    valid = torch.tensor([[True, True, False, True]])
    assert context_rank(conf, cls, valid).tolist() == [[0, 1, 0, 0]]


@pytest.mark.parametrize("lowering", ["gather", "matmul"])
def test_writing_equals_a_scatter(lowering):
    generator = torch.Generator().manual_seed(0)
    canvas, later = torch.randn(3, 9, 4, generator=generator), torch.randn(3, 5, 4, generator=generator)
    order = torch.stack([torch.randperm(9, generator=generator) for _ in range(3)])
    valid = torch.rand(3, 5, generator=generator) > 0.4
    want = canvas.clone()
    for image in range(3):
        want[image, order[image, :5][valid[image]]] = later[image, valid[image]]
    assert torch.equal(write(canvas, later, order, valid, lowering), want)


def test_num_classes_defaults_to_ade20k():
    from edgevit.trained.dtop import create

    options = {"patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2}
    module = create("vit_tiny_patch16_224", input_size=(32, 32), stages=(1,), layers=1, options=options)
    assert module.heads[0].presence.out_features == 151
    assert not [key for key in module.state_dict() if key.startswith("backbone.head")]
