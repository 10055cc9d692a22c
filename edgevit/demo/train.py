"""Trains the demo model from scratch on the CPU: ``python -m edgevit.demo.train``.

Training has two stages under one learning-rate schedule. In the first, the model sees only 64 of the 144
patch tokens: those in a square window around the digit, each with the position embedding of its true place.
That costs less than half as much, and the shapes of the digits are learnt there. Two helper heads, dropped
afterwards, speed it up: one reads the class from the mean of the patch tokens too, one draws the digit's
strokes from the tokens of a middle block. In the second stage the model sees whole scenes and learns to
find the digit in the background. Training on a part of the tokens is the idea of, e.g., Liu et al.,
"PatchDropout" (WACV 2023); here the part is a window and not a random choice.

The matrices of the blocks are trained with Muon (Jordan et al., 2024; ``torch.optim.Muon``, torch >= 2.9)
and all else with AdamW: in trials with windows, AdamW alone needed about twice as many scenes for the same
accuracy.

The evaluation digits are used once, after the last epoch, with the weights as they are stored.
"""

from __future__ import annotations

import argparse
import itertools
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional

from edgevit.demo.batches import GRID, WINDOW, Epoch, make_epoch, normalise
from edgevit.demo.model import CLASSES, PATCH_SIZE, WEIGHTS, build
from edgevit.demo.scenes import labelled_scenes

EPOCHS = 36
# Share of the epochs that see only windows. Whole scenes cost about 2.5 times as much.
WINDOW_SHARE = 0.72
# Small: in trials the loss fell with the number of steps, and a step costs in proportion to its batch.
BATCH = 24
ADAMW_RATE = 1e-3
MUON_RATE = 3e-3
DECAY = 0.02
WARMUP_SHARE = 0.06
SMOOTHING = 0.1
POSITION_SCALE = 0.3
MIDDLE = 3


