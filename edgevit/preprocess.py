"""Image → tensor, as one specification that travels in the manifest."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from edgevit.errors import DataError, LoadError

if TYPE_CHECKING:
    from typing import Literal

    import numpy as np
    from PIL import Image

    Resize = Literal["squash", "shortest", "squash_crop"]

RESIZES = ("squash", "shortest", "squash_crop")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos", "box", "hamming")


@dataclass(frozen=True, kw_only=True)
class Preprocess:
    """How an image becomes the input tensor.

    `squash` resizes to exactly size = (H, W). `shortest` resizes the short side to size / crop_pct and crops the
    centre. `squash_crop` resizes to exactly size / crop_pct and crops the centre. Then RGB in [0, 1], minus `mean`,
    divided by `std`, per channel.
    """

    size: tuple[int, int]
    resize: Resize = "shortest"
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    channels: str = "RGB"

    def __post_init__(self) -> None:
        if len(self.size) != 2 or not all(isinstance(s, int) and s > 0 for s in self.size):
            raise LoadError(f"preprocess size={self.size!r} must be two positive integers [height, width]")
        if self.resize not in RESIZES:
            raise LoadError(f"preprocess resize={self.resize!r} is not one of {', '.join(RESIZES)}")
        if self.interpolation not in INTERPOLATIONS:
            raise LoadError(
                f"preprocess interpolation={self.interpolation!r} is not one of {', '.join(INTERPOLATIONS)}"
            )
        numbers = (self.crop_pct, *self.mean, *self.std)
        if not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise LoadError(f"preprocess crop_pct, mean and std must be finite numbers, got {numbers}")
        if not 0 < self.crop_pct <= 1:
            raise LoadError(f"preprocess crop_pct={self.crop_pct} must be above 0 and at most 1")
        if len(self.mean) != 3 or len(self.std) != 3 or any(s <= 0 for s in self.std):
            raise LoadError("preprocess mean and std must be three numbers each, and std positive")
        if self.channels != "RGB":
            raise LoadError(f"preprocess channels={self.channels!r}: only RGB is read")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Preprocess:
        """Read the JSON object; unknown keys are refused."""
        known = set(cls.__dataclass_fields__)
        unknown = sorted(set(values) - known)
        if unknown:
            raise LoadError(f"preprocess has unknown keys {unknown}; known: {sorted(known)}")
        if "size" not in values:
            raise LoadError("preprocess needs size: [height, width]")
        try:
            tuples = {k: tuple(values[k]) for k in ("size", "mean", "std") if k in values}
        except TypeError as error:
            raise LoadError(f"preprocess size, mean and std must be lists: {error}") from error
        return cls(**{**values, **tuples})

    @classmethod
    def from_json(cls, text: str, where: str) -> Preprocess:
        """Parse JSON text found at `where`."""
        try:
            values = json.loads(text)
        except json.JSONDecodeError as error:
            raise LoadError(f"{where}: preprocess is not valid JSON ({error})") from error
        if not isinstance(values, dict):
            raise LoadError(f"{where}: preprocess must be a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)

    def to_dict(self) -> dict[str, Any]:
        """The JSON object; tuples become lists."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    def fit(self, image: Image.Image) -> Image.Image:
        """Resize and crop an image to RGB `size`, the picture the model sees."""
        from PIL import Image as Pil

        height, width = self.size
        filter_ = getattr(Pil.Resampling, self.interpolation.upper())
        image = image.convert("RGB")
        if self.resize == "squash":
            return image.resize((width, height), filter_)
        # Rounding as torchvision and timm do it: a pixel more or less moves the crop.
        tall, wide = math.floor(height / self.crop_pct), math.floor(width / self.crop_pct)
        if self.resize == "squash_crop":
            pass
        elif tall * image.width >= wide * image.height:  # the height decides, the width overhangs
            wide = tall * image.width // image.height
        else:
            tall = wide * image.height // image.width
        image = image.resize((wide, tall), filter_)
        left, top = round((image.width - width) / 2), round((image.height - height) / 2)
        return image.crop((left, top, left + width, top + height))

    def tensor(self, image: Image.Image) -> np.ndarray[Any, np.dtype[np.float32]]:
        """Image → float32 `[3, H, W]`."""
        import numpy as np

        pixels = np.asarray(self.fit(image), dtype=np.float32) / 255.0
        if pixels.ndim != 3:
            raise DataError(f"image has shape {pixels.shape}, expected height x width x 3")
        mean, std = np.array(self.mean, np.float32), np.array(self.std, np.float32)
        return np.ascontiguousarray(((pixels - mean) / std).transpose(2, 0, 1))


def crop_share(crop: int, full: int) -> float:
    """The crop_pct with which `fit` resizes to `full` pixels and crops `crop` of them.

    >>> crop_share(224, 256)
    0.875
    >>> [full for full in range(7, 600) if math.floor(7 / crop_share(7, full)) != full]
    []
    """
    share = crop / full
    while math.floor(crop / share) < full:
        share = math.nextafter(share, 0)
    return share
