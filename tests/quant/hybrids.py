"""The hybrid families: the smallest variant of each, at a small input, with weights that make a wrong fold visible."""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import nn

from edgevit.export.trace import trace
from edgevit.reparameterize import reparameterize
from edgevit.stages import Graph, InputSpec


class Hybrid(NamedTuple):
    """A timm architecture and the pixels of its square input.

    sized: it must be told its input size when built. depths: fewer blocks a stage than it has, for the default suite.
    """

    arch: str
    size: int
    sized: bool = False
    depths: tuple[int, ...] = ()


# A size is the smallest that the architecture takes with more than one token or window left in its last attention.
HYBRIDS = {
    "mobilevit": Hybrid("mobilevit_xxs", 64),
    "mobilevitv2": Hybrid("mobilevitv2_050", 64),
    "efficientformer": Hybrid("efficientformer_l1", 224),  # its attention bias is of a 7 x 7 map
    "efficientformerv2": Hybrid("efficientformerv2_s0", 64, sized=True),
    "fastvit": Hybrid("fastvit_sa12", 64),  # t8 and t12 have no attention
    "fastvit_mci": Hybrid("fastvit_mci0", 64),
    "efficientvit_mit": Hybrid("efficientvit_b0", 64, depths=(1, 1, 1, 1, 1)),
    "efficientvit_msra": Hybrid("efficientvit_m0", 128, sized=True),
    "levit": Hybrid("levit_128s", 64, sized=True),
    "tiny_vit": Hybrid("tiny_vit_5m_224", 64),
    "shvit": Hybrid("shvit_s1", 128),
    "nextvit": Hybrid("nextvit_small", 64),
    "edgenext": Hybrid("edgenext_xx_small", 64, depths=(1, 1, 2, 1)),
    "mobilenetv4": Hybrid("mobilenetv4_hybrid_medium_075", 64),
    "repvit": Hybrid("repvit_m0_9", 64),
    "coatnet": Hybrid("coatnet_pico_rw_224", 64, sized=True),
    "maxvit": Hybrid("maxvit_pico_rw_256", 64, sized=True),
    "swiftformer": Hybrid("swiftformer_xs", 64),
    "pit": Hybrid("pit_ti_224", 64, sized=True),
    "cait": Hybrid("cait_xxs24_224", 64, sized=True),
    "davit": Hybrid("davit_tiny", 64),
    "visformer": Hybrid("visformer_tiny", 64, sized=True),
}
CLASSES = 10


def build(name: str, size: int | None = None) -> nn.Module:
    """The family's model with random weights of a fixed seed, in evaluation.

    size: another input than the smallest; all blocks are there then.
    """
    import timm

    hybrid = HYBRIDS[name]
    options = {"img_size": size or hybrid.size} if hybrid.sized else {}
    options |= {"depths": hybrid.depths} if hybrid.depths and size is None else {}
    with torch.random.fork_rng(), torch.no_grad():
        torch.manual_seed(0)
        model = timm.create_model(hybrid.arch, num_classes=CLASSES, **options)
        spread(model)
        settle(model, draw(name, 8, size=size))
    return model.eval()


@lru_cache(maxsize=1)  # what is asked of a family follows one another
def traced_family(name: str) -> tuple[nn.Module, Graph]:
    """The family's model, and its program with training branches fused; shared, so never changed in place."""
    model, inputs = build(name), InputSpec(1, HYBRIDS[name].size, HYBRIDS[name].size)
    return model, trace(reparameterize(model, inputs)[0], inputs)


def draw(name: str, count: int, seed: int = 1, size: int | None = None) -> torch.Tensor:
    """Images `[count, 3, size, size]`: coarse random patterns, so that tokens differ."""
    size = size or HYBRIDS[name].size
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(count, 3, size // 16, size // 16, generator=generator)
    fine = torch.randn(count, 3, size, size, generator=generator)
    return nn.functional.interpolate(coarse, size=(size, size), mode="bicubic") + 0.3 * fine


def spread(model: nn.Module) -> None:
    """Gains, offsets and layer scales that differ and matter: timm starts them at 1, 0 and 1e-5."""
    for parameter in model.parameters():
        first = parameter.flatten()[0]
        if parameter.numel() == 1 or bool((parameter != first).any()):
            continue
        if first == 0:
            parameter.normal_(0, 0.1)
        elif first < 0.5:  # a layer scale
            parameter.uniform_(0.1, 0.4)
        else:
            parameter.uniform_(0.4, 1.2)


def settle(model: nn.Module, images: torch.Tensor) -> None:
    """Give every batch norm the statistics of its own input, then disturb them, so that none is 0 and 1."""
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    for norm in norms:
        norm.momentum = None  # the mean over what it saw
    model.train()
    model(images)
    for norm in norms:
        norm.running_mean.add_(norm.running_var.sqrt() * 0.2 * torch.randn_like(norm.running_mean))
        norm.running_var.mul_(torch.empty_like(norm.running_var).uniform_(0.7, 1.4))
        torch.maximum(norm.running_var, 0.1 * norm.running_mean**2, out=norm.running_var)  # else it amplifies rounding
