"""The smallest bundles that can be measured."""

import json
from hashlib import sha256
from importlib import resources
from pathlib import Path

import pytest


def onnx_relu(path: Path) -> Path:
    """y = relu(x), of shape [1, 3, 8, 8]."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    x, y = (onnx.helper.make_tensor_value_info(n, onnx.TensorProto.FLOAT, [1, 3, 8, 8]) for n in ("images", "y"))
    graph = onnx.helper.make_graph([onnx.helper.make_node("Relu", ["images"], ["y"])], "g", [x], [y])
    opset = [onnx.helper.make_opsetid("", 17)]
    onnx.save(onnx.helper.make_model(graph, opset_imports=opset, ir_version=8), path)
    return path


def bundle(folder: Path, target: str = "ort") -> Path:
    """A bundle as export writes it, of the smallest engine."""
    folder.mkdir()
    onnx_relu(folder / "model.onnx")
    manifest = dict.fromkeys(("precision", "check", "kept_float"), "") | {
        "schema": 1,
        "edgevit": "0",
        "model": {"name": "relu"},
        "schedule": {"text": "none", "tokens": [], "macs": {}},
        "target": target,
        "runtime": {"name": target, "version": "0", "options": {}},
        "input": {"name": "images", "shape": [1, 3, 8, 8]},
        "output": {"shape": [1, 3, 8, 8]},
        "preprocess": {"size": [8, 8]},
        "entry": "model.onnx",
        "files": {"model.onnx": sha256((folder / "model.onnx").read_bytes()).hexdigest()},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder


def web_bundle(folder: Path) -> Path:
    """The same for a browser: relu, the page, and onnxruntime-web for WASM."""
    from edgevit.runtimes.web import PAGE, WASM, Web

    bundle(folder, "web")
    copied = Web()._copy_runtime(folder / "ort", WASM)
    options = {"session_config": {}, "backends": ["wasm"]}
    (folder / "engine.json").write_text(json.dumps({"model": "model.onnx", "precision": "fp32", **options}))
    for name in PAGE:
        (folder / name).write_bytes(resources.files("edgevit.web").joinpath(name).read_bytes())
    names = ("model.onnx", "engine.json", *PAGE, *copied)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest |= {"entry": "index.html", "precision": "fp32"}
    manifest["runtime"]["options"] = options
    manifest["files"] = {name: sha256((folder / name).read_bytes()).hexdigest() for name in names}
    (folder / "manifest.json").write_text(json.dumps(manifest))
    return folder
