"""Traced tiny models, each traced once."""

import pytest
import torch

from edgevit.adapters import adapt
from edgevit.export.trace import trace
from edgevit.reduce import reduce
from edgevit.stages import InputSpec
from edgevit.tokens.schedule import parse_schedule

INPUTS = InputSpec(1, 32, 32)


def build_vit(**options):
    """A 32-pixel ViT with 16 patches whose weights, biases and gains all matter."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
    model = VisionTransformer(**{**sizes, **options})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and "norm" in name:
                parameter.uniform_(0.2, 0.8, generator=generator)
            else:
                parameter.normal_(0, 0.2, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def traced():
    """Factory: the Graph of a tiny ViT under a schedule. Programs are shared: change only `program.module()`."""
    pytest.importorskip("timm")
    graphs = {}

    def get(schedule="none", **options):
        key = schedule, tuple(sorted(options.items()))
        if key not in graphs:
            module = reduce(adapt(build_vit(**options)), parse_schedule(schedule)).module
            graphs[key] = trace(module, INPUTS)
        return graphs[key]

    return get


@pytest.fixture(scope="session")
def hybrid():
    """Factory: a random hybrid of tests/quant/hybrids.py, and its input."""
    pytest.importorskip("timm")
    from tests.quant.hybrids import HYBRIDS, build

    return lambda name: (build(name), InputSpec(1, HYBRIDS[name].size, HYBRIDS[name].size))
