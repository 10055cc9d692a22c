"""Where in the model an operator is, as engines' files name it: `blocks.3/linear_5`, `blocks.3.reduction/topk`.

`stem` is in front of the first block, `head` behind the last; `reduction` is a block's token reduction step. Runtimes
that time single layers give their names back, and so the places.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Graph

KEY = "edgevit_place"

REDUCER = ".Reducer"  # edgevit.reduced_vit.Reducer: what is traced in it decides on tokens and moves them
REDUCTION = ".reduction"
WRAPPERS = re.compile(r"^(?:L__self___|_?module\.|model\.|module$|model$)+")
NUMBERED = re.compile(r"^(?:[A-Za-z_]\w*\.)*?[A-Za-z_]\w*\.\d+(?=\.|$)")


class Placer:
    """Places of operators, asked in the order they are computed."""

    def __init__(self) -> None:
        self.seen = False

    def place(self, path: str, classes: Iterable[str]) -> str:
        """Of an operator traced in the module at `path`, inside modules of these classes."""
        block = NUMBERED.search(WRAPPERS.sub("", path))
        if block is None:
            return "head" if self.seen else "stem"
        self.seen = True
        return block[0] + (REDUCTION if any(name.endswith(REDUCER) for name in classes) else "")


def classes(node: Any) -> list[str]:
    """The classes of the modules that a node was traced in, outermost first."""
    stack = (node.meta.get("nn_module_stack") or {}).values()
    return [c if isinstance(c, str) else f"{c.__module__}.{c.__qualname__}" for _, c in stack]


def places(nodes: Iterable[Any]) -> dict[str, str]:
    """Name → place of the operators of a traced program; one of which neither is known has none."""
    found, placer = {}, Placer()
    for node in nodes:
        stack = list((node.meta.get("nn_module_stack") or {}).values())
        known = (node.meta.get("custom") or {}).get(KEY)
        if node.op == "call_function" and (known or stack):
            found[node.name] = known or placer.place(str(stack[-1][0]), classes(node))
    return found


def remember(program: ExportedProgram, source: Graph | None = None) -> None:
    """Keep each operator's place with it, where torch keeps it through decompositions.

    source: the program that this one was traced from: a trace of a trace forgets the modules. The operators of both are
    the same but for a few, so they are laid side by side.
    """
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    if source is None:
        known = places(nodes)
        pairs = [(node, known.get(node.name)) for node in nodes]
    else:
        before = [node for node in source.nodes if node.op == "call_function"]
        known = places(before)
        old, new = ([str(node.target) for node in side] for side in (before, nodes))
        blocks = SequenceMatcher(None, old, new, autojunk=False).get_matching_blocks()
        pairs = [(nodes[b.b + i], known.get(before[b.a + i].name)) for b in blocks for i in range(b.size)]
    for node, place in pairs:
        if place:
            node.meta["custom"] = {**(node.meta.get("custom") or {}), KEY: place}


@contextmanager
def restored(program: ExportedProgram) -> Iterator[None]:
    """Meanwhile places stand where an exporter looks for modules; an operator without one is where the last one is."""
    nodes = [node for node in program.graph.nodes if node.op == "call_function"]
    before = [dict(node.meta) for node in nodes]
    known, last = places(nodes), "stem"
    for node in nodes:
        last = known.get(node.name, last)
        path = last.removesuffix(REDUCTION)
        kind = f"edgevit.reduced_vit{REDUCER}" if last != path else "edgevit.places.Place"
        node.meta["nn_module_stack"] = {"": ("", "edgevit.places.Root"), path: (path, kind)}
    try:
        yield
    finally:  # layers are named by the modules themselves
        for node, meta in zip(nodes, before, strict=True):
            node.meta = meta
