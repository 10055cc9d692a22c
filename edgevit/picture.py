"""Which tokens were merged and which were fused away, as a picture.

The picture is drawn from the decisions of one eager run (`ReducedVit.run`), not from the exported engine.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edgevit.errors import ScheduleError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from PIL import Image, ImageDraw

    from edgevit.data import ImageFile
    from edgevit.preprocess import Preprocess
    from edgevit.reduced_vit import ReducedVit

    Array = np.ndarray[Any, np.dtype[Any]]

MIN_PANEL, MAX_PANEL = 224, 448
"""Pixels of a panel's shorter and longer side: small inputs are enlarged, large ones reduced."""
MAX_STAGES = 5
"""Reducing blocks shown in one row; more would be too small to read on a page."""

PAPER, INK, MUTED = (255, 255, 255), (24, 28, 34), (96, 104, 116)
LUMA = (0.299, 0.587, 0.114)


@dataclass(frozen=True, eq=False)
class Stage:
    """What has become of the original patches behind one reducing block (block numbers count from 1).

    before, after: token counts, prefix included.
    slots: `[N]` int64, the token that each original patch lives in; prefix tokens are counted too.
    fused: `[N]` bool, true for a patch that was pruned into a fused token here or earlier.
    """

    block: int
    before: int
    after: int
    slots: Array
    fused: Array


@dataclass(frozen=True, eq=False)
class TokenHistory:
    """All reducing blocks of one image: `tokens` entered, `prefix` of them are not patches."""

    prefix: int
    tokens: int
    stages: tuple[Stage, ...]

    @property
    def end(self) -> Stage:
        """What reaches the head."""
        return self.stages[-1]


def token_history(model: ReducedVit, images: torch.Tensor) -> TokenHistory:
    """Follow every patch of one image `[1, 3, H, W]` through the model's reducing blocks.

    Raises ScheduleError when no block reduces, or where tokens are reduced in windows or in several stages.
    """
    import torch

    if images.shape[0] != 1:
        raise ValueError(f"token_history follows one image, got images of shape {list(images.shape)}")
    if not any(model.steps):
        raise ScheduleError("no block of this model reduces its tokens, so there is nothing to draw; give --reduce")
    if len(model.stages) > 1 or model.stages[0].groups > 1:
        raise ScheduleError(
            "a picture follows each patch through one set of tokens, and this model reduces windows or stages whose "
            "tokens come back; leave the picture out"
        )
    with torch.no_grad():
        plans = model.run(images)[1]
    stages: list[Stage] = []
    prefix, tokens = 0, 0
    for block, (step, plan) in enumerate(zip(model.steps, plans, strict=True), start=1):
        if step is None or plan is None:
            continue
        moved, dropped = plan.slots()[0].cpu().numpy(), plan.dropped()[0].cpu().numpy()
        if stages:
            slots, fused = stages[-1].slots, stages[-1].fused
            stages.append(Stage(block, len(moved), step.tokens_out, moved[slots], fused | dropped[slots]))
        else:
            prefix, tokens = step.prefix, len(moved)
            stages.append(Stage(block, tokens, step.tokens_out, moved[prefix:], dropped[prefix:]))
    return TokenHistory(prefix, tokens, tuple(stages))


def draw(image: Image.Image, history: TokenHistory, grid: tuple[int, int]) -> Image.Image:
    """A row of captioned panels: the input, then the tokens behind each reducing block (at most MAX_STAGES).

    Merged patches take the mean colour of their group, with a border around it; fused ones turn dark grey;
    patches that still stand alone keep their pixels.

    image: the fitted RGB picture the model saw. grid: patches (down, across). Prefix tokens are not drawn.
    """
    if grid[0] * grid[1] != history.tokens - history.prefix:
        raise ValueError(f"grid {grid} has not {history.tokens - history.prefix} patches, as the history has")
    base = _sized(image.convert("RGB"))
    shown = _choose(history.stages)
    panels = [(base, *_input_caption(history, len(shown)))]
    panels += [(_paint(base, stage, grid), *_stage_caption(stage)) for stage in shown]
    return _row(panels)


def legend(history: TokenHistory) -> str:
    """One sentence that says how to read the picture."""
    parts = []
    if any(_merged(stage).any() for stage in history.stages):
        parts.append("areas of one colour inside a border are merged: one token each")
    if history.end.fused.any():
        parts.append("dark patches are fused into one token per reducing block")
    text = "; ".join([*parts, "all others stand alone"])
    return text[0].upper() + text[1:] + "."


def draw_file(
    file: ImageFile, preprocess: Preprocess, module: ReducedVit, grid: tuple[int, int]
) -> tuple[Image.Image, TokenHistory]:
    """The row of panels of one image file, as the model sees it, and what happened to its tokens."""
    import torch

    from edgevit.data import open_image

    image = open_image(file)
    history = token_history(module, torch.from_numpy(preprocess.tensor(image)).unsqueeze(0))
    return draw(preprocess.fit(image), history, grid), history


def contact(rows: Sequence[Image.Image]) -> Image.Image:
    """Stack the rows of several images into one picture."""
    from PIL import Image as Pil

    if not rows:
        raise ValueError("contact() needs one row or more")
    gap = 12
    sheet = Pil.new("RGB", (max(r.width for r in rows), sum(r.height for r in rows) + gap * (len(rows) - 1)), PAPER)
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + gap
    return sheet


def _choose(stages: Sequence[Stage]) -> list[Stage]:
    """The first, the last, and those between whose token counts are spread most evenly."""
    if len(stages) <= MAX_STAGES:
        return list(stages)
    first, last = stages[0].after, stages[-1].after
    rest = list(stages[1:-1])
    chosen = [stages[0], stages[-1]]
    for part in range(1, MAX_STAGES - 1):
        wanted = first + (last - first) * part / (MAX_STAGES - 1)
        nearest = min(rest, key=lambda stage: abs(stage.after - wanted))
        rest.remove(nearest)
        chosen.append(nearest)
    return sorted(chosen, key=lambda stage: stage.block)


