"""Families that are known and refused, each with what in it stands against fewer tokens. They export dense.

REASONS: class, as `module.Class`, → the reason. No import of a model library: the module's own classes are asked.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn

REASONS = {
    "timm.models.convit.ConVit": "its attention mixes in a second one that is made of positions alone",
    "timm.models.crossvit.CrossVit": (
        "two sequences of patches of different size run side by side, and a schedule counts one"
    ),
    "timm.models.naflexvit.NaFlexVit": (
        "it takes images of any shape with a mask; where the same weights exist as a VisionTransformer, load those"
    ),
    "timm.models.tnt.TNT": "every token carries a sequence of pixel tokens of its own",
    "timm.models.vision_transformer_sam.VisionTransformerSAM": (
        "its attention runs in windows with a position bias computed from each query, and its neck needs the map"
    ),
    "timm.models.volo.VOLO": "its outlook attention reads neighbourhoods of the map, where most of its tokens are",
    "timm.models.xcit.Xcit": "its attention is over channels, and a convolution in every block needs the whole map",
}


def refused(module: nn.Module) -> str | None:
    """Why the tokens of a known family cannot be reduced, or None."""
    for cls in type(module).__mro__:
        reason = REASONS.get(f"{cls.__module__}.{cls.__name__}")
        if reason:
            return f"{type(module).__name__} cannot have its tokens reduced: {reason}; it exports dense (drop --reduce)"
    return None
