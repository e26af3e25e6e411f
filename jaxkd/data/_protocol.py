"""The protocol between inputs and a training loop: `Loader` and `BatchIterator`."""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core.batches import batch_size
from jaxkd.data import _fingerprint

Batch = dict[str, jax.Array]
State = dict[str, Any]


@runtime_checkable
class BatchIterator(Protocol):
    """Batches in order, with a state that records the position of the consumer.

    The state is a dict that JSON can represent. It counts the batches that ``next`` has *returned*, never those read
    ahead, so an iterator that resumes from it returns exactly the batch that this one would have returned next.
    """

    def __iter__(self) -> Iterator[Batch]:
        """Returns itself."""

    def __next__(self) -> Batch:
        """Returns the next batch, on the device."""

    def get_state(self) -> State:
        """Returns ``{"step": number of batches returned since the start of training}``."""

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to the position of another iterator, backward or forward."""

    def close(self) -> None:
        """Stops the threads and processes that read ahead, if there are any."""


@runtime_checkable
class Loader(Protocol):
    """An input: a set, an order and a batch size, such as `Resident` and `Stream`.

    Attributes:
      batch_size: examples in a global batch; with several hosts, each host's batches hold an equal part of it.
      steps_per_epoch: batches in one epoch.
    """

    batch_size: int
    steps_per_epoch: int

    def batches(self, state: Mapping[str, Any] | None = None) -> BatchIterator:
        """Returns an iterator from the start, or from the state of an earlier iterator."""

    def __iter__(self) -> BatchIterator:
        """Equivalent to ``batches()``."""


def step_of(state: Mapping[str, Any]) -> int:
    """Returns the step in a state of `BatchIterator.get_state`, or raises.

    >>> step_of({"step": 7})
    7
    """
    step = state.get("step") if isinstance(state, Mapping) else None
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(
            f"state: expected a state from get_state(), {{'step': <number of batches received>}}, got {state!r}."
        )
    return step


def count_steps(examples: int, batch_size: int, drop_remainder: bool) -> int:
    """Returns the number of batches in one epoch, or raises if a size is not positive.

    >>> count_steps(10, 4, drop_remainder=False), count_steps(10, 4, drop_remainder=True)
    (3, 2)
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}.")
    if examples < 1:
        raise ValueError("the set is empty: expected at least one example.")
    if drop_remainder and examples < batch_size:
        raise ValueError(
            f"batch_size: {examples} examples do not fill one batch of {batch_size}, and drop_remainder=True leaves "
            "out partial batches. Use a smaller batch_size, or drop_remainder=False for one padded batch."
        )
    return examples // batch_size if drop_remainder else -(-examples // batch_size)


def with_epoch(batch: Mapping[str, Any], epoch: Any) -> dict[str, Any]:
    """Returns a batch with the number of the epoch.

    Raises:
      ValueError: the examples have such an entry.

    >>> with_epoch({"image": 1}, 3)
    {'image': 1, 'epoch': 3}
    """
    if "epoch" in batch:
        raise ValueError(
            "data: 'epoch' is reserved for the number of the pass over the set, but its examples have "
            f"{', '.join(map(repr, sorted(batch)))}. Rename the entry of the examples."
        )
    return {**batch, "epoch": epoch}


