"""What a vendor's code does to a process while it is silenced does not last, and what fails still raises."""

import logging
import os
import warnings

import pytest

from edgevit.quiet import quiet, quiet_descriptor


def test_warnings_and_loggers_are_silent_and_come_back(caplog):
    with quiet("loud"):
        warnings.warn("not seen", stacklevel=1)  # an error here otherwise
        logging.getLogger("loud").warning("not seen")
    logging.getLogger("loud").warning("seen")
    assert caplog.messages == ["seen"]


def test_an_import_that_configures_logging_leaves_no_handler(monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])
    with quiet():
        logging.basicConfig()
    assert logging.root.handlers == []


def test_native_writes_to_standard_error_are_dropped_and_come_back(capfd):
    with quiet_descriptor():
        os.write(2, b"not seen")
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"


@pytest.mark.parametrize("silent", [quiet, quiet_descriptor])
def test_what_fails_still_raises(silent, capfd):
    with pytest.raises(ValueError, match="broken"), silent():
        raise ValueError("broken")
    os.write(2, b"seen")
    assert capfd.readouterr().err == "seen"
