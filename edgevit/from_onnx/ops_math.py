"""Arithmetic, reductions, products: as https://onnx.ai/onnx/operators says."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from functools import reduce
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

Attributes = Mapping[str, Any]
Value = Any
"""A tensor, or a number where the table says so."""

DTYPES = {
    1: torch.float32, 2: torch.uint8, 3: torch.int8, 5: torch.int16, 6: torch.int32, 7: torch.int64, 9: torch.bool,
}  # fmt: skip

UNARY: dict[str, Callable[[Tensor], Tensor]] = {
    "Abs": torch.abs, "Neg": torch.neg, "Sign": torch.sign, "Reciprocal": torch.reciprocal, "Sqrt": torch.sqrt,
    "Exp": torch.exp, "Log": torch.log, "Erf": torch.erf, "Sin": torch.sin, "Cos": torch.cos, "Tan": torch.tan,
    "Atan": torch.atan, "Tanh": torch.tanh, "Sigmoid": torch.sigmoid, "Relu": torch.relu, "Not": torch.logical_not,
    "Floor": torch.floor, "Ceil": torch.ceil, "Round": torch.round, "IsNaN": torch.isnan, "Identity": lambda x: x,
    "Softplus": functional.softplus, "Softsign": functional.softsign, "HardSwish": functional.hardswish,
    "Mish": functional.mish, "Selu": functional.selu,
    "GlobalLpPool": lambda x: x.flatten(2).norm(dim=-1).reshape(*x.shape[:2], *[1] * (x.ndim - 2)),
}  # fmt: skip


def is_integer(value: Value) -> bool:
    """Whether ONNX's type of the value is an integer."""
    if isinstance(value, Tensor):
        return not value.dtype.is_floating_point and value.dtype != torch.bool
    return isinstance(value, int) and not isinstance(value, bool)


def divide(a: Value, b: Value) -> Tensor:
    """Integers are cut towards zero."""
    if is_integer(a) and is_integer(b):
        return torch.div(torch.as_tensor(a), torch.as_tensor(b), rounding_mode="trunc")
    quotient: Tensor = a / b
    return quotient


def maximum(a: Value, b: Value) -> Tensor:
    """The larger of two."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.maximum(a, b)
    return a.clamp_min(b) if isinstance(a, Tensor) else b.clamp_min(a)


def minimum(a: Value, b: Value) -> Tensor:
    """The smaller of two."""
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return torch.minimum(a, b)
    return a.clamp_max(b) if isinstance(a, Tensor) else b.clamp_max(a)


BINARY: dict[str, Callable[[Value, Value], Tensor]] = {
    "Add": operator.add, "Sub": operator.sub, "Mul": operator.mul, "Div": divide, "Pow": operator.pow,
    "Equal": operator.eq, "Less": operator.lt, "LessOrEqual": operator.le, "Greater": operator.gt,
    "GreaterOrEqual": operator.ge, "And": operator.and_, "Or": operator.or_, "Xor": operator.xor,
}  # fmt: skip
VARIADIC: dict[str, Callable[[Value, Value], Tensor]] = {"Sum": operator.add, "Max": maximum, "Min": minimum}


def unary(run: Callable[[Tensor], Tensor]) -> Callable[..., Tensor]:
    """A function of one tensor, in the table's form."""
    return lambda _, x: run(x)


def binary(run: Callable[[Value, Value], Tensor]) -> Callable[..., Tensor]:
    """A function of two, in the table's form."""
    return lambda _, a, b: run(a, b)


def variadic(run: Callable[[Value, Value], Tensor]) -> Callable[..., Tensor]:
    """A function of two for any number."""
    return lambda _, *values: reduce(run, values)


def mean(attributes: Attributes, *values: Value) -> Tensor:
    """The mean of several tensors."""
    total: Tensor = reduce(operator.add, values) / len(values)
    return total


def where(attributes: Attributes, condition: Value, a: Value, b: Value) -> Tensor:
    """`a` where the condition holds, else `b`."""
    return torch.where(torch.as_tensor(condition, dtype=torch.bool), a, b)


def clip(attributes: Attributes, x: Tensor, low: np.ndarray | None = None, high: np.ndarray | None = None) -> Tensor:
    """Between two bounds, each of which may be absent."""
    bounds = [None if bound is None else bound.item() for bound in (low, high)]
    return x if bounds == [None, None] else torch.clamp(x, *bounds)


def cast(attributes: Attributes, x: Tensor) -> Tensor:
    """To another type."""
    dtype = DTYPES.get(attributes["to"])
    if dtype is None:
        raise ValueError(f"type {attributes['to']} is not imported")
    return x.to(dtype)


def cast_like(attributes: Attributes, x: Tensor, like: Tensor) -> Tensor:
    """To the type of another tensor."""
    return x.to(like.dtype)


