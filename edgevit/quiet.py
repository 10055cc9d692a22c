"""Libraries that log and warn about themselves: standard error belongs to edgevit's own lines."""

import contextlib
import logging
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence warnings and the named loggers; what fails still raises."""
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.disabled for logger in found]
    try:
        for logger in found:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, disabled in zip(found, before, strict=True):
            logger.disabled = disabled
