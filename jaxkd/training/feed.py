"""The two ways of giving batches to a step: sent one after the other, or gathered on the device, many in a dispatch."""

from __future__ import annotations

import collections
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.training import mesh, programs
from jaxkd.training.plan import Plan, next_piece
from jaxkd.types import Batch, Distiller, TrainState

__all__ = ["Feed", "Input", "feed", "is_resident"]


class Input(Protocol):
    """What `jaxkd.training.fit` needs of an input; `jaxkd.data` has two.

    One whose data lies on the device has two more attributes: ``arrays``, a pytree, and ``gather(arrays, step)``, a
    pure function that returns the batch of a step.

    Attributes:
      batch_size: examples in a batch.
      steps_per_epoch: batches in one pass.
    """

    batch_size: int
    steps_per_epoch: int

    def batches(self, state: Any = None) -> Iterator[Batch]:
        """An iterator with ``get_state()``, which describes what was returned so far as a dict for JSON.

        With such a state as argument, the iterator goes on from there.
        """
        ...


class Feed(Protocol):
    """Advances a state.

    Attributes:
      window: dispatches from one fetch of metrics to the next, if nothing is to be flushed.
    """

    window: int

    @property
    def batch(self) -> Batch:
        """Before the first `run`, a batch."""
        ...

    def fetch(self, step: int) -> Any:
        """What the next dispatch needs from the host. An exception from here leaves everything as it was."""
        ...

    def run(self, state: TrainState, step: int, fetched: Any) -> tuple[TrainState, int]:
        """Dispatches: the new state, and the step that this leads to."""
        ...

    def metrics(self, flush: bool) -> tuple[int, programs.Packed, int] | None:
        """Those of the steps since the last ones given: the first step, the packed metrics, and how many steps.

        None if they are few, and need not be flushed.
        """
        ...

    def indices(self, step: int) -> np.ndarray | None:
        """``batch["index"]`` of one of the last updates, of what this process has of the batch.

        None if batches have none, or the update was long ago.
        """
        ...

    def position(self) -> dict[str, Any] | None:
        """What to give to `feed` to go on from here."""
        ...

    def close(self) -> None:
        """Ends what reads ahead."""
        ...


def is_resident(data: Any) -> bool:
    """Whether batches of an input can be gathered on the device."""
    return hasattr(data, "arrays") and hasattr(data, "gather")


def feed(kd: Distiller, data: Any, plan: Plan, position: Mapping[str, Any] | None = None) -> Feed:
    """The right feed for an input.

    Args:
      kd: whose step is run.
      data: an `Input`.
      plan: of the run.
      position: of an earlier feed of the same input.

    Returns:
      A feed at that position.

    Raises:
      TypeError: this is not an input.
    """
    missing = [name for name in ("batch_size", "steps_per_epoch", "batches") if not hasattr(data, name)]
    if missing:
        raise TypeError(
            "train: expected an input with batch_size, steps_per_epoch and batches(), got "
            f"{type(data).__name__} without {', '.join(missing)}. jaxkd.data.Resident and jaxkd.data.Stream are inputs."
        )
    return _Resident(kd, data, plan) if is_resident(data) else _Streaming(kd, data, plan, position)


def _indices(batch: Mapping[str, Any]) -> np.ndarray | None:
    if "index" not in batch:
        return None
    index, mask = (None if name not in batch else _here(batch[name]) for name in ("index", "mask"))
    return index if mask is None or index is None or mask.shape != index.shape else index[mask.astype(bool)]


def _here(array: Any) -> np.ndarray:
    """The rows of an array that this process has."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    parts = {str(shard.index): shard for shard in array.addressable_shards}.values()
    return np.concatenate([np.asarray(shard.data) for shard in parts])


class _Resident:
    window = 1

    def __init__(self, kd: Distiller, data: Any, plan: Plan) -> None:
        self._data, self._plan = data, plan
        self._chunk = programs.run_chunk(kd.step, data.gather)
        self._gather = programs.gather_batch(data.gather)
        self.batch = self._gather(data.arrays, jnp.int32(0))
        self._step = 0
        self._metrics: tuple[int, programs.Packed, int] | None = None

    def fetch(self, step: int) -> int:
        return next_piece(self._plan, step)

    def run(self, state: TrainState, step: int, fetched: int) -> tuple[TrainState, int]:
        mesh.check_alone(state)
        arrays = mesh.arrays_beside(state, self._data)
        state, packed = self._chunk(state, arrays, jnp.int32(step), length=fetched - step)
        self._metrics, self._step = (step, packed, fetched - step), fetched
        return state, fetched

    def metrics(self, flush: bool) -> tuple[int, programs.Packed, int] | None:
        found, self._metrics = self._metrics, None
        return found

    def indices(self, step: int) -> np.ndarray | None:
        return _indices(self._gather(self._data.arrays, jnp.int32(step - 1)))

    def position(self) -> dict[str, Any]:
        return {"step": self._step}  # not needed here, where a batch is a function of the step, but by a stream

    def close(self) -> None:
        pass


class _Streaming:
    window = 16  # The host is at most two of these ahead: never starving the device, nor filling it with batches.

    def __init__(self, kd: Distiller, data: Any, plan: Plan, position: Mapping[str, Any] | None) -> None:
        self._plan = plan
        self._step, self._take = programs.run_step(kd.step), mesh.intake_of(kd)
        self._window: programs.Packed | None = None
        self._first_step = self._count = 0
        # Where the batches of steps are whose metrics were not looked at yet, at most two windows; they stay there.
        self._recent: collections.deque[tuple[int, Batch]] = collections.deque(maxlen=3 * self.window)
        self._batches = data.batches(position)
        for name in ("__next__", "get_state"):
            if not hasattr(self._batches, name):
                raise TypeError(
                    f"train: expected batches() to return an iterator with get_state(), so that a run can be resumed; "
                    f"{type(self._batches).__name__} has no {name}."
                )
        # Read ahead by one: the first batch also shows `init` what batches look like.
        self._first: Batch | None = next(self._batches, None)
        if self._first is None:
            raise ValueError("train: the input gave no batch at all.")

    @property
    def batch(self) -> Batch:
        assert self._first is not None, "the first batch was let go when it was used"
        return self._first

    def fetch(self, step: int) -> Batch:
        if self._first is not None:
            return self._first
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(
                f"train: the input ended after {step} of {self._plan.steps} steps. Let it repeat: the inputs of "
                "jaxkd.data do with epochs=None."
            )
        return batch

    def run(self, state: TrainState, step: int, fetched: Batch) -> tuple[TrainState, int]:
        batch = self._take(fetched)
        if self._window is None:
            mesh.check_alone(state)
            self._first, self._first_step = None, step
            self._window = self._step.start(state, batch, self.window)
        state, self._window = self._step.run(state, self._window, batch)
        self._recent.append((step + 1, {name: fetched[name] for name in ("index", "mask") if name in fetched}))
        self._count += 1
        return state, step + 1

    def metrics(self, flush: bool) -> tuple[int, programs.Packed, int] | None:
        if self._window is None or not self._count or not (flush or self._count == self.window):
            return None
        found = self._first_step, self._window, self._count
        self._first_step, self._count = self._first_step + self._count, 0
        return found

    def indices(self, step: int) -> np.ndarray | None:
        return next((_indices(batch) for number, batch in self._recent if number == step), None)

    def position(self) -> dict[str, Any]:
        state: dict[str, Any] = self._batches.get_state()
        return state

    def close(self) -> None:
        getattr(self._batches, "close", lambda: None)()
