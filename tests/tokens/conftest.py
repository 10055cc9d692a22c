"""A vision encoder's taps as a selector sees them, and attention written as loops."""

from __future__ import annotations

import math
from dataclasses import dataclass
from types import SimpleNamespace

import pytest
import torch

from edgevit.stages import Tap
from edgevit.tokens import method
from edgevit.tokens.protocol import Site
from edgevit.tokens.schedule import parse_schedule

SCALE = 0.5


class Encoder:
    """`depth` random taps and the output tokens of `batch` images, with the grid behind `prefix` tokens."""

    def __init__(self, batch=2, prefix=1, grid=(3, 5), depth=6, seed=0):
        self.prefix, self.grid, self.depth, self.count = prefix, grid, depth, prefix + grid[0] * grid[1]
        generator = torch.Generator().manual_seed(seed)
        draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
        self.taps = [self.tap(draw(batch, 2, self.count, 4), draw(batch, 2, self.count, 4)) for _ in range(depth)]
        self.tokens = draw(batch, self.count, 6)

    @staticmethod
    def tap(q, k):
        """A tap with the probabilities of its queries and keys."""
        return Tap(q, k, torch.zeros_like(k), SCALE, probabilities=(q @ k.transpose(2, 3) * SCALE).softmax(-1))

    def rows(self, index):
        """The same encoder with some of its images."""
        other = object.__new__(Encoder)
        other.__dict__.update(self.__dict__)
        other.taps = [self.tap(t.q[index], t.k[index]) for t in self.taps]
        other.tokens = self.tokens[index]
        return other

    def chosen(self, spec, lowering="gather"):
        """Places that a schedule chooses, one list of whole numbers a picture."""
        schedule = parse_schedule(spec)
        cls = method(schedule.method)
        reads = cls.reads(self.depth, schedule.options)
        taps = [self.taps[number - 1] for number in reads]
        if not cls.probabilities:
            taps = [tap._replace(probabilities=None) for tap in taps]
        site = Site(
            taps[-1],
            self.tokens,
            None,
            self.prefix,
            cls.returned(schedule.key, schedule.amounts[0], self.grid, schedule.options),
            grid=self.grid,
            block=reads[-1],
            depth=self.depth,
            options=schedule.options,
            lowering=lowering,
        )
        return cls.choose(taps, self.tokens, site).tolist()

    def attention(self, block, image):
        """`[query][key]`, mean over heads, of a block (from 1), by loops."""
        tap = self.taps[block - 1]
        total = [[0.0] * self.count for _ in range(self.count)]
        for q, k in zip(tap.q[image].tolist(), tap.k[image].tolist(), strict=True):
            for i in range(self.count):
                powers = [math.exp(SCALE * sum(a * b for a, b in zip(q[i], row, strict=True))) for row in k]
                for j in range(self.count):
                    total[i][j] += powers[j] / sum(powers) / 2
        return total

    def class_row(self, block, image):
        """What the class token gives to each patch."""
        return self.attention(block, image)[0][self.prefix :]

    def received(self, block, image):
        """What each patch gets, mean over queries."""
        rows = self.attention(block, image)
        return [sum(row[j] for row in rows) / self.count for j in range(self.prefix, self.count)]

    def raster(self, patches):
        """Patches (from 0) as sorted places in the sequence."""
        return sorted(p + self.prefix for p in patches)


def best(scores, k):
    """Places of the k largest, best first."""
    return sorted(range(len(scores)), key=lambda j: -scores[j])[:k]


@pytest.fixture(scope="session")
def encoder():
    """Factory: `encoder(batch=2, prefix=1, grid=(3, 5), depth=6, seed=0)`."""
    return Encoder


@pytest.fixture(scope="session")
def top():
    """`top(scores, k)`: places of the k largest, best first."""
    return best


