"""Target coreml: what is written, in which types, what it computes, what is refused; and the forecast beside it."""

import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from edgevit.adapters import adapt
from edgevit.errors import BundleError, MissingExtra, RuntimeRefusal
from edgevit.export.palettize import table_and_places
from edgevit.export.to_coreml import import_coremltools
from edgevit.export.trace import trace
from edgevit.quant.apply import quantize
from edgevit.reduce import reduce
from edgevit.runtimes import runtime
from edgevit.runtimes.coreml_residency import forecast
from edgevit.runtimes.mil_file import read_program
from edgevit.stages import InputSpec
from edgevit.tokens.schedule import parse_schedule

INPUTS = InputSpec(1, 32, 32)


@pytest.fixture(scope="module")
def made(tiny_vit, tmp_path_factory):
    """Factory: (runtime, program, engine, eager module) of a precision, a schedule and options."""
    pytest.importorskip("timm")
    try:
        import_coremltools()
    except MissingExtra as error:
        pytest.skip(str(error))
    built = {}

    def get(precision="fp32", schedule="none", folder=None, **options):
        key = precision, schedule, folder, *options.items()
        if key not in built:
            target = runtime("coreml", options)
            module = reduce(adapt(tiny_vit()), parse_schedule(schedule), target.policy.lowering).module
            program = trace(module, INPUTS)
            scheme = target.policy.quantizes(precision)
            if scheme is not None:
                program = quantize(program, scheme, target.policy.rewrites, list(images(0)), 8)
            assert target.refuses(program) == []
            place = tmp_path_factory.mktemp(folder or "engine")
            built[key] = target, program, target.build(program, place, target.resolve(precision)), module
        return built[key]

    return get


def images(seed):
    return np.random.default_rng(seed).standard_normal((8, *INPUTS.shape)).astype(np.float32)


def outputs(target, engine, module):
    """What engine and module give for eight images."""
    session = target.open(engine, threads=1)
    got = np.concatenate([session.run(image) for image in images(1)])
    with torch.no_grad():
        want = np.concatenate([module(torch.from_numpy(image)).numpy() for image in images(1)])
    assert got.dtype == np.float32
    assert np.ptp(want, axis=0).max() > 0.1 * np.abs(want).max()  # outputs depend on the image
    return got, want


def compared(target, engine, module):
    """Largest difference, relative to the largest output."""
    got, want = outputs(target, engine, module)
    return np.abs(got - want).max() / np.abs(want).max()


def decibel(target, engine, module):
    """Signal-to-noise ratio."""
    got, want = outputs(target, engine, module)
    return 10 * np.log10(np.square(want).mean() / np.square(got - want).mean())


def operations(engine):
    return [o for o in read_program(engine.folder / engine.entry).operations if o.kind != "const"]


def kinds(engine):
    return Counter(o.kind for o in operations(engine))


@pytest.mark.parametrize(
    ("precision", "schedule", "least", "most"),
    [
        ("fp32", "none", 0, 1e-5),  # sums in another order
        # 11 bits, rounded at some fifty operators
        pytest.param("fp16", "tome:r=3", 1e-5, 5e-3, marks=pytest.mark.slow),
        # one step in 255 of an activation that float16 moved over its edge
        ("int8", "none", 1e-5, 0.1),
        pytest.param("fp32", "evit:keep=0.5", 0, 1e-5, marks=pytest.mark.slow),
        pytest.param("fp32", "mctf:r=3", 0, 1e-5, marks=pytest.mark.slow),
        pytest.param("fp32", "pitome:ratio=0.8", 0, 1e-5, marks=pytest.mark.slow),
        pytest.param("w8", "none", 1e-5, 5e-3, marks=pytest.mark.slow),
    ],
)
def test_an_engine_computes_its_program(made, precision, schedule, least, most):
    target, program, engine, module = made(precision, schedule)
    own = module if target.policy.quantizes(precision) is None else program.program.module()
    assert least <= compared(target, engine, own) <= most


