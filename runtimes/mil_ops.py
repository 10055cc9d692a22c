"""Operators of MIL in torch: a table op name → small function with MIL's own parameter names.

From the documentation of the operators (coremltools API reference, "MIL Ops", iOS 15 to 18). Vectors of integers
(axes, pads, shapes) arrive as tensors, scalars as Python numbers, `values` of several tensors as a tuple.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from edgevit.runtimes.mil_layers import LAYERS
from edgevit.runtimes.mil_weights import WEIGHTS

Tensor = Any  # or a Python number: elementwise operators take both


def _ints(vector: Tensor) -> list[int]:
    return [int(v) for v in vector.tolist()]


def _tensor(x: Tensor) -> torch.Tensor:
    return x if isinstance(x, torch.Tensor) else torch.tensor(x)


def _cast(x: Tensor, dtype: str) -> Tensor:
    """Floats lose their fraction; what does not fit an integer type wraps in it, as in torch."""
    types = {"fp16": torch.float16, "fp32": torch.float32, "bool": torch.bool}
    return _tensor(x).to(types.get(dtype) or getattr(torch, dtype))


def _select(cond: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(_tensor(cond).bool(), _tensor(a), _tensor(b))


def _reduce(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Axes default to all of them."""

    def reduce(x: Tensor, axes: Tensor | None = None, keep_dims: bool = False) -> Tensor:
        return run(x, list(range(x.ndim)) if axes is None else _ints(axes), keep_dims)

    return reduce


