"""timm's Beit: BEiT, BEiT v2; relative position bias per block, shared, both or none.

What it takes apart: `timm.models.beit.Block` with `timm.models.beit.Attention`; anything else is refused by name. The
bias between two tokens is looked up by the positions that they keep: a merged token stands where the token it was
merged into stood.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgevit.adapters.known import check_children, check_eval, check_methods, check_part, check_type
from edgevit.adapters.pooling import PoolingHead
from edgevit.adapters.timm_block import ResidualBlock
from edgevit.stages import Stage, Tap, VitModel
from edgevit.tokens.lowering import table_pairs

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Tokens

MODEL_CHILDREN = {"patch_embed", "pos_drop", "rel_pos_bias", "blocks", "norm", "fc_norm", "head_drop", "head"}
BLOCK_CHILDREN = {"norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"}
ATTENTION_CHILDREN = {"qkv", "attn_drop", "proj", "proj_drop"}
MODEL_METHODS = ("forward", "forward_features", "forward_head")


def adapt(module: nn.Module) -> VitModel | None:
    """Take a timm Beit apart; None for anything else."""
    try:
        from timm.models.beit import Beit
    except ModuleNotFoundError:
        return None  # without timm there can be no timm model
    if not isinstance(module, Beit):
        return None
    _check_model(module)
    shared = module.rel_pos_bias
    blocks = tuple(BeitBlock(block, shared) for block in module.blocks)
    height, width = module.patch_embed.grid_size
    return VitModel(
        module=module,
        family="timm Beit",
        stem=BeitStem(module),
        stages=(Stage(blocks, module.num_prefix_tokens, (height, width), restores=module.global_pool == ""),),
        head=PoolingHead(module, skip=module.num_prefix_tokens),
        class_token=True,
        image_size=tuple(module.patch_embed.img_size),
        pooling=module.global_pool or "none",
        positional=any(block.biased for block in blocks),
    )


def _check_model(model: Any) -> None:
    from timm.models import beit

    name = type(model).__name__
    check_methods(model, MODEL_METHODS, beit.Beit)
    check_children(name, model, MODEL_CHILDREN)
    check_eval(model)
    if model.rel_pos_bias is not None:
        check_type("rel_pos_bias", model.rel_pos_bias, beit.RelativePositionBias)
    for index, block in enumerate(model.blocks):
        where = f"blocks.{index}"
        check_part(where, block, BLOCK_CHILDREN, beit.Block)
        check_part(f"{where}.attn", block.attn, ATTENTION_CHILDREN, beit.Attention)


class BeitStem(nn.Module):
    """Images `[B, 3, H, W]` → tokens `[B, 1 + N, C]`."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Patch embedding, class token, absolute positions where there are."""
        model = self.model
        x: torch.Tensor = model.patch_embed(images)
        x = torch.cat([model.cls_token.expand(x.shape[0], -1, -1), x], dim=1)
        return x if model.pos_embed is None else x + model.pos_embed


class BeitBlock(ResidualBlock):
    """timm's `beit.Block`, in parts."""

    def __init__(self, block: nn.Module, shared: nn.Module | None) -> None:
        super().__init__(block)
        self.shared = shared
        self.own = self.block.attn.relative_position_bias_table is not None
        self.biased = self.own or shared is not None

    def place(self, tap: Tap, tokens: Tokens) -> Tap:
        """The block's own bias table plus the shared one, at the tokens' positions."""
        if not self.biased:
            return tap
        tables = [self.block.attn._get_rel_pos_bias()[0]] if self.own else []  # [H, N0, N0]
        if self.shared is not None:
            tables.append(self.shared())
        return tap._replace(bias=table_pairs(sum(tables[1:], tables[0]), tokens.place))
