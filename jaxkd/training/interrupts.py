"""Ctrl-C, answered between two steps, where everything fits together and can be saved."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

__all__ = ["interrupts"]


@contextlib.contextmanager
def interrupts() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a question that can be asked, and leaves the second the usual exception.

    Where somebody else handles SIGINT, or in another thread than the main one, nothing changes.

    Yields:
      Whether there was one.

    >>> with interrupts() as interrupted:
    ...     interrupted()
    False
    """
    usual = signal.default_int_handler
    if threading.current_thread() is not threading.main_thread() or signal.getsignal(signal.SIGINT) is not usual:
        yield lambda: False
        return
    asked = False

    def note(number: int, frame: Any) -> None:
        nonlocal asked
        if asked:
            raise KeyboardInterrupt
        asked = True
        sys.stderr.write("\ninterrupted: saving after the steps under way; once more to stop without\n")

    signal.signal(signal.SIGINT, note)
    try:
        yield lambda: asked
    finally:
        signal.signal(signal.SIGINT, usual)
