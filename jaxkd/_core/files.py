"""Reasons of failed writes, and durable renames."""

from __future__ import annotations

import contextlib
import os
import pathlib
import re

__all__ = ["reason", "sync"]


def reason(error: Exception) -> str:
    """Returns why something could not be written, in a few words.

    Args:
      error: an error of the operating system, or of a library that wraps one.

    >>> reason(OSError(28, "No space left on device"))
    'No space left on device'
    >>> reason(ValueError("OUT_OF_RANGE: Error writing local file: {a long story} [os_error_code='27']"))
    'File too large'
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    # Tensorstore's messages are long, and hold the reason as the number of an operating system error.
    code = re.search(r"os_error_code='(\d+)'", str(error))
    return os.strerror(int(code[1])) if code else f"{type(error).__name__}: {error}".splitlines()[0][:300].rstrip(".")


def sync(directory: pathlib.Path) -> None:
    """Makes a rename durable, so that it survives a failure of the machine.

    Args:
      directory: folder that holds the renamed entry.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_atomically(path: str | os.PathLike[str], content: str | bytes) -> None:
    """Replaces a file atomically: it always holds its old or its new content.

    The content is written to a temporary file in the same folder, brought to the disk and renamed.

    Args:
      path: path of the file.
      content: its whole content.

    Raises:
      OSError: the file could not be written, for instance because the disk is full; the old content is intact.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "x.txt")
    >>> write_atomically(path, "whole")
    >>> path.read_text()
    'whole'
    """
    path = pathlib.Path(path)
    content = content.encode() if isinstance(content, str) else content
    if path.exists() and path.read_bytes() == content:
        return
    temporary = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        what = f"{error.strerror or error}: it could not be replaced; its old content is intact"
        raise OSError(error.errno, what, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
