"""A TensorRT bundle on the loopback board, where a stand-in for trtexec replays what the real one prints."""

import json

import pytest

from edgevit import cli
from edgevit.devices import history
from tests.devices.bundles import bundle

LAYERS = {
    "Layers": [
        {"Name": "_gemm_mha_v2_0", "LayerType": "kgen", "Metadata": "[ONNX Layer: blocks.0/node_sdpa]"},
        {"Name": "fc1", "LayerType": "kgen", "Metadata": "[ONNX Layer: blocks.0.reduction/node_topk_1]"},
    ],
    "Bindings": ["images"],
}
TRTEXEC = """#!/bin/sh
# edgevit: fake
cd "$(dirname "$0")"
echo "$*" >>calls
version=$(cat version)
for word; do
  case "$word" in
    --saveEngine=*) plan=${word#*=};; --exportLayerInfo=*) layers=${word#*=};; --exportTimes=*) times=${word#*=};;
    --exportProfile=*) profile=${word#*=};;
    --loadEngine=*) [ "$(cat "${word#*=}")" = plan ] || exit 9;;
  esac
done
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v$version] # trtexec $*"
[ "$1" = --help ] && exit 0
if [ -n "$plan" ] && [ -e refuse ]; then
  echo '[10/02/2026-09:00:10] [E] [TRT] (/Sub: ElementWiseOperation SUB must have same input types. But they are of types Half and Float.)' >&2
  echo "&&&& FAILED TensorRT.trtexec [TensorRT v$version] # trtexec $*"
  exit 1
elif [ -n "$plan" ]; then
  printf plan >"$plan"
  cp layers.json "$layers"
  echo '[10/02/2026-09:00:10] [I] Engine built in 9.5 sec.'
elif [ -n "$profile" ]; then
  cp profile.json "$profile"
else
  cp times.json "$times"
  echo '[10/02/2026-09:00:10] [I] Engine deserialized in 0.025 sec.'
  echo '[10/02/2026-09:00:10] [I] Starting inference'
  echo '[10/02/2026-09:00:10] [I] Successfully captured CUDA graph for the current execution context'
  echo '[10/02/2026-09:00:13] [I] Timing trace has 100 queries over 1.5 s'
  echo '[10/02/2026-09:00:13] [W] * GPU compute time is unstable, with coefficient of variance = 5%.'
fi
echo "&&&& PASSED TensorRT.trtexec [TensorRT v$version] # trtexec $*"
"""  # noqa: E501
TIMES_MS = [1.25 + number / 1024 for number in range(100)]


@pytest.fixture
def profile(board, tmp_path, monkeypatch, capsys):
    """Factory: `edgevit profile` of a bundle on the board; its exit status and JSON, or its last line."""
    (board.bin / "trtexec").write_text(TRTEXEC)
    (board.bin / "trtexec").chmod(0o755)
    (board.bin / "version").write_text("100300")
    (board.bin / "layers.json").write_text(json.dumps(LAYERS))
    (board.bin / "times.json").write_text(json.dumps([{"computeMs": value} for value in TIMES_MS]))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("EDGEVIT_HOME", str(tmp_path / "home"))
    words = [f"{key}={value}" for key, value in board.table.items() if key != "transport"]
    assert cli.run(["devices", "add", "orin", "ssh", *words]) == 0
    one = str(bundle(tmp_path / "one", target="trt"))

    def run(*flags):
        capsys.readouterr()
        status = cli.run(["profile", one, "--rounds", "2", "--no-collect", "--json", *(flags or ("--device", "orin"))])
        out, err = capsys.readouterr()
        return (status, json.loads(out)) if status == 0 else (status, err.splitlines()[-1])

    return run


def builds(board):
    return [line for line in (board.bin / "calls").read_text().splitlines() if "--saveEngine=" in line]


def test_the_board_builds_once_and_the_rounds_are_its_own_times(board, profile):
    status, found = profile()
    assert status == 0
    row = found["results"][0]
    assert (row["runtime"], row["runtime_version"], row["samples"], row["rounds"]) == ("tensorrt", "10.3.0", 200, 2)
    assert row["median_ms"] == pytest.approx((TIMES_MS[49] + TIMES_MS[50]) / 2)
    assert row["load_ms"] == pytest.approx(25)
    assert row["first_ms"] is None  # trtexec keeps its warm-up to itself
    assert row["warmup"]["unstable_rounds"] == 2  # these times climb
    how = found["conditions"]["built"]["one"]
    assert how["attention"] == {"layers": 2, "fused": 1, "softmax": 0}
    assert not how["cached"]
    assert "--stronglyTyped" in how["command"]
    assert found["fake"] is True
    assert any(text.startswith("FAKE") for text in found["notes"])
    (line, _) = history.session(history.sessions()[0]["session"])["rounds"]
    assert line["fake"] is True
    assert "--noDataTransfers" in line["applied"]["command"]

    assert profile()[1]["conditions"]["built"]["one"]["cached"]
    assert len(builds(board)) == 1
    (board.bin / "version").write_text("101601")  # another TensorRT: its engines are others
    assert not profile()[1]["conditions"]["built"]["one"]["cached"]
    assert len(builds(board)) == 2
    assert len(list((board.folder / "work" / "engines").glob("*/model.plan"))) == 2


def test_its_layers_are_those_of_the_model(board, profile):
    rows = [{"name": "_gemm_mha_v2_0", "timeMs": 9, "averageMs": 3.0}, {"name": "fc1", "timeMs": 3, "averageMs": 1.0}]
    (board.bin / "profile.json").write_text(json.dumps([{"count": 3}, *rows]))
    status, found = profile("--device", "orin", "--layers")
    assert status == 0
    one = found["layers"]["one"]
    assert one["fake"] is True
    assert [(row["place"], row["ms"]) for row in one["places"]] == [("blocks.0", 3.0), ("blocks.0.reduction", 1.0)]
    assert one["reduction"]["operators"] == [{"operator": "topk", "ms": 1.0, "share": 0.25}]


def test_a_build_that_fails_says_why_and_leaves_nothing(board, profile):
    (board.bin / "refuse").touch()
    status, text = profile()
    assert status == 1
    assert "one: building on the device failed (exit status 1): runner_trtexec: trtexec 10.3.0 failed: " in text
    assert text.endswith("two types meet in the ONNX file: export it again")
    assert [p for p in (board.folder / "work" / "engines").iterdir() if p.is_dir()] == []


@pytest.mark.slow
@pytest.mark.parametrize(("version", "reason"), [("8601", "use TensorRT 10 or later"), ("gone", "has no banner")])
def test_a_board_without_a_usable_trtexec(board, profile, version, reason):
    (board.bin / "version").write_text(version)
    if version == "gone":
        (board.bin / "trtexec").write_text("#!/bin/sh\necho not found\n")
    status, text = profile()
    assert status == 1
    assert reason in text


def test_here_it_cannot_be_timed(profile):
    status, text = profile("--rounds", "1")
    assert status == 1
    assert "this machine cannot time trt" in text
