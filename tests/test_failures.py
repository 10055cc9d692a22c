"""What a user gets wrong, machine trouble, and interruptions: one line, the right exit status, nothing left behind.

The `refused` fixture holds the contract; broken model files are in test_load.py, broken data in test_data.py, broken
bundles and full disks in test_bundle.py.
"""

import signal
import subprocess
import sys

import pytest
import torch

from tests.conftest import heed_interrupts


@pytest.fixture
def export(refused, program_file):
    """Factory: an export that must be refused."""
    return lambda *more, code=1: refused("export", program_file, "-o", "out", *more, code=code)


# Targets and settings


@pytest.mark.parametrize(
    ("target", "says"),
    [
        ("openvno", "did you mean openvino?"),
        ("onxruntime", "did you mean onnxruntime?"),
        ("magic", "targets: onnx, ort, openvino"),
        ("apple", "coreml (iOS 16 to 26) or coreai"),
    ],
)
def test_target(export, target, says):
    assert says in export("--target", target)


def test_misspelt_target_fails_before_the_model_is_even_looked_for(refused):
    assert "unknown target" in refused("export", "absent.pt2", "--target", "magic", "-o", "out")


@pytest.mark.parametrize(
    ("spec", "says"),
    [
        ("tomme:r=8", "unknown reduction method 'tomme' (did you mean tome?)"),
        ("tome", "gives tome no amount"),
        ("tome:r", "is not key=value"),
        ("tome:q=8", "tome needs one of"),
        ("tome:r=x", "is not a number"),
        ("absent.json", "cannot read schedule file absent.json"),
    ],
)
def test_schedule(export, spec, says):
    assert says in export("--target", "fake", "--reduce", spec)


def test_schedule_beyond_the_last_block(refused, module_file):
    message = refused(
        "export", module_file, "--trust-pickle", "--target", "fake", "--reduce", "tome:r=2@9", "-o", "out"
    )
    assert "the model has 2 blocks, so there is no block 9" in message


def test_reduction_of_a_program_says_to_give_the_eager_model(export):
    assert "reduce the eager model" in export("--target", "fake", "--reduce", "tome:r=2")


def test_reduction_of_a_model_without_adapter_names_the_families_that_have_one(refused, tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 8), torch.nn.Flatten()), tmp_path / "net.pt")
    arguments = (
        "--trust-pickle",
        "--input-size",
        "32",
        "--target",
        "fake",
        "--reduce",
        "tome:r=2",
        "-o",
        "out",
    )
    assert "timm VisionTransformer" in refused("export", "net.pt", *arguments)


@pytest.mark.parametrize("precision", [["--int8"], ["--precision", "int8"]])
def test_int8_without_images_says_how_to_give_them(export, precision):
    assert "pass --calib DATA" in export("--target", "fake", *precision)


@pytest.mark.parametrize("precision", [["--fp16"], ["--precision", "int3"]])
def test_precision_that_the_target_does_not_build(export, precision):
    assert "it builds fp32, int8" in export("--target", "fake", *precision)


def test_calibration_data_that_is_not_there(export):
    assert "absent.csv does not exist" in export("--target", "fake", "--int8", "--calib", "absent.csv")


def test_corrupt_calibration_image_is_named(export, tmp_path, pictures):
    (tmp_path / "bad.jpg").write_bytes(pictures.files[0].read_bytes()[:100])
    (tmp_path / "calib.csv").write_text("file,label\nbad.jpg,0\n")
    assert "image bad.jpg cannot be decoded" in export("--target", "fake", "--int8", "--calib", "calib.csv")


def test_evaluation_label_out_of_range_leaves_no_bundle(export, labelled):
    assert "label 99" in export("--target", "fake", "--eval", labelled([99] * 10))


def test_max_drop_without_eval(export):
    assert "needs --eval DATA" in export("--target", "fake", "--max-drop", "1")


def test_batch_of_none(export):
    assert "--batch 0 must be 1 or more" in export("--target", "fake", "--batch", "0")


def test_device_elsewhere(export):
    assert "is where --min-speedup measures" in export("--target", "fake", "--device", "phone")
    assert "no device 'phone'" in export("--target", "fake", "--device", "phone", "--min-speedup", "1")


@pytest.mark.parametrize(
    ("text", "says"), [("a\nb\n", "has 2 lines; the model has 10 classes"), ("\x80", "cannot read")]
)
def test_labels_that_do_not_fit(export, tmp_path, text, says):
    (tmp_path / "labels.txt").write_text(text, encoding="latin-1")
    assert says in export("--target", "fake", "--labels", "labels.txt")


