"""Resize, for what torch's interpolation does as ONNX says; the rest is refused by name."""

from __future__ import annotations

import numpy as np
from torch import Tensor
from torch.nn import functional

from edgevit.from_onnx.ops_math import Attributes
from edgevit.from_onnx.ops_shape import ints

CORNERS = {"half_pixel": False, "pytorch_half_pixel": False, "align_corners": True}
MODES = {"linear": "bilinear", "cubic": "bicubic"}
COEFFICIENTS = {False: -0.75, True: -0.5}  # of torch's cubic, by whether it is antialiased
NEAR = 1e-6
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
    smooth = bool(attributes.get("antialias", 0))
    if where not in CORNERS or mode not in MODES:
        raise ValueError(f"{mode} with {where} is not imported")
    if attributes.get("exclude_outside", 0) and not smooth:
        raise ValueError("exclude_outside is imported with antialias alone")
    if mode == "cubic":
        coefficient, imported = attributes.get("cubic_coeff_a", -0.75), COEFFICIENTS[smooth]
        if abs(coefficient - imported) > NEAR or (smooth and not attributes.get("exclude_outside", 0)):
            how = "-0.5 and exclude_outside with antialias" if smooth else "-0.75 without antialias"
            raise ValueError(f"a cubic coefficient of {coefficient:g} is not imported; {how} is")
    return functional.interpolate(x, mode=MODES[mode], align_corners=CORNERS[where], antialias=smooth, **given)  # type: ignore[arg-type]