@dataclass(frozen=True)
class Seen:
    """What the reduction of one block sees: a random tap, tokens `[B, N, 6]`, sizes `[B, N]` or None."""

    tap: Tap
    x: torch.Tensor
    size: torch.Tensor | None
    prefix: int

    @classmethod
    def draw(cls, batch=2, count=15, prefix=1, sized=True, seed=0):
        generator = torch.Generator().manual_seed(seed)
        q, k, v = (torch.randn(batch, 2, count, 4, generator=generator) for _ in range(3))
        x = torch.randn(batch, count, 6, generator=generator)
        size = torch.randint(1, 5, (batch, count), generator=generator).float()
        size[:, :prefix] = 1
        logits = q @ k.transpose(2, 3) * SCALE
        if sized:
            logits = logits + size.log()[:, None, None, :]
        tap = Tap(q, k, v, SCALE, log_size=size.log() if sized else None, probabilities=logits.softmax(-1))
        return cls(tap, x, size if sized else None, prefix)

    @property
    def count(self):
        return self.x.shape[1]

    def site(self, out, lowering="gather", **fields):
        """The site of this block (fields: `protocol.Site`)."""
        return Site(self.tap, self.x, self.size, self.prefix, out, lowering=lowering, **fields)

    def image(self, i):
        """The same for one image of the batch."""
        one = slice(i, i + 1)
        parts = {f: getattr(self.tap, f) for f in ("q", "k", "v", "log_size", "probabilities")}
        tap = self.tap._replace(**{f: None if part is None else part[one] for f, part in parts.items()})
        return Seen(tap, self.x[one], None if self.size is None else self.size[one], self.prefix)

    def sizes(self, i):
        """Sizes of one image as a list; all one where there are none."""
        return [1.0] * self.count if self.size is None else self.size[i].tolist()

    def mean_keys(self, i):
        """Mean over heads of one image's keys, `[N][d]`."""
        heads = self.tap.k[i].tolist()
        return [[sum(c) / len(heads) for c in zip(*rows, strict=True)] for rows in zip(*heads, strict=True)]

    def class_rows(self, i):
        """What the class token of one image gives to each token, `[H][N]`, sizes in the logits, by loops."""
        rows = []
        for q, k in zip(self.tap.q[i].tolist(), self.tap.k[i].tolist(), strict=True):
            dots = (SCALE * sum(a * b for a, b in zip(q[0], row, strict=True)) for row in k)
            powers = [s * math.exp(dot) for s, dot in zip(self.sizes(i), dots, strict=True)]
            rows.append([p / sum(powers) for p in powers])
        return rows


def cosine(a, b):
    """Cosine of two lists."""
    return sum(p * q for p, q in zip(a, b, strict=True)) / math.sqrt(sum(p * p for p in a) * sum(q * q for q in b))


def join(a, b, score, r):
    """ToMe's step on two lists of tokens: the r best-scored of `a` with their best of `b` → {source: target}."""
    found = {i: max(b, key=lambda j: score(i, j)) for i in a} if b else {}
    return {i: found[i] for i in sorted(found, key=lambda i: -score(i, found[i]))[:r]}


def even_and_odd(prefix, count):
    """ToMe's A and B."""
    patches = range(prefix, count)
    return [i for i in patches if i % 2 == 0], [i for i in patches if i % 2]


def means(x, order, joins, weights):
    """`[N][C]` → rows in `order`, each the weighted mean of its token and those that `joins` {source: slot} sends."""
    rows = []
    for place, own in enumerate(order):
        group = [own, *(i for i, slot in joins.items() if slot == place)]
        total = sum(weights[i] for i in group)
        rows.append([sum(weights[i] * x[i][c] for i in group) / total for c in range(len(x[0]))])
    return rows


@pytest.fixture(scope="session")
def seen():
    """Factory: `seen(batch=2, count=15, prefix=1, sized=True, seed=0)`."""
    return Seen.draw


@pytest.fixture(scope="session")
def loops():
    """Pieces of slow references: cosine, join, even_and_odd, means."""
    return SimpleNamespace(cosine=cosine, join=join, even_and_odd=even_and_odd, means=means)