def test_existing_output_needs_force(cli, refused, program_file, tmp_path):
    assert cli("export", program_file, "--target", "fake", "-o", "out").code == 0
    assert "out exists; give another -o, or --force" in refused("export", program_file, "--target", "fake", "-o", "out")
    assert cli("export", program_file, "--target", "fake", "-o", "out", "--force").code == 0


def test_old_bundle_survives_a_forced_export_that_fails(cli, refused, program_file, labelled):
    assert cli("export", program_file, "--target", "fake", "-o", "out").code == 0
    data = labelled([99] * 10)  # fails at the very end, in the gate
    refused("export", program_file, "--target", "fake", "-o", "out", "--force", "--eval", data)
    assert cli("inspect", "out").code == 0


def test_model_that_returns_two_tensors(refused, tmp_path):
    model = torch.nn.LSTM(4, 4)  # any module of torch's own that returns a tuple
    torch.save(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 32), torch.nn.Flatten(), model), tmp_path / "net.pt")
    arguments = ("--trust-pickle", "--input-size", "32", "--target", "fake", "-o", "out")
    assert "one tensor" in refused("export", "net.pt", *arguments)


def test_model_that_cannot_be_traced_says_why(refused, tmp_path):
    torch.save(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(5, 2)), tmp_path / "net.pt")
    arguments = ("--trust-pickle", "--input-size", "32", "--target", "fake", "-o", "out")
    message = refused("export", "net.pt", *arguments)
    assert "torch.export cannot trace Sequential at [1, 3, 32, 32]" in message


def test_wrong_engine_is_not_kept(export, monkeypatch):
    from edgevit.runtimes.fake import FakeSession

    right = FakeSession.run
    monkeypatch.setattr(FakeSession, "run", lambda self, images: right(self, images) * 1.01)
    assert "on 8 of 8 images; it was not kept" in export("--target", "fake")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_engine_with_outputs_that_are_not_finite_is_not_kept(export, monkeypatch, value):
    from edgevit.runtimes.fake import FakeSession

    right = FakeSession.run
    monkeypatch.setattr(FakeSession, "run", lambda self, images: right(self, images) * value)
    assert "NaN or infinite outputs; it was not kept" in export("--target", "fake")


def test_lossy_engine_that_computes_noise_is_not_kept(export, monkeypatch, pictures):
    from edgevit.runtimes.fake import FakeSession

    right = FakeSession.run
    monkeypatch.setattr(FakeSession, "run", lambda self, images: -right(self, images))
    assert "mostly noise" in export("--target", "fake", "--int8", "--calib", pictures.csv)


def test_quantized_engine_that_is_not_its_program_is_not_kept(export, monkeypatch, pictures):
    from edgevit.runtimes.fake import FakeSession

    right = FakeSession.run
    monkeypatch.setattr(FakeSession, "run", lambda self, images: right(self, images) * 1.2)  # 14 dB: not mostly noise
    assert "differs from its own quantized program by 0.2" in export(
        "--target", "fake", "--int8", "--calib", pictures.csv
    )


# Gates


def test_broken_speed_gate_exits_with_3_and_leaves_nothing(export, monkeypatch, tmp_path_factory):
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("lock")))  # another session may measure
    message = export("--target", "fake", "--min-speedup", "3", code=3)
    assert "--min-speedup asks 3" in message
    assert "no bundle was written" in message


def test_broken_accuracy_gate_exits_with_3_and_leaves_nothing(export, monkeypatch, labelled):
    from edgevit import evaluate as module

    calls = []
    right = module.evaluate

    def worse_second(bundle, data, progress=None):
        """The bundle is evaluated behind its baseline: turn its predictions away from the labels."""
        found = right(bundle, data, progress)
        calls.append(bundle)
        ranks = (9,) * found.images if len(calls) == 2 else (0,) * found.images
        return module.Evaluation(found.bundle, found.predicted, ranks, found.seconds)

    monkeypatch.setattr(module, "evaluate", worse_second)
    arguments = ("--target", "fake", "--eval", labelled(range(10)), "--max-drop", "5")
    assert "accuracy drops 100.00 points, --max-drop allows 5" in export(*arguments, code=3)


# Packages that are not installed


