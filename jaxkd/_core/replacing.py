"""Atomic replacement of files and directories."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


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
            _flush(temporary)
        if path.is_dir() and not path.is_symlink():
            _remove(old)
            os.replace(path, old)
        try:
            os.replace(temporary, path)
        except OSError:
            if old.exists() and not path.exists():
                os.replace(old, path)
            raise
        _flush(path.parent)
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


def _flush(path: pathlib.Path) -> None:
    """Flushes a file or directory, so that a rename never precedes its content."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
