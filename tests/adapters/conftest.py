"""Small timm Vision Transformers in which every parameter matters."""

import pytest
import torch


def build_vit(cls=None, seed=0, **options):
    """A 32-pixel, 16-patch model. Gains and LayerScales are in [0.2, 0.8], so a part that is left out shows."""
    if cls is None:
        from timm.models.vision_transformer import VisionTransformer as cls
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 7}
    return randomized(cls(**{**sizes, **options}), seed)


def randomized(model, seed=0):
    """Fill all parameters, tokens and position embeddings included; evaluation mode."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 and (name.endswith("gamma") or "norm" in name):
                parameter.uniform_(0.2, 0.8, generator=generator)
            elif parameter.ndim == 1 or "token" in name or "pos_embed" in name:
                parameter.normal_(0, 0.5, generator=generator)
            else:
                parameter.normal_(0, parameter[0].numel() ** -0.5, generator=generator)
    return model.eval()


@pytest.fixture(scope="session")
def vit():
    """Factory: `vit(cls=None, seed=0, **options of timm's VisionTransformer)`."""
    pytest.importorskip("timm")
    return build_vit