def _pick(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def pick(x: Tensor, axis: int = -1, keep_dims: bool = False, output_dtype: str = "int32") -> Tensor:
        return run(x, axis, keep_dims)

    return pick


def _topk(
    x: Tensor,
    k: int = 1,
    axis: int = -1,
    ascending: bool = False,
    sort: bool = True,
    return_indices: bool = True,
    output_indices_dtype: str = "int32",
) -> tuple[Tensor, Tensor]:
    values, indices = torch.topk(x, x.shape[axis] if k == -1 else k, axis, not ascending, sort)
    return values, indices


def _argsort(x: Tensor, axis: int = -1, ascending: bool = False) -> Tensor:
    return torch.argsort(x, dim=axis, descending=not ascending, stable=True)


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices from the end count backwards."""
    index = _tensor(indices).long()
    return torch.where(index < 0, index + size, index)


def _gather(x: Tensor, indices: Tensor, axis: int = 0, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """`x.shape[:axis] + indices.shape[batch_dims:] + x.shape[axis + 1:]`, rows taken whole."""
    if batch_dims:
        raise NotImplementedError(f"batch_dims={batch_dims}")
    axis %= x.ndim
    index = _wrapped(indices, x.shape[axis])
    taken = x.index_select(axis, index.reshape(-1))
    return taken.reshape(*x.shape[:axis], *index.shape, *x.shape[axis + 1 :])


def _gather_along_axis(x: Tensor, indices: Tensor, axis: int = 0, validate_indices: bool = False) -> Tensor:
    """Entry by entry; other axes of the same length."""
    return torch.gather(x, axis, _wrapped(indices, x.shape[axis]))


def _gather_nd(x: Tensor, indices: Tensor, batch_dims: int = 0, validate_indices: bool = False) -> Tensor:
    """The last axis of `indices` holds coordinates of the first axes of `x`."""
    if batch_dims:
        raise NotImplementedError(f"batch_dims={batch_dims}")
    parts = [_wrapped(part, x.shape[i]) for i, part in enumerate(indices.unbind(-1))]
    return x[tuple(parts)]


def _slice_by_index(
    x: Tensor,
    begin: Tensor,
    end: Tensor,
    stride: Tensor | None = None,
    begin_mask: Tensor | None = None,
    end_mask: Tensor | None = None,
    squeeze_mask: Tensor | None = None,
) -> Tensor:
    """Slices as Python's; a mask stands for "from the start", "to the end", "one, and the axis goes"."""
    steps = [1] * x.ndim if stride is None else _ints(stride)
    if min(steps) < 1:
        raise NotImplementedError(f"stride={steps}")
    first, last, drop = (
        m.tolist() if m is not None else [False] * x.ndim for m in (begin_mask, end_mask, squeeze_mask)
    )
    index: list[Any] = [
        low if one else slice(None if start else low, None if whole else high, step)
        for low, high, step, start, whole, one in zip(_ints(begin), _ints(end), steps, first, last, drop, strict=True)
    ]
    return x[tuple(index)]


def _split(x: Tensor, axis: int, num_splits: int = 0, split_sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    """By sizes, else into equal parts."""
    return torch.split(x, x.shape[axis] // num_splits if split_sizes is None else _ints(split_sizes), axis)


def _several(values: Any) -> list[Tensor]:
    return [_tensor(v) for v in (values if isinstance(values, tuple) else (values,))]


def _concat(values: Any, axis: int, interleave: bool = False) -> Tensor:
    if interleave:
        raise NotImplementedError("interleave=True")
    return torch.cat(_several(values), axis)


def _reshape(x: Tensor, shape: Tensor) -> Tensor:
    """0 keeps the axis at that place, -1 is what is left."""
    sizes = [x.shape[i] if size == 0 else size for i, size in enumerate(_ints(shape))]
    return x.reshape(sizes)


def _expand_dims(x: Tensor, axes: Tensor) -> Tensor:
    """Axes count in the result."""
    x = _tensor(x)
    rank = x.ndim + len(axes)
    for axis in sorted(a % rank for a in _ints(axes)):
        x = x.unsqueeze(axis)
    return x


def _pad(x: Tensor, pad: Tensor, mode: str = "constant", constant_val: float = 0.0) -> Tensor:
    """Pads of the last axes, (before, after) each, in the order of the axes; torch wants the last axis first."""
    pairs = [_ints(pad)[i : i + 2] for i in range(0, len(pad), 2)]
    while pairs and pairs[0] == [0, 0]:
        pairs = pairs[1:]  # torch reflects and replicates at most the last three axes
    flat = [v for pair in reversed(pairs) for v in pair]
    if mode == "constant":
        return torch.nn.functional.pad(x, flat, value=constant_val)
    rank = x.ndim
    while x.ndim < len(pairs) + 1:
        x = x.unsqueeze(0)
    out = torch.nn.functional.pad(x, flat, mode=mode)
    return out.reshape(out.shape[-rank:])


def _tile(x: Tensor, reps: Tensor) -> Tensor:
    return x.repeat(_ints(reps))


def _reverse(x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.flip(list(range(x.ndim)) if axes is None else _ints(axes))


def _cumsum(x: Tensor, axis: int = 0, exclusive: bool = False, reverse: bool = False) -> Tensor:
    x = x.flip(axis) if reverse else x
    total = x.cumsum(axis) - (x if exclusive else 0)
    return total.flip(axis) if reverse else total


def _unary(run: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    return lambda x: run(_tensor(x))


OPERATORS: dict[str, Callable[..., Any]] = {
    "const": lambda val: val,
    # elementwise, two inputs
    "add": lambda x, y: x + y,
    "sub": lambda x, y: x - y,
    "mul": lambda x, y: x * y,
    "real_div": lambda x, y: _tensor(x) / y,
    "floor_div": lambda x, y: torch.floor_divide(_tensor(x), y),
    "pow": lambda x, y: torch.pow(_tensor(x), y),
    "maximum": lambda x, y: torch.maximum(_tensor(x), _tensor(y)),
    "minimum": lambda x, y: torch.minimum(_tensor(x), _tensor(y)),
    "equal": lambda x, y: _tensor(x) == y,
    "not_equal": lambda x, y: _tensor(x) != y,
    "less": lambda x, y: _tensor(x) < y,
    "less_equal": lambda x, y: _tensor(x) <= y,
    "greater": lambda x, y: _tensor(x) > y,
    "greater_equal": lambda x, y: _tensor(x) >= y,
    "logical_and": lambda x, y: torch.logical_and(_tensor(x), _tensor(y)),
    "logical_or": lambda x, y: torch.logical_or(_tensor(x), _tensor(y)),
    # elementwise, one input
    "logical_not": _unary(torch.logical_not),
    "abs": _unary(torch.abs),
    "ceil": _unary(torch.ceil),
    "floor": _unary(torch.floor),
    "round": _unary(torch.round),
    "sign": _unary(torch.sign),
    "sqrt": _unary(torch.sqrt),
    "square": _unary(torch.square),
    "exp": _unary(torch.exp),
    "erf": _unary(torch.erf),
    "sin": _unary(torch.sin),
    "cos": _unary(torch.cos),
    "log": lambda x, epsilon=1e-45: torch.log(_tensor(x) + epsilon),
    "rsqrt": lambda x, epsilon=1e-12: torch.rsqrt(_tensor(x) + epsilon),
    "clip": lambda x, alpha, beta: x.clamp(alpha, beta),
    "cast": _cast,
    "select": _select,
    # reductions and order
    "reduce_sum": _reduce(lambda x, axes, keep: x.sum(axes, keep)),
    "reduce_mean": _reduce(lambda x, axes, keep: x.mean(axes, keep)),
    "reduce_max": _reduce(lambda x, axes, keep: x.amax(axes, keep)),
    "reduce_min": _reduce(lambda x, axes, keep: x.amin(axes, keep)),
    "reduce_l2_norm": _reduce(lambda x, axes, keep: x.square().sum(axes, keep).sqrt()),
    "reduce_log_sum_exp": _reduce(lambda x, axes, keep: x.logsumexp(axes, keep)),
    "reduce_argmax": _pick(torch.argmax),
    "reduce_argmin": _pick(torch.argmin),
    "topk": _topk,
    "argsort": _argsort,
    "cumsum": _cumsum,
    # places and shapes
    "gather": _gather,
    "gather_along_axis": _gather_along_axis,
    "gather_nd": _gather_nd,
    "slice_by_index": _slice_by_index,
    "split": _split,
    "concat": _concat,
    "stack": lambda values, axis: torch.stack(_several(values), axis),
    "reshape": _reshape,
    "transpose": lambda x, perm: x.permute(_ints(perm)),
    "expand_dims": _expand_dims,
    "squeeze": lambda x, axes=None: x.squeeze() if axes is None else x.squeeze(_ints(axes)),
    "tile": _tile,
    "pad": _pad,
    "reverse": _reverse,
    "fill_like": lambda ref_tensor, value=0.0: torch.full(ref_tensor.shape, value),
    **LAYERS,
    **WEIGHTS,
}