class Helpers(nn.Module):
    """Heads that only the first training stage uses."""

    def __init__(self, width: int) -> None:
        """Makes the heads for tokens of ``width`` channels."""
        super().__init__()
        self.strokes = nn.Linear(width, (PATCH_SIZE // 2) ** 2)
        self.pooled = nn.Linear(width, len(CLASSES))


def window_places(corners: torch.Tensor) -> torch.Tensor:
    """Turns the corners of windows, ``[B, 2]``, into the places of their patches in the grid, ``[B, 64]``."""
    steps = torch.arange(WINDOW)
    rows, columns = corners[:, :1] + steps, corners[:, 1:] + steps
    return (rows[:, :, None] * GRID + columns[:, None, :]).flatten(1)


def forward_window(model: nn.Module, images: torch.Tensor, places: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Runs the model on some of the patch tokens of each image.

    Args:
        model: The demo model.
        images: Normalised images ``[B, 3, 96, 96]``.
        places: Which patches of each image to use, ``[B, K]``.

    Returns:
        The tokens after block ``MIDDLE`` and the final, normalised tokens, each ``[B, 1 + K, 96]``.
    """
    width = model.pos_embed.shape[2]
    patches = model.patch_embed(images) + model.pos_embed[:, 1:]
    patches = patches.gather(1, places[:, :, None].expand(-1, -1, width))
    first = (model.cls_token + model.pos_embed[:, :1]).expand(len(images), -1, -1)
    middle = model.blocks[:MIDDLE](torch.cat([first, patches], dim=1))
    return middle, model.norm(model.blocks[MIDDLE:](middle))


def window_loss(
    model: nn.Module, helpers: Helpers, images: torch.Tensor, data: Epoch, part: slice
) -> tuple[torch.Tensor, torch.Tensor]:
    """Returns the class logits ``[B, 10]`` and the summed loss of the helper heads in the first stage."""
    places = window_places(data.corners[part])
    middle, final = forward_window(model, images, places)
    strokes = data.strokes[part]
    strokes = strokes.gather(1, places[:, :, None].expand(-1, -1, strokes.shape[2]))
    drawn = functional.binary_cross_entropy_with_logits(helpers.strokes(middle[:, 1:]), strokes)
    pooled = helpers.pooled(final[:, 1:].mean(dim=1))
    named = functional.cross_entropy(pooled, data.labels[part], label_smoothing=SMOOTHING)
    return model.forward_head(final), named + 2 * drawn


@torch.no_grad()
def start_weights(model: nn.Module) -> None:
    """Starts the blocks and the position embedding in place, in a way that suits a narrow model.

    The matrices of the blocks get the scale of their width (Glorot and Bengio, AISTATS 2010): timm starts
    with 0.02 at any width, which leaves narrow blocks weak. The position embedding starts from sines and
    cosines of row and column (the form of Vaswani et al., "Attention Is All You Need", NeurIPS 2017, half
    of the channels for each axis), so that neighbours are alike from the first step; it is trained like the
    rest.
    """
    for module in model.blocks.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
    quarter = model.pos_embed.shape[2] // 4
    # Wavelengths from 4 patches to 4 times the side of the grid: longer ones would be constant on it.
    wavelengths = torch.logspace(math.log10(4), math.log10(4 * GRID), quarter)
    angles = torch.arange(GRID)[:, None] * (2 * math.pi / wavelengths)
    axis = torch.cat([angles.sin(), angles.cos()], dim=1)
    rows = axis[:, None].expand(GRID, GRID, -1)
    columns = axis[None].expand(GRID, GRID, -1)
    model.pos_embed[0, 1:] = POSITION_SCALE * torch.cat([rows, columns], dim=2).flatten(0, 1)


def schedule(step: int, steps: int) -> float:
    """Returns the factor of the learning rates: linear warm-up, then a cosine down to 1 %."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizers(model: nn.Module, helpers: Helpers) -> list[tuple[torch.optim.Optimizer, float]]:
    """Makes Muon for the matrices of the blocks and AdamW for the rest, each with its peak learning rate."""
    matrices = [parameter for parameter in model.blocks.parameters() if parameter.ndim == 2]
    chosen = {id(parameter) for parameter in matrices}
    others = [parameter for parameter in model.parameters() if id(parameter) not in chosen]
    muon = torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=DECAY, adjust_lr_fn="match_rms_adamw")
    others.extend(helpers.parameters())
    adamw = torch.optim.AdamW(others, lr=ADAMW_RATE, weight_decay=DECAY, betas=(0.9, 0.98))
    return [(muon, MUON_RATE), (adamw, ADAMW_RATE)]


def train(model: nn.Module, epochs: int, seed: int) -> Iterator[str]:
    """Trains the model in place.

    Args:
        model: The demo model.
        epochs: How many epochs.
        seed: Seed of the scenes.

    Yields:
        One log line after each epoch.
    """
    helpers = Helpers(model.embed_dim)
    optimizers = make_optimizers(model, helpers)
    window_epochs = round(WINDOW_SHARE * epochs)
    model.train()
    for epoch in range(epochs):
        start = time.perf_counter()
        data = make_epoch(seed, epoch)
        batches = len(data.labels) // BATCH
        windowed = epoch < window_epochs
        loss_sum, hits = 0.0, 0
        for batch in range(batches):
            part = slice(batch * BATCH, (batch + 1) * BATCH)
            images, labels = normalise(data.images[part]), data.labels[part]
            if windowed:
                logits, helper_loss = window_loss(model, helpers, images, data, part)
            else:
                logits, helper_loss = model(images), 0.0
            loss = functional.cross_entropy(logits, labels, label_smoothing=SMOOTHING)
            model.zero_grad(set_to_none=True)
            helpers.zero_grad(set_to_none=True)
            (loss + helper_loss).backward()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            factor = schedule(epoch * batches + batch, epochs * batches)
            for optimizer, peak in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = peak * factor
                optimizer.step()
            loss_sum += loss.item()
            hits += int((logits.argmax(dim=1) == labels).sum())
        yield (
            f"epoch {epoch + 1:3d}/{epochs} {'window' if windowed else 'whole '}"
            f"  loss {loss_sum / batches:.4f}  train accuracy {hits / (batches * BATCH):.4f}"
            f"  rates x{factor:.3f}  {time.perf_counter() - start:.1f} s"
        )


@torch.inference_mode()
def evaluate(model: nn.Module, count: int | None = None) -> tuple[int, int]:
    """Counts right answers on the fixed evaluation scenes.

    Args:
        model: A model from images ``[B, 3, 96, 96]`` to logits ``[B, 10]``.
        count: Only the first ``count`` scenes; all 500 if None.

    Returns:
        Right answers and number of scenes.
    """
    model.eval()
    pairs = list(itertools.islice(labelled_scenes("eval"), count))
    hits = 0
    for start in range(0, len(pairs), 50):
        part = pairs[start : start + 50]
        images = torch.from_numpy(np.stack([np.asarray(image) for image, _ in part]))
        labels = torch.tensor([label for _, label in part])
        hits += int((model(normalise(images)).argmax(dim=1) == labels).sum())
    return hits, len(pairs)


def main(argv: list[str] | None = None) -> int:
    """Runs the command line and returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m edgevit.demo.train", description="Train the demo model.")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help="default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--threads", type=int, help="CPU threads of torch (default: torch's own choice)")
    parser.add_argument("-o", "--output", type=Path, default=WEIGHTS, help="default: the packaged weights")
    options = parser.parse_args(argv)
    if options.epochs < 1 or options.seed < 0 or (options.threads is not None and options.threads < 1):
        parser.error("--epochs and --threads must be at least 1, --seed at least 0")
    if not options.output.parent.is_dir():
        parser.error(f"no such folder for the output: {options.output.parent}")
    if options.threads:
        torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    model = build()
    start_weights(model)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(
        f"demo model: {parameters} parameters, {len(CLASSES)} classes, {options.epochs} epochs,"
        f" seed {options.seed}, {torch.get_num_threads()} thread(s), torch {torch.__version__}"
    )
    start = time.perf_counter()
    for line in train(model, options.epochs, options.seed):
        print(line, flush=True)
    seconds = time.perf_counter() - start
    # Rounded before the evaluation, so that the accuracy is that of the stored weights.
    stored = {name: tensor.half() for name, tensor in model.state_dict().items()}
    model.load_state_dict({name: tensor.float() for name, tensor in stored.items()})
    hits, total = evaluate(model)
    metadata = {
        "arch": "demo",
        "seed": str(options.seed),
        "epochs": str(options.epochs),
        "torch": str(torch.__version__),
        "accuracy": f"{hits / total:.4f}",
    }
    save_file(stored, options.output, metadata=metadata)
    size = options.output.stat().st_size
    print(f"trained in {seconds:.0f} s, evaluation {hits}/{total} = {hits / total:.4f}, {size} bytes in float16")
    return 0


if __name__ == "__main__":
    sys.exit(main())
