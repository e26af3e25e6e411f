"""The shards of a cache: folders of ``.npy`` files, each complete or absent.

A shard holds consecutive rows of one view. It is written into a folder with a temporary name; every file is flushed to
the disk and its digest recorded in ``shard.json``; then one rename gives the folder its final name. A process that is
killed before the rename leaves a folder with a temporary name, which no reader opens and which `write_cache` removes
while no one else writes. Resuming therefore needs no journal: the shards to compute are those without a folder.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pathlib
import re
import shutil
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxkd._core import files
from jaxkd.cache import _storage

MAX_SHARDS = 10**6
_READERS = 8
_FACTS = "shard.json"
_FILE = re.compile(r"[^/\\]+\.npy")


class Layout(NamedTuple):
    """Division of a set into shards: view by view, each view into runs of rows.

    >>> layout = Layout(examples=10, views=2, per_shard=4)
    >>> layout.total, layout.place(4)
    (6, (1, 4, 8))
    """

    examples: int
    views: int
    per_shard: int

    @property
    def per_view(self) -> int:
        """Number of shards of one view."""
        return -(-self.examples // self.per_shard)

    @property
    def total(self) -> int:
        """Number of shards of all views."""
        return self.views * self.per_view

    def place(self, number: int) -> tuple[int, int, int]:
        """Returns the view of a shard, its first row, and the row after its last."""
        view, part = divmod(number, self.per_view)
        return view, part * self.per_shard, min((part + 1) * self.per_shard, self.examples)


def write_shard(
    directory: pathlib.Path, number: int, arrays: Mapping[str, np.ndarray], notes: Mapping[str, Any]
) -> None:
    """Writes a complete shard, or leaves nothing under its name.

    The arrays are named by file name without ``.npy``; the notes are stored with the files' sizes and digests.
    """
    final = _folder(directory, number)
    final.parent.mkdir(parents=True, exist_ok=True)
    temporary = files.unfinished(final)
    temporary.mkdir()
    written = {}
    for name, array in arrays.items():
        path = temporary / f"{name}.npy"
        _storage.write_array(path, array)
        written[path.name] = {"bytes": path.stat().st_size, "sha256": files.digest(path)}
    files.write(temporary / _FACTS, _storage.json_text({**notes, "number": number, "files": written}).encode())
    files.sync(temporary)
    old = files.unfinished(final)
    with contextlib.suppress(FileNotFoundError):  # it exists if it is damaged, or if another writer was faster
        final.rename(old)
    try:
        temporary.rename(final)
    except OSError:
        if not final.exists():  # otherwise the other writer of this shard has just written the same bytes
            raise
    for left in (old, temporary):
        shutil.rmtree(left, ignore_errors=True)
    files.sync(final.parent)


def remove_unfinished(directory: pathlib.Path) -> None:
    """Removes the folders of writers that have ended; no writer may be at work."""
    for abandoned in (directory / "shards").glob("*.unfinished-*"):
        shutil.rmtree(abandoned, ignore_errors=True)


def numbers(directory: pathlib.Path) -> set[int]:
    """Returns the numbers of the shards that have a folder."""
    folder = directory / "shards"
    return {int(name) for name in os.listdir(folder) if name.isdecimal()} if folder.is_dir() else set()


def facts(directory: pathlib.Path, number: int, key: str) -> dict[str, Any] | None:
    """Returns the facts of a shard, or None without a whole shard of this cache.

    They are ``{"files": {name: {"bytes": ..., "sha256": ...}}, ...}`` and the notes that the shard was written with.
    ``key`` is that of the cache. The sizes of the files are compared, their contents are not.
    """
    folder = _folder(directory, number)
    with contextlib.suppress(OSError, ValueError):
        stored = _storage.read_json(folder / _FACTS)
        if _is_of(stored, number, key) and all(
            (folder / name).stat().st_size == file["bytes"] for name, file in stored["files"].items()
        ):
            return stored
    return None


def _is_of(stored: Mapping[str, Any], number: int, key: str) -> bool:
    """Returns whether facts have their form, and are those of a shard."""
    written = stored.get("files")
    return (
        stored.get("number") == number
        and stored.get("key") == key
        and isinstance(stored.get("contents"), str)
        and isinstance(stored.get("seconds"), float)
        and isinstance(written, dict)
        and all(_FILE.fullmatch(name) and isinstance(file, dict) for name, file in written.items())
        and all(type(file.get("bytes")) is int and isinstance(file.get("sha256"), str) for file in written.values())
    )


def damaged(directory: pathlib.Path, numbers: Iterable[int], key: str) -> dict[int, str]:
    """Returns the first fault of each shard that has one. Every file is read."""
    numbers = list(numbers)
    with concurrent.futures.ThreadPoolExecutor(_READERS) as pool:  # hashlib releases the GIL
        faults = pool.map(lambda number: _damage(directory, number, facts(directory, number, key)), numbers)
        return {number: fault for number, fault in zip(numbers, faults, strict=True) if fault is not None}


def _damage(directory: pathlib.Path, number: int, known: Mapping[str, Any] | None) -> str | None:
    folder = _folder(directory, number)
    if known is None:
        return f"{folder} is missing or incomplete"
    for name, file in known["files"].items():
        try:
            whole = files.digest(folder / name) == file["sha256"]
        except OSError as error:
            return f"{folder / name} cannot be read ({error.strerror})"
        if not whole:
            return f"{folder / name} does not hold the bytes that were written"
    return None


def load(directory: pathlib.Path, number: int, name: str, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Maps an array of a shard, named without ``.npy``, into memory.

    Raises:
      ValueError: its file is missing, or holds another kind of array.
    """
    path = _folder(directory, number) / f"{name}.npy"
    try:
        return _storage.open_array(str(path), dtype, shape)
    except ValueError as error:
        raise ValueError(f"{error}. {REPAIR}") from None


REPAIR = "Call write_cache with the arguments that the cache was written with: it computes damaged shards again."


def _folder(directory: pathlib.Path, number: int) -> pathlib.Path:
    return directory / "shards" / f"{number:06d}"
