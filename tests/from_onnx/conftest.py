"""Small ONNX files: written as text in ONNX's own grammar, or by torch's exporters."""

import contextlib
import io
import warnings

import onnx
import pytest

from tests.from_onnx.reducing import Reducing

SIZE = 32


def parse(text, opset=17):
    """A model from text, with every operator domain that the tests use; `float[] y` gets the shape that follows."""
    header = f'<ir_version: 8, opset_import: ["" : {opset}, "com.microsoft" : 1]>'
    model = onnx.parser.parse_model(text if text.lstrip().startswith("<") else header + text)
    # with data_prop onnx itself fills a Range of any length
    shapes = {
        o.name: o.type for o in onnx.shape_inference.infer_shapes(model, data_prop="Range" not in text).graph.output
    }
    for output in model.graph.output:
        if not output.type.tensor_type.HasField("shape"):
            output.type.CopyFrom(shapes[output.name])
    return model


@pytest.fixture
def onnx_file(tmp_path):
    """Factory: `onnx_file(text or model)` writes a file and returns its path."""

    def write(model, name="model.onnx", opset=17):
        if isinstance(model, str):
            model = parse(model, opset)
        path = tmp_path / name
        path.write_bytes(model.SerializeToString())
        return path

    return write


@pytest.fixture
def exported(tmp_path):
    """Factory: write a module with one of torch's exporters; `dynamic`: in the batch. Input pixels, output scores."""
    import torch

    def write(module, opset, dynamo, dynamic=True, size=SIZE, dtype=torch.float32):
        path = tmp_path / "exported.onnx"
        images = torch.zeros(
            2 if dynamic and dynamo else 1, 3, *(size if isinstance(size, tuple) else (size, size)), dtype=dtype
        )
        options = {"dynamo": dynamo, "opset_version": opset, "input_names": ["pixels"], "output_names": ["scores"]}
        if dynamo:
            options["dynamic_shapes"] = ({0: torch.export.Dim("batch")},) if dynamic else None
            options["verbose"] = False
        elif dynamic:
            options["dynamic_axes"] = {"pixels": {0: "batch"}, "scores": {0: "batch"}}
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")  # of deprecation, from exporters whose files people have
            torch.onnx.export(module, (images,), str(path), **options)
        return path

    return write


@pytest.fixture
def reducing(exported, tiny_vit):
    """Factory: a reducing module and its file."""

    def make(step, opset, dynamo, dynamic=False):
        module = Reducing(tiny_vit(), step).eval()
        return module, exported(module, opset, dynamo, dynamic)

    return make
