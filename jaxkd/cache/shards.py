"""The files of a cache: folders of plain ``.npy`` files, each written whole or not at all.

A shard holds some rows of one view. Its folder gets its name when everything in it is on the disk, by one rename; what
a killed process leaves behind has another name and is never read.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import json
import os
import pathlib
import shutil
import uuid
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np

__all__ = [
    "Layout",
    "damage",
    "dtype_of",
    "facts",
    "load",
    "open_array",
    "replace_array",
    "save",
    "write_atomically",
    "write_shard",
]

_FACTS = "shard.json"


class Layout(NamedTuple):
    """How rows and views are divided among shards: view by view, each into runs of the set's rows.

    >>> layout = Layout(examples=10, views=2, per_shard=4)
    >>> layout.total, layout.place(4), layout.number(view=1, row=9)
    (6, (1, 4, 8), 5)
    """

    examples: int
    views: int
    per_shard: int

    @property
    def per_view(self) -> int:
        """Shards of one view."""
        return -(-self.examples // self.per_shard)

    @property
    def total(self) -> int:
        """Shards in all."""
        return self.views * self.per_view

    def place(self, number: int) -> tuple[int, int, int]:
        """The view of a shard, its first row, and the row after its last."""
        view, part = divmod(number, self.per_view)
        return view, part * self.per_shard, min((part + 1) * self.per_shard, self.examples)

    def number(self, view: int, row: int) -> int:
        """The shard that holds a row of a view."""
        return view * self.per_view + row // self.per_shard


def write_shard(
    directory: pathlib.Path, number: int, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]
) -> None:
    """Writes a shard whole, or leaves nothing under its name.

    Args:
      directory: of the cache.
      number: of the shard.
      arrays: by file name without ``.npy``.
      notes: further facts, stored with the files' sizes and digests.
    """
    final = _folder(directory, number)
    final.parent.mkdir(parents=True, exist_ok=True)
    for left_over in final.parent.glob(f"{final.name}.unfinished-*"):  # a shard has one writer, and that one died
        shutil.rmtree(left_over, ignore_errors=True)
    temporary = _unfinished(final)
    temporary.mkdir()
    files = {}
    for name, array in arrays.items():
        path = temporary / f"{name}.npy"
        save(path, array)
        files[path.name] = {"bytes": path.stat().st_size, "sha256": _digest(path)}
    _write(temporary / _FACTS, json.dumps({**notes, "files": files}, indent=1).encode())
    _sync_folder(temporary)
    if final.exists():  # damaged, or this would not be written again
        shutil.rmtree(final)
    temporary.rename(final)
    _sync_folder(final.parent)


def facts(directory: pathlib.Path, number: int) -> dict[str, Any] | None:
    """What is known of a shard, or None if it is not there or a file of it is not whole.

    Args:
      directory: of the cache.
      number: of the shard.

    Returns:
      ``{"files": {name: {"bytes": ..., "sha256": ...}}, ...}`` and the notes it was written with.
    """
    folder = _folder(directory, number)
    with contextlib.suppress(OSError, ValueError):
        found: dict[str, Any] = json.loads((folder / _FACTS).read_text())
        if all((folder / name).stat().st_size == file["bytes"] for name, file in found["files"].items()):
            return found
    return None


def damage(directory: pathlib.Path, number: int, known: Mapping[str, Any] | None) -> str | None:
    """What is wrong with a shard's files by their sizes and digests, or None.

    Args:
      directory: of the cache.
      number: of the shard.
      known: its `facts`.
    """
    folder = _folder(directory, number)
    if known is None:
        return f"{folder} is missing, or a file in it is not whole"
    for name, file in known["files"].items():
        if _digest(folder / name) != file["sha256"]:
            return f"{folder / name} holds other bytes than were written"
    return None


def load(directory: pathlib.Path, number: int, name: str, dtype: str) -> np.ndarray:
    """An array of a shard, mapped into memory and read when it is used.

    Args:
      directory: of the cache.
      number: of the shard.
      name: of the file, without ``.npy``.
      dtype: of the array; NumPy has no bfloat16 on disk, so that is kept as its bits.
    """
    return open_array(str(_folder(directory, number) / f"{name}.npy"), dtype)


def open_array(path: str, dtype: str) -> np.ndarray:
    """A ``.npy`` file, mapped into memory; the same mapping as long as the file is the same."""
    found = os.stat(path)
    return _mapped(path, dtype, (found.st_ino, found.st_mtime_ns, found.st_size))


# Views that are no longer read fall out, and with them the file descriptors that memory maps hold.
@functools.lru_cache(maxsize=256)
def _mapped(path: str, dtype: str, version: tuple[int, ...]) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.view(dtype_of("bfloat16")) if dtype == "bfloat16" else array


def dtype_of(name: str) -> Any:
    """A dtype by its name, bfloat16 among them.

    >>> dtype_of("bfloat16").itemsize
    2
    """
    return np.dtype(jnp.dtype(name))


def save(path: pathlib.Path, array: np.ndarray) -> None:
    """A ``.npy`` file that is on the disk when this returns."""
    array = np.ascontiguousarray(array)
    with open(path, "wb") as file:
        np.save(file, array.view(np.uint16) if array.dtype == jnp.bfloat16 else array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def write_atomically(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file: whoever reads it finds the old one or the new one, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _unfinished(path)
    try:
        _write(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_folder(path.parent)


def replace_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Replaces a ``.npy`` file, all at once."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    write_atomically(path, file.getvalue())


def _folder(directory: pathlib.Path, number: int) -> pathlib.Path:
    return directory / "shards" / f"{number:06d}"


def _write(path: pathlib.Path, content: bytes) -> None:
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _unfinished(path: pathlib.Path) -> pathlib.Path:
    return path.with_name(f"{path.name}.unfinished-{uuid.uuid4().hex[:12]}")


def _sync_folder(path: pathlib.Path) -> None:
    with contextlib.suppress(OSError):  # not every file system can
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _digest(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
