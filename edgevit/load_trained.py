"""`--arch dynamicvit:NAME` and the other trained architectures: from a state dict to the module it fits.

    --arch NAME:BACKBONE[,key=value...]        NAME of edgevit.trained, BACKBONE as timm calls it
    --arch sit:vit_tiny_patch16_224,stages=1/1/1/9

What the weights say is read from them (classes, predictors, slimmed counts, semantic tokens, layers of a head). What
they do not say are the keys below; a safetensors file may hold them as metadata, and --arch goes before that.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from edgevit.errors import LoadError
from edgevit.load_timm import timm_preprocess
from edgevit.names import did_you_mean
from edgevit.trained import trained
from edgevit.trained.base import PREFIX

if TYPE_CHECKING:
    from pathlib import Path

    import torch

    from edgevit.preprocess import Preprocess
    from edgevit.trained.base import Trained

State = Mapping[str, "torch.Tensor"]


def whole(text: str) -> int:
    """A number of something."""
    return int(text)


def several(text: str) -> tuple[int, ...]:
    """Whole numbers.

    >>> several("9/3/2/2")
    (9, 3, 2, 2)
    """
    return tuple(int(part) for part in text.split("/"))


def grid(text: str) -> tuple[int, ...]:
    """Rows and columns, or one number for both.

    >>> grid("7"), grid("5/7")
    ((7, 7), (5, 7))
    """
    numbers = several(text)
    return numbers * 2 if len(numbers) == 1 else numbers


SETTINGS: Mapping[str, Mapping[str, Callable[[str], Any]]] = {
    "dynamicvit": {},
    "sit": {"stages": several},
    "stvit": {},
    "lookupvit": {"compressed": grid},
    "dtem": {},
    "dtop": {"stages": several, "budgets": several, "threshold": float, "context": whole},
}
"""Where dynamicvit and dtem reduce, and how much, is what their schedules say."""
PUBLISHED_DTOP = {12: (6, 8)}
"""Stages of the published models by depth; they have two heads on the way."""


def build_trained(
    arch: str, state: State, metadata: Mapping[str, str], path: Path, input_size: tuple[int, int] | None
) -> tuple[Trained, Preprocess, dict[str, torch.Tensor]]:
    """The module, its backbone's preprocessing, and the weights in its own spelling. Raises LoadError, MissingExtra."""
    name, _, rest = arch.partition(":")
    backbone, *pairs = rest.split(",")
    given = _settings(name, arch, pairs, metadata, path)
    plain = {key.removeprefix(PREFIX): value for key, value in state.items()}
    settings = {**_weights_tell(name, plain, given, f"{path}, --arch {arch}"), **given}
    module = trained(name)(backbone, _classes(name, plain), input_size, **settings)
    return module, timm_preprocess(module.backbone), module.own_keys(state)


def _settings(name: str, arch: str, pairs: list[str], metadata: Mapping[str, str], path: Path) -> dict[str, Any]:
    """What metadata and --arch say, the latter last."""
    readers = SETTINGS[name]
    texts = {key: (metadata[key], f"{path} metadata") for key in readers if key in metadata}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or key not in readers:
            known = f"it has {', '.join(readers)}" if readers else "the weights say everything"
            raise LoadError(f"--arch {arch}: {name} has no setting {key!r}{did_you_mean(key, readers)}; {known}")
        texts[key] = (text, f"--arch {arch}")
    found: dict[str, Any] = {}
    for key, (text, where) in texts.items():
        try:
            found[key] = readers[key](text)
        except ValueError as error:
            raise LoadError(f"{where}: {key}={text} must be a number, or several like 9/3/2/2") from error
    return found


def _classes(name: str, plain: State) -> int | None:
    """Rows of the classifier; a DToP head has one row more, for none of the classes."""
    if name == "dtop":
        weight = plain.get("heads.0.presence.weight")
        return None if weight is None else int(weight.shape[0]) - 1
    found = (plain[key] for key in ("head.weight", "head.fc.weight") if key in plain)
    weight = next(found, None)
    return None if weight is None else int(weight.shape[0])


def _weights_tell(name: str, plain: State, given: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Settings that the weights say; what they leave open must be given. Raises LoadError."""
    depth = _count(plain, r"blocks\.(\d+)\.")
    if name == "dynamicvit":
        points = _count(plain, r"(?:score_predictor|predictors)\.(\d+)\.")
        return {"blocks": tuple(depth * (k + 1) // (points + 1) + 1 for k in range(points))}
    if name == "sit":
        slims = range(_count(plain, r"slims\.(\d+)\.assign\.weight"))
        counts = [int(plain[f"slims.{i}.assign.weight"].shape[0]) for i in slims]
        if "stages" not in given:
            raise LoadError(
                f"{where}: the weights do not say behind which blocks a SiT slims; add the blocks per stage, "
                f"{len(counts) + 1} numbers that make {depth}, as in --arch sit:NAME,stages=1/1/1/11"
            )
        return {"counts": counts}
    if name == "stvit":
        starts = [value for key, value in plain.items() if re.fullmatch(r"layers\.2\.blocks\.\d+\.start", key)]
        return {"semantic": math.isqrt(starts[0].shape[1])} if starts else {}
    if name == "dtop":
        heads = _count(plain, r"heads\.(\d+)\.")
        stages = given.get("stages", PUBLISHED_DTOP.get(depth) if heads == 3 else None)
        if stages is None:
            raise LoadError(
                f"{where}: the weights do not say behind which blocks the heads of a DToP stand; add {heads - 1} "
                f"numbers from 1 to {depth - 1}, as in --arch dtop:NAME,stages=8/16"
            )
        return {"stages": stages, "layers": _count(plain, r"heads\.0\.layers\.(\d+)\.")}
    return {}


def _count(plain: State, pattern: str) -> int:
    """How many numbers, from 0, the keys hold at a place."""
    found = [re.match(pattern, key) for key in plain]
    return max((int(match[1]) + 1 for match in found if match), default=0)
