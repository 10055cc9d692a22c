"""Target `openvino`: OpenVINO on the CPU, straight from the exported program."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import RuntimeRefusal, missing_extra
from edgevit.quant.policies import POLICIES
from edgevit.quiet import quiet
from edgevit.runtimes.base import Policy, Seen, Session
from edgevit.runtimes.cpu import has_wide_sums, is_arm
from edgevit.stages import Engine, Graph, QuantizedGraph, Refusal

if TYPE_CHECKING:
    import numpy as np
    from torch.export import ExportedProgram

HINTS = {"bf16": "bf16", "fp16": "f16", "int8+bf16": "bf16"}  # any other precision: f32
CAPABILITY = {"f32": "FP32", "bf16": "BF16", "f16": "FP16"}
# Left to itself the plugin rounds the inputs of 4-bit weights to 8 bits, group by group.
EXTRA = {"w4": {"DYNAMIC_QUANTIZATION_GROUP_SIZE": "0"}}
LATENCY = {"PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": "1"}
ELSEWHERE = {
    "fp16": Seen(
        "the engine, in OpenVINO on this CPU: float16 weights, float32 arithmetic (this CPU has no float16)",
        ("float16 arithmetic: this CPU has none, and the device's rounds at every operator", "latency"),
    )
}


@dataclass(frozen=True)
class OpenVino:
    """OpenVINO IR. The inference precision of everything that is not int8 is always set, never left to a default."""

    name = "openvino"
    extra = "openvino"
    runner = "openvino"
    checked_by = "the engine, in OpenVINO on this CPU"
    unverified = ()
    policy = Policy(
        precisions=("fp32", "bf16", "fp16", "int8", "int8+fp32", "int8+w7", "int8+bf16", "w4"),
        others=("w4",),
        int8="int8",
        scheme=POLICIES["openvino"],
        schemes={"int8+w7": POLICIES["openvino-w7"]},
        rewrites=(
            "fold_batch_norm",
            "fold_layer_scale",
            "patches_as_linear",
            "split_qkv",
            "fold_attention_scale",
            "drop_unread_tokens",
            "fold_norm_affine",
            "keep_reduced_axes",
        ),
        lowering="gather",
        forms=("split_qkv", "fold_attention_scale", "fold_norm_affine"),  # by head or without the batch axis: no faster
        # fp32: other summation order. bf16 keeps 8 bits of mantissa, fp16 11; both round at every operator, and a
        # rounded similarity may pick another, nearly equal, token: judged by agreement like int8.
        tolerance={
            "fp32": 1e-4,
            "bf16": None,
            "fp16": None,
            "int8+fp32": None,
            "int8+w7": None,
            "int8+bf16": None,
            "w4": None,
        },
        elsewhere=ELSEWHERE,
    )

    def version(self) -> str:
        """Version of the openvino package."""
        return str(_openvino().__version__)

    def resolve(self, precision: str) -> str:
        """`int8` leaves the rest in bf16 where this CPU computes bf16 natively, else in fp32.

        On an x86 CPU whose 8-bit sums saturate, weights have 7 bits; a bundle for another machine names its own.
        """
        if precision == "int8":
            return "int8+bf16" if "BF16" in _capable() else "int8+fp32" if is_arm() or has_wide_sums() else "int8+w7"
        reason = None if precision in self.policy.elsewhere else self.runs_here(precision)
        if reason:
            raise RuntimeRefusal(f"{reason}; use fp32")
        return precision

    def runs_here(self, precision: str = "") -> str | None:
        """Where the CPU computes what the hint asks for: elsewhere the plugin would compute in float32, silently."""
        wanted = CAPABILITY[_hint(precision)]
        if wanted == "FP32" or wanted in (capable := _capable()):
            return None
        return f"this CPU does not compute {wanted} (it has {', '.join(sorted(capable))})"

    def refuses(self, graph: Graph) -> list[Refusal]:
        """Its converter names the operators it does not know; there is no list to ask beforehand."""
        return []

    def build(self, graph: Graph, folder: Path, precision: str) -> Engine:
        """Convert and write `model.xml` + `model.bin`.

        For a machine elsewhere weights are float16 in the file, and what float16 does not hold is marked as `to_half`
        would keep it: nothing here could show that the plugin's own choice suffices.
        """
        ov = _openvino()
        from openvino.frontend.pytorch.fx_decoder import TorchFXPythonDecoder

        from edgevit.export.to_half import single
        from edgevit.places import places
        from edgevit.quant.decisions import deciding
        from edgevit.runtimes.ov_float32 import keep_float32
        from edgevit.runtimes.ov_names import name_by_place

        extensions = _extensions() if isinstance(graph, QuantizedGraph) else None
        program = _without_empty(graph)
        try:
            with quiet("root"):  # the converter warns about its own use of torch
                decoder = TorchFXPythonDecoder.from_exported_program(program)
                model = ov.convert_model(decoder, extension=extensions)
        except ov._pyopenvino.OpConversionFailure as error:
            text = " ".join(str(error).split())
            raise RuntimeRefusal(f"OpenVINO {ov.__version__} does not convert this program: {text[-300:]}") from error
        model.inputs[0].get_tensor().set_names({graph.inputs.name})
        model.outputs[0].get_tensor().set_names({"logits"})
        model.reshape({graph.inputs.name: list(graph.inputs.shape)})
        _number_by_place(model)
        elsewhere = precision in self.policy.elsewhere and self.runs_here(precision) is not None
        ov.save_model(model, folder / "model.xml", compress_to_fp16=elsewhere)
        if _hint(precision) != "f32":
            keep_float32(folder / "model.xml", (single if elsewhere else deciding)(decoder.pt_module))
        name_by_place(folder / "model.xml", places(decoder.pt_module.graph.nodes))
        files = ("model.xml", "model.bin")
        options = {"config": {"INFERENCE_PRECISION_HINT": _hint(precision), **LATENCY, **EXTRA.get(precision, {})}}
        return Engine(folder, self.name, str(ov.__version__), precision, files[0], files, graph.inputs, options)

    def open(self, engine: Engine, threads: int | None = None) -> Session:
        """Compile for this CPU, in float32 where a precision of `Policy.elsewhere` is not its own."""
        config = dict(engine.options["config"])
        reason = self.runs_here(engine.precision)
        if reason and engine.precision not in self.policy.elsewhere:
            raise RuntimeRefusal(f"{engine.precision} engine: {reason}; export it for this CPU, in fp32 or int8")
        if reason:
            config["INFERENCE_PRECISION_HINT"] = "f32"
        return OpenVinoSession(engine, config, threads)


def _without_empty(graph: Graph) -> ExportedProgram:
    """The program without empty parts: an expanded tensor of no elements is a division by zero in OpenVINO's converter.

    Raises RuntimeRefusal where one is left; the signal would end the process.
    """
    from edgevit.export.drop_empty_parts import drop_empty_parts, is_empty
    from edgevit.export.rewrite import sweep
    from edgevit.export.trace import export_program

    program = graph.program
    if any(is_empty(node) for node in program.graph.nodes):
        module = program.module()
        drop_empty_parts(module)
        sweep(module)
        program = export_program(module, graph.inputs)
    for node in program.graph.nodes:
        if str(node.target).startswith("aten.expand") and is_empty(node):
            what = f"{node.name}: OpenVINO does not expand a tensor of no elements {list(node.meta['val'].shape)}"
            raise RuntimeRefusal(f"{what}; write the model without it, or take another target")
    return program


def _hint(precision: str) -> str:
    """Inference precision of everything that is not an integer."""
    return HINTS.get(precision, "f32")


def _capable() -> set[str]:
    """What the CPU plugin computes natively here."""
    return set(_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def _number_by_place(model: Any) -> None:
    """Unnamed nodes carry a counter of the process; numbered by place, the same program gives the same file."""
    model.set_friendly_name("edgevit")
    for place, node in enumerate(model.get_ordered_ops()):
        name = re.fullmatch(r"([A-Z]\w*)_\d+", node.get_friendly_name())
        if name:
            node.set_friendly_name(f"{name[1]}_{place}")


def _openvino() -> Any:
    try:
        import openvino
    except ModuleNotFoundError as error:
        raise missing_extra("openvino", error) from error
    return openvino


def _extensions() -> list[Any]:
    """The converter's own reading of `dequantize_per_channel` leaves an int8 weight as it is; give it the arithmetic.

    Its CPU plugin recognizes Convert → Multiply (→ Reshape, of groups) on a constant and keeps the weight as stored.
    """
    import numpy as np
    import openvino as ov
    import openvino.opset13 as ops
    from openvino.frontend.pytorch import ConversionExtension

    def dequantize_per_channel(context: Any) -> list[Any]:
        weight, scale = context.get_input(0), context.get_input(1)
        axis = context.get_values_from_const_input(3)
        shape = [1] * len(weight.get_partial_shape())
        shape[axis] = -1
        column = ops.reshape(scale, ops.constant(np.array(shape, np.int64)), False)
        return [ops.multiply(ops.convert(weight, "f32"), column).output(0)]

    def dequantize_groups(context: Any) -> list[Any]:
        values = context.get_input(0).get_node().data
        group = context.get_values_from_const_input(6)
        grouped = values.reshape(len(values), -1, group)
        stored = ov.op.Constant(ov.Type.i4, ov.Shape(grouped.shape), grouped.flatten().tolist())
        scale = ops.reshape(context.get_input(1), ops.constant(np.array([0, 0, 1], np.int64)), True)
        product = ops.multiply(ops.convert(stored, "f32"), scale)
        return [ops.reshape(product, ops.constant(np.array(values.shape, np.int64)), False).output(0)]

    return [
        ConversionExtension("quantized_decomposed.dequantize_per_channel.default", dequantize_per_channel),
        ConversionExtension("quantized_decomposed.dequantize_per_channel_group.default", dequantize_groups),
    ]


class OpenVinoSession:
    """One synchronous infer request."""

    def __init__(self, engine: Engine, config: dict[str, str], threads: int | None) -> None:
        ov = _openvino()
        if threads:
            config["INFERENCE_NUM_THREADS"] = str(threads)
        path = engine.folder / engine.entry
        try:
            self.compiled = ov.Core().compile_model(str(path), "CPU", config)
        except RuntimeError as error:
            text = " ".join(str(error).split())
            raise RuntimeRefusal(f"OpenVINO {ov.__version__} cannot compile {path.name}: {text[-300:]}") from error
        self.request = self.compiled.create_infer_request()

    def run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """One inference."""
        out: np.ndarray[Any, Any] = self.request.infer([images])[self.compiled.output(0)].copy()
        return out
