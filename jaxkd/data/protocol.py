"""What every input is to a training loop: `Loader` and the `BatchIterator` it gives out."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol, runtime_checkable

import jax

Batch = dict[str, jax.Array]
State = dict[str, Any]


@runtime_checkable
class BatchIterator(Protocol):
    """Batches in order, with a state that says where the consumer stands.

    The state is a dict that JSON can hold. It describes what ``next`` has *returned*, never what was read ahead, so
    an iterator that is given it goes on with exactly the batch that this one would have returned next.
    """

    def __iter__(self) -> Iterator[Batch]:
        """Returns itself."""
        ...

    def __next__(self) -> Batch:
        """The next batch, on the device."""
        ...

    def get_state(self) -> State:
        """Where the consumer stands: ``{"step": batches returned since the start of training}``."""
        ...

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to where another iterator stood, backwards or forwards."""
        ...

    def close(self) -> None:
        """Ends the threads and processes that read ahead, if there are any."""
        ...


@runtime_checkable
class Loader(Protocol):
    """An input: a set, an order and a batch size. `Resident` and `Stream` are two.

    Attributes:
      batch_size: examples in a global batch; with several hosts, each host's batches hold its equal part of it.
      steps_per_epoch: batches in one pass.
    """

    batch_size: int
    steps_per_epoch: int

    def batches(self, state: Mapping[str, Any] | None = None) -> BatchIterator:
        """Batches from the start, or from a state of an earlier iterator."""
        ...

    def __iter__(self) -> BatchIterator:
        """The same as ``batches()``."""
        ...


def step_of(state: Mapping[str, Any]) -> int:
    """The step in an iterator's state.

    Args:
      state: what `BatchIterator.get_state` gave.

    Returns:
      The number of batches that its consumer had received.

    Raises:
      ValueError: it is not such a state.

    >>> step_of({"step": 7})
    7
    """
    step = state.get("step") if isinstance(state, Mapping) else None
    if isinstance(step, bool) or not isinstance(step, int) or step < 0:
        raise ValueError(
            f"state: expected what get_state() gave, {{'step': <number of batches received>}}, got {state!r}."
        )
    return step


def count_steps(examples: int, batch_size: int, drop_remainder: bool) -> int:
    """The number of batches in one pass.

    Args:
      examples: in the set.
      batch_size: examples in a batch.
      drop_remainder: leave out the last examples of a pass when they do not fill a batch.

    Returns:
      The steps of one epoch.

    Raises:
      ValueError: a size is not positive, or no batch can be filled.

    >>> count_steps(10, 4, drop_remainder=False), count_steps(10, 4, drop_remainder=True)
    (3, 2)
    """
    if batch_size < 1:
        raise ValueError(f"batch_size: expected at least 1, got {batch_size}.")
    if examples < 1:
        raise ValueError("the set is empty: there is nothing to make a batch of.")
    if drop_remainder and examples < batch_size:
        raise ValueError(
            f"batch_size: {examples} examples do not fill one batch of {batch_size}, and drop_remainder=True leaves "
            "out what does not. Take a smaller batch_size, or drop_remainder=False for one padded batch."
        )
    return examples // batch_size if drop_remainder else -(-examples // batch_size)
