"""SiT against sums written out token by token."""

import math

import torch

from edgevit.trained.sit import STAGES, Slim, assignment, slimmed

ROUNDING = {"rtol": 1e-5, "atol": 1e-6}  # float32 sums of 12 terms in another order


def drawn(tokens=3, count=12, width=8):
    torch.manual_seed(0)
    slim = Slim(width, tokens).eval()
    with torch.no_grad():
        for parameter in slim.parameters():
            parameter.normal_(0, 0.5)
        slim.scale.fill_(1.7)
    return slim, torch.randn(2, count, width)


def test_each_output_is_the_softmax_weighted_sum_of_the_inputs():
    slim, patches = drawn()
    gelu = torch.nn.functional.gelu
    with torch.no_grad():
        got = slim(patches)
        for image in range(2):
            logits = [1.7 * slim.assign(gelu(slim.hidden(slim.norm(patches[image, n])))) for n in range(12)]
            for k in range(3):
                powers = [math.exp(float(row[k])) for row in logits]
                want = sum(p / sum(powers) * patches[image, n] for n, p in enumerate(powers))
                torch.testing.assert_close(got[image, k], want, **ROUNDING)


def test_weights_sum_to_one_over_the_inputs():
    slim, patches = drawn()
    with torch.no_grad():
        torch.testing.assert_close(assignment(slim, patches).sum(dim=1), torch.ones(2, 3))


def test_the_order_of_the_patches_does_not_matter():
    slim, patches = drawn()
    with torch.no_grad():
        torch.testing.assert_close(slim(patches.flip(1)), slim(patches), **ROUNDING)


def test_prefix_tokens_bypass_the_slimming_bit_by_bit(tiny, images):
    module = tiny("sit", options={"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2, "reg_tokens": 2})
    seen = []
    blocks = module.backbone.blocks
    hooks = [blocks[0].register_forward_hook(lambda m, a, out: seen.append(out))]
    hooks += [blocks[1].register_forward_pre_hook(lambda m, a: seen.append(a[0]))]
    with torch.no_grad():
        module(images("sit", 2))
    for hook in hooks:
        hook.remove()
    behind, entering = seen
    assert torch.equal(behind[:, :3], entering[:, :3])
    assert (behind.shape[1], entering.shape[1]) == (3 + 16, 3 + 8)
    assert module.tokens == (3 + 16, 3 + 8, 3 + 4)


def test_slimming_runs_in_plain_evaluation(tiny, images):
    """The reference skips it there unless it was built for distillation."""
    module = tiny("sit")
    with torch.no_grad():
        assert (module(images("sit", 1)) - module.backbone(images("sit", 1))).abs().max() > 1e-3


def test_counts_of_the_published_sizes():
    assert slimmed(196, 0.5, 4) == (98, 49, 24)
    assert {name: sum(stages) for name, stages in STAGES.items()} == {
        "tiny": 14, "small": 16, "medium": 20, "large": 24,
    }  # fmt: skip