@pytest.mark.parametrize(
    ("target", "package", "extra"),
    [
        ("ort", "onnxruntime", "ort"),
        ("ort", "onnx", "onnx"),
        ("openvino", "openvino", "openvino"),
        ("onnx", "onnx", "onnx"),
    ],
)
def test_missing_runtime_gives_the_line_to_type(export, monkeypatch, target, package, extra):
    monkeypatch.setitem(sys.modules, package, None)
    message = export("--target", target)
    assert f"this needs {package}, which is not installed: pip install 'edgevit[{extra}]'" in message


def test_missing_timm_gives_the_line_to_type(refused, monkeypatch, tmp_path):
    torch.save({"a": torch.ones(1)}, tmp_path / "model.pt")
    monkeypatch.setitem(sys.modules, "timm", None)
    for model in ("timm:vit_tiny_patch16_224", "model.pt"):
        message = refused("export", model, "--arch", "timm:vit_tiny_patch16_224", "--target", "fake", "-o", "out")
        assert "pip install 'edgevit[timm]'" in message


def test_missing_packages_are_shown_by_targets_and_doctor(cli, monkeypatch):
    monkeypatch.setitem(sys.modules, "openvino", None)
    rows = {row["name"]: row for row in cli("targets", "--json").json["targets"]}
    assert not rows["openvino"]["available"]
    assert rows["openvino"]["install"] == "pip install 'edgevit[openvino]'"
    assert rows["ort"]["available"]
    assert "pip install 'edgevit[openvino]'" in cli("doctor").out


# Interruptions


def test_interrupt_while_building_leaves_nothing(refused, program_file, monkeypatch):
    from edgevit.runtimes.fake import Fake

    def build(self, graph, folder, precision):
        (folder / "half").write_text("x")
        raise KeyboardInterrupt

    monkeypatch.setattr(Fake, "build", build)
    message = refused("export", program_file, "--target", "fake", "-o", "out", code=130)
    assert message == "edgevit: interrupted; nothing was written"


SLOW_BUILD = """
import sys, time
from edgevit.cli import main
from edgevit.runtimes.fake import Fake
def build(self, graph, folder, precision):
    (folder / "half").write_text("x")
    print("building", flush=True)
    time.sleep(60)
Fake.build = build
main(sys.argv[1:])
"""


def test_real_ctrl_c_leaves_nothing(tmp_path, program_file):
    arguments = ("export", str(program_file), "--target", "fake", "-o", str(tmp_path / "out"))
    process = subprocess.Popen(
        [sys.executable, "-P", "-c", SLOW_BUILD, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=heed_interrupts,
    )
    try:
        assert process.stdout.readline() == "building\n"
        assert len(list(tmp_path.glob(".out-*/half"))) == 1  # the half-written bundle is there, under another name
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()
    assert process.returncode == 130
    assert errors.splitlines()[-1] == "edgevit: interrupted; nothing was written"
    assert "Traceback" not in errors
    assert list(tmp_path.iterdir()) == []


# Bad arguments


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["--bogus"],
        ["exprt"],
        ["export"],
        ["export", "m.pt"],
        ["export", "m.pt", "--target", "ort", "--int8", "--fp16"],
        ["export", "m.pt", "--target", "ort", "--input-size", "0"],
        ["export", "m.pt", "--target", "ort", "--input-size", "32x32x32"],
        ["export", "m.pt", "--target", "ort", "--batch", "two"],
        ["eval", "b"],
        ["profile"],
    ],
)
def test_bad_arguments_exit_with_2(capsys, argv):
    from edgevit.cli import run

    with pytest.raises(SystemExit) as ended:
        run(argv)
    assert ended.value.code == 2
    captured = capsys.readouterr()
    assert "usage: edgevit" in captured.err
    assert captured.out == ""


# Places that cannot be written


def test_output_folder_that_is_a_file(refused, module_file, pictures, tmp_path):
    (tmp_path / "file").write_text("x")
    model = ("inspect", module_file, "--trust-pickle", "--reduce", "tome:r=2", "--image", pictures.files[0])
    assert "file" in refused(*model, "-o", "file")


def test_name_that_is_too_long(refused, program_file):
    assert "too long" in refused("export", program_file, "--target", "fake", "-o", "x" * 300)


def test_a_bug_keeps_its_traceback(cli, program_file, monkeypatch, tmp_path):
    from edgevit.runtimes.fake import Fake

    def build(self, graph, folder, precision):
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Fake, "build", build)
    with pytest.raises(ZeroDivisionError):
        cli("export", program_file, "--target", "fake", "-o", "out")
    assert list(tmp_path.iterdir()) == []
