"""The command line on models that work: every verb, the keys of `--json`, and how fast it starts."""

import json
import subprocess
import sys
import time

import pytest
import torch
from PIL import Image

EXPORT_KEYS = {
    "bundle",
    "target",
    "precision",
    "schedule",
    "tokens",
    "macs",
    "size_bytes",
    "checks",
    "kept_float",
}


@pytest.fixture(autouse=True)
def _own_lock(monkeypatch, tmp_path_factory):
    """Measurements lock the machine by a file in the temporary folder; somebody may be measuring right now."""
    import tempfile

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))


# --json, as the contract names it


def test_export_json(cli, module_file, tiny_vit):
    arguments = ("--trust-pickle", "--target", "fake", "--reduce", "tome:r=4@1", "-o", "out", "--json")
    result = cli("export", module_file, *arguments).json
    assert set(result) >= EXPORT_KEYS
    assert result["bundle"] == "out"
    assert result["target"] == "fake"
    assert result["precision"] == "fp32"
    assert result["schedule"] == "tome:r=4@1"
    assert result["tokens"] == [13, 13]  # 16 patches and a class token, four merged in block 1
    assert set(result["macs"]) >= {"dense", "reduced"}
    assert 0 < result["macs"]["reduced"] < result["macs"]["dense"]
    assert result["checks"]["static_shapes"] is True
    assert result["checks"]["forbidden_ops"] == []
    assert result["checks"]["reference"] == "eager fp32"
    assert result["checks"]["max_abs_diff"] >= 0
    assert result["kept_float"] == []
    assert result["size_bytes"] > 4 * sum(p.numel() for p in tiny_vit().parameters())


def test_export_json_of_int8_lists_what_stays_float_with_reasons(cli, program_file, pictures):
    arguments = ("--target", "fake", "--int8", "--calib", pictures.folder, "-o", "out", "--json")
    result = cli("export", program_file, *arguments).json
    assert result["precision"] == "int8"
    assert result["kept_float"]
    assert all(set(entry) == {"layer", "reason"} and all(entry.values()) for entry in result["kept_float"])


def test_eval_json(cli, fake_bundle, pictures):
    result = cli("eval", fake_bundle, "--data", pictures.csv, "--against", fake_bundle, "--json").json
    assert set(result["results"][0]) >= {"bundle", "images", "top1", "top5", "seconds"}
    assert set(result["against"]) >= {"bundle", "top1", "agreement", "flips_lost", "flips_won"}


def test_profile_json(cli, tmp_path, fake_bundle, pictures):
    import shutil

    shutil.copytree(fake_bundle, tmp_path / "other")
    arguments = ("--against", "other", "--rounds", "2", "--json", "-o", "record")
    result = cli("profile", fake_bundle, *arguments).json
    assert set(result) >= {"device", "conditions", "results", "speedup"}
    for row in result["results"]:
        keys = {
            "bundle",
            "median_ms",
            "p90_ms",
            "p99_ms",
            "ci95_ms",
            "rounds",
            "samples",
            "peak_memory_bytes",
        }
        assert set(row) >= keys
        assert row["rounds"] == 2
        assert len(row["ci95_ms"]) == 2
    speedup = result["speedup"][fake_bundle.name]
    assert set(speedup) >= {"ratio", "ci95"}
    assert speedup["ratio"] == pytest.approx(1, abs=0.2)  # the fake jitters by a few percent
    assert list((tmp_path / "record").iterdir())


def test_targets_json_lists_every_target_of_the_contract(cli):
    rows = cli("targets", "--json").json["targets"]
    names = {"onnx", "ort", "openvino", "trt", "trt-rtx", "coreml", "coreai", "executorch", "web"}
    assert {row["name"] for row in rows} == names
    assert len(rows) == len(names)
    for row in rows:
        assert set(row) >= {"name", "available", "builds_here", "runs_here", "install"}
        assert row["install"]
        assert isinstance(row["available"], bool)


@pytest.mark.parametrize("verb", ["targets", "methods", "doctor"])
def test_json_alone_is_on_standard_output(cli, verb):
    result = cli(verb, "--json")
    assert result.code == 0
    assert result.json


# For people


def test_export_says_what_came_out_and_what_to_do_next(cli, program_file):
    result = cli("export", program_file, "--target", "fake", "-o", "out")
    assert result.code == 0
    assert "MACs" in result.out
    assert "next: edgevit eval out --data DATA" in result.out


