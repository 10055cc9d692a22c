"""The layers that can be quantized: Linear and Conv nodes of a traced program with constant weights."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional

from edgevit.export.rewrite import Node, attribute
from edgevit.quant.flow import groups
from edgevit.stages import Refusal

if TYPE_CHECKING:
    from torch.fx import GraphModule

LINEAR = torch.ops.aten.linear.default
CONVS = (torch.ops.aten.conv2d.default, torch.ops.aten.conv2d.padding)
WRAPPERS = ("model.", "stem.model.", "head.model.")  # what tracing and reduction put around the user's module


@dataclass(frozen=True)
class Layer:
    """A Linear or convolution. weight: `[out, in / groups, ...]`; bias: `[out]` or None.

    region: its label (`edgevit.quant.regions`), where the scheme tells regions apart.
    """

    node: Node
    name: str
    weight: torch.Tensor
    bias: torch.Tensor | None
    region: str = ""

    @property
    def is_conv(self) -> bool:
        """A convolution's channels are axis 1, a Linear's the last."""
        return self.node.target is not LINEAR

    @property
    def kind(self) -> str:
        """As in `QuantScheme.layers` and `.outputs`."""
        return "conv" if self.is_conv else "linear"

    @property
    def groups(self) -> int:
        """Of a convolution; 1 for a Linear."""
        return groups(self.node)

    @property
    def inputs(self) -> int:
        """Input channels."""
        return self.weight.shape[1] * self.groups

    @property
    def is_matrix(self) -> bool:
        """Each output is a matrix product of the inputs at one place: a Linear, a 1x1 convolution of one group."""
        return not self.is_conv or (self.groups == 1 and self.weight[0, 0].numel() == 1 and self._steps == 1)

    @property
    def _steps(self) -> int:
        stride = self.node.args[3] if len(self.node.args) > 3 else 1
        return max(stride) if isinstance(stride, list | tuple) else int(stride)

    def rows(self, values: torch.Tensor) -> torch.Tensor:
        """Inputs or outputs as `[n, C]`."""
        values = values.movedim(1, -1) if self.is_conv else values
        return values.reshape(-1, values.shape[-1])

    def __call__(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        """The layer with another weight and bias: `[..., in]` → `[..., out]`, or maps `[B, in, H, W]`."""
        if not self.is_conv:
            return functional.linear(x, weight, bias)
        return cast(torch.Tensor, self.node.target(x, weight, bias, *self.node.args[3:]))

    def channels(self, vector: torch.Tensor) -> torch.Tensor:
        """A value per channel `[C]`, so that it broadcasts over this layer's input or output."""
        return vector.reshape(-1, 1, 1) if self.is_conv else vector

    def columns(self, scale: torch.Tensor) -> torch.Tensor:
        """A factor per input channel `[in]`, so that it broadcasts over the weight."""
        rows = scale.reshape(self.groups, 1, -1).expand(-1, len(self.weight) // self.groups, -1)
        return rows.reshape(*self.weight.shape[:2], *[1] * (self.weight.ndim - 2))

    def column_peak(self) -> torch.Tensor:
        """Largest magnitude of the weights that each input channel meets, `[in]`."""
        peak = self.weight.abs().flatten(2).amax(-1) if self.is_conv else self.weight.abs()
        return peak.reshape(self.groups, -1, peak.shape[1]).amax(1).flatten()


@dataclass(frozen=True)
class Group:
    """Layers that read one tensor: they share its quantizer and its equalization."""

    source: Node
    layers: tuple[Layer, ...]

    @property
    def is_conv(self) -> bool:
        """How `source` is laid out; mixed readers have no equalization."""
        return any(layer.is_conv for layer in self.layers)

    @property
    def is_mixed(self) -> bool:
        """Convolutions and Linears read the same tensor, each along its own axis."""
        return len({layer.is_conv for layer in self.layers}) > 1


def find(module: GraphModule, kinds: tuple[str, ...] = ("linear", "conv")) -> tuple[list[Group], list[Refusal]]:
    """Quantizable layers grouped by the tensor they read, in program order, and those that are not, with the reason."""
    groups: dict[Node, list[Layer]] = {}
    refused = []
    variable: set[Node] = set()  # what depends on the images
    for node in module.graph.nodes:
        if node.op == "placeholder" or not variable.isdisjoint(node.all_input_nodes):
            variable.add(node)
        if node.target is not LINEAR and node.target not in CONVS:
            continue
        name = layer_name(node)
        weight = attribute(module, node.args[1])
        has_bias = len(node.args) > 2 and node.args[2] is not None
        bias = attribute(module, node.args[2]) if has_bias else None
        if weight is None:
            refused.append(Refusal(name, "its weight is computed, not a constant"))
        elif has_bias and bias is None:
            refused.append(Refusal(name, "its bias is computed, not a constant"))
        elif node.args[0] not in variable:
            refused.append(Refusal(name, "it reads a constant, so engines compute it once, when they load"))
        elif ("linear" if node.target is LINEAR else "conv") not in kinds:
            refused.append(Refusal(name, "in 8 bits this target is no faster here"))
        else:
            groups.setdefault(node.args[0], []).append(Layer(node, name, weight, bias))
    return [Group(source, tuple(layers)) for source, layers in groups.items()], refused


def layer_name(node: Node) -> str:
    """The module path a node came from, else its own name."""
    stack = list((node.meta.get("nn_module_stack") or {}).values())
    path = str(stack[-1][0]) if stack else ""
    for wrapper in WRAPPERS:
        path = path.removeprefix(wrapper)
    while ".block." in path:  # reduction wraps an adapter's block, which wraps the library's
        path = path.replace(".block.", ".")
    return path or str(node.name)
