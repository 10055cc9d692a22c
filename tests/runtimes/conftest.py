"""Engines of tiny models: traced, quantized and built once per target."""

import numpy as np
import pytest
import torch

from edgevit.adapters import adapt
from edgevit.export.trace import trace
from edgevit.quant.apply import quantize
from edgevit.reduce import reduce
from edgevit.runtimes import runtime
from edgevit.stages import InputSpec
from edgevit.tokens.schedule import parse_schedule

INPUTS = InputSpec(1, 32, 32)
EXTRA = {
    "onnx": "onnxruntime", "ort": "onnxruntime", "openvino": "openvino", "coreai": "coreai", "web": "onnxruntime",
    "executorch": "executorch", "fake": "torch",
}  # fmt: skip


def build_vit():
    """A 32-pixel ViT whose outputs depend on the image."""
    from timm.models.vision_transformer import VisionTransformer

    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=32, depth=2, num_heads=2, num_classes=7)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


def drawn(seed, count):
    generator = np.random.default_rng(seed)
    return [generator.standard_normal(INPUTS.shape).astype(np.float32) for _ in range(count)]


@pytest.fixture(scope="session")
def images():
    """Test images, which calibration has not seen."""
    return drawn(1, 8)


@pytest.fixture(scope="session")
def eager():
    """Factory: the eager module of a schedule."""
    pytest.importorskip("timm")
    modules = {}

    def get(schedule="none"):
        if schedule not in modules:
            modules[schedule] = reduce(adapt(build_vit()), parse_schedule(schedule)).module
        return modules[schedule]

    return get


@pytest.fixture(scope="session")
def graph(eager):
    """Factory: the Graph of a schedule, quantized for a target when one is named; by default as this machine wants."""
    graphs = {}

    def get(schedule="none", target=None, precision="int8"):
        precision = target and runtime(target).resolve(precision)
        key = schedule, target, precision
        if key not in graphs:
            if target is None:
                graphs[key] = trace(eager(schedule), INPUTS)
            else:
                policy = runtime(target).policy
                scheme = policy.quantizes(precision)
                graphs[key] = quantize(get(schedule), scheme, policy.rewrites, drawn(0, 8), 8)
        return graphs[key]

    return get


@pytest.fixture(scope="session")
def engine(graph, tmp_path_factory):
    """Factory: (runtime, engine) of a target, schedule and precision."""
    engines = {}

    def get(target, schedule="none", precision="fp32"):
        pytest.importorskip(EXTRA[target])
        key = target, schedule, precision
        if key not in engines:
            found = runtime(target)
            exact = found.resolve(precision)
            program = graph(schedule, target if precision.startswith("int8") else None, exact)
            assert found.refuses(program) == []
            engines[key] = found, found.build(program, tmp_path_factory.mktemp("engine"), exact)
        return engines[key]

    return get
