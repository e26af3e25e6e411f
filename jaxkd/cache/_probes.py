"""Probes: examples on which transforms and teachers are compared by their results.

A Python function has no digest. Its results on sixteen examples in every view identify it nevertheless, and they also
identify its random draws: another seed gives other crops. ``probes.npz`` stores the examples themselves, so that a
cache can be compared where the data set is not available.
"""

from __future__ import annotations

import hashlib
import io
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import files
from jaxkd.cache import _examples

Transform = Callable[[Any], Any]

_PROBES = 16
_LOST = "Without it, nothing shows that the transform is the cache's: delete {} and write the cache again."
_VALUES = 512  # stored per entry of an example: a whole photograph in every view would be larger than the cache


def rows(count: int) -> np.ndarray:
    """Returns the rows of the probes: up to sixteen, evenly spread over the set.

    >>> rows(4).tolist(), len(rows(1000))
    ([0, 1, 2, 3], 16)
    """
    return np.unique(np.linspace(0, count - 1, _PROBES).astype(np.int64))


def view_of(batch: Mapping[str, Any], view: Any) -> dict[str, Any]:
    """Returns a batch whose ``epoch``, from which a transform draws, is the view."""
    return {**batch, "epoch": np.full(np.shape(batch["index"]), view, np.int32)}


def effect(transform: Transform | None, batch: Mapping[str, np.ndarray], views: int) -> dict[str, np.ndarray]:
    """Returns samples of a transform's results on some examples in each view.

    They are arrays ``[views, examples, values]`` by name; of large entries, a fixed subset of the values.

    Raises:
      ValueError: the result for an example depends on the other examples of the batch, as in mixup.

    >>> flipped = lambda batch: {**batch, "image": -batch["image"] * batch["epoch"][:, None]}
    >>> effect(flipped, {"image": np.ones((1, 2)), "index": np.array([7])}, views=2)["image"].tolist()
    [[[-0.0, -0.0]], [[-1.0, -1.0]]]
    """
    # jit of the transform itself, not of a closure: its cached compilation is found again on the next call.
    applied = dict if transform is None else jax.jit(transform)
    found: dict[str, list[np.ndarray]] = {}
    for view in range(views):
        for name, value in applied(view_of(batch, view)).items():
            if not _examples.is_place(name, value) and np.ndim(value):
                found.setdefault(name, []).append(_sample(np.asarray(value)))
    # The same batch in reverse order must give the reversed results, or the transform mixes examples.
    backwards = applied(view_of({name: value[::-1] for name, value in batch.items()}, 0))
    for name, values in found.items():
        again = _sample(np.asarray(backwards[name]))[::-1]
        if not _close(values[0], again):
            raise ValueError(
                f"transform: its result {name!r} for an example depends on the other examples in the batch or on their "
                "order, so it cannot be replayed from a cache. Use random transforms that are keyed by the batch's "
                "'index' and 'epoch', as those of jaxkd.data are. To mix examples (mixup, CutMix), evaluate the "
                "teacher in each step."
            )
    return {name: np.stack(values) for name, values in found.items()}


def difference(stored: Mapping[str, np.ndarray], given: Mapping[str, np.ndarray], tolerance: float) -> str | None:
    """Returns the first difference of two effects beyond rounding, or None.

    ``tolerance`` applies to floating-point values, relative to the largest; integers have to be equal.
    """
    if sorted(stored) != sorted(given):
        return f"entries {sorted(stored)} in the cache, {sorted(given)} given"
    for name, old in stored.items():
        new = given[name]
        if old.dtype != new.dtype or old.shape != new.shape:
            return f"{name!r} is {old.dtype}{list(old.shape)} in the cache, {new.dtype}{list(new.shape)} given"
        if not _close(old, new, tolerance):
            wrong = ~_equal(old, new, tolerance)
            at = tuple(axis[0] for axis in np.nonzero(wrong))
            return (
                f"{name!r} of the probes differs in {int(wrong.sum())} of {wrong.size} values, first at "
                f"{list(map(int, at))}: {old[at]} in the cache, {new[at]} given"
            )
    return None


def save(path: pathlib.Path, parts: Mapping[str, Mapping[str, np.ndarray]]) -> str:
    """Writes groups of arrays to one ``.npz`` file, atomically; returns its digest."""
    file = io.BytesIO()
    named: dict[str, Any] = {
        f"{part}:{name}": value for part, arrays in parts.items() for name, value in arrays.items()
    }
    np.savez(file, **named)
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_atomically(path, file.getvalue())
    return hashlib.sha256(file.getvalue()).hexdigest()


def load(path: pathlib.Path, digest: str) -> dict[str, dict[str, np.ndarray]]:
    """Returns the groups of arrays that `save` wrote.

    Raises:
      ValueError: the file is missing, or does not have the digest.
    """
    parts: dict[str, dict[str, np.ndarray]] = {}
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read ({error.strerror}). {_LOST.format(path.parent)}") from None
    if hashlib.sha256(content).hexdigest() != digest:
        raise ValueError(f"{path} does not hold the bytes that were written. {_LOST.format(path.parent)}")
    with np.load(io.BytesIO(content), allow_pickle=False) as file:
        for key in file.files:
            part, name = key.split(":", 1)
            parts.setdefault(part, {})[name] = file[key]
    return parts


def _sample(value: np.ndarray) -> np.ndarray:
    """Returns a fixed subset of each example's values, narrow floats as float32."""
    flat = value.reshape(len(value), -1)
    if flat.shape[1] > _VALUES:
        flat = flat[:, np.sort(np.random.default_rng(0).choice(flat.shape[1], _VALUES, replace=False))]
    return flat.astype(np.float32) if jnp.issubdtype(flat.dtype, jnp.floating) and flat.itemsize < 4 else flat


def _close(a: np.ndarray, b: np.ndarray, tolerance: float = 1e-4) -> bool:
    return bool(_equal(a, b, tolerance).all())


def _equal(a: np.ndarray, b: np.ndarray, tolerance: float) -> Any:
    if not np.issubdtype(a.dtype, np.floating):
        return a == b
    finite = np.isfinite(a) & np.isfinite(b)
    largest = np.abs(np.where(np.isfinite(a), a, 0)).max(initial=0)
    gap = np.abs(np.where(finite, a, 0) - np.where(finite, b, 0))
    return np.where(finite, gap <= tolerance * largest, (a == b) | (np.isnan(a) & np.isnan(b)))
