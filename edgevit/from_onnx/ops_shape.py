"""Shapes, slices and gathers: as https://onnx.ai/onnx/operators says."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from edgevit.from_onnx.ops_math import Attributes


def ints(values: np.ndarray | None) -> list[int]:
    """An array as Python ints."""
    return [] if values is None else [int(v) for v in values.reshape(-1)]


def reshape(attributes: Attributes, x: Tensor, shape: np.ndarray) -> Tensor:
    """A 0 keeps the dimension at its place, unless `allowzero`."""
    sizes = ints(shape)
    if not attributes.get("allowzero", 0):
        sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(sizes)]
    return x.reshape(sizes)


def flatten(attributes: Attributes, x: Tensor) -> Tensor:
    """Two dimensions, cut at `axis`."""
    axis = attributes.get("axis", 1)
    axis = axis + x.ndim if axis < 0 else axis
    rows = int(np.prod([int(s) for s in x.shape[:axis]], dtype=np.int64))
    return x.reshape(rows, -1)


def squeeze(attributes: Attributes, x: Tensor, axes: np.ndarray | None = None) -> Tensor:
    """Without the named dimensions of one, or all."""
    if axes is None:
        return x.squeeze()
    wrong = [a for a in ints(axes) if x.shape[a] != 1]
    if wrong:
        raise ValueError(f"axis {wrong[0]} has {x.shape[wrong[0]]} elements, and is not one")
    return x.squeeze(tuple(ints(axes)))


def unsqueeze(attributes: Attributes, x: Tensor, axes: np.ndarray) -> Tensor:
    """With new dimensions of one."""
    rank = x.ndim + axes.size
    for axis in sorted(a % rank for a in ints(axes)):
        x = x.unsqueeze(axis)
    return x


def transpose(attributes: Attributes, x: Tensor) -> Tensor:
    """Permuted, or reversed."""
    return x.permute(attributes.get("perm", list(range(x.ndim))[::-1]))


def concat(attributes: Attributes, *values: Tensor) -> Tensor:
    """Joined along `axis`."""
    return torch.cat(values, attributes["axis"])


def split(attributes: Attributes, x: Tensor, sizes: np.ndarray | None = None) -> tuple[Tensor, ...]:
    """Into parts of the named sizes, or a number of equal ones (the last may be smaller)."""
    axis = attributes.get("axis", 0)
    if sizes is not None:
        return torch.split(x, ints(sizes), axis)
    count = attributes["num_outputs"]
    return torch.split(x, -(-x.shape[axis] // count), axis)


def slice_(
    attributes: Attributes,
    x: Tensor,
    starts: np.ndarray,
    ends: np.ndarray,
    axes: np.ndarray | None = None,
    steps: np.ndarray | None = None,
) -> Tensor:
    """Python's slices; a negative step reverses."""
    places = ints(axes) if axes is not None else list(range(starts.size))
    strides = ints(steps) if steps is not None else [1] * starts.size
    for axis, start, end, step in zip(places, ints(starts), ints(ends), strides, strict=True):
        size = int(x.shape[axis])
        if step > 0:
            first, last, step = slice(start, end, step).indices(size)
            if (first, last, step) != (0, size, 1):
                x = torch.ops.aten.slice.Tensor(x, axis, first, max(first, last), step)
        else:
            taken = range(*slice(start, end, step).indices(size))
            x = x.index_select(axis, torch.tensor(list(taken), dtype=torch.int64))
    return x


def expand(attributes: Attributes, x: Tensor, shape: np.ndarray) -> Tensor:
    """Broadcast with a shape, both ways."""
    both = np.broadcast_shapes(tuple(x.shape), tuple(ints(shape)))
    return x.expand(both)


def tile(attributes: Attributes, x: Tensor, repeats: np.ndarray) -> Tensor:
    """Repeated along each axis."""
    return x.repeat(ints(repeats))


