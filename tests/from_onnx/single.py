"""A file of a few nodes on one image, and the comparison of its import with ONNX Runtime."""

import numpy as np
import onnxruntime
import torch

from edgevit.load_onnx import load_onnx

IMAGE = "images"  # float[1, 3, 8, 8]


def graph(initializers, nodes, shape="[]"):
    """The text of a graph that makes y from the image."""
    block = f"<{initializers}>" if initializers else ""
    return f"g (float[1, 3, 8, 8] {IMAGE}) => (float{shape} y) {block} {{ {nodes} }}"


def same(path):
    """Import a file, and compare by an own session on an own image."""
    module = load_onnx(path, None, None).module
    image = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    want = session.run(None, {IMAGE: image.numpy()})[0]
    with torch.no_grad():
        got = module(image).numpy()
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)  # float32, sums in another order
    return module
