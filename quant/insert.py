"""Write a decided quantization into a program: Q/DQ pairs, integer weights, equalizations folded where they fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch
import torch.ao.quantization.fx._decomposed

from edgevit.export import float8
from edgevit.export.output_channels import scale_channels
from edgevit.export.rewrite import Node, attribute, call, constant
from edgevit.quant.correct import Quantized
from edgevit.quant.equalize import Equalization
from edgevit.quant.fold import norm
from edgevit.quant.layers import Group, Layer
from edgevit.quant.ranges import TINY
from edgevit.quant.scheme import Affine, QuantScheme

if TYPE_CHECKING:
    from torch.fx import GraphModule

QDQ = torch.ops.quantized_decomposed
FLOAT = torch.float32
STORED = {"uint8": torch.uint8, "int8": torch.int8, "uint16": torch.uint16, "int16": torch.int16}


def insert(
    module: GraphModule,
    groups: Sequence[Group],
    quantized: Mapping[str, Quantized],
    ends: Mapping[str, Affine],
    makers: Mapping[str, str],
    scheme: QuantScheme,
) -> None:
    """Rewrite the program in place.

    By node name: quantized: layers; ends: outputs and residual inputs; makers: as in `Calibration`.
    """
    shrunk: dict[str, torch.Tensor] = {}  # output channels of a producer that are divided
    work: list[tuple[list[Layer], Node]] = []
    for group in groups:
        active = [layer for layer in group.layers if layer.node.name in quantized]
        if not active:
            continue
        choice, value = quantized[active[0].node.name].choice, group.source
        if choice is not None and choice.equalization.moves:
            maker = makers.get(group.source.name)
            whole = len(active) == len(group.layers)
            if whole and maker is not None and choice.equalization.scale is not None:
                shrunk[maker] = choice.equalization.scale
            else:
                value = _divided(module, group, choice.equalization, whole)
        work.append((active, value))
    for active, value in work:
        choice = quantized[active[0].node.name].choice
        # in `ends`: quantized where it was made
        x = (
            value
            if choice is None or value.name in ends
            else _qdq(module, active[0].node, value, choice.quantizer, scheme)
        )
        for layer in active:
            state = quantized[layer.node.name]
            if layer.node.name in shrunk:
                state = _shrink(state, shrunk.pop(layer.node.name))
            _write(module, layer.node, state, x, scheme)
    for name, scale in shrunk.items():
        scale_channels(module, next(n for n in module.graph.nodes if n.name == name), 1 / scale.double())
    for node in list(module.graph.nodes):
        if node.name in ends:
            users = list(node.users)
            with_end = _qdq(module, node.next, node, ends[node.name], scheme)
            for user in users:
                user.replace_input_with(node, with_end)


def _divided(module: GraphModule, group: Group, equalization: Equalization, whole: bool) -> Node:
    """The source behind its equalization: in a LayerNorm's own gain and offset, else as one multiplication."""
    source, layer = group.source, group.layers[0]
    centre = equalization.centre
    scale = torch.ones(1) if equalization.scale is None else equalization.scale
    if whole and norm(group):
        gain, offset = (attribute(module, source.args[i]) if len(source.args) > i else None for i in (2, 3))
        gain = (1 / scale) if gain is None else gain / scale
        if centre is not None:
            offset = -centre if offset is None else offset - centre
        new_offset = None if offset is None else constant(module, source, "offset", offset / scale)
        source.args = (*source.args[:2], constant(module, source, "gain", gain), new_offset, *source.args[4:])
        return source
    value = source
    if centre is not None:
        shift = constant(module, layer.node, "centre", layer.channels(centre))
        value = call(module, layer.node, torch.ops.aten.sub.Tensor, value, shift)
    if equalization.scale is None:
        return value
    factor = constant(module, layer.node, "smooth", layer.channels(1 / scale))
    return call(module, layer.node, torch.ops.aten.mul.Tensor, value, factor)


def _shrink(state: Quantized, scale: torch.Tensor) -> Quantized:
    """The same integers; only their scale and the bias know that the outputs are divided."""
    bias = None if state.bias is None else state.bias / scale
    return replace(state, scale=state.scale / scale.reshape(-1, *[1] * (state.scale.ndim - 1)), bias=bias)


def _qdq(module: GraphModule, before: Node, value: Node, q: Affine, scheme: QuantScheme) -> Node:
    """Value → quantize_per_tensor → dequantize_per_tensor."""
    assert scheme.activations is not None
    if q.float8:
        scale = constant(module, before, "scale", torch.tensor(q.scale))
        rounded = call(module, before, float8.QUANTIZE, value, scale)
        return call(module, before, float8.DEQUANTIZE, rounded, scale)
    arguments = (q.scale, q.zero_point, q.low, q.high, STORED[scheme.activations])
    quantized = call(module, before, QDQ.quantize_per_tensor.default, value, *arguments)
    return call(module, before, QDQ.dequantize_per_tensor.default, quantized, *arguments)


def _write(module: GraphModule, node: Node, state: Quantized, x: Node, scheme: QuantScheme) -> None:
    """The layer on a constant weight as it is stored → dequantized, and a bias."""
    weight = _weight(module, node, state)
    bias = None
    if state.bias is not None and scheme.integer_bias and state.choice is not None:
        step = (state.scale * state.choice.quantizer.scale).clamp_min(TINY * TINY)
        integers = (state.bias.double() / step).round().clamp(-(2**31), 2**31 - 1).to(torch.int32)
        bias = _channels(module, node, "bias", integers, step, torch.int32)
    elif state.bias is not None:
        bias = constant(module, node, "bias", state.bias)
    rest = node.args[3:]
    node.args = (x, weight, bias, *rest)


def _weight(module: GraphModule, node: Node, state: Quantized) -> Node:
    """8-bit floats, integers in groups of inputs, or integers with one scale for each output channel."""
    values, scale = state.integers, state.scale
    if scale.ndim == 1 and values.dtype is torch.int8:
        return _channels(module, node, "weight", values, scale, torch.int8)
    nodes = constant(module, node, "weight_values", values), constant(module, node, "weight_scale", scale)
    if values.dtype is float8.FLOAT8:
        return call(module, node, float8.DEQUANTIZE, *nodes)
    group = values.shape[1] // scale.shape[1]
    return call(module, node, QDQ.dequantize_per_channel_group.default, *nodes, None, -8, 7, torch.int8, group, FLOAT)


def _channels(
    module: GraphModule, node: Node, name: str, integers: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype
) -> Node:
    limit = torch.iinfo(dtype).max
    nodes = (
        constant(module, node, f"{name}_int", integers),
        constant(module, node, f"{name}_scale", scale),
        constant(module, node, f"{name}_zero", torch.zeros(len(scale), dtype=torch.int64)),
    )
    return call(module, node, QDQ.dequantize_per_channel.default, *nodes, 0, -limit, limit, dtype)
