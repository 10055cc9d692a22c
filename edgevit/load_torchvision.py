"""torchvision's models by name: built, filled with its published weights where asked, and their own preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import LoadError, missing_extra
from edgevit.hashes import sha256_state
from edgevit.load_timm import first_line
from edgevit.names import did_you_mean
from edgevit.preprocess import Preprocess, crop_share
from edgevit.stages import Checkpoint

if TYPE_CHECKING:
    import torch
    from torch import nn

OLD_NAMES = {".mlp.linear_1.": ".mlp.0.", ".mlp.linear_2.": ".mlp.3."}  # in the published files of its ViTs


def load_torchvision(model: str, input_size: tuple[int, int] | None = None) -> Checkpoint:
    """Load `torchvision:NAME` with its published weights, from the hub or the hub's cache.

    Raises LoadError, MissingExtra.
    """
    from edgevit.load import fill

    weights = _default_weights(_check(model))
    if weights is None:
        raise LoadError(f"{model} has no published weights; with weights on disk use --arch {model}")
    try:
        state: Mapping[str, torch.Tensor] = weights.get_state_dict(progress=False, check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # urllib's errors are OSErrors; a broken hash is a RuntimeError
        raise LoadError(
            f"the published weights of {model} could not be fetched ({first_line(error)}); with weights on disk use "
            f"`edgevit export FILE --arch {model}`"
        ) from error
    module, preprocess, state = build_torchvision(model, state, input_size)
    fill(module, state, Path(model), model, fit_positions=False)
    names = tuple(weights.meta.get("categories", ())) or None
    return Checkpoint(model, model, sha256_state(state), preprocess, None, module.eval(), labels=names)


def build_torchvision(
    arch: str, state: Mapping[str, torch.Tensor], input_size: tuple[int, int] | None
) -> tuple[nn.Module, Preprocess, Mapping[str, torch.Tensor]]:
    """A model of `torchvision:NAME` that `state` fits, its preprocessing, and the state as the model spells it.

    Raises LoadError, MissingExtra.
    """
    name = _check(arch)
    from torchvision.models import get_model, get_model_builder

    preprocess = _preprocess(_default_weights(name))
    size = input_size or preprocess.size
    options: dict[str, Any] = {}
    vit = get_model_builder(name).__module__ == "torchvision.models.vision_transformer"
    if vit:
        if size[0] != size[1]:
            raise LoadError(f"{arch} takes square images, not {size[0]}x{size[1]}")
        options["image_size"] = size[0]
        state = {_new_name(key): value for key, value in state.items()}
    try:
        module = get_model(name, weights=None, **options)
        classes = _classes(module, state)
        if classes is not None:
            module = get_model(name, weights=None, num_classes=classes, **options)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise LoadError(f"{arch} cannot be built with {options}: {first_line(error)}") from error
    if vit and input_size is not None:
        state = _fit(module, dict(state), arch)
    return module.eval(), preprocess, state


def _check(arch: str) -> str:
    """The torchvision name in `torchvision:NAME`."""
    name = arch.removeprefix("torchvision:")
    try:
        from torchvision import models
    except ModuleNotFoundError as error:
        raise missing_extra("torchvision", error) from error
    known = models.list_models(module=models)
    if name not in known:
        raise LoadError(f"torchvision has no image classifier {name!r}{did_you_mean(name, known)}")
    return name


def _default_weights(name: str) -> Any:
    """The library's own choice among the weights of a model, or None."""
    from torchvision.models import get_model_weights

    return getattr(get_model_weights(name), "DEFAULT", None)


def _preprocess(weights: Any) -> Preprocess:
    """What `weights.transforms()` does (resize the short side, crop the centre, normalize); ImageNet's without."""
    if weights is None:
        return Preprocess(size=(224, 224))
    preset = weights.transforms()
    crop, resize = int(preset.crop_size[0]), int(preset.resize_size[0])
    return Preprocess(
        size=(crop, crop),
        resize="shortest",
        crop_pct=crop_share(crop, resize),
        interpolation=str(preset.interpolation.value),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
    )


def _classes(module: nn.Module, state: Mapping[str, torch.Tensor]) -> int | None:
    """Rows of the last Linear's weight in the state, where they are not the model's own."""
    from torch import nn

    linears = [name for name, part in module.named_modules() if isinstance(part, nn.Linear)]
    weight = state.get(f"{linears[-1]}.weight") if linears else None
    if weight is None or weight.ndim != 2 or weight.shape[0] == module.get_submodule(linears[-1]).out_features:
        return None
    return int(weight.shape[0])


def _new_name(key: str) -> str:
    """A key of the published files as the class spells it now.

    >>> _new_name("encoder.layers.encoder_layer_0.mlp.linear_1.bias")
    'encoder.layers.encoder_layer_0.mlp.0.bias'
    """
    for old, new in OLD_NAMES.items():
        key = key.replace(old, new)
    return key


def _fit(module: Any, state: dict[str, torch.Tensor], arch: str) -> Mapping[str, torch.Tensor]:
    """Position embeddings resampled to the image size that was asked for, where they are of another."""
    from torchvision.models.vision_transformer import interpolate_embeddings

    table = state.get("encoder.pos_embedding")
    if table is None or table.ndim != 3 or table.shape[1] == module.seq_length:
        return state
    try:
        fitted: Mapping[str, torch.Tensor] = interpolate_embeddings(module.image_size, module.patch_size, state)
    except ValueError as error:
        raise LoadError(f"the position embeddings do not fit {arch}: {first_line(error)}") from error
    return fitted