def from_batches(
    epoch_batches: Callable[..., Iterable[Mapping[str, Any]]], steps_per_epoch: int, *, epochs: int | None = None
) -> Loader:
    """Returns a loader of the batches of a function, such as one around grain.

    Args:
      epoch_batches: function that returns the batches of an epoch, dicts of arrays, from the first. It is given the
        number of the epoch, or nothing if it takes no argument. A run that resumes within an epoch skips its first
        batches, so that exact resume needs the same batches for the same epoch in every process.
      steps_per_epoch: number of batches in one epoch; later ones are not read.
      epochs: number of epochs after which `Loader.batches` stops; None for no end.

    Raises:
      ValueError: a size is not positive. The iterator raises it if an epoch has fewer batches, or if the function
        returns an iterator that it returned before, whose first batches are read already.

    >>> import numpy as np
    >>> batches = lambda epoch: ({"x": np.full((2, 3), 10 * epoch + i)} for i in range(4))
    >>> loader = from_batches(batches, steps_per_epoch=4)
    >>> [int(batch["x"][0, 0]) for batch, _ in zip(loader.batches({"step": 3}), range(3))], loader.batch_size
    ([3, 10, 11], 2)
    """
    for name, value in (("steps_per_epoch", steps_per_epoch), ("epochs", 1 if epochs is None else epochs)):
        if value < 1:
            raise ValueError(f"from_batches, {name}: expected at least 1, got {value}.")
    return _FunctionLoader(epoch_batches, steps_per_epoch, epochs)


class _FunctionLoader:
    def __init__(self, epoch_batches: Callable[..., Any], steps_per_epoch: int, epochs: int | None) -> None:
        self.steps_per_epoch, self.epochs = steps_per_epoch, epochs
        self.functions = (epoch_batches,)  # a run recognizes its data by them
        takes_epoch = bool(inspect.signature(epoch_batches).parameters)
        self._call = epoch_batches if takes_epoch else lambda epoch: epoch_batches()
        self._last: Callable[[], Any] = lambda: None
        self._first = next(self.batches())
        self.batch_size = batch_size(self._first)

    def epoch_of(self, epoch: int) -> Iterator[Mapping[str, Any]]:
        """Returns the batches of an epoch, from the first."""
        batches = iter(self._call(epoch))
        if batches is self._last():
            raise ValueError(
                "from_batches: expected a new iterator at each call, got the one of the call before, whose first "
                "batches are read already. Make it in the function, such as lambda: iter(dataset)."
            )
        try:
            self._last = weakref.ref(batches)  # so that an iterator's threads end with it
        except TypeError:  # of a built-in type, which has none
            self._last = lambda: batches
        return batches

    def batches(self, state: Mapping[str, Any] | None = None) -> _FunctionIterator:
        return _FunctionIterator(self, 0 if state is None else step_of(state))

    def __iter__(self) -> _FunctionIterator:
        return self.batches()

    def fingerprint(self) -> dict[str, Any]:
        """Returns the digest of the first batch, by which a run recognizes its input."""
        return {"first_batch": _fingerprint.digest({name: np.asarray(x) for name, x in self._first.items()})}


class _FunctionIterator:
    def __init__(self, loader: _FunctionLoader, step: int) -> None:
        self._loader, self._step = loader, step
        self._epoch: Iterator[Mapping[str, Any]] | None = None

    def __iter__(self) -> _FunctionIterator:
        return self

    def __next__(self) -> Batch:
        loader = self._loader
        epoch, number = divmod(self._step, loader.steps_per_epoch)
        if loader.epochs is not None and epoch >= loader.epochs:
            raise StopIteration
        if self._epoch is None or number == 0:
            self._epoch = loader.epoch_of(epoch)
            for skipped in range(number):
                self._next(epoch, skipped)
        batch = self._next(epoch, number)
        self._step += 1
        return {name: jnp.asarray(x) for name, x in batch.items()}

    def _next(self, epoch: int, number: int) -> Mapping[str, Any]:
        batch = next(self._epoch or iter(()), None)
        if batch is None:
            raise ValueError(
                f"from_batches: expected {self._loader.steps_per_epoch} batches (steps_per_epoch) in every epoch, and "
                f"epoch {epoch} ended after {number}."
            )
        if not isinstance(batch, Mapping):
            raise TypeError(
                f"from_batches: expected batches as dicts of arrays, got {type(batch).__name__}. Name its parts, such "
                'as {"image": x, "label": y}.'
            )
        return batch

    def get_state(self) -> State:
        return {"step": self._step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._step, self._epoch = step_of(state), None

    def close(self) -> None:
        self._epoch = None
