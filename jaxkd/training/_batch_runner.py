"""Runners of a step: one dispatch per streamed batch, or chunks of resident ones."""

from __future__ import annotations

import collections
from collections.abc import Hashable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import parallel
from jaxkd.metrics import Packed
from jaxkd.training import _compiled_steps
from jaxkd.training._cadence import Cadence, next_piece
from jaxkd.training._inputs import is_resident
from jaxkd.types import Batch, Distiller, TrainState


class BatchRunner(Protocol):
    """Advances a state over the batches of one input.

    Attributes:
      window: number of dispatches from one fetch of metrics to the next, without a flush.
    """

    window: int

    @property
    def batch(self) -> Batch:
        """First batch of the input; available until the first `run`."""
        ...

    def fetch(self, step: int) -> Any:
        """Returns the host's input to the next dispatch; raises before any change."""
        ...

    def program(self, step: int, fetched: Any) -> Hashable:
        """Returns a key of the compiled program that the next dispatch runs."""
        ...

    def run(self, state: TrainState, step: int, fetched: Any) -> tuple[TrainState, int]:
        """Dispatches; returns the new state and its number of updates."""
        ...

    def metrics(self, flush: bool) -> tuple[int, Packed, int] | None:
        """Returns metrics of new steps: the first step, packed metrics, number of steps.

        Returns None where a window is not full and ``flush`` is False, or where there are no new steps.
        """
        ...

    def recent(self, step: int) -> Batch | None:
        """Returns the batch of a recent update, or None if the update was too long ago.

        Of a stream, whose batches are not kept, it has the integers that are no images, and zeros elsewhere.
        """
        ...

    def position(self) -> dict[str, Any] | None:
        """Returns the position in the input, from which `make_batch_runner` continues."""
        ...

    def close(self) -> None:
        """Stops workers that read ahead."""
        ...


def make_batch_runner(
    kd: Distiller, data: Any, cadence: Cadence, position: Mapping[str, Any] | None = None
) -> BatchRunner:
    """Builds the runner of an input, at the position of an earlier runner."""
    if is_resident(data):
        return _ResidentRunner(kd, data, cadence)
    return _StreamingRunner(kd, data, cadence, position)


class _ResidentRunner:
    window = 1

    def __init__(self, kd: Distiller, data: Any, cadence: Cadence) -> None:
        self._data, self._cadence = data, cadence
        self._chunk = _compiled_steps.run_chunk(kd.step, data.gather)
        self._gather = _compiled_steps.gather_batch(data.gather)
        self.batch = self._gather(data.arrays, jnp.int32(0))
        self._step = 0
        self._metrics: tuple[int, Packed, int] | None = None

    def fetch(self, step: int) -> int:
        return next_piece(self._cadence, step)

    def program(self, step: int, fetched: int) -> Hashable:
        return fetched - step

    def run(self, state: TrainState, step: int, fetched: int) -> tuple[TrainState, int]:
        parallel.check_spans_hosts(state)
        arrays = parallel.replicated_arrays(state, self._data)
        state, packed = self._chunk(state, arrays, jnp.int32(step), length=fetched - step)
        self._metrics, self._step = (step, packed, fetched - step), fetched
        return state, fetched

    def metrics(self, flush: bool) -> tuple[int, Packed, int] | None:
        metrics, self._metrics = self._metrics, None
        return metrics

    def recent(self, step: int) -> Batch | None:
        batch: Batch = self._gather(self._data.arrays, jnp.int32(step - 1))
        return batch

    def position(self) -> dict[str, Any]:
        # A resident batch is a function of the step. The position is for a resume with a stream of the same data.
        return {"step": self._step}

    def close(self) -> None:
        pass


