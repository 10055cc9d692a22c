"""An ONNX file from anywhere → Foreign: the graph, and its weights as arrays. The file is untrusted input.

Before anything is computed: the file is within limits of size, nodes and nesting; external data lies inside the file's
own folder, links followed; every tensor has exactly the bytes its shape needs; every operator domain is known.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import LoadError, missing_extra
from edgevit.from_onnx.tensors import inside, numbers
from edgevit.from_onnx.wire import check_wire
from edgevit.load_timm import first_line
from edgevit.names import listed
from edgevit.runtimes.ort import import_ort

if TYPE_CHECKING:
    import numpy as np
    import onnx

    from edgevit.from_onnx.fix_input import Ends
    from edgevit.from_onnx.keep import Keep

MOST_NODES = 100_000
DEEPEST_GRAPH = 8
MOST_FUNCTIONS = 500  # each may call the next, and Python's stack is not endless
MOST_WEIGHT_BYTES = 8 << 30
LIFTED_BYTES = 1 << 16  # larger tensors leave the graph, so that passes copy and compare kilobytes
OLDEST_OPSET = 9
LAYER_NORM_OPSET = 17  # the first that has it
OLDEST_IR = 8  # before 4 every weight had to be an input as well
Shapes = dict[str, tuple[int | None, ...]]
MICROSOFT = "com.microsoft"
DOMAINS = ("", "ai.onnx", MICROSOFT)


@dataclass(frozen=True)
class Foreign:
    """A graph that was read, and what it may compute with.

    model: every tensor above LIFTED_BYTES is an input of the graph, typed, and an array of `weights`.
    opset: of the file as it came. files: those that hold external data. ends: chosen by `fix_input`.
    shapes: value → its shape, None where the batch is part of it; filled by `fix_shapes`.
    keep: what decides how many tokens a mask keeps, for `static_counts`.
    Must hold: onnx.checker accepts `model`.
    """

    path: Path
    model: onnx.ModelProto
    weights: dict[str, np.ndarray]
    opset: int
    files: tuple[Path, ...] = ()  # of external data
    ends: Ends | None = None
    shapes: Shapes = field(default_factory=dict)
    keep: Keep | None = None

    @property
    def name(self) -> str:
        """For messages."""
        return self.path.name


def read(path: Path) -> Foreign:
    """Read and check an ONNX file. Raises LoadError, MissingExtra."""
    try:
        import onnx
    except ModuleNotFoundError as error:
        raise missing_extra("onnx", error) from error
    import_ort()  # the proof needs it: say so before the work
    model = _parse(path)
    _check_size(path.name, model)
    _check_domains(path.name, model)
    opset = _opset(path.name, model)
    files = tuple(
        sorted({inside(path, t) for t in _all_tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL})
    )
    weights = _lift(path, model)
    _name_the_domain(model, opset)
    try:
        onnx.checker.check_model(model)
    except (onnx.checker.ValidationError, ValueError, RuntimeError) as error:
        raise LoadError(f"{path.name} is no valid ONNX graph: {first_reason(error)}; export it again") from error
    return Foreign(path, model, weights, opset, files)


def first_reason(error: BaseException) -> str:
    """What onnx found, without its prefixes and the dump of the node."""
    text = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
    return text.removeprefix("[ShapeInferenceError] ").strip()[:240]


def _parse(path: Path) -> onnx.ModelProto:
    import onnx
    from google.protobuf.message import DecodeError

    try:
        if path.stat().st_size > onnx.checker.MAXIMUM_PROTOBUF:
            raise LoadError(f"{path.name} is larger than 2 GiB, which one ONNX file cannot be")
        data = path.read_bytes()
    except OSError as error:
        raise LoadError(f"{path} cannot be read ({first_line(error)})") from error
    check_wire(data, onnx.ModelProto.DESCRIPTOR, path.name)
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise LoadError(
            f"{path.name} is corrupt, truncated or no ONNX file ({first_line(error)}); copy or download it again"
        ) from error
    if not model.graph.node or not model.graph.output:
        raise LoadError(f"{path.name} holds no graph; it is truncated or no ONNX model")
    return model


def graphs(graph: onnx.GraphProto, depth: int = 0) -> Iterator[tuple[onnx.GraphProto, int]]:
    """The graph and those nested in its nodes, with their depth."""
    yield graph, depth
    for node in graph.node:
        for attribute in node.attribute:
            for nested in [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]:
                yield from graphs(nested, depth + 1)


def label(node: onnx.NodeProto) -> str:
    """A node's name, else that of its first output."""
    return str(node.name or next((o for o in node.output if o), node.op_type))


def _bodies(model: onnx.ModelProto) -> list[Any]:
    """The graph and the model's functions."""
    return [model.graph, *model.functions]


