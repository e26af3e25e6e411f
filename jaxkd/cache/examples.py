"""The examples of a set, by their rows on the host, and a digest of each: which example a cached output belongs to."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

__all__ = ["PLACE", "Examples", "differing", "digests", "entries", "of"]

PLACE = ("index", "epoch", "mask")
"""Entries of a batch that say where an example stands, and not what it is."""


class Examples(NamedTuple):
    """A set, read by rows.

    Attributes:
      size: how many there are.
      take: ``(rows) -> {entry: NumPy array [rows, ...]}``, with the ``index`` of each.
      whole: all of it, where it lies in memory.
    """

    size: int
    take: Callable[[Sequence[int] | np.ndarray], dict[str, np.ndarray]]
    whole: Mapping[str, np.ndarray] | None = None


def of(data: Any) -> Examples:
    """The examples of an input, or of a set in memory.

    Args:
      data: has ``arrays``, a mapping of arrays with one row for each example (a `Dataset`, a `Resident`); or
        ``num_examples`` and ``take(rows)`` (a `Stream`).

    Raises:
      TypeError: it is neither.
      ValueError: its arrays do not have the same number of rows.

    >>> of({"image": np.zeros((3, 2)), "index": np.array([5, 6, 7])}).take([2])["index"].tolist()
    [7]
    """
    arrays = data if isinstance(data, Mapping) else getattr(data, "arrays", None)
    if isinstance(arrays, Mapping) and arrays:
        whole = {name: _on_host(value) for name, value in arrays.items()}
        rows = {name: len(value) for name, value in whole.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"data: expected one row for each example in every array, got {rows}.")
        count = next(iter(rows.values()))
        whole.setdefault("index", np.arange(count, dtype=np.int32))
        return Examples(count, lambda rows: {name: value[np.asarray(rows)] for name, value in whole.items()}, whole)
    if hasattr(data, "take") and hasattr(data, "num_examples"):
        return Examples(int(data.num_examples), data.take)
    raise TypeError(
        "data: expected a set in memory (it has `arrays`) or an input that reads by rows (`num_examples` and "
        f"`take(rows)`), got {type(data).__name__}. jaxkd.data.Dataset, Resident and Stream will do."
    )


def entries(batch: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Dtype and shape of what an example consists of, by name.

    >>> entries({"image": np.zeros((2, 8, 8, 1), np.uint8), "index": np.arange(2)})
    {'image': 'uint8[8, 8, 1]'}
    """
    return {
        name: f"{value.dtype.name}{list(value.shape[1:])}" for name, value in sorted(batch.items()) if name not in PLACE
    }


def digests(batch: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """64 bits for each example, from the bytes of its entries.

    Args:
      batch: arrays with one row for each example.
      names: the entries that count.

    Returns:
      uint64 ``[rows]``.

    >>> first, second = digests({"label": np.array([3, 4])}, ["label"])
    >>> bool(first != second)
    True
    """
    columns = [np.ascontiguousarray(batch[name]) for name in sorted(names)]
    found = np.empty(len(columns[0]), np.uint64)
    for row in range(len(found)):
        state = hashlib.blake2b(digest_size=8)
        for column in columns:
            state.update(column[row].tobytes())
        found[row] = int.from_bytes(state.digest(), "little")
    return found


def differing(known: np.ndarray, batch: Mapping[str, np.ndarray], names: Mapping[str, str]) -> str | None:
    """How the examples of a batch differ from those that a cache was written from, or None.

    Args:
      known: their digests then.
      batch: they now.
      names: their `entries` then; further ones are left alone.
    """
    now = entries(batch)
    if changed := [
        f"{name!r} was {names[name]} and is {now.get(name, 'missing')}"
        for name in names
        if now.get(name) != names[name]
    ]:
        return "data: " + ", ".join(changed)
    found = digests(batch, list(names))
    rows = np.flatnonzero(found != known)
    if not len(rows):
        return None
    first = rows[0]
    return (
        f"data: {len(rows)} of {len(found)} examples have other contents ({', '.join(names)}), the first is index "
        f"{int(batch['index'][first])}: digest {int(known[first]):016x} there, {int(found[first]):016x} here"
    )


def _on_host(value: Any) -> np.ndarray:
    """As the device would have it: 64-bit numbers in 32 bits."""
    array = np.asarray(value)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
