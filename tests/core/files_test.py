"""Late callbacks of a failed read or write: silenced, and nothing else is."""

import sys

import pytest

from jaxkd._core import files


class Late:
    """Raises when it is collected, where an error cannot be raised and is reported instead."""

    def __init__(self, message):
        self.message = message

    def __del__(self):
        raise RuntimeError(self.message)


def test_closed_event_loop_is_not_reported_and_other_errors_are(monkeypatch):
    reported = []
    monkeypatch.setattr(sys, "unraisablehook", lambda unraisable: reported.append(str(unraisable.exc_value)))
    monkeypatch.setattr(files, "_LATE", 0.0)
    with pytest.raises(OSError, match="File too large"), files.quiet_loops():
        Late("Event loop is closed")
        Late("another")
        raise OSError("File too large")
    Late("Event loop is closed")  # no longer within
    assert reported == ["another", "Event loop is closed"]
