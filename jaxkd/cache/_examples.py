"""Reads and digests the examples of a data set, by rows on the host.

An example is identified by its ``index``; its digest shows that it still has the contents that the teacher saw.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np


def is_place(name: str, value: Any) -> bool:
    """Returns whether an entry is an example's place in the set or the pass.

    A mask over examples is: it marks those that fill up the last batch. One over tokens belongs to the contents, since
    a teacher may read it.

    >>> is_place("mask", np.ones(2, bool)), is_place("mask", np.ones((2, 3), bool))
    (True, False)
    """
    return name in ("index", "epoch") or (name == "mask" and np.ndim(value) == 1)


class Examples(NamedTuple):
    """A data set that is read by rows.

    Attributes:
      size: number of examples.
      take: ``(rows) -> {entry: NumPy array [rows, ...]}``, with the ``index`` of each.
      whole: all arrays, if the set lies in memory.
    """

    size: int
    take: Callable[[Sequence[int] | np.ndarray], dict[str, np.ndarray]]
    whole: Mapping[str, np.ndarray] | None = None


def read_examples(data: Any) -> Examples:
    """Returns the examples of a loader, or of a data set in memory.

    Args:
      data: has ``arrays``, a mapping of arrays with one row per example (a `Dataset`, a `Resident`); or
        ``num_examples`` and ``take(rows)`` (a `Stream`).

    Raises:
      TypeError: it has neither.
      ValueError: its arrays differ in their number of rows.

    >>> read_examples({"image": np.zeros((3, 2)), "index": np.array([5, 6, 7])}).take([2])["index"].tolist()
    [7]
    """
    arrays = data if isinstance(data, Mapping) else getattr(data, "arrays", None)
    if isinstance(arrays, Mapping) and arrays:
        whole = {name: _canonical(value) for name, value in arrays.items()}
        rows = {name: len(value) for name, value in whole.items()}
        if len(set(rows.values())) > 1:
            raise ValueError(f"data: expected one row for each example in every array, got {rows}.")
        count = next(iter(rows.values()))
        whole.setdefault("index", np.arange(count, dtype=np.int32))
        return Examples(count, lambda rows: {name: value[np.asarray(rows)] for name, value in whole.items()}, whole)
    if hasattr(data, "take") and hasattr(data, "num_examples"):
        return Examples(int(data.num_examples), data.take)
    raise TypeError(
        "data: expected a set in memory, which has `arrays`, or a loader that reads by rows, which has `num_examples` "
        f"and `take(rows)`; got {type(data).__name__}. Pass a jaxkd.data.Dataset, Resident or Stream."
    )


def entries(batch: Mapping[str, np.ndarray]) -> dict[str, str]:
    """Returns dtype and shape of each entry of one example.

    >>> entries({"image": np.zeros((2, 8, 8, 1), np.uint8), "index": np.arange(2)})
    {'image': 'uint8[8, 8, 1]'}
    """
    return {
        name: f"{value.dtype.name}{list(value.shape[1:])}"
        for name, value in sorted(batch.items())
        if not is_place(name, value)
    }


def digests(batch: Mapping[str, np.ndarray], names: Sequence[str]) -> np.ndarray:
    """Returns a 64-bit digest of each example, from the bytes of its named entries.

    >>> first, second = digests({"label": np.array([3, 4])}, ["label"])
    >>> bool(first != second)
    True
    """
    columns = [np.ascontiguousarray(batch[name]) for name in sorted(names)]
    values = np.empty(len(columns[0]), np.uint64)
    for row in range(len(values)):
        state = hashlib.blake2b(digest_size=8)
        for column in columns:
            state.update(column[row].tobytes())
        values[row] = int.from_bytes(state.digest(), "little")
    return values


def digest_of_set(index: np.ndarray, digests: np.ndarray) -> str:
    """Returns one digest of the indices and digests of examples; their order matters.

    >>> digest_of_set(np.arange(2), np.array([7, 8])) == digest_of_set(np.arange(2), np.array([8, 7]))
    False
    """
    state = hashlib.sha256(np.asarray(index, "<i8").tobytes())
    state.update(np.asarray(digests, "<u8").tobytes())
    return f"sha256:{state.hexdigest()[:16]}"


def content_difference(cached: np.ndarray, batch: Mapping[str, np.ndarray], names: Mapping[str, str]) -> str | None:
    """Returns how a batch differs from the examples that the teacher saw, or None.

    ``cached`` has the digests of these examples, uint64 ``[rows]``, and ``names`` the `entries` that the teacher saw;
    further entries are ignored. So are examples without any unmasked token, such as those that fill up a batch.
    """
    given = entries(batch)
    if changed := [
        f"{name!r} is {names[name]} in the cache, {given.get(name, 'missing')} given"
        for name in names
        if given.get(name) != names[name]
    ]:
        return "data: " + ", ".join(changed)
    found = digests(batch, list(names))
    other = found != cached
    if "mask" in names:
        other &= batch["mask"].reshape(len(other), -1).any(axis=1)
    rows = np.flatnonzero(other)
    if not len(rows):
        return None
    first = rows[0]
    return (
        f"data: {len(rows)} of {len(found)} examples have other contents ({', '.join(names)}), the first is index "
        f"{int(batch['index'][first])}: digest {int(cached[first]):016x} in the cache, {int(found[first]):016x} given"
    )


def _canonical(value: Any) -> np.ndarray:
    """Returns a NumPy array in the dtype that it has on the device."""
    array = np.asarray(value)
    return array.astype(jax.dtypes.canonicalize_dtype(array.dtype), copy=False)
