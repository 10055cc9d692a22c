"""The static gate: no symbolic shape, no data-dependent operator, in the program and in the written ONNX."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import GraphError
from edgevit.names import listed

if TYPE_CHECKING:
    import onnx
    from torch.export import ExportedProgram

RANDOM = (
    "rand", "rand_like", "randn", "randn_like", "randint", "randint_like", "randperm", "bernoulli", "bernoulli_",
    "multinomial", "normal", "normal_", "uniform", "uniform_", "exponential_",
)  # fmt: skip
# Each with why it must not reach a device.
FORBIDDEN_ATEN = {
    "nonzero": "its output shape depends on the data",
    "masked_select": "its output shape depends on the data",
    "unique": "its output shape depends on the data",
    "_unique2": "its output shape depends on the data",
    "unique_consecutive": "its output shape depends on the data",
    "unique_dim": "its output shape depends on the data",
    "bincount": "its output shape depends on the data",
    "repeat_interleave.Tensor": "its output shape depends on the data",
    "_local_scalar_dense": "a value leaves the graph for Python",
    "item": "a value leaves the graph for Python",
    "scatter": "no accelerator runs scatter well; TensorRT refuses its reductions",
    "scatter_": "no accelerator runs scatter well; TensorRT refuses its reductions",
    "scatter_add": "no accelerator runs scatter-reduce",
    "scatter_add_": "no accelerator runs scatter-reduce",
    "scatter_reduce": "no accelerator runs scatter-reduce",
    "scatter_reduce_": "no accelerator runs scatter-reduce",
    "index_add": "it is a scatter-reduce",
    "index_add_": "it is a scatter-reduce",
    "index_reduce": "it is a scatter-reduce",
    "index_put": "it is a scatter",
    "index_put_": "it is a scatter",
    "index_copy": "it is a scatter",
    "index_copy_": "it is a scatter",
    "masked_scatter": "it is a scatter, to places that depend on the data",
    "masked_scatter_": "it is a scatter, to places that depend on the data",
    **{name: "its result is random" for name in RANDOM},
}
DROPOUTS = ("dropout", "native_dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout")
FORBIDDEN_ONNX = {
    "NonZero", "Unique", "Compress", "Loop", "If", "Scan", "ScatterElements", "ScatterND", "Scatter",
    "NonMaxSuppression", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli",
    "Multinomial",
}  # fmt: skip


def check_program(program: ExportedProgram) -> None:
    """Raise GraphError at the first symbolic shape or forbidden operator."""
    for node in program.graph.nodes:
        where = _where(node)
        if node.op == "call_function":
            reason = _forbidden(node.target) or _drops(node)
            if reason:
                raise GraphError(f"{where}: operator {node.target} is not exported, because {reason}")
        for shape in _shapes(node.meta.get("val")):
            if not all(isinstance(s, int) for s in shape):
                raise GraphError(f"{where} has the shape {tuple(map(str, shape))}; every dimension must be a constant")


def _forbidden(target: Any) -> str | None:
    """The reason an operator is forbidden, by its name with and without the overload."""
    name = str(target).split("::")[-1].removeprefix("aten.")
    return FORBIDDEN_ATEN.get(name) or FORBIDDEN_ATEN.get(name.split(".")[0])


def _drops(node: Any) -> str | None:
    """Dropout is traced in evaluation too, where it does nothing."""
    name = str(node.target).split("::")[-1].removeprefix("aten.").split(".")[0].rstrip("_")
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("train", True)
    return "its result is random" if name in DROPOUTS and training else None


def _shapes(value: Any) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, list | tuple):
        for item in value:
            yield from _shapes(item)
    elif hasattr(value, "shape"):
        yield tuple(value.shape)
    elif type(value).__name__ in ("SymInt", "SymFloat", "SymBool"):
        yield (value,)


def _where(node: Any) -> str:
    """A node with the module it came from, where the trace knows it."""
    stack = node.meta.get("nn_module_stack") or {}
    path = next((entry[0] for entry in reversed(list(stack.values())) if entry[0]), "")
    return f"{node.name} (in {path})" if path else str(node.name)


def check_onnx(path: Path) -> None:
    """Raise GraphError when a written ONNX file holds a forbidden operator or a dynamic dimension."""
    import onnx

    model = onnx.shape_inference.infer_shapes(onnx.load(path, load_external_data=False), data_prop=True)
    bad = [f"{n.op_type} {n.name}" for n in _nodes(model.graph) if n.op_type in FORBIDDEN_ONNX]
    if bad:
        raise GraphError(f"{path.name} holds operators that no static engine runs: {listed(bad)}")
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    tensors = [(v.name, v.type.tensor_type) for v in values]
    dynamic = [name for name, t in tensors for d in t.shape.dim if not d.HasField("dim_value")]
    dynamic += [name for name, t in tensors if not t.HasField("shape")]
    if dynamic:
        raise GraphError(f"{path.name} has dynamic dimensions in {listed(sorted(set(dynamic)))}")


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """All nodes, those of nested graphs too."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for nested in [attribute.g, *attribute.graphs]:
                yield from _nodes(nested)
