"""Dealings with a disk that may be full, or whose machine may die."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re

__all__ = ["reason", "sync"]


def reason(error: Exception) -> str:
    """Why something could not be written, in a few words.

    Args:
      error: of the operating system, or what a library makes of it.

    >>> reason(OSError(28, "No space left on device"))
    'No space left on device'
    >>> reason(ValueError("OUT_OF_RANGE: Error writing local file: {a long story} [os_error_code='27']"))
    'File too large'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Tensorstore tells what it was doing at length, and the reason as a number within.
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else f"{type(error).__name__}: {error}".splitlines()[0][:300].rstrip(".")


def sync(directory: pathlib.Path) -> None:
    """Brings a renaming to the disk, where a file system can: a machine may die as well as a process.

    Args:
      directory: in which something was renamed.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