def test_the_engine_describes_itself(made):
    target, _, engine, _ = made("fp16", "tome:r=3")
    written = {p.relative_to(engine.folder).as_posix() for p in engine.folder.rglob("*") if p.is_file()}
    assert set(engine.files) == written
    assert engine.entry == "model.mlpackage"
    assert engine.runtime_version == target.version()
    program = read_program(engine.folder / engine.entry)
    assert [name for name, _ in program.inputs] == ["images"]
    assert program.outputs == ("logits",)
    assert program.opset == "CoreML8"
    assert engine.options["deployment"] == "iOS18"


def test_float16_leaves_what_decides_in_float32(made):
    """Nothing else: every layer is half, and no operator has more axes than the Neural Engine."""
    found = operations(made("fp16", "tome:r=3")[2])
    types = {name: declared for o in found for name, declared in o.outputs}
    assert all(
        types[o.outputs[0][0]].dtype == "FLOAT16" for o in found if o.kind in ("linear", "softmax", "layer_norm")
    )
    sorted_floats = [types[o.inputs["x"]].dtype for o in found if o.kind in ("topk", "reduce_argmax")]
    assert Counter(sorted_floats) == {"FLOAT32": 4, "INT16": 2}  # scores and rows of them; indices
    assert all(types[o.inputs["x"]].dtype == "FLOAT32" for o in found if o.kind == "sqrt")
    assert max(len(d.shape) for d in types.values()) <= 5
    assert not [o for o in found if o.kind.startswith("gather")]


def test_int8_has_8_bit_weights_and_activations_and_no_float32_between(made):
    engine = made("int8")[2]
    counts = kinds(engine)
    assert counts["constexpr_blockwise_shift_scale"] == 10  # patch embedding, 4 a block, head
    assert counts["quantize"] == counts["dequantize"] == 10
    types = Counter(d.dtype for o in operations(engine) for _, d in o.outputs if not o.kind.startswith("const"))
    assert types["FLOAT32"] == 1  # the output
    assert set(types) == {"FLOAT32", "FLOAT16", "INT8"}


@pytest.mark.slow
def test_weights_shrink(made):
    def size(precision, **options):
        engine = made(precision, **options)[2]
        return (engine.folder / "model.mlpackage/Data/com.apple.CoreML/weights/weight.bin").stat().st_size

    whole = size("fp32")
    assert size("w8") < 0.4 * whole  # biases, positions and 64 bytes of header for each constant remain
    assert size("palettized4") < size("palettized6") < size("w8")
    assert kinds(made("palettized4")[2])["constexpr_lut_to_dense"] == 7
    left = made("palettized4")[2].options["not_palettized"]
    assert len(left) == 3  # two attention projections with 1024 weights and the head with 320


@pytest.mark.slow
def test_two_bits_of_a_palette_are_twelve_decibel(made):
    found = {}
    for precision in ("palettized4", "palettized6"):
        target, _, engine, module = made(precision)
        found[precision] = decibel(target, engine, module)
    assert found["palettized4"] > 6  # 20 a layer, over ten layers
    assert 9 < found["palettized6"] - found["palettized4"] < 15


@pytest.mark.slow
@pytest.mark.parametrize(
    ("deployment", "opset", "precision", "least"),
    [
        ("iOS16", "CoreML6", "palettized6", 10),  # one table a weight
        ("iOS17", "CoreML7", "w8", 30),
        ("iOS26", "CoreML9", "fp32", 90),
    ],
)
def test_deployment_targets_choose_the_operators(made, deployment, opset, precision, least):
    target, _, engine, module = made(precision, deployment=deployment)
    assert read_program(engine.folder / engine.entry).opset == opset
    assert decibel(target, engine, module) > least


@pytest.mark.slow
def test_attention_may_stay_one_operator(made):
    target, _, engine, module = made("fp32", attention="fused")
    assert kinds(engine)["scaled_dot_product_attention"] == 2
    assert kinds(engine)["softmax"] == 0
    assert compared(target, engine, module) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "schedule"), [("fp16", "tome:r=3"), ("palettized4", "none")])
