"""Target `coreai`: an .aimodel for iOS and macOS 27, run here by the CPU runtime of its own package.

That runtime is a check of the numbers, not of the speed: it has no Neural Engine, no GPU, and none of Apple's kernels.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgevit.errors import RuntimeRefusal, missing_extra
from edgevit.export.fold_constants import fold_constants
from edgevit.export.pool_as_mean import pool_as_mean
from edgevit.export.rewrite import sweep
from edgevit.export.to_half import to_half
from edgevit.export.trace import export_program
from edgevit.quant.policies import POLICIES
from edgevit.quiet import quiet, quiet_descriptor
from edgevit.runtimes.base import Policy, Session
from edgevit.runtimes.core_ai_operators import register
from edgevit.stages import Engine, Graph, Refusal

if TYPE_CHECKING:
    import numpy as np

ENTRY, OUTPUT = "model.aimodel", "logits"
HALF = ("fp16", "int8+fp16", "w8")
ADVICE = "write the model without it, or take another target"
BUILT = "19700101T000000Z"  # the date an asset carries: the same program gives the same bytes


@dataclass(frozen=True)
class CoreAi:
    """Apple's Core AI. The program goes in as it is; attention stays one operator."""

    name = "coreai"
    extra = "coreai"
    runner = ""
    checked_by = "the saved asset, in the CPU runtime of coreai-core"
    unverified = (
        "which operators the Neural Engine, the GPU and the CPU take",
        "latency, and memory on the device",
        "the rounding of the device's own fp16 and int8 kernels",
    )
    policy = Policy(
        precisions=("fp32", "fp16", "int8", "int8+fp32", "int8+fp16", "w8"),
        others=("w8",),
        int8="int8",
        scheme=POLICIES["coreai"],
        rewrites=("fold_batch_norm", "fold_layer_scale", "split_qkv", "fold_attention_scale", "drop_unread_tokens"),
        lowering="matmul",
        # fp32: same operators, other summation order. fp16 rounds at every operator, and a rounded similarity may pick
        # another, nearly equal, token: judged by agreement like 8 bits.
        tolerance={"fp32": 1e-4, "fp16": None, "int8+fp32": None, "int8+fp16": None, "w8": None},
    )

    def version(self) -> str:
        """Versions of the converter and of the runtime."""
        from importlib.metadata import version

        _coreai_torch()
        return f"{version('coreai-torch')} (coreai-core {version('coreai-core')})"

    def runs_here(self, precision: str = "") -> str | None:
        """It builds and checks here; speed is the device's alone."""
        return "Core AI runs on iOS and macOS 27; the runtime on this machine checks numbers and says nothing of speed"

    def resolve(self, precision: str) -> str:
        """`int8` leaves the rest in fp16: the Neural Engine takes no float32."""
        return "int8+fp16" if precision == "int8" else precision

    def refuses(self, graph: Graph) -> list[Refusal]:
        """Nothing beforehand: building decomposes the program, once, and names what has no form."""
        return []

    def build(self, graph: Graph, folder: Path, precision: str) -> Engine:
        """Convert and save `model.aimodel`, a folder."""
        version, converter = self.version(), _staged(to_half(graph) if precision in HALF else graph)
        with quiet(), contextlib.redirect_stdout(io.StringIO()):  # it prints what it converts
            program = converter.to_coreai()
        _number_by_place(program)
        program.save_asset(folder / ENTRY)
        metadata = folder / ENTRY / "metadata.json"  # in Swift's order of a dictionary, which is none
        content = {**json.loads(metadata.read_text("utf-8")), "creationDate": BUILT}
        metadata.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", "utf-8")
        files = tuple(sorted(p.relative_to(folder).as_posix() for p in (folder / ENTRY).rglob("*") if p.is_file()))
        return Engine(folder, self.name, version, precision, ENTRY, files, graph.inputs)

    def open(self, engine: Engine, threads: int | None = None) -> Session:
        """Compile the saved asset for this CPU, and keep it."""
        return CoreAiSession(engine)


def _number_by_place(program: Any) -> None:
    """Graphs of composite operators carry random letters; numbered by place, the same program gives the same bytes."""
    from coreai._compiler.ir import SymbolTable

    module = program._module._mlir_module
    for place, graph in enumerate(module.body.operations):
        name = graph.attributes["sym_name"].value
        stem, _, letters = name.rpartition("_")
        if stem and len(letters) == 8:
            SymbolTable.replace_all_symbol_uses(name, f"{stem}_{place}", module.operation)
            SymbolTable.set_symbol_name(graph, f"{stem}_{place}")


def _coreai_torch() -> Any:
    try:
        with quiet():  # it warns about every torch it was not tested with
            import coreai_torch
    except ModuleNotFoundError as error:
        raise missing_extra("coreai", error) from error
    return coreai_torch


def _staged(graph: Graph) -> Any:
    """A converter that holds the decomposed program. Raises RuntimeRefusal where it has no form of an operator."""
    vendor = _coreai_torch()
    with quiet():
        module = graph.program.module()
        # Positions may be computed, and pooling be decomposed, by operators that the converter does not know.
        changed = fold_constants(module) + pool_as_mean(module)
        sweep(module)
        program = export_program(module, graph.inputs) if changed else graph.program
        program = program.run_decompositions(vendor.get_decomp_table())
        # RELEASE: without the stack traces, and so the paths, of the exporting machine
        converter = vendor.TorchConverter(mode=vendor.TorchConverter.Mode.RELEASE)
        register(converter)
        try:
            converter.add_exported_program(program, input_names=[graph.inputs.name], output_names=[OUTPUT])
        except ValueError as error:
            named = [n for n in program.graph.nodes if n.op == "call_function" and str(n.target) in str(error)]
            if not named:
                raise RuntimeRefusal(f"coreai does not take this program: {str(error)[:240]}; {ADVICE}") from error
            what = f"{named[0].name}: coreai-torch has no form of {named[0].target}"
            raise RuntimeRefusal(f"coreai refuses {len(named)} nodes; first {what}; {ADVICE}") from error
    return converter


class CoreAiSession:
    """The saved asset, specialized for this CPU once; its calls are asynchronous, one at a time here."""

    def __init__(self, engine: Engine) -> None:
        _coreai_torch()
        from coreai.authoring.asset import AIModelAsset
        from coreai.runtime import NDArray

        self.array, self.name = NDArray, engine.inputs.name
        path = engine.folder / engine.entry
        if sha256((path / "main.mlirb").read_bytes()).digest() != (path / "main.hash").read_bytes():
            # its reader would end the process
            raise RuntimeRefusal(f"Core AI cannot load {path.name}: main.mlirb is damaged; export it again")
        try:
            with quiet_descriptor():  # the runtime logs what it loads
                self.function = asyncio.run(_loaded(AIModelAsset.load(path)))
        except RuntimeError as error:
            raise RuntimeRefusal(f"Core AI cannot load {path.name}: {error}; export it again") from error

    def run(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """One inference."""
        out: np.ndarray[Any, Any] = asyncio.run(self.function({self.name: self.array(images)}))[OUTPUT].numpy().copy()
        return out


async def _loaded(asset: Any) -> Any:
    """The function, which maps the compiled file: it outlives the folder it was compiled into."""
    async with asset.executable() as model:
        return model.load_function("main")
