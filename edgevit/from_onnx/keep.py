"""How many tokens a mask keeps, once and for all: asked for, or what most calibration images need."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from edgevit.errors import LoadError
from edgevit.from_onnx.read import label
from edgevit.names import listed

if TYPE_CHECKING:
    from edgevit.from_onnx.read import Foreign
    from edgevit.from_onnx.static_counts import Point

ENOUGH_FOR = 0.9  # of the calibration images no token is lost


@dataclass
class Keep:
    """What decides. asked: for each mask in order, tokens (1 or more) or a share below 1. images: `[3, H, W]` each.

    calibrated: the images are like those to come; else they serve the message alone. masks: what was decided.
    """

    asked: tuple[float, ...] | None = None
    images: Iterable[np.ndarray] = ()
    calibrated: bool = False
    seen: list[np.ndarray] = field(default_factory=list)  # the images, once they were read
    masks: list[dict[str, Any]] = field(default_factory=list)
    exact: bool = True  # the images' own count, not the least or most that a static program can have

    def counts(self, foreign: Foreign, points: list[Point]) -> list[int]:
        """Tokens for each point. Raises LoadError where nothing decides, or what was asked does not fit."""
        first = {point.mask: point for point in reversed(points)}
        names = list(dict.fromkeys(point.mask for point in points))
        nodes = [label(first[name].node) for name in names]
        self.seen = list(self.images)
        holds, totals = observed(foreign, names, self.seen)
        kept = [t - h if first[n].turned else h for n, h, t in zip(names, holds, totals, strict=True)]
        seen = [f"{node} ({k.min()} to {k.max()} of {t.max()})" for node, k, t in zip(nodes, kept, totals, strict=True)]
        if self.asked is None and not self.calibrated:
            raise LoadError(
                f"{foreign.name}: the number of tokens depends on the image, at node {listed(seen)}; pass --keep N, or "
                f"a share below 1{', one for each' if len(names) > 1 else ''}, or --calib DATA"
            )
        if self.asked is not None and len(self.asked) != len(names):
            raise LoadError(f"--keep: {foreign.name} has {len(names)} masks, at node {listed(seen)}; give one for each")
        chosen: list[int] = []
        for i, node in enumerate(nodes):
            total = _total(foreign, node, totals[i], kept[i - 1] if i else None, chosen[-1] if i else 0)
            both = len({point.turned for point in points if point.mask == names[i]}) > 1
            most = total - both  # something must be left for what reads the others
            if self.asked is None:
                needed = int(np.quantile(kept[i], ENOUGH_FOR, method="higher"))
                count = min(most, max(1, needed))
                self.exact &= count == needed
            else:
                count = math.ceil(self.asked[i] * total) if self.asked[i] < 1 else int(self.asked[i])
            if not 1 <= count <= most:
                raise LoadError(f"--keep {count}: node {node} keeps 1 to {most} tokens, or a share of them below 1")
            chosen.append(count)
            self.masks.append({"node": node, "kept": count, "of": total})
        sides = {}
        for name, count, mask in zip(names, chosen, self.masks, strict=True):
            sides[name, first[name].turned] = count
            sides[name, not first[name].turned] = mask["of"] - count
        return [sides[point.mask, point.turned] for point in points]


def _total(foreign: Foreign, node: str, seen: np.ndarray, before: np.ndarray | None, chosen: int) -> int:
    """Tokens that a mask is over, when the mask before keeps the chosen number."""
    if (seen == seen[0]).all():
        return int(seen[0])
    more = None if before is None else seen - before
    if more is None or (more != more[0]).any():
        raise LoadError(
            f"{foreign.name}: node {node}: its mask is over {seen.min()} to {seen.max()} tokens; one was expected"
        )
    return chosen + int(more[0])


def observed(
    foreign: Foreign, masks: list[str], images: Iterable[np.ndarray]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """For each mask: how often it holds on each image and over how many tokens, by the file itself in ONNX Runtime."""
    import onnx

    from edgevit.from_onnx.prove import feed, session_of

    model = onnx.ModelProto()
    model.CopyFrom(foreign.model)
    known = {o.name for o in model.graph.output}
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in masks if name not in known)
    session = session_of(model.SerializeToString(), foreign.name)
    assert foreign.ends is not None
    ends = replace(foreign.ends, kind=onnx.TensorProto.FLOAT)  # `one_float_type` was here
    rows = [session.run(masks, {ends.image: feed(ends, image[None]), **foreign.weights}) for image in images]
    holds = [np.array([np.count_nonzero(row[i]) for row in rows]) for i in range(len(masks))]
    return holds, [np.array([row[i].size for row in rows]) for i in range(len(masks))]