def elu(attributes: Attributes, x: Tensor) -> Tensor:
    """Exponential linear unit."""
    return functional.elu(x, attributes.get("alpha", 1.0))


def leaky_relu(attributes: Attributes, x: Tensor) -> Tensor:
    """Leaky rectifier."""
    return functional.leaky_relu(x, attributes.get("alpha", 0.01))


def prelu(attributes: Attributes, x: Tensor, slope: Tensor) -> Tensor:
    """Rectifier with a learned slope, which broadcasts."""
    return torch.where(x < 0, x * slope, x)


def hard_sigmoid(attributes: Attributes, x: Tensor) -> Tensor:
    """The piecewise linear sigmoid."""
    return torch.clamp(attributes.get("alpha", 0.2) * x + attributes.get("beta", 0.5), 0.0, 1.0)


def gelu(attributes: Attributes, x: Tensor) -> Tensor:
    """Exact, or its tanh approximation."""
    return functional.gelu(x, approximate=attributes.get("approximate", "none"))


def softmax(attributes: Attributes, x: Tensor) -> Tensor:
    """Over one axis (opset 13 and later; older ones are converted)."""
    return torch.softmax(x, attributes.get("axis", -1))


def log_softmax(attributes: Attributes, x: Tensor) -> Tensor:
    """Its logarithm."""
    return torch.log_softmax(x, attributes.get("axis", -1))


def lp_normalization(attributes: Attributes, x: Tensor) -> Tensor:
    """Divided by its length along one axis."""
    length: Tensor = torch.linalg.vector_norm(x, attributes.get("p", 2), attributes.get("axis", -1), keepdim=True)
    return x / length


def _product(x: Tensor, axes: tuple[int, ...], keepdim: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = torch.prod(x, axis, keepdim)
    return x


REDUCTIONS: dict[str, Callable[..., Tensor]] = {
    "Mean": torch.mean, "Sum": torch.sum, "Max": torch.amax, "Min": torch.amin, "Prod": _product,
    "L1": lambda x, axes, keep: x.abs().sum(axes, keep), "L2": lambda x, axes, keep: x.norm(2, axes, keep),
    "SumSquare": lambda x, axes, keep: x.square().sum(axes, keep), "LogSumExp": torch.logsumexp,
    "LogSum": lambda x, axes, keep: x.sum(axes, keep).log(),
}  # fmt: skip


def reduction(run: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Over the axes of the second input, or all."""

    def over(attributes: Attributes, x: Tensor, axes: np.ndarray | None = None) -> Tensor:
        if axes is None or axes.size == 0:
            if attributes.get("noop_with_empty_axes", 0):
                return x
            axes = np.arange(x.ndim)
        return run(x, tuple(int(a) for a in axes.reshape(-1)), bool(attributes.get("keepdims", 1)))

    return over


def _arg(run: Callable[..., Tensor], attributes: Attributes, x: Tensor) -> Tensor:
    if attributes.get("select_last_index", 0):
        raise ValueError("select_last_index is not imported")
    return run(x, attributes.get("axis", 0), bool(attributes.get("keepdims", 1)))


def arg_max(attributes: Attributes, x: Tensor) -> Tensor:
    """Place of the largest."""
    return _arg(torch.argmax, attributes, x)


def arg_min(attributes: Attributes, x: Tensor) -> Tensor:
    """Place of the smallest."""
    return _arg(torch.argmin, attributes, x)


def cum_sum(attributes: Attributes, x: Tensor, axis: np.ndarray) -> Tensor:
    """Running sum."""
    if attributes.get("exclusive", 0) or attributes.get("reverse", 0):
        raise ValueError("exclusive and reverse are not imported")
    return torch.cumsum(x, int(axis.reshape(())))


def top_k(attributes: Attributes, x: Tensor, k: np.ndarray) -> tuple[Tensor, Tensor]:
    """The k largest or smallest, and where they are."""
    largest, ordered = bool(attributes.get("largest", 1)), bool(attributes.get("sorted", 1))
    values, places = torch.topk(x, int(k.reshape(())), attributes.get("axis", -1), largest, ordered)
    return values, places


def matmul(attributes: Attributes, a: Tensor, b: Tensor) -> Tensor:
    """As numpy's."""
    return torch.matmul(a, b)


def gemm(attributes: Attributes, a: Tensor, b: Tensor, c: Tensor | None = None) -> Tensor:
    """`alpha A B + beta C`, either transposed."""
    a = a.T if attributes.get("transA", 0) else a
    b = b.T if attributes.get("transB", 0) else b
    product: Tensor = attributes.get("alpha", 1.0) * (a @ b)
    return product if c is None else product + attributes.get("beta", 1.0) * c


def einsum(attributes: Attributes, *values: Tensor) -> Tensor:
    """Einstein's sum."""
    return torch.einsum(attributes["equation"], *values)
