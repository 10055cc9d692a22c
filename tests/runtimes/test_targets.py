"""Names of targets and precisions: aliases, hints, refusals."""

import pytest

from edgevit.errors import MissingExtra, RuntimeRefusal
from edgevit.export.rewrite import PASSES
from edgevit.quant.scheme import QuantScheme
from edgevit.runtimes import HIDDEN, TARGETS, runtime
from edgevit.tokens.lowering import LOWERINGS


@pytest.mark.parametrize("name", [*TARGETS, *HIDDEN])
def test_every_target_of_the_table_states_a_whole_policy(name):
    target = runtime(name)
    assert target.name == name
    policy = target.policy
    assert policy.precisions[0] == "fp32"
    assert policy.int8 in policy.precisions
    assert isinstance(policy.scheme, QuantScheme)
    assert set(policy.rewrites) <= set(PASSES)
    assert [p for p in PASSES if p in policy.rewrites] == list(
        policy.rewrites
    )  # in the table's order, which has reasons
    assert policy.lowering in LOWERINGS


@pytest.mark.parametrize("name", ["onnx", "ort", "openvino", "fake"])
def test_every_precision_has_a_tolerance(name):
    target = runtime(name)
    for precision in target.policy.precisions:
        try:
            exact = target.resolve(precision)
        except RuntimeRefusal:
            continue  # this CPU does not compute it
        assert exact in target.policy.tolerance


def test_an_unknown_option_is_refused_with_those_there_are(monkeypatch):
    from dataclasses import make_dataclass

    from edgevit import runtimes

    with pytest.raises(RuntimeRefusal, match="target ort has no option 'threads'; it has none"):
        runtime("ort", {"threads": "2"})
    made = make_dataclass("Made", [("deployment", str, "new")], frozen=True)
    monkeypatch.setattr(runtimes, "named", lambda path: made)
    assert runtime("ort", {"deployment": "old"}).deployment == "old"
    with pytest.raises(RuntimeRefusal, match=r"no option 'deploy' \(did you mean deployment\?\); its options: deploy"):
        runtime("ort", {"deploy": "old"})


@pytest.mark.parametrize("name", [*TARGETS, *HIDDEN])
def test_every_target_says_what_its_check_runs(name):
    target = runtime(name)
    assert target.checked_by
    assert isinstance(target.unverified, tuple)
    assert target.runner or target.runs_here()  # who cannot time an engine says why


@pytest.mark.parametrize(
    ("alias", "name"), [("onnxruntime", "ort"), ("ov", "openvino"), ("ORT", "ort"), ("OpenVINO", "openvino")]
)
def test_aliases_and_capitals_are_understood(alias, name):
    assert runtime(alias).name == name


@pytest.mark.parametrize(
    ("typed", "text"),
    [
        ("openvno", r"unknown target 'openvno' \(did you mean openvino\?\); targets: onnx, ort, openvino"),
        ("onx", r"did you mean onnx\?"),
        ("coremll", r"did you mean coreml\?"),
        ("tensort", r"did you mean tensorrt\?"),
        ("zzz", "unknown target 'zzz'; targets:"),
        ("apple", "target 'apple' is two: coreml .* or coreai .*; name one"),
    ],
)
def test_a_wrong_name_is_refused_with_the_nearest_one(typed, text):
    with pytest.raises(RuntimeRefusal, match=text):
        runtime(typed)


@pytest.mark.parametrize(("target", "package", "extra"), [
    ("onnx", "onnx", "onnx"), ("ort", "onnxruntime", "ort"), ("openvino", "openvino", "openvino")
])  # fmt: skip
def test_a_missing_package_is_named_with_the_line_to_type(target, package, extra, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, package, None)
    with pytest.raises(MissingExtra, match=rf"this needs {package}.*pip install 'edgevit\[{extra}\]'"):
        runtime(target).version()


def test_a_precision_this_cpu_does_not_compute_is_refused(monkeypatch):
    openvino = pytest.importorskip("openvino")

    class Old:
        def get_property(self, device, name):
            return ["FP32", "INT8", "BIN"]

    monkeypatch.setattr(openvino, "Core", Old)
    monkeypatch.setattr("edgevit.runtimes.ov.has_wide_sums", lambda: True)
    target = runtime("openvino")
    with pytest.raises(RuntimeRefusal, match=r"this CPU does not compute BF16 \(it has .*FP32.*\); use fp32"):
        target.resolve("bf16")
    assert target.resolve("fp16") == "fp16"  # for a machine elsewhere
    assert target.resolve("fp32") == "fp32"
    assert target.resolve("int8") == "int8+fp32"


def test_int8_means_bf16_around_it_where_the_cpu_has_bf16(monkeypatch):
    openvino = pytest.importorskip("openvino")

    class New:
        def get_property(self, device, name):
            return ["FP32", "BF16", "INT8"]

    monkeypatch.setattr(openvino, "Core", New)
    assert runtime("openvino").resolve("int8") == "int8+bf16"


@pytest.mark.parametrize(("flags", "precision"), [("avx2 avx_vnni", "int8+fp32"), ("avx2 avx512f", "int8+w7")])
def test_int8_on_openvino_has_7_bit_weights_where_sums_of_products_saturate(flags, precision, tmp_path, monkeypatch):
    openvino = pytest.importorskip("openvino")
    from edgevit.runtimes import cpu

    class Old:
        def get_property(self, device, name):
            return ["FP32", "INT8"]

    (tmp_path / "cpuinfo").write_text(f"flags: {flags}")
    monkeypatch.setattr(cpu, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(cpu.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(openvino, "Core", Old)
    target = runtime("openvino")
    assert target.resolve("int8") == precision
    assert target.policy.quantizes("int8+w7").weight_bits == 7
    assert target.policy.quantizes("int8+fp32").weight_bits == 8
    assert any("--min-speedup" in note for note in cpu.unmeasured(precision)) == (precision == "int8+w7")


@pytest.mark.parametrize(
    ("machine", "flags", "precision"),
    [
        ("x86_64", "fpu avx2 avx512_vnni", "int8"),
        ("x86_64", "fpu avx2 avx_vnni", "int8"),
        ("x86_64", "fpu amx_tile amx_int8", "int8"),
        ("x86_64", "fpu avx2 avx512f", "int8+w7"),
        ("AMD64", None, "int8+w7"),  # no /proc/cpuinfo: the one that is right on every x86
        ("aarch64", "asimd asimddp", "int8+s8"),
        ("arm64", None, "int8+s8"),
    ],
)
def test_int8_on_onnx_runtime_is_what_the_machine_computes_exactly(machine, flags, precision, tmp_path, monkeypatch):
    from edgevit.runtimes import cpu

    cpuinfo = tmp_path / "cpuinfo"
    if flags is not None:
        cpuinfo.write_text(f"processor\t: 0\nflags\t\t: {flags}\n")
    monkeypatch.setattr(cpu, "CPUINFO", cpuinfo)
    monkeypatch.setattr(cpu.platform, "machine", lambda: machine)
    target = runtime("ort")
    assert target.resolve("int8") == precision
    assert target.resolve("int8+w7") == "int8+w7"
    assert target.policy.quantizes("int8+w7").weight_bits == 7
    assert target.policy.quantizes("int8+s8").affine
    assert target.policy.quantizes("int8") is target.policy.scheme