def test_export_without_o_names_the_bundle_after_model_target_and_method(cli, module_file, tmp_path):
    cli("export", module_file, "--trust-pickle", "--target", "fake", "--reduce", "tome:r=2")
    assert [p.name for p in tmp_path.iterdir()] == ["tiny-fake-tome"]


def test_tables_of_eval_profile_targets_methods_doctor(cli, fake_bundle, pictures):
    for argv, words in (
        (("eval", fake_bundle, "--data", pictures.csv), ("top-1", "tiny")),
        (("eval", fake_bundle, "--data", pictures.csv, "--against", fake_bundle), ("agreement", "100.00")),
        (("profile", fake_bundle, "--rounds", "1"), ("median", "tiny")),
        (("targets",), ("openvino", "coreml", "executorch")),
        (("methods",), ("tome", "evit", "keep")),
        (("doctor",), ("torch", "target", "CPU")),
    ):
        result = cli(*argv)
        assert result.code == 0, argv
        for word in words:
            assert word in result.out, (argv, word)


def test_labels_are_copied_into_the_bundle_and_hashed(cli, program_file, tmp_path):
    names = [f"class {i}" for i in range(10)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    assert cli("export", program_file, "--target", "fake", "--labels", "names.txt", "-o", "out").code == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert (tmp_path / "out" / manifest["labels"]).read_text().splitlines() == names
    assert manifest["labels"] in manifest["files"]


def test_gates_that_hold_are_recorded_beside_their_baseline(cli, program_file, pictures, tmp_path):
    arguments = ("--target", "fake", "--eval", pictures.csv, "--max-drop", "0", "-o", "out", "--json")
    gate = cli("export", program_file, *arguments).json["gate"]
    assert gate["drop"] == 0
    assert gate["against"]["agreement"] == 100
    assert json.loads((tmp_path / "out" / "report.json").read_text())["gate"] == gate


def test_a_bundle_of_a_batch_says_so_in_its_input(cli, module_file, tmp_path):
    arguments = (
        "--trust-pickle",
        "--target",
        "fake",
        "--batch",
        "2",
        "--reduce",
        "evit:keep=0.5@1",
        "-o",
        "out",
    )
    assert cli("export", module_file, *arguments).code == 0
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["input"]["shape"] == [2, 3, 32, 32]
    assert manifest["output"]["shape"] == [2, 10]


# inspect


def test_inspect_a_model(cli, module_file):
    found = cli("inspect", module_file, "--trust-pickle", "--reduce", "tome:r=4@1", "--json").json
    assert (found["blocks"], found["prefix"], found["grid"]) == (2, 1, [4, 4])
    assert found["tokens"] == [13, 13]
    assert found["macs"]["reduced"] < found["macs"]["dense"]
    assert any("topk" in name for name in found["operators"])


def test_inspect_a_program_without_adapter(cli, program_file):
    result = cli("inspect", program_file)
    assert result.code == 0
    assert "no blocks to take apart" in result.out
    assert "aten" in result.out


def test_inspect_a_bundle(cli, fake_bundle):
    found = cli("inspect", fake_bundle, "--json").json
    assert found["target"] == "fake"
    assert found["check"]["reference"] == "eager fp32"
    assert cli("inspect", fake_bundle).out.startswith("bundle")


def test_inspect_regions(cli, refused, module_file, fake_bundle):
    arguments = ("inspect", module_file, "--trust-pickle", "--regions")
    found = cli(*arguments, "--json").json["regions"]
    assert {row["region"] for row in found["layers"]} == {"stem", "transformer", "head"}
    assert found["summary"]["transformer"]["layers"] == 8
    text = cli(*arguments).out
    assert "attention-core" in text
    assert "blocks.1.mlp.fc2" in text
    assert "is a bundle" in refused("inspect", fake_bundle, "--regions")


def test_inspect_draws_kept_tokens_of_several_images(cli, module_file, pictures, tmp_path):
    images = [word for file in pictures.files[:2] for word in ("--image", file)]
    arguments = ("--trust-pickle", "--reduce", "evit:keep=0.5@1", *images, "-o", "pictures")
    assert cli("inspect", module_file, *arguments).code == 0
    assert [p.name for p in tmp_path.rglob("*")] == ["pictures", "tokens.png"]
    with Image.open(tmp_path / "pictures" / "tokens.png") as picture:
        picture.load()
        assert len(picture.convert("RGB").getcolors(2**24)) > 10  # a drawing, not a blank sheet


def test_inspect_image_without_a_schedule_says_what_to_add(refused, module_file, pictures):
    message = refused("inspect", module_file, "--trust-pickle", "--image", pictures.files[0])
    assert "pass --reduce SPEC" in message


# A model that no adapter knows, on the real runtimes


@pytest.fixture(scope="module")
def convnet(tmp_path_factory):
    """Factory: a small convolutional network of timm as a program, with weights that tell images apart."""
    import timm

    def build(name, classifier):
        with torch.random.fork_rng(), torch.no_grad():
            torch.manual_seed(0)
            model = timm.create_model(name, num_classes=10).eval()
            model.get_submodule(classifier).weight.normal_(0, 0.3)
        path = tmp_path_factory.mktemp("convnet") / f"{name}.pt2"
        torch.export.save(torch.export.export(model, (torch.zeros(1, 3, 64, 64),)), path)
        return path

    return build


@pytest.mark.parametrize(
    ("target", "package", "precision"),
    [
        ("openvino", "openvino", []),
        ("ort", "onnxruntime", ["--int8"]),
        pytest.param("ort", "onnxruntime", [], marks=pytest.mark.slow),
        pytest.param("openvino", "openvino", ["--int8"], marks=pytest.mark.slow),
        pytest.param("onnx", "onnx", [], marks=pytest.mark.slow),
        pytest.param("onnx", "onnx", ["--int8"], marks=pytest.mark.slow),
    ],
)
def test_a_convnet_without_adapter_exports(cli, convnet, pictures, target, package, precision):
    pytest.importorskip(package)
    calib = ["--calib", pictures.csv] if precision else []
    model = convnet("test_resnet", "fc")
    result = cli("export", model, "--target", target, *precision, *calib, "-o", "out", "--json").json
    assert result["tokens"] == []
    assert result["macs"]["dense"] == result["macs"]["reduced"] > 0
    if precision:
        assert result["precision"].startswith("int8")
        assert result["checks"]["sqnr_db"] > 10  # eight bits on random weights; a broken scale gives below 0
    else:
        assert result["checks"]["relative_diff"] < 1e-4  # the same operators in another order of summation
    found = cli("eval", "out", "--data", pictures.csv, "--json").json["results"][0]
    assert found["images"] == 10


@pytest.mark.slow
def test_a_network_with_linears_on_channels_last_maps_quantizes(cli, convnet, pictures):
    """ConvNeXt and the hybrids built like it (EdgeNeXt) apply Linear to `[B, H, W, C]`."""
    model = convnet("test_convnext", "head.fc")
    arguments = ("--target", "fake", "--int8", "--calib", pictures.csv, "-o", "out", "--json")
    assert cli("export", model, *arguments).json["checks"]["sqnr_db"] > 10


# Starting


def best_of(count: int, argv: list[str]) -> tuple[float, str]:
    """Seconds of the fastest run, and its standard output."""
    times = []
    for _ in range(count):
        start = time.perf_counter()
        done = subprocess.run([sys.executable, "-P", *argv], capture_output=True, text=True, check=True)
        times.append(time.perf_counter() - start)
    return min(times), done.stdout


def test_import_is_quick_and_brings_no_heavy_package():
    code = (
        "import sys, time; t = time.perf_counter(); import edgevit; s = time.perf_counter() - t; "
        "print(s, *{'torch', 'numpy', 'timm', 'onnx', 'onnxruntime', 'openvino', 'rich', 'PIL'} & set(sys.modules))"
    )
    seconds = []
    for _ in range(5):
        words = best_of(1, ["-c", code])[1].split()
        assert words[1:] == []
        seconds.append(float(words[0]))
    assert min(seconds) < 0.15


def test_help_starts_quickly_and_names_every_verb():
    seconds, text = best_of(5, ["-m", "edgevit", "--help"])
    assert seconds < 0.3
    for verb in ("export", "eval", "profile", "inspect", "targets", "methods", "doctor", "demo"):
        assert verb in text


@pytest.mark.parametrize("verb", ["export", "eval", "profile", "inspect", "targets", "methods", "doctor", "demo"])
def test_help_of_a_verb_says_what_each_flag_is(verb, capsys):
    from edgevit.cli import parser

    actions = parser(verb)._subparsers._group_actions[0].choices[verb]._actions
    assert [a.option_strings or a.dest for a in actions if not a.help] == []


def test_version(capsys):
    import edgevit
    from edgevit.cli import run

    with pytest.raises(SystemExit) as ended:
        run(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out.strip() == f"edgevit {edgevit.__version__}"