class _StreamingRunner:
    # The host is at most two windows ahead of the device: enough to keep it busy, too little to fill its memory.
    window = 16

    def __init__(self, kd: Distiller, data: Any, cadence: Cadence, position: Mapping[str, Any] | None) -> None:
        self._cadence = cadence
        self._step, self._take = _compiled_steps.run_step(kd.step), parallel.batch_placer(kd)
        self._window: Packed | None = None
        self._first_step = self._count = 0
        # Integers and masks of the steps whose metrics have not been checked, at most two windows, to name the examples
        # of a step whose loss is not finite, and its cause.
        self._recent: collections.deque[tuple[int, Batch]] = collections.deque(maxlen=3 * self.window)
        self._batches = data.batches(position)
        for name in ("__next__", "get_state"):
            if not hasattr(self._batches, name):
                raise TypeError(
                    f"train: expected batches() to return an iterator with get_state(), so that a run can be resumed; "
                    f"{type(self._batches).__name__} has no {name}."
                )
        # One batch is read ahead, because `init` needs to know the shapes of a batch.
        self._first: Batch | None = next(self._batches, None)
        if self._first is None:
            raise ValueError("train: expected at least one batch, and the input has none.")

    @property
    def batch(self) -> Batch:
        assert self._first is not None, "the first batch is released when it is used"
        return self._first

    def fetch(self, step: int) -> Batch:
        if self._first is not None:
            return self._first
        batch = next(self._batches, None)
        if batch is None:
            raise ValueError(
                f"train: the input ended after {step} of {self._cadence.steps} steps. Let it repeat: the inputs of "
                "jaxkd.data do with epochs=None."
            )
        return batch

    def program(self, step: int, fetched: Batch) -> Hashable:
        return tuple(np.shape(x) for x in fetched.values() if hasattr(x, "shape"))

    def run(self, state: TrainState, step: int, fetched: Batch) -> tuple[TrainState, int]:
        batch = self._take(fetched)
        if self._window is None:
            parallel.check_spans_hosts(state)
            self._first, self._first_step = None, step
            self._window = self._step.start(state, batch, self.window)
        state, self._window = self._step.run(state, self._window, batch)
        self._recent.append((step + 1, {name: _kept(x) for name, x in fetched.items()}))
        self._count += 1
        return state, step + 1

    def metrics(self, flush: bool) -> tuple[int, Packed, int] | None:
        if self._window is None or not self._count or not (flush or self._count == self.window):
            return None
        metrics = self._first_step, self._window, self._count
        self._first_step, self._count = self._first_step + self._count, 0
        return metrics

    def recent(self, step: int) -> Batch | None:
        batch = next((batch for number, batch in self._recent if number == step), None)
        fill = lambda x: np.zeros(x.shape, x.dtype) if isinstance(x, jax.ShapeDtypeStruct) else x  # noqa: E731
        return None if batch is None else jax.tree.map(fill, dict(batch))

    def position(self) -> dict[str, Any]:
        state: dict[str, Any] = self._batches.get_state()
        return state

    def close(self) -> None:
        getattr(self._batches, "close", lambda: None)()


def _kept(x: Any) -> Any:
    """Returns an entry of a batch that holds few integers or a mask, or its shape."""
    small = hasattr(x, "dtype") and x.ndim <= 2 and (x.dtype == bool or jnp.issubdtype(x.dtype, jnp.integer))
    return x if small else jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(np.shape(leaf), leaf.dtype), x)


def unmasked_indices(batch: Mapping[str, Any]) -> np.ndarray | None:
    """Returns this process's indices of unmasked examples; None if there are none.

    >>> unmasked_indices({"index": np.array([4, 7]), "mask": np.array([False, True])})
    array([7])
    """
    if "index" not in batch:
        return None
    index, mask = (None if name not in batch else _local_rows(batch[name]) for name in ("index", "mask"))
    return index if mask is None or index is None or mask.shape != index.shape else index[mask.astype(bool)]


def _local_rows(array: Any) -> np.ndarray:
    """Rows of an array that this process's devices hold."""
    if not isinstance(array, jax.Array) or array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    parts = {str(shard.index): shard for shard in array.addressable_shards}.values()
    return np.concatenate([np.asarray(shard.data) for shard in parts])
