"""DToP: segmentation heads on the way finish the easy tokens, later blocks run on the rest.

Tang et al., "Dynamic Token Pruning in Plain Vision Transformers for Semantic Segmentation", ICCV 2023
(arXiv:2308.01045), with the attention-to-mask heads of SegViT (Zhang et al., NeurIPS 2022, arXiv:2210.05844); written
from the formulas. Behind some blocks a head gives mask logits m [N, classes] and, per class c, the probability that it
is present:

    pred_c = P(c) · sigmoid(m_c),   conf = max_c pred_c,   cls = argmax_c pred_c
    conf > threshold: the token is finished, and m is written to the canvas, except for
    the `context` most confident tokens of every class, which stay as context for the others

The paper's counts depend on the image. Here K_t slots stay behind stage t (`budgets`): TopK of context first, then the
least confident; a slot is invalid where fewer tokens are active, and then no attention sees it and its canvas value
stands. So the result is exactly the paper's while the active tokens number at most K_t; beyond that the most confident
of them finish early (approximate). With no budgets K_t = N: exact, and nothing is saved.

The canvas is written by gathers: a TopK over all tokens is a permutation, and the TopK of that its inverse.

Keys are ours (`heads.{stage}.*`, the last one the final head's): no key list of a public checkpoint could be read. Ours
too: masks are the head-mean of a head's last layer's logits, and the output is P(c) · sigmoid(canvas) with P from the
final head. The repository's README restricts commercial use; nothing of it is here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from edgevit.errors import LoadError, ScheduleError
from edgevit.tokens.base import Reduction, kept
from edgevit.tokens.lowering import Lowering, take_rows
from edgevit.tokens.selector import share, whole_number
from edgevit.trained.base import Trained, build_backbone, check_blocks
from edgevit.trained.cross import Cross
from edgevit.trained.rebuild import Architecture

if TYPE_CHECKING:
    from edgevit.tokens.schedule import TokenSchedule

HIDDEN = -1e4  # added to a logit: exp of it is 0 in float32, and float16 can hold it


class AtmLayer(nn.Module):
    """Class queries `[B, c, C]` read tokens `[B, n, C]`; the products are the masks."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.cross = Cross(width, heads)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def forward(
        self, queries: torch.Tensor, tokens: torch.Tensor, hidden: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """`hidden` `[B, n]` is added to the logits. Queries `[B, c, C]` and mask logits `[B, n, c]`."""
        logits = self.cross.logits(queries, tokens)
        weights = (logits if hidden is None else logits + hidden[:, None, None, :]).softmax(dim=-1)
        queries = self.norm1(queries + self.cross.mix(weights, tokens))
        return self.norm2(queries + self.mlp(queries)), logits.mean(dim=1).transpose(1, 2)


