"""Tiny ViTs that drop or merge tokens between their two blocks, as files in the wild do."""

import pytest
import torch
from torch import nn

SAME = 1e-4  # relative: float32, sums in another order
EXPORTERS = [
    pytest.param(17, False, id="torchscript-17"),
    pytest.param(20, True, id="dynamo-20", marks=pytest.mark.slow),
]


def images(count=1):
    return torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(5))


class Reducing(nn.Module):
    """A tiny ViT that drops or merges tokens between its two blocks, in the way `step` does."""

    def __init__(self, vit, step):
        super().__init__()
        self.vit, self.step = vit, step

    def forward(self, pixels):
        vit = self.vit
        x = vit.blocks[0](vit._pos_embed(vit.patch_embed(pixels)))
        return vit.forward_head(vit.norm(vit.blocks[1](self.step(self.score(x), x))))

    def score(self, x):
        """Patches by how the class token sees them: `[B, N]`."""
        return (x[:, 1:] * x[:, :1]).mean(-1).softmax(-1)


def boolean_keep(score, x):
    """EViT's choice as a boolean mask: above the mean, and what is left fused into one token."""
    mask = score > score.mean(-1, keepdim=True)
    kept = x[:, 1:][mask].unsqueeze(0)
    rest = x[:, 1:][~mask] * score[~mask].unsqueeze(-1)
    return torch.cat([x[:, :1], kept, rest.sum(0)[None, None]], dim=1)


def tome(score, x, r=4):
    """ToMe with gather and scatter, as its authors wrote it: sums in their places, divided by sizes."""
    a, b = x[:, ::2], x[:, 1::2]
    best, to = (a[:, 1:] @ b.transpose(1, 2)).max(-1)
    order = best.argsort(dim=-1, descending=True)[..., None]
    source, stay = order[:, :r], order[:, r:].sort(dim=1).values
    width = x.shape[-1]
    target = to[..., None].gather(1, source)
    moved = a[:, 1:].gather(1, source.expand(-1, -1, width))
    sums = b.scatter_add(1, target.expand(-1, -1, width), moved)
    sizes = torch.ones_like(b[..., :1]).scatter_add(1, target, torch.ones_like(moved[..., :1]))
    return torch.cat([a[:, :1], a[:, 1:].gather(1, stay.expand(-1, -1, width)), sums / sizes], dim=1)


def drawn(score, samples=12):
    """Adaptive Token Sampling: for each of the equally spaced points the patch whose cumulative score is nearest."""
    whole = score.cumsum(-1)
    low, high = whole[:, :1], whole[:, -1:]
    points = torch.linspace(0, 1, samples)
    return ((whole - low) / (high - low))[:, None].sub(points[None, :, None]).abs().argmin(-1)


def ats(score, x):
    """ATS: the patches that were drawn, each once."""
    return torch.cat([x[:, :1], x[:, torch.unique(drawn(score) + 1)]], dim=1)


def error(checkpoint, module, pixels):
    with torch.no_grad():
        want, got = module(pixels), checkpoint.module(pixels)
    return float((got - want).abs().max() / want.abs().max())
