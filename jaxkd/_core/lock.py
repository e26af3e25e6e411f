"""A lock on a run's directory, so that only one run uses it at a time."""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import socket
import stat
import warnings
from collections.abc import Iterator
from typing import Any

import jax

from jaxkd._core import multihost

fcntl: Any
try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None


NAME = ".lock"
_held: set[int] = set()  # descriptors of the lock files that this process has open


@contextlib.contextmanager
def alone(directory: str | os.PathLike[str], *, shared: bool = False) -> Iterator[None]:
    """Locks a directory for this run within a ``with`` block.

    The first process of the run holds an advisory lock (``flock``) on a file in the directory. The kernel releases it
    when that process ends, in whatever way, so that a lock is never stale; the file itself stays, and its existence
    means nothing. On a system or file system without locks, a warning is given and the block runs.

    Args:
      directory: folder to lock, created if missing.
      shared: lock it together with others that share it, and against those that do not. Each process then takes a
        lock of its own, as they need not call this function together.

    Raises:
      ValueError: another run holds the lock, and the message names its process and host; or the lock file is a link or
        no regular file, so that a file outside of the directory might be overwritten.

    >>> import tempfile
    >>> directory = tempfile.mkdtemp()
    >>> with alone(directory):
    ...     with alone(directory):
    ...         pass
    Traceback (most recent call last):
    ValueError: another run is using ... (process ... on ...). Wait until it ends, or choose another directory.
    """
    with contextlib.ExitStack() as stack:
        kind = "LOCK_SH" if shared else "LOCK_EX"
        holder: str | None = None
        error: Exception | None = None
        if shared or jax.process_index() == 0:
            try:
                holder = _take(pathlib.Path(directory), stack, kind)
            except (OSError, ValueError) as caught:  # raised below: the other processes wait for this one's answer
                holder, error = "", caught
        refused = holder is not None if shared else multihost.from_first(int(holder is not None))
        if error is not None:
            raise error
        if refused:
            raise ValueError(
                f"another run is using {os.fspath(directory)}{holder or ''}. Wait until it ends, or choose another "
                "directory."
            )
        yield


def _take(directory: pathlib.Path, stack: contextlib.ExitStack, kind: str) -> str | None:
    """Takes the lock; returns its other holder, or None if there is none.

    Returns None too where the system or the file system has no locks.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if fcntl is None:
        warnings.warn(f"{directory}: this system has no file locks; make sure that only one run uses it.", stacklevel=5)
        return None
    file = _open(directory / NAME)
    _held.add(file)
    stack.callback(_close, file)
    try:
        fcntl.flock(file, getattr(fcntl, kind) | fcntl.LOCK_NB)
    except BlockingIOError:
        return _holder(file)
    except OSError as error:
        warnings.warn(
            f"{directory}: its file system has no locks ({error.strerror}); make sure that only one run uses it.",
            stacklevel=5,
        )
        return None
    with contextlib.suppress(OSError):  # on a full disk, the lock is held without naming its holder
        os.ftruncate(file, 0)
        os.write(file, json.dumps({"host": socket.gethostname(), "process": os.getpid()}).encode() + b"\n")
    return None


def _open(path: pathlib.Path) -> int:
    """Opens the lock file, unless it may be a file of another place.

    It is then overwritten.
    """
    try:
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o644)
    except OSError as error:
        if path.is_file() and not path.is_symlink():
            raise
        raise ValueError(f"{path}: expected a regular file, or none, as the lock of a run. Remove it.") from error
    status = os.fstat(file)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(file)
        raise ValueError(f"{path}: expected a regular file without other links as the lock of a run. Remove it.")
    return file


def _holder(file: int) -> str:
    try:
        content: Any = json.loads(os.read(file, 1000))
        return f" (process {content['process']} on {content['host']})"
    except (ValueError, TypeError, KeyError):  # the holder is writing the file at this moment
        return ""


def _close(file: int) -> None:
    if file in _held:
        _held.remove(file)
        os.close(file)


def _release_all() -> None:
    """Closes all lock files in a forked child.

    A lock belongs to the open file, which a fork shares: a worker that reads data would keep the lock after its parent
    has died.
    """
    for file in list(_held):
        _close(file)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_release_all)
