"""Layer times by block and reduction step, of engines as they are exported."""

import json
import tempfile

import pytest

from edgevit.devices.by_layer import placed, summary
from edgevit.devices.runner_ort import LAYER_WARM_UP, read_events
from edgevit.devices.trt_layers import Layers, read_profile
from edgevit.errors import MeasureError
from edgevit.places import Placer


def test_places_of_modules():
    placer = Placer()
    assert placer.place("model.patch_embed.proj", []) == "stem"
    assert placer.place("model.blocks.0.attn.qkv", []) == "blocks.0"
    assert placer.place("model.stages.1.blocks.2.mlp", []) == "stages.1"
    assert placer.place("model.blocks.0.reducer", ["edgevit.reduced_vit.Reducer"]) == "blocks.0.reduction"
    assert placer.place("model.norm", []) == "head"


def test_a_layer_without_a_place_is_where_the_next_one_is():
    rows = placed(
        [["stem/conv", "Conv", 1.0], ["reorder_7", "Reorder", 2.0], ["blocks.0/fc", "Gemm", 3.0], ["x", "y", 4]]
    )
    assert [row["place"] for row in rows] == ["stem", "blocks.0", "blocks.0", "blocks.0"]
    assert [row["by_neighbour"] for row in rows] == [False, True, False, True]
    assert placed([["a/b", "c", 1.0]])[0]["place"] == "elsewhere"


def test_the_sums():
    layers = [["blocks.0/fc", "Gemm", 6.0], ["blocks.0.reduction/topk", "TopK", 1.0]]
    found = summary([*layers, ["blocks.0.reduction/take", "Gather", 3.0]])
    assert found["layers_ms"] == 10
    assert found["reduction"]["share"] == 0.4
    assert [row["operator"] for row in found["reduction"]["operators"]] == ["Gather", "TopK"]
    assert sum(row["ms"] for row in found["places"]) == 10


def test_events_of_the_warm_up_are_left_out():
    event = {"cat": "Node", "name": "blocks.0/fc_kernel_time", "args": {"op_name": "Gemm"}}
    slow = [{**event, "dur": 9000}] * LAYER_WARM_UP
    assert read_events([{"cat": "Session", "name": "x"}, *slow, {**event, "dur": 2000}]) == [
        ["blocks.0/fc", "Gemm", 2.0]
    ]


def test_a_profile_of_trtexec_whose_names_break_its_json():
    layers = Layers(('a "b"', "c"), (), (), {'a "b"': ("blocks.1.reduction/node_topk_3",), "c": ()})
    text = '[{ "count" : 9 }\n, { "name" : "a "b"", "timeMs" : 9, "averageMs" : 0.5, "medianMs" : 0.4 }\n'
    text += ', { "name" : "c", "timeMs" : 1, "averageMs" : 0.25, "percentage" : 1 }]'
    found = read_profile(text, layers)
    assert found == [("blocks.1.reduction/node_topk_3", "topk", 0.4), ("c", "c", 0.25)]
    with pytest.raises(MeasureError, match="no row has averageMs"):
        read_profile("[]", layers)


def test_a_runtime_that_times_no_layers_says_so(job):
    from edgevit.devices.layered import time_layers
    from edgevit.devices.plan import BenchPlan

    with pytest.raises(MeasureError, match="runner 'fake' times no single layers"):
        time_layers([job()], BenchPlan())


@pytest.mark.parametrize("target", ["ort", pytest.param("openvino", marks=pytest.mark.slow)])
def test_an_exported_bundle_says_what_its_reduction_costs(cli, module_file, target, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # a lock of the test's own
    pytest.importorskip({"ort": "onnxruntime", "openvino": "openvino"}[target])
    words = ("--trust-pickle", "--target", target, "--reduce", "tome:r=4@1", "-o", "out")
    assert cli("export", module_file, *words).code == 0
    result = cli("profile", "out", "--layers", "--json")
    assert result.code == 0, result.err
    found = result.json["layers"]["out"]
    names = [row["place"] for row in found["places"]]
    assert {"stem", "blocks.0", "blocks.0.reduction", "blocks.1", "head"} <= set(names)
    assert "blocks.1.reduction" not in names  # a step in the first block alone
    operators = {row["operator"].lower() for row in found["reduction"]["operators"]}
    # OpenVINO's counters are whole microseconds: a fast machine's top-k of this tiny model is below one.
    assert ("topk" if target == "ort" else "matmul") in operators
    assert 0 < found["reduction"]["share"] < 1
    assert found["by_neighbour_ms"] < 0.3 * found["layers_ms"]  # most layers say where they are
    assert json.dumps(found["layers"])
