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


class Policied(nn.Module):
    """DynamicViT in training form (arXiv:2106.02034, equations 9 to 11): a hard decision masks every later softmax.

    No row of tokens goes; those that are dropped are zero in every later residual, and attended by themselves alone.
    """

    def __init__(self, vit):
        super().__init__()
        self.vit = vit
        self.decide = nn.Linear(vit.embed_dim, 2).requires_grad_(False)

    def forward(self, pixels):
        vit = self.vit
        x = vit.blocks[0](vit._pos_embed(vit.patch_embed(pixels)))
        keep, drop = self.decide(x[:, 1:] - x[:, 1:].mean(1, keepdim=True)).unbind(-1)
        policy = torch.cat([torch.ones_like(x[:, :1, 0]), (keep > drop).to(x.dtype)], dim=1)
        x = self.block(vit.blocks[1], x, policy)
        return vit.forward_head(vit.norm(x))

    def block(self, block, x, policy):
        attention = block.attn
        batch, count, width = x.shape
        qkv = attention.qkv(block.norm1(x)).reshape(batch, count, 3, attention.num_heads, -1)
        q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        shares = self.shares(q @ k.transpose(-2, -1) * attention.scale, policy)
        x = x + attention.proj((shares @ v).transpose(1, 2).reshape(batch, count, width)) * policy[..., None]
        return (x + block.mlp(block.norm2(x))) * policy[..., None]

    def shares(self, logits, policy, eps=1e-6):
        count = logits.shape[-1]
        seen = policy[:, None, None, :]
        seen = seen + (1 - seen) * torch.eye(count)
        shares = (logits - logits.amax(-1, keepdim=True)).exp() * seen
        return (shares + eps / count) / (shares.sum(-1, keepdim=True) + eps)

    def dropped(self, pixels):
        """How many patches the decision drops on one image."""
        found = []
        with self.decide.register_forward_hook(lambda _, given, out: found.append(out)), torch.no_grad():
            self(pixels)
        return int((found[0][..., 0] <= found[0][..., 1]).sum())


def error(checkpoint, module, pixels):
    with torch.no_grad():
        want, got = module(pixels), checkpoint.module(pixels)
    return float((got - want).abs().max() / want.abs().max())
