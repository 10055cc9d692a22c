"""Tiny traced models and calibration images; each quantization runs once."""

import numpy as np
import pytest
import torch

from edgevit.adapters import adapt
from edgevit.export.trace import trace
from edgevit.quant.apply import quantize
from edgevit.quant.scheme import QuantScheme
from edgevit.reduce import reduce
from edgevit.stages import InputSpec
from edgevit.tokens.schedule import parse_schedule

INPUTS = InputSpec(1, 32, 32)
REWRITES = {
    "none": (),
    "ort": ("patches_as_linear", "fold_attention_scale"),
    "openvino": ("patches_as_linear", "split_qkv", "fold_attention_scale", "drop_unread_tokens", "fold_norm_affine"),
}


def build_vit(**options):
    """A 32-pixel ViT whose outputs depend on the image, with one loud activation channel as real ones have."""
    from timm.models.vision_transformer import VisionTransformer

    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 32, "depth": 2, "num_heads": 2, "num_classes": 7}
    model = VisionTransformer(**{**sizes, **options})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.normal_(0, 0.2, generator=generator)
        for block in model.blocks:
            block.norm2.weight[3] = 20.0
    return model.eval()


@pytest.fixture(scope="session")
def images():
    """Calibration images, batches of one."""
    generator = np.random.default_rng(0)
    return [generator.standard_normal(INPUTS.shape).astype(np.float32) for _ in range(6)]


@pytest.fixture(scope="session")
def traced():
    """Factory: the Graph of a tiny ViT under a schedule; shared, so never changed in place."""
    pytest.importorskip("timm")
    graphs = {}

    def get(schedule="none"):
        if schedule not in graphs:
            graphs[schedule] = trace(reduce(adapt(build_vit()), parse_schedule(schedule)).module, INPUTS)
        return graphs[schedule]

    return get


@pytest.fixture(scope="session")
def quantized(traced, images):
    """Factory: the QuantizedGraph for a schedule, the passes of a target, and scheme options."""
    done = {}

    def get(schedule="none", passes="ort", **options):
        key = schedule, passes, tuple(sorted(options.items()))
        if key not in done:
            done[key] = quantize(traced(schedule), QuantScheme(**options), REWRITES[passes], images, len(images))
        return done[key]

    return get
