"""Module → Graph: `torch.export` with one static input, checked by the gate."""

from __future__ import annotations

from typing import TYPE_CHECKING

from edgevit.errors import EdgeVitError, GraphError
from edgevit.export.gate import check_program
from edgevit.export.idle_masks import drop_idle_masks
from edgevit.export.inline_regions import inline_regions
from edgevit.places import remember
from edgevit.quiet import quiet
from edgevit.stages import Checkpoint, Graph, InputSpec

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram
    from torch.fx import Node


def trace(module: nn.Module, inputs: InputSpec) -> Graph:
    """Trace an eager module `[B, 3, H, W] -> [B, ...]`. Raises GraphError when it cannot be static."""
    return Graph(export_program(module, inputs), inputs)


def trace_checkpoint(checkpoint: Checkpoint, inputs: InputSpec) -> Graph:
    """Trace a module, or take an exported program as it is (its input shape is fixed)."""
    if checkpoint.module is not None:
        return trace(checkpoint.module, inputs)
    assert checkpoint.program is not None
    node = next(n for n in checkpoint.program.graph.nodes if n.name in checkpoint.program.graph_signature.user_inputs)
    shape = tuple(node.meta["val"].shape)
    if shape != inputs.shape:
        raise GraphError(
            f"{checkpoint.name} was exported for input {list(shape)}, asked for {list(inputs.shape)}; "
            f"give --batch {shape[0]} and no other --input-size, or export the program again"
        )
    return Graph(export_program(checkpoint.program.module(), inputs), inputs)


def export_program(module: nn.Module, inputs: InputSpec) -> ExportedProgram:
    """`torch.export.export` with our input name, no gradients, and the static gate behind it."""
    import torch

    try:
        with torch.no_grad(), quiet("torch._subclasses.fake_tensor"):  # it logs a traceback before it raises
            program = torch.export.export(Named(module), (torch.zeros(inputs.shape),))
    except EdgeVitError:
        raise
    except (
        RuntimeError,
        AssertionError,
        ValueError,
        TypeError,
        torch._dynamo.exc.TorchDynamoException,
    ) as error:
        text = str(error).strip().split("\n")[0][:240]
        raise GraphError(
            f"torch.export cannot trace {type(module).__name__} at {list(inputs.shape)}: {text}; it must be free of "
            "data-dependent control flow, and take exactly this input size"
        ) from error
    remember(program, module.graph if isinstance(module, torch.fx.GraphModule) else None)
    inline_regions(program)
    drop_idle_masks(program)
    attend_in_four_dimensions(program)
    free_strides(program)
    check_program(program)
    return program


def attend_in_four_dimensions(program: ExportedProgram) -> None:
    """Attention on `[B, H, W, N, d]` (W windows) becomes attention on `[B * H, W, N, d]`: ONNX knows no other.

    Only without a mask, which may broadcast over any of the five.
    """
    import torch

    aten = torch.ops.aten
    for node in list(program.graph.nodes):
        if node.target is not aten.scaled_dot_product_attention.default or node.meta["val"].ndim != 5:
            continue
        if (len(node.args) > 3 and node.args[3] is not None) or node.kwargs.get("attn_mask") is not None:
            continue
        out = node.meta["val"]
        with program.graph.inserting_before(node):
            flat = [_reshaped(program, part, (-1, *part.meta["val"].shape[2:])) for part in node.args[:3]]
        node.args = (*flat, *node.args[3:])
        node.meta["val"] = out.reshape(-1, *out.shape[2:])
        with program.graph.inserting_after(node):
            whole = _reshaped(program, node, tuple(out.shape))
        node.replace_all_uses_with(whole, delete_user_cb=lambda user, whole=whole: user is not whole)
    program.graph_module.recompile()


def _reshaped(program: ExportedProgram, node: Node, shape: tuple[int, ...]) -> Node:
    import torch

    value = node.meta["val"].reshape(shape)
    new: Node = program.graph.call_function(torch.ops.aten.reshape.default, (node, list(value.shape)))
    new.meta.update(node.meta, val=value)
    return new


def free_strides(program: ExportedProgram) -> None:
    """Make the program independent of the memory layout that one attention kernel happens to return.

    Tracing records `view`s that are legal for the strides of the fused kernel at hand; its decomposition (with a mask)
    returns others, and the same view fails there. So the attention's result is made contiguous, and each view becomes
    the reshape it was written as. So does `reshape_as`, which would count as a reader of the tensor that it copies.
    """
    import torch

    aten = torch.ops.aten
    for node in list(program.graph.nodes):
        if node.target is aten.view.default:
            node.target = aten.reshape.default
        elif node.target in (aten.reshape_as.default, aten.view_as.default):
            node.target, node.args = aten.reshape.default, (node.args[0], list(node.meta["val"].shape))
        elif node.target is aten.scaled_dot_product_attention.default:
            with program.graph.inserting_after(node):
                clone = program.graph.call_function(aten.clone.default, (node,))
            clone.kwargs = {"memory_format": torch.contiguous_format}
            clone.meta.update(node.meta, val=node.meta["val"].contiguous())
            node.replace_all_uses_with(clone, delete_user_cb=lambda user, clone=clone: user is not clone)
    program.graph_module.recompile()


def Named(module: nn.Module) -> nn.Module:
    """Wrap a module so that its input is called `images` in every format."""
    from torch import nn as _nn

    class Images(_nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, images):  # type: ignore[no-untyped-def]
            return self.model(images)

    return Images()
