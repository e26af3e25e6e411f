"""The protocol between inputs and a training loop: `Loader` and `BatchIterator`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax

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
