"""Resize, for what torch's interpolation does as ONNX says; the rest is refused by name."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional

from edgevit.from_onnx.ops_math import Attributes
from edgevit.from_onnx.ops_shape import ints

CORNERS = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}
MODES = {"linear": "bilinear", "cubic": "bicubic"}
NEAREST = {("asymmetric", "floor"): "nearest", ("half_pixel", "round_prefer_floor"): "nearest-exact"}


def resize(
    attributes: Attributes,
    x: Tensor,
    roi: np.ndarray | None = None,
    scales: np.ndarray | None = None,
    sizes: np.ndarray | None = None,
) -> Tensor:
    """`[B, C, H, W]` → another height and width."""
    if x.ndim != 4 or "axes" in attributes or attributes.get("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise ValueError("only the height and width of [B, C, H, W] are resized, each as given")
    mode, where = attributes.get("mode", "nearest"), attributes.get("coordinate_transformation_mode", "half_pixel")
    given: dict[str, object] = {}
    if sizes is not None and sizes.size:
        height, width = ints(sizes)[2:]
        given["size"] = (height, width)
    elif scales is not None and scales.size == 4:
        given["scale_factor"] = tuple(float(s) for s in scales[2:])
        given["recompute_scale_factor"] = False
    else:
        raise ValueError("it needs scales or sizes that do not depend on the image")
    if mode == "nearest":
        kind = NEAREST.get((where, attributes.get("nearest_mode", "round_prefer_floor")))
        if kind is None:
            raise ValueError(f"nearest with {where}, {attributes.get('nearest_mode')} is not imported")
        return functional.interpolate(x, mode=kind, **given)  # type: ignore[arg-type]
    if where not in CORNERS or mode not in MODES or attributes.get("exclude_outside", 0):
        raise ValueError(f"{mode} with {where} is not imported")
    if mode == "cubic" and abs(attributes.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
        raise ValueError("only a cubic coefficient of -0.75 is imported")
    smooth = bool(attributes.get("antialias", 0))
    return functional.interpolate(x, mode=MODES[mode], align_corners=CORNERS[where], antialias=smooth, **given)  # type: ignore[arg-type]
