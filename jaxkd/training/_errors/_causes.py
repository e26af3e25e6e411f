"""Causes of a loss that is not finite: numbers of a batch, weights of a teacher.

An index outside of a memory bank, a label that is no class of the head and a token outside of the vocabulary give NaN
within a compiled step, where their values cannot be compared with a bound. Once a run has ended, they can be: a fresh
state has finite parameters, so that a batch whose loss is NaN from the start is itself the cause.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import parallel
from jaxkd._core import batches, tree_paths
from jaxkd.types import Array, Batch, Distiller, PyTree, TrainState


def find_cause(kd: Distiller, batch: Batch, key: Array) -> str | None:
    """Returns the cause of a loss that is not finite, in the batch or the teacher.

    Args:
      kd: the distiller, which is initialized anew; its step is compiled for one device.
      batch: the batch of the update.
      key: PRNG key for ``kd.init``.

    Returns:
      A sentence that names the entry and a value, or the teacher's array; None if neither is the cause, or they cannot
      be examined: with several processes each has a part of the batch only.
    """
    if jax.process_count() > 1:
        return None
    while isinstance(kd, parallel.Placed) and kd.source is not None:
        kd = kd.source
    batch = {name: jax.tree.map(np.asarray, x) for name, x in batch.items()}
    try:
        found = _nan_entry(batch)
        if found is not None:
            return found
        try:
            state = kd.init(key, batch)
        except ValueError as error:  # objectives check the values of a batch that is known
            return str(error)
        return _nan_weight(state.teacher) or _wrong_integers(kd, state, batch)
    except Exception:  # whatever a model raises: this is an explanation of another error
        return None


def _nan_entry(batch: Mapping[str, Any]) -> str | None:
    """Returns the first floating-point entry with a NaN in an unmasked example."""
    included = batches.example_mask(batch)
    rows = np.ones(batches.batch_size(batch), bool) if included is None else np.asarray(included)
    for name, x in batch.items():
        if isinstance(x, np.ndarray) and jnp.issubdtype(x.dtype, jnp.floating):
            found = np.flatnonzero(rows & np.isnan(x.astype(np.float32)).reshape(len(x), -1).any(1))
            if found.size:
                return f"batch[{name!r}] holds NaN, first in {_example(batch, found[0])}."
    return None


def _nan_weight(teacher: PyTree) -> str | None:
    """Returns the first array with a NaN in the state that a teacher begins with."""
    for path, x in tree_paths.by_path(teacher).items():
        if jnp.issubdtype(x.dtype, jnp.floating) and np.isnan(np.asarray(x, np.float32)).any():
            return f"The teacher's weights hold NaN, first in teacher/{path}: load or train the teacher again."
    return None


def _wrong_integers(kd: Distiller, state: TrainState, batch: Mapping[str, Any]) -> str | None:
    """Returns the entry whose integers make the loss NaN, where zeros do not."""
    compiled = jax.jit(lambda state, batch: kd.step(state, batch)[1]["loss"].sum)

    def finite(name: str, values: np.ndarray) -> bool:
        return bool(np.isfinite(compiled(state, {**batch, name: values})))

    names = [name for name, x in batch.items() if isinstance(x, np.ndarray) and jnp.issubdtype(x.dtype, jnp.integer)]
    if not names or finite(names[0], batch[names[0]]):
        return None
    for name in names:
        values, first, last = batch[name], 0, len(batch[name])
        if not finite(name, np.zeros_like(values)):
            continue
        while last - first > 1:  # one example is enough to make the loss NaN: half of them are replaced by zeros
            middle = (first + last) // 2
            rows = np.arange(len(values)).reshape(-1, *(1,) * (values.ndim - 1))
            if finite(name, np.where((rows >= first) & (rows < middle), values, 0)):
                first = middle
            else:
                last = middle
        low, high = int(values[first].min()), int(values[first].max())
        held = f"is {high}" if low == high else f"is from {low} to {high}"
        return (
            f"batch[{name!r}] {held} in {_example(batch, first)}, which is out of range: with 0 in its place, the loss "
            "of a fresh state is finite. Compare it with the number of classes, tokens or training examples that it is "
            "an index of."
        )
    return None


def _example(batch: Mapping[str, Any], row: int) -> str:
    index = batch.get("index")
    return f"row {row} of the batch" if index is None else f"the example of index {int(index[row])}"