def pad(
    attributes: Attributes,
    x: Tensor,
    pads: np.ndarray,
    value: np.ndarray | None = None,
    axes: np.ndarray | None = None,
) -> Tensor:
    """Around each axis; ONNX lists all starts before all ends, torch pairs from the last axis."""
    amounts = ints(pads)
    half = len(amounts) // 2
    places = [a % x.ndim for a in ints(axes)] if axes is not None else list(range(half))
    before = dict(zip(places, amounts[:half], strict=True))
    after = dict(zip(places, amounts[half:], strict=True))
    paired = [n for axis in reversed(range(x.ndim)) for n in (before.get(axis, 0), after.get(axis, 0))]
    while paired and paired[-2:] == [0, 0]:
        paired = paired[:-2]
    mode = {"constant": "constant", "reflect": "reflect", "edge": "replicate", "wrap": "circular"}[
        attributes.get("mode", "constant")
    ]
    if not paired:
        return x
    fill = 0.0 if value is None else float(value.reshape(()))
    return functional.pad(x, paired, mode, fill) if mode == "constant" else functional.pad(x, paired, mode)


def whole(indices: Tensor, size: int) -> Tensor:
    """Indices from the front: negative ones count from the end."""
    return torch.where(indices < 0, indices + size, indices).to(torch.int64)


def flat_places(indices: Tensor, sizes: list[int]) -> Tensor:
    """Index tuples `[..., depth]` into axes of these sizes → places in the axes laid end to end, `[...]`."""
    flat = torch.zeros_like(indices[..., 0])
    for i, size in enumerate(sizes):
        flat = flat * size + whole(indices[..., i], size)
    return flat


def gather(attributes: Attributes, x: Tensor, indices: Any) -> Tensor:
    """`x` at the indices along `axis`, whose place their shape takes."""
    axis = attributes.get("axis", 0) % x.ndim
    size = int(x.shape[axis])
    if isinstance(indices, np.ndarray):
        if indices.size and not -size <= int(indices.min()) <= int(indices.max()) < size:
            raise ValueError(f"indices {indices.min()} to {indices.max()} are outside the {size} of axis {axis}")
        if indices.ndim == 0:
            return x.select(axis, int(indices))
        flat = torch.tensor((indices.reshape(-1) % size).tolist(), dtype=torch.int64)
    else:
        flat = whole(indices, size).reshape(-1)
    return x.index_select(axis, flat).reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def gather_elements(attributes: Attributes, x: Tensor, indices: Any) -> Tensor:
    """One element for each index, along `axis`."""
    axis = attributes.get("axis", 0)
    return torch.gather(x, axis, whole(torch.as_tensor(indices), int(x.shape[axis])))


def gather_nd(attributes: Attributes, x: Tensor, indices: Any) -> Tensor:
    """The slices of `x` at index tuples: `[*batch, ..., depth]`, by one index into the flattened leading axes."""
    indices = torch.as_tensor(indices)
    batch, depth = attributes.get("batch_dims", 0), int(indices.shape[-1])
    sizes = [int(s) for s in x.shape[batch : batch + depth]]
    flat = flat_places(indices, sizes)
    groups = int(np.prod([int(s) for s in x.shape[:batch]], dtype=np.int64))
    rest = [int(s) for s in x.shape[batch + depth :]]
    rows = x.reshape(groups, int(np.prod(sizes, dtype=np.int64)), -1)
    taken = flat.reshape(groups, -1, 1).expand(-1, -1, rows.shape[-1])
    return torch.gather(rows, 1, taken).reshape(*indices.shape[:-1], *rest)


def trilu(attributes: Attributes, x: Tensor, k: np.ndarray | None = None) -> Tensor:
    """Upper or lower triangle."""
    diagonal = 0 if k is None else int(k.reshape(()))
    return torch.triu(x, diagonal) if attributes.get("upper", 1) else torch.tril(x, diagonal)


def depth_to_space(attributes: Attributes, x: Tensor) -> Tensor:
    """Channels become pixels: `[B, C * s * s, H, W]` → `[B, C, H * s, W * s]`."""
    s = attributes["blocksize"]
    b, c, h, w = x.shape
    if attributes.get("mode", "DCR") == "CRD":
        return x.reshape(b, c // s**2, s, s, h, w).permute(0, 1, 4, 2, 5, 3).reshape(b, c // s**2, h * s, w * s)
    return x.reshape(b, s, s, c // s**2, h, w).permute(0, 3, 4, 1, 5, 2).reshape(b, c // s**2, h * s, w * s)


def space_to_depth(attributes: Attributes, x: Tensor) -> Tensor:
    """Pixels become channels."""
    s = attributes["blocksize"]
    b, c, h, w = x.shape
    return x.reshape(b, c, h // s, s, w // s, s).permute(0, 3, 5, 1, 2, 4).reshape(b, c * s * s, h // s, w // s)
