"""What the trained architectures share: a timm backbone by name, and the names of their weights.

A module keeps its backbone in `backbone`, so its own state-dict keys are `backbone.*` and the keys of what it adds.
A reference repository subclasses the backbone instead, so its keys have no such prefix: `own_keys` translates, and
`load_state_dict` calls it, so both spellings load strictly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import nn

from edgevit.errors import LoadError
from edgevit.load_timm import check_timm, first_line
from edgevit.names import listed

if TYPE_CHECKING:
    import torch

PREFIX = "backbone."


class Trained(nn.Module):
    """A timm backbone and what was trained beside it; images `[B, 3, H, W]` in.

    method: its name in schedules.
    renames: prefixes of reference keys and what they are here; what is no other child's belongs to the backbone.
    unused: endings of reference keys that hold constants, which are computed here and not loaded.
    tokens: how many tokens enter each block of the reduced stage, Python ints.
    """

    method: ClassVar[str]
    renames: ClassVar[Mapping[str, str]] = {}
    unused: ClassVar[tuple[str, ...]] = ()
    tokens: tuple[int, ...]

    def __init__(self, backbone: Any) -> None:
        super().__init__()
        self.backbone: Any = backbone

    def steps(self) -> nn.ModuleList | None:
        """What a reduction step on the backbone reads of the checkpoint; None: the reduction is in the architecture."""
        return None

    def embed(self, images: torch.Tensor) -> torch.Tensor:
        """Images `[B, 3, H, W]` → the tokens `[B, P + N, C]` in front of the backbone's first block."""
        model = self.backbone
        x: torch.Tensor = model.norm_pre(model._pos_embed(model.patch_embed(images)))
        return x

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """Tokens behind the last block → what the backbone returns."""
        out: torch.Tensor = self.backbone.forward_head(self.backbone.norm(x))
        return out

    def own_keys(self, state: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A state dict in this module's keys, from the reference's keys or from its own."""
        if any(key.startswith(PREFIX) for key in state):
            return dict(state)
        return {self.own_key(key): value for key, value in state.items() if not key.endswith(self.unused)}

    def own_key(self, key: str) -> str:
        """One reference key in this module's spelling."""
        for theirs, ours in self.renames.items():
            if key.startswith(theirs):
                return ours + key.removeprefix(theirs)
        added = {name for name, _ in self.named_children()}
        return key if key.split(".")[0] in added else PREFIX + key

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, in either spelling of the keys. Raises RuntimeError where keys or shapes do not fit."""
        return super().load_state_dict(self.own_keys(state_dict), strict=strict, assign=assign)


def build_backbone(
    name: str,
    num_classes: int | None,
    input_size: tuple[int, int] | None,
    options: Mapping[str, Any] | None = None,
    family: str = "VisionTransformer",
) -> Any:
    """A timm model by its name (`deit_small_patch16_224`), random weights, evaluation mode.

    options: further arguments of timm's constructor (depth, embed_dim, ...). family: the class it must be.
    Raises LoadError, MissingExtra; UnsupportedModel for a ViT that `edgevit.adapters.timm_vit` does not run. Of what
    that runs, post-norm and parallel blocks are refused here: nothing was trained on them.
    """
    check_timm(f"timm:{name}")
    import timm

    given = dict(options or {})
    if num_classes is not None:
        given["num_classes"] = num_classes
    if input_size is not None:
        given["img_size"] = input_size
    try:
        module = timm.create_model(name, pretrained=False, **given).eval()
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise LoadError(f"timm:{name} cannot be built with {given}: {first_line(error)}") from error
    if family not in (cls.__name__ for cls in type(module).__mro__):
        raise LoadError(f"timm:{name} is a {type(module).__name__}; this architecture needs timm's {family}")
    if family == "VisionTransformer":
        from edgevit.adapters.timm_vit import adapt

        adapt(module)
        others = {type(block).__name__ for block in module.blocks} - {"Block"}
        if others:
            raise LoadError(f"timm:{name} has blocks of type {listed(sorted(others))}; this architecture needs Block")
    return module


def check_blocks(what: str, blocks: Sequence[int], depth: int) -> tuple[int, ...]:
    """Block numbers from 1, rising, at most `depth`. Raises LoadError.

    >>> check_blocks("dynamicvit", [4, 7, 10], 12)
    (4, 7, 10)
    """
    if list(blocks) != sorted(set(blocks)) or any(b < 1 or b > depth for b in blocks):
        raise LoadError(f"{what}: blocks count from 1 to {depth} and must rise, got {list(blocks)}")
    return tuple(blocks)
