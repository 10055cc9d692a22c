"""The kinds of block that a timm VisionTransformer is built of, each in parts.

Block                 pre-norm                                  ViT, DeiT, DINOv2, CLIP, SigLIP, ...
ResPostBlock          post-norm: the norms are on what is added
ParallelThingsBlock   several attentions side by side, then several feed-forwards (Touvron et al., arXiv:2203.09795)
ParallelScalingBlock  attention and feed-forward side by side, one Linear in front (Dehghani et al., arXiv:2302.05442)
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import nn

from edgevit.adapters.block import Block, heads_first, heads_last, linear_macs
from edgevit.adapters.timm_block import ResidualBlock, project_part, project_qkv, projection_macs
from edgevit.stages import Tap

if TYPE_CHECKING:
    from edgevit.stages import BlockView
    from edgevit.tokens.protocol import Tokens

CHILDREN = {
    "Block": {"norm1", "attn", "ls1", "drop_path1", "norm2", "mlp", "ls2", "drop_path2"},
    "ResPostBlock": {"norm1", "attn", "drop_path1", "norm2", "mlp", "drop_path2"},
    "ParallelThingsBlock": {"attns", "ffns"},
    "ParallelScalingBlock": {
        "in_norm", "in_proj", "q_norm", "k_norm", "attn_drop", "mlp_drop", "mlp_act", "out_proj", "attn_out_proj",
        "mlp_out_proj", "ls", "drop_path",
    },
}  # fmt: skip
BRANCH_CHILDREN = {"norm", "attn", "mlp", "ls", "drop_path"}


def in_parts(block: nn.Module) -> BlockView:
    """A block of one of the known kinds as a `BlockView`."""
    kind = type(block).__name__
    if kind == "ParallelThingsBlock":
        return ThingsBlock(block)
    if kind == "ParallelScalingBlock":
        return ScalingBlock(block)
    return ResidualBlock(block, post_norm=kind == "ResPostBlock")


class ThingsBlock(Block):
    """timm's `ParallelThingsBlock`: its attentions, all of one shape, are one attention with more heads."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block: Any = block
        attentions = [branch.attn for branch in block.attns]
        self.attention_width = sum(int(a.proj.in_features) for a in attentions)
        self.macs_per_token = (sum(map(projection_macs, attentions)), linear_macs(block.ffns))

    def project(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Heads of all attentions, one after the other."""
        parts = []
        for branch in self.block.attns:
            q, k, v = project_qkv(branch.attn, branch.norm(x))
            parts.append((branch.attn.q_norm(q), branch.attn.k_norm(k), v))
        q, k, v = (torch.cat(same, dim=1) for same in zip(*parts, strict=True))
        return Tap(q, k, v, self.block.attns[0].attn.scale)

    def query_keys(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Queries and keys alone; `v` is a stand-in without columns."""
        q = torch.cat([b.attn.q_norm(project_part(b.attn, b.norm(x), "q")) for b in self.block.attns], dim=1)
        k = torch.cat([b.attn.k_norm(project_part(b.attn, b.norm(x), "k")) for b in self.block.attns], dim=1)
        return Tap(q, k, q[..., :0], self.block.attns[0].attn.scale)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values alone: `[B, N, C]` → `[B, H, N, d]`."""
        return torch.cat([project_part(b.attn, b.norm(x), "v") for b in self.block.attns], dim=1)

    def finish(self, x: torch.Tensor, attended: torch.Tensor, tap: Tap) -> torch.Tensor:
        """Each attention's own heads, norm, gate, projection and scale; all are added."""
        out = x
        heads = torch.split(attended, [branch.attn.num_heads for branch in self.block.attns], dim=1)
        for branch, own in zip(self.block.attns, heads, strict=True):
            attention = branch.attn
            merged = heads_last(own)
            norm, gate = getattr(attention, "norm", None), getattr(attention, "gate", None)
            merged = merged if norm is None else norm(merged)
            merged = merged if gate is None else merged * gate(branch.norm(x)).sigmoid()
            out = out + branch.ls(attention.proj(merged))
        return out

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N', C]` → `[B, N', C]`."""
        out = x
        for branch in self.block.ffns:
            out = out + branch(x)
        return out


class ScalingBlock(Block):
    """timm's `ParallelScalingBlock`.

    Its feed-forward reads what the attention reads, so a reduction can only stand behind both: `finish` does both and
    `feed_forward` nothing. A method with placement "early" still spares half of them.
    """

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.block: Any = block
        self.attention_width: int = block.num_heads * block.head_dim
        self.macs_per_token = (linear_macs(block), 0)

    def project(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """One Linear gives queries, keys, values and the hidden layer, which travels as the gate."""
        block = self.block
        hidden, q, k, v = block.in_proj(block.in_norm(x)).split(block.in_split, dim=-1)
        q, k, v = (heads_first(part, block.num_heads) for part in (q, k, v))
        return Tap(block.q_norm(q), block.k_norm(k), v, block.scale, gate=hidden)

    def query_keys(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Queries and keys alone; `v` is a stand-in without columns."""
        block = self.block
        q, k = (heads_first(self._part(x, index), block.num_heads) for index in (1, 2))
        return Tap(block.q_norm(q), block.k_norm(k), q[..., :0], block.scale)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values alone: `[B, N, C]` → `[B, H, N, d]`."""
        return heads_first(self._part(x, 3), self.block.num_heads)

    def _part(self, x: torch.Tensor, index: int) -> torch.Tensor:
        """Hidden layer, queries, keys or values (0 to 3) of the one Linear."""
        block = self.block
        first = sum(block.in_split[:index])
        rows = slice(first, first + block.in_split[index])
        bias = None if block.in_proj.bias is None else block.in_proj.bias[rows]
        return F.linear(block.in_norm(x), block.in_proj.weight[rows], bias)

    def finish(self, x: torch.Tensor, attended: torch.Tensor, tap: Tap) -> torch.Tensor:
        """Activation, both output projections, layer scale, residual."""
        block = self.block
        hidden = self._part(x, 0) if tap.gate is None else tap.gate
        hidden = block.mlp_act(hidden if block.mlp_bias is None else hidden + block.mlp_bias)
        out = heads_last(attended)
        if block.out_proj is not None:
            added = block.out_proj(torch.cat([out, hidden], dim=-1))
        else:
            added = block.attn_out_proj(out) + block.mlp_out_proj(hidden)
        result: torch.Tensor = x + block.ls(added)
        return result

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """Done in `finish`."""
        return x