class AtmHead(nn.Module):
    """Tokens `[B, n, C]` → probabilities of presence `[B, c]` and mask logits `[B, n, c]`."""

    match: torch.Tensor

    def __init__(self, width: int, classes: int, heads: int, layers: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.queries = nn.Embedding(classes, width)
        self.layers = nn.ModuleList(AtmLayer(width, heads) for _ in range(layers))
        self.presence = nn.Linear(width, classes + 1)  # the last one: none of the classes
        self.register_buffer("match", torch.eye(classes, classes + 1), persistent=False)

    def forward(self, tokens: torch.Tensor, hidden: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
        """Query c answers for class c; the masks are the last layer's."""
        tokens = self.norm(tokens)
        queries = self.queries.weight.expand(tokens.shape[0], -1, -1)
        for layer in self.layers:
            queries, masks = layer(queries, tokens, hidden)
        return (self.presence(queries).softmax(dim=-1) * self.match).sum(dim=-1), masks


def class_scores(presence: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """`[B, c]` and mask logits `[B, n, c]` → `[B, n, c]` in 0 to 1."""
    return presence.unsqueeze(1) * masks.sigmoid()


def context_rank(conf: torch.Tensor, cls: torch.Tensor, valid: torch.Tensor | None) -> torch.Tensor:
    """How many valid tokens of the same class are more confident, `[B, n]`; equal ones count by position."""
    position = torch.arange(conf.shape[1], device=conf.device)
    mine, other = conf.unsqueeze(2), conf.unsqueeze(1)
    ahead = (other > mine) | ((other == mine) & (position.unsqueeze(0) < position.unsqueeze(1)))
    ahead = ahead & (cls.unsqueeze(1) == cls.unsqueeze(2))
    if valid is not None:
        ahead = ahead & valid.unsqueeze(1)
    return ahead.sum(dim=-1)


def choose(
    scores: torch.Tensor, valid: torch.Tensor | None, threshold: float, context: int, budget: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Class scores `[B, n, c]` → all tokens in order of need `[B, n]`, and which of the first `budget` are active."""
    conf, cls = scores.max(dim=-1)
    near = context_rank(conf, cls, valid) < context
    active = near | (conf <= threshold)
    if valid is not None:
        active = active & valid
    need = torch.where(active, 1 - conf + 2 * near.to(conf.dtype), torch.full_like(conf, -1))
    need, order = need.topk(need.shape[1], dim=-1)
    return order, need[:, :budget] >= 0


def write(
    canvas: torch.Tensor, later: torch.Tensor, order: torch.Tensor, valid: torch.Tensor, lowering: Lowering
) -> torch.Tensor:
    """Mask logits `[B, n, c]`, with those of the valid slots `[B, K]` replaced by `later` `[B, K, c]`."""
    budget = later.shape[1]
    ordered = take_rows(canvas, order, lowering)
    written = torch.where(valid.unsqueeze(-1), later, ordered[:, :budget])
    inverse = order.to(torch.float32).neg().topk(order.shape[1], dim=-1).indices
    return take_rows(torch.cat([written, ordered[:, budget:]], dim=1), inverse, lowering)


def hide(valid: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
    """What to add to the logits of `[B, K]` slots: 0 where valid, a large negative number where not."""
    return None if valid is None else (valid.to(dtype) - 1) * -HIDDEN


class Dtop(Trained):
    """Images `[B, 3, H, W]` → class scores on the patch grid `[B, classes, h, w]`, in 0 to 1."""

    method: ClassVar[str] = "dtop"

    def __init__(
        self, backbone: Any, heads: Sequence[nn.Module], stages: Mapping[int, int], threshold: float, context: int,
        lowering: Lowering,
    ) -> None:  # fmt: skip
        super().__init__(backbone)
        self.heads, self.stages = nn.ModuleList(heads), dict(stages)  # block (from 0) → slots behind it
        self.threshold, self.context, self.lowering = threshold, context, lowering
        self.prefix, self.grid = backbone.num_prefix_tokens, tuple(backbone.patch_embed.grid_size)
        now, tokens = backbone.patch_embed.num_patches, []
        for index in range(len(backbone.blocks)):
            tokens.append(self.prefix + now)
            now = self.stages.get(index, now)
        self.tokens = tuple(tokens)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Heads on the way choose and finish; the canvas is put together from the last stage to the first."""
        presence, canvas = self.run(images)
        scores = class_scores(presence, canvas)
        return scores.transpose(1, 2).reshape(scores.shape[0], scores.shape[2], *self.grid)

    def run(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Presence `[B, c]` by the final head, and the canvas of mask logits `[B, N, c]`."""
        model, prefix = self.backbone, self.prefix
        x = self.embed(images)
        valid: torch.Tensor | None = None
        done: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = []
        for index, block in enumerate(model.blocks):
            x = block(x, attn_mask=self._mask(valid, x.dtype))
            if index in self.stages:
                budget, patches = self.stages[index], x[:, prefix:]
                presence, masks = self.heads[len(done)](patches, hide(valid, x.dtype))
                order, valid = choose(class_scores(presence, masks), valid, self.threshold, self.context, budget)
                x = torch.cat([x[:, :prefix], take_rows(patches, order[:, :budget], self.lowering)], dim=1)
                done.append((masks, order, valid))
        presence, canvas = self.heads[len(done)](model.norm(x)[:, prefix:], hide(valid, x.dtype))
        for masks, order, stayed in reversed(done):
            canvas = write(masks, canvas, order, stayed, self.lowering)
        return presence, canvas

    def _mask(self, valid: torch.Tensor | None, dtype: torch.dtype) -> torch.Tensor | None:
        """The attention mask `[B, 1, 1, P + K]`: prefix tokens are always seen."""
        hidden = hide(valid, dtype)
        return None if hidden is None else torch.nn.functional.pad(hidden, (self.prefix, 0))[:, None, None, :]


def create(
    name: str,
    num_classes: int | None = None,
    input_size: tuple[int, int] | None = None,
    *,
    stages: Sequence[int] = (6, 8),
    budgets: Sequence[int] | None = None,
    threshold: float = 0.9,
    context: int = 5,
    layers: int = 3,
    lowering: Lowering = "gather",
    options: Mapping[str, Any] | None = None,
) -> Dtop:
    """A DToP on timm's `name` with random weights; `num_classes` defaults to ADE20K's 150.

    stages: blocks (from 1) with a head behind them, before the last. budgets: K_t patches behind each, take the 90th
    percentile of the active counts on your data; None: all. threshold, context: as in the module's docstring. layers:
    depth of each head. Raises LoadError.
    """
    backbone = build_backbone(name, 0, input_size, options)
    depth, now = len(backbone.blocks), int(backbone.patch_embed.num_patches)
    stages = check_blocks("dtop", stages, depth - 1)
    budgets = (now,) * len(stages) if budgets is None else tuple(budgets)
    wrong = budgets_wrong(budgets, stages, now)
    if wrong:
        raise LoadError(f"dtop: {wrong}")
    if not 0 <= threshold <= 1 or context < 1:
        raise LoadError(f"dtop: threshold={threshold:g} must be 0 to 1 and context={context} at least 1")
    classes = 150 if num_classes is None else num_classes
    count = backbone.blocks[0].attn.num_heads
    heads = [AtmHead(backbone.embed_dim, classes, count, layers) for _ in range(len(stages) + 1)]
    where = {block - 1: budget for block, budget in zip(stages, budgets, strict=True)}
    return Dtop(backbone, heads, where, threshold, context, lowering).eval()


def budgets_wrong(budgets: Sequence[int], stages: Sequence[int], patches: int) -> str | None:
    """Why the patches kept behind the stages (blocks from 1) cannot be, or None."""
    falling = all(1 <= b <= a for a, b in zip((patches, *budgets), budgets, strict=False))
    if len(budgets) == len(stages) and falling:
        return None
    return f"budgets={list(budgets)} must be one per stage {list(stages)}, none above the one before or {patches}"


class DToPSchedule(Architecture):
    """`dtop:keep=0.7` or `dtop:budgets=120/60`: room for so many patches behind each stage, with the same weights."""

    name: ClassVar[str] = "dtop"
    weights: ClassVar[str | None] = "dtop"
    keys: ClassVar[Mapping[str, str]] = {
        "keep": "share of the patches that there is room for behind each stage, above 0 and at most 1",
        "budgets": "patches that there is room for behind each stage",
    }
    options: ClassVar[Mapping[str, tuple[str, ...]]] = {"threshold": (), "context": ()}

    @staticmethod
    def check_amount(key: str, value: float) -> str | None:
        """Whole patches, or a share."""
        if key == "budgets":
            return None if value == int(value) > 0 else f"budgets={value:g} must be a whole number, 1 or more"
        return Reduction.check_amount(key, value)

    @staticmethod
    def check_option(name: str, value: str) -> str | None:
        """A confidence from 0 to 1, and a count."""
        if name == "threshold":
            return share(name, value)
        return whole_number(name, value)

    @classmethod
    def build(cls, module: Any, schedule: TokenSchedule, lowering: Lowering) -> Dtop:
        """The same heads with other budgets."""
        blocks = [block + 1 for block in module.stages]
        amounts = schedule.amounts * len(blocks) if len(schedule.amounts) == 1 else schedule.amounts
        patches = now = module.grid[0] * module.grid[1]
        budgets = []
        for amount in amounts:
            now = kept(now, amount) if schedule.key == "keep" else int(amount)
            budgets.append(now)
        wrong = budgets_wrong(budgets, blocks, patches)
        if wrong:
            raise ScheduleError(f"{schedule}: {wrong}")
        threshold = float(schedule.options.get("threshold", module.threshold))
        context = int(schedule.options.get("context", module.context))
        stages = dict(zip(module.stages, budgets, strict=True))
        return Dtop(module.backbone, list(module.heads), stages, threshold, context, lowering)
