"""timm's Cait: talking heads and class attention, taken apart; merged tokens speak for all they stand for."""

import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.errors import ScheduleError, UnsupportedModel
from edgevit.reduce import reduce
from edgevit.reduced_vit import dense_parts
from edgevit.stages import Tap
from edgevit.tokens.schedule import parse_schedule

timm = pytest.importorskip("timm")
from timm.models import cait  # noqa: E402

SIZES = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 3, "num_heads": 3, "num_classes": 7}

VARIANTS = {
    "cait": {},
    "three_class_blocks": {"depth_token_only": 3, "mlp_ratio_token_only": 2.0},
    "no_qkv_bias": {"qkv_bias": False},
    "average": {"global_pool": "avg"},
    "tokens": {"global_pool": ""},
}

MODEL = cait.Cait  # what parts_of builds VARIANTS of


@pytest.mark.parametrize("variant", VARIANTS)
def test_parts_equal_the_whole(parts_of, variant):
    parts = parts_of(variant)
    assert parts.tokens == 16
    assert not parts.class_token
    assert not parts.positional


@pytest.mark.parametrize("variant", VARIANTS)
def test_merging_runs_with_the_right_count(parts_of, check, variant):
    assert check.counts(parts_of(variant).module, "tome:r=3").tokens == (13, 10, 7)


def test_the_trunk_has_no_class_token_whose_attention_could_be_read(parts_of):
    with pytest.raises(ScheduleError, match="no class token where tokens can be reduced"):
        reduce(parts_of("cait"), parse_schedule("evit:keep=0.5"))


def test_costs_are_counted(parts_of):
    """The head's class attention gets cheaper too, which the convention leaves out: compare block by block."""
    from edgevit.flops import flop_counter
    from edgevit.tokens.macs import block_macs
    from edgevit.tokens.protocol import Tokens

    for block in parts_of("cait").blocks:
        x = torch.randn(1, 16, 48)
        with flop_counter() as counter:
            tap = block.project(x, Tokens())
            x = block.finish(x, block.attend(tap, False)[0], tap)
            block.feed_forward(x[:, :11])
        assert counter.get_total_flops() // 2 == block_macs(block, 16, 11)


@pytest.mark.parametrize("spec", ["tome:r=4@1", "tome:r=2"])
@pytest.mark.parametrize("variant", ["cait", "average"])
def test_merging_identical_tokens_changes_nothing(randomize, check, variant, spec):
    model = randomize(cait.Cait(**SIZES, **VARIANTS[variant]))
    with torch.no_grad():
        model.pos_embed.zero_()
    check.merging_twins_changes_nothing(adapt(model), spec)


@pytest.mark.parametrize("sized", [False, True])
def test_talking_heads_equal_the_loop_written_reference(parts_of, sized):
    block = parts_of("cait").blocks[1]
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 3, 5, 16, generator=generator) for _ in range(3))
    size = torch.tensor([[1.0, 3.0, 1.0, 2.0, 4.0]]) if sized else torch.ones(1, 5)
    tap = Tap(q, k, v, 0.25, log_size=size.log() if sized else None)
    front, behind = block.block.attn.proj_l.requires_grad_(False), block.block.attn.proj_w.requires_grad_(False)
    with torch.no_grad():
        got, probabilities = block.attend(tap, True)
    copies = [j for j in range(5) for _ in range(int(size[0, j]))]  # each merged token as the tokens that it stands for
    for i in range(5):
        logits = [[float(q[0, h, i] @ k[0, h, j]) * 0.25 for j in copies] for h in range(3)]
        mixed = [
            [
                sum(float(front.weight[g, h]) * logits[h][n] for h in range(3)) + float(front.bias[g])
                for n in range(len(copies))
            ]
            for g in range(3)
        ]
        soft = torch.tensor(mixed).softmax(dim=-1).tolist()
        for g in range(3):
            weights = [
                sum(float(behind.weight[g, h]) * soft[h][n] for h in range(3)) + float(behind.bias[g])
                for n in range(len(copies))
            ]
            want = sum(w * v[0, g, j] for w, j in zip(weights, copies, strict=True))
            torch.testing.assert_close(got[0, g, i], want, rtol=1e-4, atol=1e-5)  # 11 terms in another order
    torch.testing.assert_close(probabilities.sum(-1), torch.ones(1, 3, 5))


def test_separate_parts_and_late_mixing_agree(parts_of, check):
    parts = parts_of("cait")
    check.separate_parts_agree(parts)
    with torch.no_grad():
        x = parts.stem(check.images_of(parts))
        tap = parts.blocks[0].query_keys(x, None)._replace(log_size=torch.rand(2, 16))
        probabilities = parts.blocks[0].attend(tap, True)[1]
        full = parts.blocks[0].project(x, None)._replace(log_size=tap.log_size)
        late = parts.blocks[0].weigh(probabilities, tap.log_size) @ parts.blocks[0].values(x)
        torch.testing.assert_close(late, parts.blocks[0].attend(full, False)[0], rtol=1e-5, atol=1e-5)


def test_the_class_token_counts_a_merged_patch_as_often_as_it_stands_for(parts_of, check):
    head = parts_of("cait").head
    patches = torch.randn(1, 6, 48, generator=torch.Generator().manual_seed(0))
    size = torch.tensor([[1.0, 2.0, 1.0, 1.0, 3.0, 1.0]])
    spread = patches.repeat_interleave(size[0].to(torch.int64), dim=1)
    with torch.no_grad():
        assert check.relative(head(patches, size), head(spread, None)) < 1e-5
        assert check.relative(head(patches, None), head(spread, None)) > 1e-3


def test_traces_without_dynamic_shapes(parts_of, check):
    check.traces(parts_of("cait"), "tome:r=3@1,2", 4)


@pytest.mark.slow
@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize("variant", ["cait", "average"])
def test_runs_in_onnx_runtime(parts_of, check, variant, batch, tmp_path):
    check.runs_in_onnx(parts_of(variant), "tome:r=3", batch, tmp_path)


def test_a_real_architecture_by_name(randomize, check):
    check.parts_equal_whole(randomize(timm.create_model("cait_xxs24_224", img_size=64, depth=2)))


def test_refusals_by_name():
    def refusal(model):
        with pytest.raises(UnsupportedModel) as refused:
            adapt(model.eval())
        return str(refused.value)

    class Mine(cait.TalkingHeadAttn):
        pass

    assert "blocks.0.attn is Mine" in refusal(cait.Cait(**SIZES, attn_block=Mine))
    model = cait.Cait(**SIZES)
    model.blocks_token_only[1].extra = nn.Identity()
    assert "blocks_token_only.1 has extra" in refusal(model)
    model = cait.Cait(**SIZES)
    model.blocks_token_only = None
    assert "no class-attention blocks left" in refusal(model)


def test_reducing_and_undoing_leaves_the_model_alone(parts_of, check):
    parts = parts_of("cait")
    reduced = reduce(parts, parse_schedule("tome:r=3"))
    assert reduced.undo() is parts.module
    images = check.images_of(parts)
    with torch.no_grad():
        assert check.relative(dense_parts(parts)(images), parts.module(images)) < 1e-5
