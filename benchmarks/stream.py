"""Evaluation of many images from shards: memory, rate, and whether the time left that was named was true.

    python benchmarks/stream.py -o DIR [--images 50000 ...] [--side 32] [--json]

Writes images of noise into DIR/shards, 1000 in each, and evaluates a linear classifier built for the target `fake` (the
program itself, in torch) as `edgevit eval` does; for several counts one after the other in one fresh process, so that
the growth of its peak memory (VmHWM) is that of the images. What DIR holds already is used again.
"""

from __future__ import annotations

import argparse
import io
import json
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

SHARD = 1000
CLASSES = 10
ASKED = (0.1, 0.5, 0.9)
"""Shares of the images at which the time left is kept."""


def write_shards(folder: Path, images: int, side: int) -> None:
    """Whole shards for so many: PNGs of noise with random labels; one that is there stays."""
    import numpy as np
    from PIL import Image

    folder.mkdir(parents=True, exist_ok=True)
    for number in range(-(-images // SHARD)):
        path, beside = folder / f"val-{number:06d}.tar", folder / ".part"
        if path.exists():
            continue
        generator = np.random.default_rng(number)
        with tarfile.open(beside, "w") as tar:
            for key in range(number * SHARD, (number + 1) * SHARD):
                png = io.BytesIO()
                Image.fromarray(generator.integers(0, 256, (side, side, 3), dtype=np.uint8)).save(png, "png")
                for kind, content in (("png", png.getvalue()), ("cls", b"%d" % generator.integers(CLASSES))):
                    info = tarfile.TarInfo(f"{key:08d}.{kind}")
                    info.size = len(content)
                    tar.addfile(info, io.BytesIO(content))
        beside.rename(path)


def build(folder: Path, side: int) -> None:
    """The bundle of the classifier."""
    import torch

    from edgevit.pipeline import ExportSettings, export

    torch.manual_seed(0)
    program = folder.with_suffix(".pt2")
    model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * side * side, CLASSES)).eval()
    torch.export.save(torch.export.export(model, (torch.zeros(1, 3, side, side),)), program)
    export(ExportSettings(model=str(program), target="fake", out=folder))


def peak_mb() -> float:
    """Of this process, so far."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    return int(status.split("VmHWM:")[1].split()[0]) * 1024 / 1e6


def evaluated(bundle: Path, shards: Path, images: int) -> dict[str, Any]:
    """Figures of one evaluation of the first `images`."""
    from edgevit.bundle import Bundle
    from edgevit.commands.pace import Pace
    from edgevit.data import read_dataset
    from edgevit.evaluate import evaluate

    started = time.perf_counter()
    data = read_dataset(shards).head(images)
    indexed = time.perf_counter() - started
    pace = Pace()
    said: dict[float, tuple[float | None, float]] = {}

    def watch(what: str, done: int, total: int) -> None:
        left = pace.left_s(done, total)
        for share in ASKED:
            if done >= share * total:
                said.setdefault(share, (left, time.perf_counter()))

    found = evaluate(Bundle.load(bundle), data, watch)
    ended = time.perf_counter()
    return {
        "images": len(data),
        "index_s": indexed,
        "seconds": found.seconds,
        "peak_mb": peak_mb(),
        "left": [{"at": share, "said_s": left, "true_s": ended - at} for share, (left, at) in said.items()],
    }


def text(row: dict[str, Any]) -> str:
    """For people."""
    left = (
        f"{100 * one['at']:.0f} %: "
        + (f"{one['said_s']:.0f} s said, " if one["said_s"] is not None else "nothing said, ")
        + f"{one['true_s']:.0f} s true"
        for one in row["left"]
    )
    return (
        f"{row['images']} images: index {row['index_s']:.1f} s, evaluation {row['seconds']:.1f} s "
        f"({row['images'] / row['seconds']:.0f} a second), peak {row['peak_mb']:.0f} MB; time left at {'; '.join(left)}"
    )


def main() -> None:
    """Write, build, and measure in a process of its own."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-o", dest="out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--images", type=int, nargs="+", default=[50_000], metavar="N")
    parser.add_argument("--side", type=int, default=32, metavar="PX")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    bundle, shards = arguments.out / "bundle", arguments.out / "shards"
    if arguments.here:
        rows = [evaluated(bundle, shards, count) for count in arguments.images]
        print(json.dumps(rows) if arguments.json else "\n".join(map(text, rows)))
        return
    write_shards(shards, max(arguments.images), arguments.side)
    if not bundle.exists():
        build(bundle, arguments.side)
    raise SystemExit(subprocess.run([sys.executable, *sys.argv, "--here"], check=False).returncode)


if __name__ == "__main__":
    main()
