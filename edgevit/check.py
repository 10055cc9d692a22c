"""The numeric check: a built engine against eager float32 on real images, before the bundle exists."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.data import Dataset, open_image
from edgevit.errors import BundleError
from edgevit.preprocess import Preprocess
from edgevit.runtimes.base import Runtime, seen
from edgevit.stages import Engine

if TYPE_CHECKING:
    import numpy as np
    import torch

IMAGES = 8
SHEET = Path(__file__).with_name("check.png")  # eight handwritten digits on gradients, side by side (demo scenes)
# A reduced model may pick another of two nearly equal tokens where sums are ordered differently: such an image differs
# by far more than rounding, and is still right. Most images must not.
NEEDED_REDUCED = 6 / IMAGES
BROKEN_DB = 3.0  # a lossy engine below this signal-to-noise ratio is of no use, whoever is to blame
# A value that rounds to the other side in one layer moves the next ones, and what is not int8 may be bf16: an engine
# is this near its own quantized program, as a share of the outputs, or than half again what the rounding itself does.
NEAR, SHARE = 0.1, 1.5


def check_images(preprocess: Preprocess, data: Dataset | None) -> tuple[list[np.ndarray[Any, Any]], str]:
    """Eight tensors `[3, H, W]`, and where they came from: the user's data, else the embedded sheet."""
    if data is not None:
        files = data.files[:IMAGES]
        return [preprocess.tensor(open_image(f)) for f in files], data.name
    sheet = open_image(SHEET)
    side = sheet.height
    crops = [sheet.crop((i * side, 0, (i + 1) * side, side)) for i in range(sheet.width // side)]
    return [preprocess.tensor(c) for c in crops], "embedded images"


def check_engine(
    engine: Engine,
    target: Runtime,
    reference: Callable[[torch.Tensor], torch.Tensor],
    images: Sequence[np.ndarray[Any, Any]],
    source: str,
    reduced: bool,
    own: Callable[[torch.Tensor], torch.Tensor] | None = None,
    gated: bool = False,
) -> dict[str, Any]:
    """Run engine and reference (eager float32, same schedule) on the images; raise BundleError when they disagree.

    own: the quantized program, which the engine must compute. gated: how much 8 bits lose is measured and judged later.
    Result: max_abs_diff and relative to the largest output, images within tolerance, top-1 agreement, SQNR in dB.
    """
    import numpy as np
    import torch

    session = target.open(engine)
    batch = engine.inputs.batch
    expected, got, meant = [], [], []
    for first in range(len(images)):
        stack = np.stack([images[(first + i) % len(images)] for i in range(batch)])
        with torch.no_grad():
            output = reference(torch.from_numpy(stack))
            if own is not None:
                meant.append(own(torch.from_numpy(stack)).numpy()[0])
        if not isinstance(output, torch.Tensor):
            raise BundleError(f"the model returns a {type(output).__name__}; it must return one tensor, [batch, ...]")
        expected.append(output.numpy()[0])
        got.append(session.run(stack)[0])
    want, have = np.stack(expected), np.stack(got)
    if want.shape != have.shape:
        raise BundleError(f"{target.name}: the engine gives {list(have.shape[1:])}, eager gives {list(want.shape[1:])}")
    result = _judge(want, have, target, engine.precision, source, reduced, gated)
    if meant:
        result["program_diff"] = _near_its_program(want, have, np.stack(meant), target, engine.precision)
    return result


def _near_its_program(
    want: np.ndarray[Any, Any],
    have: np.ndarray[Any, Any],
    meant: np.ndarray[Any, Any],
    target: Runtime,
    precision: str,
) -> float:
    """Distance of the engine from its quantized program, relative, of the median image (single ones may flip)."""
    import numpy as np

    def distance(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
        a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
        lengths = np.linalg.norm(b, axis=1).clip(1e-30)
        return float(np.median(np.linalg.norm(a - b, axis=1) / lengths))

    found, limit = distance(have, meant), max(NEAR, SHARE * distance(meant, want))
    if found > limit:
        raise BundleError(
            f"{target.name} {precision}: the engine differs from its own quantized program by {found:.2g} of the "
            f"outputs (limit {limit:.2g}): the runtime computes something else; it was not kept"
        )
    return found


def _judge(
    want: np.ndarray[Any, Any],
    have: np.ndarray[Any, Any],
    target: Runtime,
    precision: str,
    source: str,
    reduced: bool,
    gated: bool,
) -> dict[str, Any]:
    import numpy as np

    if not np.isfinite(have).all():
        raise BundleError(f"{target.name} {precision}: the engine gives NaN or infinite outputs; it was not kept")
    count = len(want)
    flat_want, flat_have = want.reshape(count, -1), have.reshape(count, -1)
    difference = np.abs(flat_have - flat_want).max(axis=1)
    scale = max(float(np.abs(want).max()), 1e-12)
    noise = float(np.square(flat_have - flat_want).mean())
    decibel = 10 * np.log10(max(float(np.square(flat_want).mean()), 1e-30) / max(noise, 1e-30))
    tolerance = target.policy.tolerance[precision]
    here = seen(target, precision)
    result = {
        "by": here.by,
        "unverified": list(here.unverified),
        "max_abs_diff": float(difference.max()),
        "relative_diff": float(difference.max()) / scale,
        "reference": "eager fp32",
        "images": count,
        "image_source": source,
        "agreement": 100 * float((flat_have.argmax(1) == flat_want.argmax(1)).mean()),
        "sqnr_db": float(decibel),
        "tolerance": tolerance,
    }
    if tolerance is None:
        if decibel < BROKEN_DB and not gated:
            raise BundleError(
                f"{target.name} {precision}: the engine's outputs are mostly noise ({decibel:.1f} dB against eager "
                f"fp32, at least {BROKEN_DB:g} expected); it was not kept"
            )
        return result
    within = float((difference <= tolerance * scale).mean())
    result["within_tolerance"] = within
    if within < (NEEDED_REDUCED if reduced else 1.0):
        raise BundleError(
            f"{target.name} {precision}: the engine differs from eager fp32 by {result['relative_diff']:.1e} of the "
            f"largest output (limit {tolerance:g}) on {round((1 - within) * count)} of {count} images; it was not kept"
        )
    return result
