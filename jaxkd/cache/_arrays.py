"""Arrays in ``.npy`` files, bfloat16 included, mapped into memory."""

from __future__ import annotations

import functools
import io
import os
import pathlib
from typing import Any

import jax.numpy as jnp
import numpy as np

from jaxkd._core import files


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
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, file.getvalue())


def open_array(path: str, dtype: str) -> np.ndarray:
    """Maps a ``.npy`` file into memory; an unchanged file is mapped once.

    ``dtype`` is that of the array: a bfloat16 array lies in the file as uint16.
    """
    stat = os.stat(path)
    return _mapped(path, dtype, (stat.st_ino, stat.st_mtime_ns, stat.st_size))


# The bound closes the file descriptors of views that are no longer read. `version` is part of the key, so that a file
# that was replaced is mapped again.
@functools.lru_cache(maxsize=256)
def _mapped(path: str, dtype: str, version: tuple[int, ...]) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.view(dtype_of("bfloat16")) if dtype == "bfloat16" else array
