"""Small hybrid (convolution + attention) classifiers, trained from scratch on the digits that scikit-learn ships.

    python benchmarks/train_hybrids.py -o DIR           minutes a model on one core; DIR then holds
        NAME.safetensors                                weights with edgevit's metadata
        calib.csv, eval.csv, calib/, eval/              200 images the models were trained on, 597 they never saw
        train.json                                      accuracy in PyTorch, float32

    edgevit export DIR/NAME.safetensors --input-size 64 --target ort --int8 --calib DIR/calib.csv -o BUNDLE
    edgevit eval BUNDLE --data DIR/eval.csv

Free weights of small hybrids with a head are hard to come by; these are ours. Nothing is done to make them hard or easy
to quantize. `--input-size 64` is needed where the architecture is built for one size (metadata `input_size` says so).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import nn

SIDE = 64
BATCH = 64
TRAIN, CALIBRATION = 1200, 200
PREPROCESS = {"size": [SIDE, SIDE], "resize": "squash", "interpolation": "bicubic", "mean": [0.5] * 3, "std": [0.5] * 3}
FIXED_SIZE = {  # name → its constructor must know the image size
    "mobilevit_xxs": True,
    "efficientformerv2_s0": True,
    "efficientvit_b0": False,
    "levit_128s": True,
    "fastvit_t8": False,
    "edgenext_xx_small": False,
    "mobilevitv2_050": False,
}
SLOW = ("fastvit_t8",)  # four times as long as the others; trained when named


def digits() -> tuple[np.ndarray, np.ndarray]:
    """1797 grey images `[N, 64, 64]` in uint8, and their labels."""
    import numpy as np
    from PIL import Image
    from sklearn.datasets import load_digits

    small, labels = load_digits(return_X_y=True)
    pixels = np.round(small.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    return np.stack([Image.fromarray(p).resize((SIDE, SIDE), Image.Resampling.BICUBIC) for p in pixels]), labels


def split(labels: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Stratified places of (training, calibration, evaluation); the calibration images are training images."""
    import numpy as np
    from sklearn.model_selection import train_test_split

    train, evaluation = train_test_split(np.arange(len(labels)), train_size=TRAIN, stratify=labels, random_state=seed)
    calibration, _ = train_test_split(train, train_size=CALIBRATION, stratify=labels[train], random_state=seed)
    return train, calibration, evaluation


def write_images(out: Path, name: str, images: np.ndarray, labels: np.ndarray) -> None:
    """`name`.csv and the PNG files it names."""
    from PIL import Image

    if (out / f"{name}.csv").exists():
        return
    (out / name).mkdir(parents=True, exist_ok=True)
    rows = [(f"{name}/{place:04d}.png", int(label)) for place, label in enumerate(labels)]
    for (file, _), image in zip(rows, images, strict=True):
        Image.fromarray(image).save(out / file)
    with (out / f"{name}.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file", "label"), *rows])


def tensor(images: np.ndarray) -> torch.Tensor:
    """uint8 `[N, H, W]` → float `[N, 3, H, W]`, as PREPROCESS says."""
    import torch

    return (torch.from_numpy(images).float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)


def moved(images: torch.Tensor) -> torch.Tensor:
    """Each image turned by up to 12 degrees, shifted by up to 6 pixels, scaled by up to 10 %."""
    import torch
    from torch.nn import functional

    turn, across, down, size = (torch.rand(4, len(images)) * 2 - 1).unbind()
    turn, size = turn * math.radians(12), 1 + size / 10
    cos, sin = turn.cos() * size, turn.sin() * size
    rows = torch.stack([cos, -sin, across * 12 / SIDE, sin, cos, down * 12 / SIDE], 1).view(-1, 2, 3)
    grid = functional.affine_grid(rows, list(images.shape), align_corners=False)
    return functional.grid_sample(images, grid, padding_mode="border", align_corners=False)


def fit(module: nn.Module, images: torch.Tensor, labels: torch.Tensor, epochs: int, rate: float) -> None:
    """AdamW with one cycle of the learning rate."""
    import torch
    from torch.nn import functional

    steps = len(images) // BATCH
    optimizer = torch.optim.AdamW(module.parameters(), lr=rate, weight_decay=0.05)
    cycle = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=epochs * steps)
    module.train()
    for epoch in range(epochs):
        total, started = 0.0, time.perf_counter()
        for chosen in torch.randperm(len(images))[: steps * BATCH].split(BATCH):
            loss = functional.cross_entropy(module(moved(images[chosen])), labels[chosen], label_smoothing=0.1)
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
            optimizer.step()
            cycle.step()
            total += loss.item()
        seconds = time.perf_counter() - started
        print(f"  epoch {epoch + 1}/{epochs}: loss {total / steps:.3f}, {seconds:.0f} s", file=sys.stderr)


def top1(module: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> float:
    """Percent."""
    import torch

    with torch.inference_mode():
        right = [(module(x).argmax(1) == y).sum() for x, y in zip(images.split(128), labels.split(128), strict=True)]
    return 100 * float(sum(right)) / len(labels)


def main() -> None:
    """Write the images, then train what is not there yet."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--models", nargs="+", choices=list(FIXED_SIZE), metavar="NAME")
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--rate", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()

    import torch
    from safetensors.torch import save_file

    from edgevit.load_timm import create_timm

    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    images, labels = digits()
    train, calibration, evaluation = split(labels, arguments.seed)
    write_images(arguments.out, "calib", images[calibration], labels[calibration])
    write_images(arguments.out, "eval", images[evaluation], labels[evaluation])
    pixels, classes = tensor(images), torch.from_numpy(labels)
    log = arguments.out / "train.json"
    found = json.loads(log.read_text()) if log.exists() else {}
    for name in arguments.models or [name for name in FIXED_SIZE if name not in SLOW]:
        weights = arguments.out / f"{name}.safetensors"
        if weights.exists() and name in found:
            continue
        print(name, file=sys.stderr)
        torch.manual_seed(arguments.seed)
        size = (SIDE, SIDE) if FIXED_SIZE[name] else None
        module = create_timm(f"timm:{name}", 10, size, pretrained=False)
        started = time.perf_counter()
        fit(module, pixels[train], classes[train], arguments.epochs, arguments.rate)
        seconds = time.perf_counter() - started
        metadata = {"arch": f"timm:{name}", "num_classes": "10", "preprocess": json.dumps(PREPROCESS)}
        if size:
            metadata["input_size"] = str(SIDE)
        save_file(module.state_dict(), weights, metadata)
        accuracy = top1(module.eval(), pixels[evaluation], classes[evaluation])
        found[name] = {"top1": accuracy, "images": len(evaluation), "epochs": arguments.epochs, "seconds": seconds}
        log.write_text(json.dumps(found, indent=1))
    print("| model | eval top-1, PyTorch fp32 | epochs | minutes |\n|---|--:|--:|--:|")
    for name, row in found.items():
        print(f"| {name} | {row['top1']:.2f} | {row['epochs']} | {row['seconds'] / 60:.1f} |")


if __name__ == "__main__":
    main()
