"""Files of a cache: arrays mapped into memory, checksums of their rows, and JSON.

An array is a ``.npy`` file; NumPy has no bfloat16, whose bits are stored as uint16. JSON carries a digest of its
content, so that damage is noticed.
"""

from __future__ import annotations

import functools
import hashlib
import io
import json
import math
import os
import pathlib
import zlib
from collections.abc import Mapping
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


def row_sums(index: np.ndarray, view: int, fields: Mapping[str, np.ndarray]) -> np.ndarray:
    """Returns a checksum of each row: CRC-32 of its index, its view and its fields.

    The fields are in the order of their names. The checksum shows every change of up to four bytes in a row, and a row
    that stands in the place of another.

    >>> row_sums(np.array([5, 6]), 0, {"x": np.zeros((2, 3), np.uint8)}).tolist()
    [3833742549, 1205125756]
    """
    places = np.stack([np.asarray(index, "<i8"), np.full(len(index), view, "<i8")], axis=1)
    columns = [places, *(np.ascontiguousarray(fields[name]) for name in sorted(fields))]
    tables = [x.reshape(len(x), math.prod(x.shape[1:])).view(np.uint8) for x in columns if x.size]
    table = np.concatenate(tables, axis=1) if tables else np.zeros((0, 1), np.uint8)
    return np.fromiter(map(zlib.crc32, table), np.uint32, len(table))


def open_array(path: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Maps a ``.npy`` file into memory; an unchanged file is mapped once.

    ``dtype`` and ``shape`` are those of the array: a bfloat16 array lies in the file as uint16.

    Raises:
      ValueError: the file is missing, or holds no such array.
    """
    try:
        stat = os.stat(path)
        array = _mapped(path, dtype, (stat.st_ino, stat.st_mtime_ns, stat.st_size))
    except Exception as error:  # NumPy raises anything, as the header of the file is Python
        raise ValueError(f"{path} is damaged or missing ({type(error).__name__}: {error})") from None
    if array.dtype != dtype_of(dtype) or array.shape != shape:
        raise ValueError(f"{path} is damaged: expected {dtype}{list(shape)}, got {array.dtype.name}{list(array.shape)}")
    return array


# The bound closes the file descriptors of views that are no longer read. `version` is part of the key, so that a file
# that was replaced is mapped again.
@functools.lru_cache(maxsize=256)
def _mapped(path: str, dtype: str, version: tuple[int, ...]) -> np.ndarray:
    array = np.load(path, mmap_mode="r", allow_pickle=False)
    return array.view(dtype_of("bfloat16")) if dtype == "bfloat16" else array


_DIGEST = "digest"


def json_text(content: Mapping[str, Any]) -> str:
    """Returns the text of a file with this content.

    >>> print(json_text({"rows": 3}))
    {
     "rows": 3,
     "digest": "32a461613f889715"
    }
    """
    return json.dumps({**content, _DIGEST: _digest(content)}, indent=1)


def read_json(path: pathlib.Path) -> dict[str, Any]:
    """Returns the content of a file that `json_text` made.

    Raises:
      OSError: the file cannot be read.
      ValueError: it does not hold the content that was written; the message ends with the reason.
    """
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: expected JSON, got {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(content).__name__}")
    known = content.pop(_DIGEST, None)
    if known != _digest(content):
        raise ValueError(f"{path} does not hold the content that was written")
    return content


def _digest(content: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]
