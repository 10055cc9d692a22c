"""Architectures that were trained with their token reduction: plain modules from images to logits, static shapes.

TRAINED is the whole list. An architecture is one file with one function
`create(name, num_classes, input_size, **settings) -> Trained` (random weights, evaluation mode), one line here, one
test. Unlike the methods of `edgevit.tokens`, none of them does anything useful without its own weights.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from edgevit.errors import LoadError
from edgevit.names import did_you_mean, named

if TYPE_CHECKING:
    from edgevit.trained.base import Trained

TRAINED = {
    "dynamicvit": "edgevit.trained.dynamicvit:create",
    "sit": "edgevit.trained.sit:create",
    "stvit": "edgevit.trained.stvit:create",
    "lookupvit": "edgevit.trained.lookupvit:create",
    "dtem": "edgevit.trained.dtem:create",
    "dtop": "edgevit.trained.dtop:create",
}


def trained(name: str) -> "Callable[..., Trained]":
    """The `create` function of an architecture by its name. Raises LoadError."""
    if name not in TRAINED:
        raise LoadError(
            f"unknown trained architecture {name!r}{did_you_mean(name, TRAINED)}; known: {', '.join(TRAINED)}"
        )
    found: Callable[..., Trained] = named(TRAINED[name])
    return found
