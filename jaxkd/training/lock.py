"""One run in a directory at a time."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from jaxkd.training import hosts

fcntl: Any
try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None

__all__ = ["NAME", "alone"]

NAME = ".lock"
_held: set[int] = set()  # file descriptors


@contextlib.contextmanager
def alone(directory: str | os.PathLike[str]) -> Iterator[None]:
    """Holds a directory for this run, with a lock on a file in it.

    The first process of the run holds the lock. The kernel takes it away when that process is gone, however it ended;
    the file stays and means nothing by itself. On a file system without locks there is a warning and nothing else.

    Args:
      directory: made if it is not there.

    Raises:
      ValueError: another run holds it; the message says which process on which host.

    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> with alone(directory):
    ...     with alone(directory):
    ...         pass
    Traceback (most recent call last):
    ValueError: another run is at work in ... (process ... on ...). Wait for its end, or choose another directory.
    """
    with contextlib.ExitStack() as stack:
        holder = _take(pathlib.Path(directory), stack) if jax.process_index() == 0 else None
        if hosts.from_first(int(holder is not None)):
            raise ValueError(
                f"another run is at work in {os.fspath(directory)}{holder or ''}. Wait for its end, or choose another "
                "directory."
            )
        yield


def _take(directory: pathlib.Path, stack: contextlib.ExitStack) -> str | None:
    """None if the lock is ours now, or not to be had at all; otherwise whose it is."""
    directory.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        warnings.warn(f"{directory}: this system has no file locks; see to it that only one run uses it.", stacklevel=5)
        return None
    file = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    _held.add(file)
    stack.callback(_close, file)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return _named(file)
    except OSError as error:
        warnings.warn(
            f"{directory}: its file system has no locks ({error.strerror}); see to it that only one run uses it.",
            stacklevel=5,
        )
        return None
    with contextlib.suppress(OSError):  # a full disk: the lock is held all the same, without a name
        os.ftruncate(file, 0)
        os.write(file, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode() + b"\n")
    return None


def _named(file: int) -> str:
    try:
        there: Any = json.loads(os.read(file, 1000))
        return f" (process {there['process']} on {there['host']})"
    except (ValueError, TypeError, KeyError):  # it is just being written
        return ""


def _close(file: int) -> None:
    if file in _held:
        _held.remove(file)
        os.close(file)


def _let_go() -> None:
    """A forked child, such as a worker that reads data, must not hold the lock when its parent is gone."""
    for file in list(_held):
        _close(file)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_let_go)
