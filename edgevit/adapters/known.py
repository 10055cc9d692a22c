"""Refuse by name what an adapter does not run: unknown children, subclasses, patched forwards."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn

from edgevit.errors import UnsupportedModel
from edgevit.names import listed


def check_type(where: str, module: nn.Module, *expected: type) -> None:
    """Exactly a type whose forward the adapter reproduces, not a subclass, not a patched instance."""
    if type(module) not in expected or "forward" in vars(module):
        given = type(module).__name__ + (" with a patched forward" if "forward" in vars(module) else "")
        names = " or ".join(f"{t.__module__}.{t.__name__}" for t in expected)
        raise UnsupportedModel(f"{where} is {given}; this adapter runs {names}")


def check_children(where: str, module: nn.Module, known: set[str]) -> None:
    """No child that the adapter would pass over."""
    unknown = sorted({name for name, _ in module.named_children()} - known)
    if unknown:
        raise UnsupportedModel(
            f"{where} has {listed(unknown)}, which this adapter does not run; it knows {', '.join(sorted(known))}"
        )


def check_part(where: str, module: nn.Module, children: set[str], *expected: type) -> None:
    """Exactly one of these types, with no child but these."""
    check_type(where, module, *expected)
    check_children(where, module, children)


def check_methods(model: nn.Module, methods: Iterable[str], *known: type) -> None:
    """The model's own methods, not overridden ones."""
    name = type(model).__name__
    for method in methods:
        found = getattr(type(model), method)
        if method in vars(model) or all(found is not getattr(cls, method, None) for cls in known):
            raise UnsupportedModel(f"{name}.{method} is not the library's own; this adapter does not know what it does")


def check_eval(model: nn.Module) -> None:
    """Dropout and batch statistics would make outputs random."""
    if model.training:
        raise UnsupportedModel(f"{type(model).__name__} is in training mode; call .eval() first")
