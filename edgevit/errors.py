"""Every error a user can fix, as one tree.

EdgeVitError                     one line on stderr, exit 1
├── LoadError                    the model file or name
├── UnsupportedModel             no adapter runs this architecture; the reason is in the text
├── ScheduleError                the token schedule does not parse or does not fit the model
├── DataError                    the dataset or one of its images
├── GraphError                   the traced program breaks a rule (dynamic shape, forbidden operator)
├── QuantError                   quantization cannot start or cannot finish
├── RuntimeRefusal               a target cannot build or run this
├── BundleError                  a bundle is broken, or its place cannot be written
├── EmbedError                   a bundle does not fit the app it is to be put in
├── MeasureError                 a latency measurement failed
│   └── MachineBusy              another session measures on this machine
├── MissingExtra                 a package is not installed; the text holds the pip line
└── GateFailed                   exit 3: --max-drop or --min-speedup does not hold

Anything else that escapes is a bug and keeps its traceback.
"""

from collections.abc import Mapping, Sequence
from typing import Any


class EdgeVitError(Exception):
    """Something the user can fix: what was given, what was expected, what to do."""

    exit_code = 1


class LoadError(EdgeVitError):
    """The model file or name cannot be loaded."""


class UnsupportedModel(EdgeVitError):
    """No adapter can take this model apart."""


class ScheduleError(EdgeVitError):
    """A token schedule does not parse, or does not fit the model."""


class DataError(EdgeVitError):
    """A dataset or image cannot be used."""


class GraphError(EdgeVitError):
    """A traced program or a written graph breaks a rule."""


class QuantError(EdgeVitError):
    """Quantization is impossible as asked."""


class RuntimeRefusal(EdgeVitError):
    """A target cannot build or run what it was given."""


class BundleError(EdgeVitError):
    """A bundle is incomplete, altered or cannot be written."""


class EmbedError(EdgeVitError):
    """A bundle does not fit the app it is to be put in."""


class MeasureError(EdgeVitError):
    """A measurement did not complete."""


class MachineBusy(MeasureError):
    """Another session holds the machine: the same call works once it has ended."""


class MissingExtra(EdgeVitError):
    """An optional package is needed."""


class GateFailed(EdgeVitError):
    """A gate the user set does not hold. trials: what was built and measured, a row each."""

    exit_code = 3

    def __init__(self, message: str, trials: Sequence[Mapping[str, Any]] = ()) -> None:
        super().__init__(message)
        self.trials = tuple(trials)


def missing_extra(extra: str, error: ImportError) -> MissingExtra:
    """Build the error for a failed optional import, with the line to type."""
    package = error.name or str(error)
    return MissingExtra(f"this needs {package}, which is not installed: pip install 'edgevit[{extra}]'")
