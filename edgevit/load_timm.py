"""timm's models by name: built, filled with pretrained weights where asked, and their own preprocessing."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from edgevit.errors import EdgeVitError, LoadError, missing_extra
from edgevit.names import did_you_mean
from edgevit.preprocess import Preprocess
from edgevit.trained import TRAINED

if TYPE_CHECKING:
    from torch import nn


def check_timm(arch: str) -> str:
    """The timm name in `timm:NAME`. Raises LoadError, MissingExtra."""
    if not arch.startswith("timm:"):
        near = did_you_mean(arch.partition(":")[0], TRAINED)
        raise LoadError(
            f"architecture {arch!r} is not understood{near}; write timm:NAME or torchvision:NAME, or for weights "
            f"trained with their token reduction {', '.join(f'{name}:NAME' for name in TRAINED)}"
        )
    name = arch.removeprefix("timm:")
    try:
        import timm
    except ModuleNotFoundError as error:
        raise missing_extra("timm", error) from error
    if not timm.is_model(name):
        raise LoadError(f"timm has no model {name!r}{did_you_mean(name, timm.list_models())}")
    return name


def create_timm(arch: str, num_classes: int | None, input_size: tuple[int, int] | None, pretrained: bool) -> nn.Module:
    """Build a timm model by `timm:NAME`."""
    name = check_timm(arch)
    import timm

    options: dict[str, Any] = {} if num_classes is None else {"num_classes": num_classes}
    if input_size is not None:
        options["img_size"] = input_size
    try:
        module: nn.Module = timm.create_model(name, pretrained=pretrained, **options)
    except (TypeError, ValueError, AssertionError) as error:
        raise LoadError(f"{arch} cannot be built with {options}: {first_line(error)}") from error
    except (OSError, RuntimeError) as error:
        if pretrained:
            raise _hub_error(arch, error) from error
        raise LoadError(f"{arch} cannot be built with {options}: {first_line(error)}") from error
    except Exception as error:
        # The hub client's own error classes are many and not public; only they can arrive here while pretrained.
        if not pretrained or "hub" not in type(error).__module__ + str(error).lower():
            raise
        raise _hub_error(arch, error) from error
    config = getattr(module, "pretrained_cfg", None)
    if input_size is not None and config:  # a convolutional network keeps no other record of its size
        module.pretrained_cfg = {**config, "input_size": (3, *input_size)}  # type: ignore[assignment]
    return module.eval()


def classifier(arch: str) -> tuple[str, ...]:
    """Names of the architecture's last Linear (some have two), as its own configuration says."""
    from timm.models import get_pretrained_cfg_value

    found = get_pretrained_cfg_value(arch.removeprefix("timm:"), "classifier") or ()
    return (found,) if isinstance(found, str) else tuple(found)


def _hub_error(arch: str, error: BaseException) -> EdgeVitError:
    return LoadError(
        f"the pretrained weights of {arch} could not be fetched ({first_line(error)}); with weights on disk use "
        f"`edgevit export FILE --arch {arch}`"
    )


def timm_preprocess(module: nn.Module) -> Preprocess:
    """The architecture's own preprocessing (timm's pretrained_cfg), or ImageNet's at 224 where it has none."""
    config: Mapping[str, Any] = getattr(module, "pretrained_cfg", None) or {}
    size = getattr(getattr(module, "patch_embed", None), "img_size", None)
    if not config:
        return Preprocess(size=(224, 224) if size is None else (int(size[0]), int(size[1])))
    size = size or tuple(config["input_size"][1:])
    return Preprocess(
        size=(int(size[0]), int(size[1])),
        resize="squash" if config.get("crop_mode") == "squash" else "shortest",
        crop_pct=float(config.get("crop_pct", 0.875)),
        interpolation=str(config.get("interpolation", "bicubic")),
        mean=tuple(config.get("mean", Preprocess.mean)),
        std=tuple(config.get("std", Preprocess.std)),
    )


def first_line(error: BaseException) -> str:
    """The first line of an error's text, not longer than a sentence."""
    return str(error).strip().split("\n")[0][:160]