def _check_size(name: str, model: onnx.ModelProto) -> None:
    """Nodes, nesting, and what the model's functions become when each call is replaced by its body."""
    known = {(f.domain, f.name): f for f in model.functions}
    cost: dict[Any, int] = {}

    def nodes(body: Any, open_calls: tuple[Any, ...]) -> int:
        total = 0
        for graph, depth in graphs(body):
            if depth > DEEPEST_GRAPH:
                raise LoadError(f"{name} nests graphs more than {DEEPEST_GRAPH} deep")
            for node in graph.node:
                key = (node.domain, node.op_type)
                if key in open_calls:
                    raise LoadError(f"{name}: function {node.op_type} calls itself")
                if key in known and key not in cost:
                    cost[key] = nodes(known[key], (*open_calls, key))
                total += cost.get(key, 1)
        return total

    if len(known) > MOST_FUNCTIONS:
        raise LoadError(f"{name} has {len(known)} functions; at most {MOST_FUNCTIONS} are read")
    found = nodes(model.graph, ())
    if found > MOST_NODES:
        raise LoadError(f"{name} has {found} nodes, functions expanded; at most {MOST_NODES} are read")


def _check_domains(name: str, model: onnx.ModelProto) -> None:
    """Operators of ONNX, of ONNX Runtime, and the model's own functions; no library is ever loaded for others."""
    own = {(f.domain, f.name) for f in model.functions}
    strange = {
        f"{node.domain}.{node.op_type} ({label(node)})"
        for body in _bodies(model)
        for graph, _ in graphs(body)
        for node in graph.node
        if node.domain not in DOMAINS and (node.domain, node.op_type) not in own
    }
    if strange:
        raise LoadError(
            f"{name} needs custom operators: {listed(sorted(strange))}; only ONNX's own and com.microsoft's are read, "
            "so export the model without them"
        )
    if model.graph.sparse_initializer:
        raise LoadError(f"{name} has sparse weights, which are not read; store them dense")


def _opset(name: str, model: onnx.ModelProto) -> int:
    from onnx.defs import onnx_opset_version

    versions = [int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx")]
    if len(versions) != 1:
        raise LoadError(f"{name} must import the ONNX operator set once; it does {len(versions)} times")
    newest = onnx_opset_version()
    if not OLDEST_OPSET <= versions[0] <= newest:
        raise LoadError(f"{name} is of opset {versions[0]}; {OLDEST_OPSET} to {newest} are read")
    return versions[0]


def _name_the_domain(model: onnx.ModelProto, opset: int) -> None:
    """LayerNormalization before opset 17 is ONNX Runtime's own, which its optimizer writes without its domain."""
    if opset >= LAYER_NORM_OPSET:
        return
    every = (node for body in _bodies(model) for graph, _ in graphs(body) for node in graph.node)
    nodes = [node for node in every if (node.domain, node.op_type) == ("", "LayerNormalization")]
    for node in nodes:
        node.domain = MICROSOFT
    if nodes:
        use_domain(model, MICROSOFT)


def use_domain(model: onnx.ModelProto, domain: str) -> None:
    """Let a graph use the operators of a domain."""
    from onnx import helper

    if all(o.domain != domain for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(domain, 1))


def _lift(path: Path, model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Check every tensor; the large ones of the main graph become arrays, and typed inputs in their place."""
    from onnx import helper, numpy_helper

    graph = model.graph
    _constants_as_initializers(graph)
    names = {t.name for t in graph.initializer}
    inputs = [i for i in graph.input if i.name not in names]  # before IR 4 weights were inputs too
    weights: dict[str, np.ndarray] = {}
    kept, total = [], 0
    for tensor in graph.initializer:
        value = numbers(path, tensor)
        total += value.nbytes
        if total > MOST_WEIGHT_BYTES:
            raise LoadError(f"{path.name} holds more than {MOST_WEIGHT_BYTES >> 30} GiB of weights")
        if tensor.name in weights:
            raise LoadError(f"{path.name}: the name {tensor.name} is given to two tensors")
        if value.nbytes > LIFTED_BYTES:
            weights[tensor.name] = value
            inputs.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, value.shape))
        else:
            kept.append(numpy_helper.from_array(value, tensor.name))
    for body in _bodies(model):
        for inner, depth in graphs(body):
            for tensor in _tensors(inner, with_initializers=depth > 0):
                tensor.CopyFrom(numpy_helper.from_array(numbers(path, tensor), tensor.name))
    model.ir_version = max(model.ir_version, OLDEST_IR)
    for place, values in ((graph.input, inputs), (graph.initializer, kept)):
        del place[:]  # type: ignore[attr-defined]
        place.extend(values)
    return weights


def _constants_as_initializers(graph: onnx.GraphProto) -> None:
    """Constant → initializer, in the main graph: the one place of a known tensor."""
    rest = []
    for node in graph.node:
        value = next((a.t for a in node.attribute if a.name == "value" and a.HasField("t")), None)
        if node.op_type == "Constant" and value is not None and len(node.output) == 1:
            value.name = node.output[0]
            graph.initializer.append(value)
        else:
            rest.append(node)
    del graph.node[:]
    graph.node.extend(rest)


def _all_tensors(model: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for body in _bodies(model):
        for graph, depth in graphs(body):
            yield from _tensors(graph, with_initializers=depth > 0 or body is model.graph)


def _tensors(graph: Any, with_initializers: bool) -> Iterator[onnx.TensorProto]:
    if with_initializers:
        yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
