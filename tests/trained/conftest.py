"""Tiny trained architectures with random weights, each built once, and the comparison of a model with its exports."""

import pytest
import torch

from edgevit.trained import TRAINED, trained

pytest.importorskip("timm")
CLASSES = 5
VIT = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}
SWIN = {"patch_size": 2, "embed_dim": 12, "depths": (1, 1, 6), "num_heads": (1, 1, 2), "window_size": 4}
SETTINGS = {
    "dynamicvit": {"keep": 0.7, "blocks": (1, 2, 3), "options": VIT},
    "sit": {"stages": (1, 1, 1), "options": VIT},
    "stvit": {"semantic": 2, "options": SWIN},
    "lookupvit": {"compressed": (2, 2), "options": VIT},
    "dtem": {"r": 3, "options": VIT},
    "dtop": {"stages": (1, 2), "budgets": (12, 7), "threshold": 0.075, "context": 1, "layers": 2, "options": VIT},
}
SIZES = {name: 64 if name == "stvit" else 32 for name in TRAINED}


def draw(module, seed=0):
    """Weights that all matter; timm's own initialisation makes all images look alike."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim == 1 and ("norm" in name or "ls" in name or "scale" in name):
                parameter.uniform_(0.4, 1.2, generator=generator)
            else:
                parameter.normal_(0, 0.2, generator=generator)
    return module


def build_tiny(architecture, **changes):
    """A tiny architecture; `changes` override its settings."""
    name = "swin_tiny_patch4_window7_224" if architecture == "stvit" else "vit_tiny_patch16_224"
    size = (SIZES[architecture],) * 2
    module = draw(trained(architecture)(name, CLASSES, size, **{**SETTINGS[architecture], **changes}))
    if architecture == "dtop":
        with torch.no_grad():
            for head in module.heads:  # all classes about equally present, so that tokens differ in theirs
                head.presence.weight.mul_(0.05)
                head.presence.bias.zero_()
    return module


@pytest.fixture(scope="session")
def tiny():
    """Factory: `tiny(architecture, **changed settings)`; what is built without changes is shared."""
    shared = {}

    def get(architecture, **changes):
        if changes:
            return build_tiny(architecture, **changes)
        if architecture not in shared:
            shared[architecture] = build_tiny(architecture)
        return shared[architecture]

    return get


@pytest.fixture(scope="session")
def images():
    """Factory: `images(architecture, batch)`, the same every time."""

    def get(architecture, batch):
        size = SIZES[architecture]
        return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(7))

    return get
