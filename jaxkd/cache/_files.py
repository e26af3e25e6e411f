"""Files that survive a kill: atomic replacement, fsync, digests, ``.npy`` arrays."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import io
import os
import pathlib
import uuid
from typing import Any

import jax.numpy as jnp
import numpy as np

__all__ = [
    "digest",
    "dtype_of",
    "open_array",
    "replace",
    "replace_array",
    "sync_folder",
    "unfinished",
    "write",
    "write_array",
]


def write(path: pathlib.Path, content: bytes) -> None:
    """Writes a file and flushes it to the disk."""
    with open(path, "wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def replace(path: pathlib.Path, content: bytes) -> None:
    """Replaces a file atomically: readers see the old content or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = unfinished(path)
    try:
        write(temporary, content)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def unfinished(path: pathlib.Path) -> pathlib.Path:
    """Returns a unique temporary name on the same file system, for an atomic rename."""
    return path.with_name(f"{path.name}.unfinished-{uuid.uuid4().hex[:12]}")


def sync_folder(path: pathlib.Path) -> None:
    """Flushes a folder's entries, so that a rename survives a power loss."""
    with contextlib.suppress(OSError):  # some file systems cannot sync a folder
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def digest(path: pathlib.Path) -> str:
    """Returns the SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def dtype_of(name: str) -> Any:
    """Returns the NumPy dtype with this name, bfloat16 included.

    >>> dtype_of("bfloat16").itemsize
    2
    """
    return np.dtype(jnp.dtype(name))


def write_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Writes a ``.npy`` file and flushes it; bfloat16 is stored as uint16 bits."""
    array = np.ascontiguousarray(array)
    with open(path, "wb") as file:
        np.save(file, array.view(np.uint16) if array.dtype == jnp.bfloat16 else array, allow_pickle=False)
        file.flush()
        os.fsync(file.fileno())


def replace_array(path: pathlib.Path, array: np.ndarray) -> None:
    """Replaces a ``.npy`` file atomically."""
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    replace(path, file.getvalue())


def open_array(path: str, dtype: str) -> np.ndarray:
    """Maps a ``.npy`` file into memory; an unchanged file is mapped once.

    Args:
      path: of the file.
      dtype: of the array; a bfloat16 array lies in the file as uint16.
    """
    stat = os.stat(path)
    return _mapped(path, dtype, (stat.st_ino, stat.st_mtime_ns, stat.st_size))


# The bound closes the file descriptors of views that are no longer read. `version` is part of the key, so that a file
# that was replaced is mapped again.
@functools.lru_cache(maxsize=256)
def _mapped(path: str, dtype: str, version: tuple[int, ...]) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.view(dtype_of("bfloat16")) if dtype == "bfloat16" else array
