"""The shards of a cache: folders of ``.npy`` files, each complete or absent.

A shard holds consecutive rows of one view. It is written into a folder with a temporary name; every file is flushed to
the disk and its digest recorded in ``shard.json``; then one rename gives the folder its final name. A process that is
killed before the rename leaves a folder with a temporary name, which no reader opens and which the next writer of that
shard deletes. Resuming therefore needs no journal: the shards to compute are those without a folder.
"""

from __future__ import annotations

import contextlib
import json
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxkd._core import files
from jaxkd.cache import _arrays

_FACTS = "shard.json"


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
    # Each shard has exactly one writer, so a temporary folder that is already there belongs to a dead process.
    for abandoned in final.parent.glob(f"{final.name}.unfinished-*"):
        shutil.rmtree(abandoned, ignore_errors=True)
    temporary = files.unfinished(final)
    temporary.mkdir()
    written = {}
    for name, array in arrays.items():
        path = temporary / f"{name}.npy"
        _arrays.write_array(path, array)
        written[path.name] = {"bytes": path.stat().st_size, "sha256": files.digest(path)}
    files.write(temporary / _FACTS, json.dumps({**notes, "files": written}, indent=1).encode())
    files.sync(temporary)
    if final.exists():  # a damaged shard: a whole one is never written again
        shutil.rmtree(final)
    temporary.rename(final)
    files.sync(final.parent)


def facts(directory: pathlib.Path, number: int) -> dict[str, Any] | None:
    """Returns the facts of a shard, or None if it is absent or has a wrong size.

    They are ``{"files": {name: {"bytes": ..., "sha256": ...}}, ...}`` and the notes that the shard was written with.
    """
    folder = _folder(directory, number)
    with contextlib.suppress(OSError, ValueError):
        stored: dict[str, Any] = json.loads((folder / _FACTS).read_text())
        if all((folder / name).stat().st_size == file["bytes"] for name, file in stored["files"].items()):
            return stored
    return None


def damage(directory: pathlib.Path, number: int, known: Mapping[str, Any] | None) -> str | None:
    """Returns the first fault of a shard with these `facts`, or None."""
    folder = _folder(directory, number)
    if known is None:
        return f"{folder} is missing or incomplete"
    for name, file in known["files"].items():
        if files.digest(folder / name) != file["sha256"]:
            return f"{folder / name} does not hold the bytes that were written"
    return None


def load(directory: pathlib.Path, number: int, name: str, dtype: str) -> np.ndarray:
    """Maps an array of a shard, named without ``.npy``, into memory."""
    return _arrays.open_array(str(_folder(directory, number) / f"{name}.npy"), dtype)


def _folder(directory: pathlib.Path, number: int) -> pathlib.Path:
    return directory / "shards" / f"{number:06d}"
