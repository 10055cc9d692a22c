"""MODEL and how it is read: what every verb that loads one is asked."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from edgevit.data import Dataset
    from edgevit.stages import Checkpoint


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The keywords of `edgevit.load.load`, less the images."""

    model: str
    arch: str | None = None
    input_size: tuple[int, int] | None = None
    preprocess: Path | None = None
    trust_pickle: bool = False
    keep: tuple[float, ...] | None = None  # tokens, of a file that selects by masks

    def load(self, calib: Dataset | None = None) -> Checkpoint:
        """The model. Raises LoadError, MissingExtra."""
        from edgevit.load import load

        return load(calib=calib, **model_keywords(self))


def model_keywords(source: object) -> dict[str, Any]:
    """The fields of ModelSettings, of whatever has them: parsed flags, or the settings of a larger job."""
    return {field.name: getattr(source, field.name) for field in fields(ModelSettings)}