def test_the_same_model_gives_the_same_bytes(made, precision, schedule):
    first, second = (made(precision, schedule, folder)[2] for folder in (None, "again"))
    assert first.files == second.files
    assert [f for f in first.files if (first.folder / f).read_bytes() != (second.folder / f).read_bytes()] == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"deployment": "iOS15"}, "coreml has no deployment 'iOS15'.*iOS16, iOS17, iOS18, iOS26"),
        ({"deployment": "ios18"}, r"did you mean iOS18\?"),
        ({"units": "ane"}, "coreml has no units 'ane'; it has all, cpuAndNeuralEngine, cpuAndGPU, cpuOnly"),
        ({"attention": "flash"}, "coreml has no attention 'flash'; it has products, fused"),
        ({"attention": "fused", "deployment": "iOS17"}, "attention=fused needs iOS18, and deployment is iOS17"),
    ],
)
def test_options_are_refused_in_one_line(options, text):
    with pytest.raises(RuntimeRefusal, match=text):
        runtime("coreml", options)


def test_int8_needs_ios17():
    with pytest.raises(RuntimeRefusal, match="int8 activations need iOS17, and deployment is iOS16; use w8"):
        runtime("coreml", {"deployment": "iOS16"}).resolve("int8")


class Sorted(nn.Module):
    """An operator that coremltools does not convert."""

    def forward(self, x):
        return torch.special.bessel_j0(x).flatten(1)


def test_an_operator_without_conversion_is_refused_by_name(made, tmp_path):
    target, *_ = made()
    program = trace(Sorted(), INPUTS)
    refusals = target.refuses(program)
    assert [r.layer for r in refusals] == ["special_bessel_j0"]
    assert "coremltools has no conversion of aten::special_bessel_j0" in refusals[0].reason
    with pytest.raises(RuntimeRefusal, match=r"coremltools .* does not convert this program: .*bessel_j0"):
        target.build(program, tmp_path, "fp32")


def test_a_damaged_package_is_named(made, tmp_path):
    import shutil

    target, _, engine, _ = made()
    for file in ("model.mlmodel", "weights/weight.bin"):
        shutil.copytree(engine.folder, tmp_path, dirs_exist_ok=True)
        path = tmp_path / engine.entry / "Data" / "com.apple.CoreML" / file
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        with pytest.raises(BundleError, match=r"model\.mlpackage cannot be read .*; export it again"):
            target.open(replace(engine, folder=tmp_path))


def test_a_wrong_image_size_is_an_error_not_a_result(made):
    target, _, engine, _ = made()
    with pytest.raises(RuntimeRefusal, match=r"takes images of shape \[1, 3, 32, 32\], got \[1, 3, 40, 40\]"):
        target.open(engine).run(np.zeros((1, 3, 40, 40), np.float32))


def test_the_forecast_names_what_leaves_the_neural_engine(made):
    engine = made("fp16", "tome:r=3")[2]
    written = json.loads((engine.folder / "residency.json").read_text())
    assert written["summary"] == engine.options["residency_forecast"]
    assert "forecast" in written["note"]
    by_operator = {}
    for row in written["operators"]:
        by_operator.setdefault(row["operator"], set()).add(row["unit"])
    assert by_operator["linear"] == by_operator["softmax"] == by_operator["layer_norm"] == {"Neural Engine"}
    assert by_operator["topk"] == {"CPU"}
    assert by_operator["matmul"] == {"Neural Engine", "CPU or GPU"}  # attention; similarities in float32
    assert sum(written["summary"]["operators"].values()) == len(written["operators"]) == len(operations(engine))
    assert 2 <= written["summary"]["crossings"] <= 12
    rows = forecast(read_program(made()[2].folder / "model.mlpackage"))
    assert {row.unit for row in rows} == {"CPU or GPU"}  # float32


def test_palettes_are_the_same_every_time_and_better_than_even_steps():
    values = np.random.default_rng(0).standard_normal((48, 64)).astype(np.float16)
    table, places = table_and_places(values, 16)
    assert (np.diff(table.astype(np.float32)) > 0).all()
    assert (table_and_places(values, 16)[1] == places).all()
    flat = values.reshape(-1).astype(np.float64)
    error = np.square(table.astype(np.float64)[places] - flat).mean()
    even = np.linspace(flat.min(), flat.max(), 16)
    steps = np.square(even[np.abs(flat[:, None] - even).argmin(1)] - flat).mean()
    assert error < 1.02 * 0.0095  # Max's optimal 16 levels for a Gaussian (IEEE 1960, table I)
    assert error < 0.8 * steps
