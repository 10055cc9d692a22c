"""Libraries that log and warn about themselves: standard error belongs to edgevit's own lines."""

import contextlib
import logging
import os
import sys
import warnings
from collections.abc import Iterator


@contextlib.contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Silence warnings and the named loggers, and undo `logging.basicConfig` of an import; what fails still raises."""
    handlers = logging.root.handlers[:]
    found = [logging.getLogger(name) for name in loggers]
    before = [logger.disabled for logger in found]
    try:
        for logger in found:
            logger.disabled = True
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.root.handlers[:] = handlers
        for logger, disabled in zip(found, before, strict=True):
            logger.disabled = disabled


@contextlib.contextmanager
def quiet_descriptor() -> Iterator[None]:
    """Silence what native code writes to standard error by itself; what fails still raises."""
    sys.stderr.flush()
    before = os.dup(2)
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
