"""The contract between `fit` and the inputs that it trains and evaluates on."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol

from jaxkd.types import Batch


class Input(Protocol):
    """Batches for `jaxkd.training.fit`; `jaxkd.data` has two implementations.

    An input whose data lies on the device has two more attributes: ``arrays``, a pytree, and ``gather(arrays, step)``,
    a pure function that returns the batch of a step. A run recognizes its data by two more, both optional:
    ``fingerprint()``, a dict that JSON can hold, and ``functions``, a tuple of those that run on the host for each
    example or batch. An input whose batches have several shapes has ``template``, a batch that is always the same one.

    Attributes:
      batch_size: number of examples in a batch.
      steps_per_epoch: number of batches in one pass.
    """

    batch_size: int
    steps_per_epoch: int

    def batches(self, state: Any = None) -> Iterator[Batch]:
        """Returns an iterator over batches that also has ``get_state()``.

        ``get_state()`` describes the position after the batches returned so far, as a dict that JSON can hold. Given
        such a position as ``state``, the iterator continues from there.
        """
        ...


def is_resident(data: Any) -> bool:
    """Returns whether the batches of an input can be gathered on the device."""
    return hasattr(data, "arrays") and hasattr(data, "gather")
