"""Files and directories that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import pathlib
import shutil
from collections.abc import Iterator


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str], *, overwrite: bool) -> Iterator[pathlib.Path]:
    """A path beside ``path`` to write a file or a directory to; it is renamed when the block ends without an error.

    A kill at any moment leaves what was there before, or what is new. Only a directory in the place of a directory
    takes two renames: between them both exist, under names of their own beside the place.

    Args:
      path: where the result belongs.
      overwrite: whether something may be there already.

    Yields:
      The temporary path, where nothing is yet.

    Raises:
      FileExistsError: something is there, and ``overwrite`` is False; or it is a file and the new thing is a
        directory, or the other way round.
      FileNotFoundError: there is no such parent directory.

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
        raise FileNotFoundError(f"{path}: there is no directory {path.parent}. Make it first.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    old = path.with_name(f".{path.name}.{os.getpid()}.old")
    _remove(temporary)
    try:
        yield temporary
        _refuse(path, overwrite)
        if path.exists() and path.is_dir() != temporary.is_dir():
            kinds = {True: "directory", False: "file"}
            raise FileExistsError(
                f"{path} is a {kinds[path.is_dir()]}, and is not replaced by a {kinds[temporary.is_dir()]}. Choose "
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
        raise FileExistsError(f"{path} is there already. overwrite=True replaces it; or choose another name.")


def _remove(path: pathlib.Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _flush(path: pathlib.Path) -> None:
    """Onto the disk, so that a rename never comes to be before what is renamed."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
