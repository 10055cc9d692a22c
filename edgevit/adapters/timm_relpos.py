"""timm's VisionTransformerRelPos: ViT with a relative position bias, a table or a small network, per block or shared.

What it takes apart: `RelPosBlock` and `ResPostRelPosBlock` with `RelPosAttention`; anything else is refused by name.
The bias between two tokens is looked up by the positions that they keep: a merged token stands where the token it was
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

MODEL_CHILDREN = {"patch_embed", "shared_rel_pos", "blocks", "norm", "fc_norm", "head_drop", "head"}
BLOCK_CHILDREN = {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"}
ATTENTION_CHILDREN = {"qkv", "q_norm", "k_norm", "rel_pos", "attn_drop", "proj", "proj_drop"}
MODEL_METHODS = ("forward", "forward_features", "forward_head")


def adapt(module: nn.Module) -> VitModel | None:
    """Take a timm VisionTransformerRelPos apart; None for anything else."""
    try:
        from timm.models.vision_transformer_relpos import ResPostRelPosBlock, VisionTransformerRelPos
    except ModuleNotFoundError:
        return None  # without timm there can be no timm model
    if not isinstance(module, VisionTransformerRelPos):
        return None
    _check_model(module)
    blocks = tuple(
        RelPosBlock(block, module.shared_rel_pos, post_norm=isinstance(block, ResPostRelPosBlock))
        for block in module.blocks
    )
    height, width = module.patch_embed.grid_size
    return VitModel(
        module=module,
        family="timm VisionTransformerRelPos",
        stem=RelPosStem(module),
        stages=(Stage(blocks, module.num_prefix_tokens, (height, width), restores=module.global_pool == ""),),
        head=PoolingHead(module, skip=module.num_prefix_tokens),
        class_token=module.cls_token is not None,
        image_size=tuple(module.patch_embed.img_size),
        pooling=module.global_pool or "none",
        positional=True,
    )


def _check_model(model: Any) -> None:
    from timm.layers import RelPosBias, RelPosMlp
    from timm.models import vision_transformer_relpos as relpos

    name = type(model).__name__
    check_methods(model, MODEL_METHODS, relpos.VisionTransformerRelPos)
    check_children(name, model, MODEL_CHILDREN)
    check_eval(model)
    if model.shared_rel_pos is not None:
        check_type("shared_rel_pos", model.shared_rel_pos, RelPosBias, RelPosMlp)
    for index, block in enumerate(model.blocks):
        where = f"blocks.{index}"
        check_part(where, block, BLOCK_CHILDREN, relpos.RelPosBlock, relpos.ResPostRelPosBlock)
        check_part(f"{where}.attn", block.attn, ATTENTION_CHILDREN, relpos.RelPosAttention)
        if block.attn.rel_pos is not None:
            check_type(f"{where}.attn.rel_pos", block.attn.rel_pos, RelPosBias, RelPosMlp)


class RelPosStem(nn.Module):
    """Images `[B, 3, H, W]` → tokens `[B, P + N, C]`; there are no absolute positions."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Patch embedding, class token where there is one."""
        model = self.model
        x: torch.Tensor = model.patch_embed(images)
        return x if model.cls_token is None else torch.cat([model.cls_token.expand(x.shape[0], -1, -1), x], dim=1)


class RelPosBlock(ResidualBlock):
    """timm's `RelPosBlock` or `ResPostRelPosBlock`, in parts."""

    def __init__(self, block: nn.Module, shared: nn.Module | None, post_norm: bool) -> None:
        super().__init__(block, post_norm)
        self.shared: Any = shared

    def place(self, tap: Tap, tokens: Tokens) -> Tap:
        """The block's own bias, or the shared one, at the tokens' positions."""
        rel_pos = self.block.attn.rel_pos or self.shared
        return tap._replace(bias=table_pairs(rel_pos.get_bias()[0], tokens.place))