def _sized(image: Image.Image) -> Image.Image:
    """Scale so that the shorter side has MIN_PANEL pixels or more, and the longer one no more than needed."""
    from PIL import Image as Pil

    short, long = min(image.size), max(image.size)
    if short < MIN_PANEL:
        factor: float = math.ceil(MIN_PANEL / short)  # whole: patches stay equal in size
    else:
        factor = max(min(1.0, MAX_PANEL / long), MIN_PANEL / short)
    if factor == 1:
        return image
    size = (round(image.width * factor), round(image.height * factor))
    return image.resize(size, Pil.Resampling.LANCZOS)


def _paint(base: Image.Image, stage: Stage, grid: tuple[int, int]) -> Image.Image:
    """One panel: every pixel looks up its patch, and the patch its token."""
    import numpy as np
    from PIL import Image as Pil

    pixels = np.asarray(base, dtype=np.float64).copy()  # [h, w, 3]
    down = np.arange(base.height) * grid[0] // base.height
    across = np.arange(base.width) * grid[1] // base.width
    patch = down[:, None] * grid[1] + across  # [h, w]
    group, fused = stage.slots[patch], stage.fused[patch]
    merged = _merged(stage)[patch]
    if merged.any():
        area = np.bincount(group[merged], minlength=stage.after).clip(min=1)
        sums = [np.bincount(group[merged], channel, stage.after) for channel in pixels[merged].T]
        mean = np.stack(sums, axis=1) / area[:, None]  # [slots, 3]
        pixels[merged] = mean[group[merged]]
    pixels[fused] = (28 + 0.28 * (pixels[fused] @ LUMA))[:, None]
    edges = _edges(group, merged, width=max(1, round(min(base.size) / 224)))
    # White borders, but grey ones where white would not show.
    pixels[edges] = np.where(pixels[edges] @ LUMA > 190, 90.0, 255.0)[:, None]
    return Pil.fromarray(pixels.round().astype(np.uint8))


def _merged(stage: Stage) -> Array:
    """`[N]` bool: patches that share their token with another, and not by being fused away."""
    import numpy as np

    members = np.bincount(stage.slots[~stage.fused], minlength=stage.after)
    merged: Array = (members[stage.slots] > 1) & ~stage.fused
    return merged


def _edges(group: Array, merged: Array, width: int) -> Array:
    """`[h, w]` bool: the first pixels of every change of group that touches a merged one."""
    import numpy as np

    edges = np.zeros(group.shape, dtype=bool)
    change = (group[1:] != group[:-1]) & (merged[1:] | merged[:-1])
    for i in range(width):
        edges[1 + i :] |= change[: len(change) - i]
    change = (group[:, 1:] != group[:, :-1]) & (merged[:, 1:] | merged[:, :-1])
    for i in range(width):
        edges[:, 1 + i :] |= change[:, : change.shape[1] - i]
    return edges


def _input_caption(history: TokenHistory, shown: int) -> tuple[str, str]:
    patches = history.tokens - history.prefix
    total = len(history.stages)
    detail = f"{patches} patches + {history.prefix} prefix" if history.prefix else f"{patches} patches"
    if shown < total:
        detail = f"{shown} of {total} reducing blocks shown"
    return f"input: {history.tokens} tokens", detail


def _stage_caption(stage: Stage) -> tuple[str, str]:
    merged = _merged(stage)
    details = []
    if merged.any():
        details.append(f"{int(merged.sum())} patches in {len(set(stage.slots[merged].tolist()))} groups")
    if stage.fused.any():
        details.append(f"{int(stage.fused.sum())} of {len(stage.fused)} patches fused")
    return f"block {stage.block}: {stage.before} → {stage.after}", ", ".join(details)


def _row(panels: Sequence[tuple[Image.Image, str, str]]) -> Image.Image:
    """Panels side by side, each with a title and a detail below it."""
    from PIL import Image as Pil
    from PIL import ImageDraw, ImageFont

    width, height = panels[0][0].size
    title_size = max(16, round(width / 15))
    detail_size = max(13, round(width / 18))
    gap, line = 10, round(title_size * 1.3)
    title_font, detail_font = ImageFont.load_default(title_size), ImageFont.load_default(detail_size)
    size = (len(panels) * width + (len(panels) - 1) * gap, height + 6 + line + round(detail_size * 1.5))
    row = Pil.new("RGB", size, PAPER)
    pen = ImageDraw.Draw(row)
    for index, (panel, title, detail) in enumerate(panels):
        left = index * (width + gap)
        row.paste(panel, (left, 0))
        _write(pen, (left + 1, height + 6), title, title_font, title_size)
        pen.text((left + 1, height + 6 + line), detail, fill=MUTED, font=detail_font)
    return row


def _write(pen: ImageDraw.ImageDraw, at: tuple[int, int], text: str, font: Any, size: int) -> None:
    """Text whose arrows are drawn: Pillow's built-in font has no such glyph."""
    x, top = float(at[0]), at[1]
    middle, head = top + 0.62 * size, 0.22 * size
    for index, part in enumerate(text.split("→")):
        if index:
            end = x + 0.95 * size
            pen.line([(x, middle), (end, middle)], fill=INK, width=max(1, size // 12))
            pen.line(
                [(end - head, middle - head), (end, middle), (end - head, middle + head)],
                fill=INK,
                width=max(1, size // 12),
            )
            x = end
        pen.text((x, top), part, fill=INK, font=font)
        x += pen.textlength(part, font=font)
