"""Golden vectors: images of awkward sizes with the exact tensors that preprocessing makes of them.

They are what accuracy was measured with, as test data for a loader in any language. `golden.json` lists them; an image
is a file without loss, a tensor is raw little-endian float32 `[3, H, W]`.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.bundle import write_json
from edgevit.preprocess import Preprocess

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

INDEX = "golden.json"


def sizes(preprocess: Preprocess) -> list[tuple[int, int]]:
    """Eight (width, height): one pixel, smaller, exact, off by one, wide, tall, larger with odd and with even sides."""
    height, width = preprocess.size
    return [(1, 1), (7, 5), (width, height), (width + 1, height - 1 or 1), (333, 77), (61, 401), (413, 309), (640, 360)]


def images(preprocess: Preprocess, seed: int = 0) -> list[Image.Image]:
    """The images, the same for the same sizes: noise of every value, a ramp, hard black and white edges."""
    import numpy as np
    from PIL import Image

    made = []
    for index, (width, height) in enumerate(sizes(preprocess)):
        pixels = np.random.default_rng([seed, index]).integers(0, 256, (height, width, 3), np.uint8)
        third = -(-height // 3)
        pixels[:third] = 255 * (pixels[:third] > 127)
        pixels[2 * third :] = np.linspace(0, 255, width).astype(np.uint8)[None, :, None]
        made.append(Image.fromarray(pixels))
    return made


def write_golden(preprocess: Preprocess, folder: Path, suffix: str) -> None:
    """Write images (`suffix`: ppm, png), tensors and `golden.json`."""
    import PIL

    folder.mkdir()
    rows: list[dict[str, Any]] = []
    for index, image in enumerate(images(preprocess)):
        names = {"image": f"{index}.{suffix}", "tensor": f"{index}.f32"}
        image.save(folder / names["image"])
        data = _bytes(preprocess.tensor(image))
        (folder / names["tensor"]).write_bytes(data)
        digest = hashlib.sha256(data).hexdigest()
        rows.append({**names, "width": image.width, "height": image.height, "sha256": digest})
    found = {"pillow": PIL.__version__, "shape": [3, *preprocess.size], "preprocess": preprocess.to_dict()}
    write_json(folder / INDEX, {**found, "vectors": rows})


def _bytes(tensor: np.ndarray[Any, Any]) -> bytes:
    return tensor.astype("<f4").tobytes()
