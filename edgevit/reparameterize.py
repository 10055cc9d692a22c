"""Branches that only training needed become one convolution (RepVGG, MobileOne, FastViT, RepViT, SHViT).

Such modules bring a method for it, under one of three names; timm's `reparameterize_model` calls the same three. In 8
bits it matters: each branch would be a layer of its own with a quantizer of its own, and their sum one more rounding.
"""

from __future__ import annotations

import copy
import inspect
from typing import TYPE_CHECKING

from edgevit.distance import relative_error
from edgevit.errors import GraphError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from edgevit.stages import InputSpec

METHODS = ("fuse", "reparameterize", "switch_to_deploy")  # what `fuse` returns takes the module's place
TOLERANCE = 1e-5  # relative to the largest output: float32 sums in another order
FAILURES = (RuntimeError, AssertionError, AttributeError, TypeError, ValueError)


def reparameterize(model: nn.Module, inputs: InputSpec) -> tuple[nn.Module, int]:
    """A copy with its modules in their form for inference, and how many changed; the model itself when none did.

    model: `[B, 3, H, W] -> [B, ...]`, in evaluation; it is not edited. A module whose method fails, as it does where
    that was done before, stays as it is. Raises GraphError when the outputs on random images differ by more than 1e-5
    of the largest.
    """
    import torch

    if not any(_method(child) for child in model.modules() if child is not model):
        return model, 0
    fused = copy.deepcopy(model)
    done: dict[nn.Module, nn.Module] = {}
    with torch.no_grad():
        changed = _convert(fused, done)
        if not changed:
            return model, 0
        images = torch.rand(inputs.shape, generator=torch.Generator().manual_seed(0)) * 2 - 1
        error = relative_error(_run(fused.eval(), images), _run(model, images))
    if not error <= TOLERANCE:
        raise GraphError(
            f"{type(model).__name__}: {changed} modules fused their branches by their own methods, and the outputs "
            f"differ by {error:.1e} of the largest (limit {TOLERANCE:g}); to quantize the branches as they are, give "
            "the model as an exported program (torch.export.save)"
        )
    return fused, changed


def _convert(parent: nn.Module, done: dict[nn.Module, nn.Module]) -> int:
    """Convert every child that can, outermost first: a block fuses its own parts. A shared module is converted once."""
    changed = 0
    for name, child in list(parent._modules.items()):
        if child is None:
            continue
        if child not in done:
            method = _method(child)
            done[child] = child if method is None else _converted(child, method)
            changed += (done[child] is not child) + _convert(done[child], done)
        setattr(parent, name, done[child])
    return changed


def _converted(module: nn.Module, method: str) -> nn.Module:
    """What the method makes of a copy; the module itself where it fails or changes nothing."""
    trial = copy.deepcopy(module)
    try:
        result = getattr(trial, method)()
    except FAILURES:
        return module
    new: nn.Module = trial if result is None or method != "fuse" else result
    return module if _layout(new) == _layout(module) else new


def _layout(module: nn.Module) -> list[tuple[str, type]]:
    """Names and types of everything inside, which fusing changes."""
    return [(name, type(part)) for name, part in module.named_modules()]


def _method(module: nn.Module) -> str | None:
    """The name of a method for it that can be called without arguments."""
    for name in METHODS:
        method = getattr(module, name, None)
        if inspect.ismethod(method):
            parameters = inspect.signature(method).parameters.values()
            if all(p.default is not p.empty or p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
                return name
    return None


def _run(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    import torch

    try:
        output = model(images)
    except FAILURES as error:
        text = str(error).strip().split("\n")[0][:240]
        raise GraphError(f"{type(model).__name__} does not take images {list(images.shape)}: {text}") from error
    if not isinstance(output, torch.Tensor):
        raise GraphError(f"the model returns a {type(output).__name__}; it must return one tensor, [batch, ...]")
    return output
