"""Files that survive a kill: durable writes, atomic replacement, digests."""

from __future__ import annotations

import contextlib
import hashlib
import os
import pathlib
import re
import shutil
import sys
import time
import uuid
from collections.abc import Iterator
from typing import Any

_LATE = 0.2  # seconds within which threads report to a closed event loop


def reason(error: Exception) -> str:
    """Returns why something could not be written, in a few words.

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


def orbax_checkpoint() -> Any:
    """Imports and returns ``orbax.checkpoint``, whose import takes long."""
    import orbax.checkpoint  # type: ignore[import-untyped]

    return orbax.checkpoint


def sync(path: pathlib.Path) -> None:
    """Flushes a file, or a folder's entries, to the disk.

    A folder is flushed after a rename in it, so that the rename survives a failure of the machine. Some file systems
    cannot flush a folder; nothing is done there.
    """
    with contextlib.suppress(OSError):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def unfinished(path: pathlib.Path) -> pathlib.Path:
    """Returns a unique temporary name on the same file system, for an atomic rename."""
    return path.with_name(f"{path.name}.unfinished-{uuid.uuid4().hex[:12]}")


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file and flushes it to the disk."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(file: str | os.PathLike[str], content: str | bytes) -> None:
    """Replaces a file atomically: it always holds its old or its new content.

    The content is written to a temporary file in the same folder, flushed to the disk and renamed. A link is replaced
    by a file, so that nothing outside of the folder is written, now or by what appends to the file later.

    Args:
      file: path of the file.
      content: its whole content.

    Raises:
      OSError: the file could not be written, for instance because the disk is full; the old content is intact.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp(), "x.txt")
    >>> write_atomically(path, "whole")
    >>> path.read_text()
    'whole'
    """
    file = pathlib.Path(file)
    content = content.encode() if isinstance(content, str) else content
    if _is_own(file) and file.read_bytes() == content:
        return
    temporary = unfinished(file)
    try:
        write(temporary, content)
        temporary.replace(file)
        sync(file.parent)
    except OSError as error:
        what = f"{error.strerror or error}: it could not be replaced; its old content is intact"
        raise OSError(error.errno, what, str(file)) from error
    finally:
        temporary.unlink(missing_ok=True)


def _is_own(file: pathlib.Path) -> bool:
    """Returns whether a path is a regular file that has no other name elsewhere."""
    return file.is_file() and not file.is_symlink() and file.stat().st_nlink == 1


def check_inside(directory: pathlib.Path, name: str) -> None:
    """Raises ValueError if a folder in a directory is a link that leads out of it.

    >>> import tempfile
    >>> directory = pathlib.Path(tempfile.mkdtemp())
    >>> check_inside(directory, "missing")
    >>> (directory / "link").symlink_to("/tmp")
    >>> check_inside(directory, "link")
    Traceback (most recent call last):
    ValueError: .../link is a link to /tmp, outside of .... Nothing is written there; replace it by a folder.
    """
    path = directory / name
    if path.is_symlink() and not path.resolve().is_relative_to(directory.resolve()):
        raise ValueError(
            f"{path} is a link to {os.readlink(path)}, outside of {directory}. Nothing is written there; replace it by "
            "a folder."
        )


def check_literal(path: str | os.PathLike[str]) -> None:
    """Raises ValueError if orbax would take a path for a pattern of several paths.

    It would write to such a path, or to another one, and not find the checkpoint again.

    >>> check_literal("runs/1"), check_literal("runs/a*")
    Traceback (most recent call last):
    ValueError: runs/a*: expected a path without '[', '*', '?' and backslashes, which orbax takes for a pattern. ...
    """
    if set(os.fspath(path)) & set("[*?\\"):
        raise ValueError(
            f"{os.fspath(path)}: expected a path without '[', '*', '?' and backslashes, which orbax takes for a "
            "pattern. Choose another name."
        )


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[pathlib.Path]:
    """Yields a temporary path that is renamed to ``path`` at the end of the block.

    A kill at any moment leaves the old content or the new. POSIX renames a file over a file in one step, but not a
    directory over a directory: the old one is renamed away first, and between the two renames both exist under
    temporary names beside ``path``. If the block raises, the old content stays.

    Args:
      path: of the result.
      overwrite: replace an existing file or directory.

    Yields:
      The temporary path, at which nothing exists yet.

    Raises:
      FileExistsError: the path exists and ``overwrite`` is False; or a file would replace a directory, or a directory
        a file.
      FileNotFoundError: the parent directory does not exist.

    >>> import tempfile
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "note"
    >>> with replacing(path, overwrite=False) as temporary:
    ...     _ = temporary.write_text("whole")
    >>> path.read_text()
    'whole'
    """
    path = pathlib.Path(path).absolute()
    _refuse(path, overwrite)
    if not path.parent.is_dir():
        raise FileNotFoundError(f"{path}: expected an existing directory {path.parent}. Create it first.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    _remove(temporary)
    try:
        yield temporary
        _refuse(path, overwrite)
        if path.exists() and path.is_dir() != temporary.is_dir():
            kinds = {True: "directory", False: "file"}
            raise FileExistsError(
                f"{path}: expected a {kinds[temporary.is_dir()]} to replace, got a {kinds[path.is_dir()]}. Choose "
                "another name, or remove it."
            )
        if temporary.is_file():
            sync(temporary)
        if path.is_dir() and not path.is_symlink():
            _remove(old)
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        sync(path.parent)
        _remove(old)
    finally:
        _remove(temporary)


def _refuse(path: pathlib.Path, overwrite: bool) -> None:
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} exists. Pass overwrite=True to replace it, or choose another name.")


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def quiet_loops() -> Iterator[None]:
    """Silences the late callbacks of a failed read or write.

    orbax reads and writes in an event loop. When one file fails, the loop is closed, and threads that work on the
    others report "Event loop is closed" for each of them, after the error that says what happened.
    """
    previous = sys.unraisablehook

    def hook(unraisable: Any) -> None:
        error = unraisable.exc_value
        if not (isinstance(error, RuntimeError) and str(error) == "Event loop is closed"):
            previous(unraisable)

    sys.unraisablehook = hook
    try:
        yield
    except BaseException:
        time.sleep(_LATE)
        raise
    finally:
        sys.unraisablehook = previous
