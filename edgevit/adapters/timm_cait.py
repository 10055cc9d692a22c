"""timm's Cait: class-attention in image transformers, with talking heads.

Touvron et al., "Going deeper with Image Transformers", ICCV 2021 (arXiv:2103.17239); talking heads: Shazeer et al.
(arXiv:2003.02436). The trunk has no class token, so schedules reduce patches alone; the class token meets what is left
of them in the head, where its attention counts a merged token as often as the patches it stands for.

Talking heads with sizes s, exact for merged tokens that are identical:

    P = softmax_j(W_l (q kᵀ · scale) + b_l + log s_j)      the mixing in front is per pair of tokens: sizes come behind
    A = W_w P + b_w · s_j                                   each of the s_j tokens brought its own b_w

What methods read as attention probabilities is P, whose rows sum to one; those of A do not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.adapters.block import heads_first, heads_last
from edgevit.adapters.known import check_children, check_eval, check_methods, check_part
from edgevit.adapters.pooling import weighted_mean
from edgevit.adapters.timm_block import ResidualBlock
from edgevit.errors import UnsupportedModel
from edgevit.stages import Stage, Tap, VitModel

if TYPE_CHECKING:
    from timm.models.cait import Cait

MODEL_CHILDREN = {"patch_embed", "pos_drop", "blocks", "blocks_token_only", "norm", "head_drop", "head"}
BLOCK_CHILDREN = {"norm1", "attn", "drop_path", "norm2", "mlp"}
TALKING_CHILDREN = {"qkv", "attn_drop", "proj", "proj_l", "proj_w", "proj_drop"}
CLASS_CHILDREN = {"q", "k", "v", "attn_drop", "proj", "proj_drop"}
MODEL_METHODS = ("forward", "forward_features", "forward_cls", "forward_head")


def adapt(module: nn.Module) -> VitModel | None:
    """Take a timm Cait apart; None for anything else."""
    try:
        from timm.models.cait import Cait
    except ModuleNotFoundError:
        return None  # without timm there can be no timm model
    if not isinstance(module, Cait):
        return None
    _check_model(module)
    height, width = module.patch_embed.grid_size
    blocks = tuple(CaitBlock(block) for block in module.blocks)
    pooling = {"": "none", "token": "class attention"}.get(module.global_pool, module.global_pool)
    return VitModel(
        module=module,
        family="timm Cait",
        stem=CaitStem(module),
        stages=(Stage(blocks, 0, (height, width), restores=pooling == "none"),),
        head=CaitHead(module),
        class_token=False,
        image_size=tuple(module.patch_embed.img_size),
        pooling=pooling,
    )


def _check_model(model: Cait) -> None:
    from timm.models import cait

    name = type(model).__name__
    check_methods(model, MODEL_METHODS, cait.Cait)
    check_children(name, model, MODEL_CHILDREN)
    check_eval(model)
    if model.blocks_token_only is None:
        raise UnsupportedModel(f"{name} has no class-attention blocks left; build it whole")
    for index, block in enumerate(model.blocks):
        where = f"blocks.{index}"
        check_part(where, block, BLOCK_CHILDREN, cait.LayerScaleBlock)
        check_part(f"{where}.attn", block.attn, TALKING_CHILDREN, cait.TalkingHeadAttn)
    for index, block in enumerate(model.blocks_token_only):
        where = f"blocks_token_only.{index}"
        check_part(where, block, BLOCK_CHILDREN, cait.LayerScaleBlockClassAttn)
        check_part(f"{where}.attn", block.attn, CLASS_CHILDREN, cait.ClassAttn)


class CaitStem(nn.Module):
    """Images `[B, 3, H, W]` → patches `[B, N, C]`, positions added."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Patch embedding and positions; the class token comes in the head."""
        out: torch.Tensor = self.model.patch_embed(images) + self.model.pos_embed
        return out


class CaitBlock(ResidualBlock):
    """timm's `LayerScaleBlock`, in parts."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__(block)
        attention = self.block.attn
        mixing = attention.proj_l.weight.numel()  # H² per pair of tokens, in front of the softmax and behind it
        self.macs_per_token = (self.macs_per_token[0] - 2 * mixing, self.macs_per_token[1])
        self.attention_width += mixing

    def attend(self, tap: Tap, explicit: bool) -> tuple[torch.Tensor, torch.Tensor | None]:
        """No fused kernel mixes heads, so the probabilities are there in any case."""
        logits = talk(self.block.attn.proj_l, (tap.q * tap.scale) @ tap.k.transpose(2, 3))
        if tap.log_size is not None:
            logits = logits + tap.log_size[:, None, None, :]
        probabilities = logits.softmax(dim=-1)
        return self.weigh(probabilities, tap.log_size) @ tap.v, probabilities

    def weigh(self, probabilities: torch.Tensor, log_size: torch.Tensor | None) -> torch.Tensor:
        """The heads talk once more: `[B, H, N, N]` → `[B, H, N, N]`."""
        mixing = self.block.attn.proj_w
        if log_size is None:
            return talk(mixing, probabilities)
        return talk(mixing, probabilities, log_size.exp())


def talk(mixing: Any, x: torch.Tensor, size: torch.Tensor | None = None) -> torch.Tensor:
    """A Linear over heads, `[B, H, N, N]` → `[B, H, N, N]`, its bias times the sizes `[B, N]` of the columns.

    Written as one product of `[H, H]` with `[B, H, N · N]`, which needs no transposition.
    """
    batch, heads, rows, columns = x.shape
    out: torch.Tensor = mixing.weight @ x.reshape(batch, heads, rows * columns)
    out = out.reshape(batch, heads, rows, columns)
    bias: torch.Tensor = mixing.bias.reshape(1, heads, 1, 1)
    return out + (bias if size is None else bias * size[:, None, None, :])


class CaitHead(nn.Module):
    """Class-attention blocks, final norm, pooling and classifier."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Patches `[B, M, C]`, sizes `[B, M]` or None → what the model returns (`[B, classes]` for classifiers)."""
        model = self.model
        token: torch.Tensor = model.cls_token.expand(x.shape[0], -1, -1)
        mask = None if size is None else F.pad(size, (1, 0), value=1.0).log()[:, None, None, :]  # [B, 1, 1, 1 + M]
        for block in model.blocks_token_only:
            token = class_attention(block, token, x, mask)
        x = model.norm(torch.cat([token, x], dim=1))
        if model.global_pool == "avg" and size is not None:
            out: torch.Tensor = model.head(weighted_mean(x[:, 1:], size))
        else:
            out = model.forward_head(x)
        return out


def class_attention(block: Any, token: torch.Tensor, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """One class-attention block: the class token `[B, 1, C]` asks itself and the patches `[B, M, C]`."""
    attention = block.attn
    normed = block.norm1(torch.cat([token, x], dim=1))
    q = heads_first(attention.q(normed[:, :1]), attention.num_heads)
    k, v = (heads_first(part(normed), attention.num_heads) for part in (attention.k, attention.v))
    attended = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=attention.scale)
    token = token + block.gamma_1 * attention.proj(heads_last(attended))
    out: torch.Tensor = token + block.gamma_2 * block.mlp(block.norm2(token))
    return out
