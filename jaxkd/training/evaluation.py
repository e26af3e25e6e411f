"""Metrics of a whole split."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np

from jaxkd.training import mesh, programs
from jaxkd.training.feed import is_resident
from jaxkd.types import Distiller, TrainState

__all__ = ["evaluate"]

# Batches sent ahead of the device hold its memory until their turn comes.
_IN_FLIGHT = 16


def evaluate(kd: Distiller, state: TrainState, data: Any) -> dict[str, float]:
    """Evaluates one pass over an input: sums and counts are added over its batches, and divided at the end.

    Args:
      kd: what to evaluate with.
      state: what to evaluate; nothing in it changes, and it is not donated.
      data: an input. One on the device is a single dispatch; of a streaming one, the first ``steps_per_epoch`` batches
        are taken.

    Returns:
      Means by name; NaN where nothing was counted.

    Raises:
      ValueError: the input ends before ``steps_per_epoch`` batches.
    """
    length = data.steps_per_epoch
    if is_resident(data):
        chunk = programs.evaluate_resident(kd.evaluate, data.gather)
        return _means([chunk(state, mesh.arrays_beside(state, data), length=length)])
    one, take = programs.evaluate_batch(kd.evaluate), mesh.intake_of(kd)
    batches = data.batches()
    packed = []
    try:
        for batch in itertools.islice(batches, length):
            packed.append(one(state, take(batch)))
            packed[-1].array.copy_to_host_async()
            if len(packed) > _IN_FLIGHT:
                packed[-_IN_FLIGHT].array.block_until_ready()
    finally:
        getattr(batches, "close", lambda: None)()
    if len(packed) < length:
        raise ValueError(
            f"the input for evaluation ended after {len(packed)} batches, and its steps_per_epoch is {length}."
        )
    return _means(packed)


def _means(packed: list[programs.Packed]) -> dict[str, float]:
    if not packed:
        return {}
    names = packed[0].names
    values = np.concatenate([np.asarray(p.array, np.float64).reshape(-1, 2, len(names)) for p in packed])
    sums, counts = values.sum(axis=0).tolist()
    return {name: sum_ / count if count else math.nan for name, sum_, count in zip(names, sums, counts, strict=True)}
