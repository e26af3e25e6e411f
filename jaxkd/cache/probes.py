"""Probes: a few examples on which a transform and a teacher are compared by what they do.

Neither function has a hash. What they make of sixteen examples in every view says whether they are the same ones, and
also that the draws are: another seed gives other crops.
"""

from __future__ import annotations

import io
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.teachers.cache import examples, shards

__all__ = ["Transform", "difference", "effect", "load", "rows", "save", "view_of"]

Transform = Callable[[Any], Any]

_PROBES = 16
_VALUES = 512  # of each entry of an example; a whole photograph in every view would be more than the cache


def rows(count: int) -> np.ndarray:
    """Which examples of a set are probes: up to sixteen, spread over it.

    >>> rows(4).tolist(), len(rows(1000))
    ([0, 1, 2, 3], 16)
    """
    return np.unique(np.linspace(0, count - 1, _PROBES).astype(np.int64))


def view_of(batch: Mapping[str, Any], view: Any) -> dict[str, Any]:
    """A batch as a transform sees it in a view: the view's number is the epoch that its draws are of."""
    return {**batch, "epoch": np.full(np.shape(batch["index"]), view, np.int32)}


def effect(transform: Transform | None, batch: Mapping[str, np.ndarray], views: int) -> dict[str, np.ndarray]:
    """What a transform makes of examples in each view.

    Args:
      transform: a pure function of a batch; None for none.
      batch: the examples.
      views: how many.

    Returns:
      Arrays ``[views, examples, values]`` by name; of large entries, a fixed choice of the values.

    Raises:
      ValueError: what it makes of an example depends on the others in the batch, as mixup does.

    >>> flipped = lambda batch: {**batch, "image": -batch["image"] * batch["epoch"][:, None]}
    >>> effect(flipped, {"image": np.ones((1, 2)), "index": np.array([7])}, views=2)["image"].tolist()
    [[[-0.0, -0.0]], [[-1.0, -1.0]]]
    """
    # Compiled as it is, and not in a function made here, so that a transform that was used before is compiled already.
    applied = dict if transform is None else jax.jit(transform)
    found: dict[str, list[np.ndarray]] = {}
    for view in range(views):
        for name, value in applied(view_of(batch, view)).items():
            if name not in examples.PLACE and np.ndim(value):
                found.setdefault(name, []).append(_some(np.asarray(value)))
    backwards = applied(view_of({name: value[::-1] for name, value in batch.items()}, 0))
    for name, values in found.items():
        again = _some(np.asarray(backwards[name]))[::-1]
        if not _close(values[0], again):
            raise ValueError(
                f"transform: what it makes of an example's {name!r} depends on the other examples in the batch or on "
                "their order, so it cannot be replayed from a cache. Use random transforms that are keyed by the "
                "batch's 'index' and 'epoch', as those of jaxkd.data are, and mix examples (mixup, CutMix) with a "
                "teacher that is evaluated in each step."
            )
    return {name: np.stack(values) for name, values in found.items()}


def difference(there: Mapping[str, np.ndarray], here: Mapping[str, np.ndarray], tolerance: float) -> str | None:
    """Where two effects differ by more than rounding, or None.

    Args:
      there: as stored.
      here: now.
      tolerance: for floating-point values, relative to the largest; integers have to be equal.
    """
    if sorted(there) != sorted(here):
        return f"entries {sorted(there)} there, {sorted(here)} here"
    for name, stored in there.items():
        given = here[name]
        if stored.dtype != given.dtype or stored.shape != given.shape:
            return f"{name!r} is {stored.dtype}{list(stored.shape)} there, {given.dtype}{list(given.shape)} here"
        if not _close(stored, given, tolerance):
            wrong = ~_equal(stored, given, tolerance)
            at = tuple(axis[0] for axis in np.nonzero(wrong))
            return (
                f"{name!r} of the probes differs in {int(wrong.sum())} of {wrong.size} values, first at "
                f"{list(map(int, at))}: {stored[at]} there, {given[at]} here"
            )
    return None


def save(path: pathlib.Path, parts: Mapping[str, Mapping[str, np.ndarray]]) -> None:
    """Groups of arrays in one ``.npz`` file, written all at once."""
    file = io.BytesIO()
    named: dict[str, Any] = {
        f"{part}:{name}": value for part, arrays in parts.items() for name, value in arrays.items()
    }
    np.savez(file, **named)
    shards.write_atomically(path, file.getvalue())


def load(path: pathlib.Path) -> dict[str, dict[str, np.ndarray]]:
    """What `save` wrote."""
    parts: dict[str, dict[str, np.ndarray]] = {}
    with np.load(path, allow_pickle=False) as file:
        for key in file.files:
            part, name = key.split(":", 1)
            parts.setdefault(part, {})[name] = file[key]
    return parts


def _some(value: np.ndarray) -> np.ndarray:
    """Some values of each example, always the same, as float32 where they are of a narrower float."""
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
