"""What the adapters for transformers' models share: one tensor out of many, the block, the heads.

A transformers model returns a dataclass; an edgevit program returns one tensor. `OneTensor` picks it by name, and is
what `VitModel.module` and a loaded `hf:` model are.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from types import ModuleType
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from edgevit.adapters.block import Block, heads_first, heads_last, linear_macs
from edgevit.adapters.known import check_part
from edgevit.adapters.pooling import weighted_mean
from edgevit.errors import UnsupportedModel
from edgevit.stages import Tap

if TYPE_CHECKING:
    from edgevit.tokens.protocol import Tokens

Reader = tuple[str, nn.Module]
"""How an output pools (`VitModel.pooling`), and the head that makes it."""

MODELING = re.compile(r"transformers\.models\.(\w+)\.modeling_\1")


class OneTensor(nn.Module):
    """A transformers model that returns one tensor of its output: `logits`, `image_embeds`, `last_hidden_state`, ..."""

    def __init__(self, model: nn.Module, output: str) -> None:
        super().__init__()
        self.wrapped: Any = model
        self.output = output

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """`[B, 3, H, W]` → the tensor. Raises UnsupportedModel where the model does not return it."""
        out: torch.Tensor | None = getattr(self.wrapped(images, return_dict=True), self.output, None)
        if out is None:
            raise UnsupportedModel(f"{type(self.wrapped).__name__} returns no {self.output!r}")
        return out


def unwrap(module: nn.Module) -> tuple[Any, str | None]:
    """The transformers model, and the output that was asked for (None: the default)."""
    return (module.wrapped, module.output) if type(module) is OneTensor else (module, None)


def library(model: nn.Module) -> tuple[str, ModuleType] | None:
    """Which of transformers' models this is, and the module that defines it; importing nothing.

    >>> library(nn.Linear(1, 1)) is None
    True
    """
    for cls in type(model).__mro__:
        match = MODELING.fullmatch(cls.__module__)
        if match:
            return match[1], sys.modules[cls.__module__]
    return None


def default_output(model: nn.Module) -> str | None:
    """The output a model is used for, or None where there is no one tensor (both towers of CLIP, detectors, ...).

    Classifiers: logits. CLIP's vision tower with projection: image_embeds. SigLIP's vision tower with its attention
    pooling: pooler_output. Other encoders: last_hidden_state, all tokens.
    """
    name = type(model).__name__
    if "ForImageClassification" in name:
        return "logits"
    if name.endswith("VisionModelWithProjection"):
        return "image_embeds"
    if name == "SiglipVisionModel" and getattr(model, "use_head", False):
        return "pooler_output"
    return "last_hidden_state" if name.endswith("Model") else None


def chosen(model: nn.Module, asked: str | None, readers: Mapping[str, Reader]) -> tuple[str, str, nn.Module]:
    """The output that was asked for, or the first: (its name, how it pools, the module that makes it)."""
    output = next(iter(readers)) if asked is None else asked
    if output not in readers:
        raise UnsupportedModel(
            f"{type(model).__name__} through this adapter gives {' or '.join(readers)}, not {output!r}"
        )
    return output, *readers[output]


def pair(value: Any) -> tuple[int, int]:
    """A size as (height, width).

    >>> pair(224), pair([224, 192])
    ((224, 224), (224, 192))
    """
    return (int(value), int(value)) if isinstance(value, int) else (int(value[0]), int(value[1]))


def check_attention(where: str, attention: nn.Module, expected: type, output: str) -> None:
    """The library's own attention with four Linears."""
    check_part(where, attention, {"q_proj", "k_proj", "v_proj", output}, expected)


class HfBlock(Block):
    """A pre-norm block whose q, k and v are separate Linears, in parts.

    scales: LayerScale of both halves, where the block has them.
    """

    def __init__(
        self,
        norms: tuple[nn.Module, nn.Module],
        attention: Any,
        output: nn.Module,
        mlp: nn.Module,
        scales: tuple[nn.Module, nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.norm1, self.norm2 = norms
        self.attention = attention
        self.output, self.mlp = output, mlp
        self.scale1, self.scale2 = scales or (nn.Identity(), nn.Identity())
        width: int = attention.q_proj.out_features
        self.heads: int = width // attention.head_dim
        self.attention_width = width
        self.macs_per_token = (linear_macs(attention), linear_macs(mlp))

    def project(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Positions are in the stream already."""
        tap = self.query_keys(x, tokens)
        return tap._replace(v=self.values(x))

    def query_keys(self, x: torch.Tensor, tokens: Tokens) -> Tap:
        """Queries and keys alone; `v` is a stand-in without columns."""
        normed = self.norm1(x)
        q = heads_first(self.attention.q_proj(normed), self.heads)
        k = heads_first(self.attention.k_proj(normed), self.heads)
        return Tap(q, k, q[..., :0], self.attention.head_dim**-0.5)

    def values(self, x: torch.Tensor) -> torch.Tensor:
        """Values alone: `[B, N, C]` → `[B, H, N, d]`."""
        return heads_first(self.attention.v_proj(self.norm1(x)), self.heads)

    def finish(self, x: torch.Tensor, attended: torch.Tensor, tap: Tap) -> torch.Tensor:
        """Projection, layer scale, residual."""
        out: torch.Tensor = x + self.scale1(self.output(heads_last(attended)))
        return out

    def feed_forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[B, N', C]` → `[B, N', C]`."""
        out: torch.Tensor = x + self.scale2(self.mlp(self.norm2(x)))
        return out


class AllTokens(nn.Module):
    """Final norm; every token is the output: `[B, N, C]`."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Tokens `[B, N, C]` → the same, normed."""
        out: torch.Tensor = self.norm(x)
        return out


class PrefixTokens(nn.Module):
    """Final norm of the first tokens; each read by a classifier of its own, the mean of what they say."""

    def __init__(self, norm: nn.Module, *readers: nn.Module) -> None:
        super().__init__()
        self.norm = norm
        self.readers = nn.ModuleList(readers)

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Tokens `[B, N, C]` → `[B, classes]`."""
        first = self.norm(x[:, : len(self.readers)])
        read: list[torch.Tensor] = [reader(first[:, index]) for index, reader in enumerate(self.readers)]
        return read[0] if len(read) == 1 else torch.stack(read).mean(dim=0)


class MeanTokens(nn.Module):
    """Final norm and the mean over patches, weighted by their sizes; with `beside`, the class token in front of it."""

    def __init__(self, norm: nn.Module, prefix: int, classifier: nn.Module, beside: bool = False) -> None:
        super().__init__()
        self.norm, self.classifier = norm, classifier
        self.prefix, self.beside = prefix, beside

    def forward(self, x: torch.Tensor, size: torch.Tensor | None) -> torch.Tensor:
        """Tokens `[B, N, C]`, sizes `[B, N]` or None → `[B, classes]`."""
        x = self.norm(x)
        patches = x[:, self.prefix :]
        pooled = patches.mean(dim=1) if size is None else weighted_mean(patches, size[:, self.prefix :])
        if self.beside:
            pooled = torch.cat([x[:, 0], pooled], dim=1)
        out: torch.Tensor = self.classifier(pooled)
        return out
