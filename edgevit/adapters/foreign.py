"""A plain Vision Transformer that came as ONNX, in parts. What a part is, the file itself shows when it is run.

stem   the tokens that change with the image are the patches; those in front that do not are prefix tokens
blocks `edgevit.from_onnx.blocks`
head   reads prefix tokens alone ("token"), or means over tokens ("avg"), or gets every token back ("none")
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgevit.adapters.pooling import weighted_mean
from edgevit.distance import relative_error
from edgevit.errors import EdgeVitError, LoadError, UnsupportedModel
from edgevit.stages import Stage, VitModel

if TYPE_CHECKING:
    from collections.abc import Callable

    from edgevit.from_onnx.dataflow import Dataflow, Segment
    from edgevit.from_onnx.program import ForeignModel

SAME = 1e-4  # relative, float32: the same sum in another order


def adapt(module: nn.Module) -> VitModel | None:
    """Take an imported ONNX model apart; None for anything else. Raises UnsupportedModel, naming the node."""
    from edgevit.from_onnx.program import ForeignModel

    if not isinstance(module, ForeignModel):
        return None
    if module.batch not in (None, 1):
        raise UnsupportedModel(
            f"{module.file} was exported for batch {module.batch}, and is taken apart one image at a time; export it "
            "for batch 1, or for any"
        )
    try:
        return _parts(module)
    except LoadError as error:  # a node that does not run on what it is tried with
        raise UnsupportedModel(f"{module.file}: its tokens cannot be reduced: {error}; it exports dense") from error


def _parts(module: ForeignModel) -> VitModel:
    from edgevit.from_onnx.blocks import blocks
    from edgevit.from_onnx.dataflow import Dataflow

    flow = Dataflow(module)
    with torch.no_grad():
        found, first, last = blocks(flow)
        stem = ForeignStem(module, flow.segment((flow.image,), first))
        prefix, grid = patches(flow, stem, module.ends.size)
        head = ForeignHead(flow, flow.segment((last,), flow.output))
        pooling, class_token = reading(head, prefix, flow.shapes[last])
    return VitModel(
        module=module,
        family="plain ViT from ONNX",
        stem=stem,
        stages=(Stage(tuple(found), prefix, grid, restores=pooling == "none"),),
        head=head,
        class_token=class_token,
        image_size=module.ends.size,
        pooling=pooling,
        positional=any(block.positional for block in found),
    )


class ForeignStem(nn.Module):
    """Images `[B, 3, H, W]` → tokens `[B, P + N, C]`."""

    def __init__(self, module: ForeignModel, segment: Segment) -> None:
        super().__init__()
        self.segment, self.last = segment, module.ends.last
        self.check_batch = module.check_batch

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """All that lies in front of the first block."""
        self.check_batch(images)
        out: torch.Tensor = self.segment(images.permute(0, 2, 3, 1) if self.last else images)
        return out


class ForeignHead(nn.Module):
    """What lies behind the last block; a mean over tokens counts each as often as its size says."""

    def __init__(self, flow: Dataflow, segment: Segment) -> None:
        super().__init__()
        self.segment = segment
        self.means = {step.node.output[0]: _keeps(step) for step in segment.steps if _is_mean(flow, step)}

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Tokens `[B, M, C]`, sizes `[B, M]` or None → what the model returns."""
        instead: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {}
        if size is not None:
            instead = {name: Mean(size, keeps) for name, keeps in self.means.items()}
        out: torch.Tensor = self.segment(x, instead=instead)
        return out


class Mean:
    """Mean over the last of the tokens that have a size: those in front were cut off before."""

    def __init__(self, size: torch.Tensor, keeps: bool) -> None:
        self.size, self.keeps = size, keeps

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, M', C]` → `[B, C]` or `[B, 1, C]`."""
        mean = weighted_mean(x, self.size[:, self.size.shape[1] - x.shape[1] :])
        return mean.unsqueeze(1) if self.keeps else mean


def _is_mean(flow: Dataflow, step: Any) -> bool:
    """ReduceMean over the tokens of `[B, M, C]`."""
    shape = flow.shapes.get(step.node.input[0], ())
    if step.node.op_type != "ReduceMean" or len(shape) != 3 or len(step.fixed) < 2 or step.fixed[1] is None:
        return False
    return [int(axis) % 3 for axis in step.fixed[1].reshape(-1)] == [1]


def _keeps(step: Any) -> bool:
    return bool(step.attributes.get("keepdims", 1))


def patches(flow: Dataflow, stem: ForeignStem, size: tuple[int, int]) -> tuple[int, tuple[int, int]]:
    """How many prefix tokens there are, and the patches (down, across), by changing an image and looking what moves."""
    generator = torch.Generator().manual_seed(3)
    one, other = (torch.randn(1, 3, *size, generator=generator) for _ in range(2))
    tokens = stem(one)
    still = (tokens == stem(other)).all(dim=-1)[0]
    prefix = int(still.int().cumprod(0).sum())
    count = len(still) - prefix
    down = round(math.sqrt(count * size[0] / size[1]))
    step = flow.maker(stem.segment.output)
    if still[prefix:].any() or not down or count % down:
        flow.refuse(
            step,
            f"{count} of its {len(still)} tokens change with the image; a prefix and then rows of patches were "
            "expected",
        )
    across = count // down
    high, wide = size[0] // down, size[1] // across
    for row, column in ((down - 1, 0), (0, across - 1)):
        changed = one.clone()
        place = slice(row * high, (row + 1) * high), slice(column * wide, (column + 1) * wide)
        changed[:, :, *place] = other[:, :, *place]
        moved = (stem(changed) - tokens).abs().sum(dim=-1)[0].argmax()
        if int(moved) != prefix + row * across + column:
            flow.refuse(
                step,
                f"patch {row},{column} of {down}x{across} is token {int(moved)}; rows from the top were expected",
            )
    return prefix, (down, across)


def reading(head: ForeignHead, prefix: int, shape: tuple[int, ...]) -> tuple[str, bool]:
    """How the head reads tokens (`VitModel.pooling`), and whether it reads the first as a class token."""
    generator = torch.Generator().manual_seed(4)
    count, width = shape[1], shape[2]
    size = torch.ones(1, count - max(1, (count - prefix) // 3))
    size[0, prefix] += count - size.shape[1]  # one patch stands for all that are missing
    tokens = torch.randn(1, size.shape[1], width, generator=generator)
    whole = tokens.repeat_interleave(size[0].int(), dim=1)
    other = torch.cat([tokens[:, :prefix], torch.randn(1, size.shape[1] - prefix, width, generator=generator)], dim=1)
    want = head(whole, None)
    first = torch.cat([torch.randn(1, 1, width, generator=generator), whole[:, 1:]], dim=1)
    reads_first = prefix > 0 and relative_error(head(first, None), want) > SAME
    for pooling, fewer, sizes in (("token", other, None), ("avg", tokens, size)):
        try:
            got = head(fewer, sizes)
        except EdgeVitError:  # a shape that counts the tokens
            break
        if got.shape == want.shape and relative_error(got, want) <= SAME:
            return pooling, reads_first
    return "none", reads_first
