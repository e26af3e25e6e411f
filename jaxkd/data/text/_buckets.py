"""Batches of texts of similar lengths, in a few static shapes: `Buckets`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd._core.batches import exclude
from jaxkd.data import _fingerprint
from jaxkd.data._dataset import arrays_of
from jaxkd.data._order import permutation
from jaxkd.data._protocol import Batch, State, count_steps, step_of, with_epoch


class Buckets:
    """A `Loader` whose batches have the smallest of several lengths that fits.

    Each example is in the bucket of the smallest length that holds its tokens, and a batch has examples of one bucket.
    A jitted step is compiled once per length. The order of the examples, and that of the batches, are functions of the
    seed and the epoch. In an epoch every example is in one batch; the last batch of a bucket is filled up with other
    rows of it, which the mask excludes.

    Args:
      dataset: dict of arrays with one row per example, as from `sentences`, with ``mask`` bool ``[examples, length]``.
        Arrays whose second dimension is that length are cut to a batch's length; padding is at the end.
      batch_size: examples in a batch.
      seed: seed of the order.
      lengths: lengths of the buckets, in tokens.
      shuffle: whether each epoch has a new order; False goes through the buckets from the shortest, in the set's order.
      epochs: number of epochs after which `batches` stops; None for no end.

    Raises:
      ValueError: there is no mask over tokens, a size is not positive, or an example is longer than every bucket.

    Attributes:
      batch_size: examples in a batch.
      steps_per_epoch: batches in one epoch.
      num_examples: examples in the set.
      lengths: lengths of the buckets that have examples.

    >>> from jaxkd.data.text import ByteTokenizer, sentences
    >>> arrays = sentences(["a", "to", "distillation", "it"], ByteTokenizer())
    >>> buckets = Buckets(arrays, batch_size=2, lengths=(4, 8, 16), shuffle=False)
    >>> [batch["tokens"].shape for batch, _ in zip(buckets, range(3))], buckets.lengths
    ([(2, 4), (2, 4), (2, 16)], (4, 16))
    """

    def __init__(
        self,
        dataset: Mapping[str, Any],
        batch_size: int,
        seed: int = 0,
        *,
        lengths: Sequence[int],
        shuffle: bool = True,
        epochs: int | None = None,
    ) -> None:
        self.arrays_on_host = arrays = arrays_of(dataset)
        mask = arrays.get("mask")
        if mask is None or mask.dtype != bool or mask.ndim != 2:
            got = "none" if mask is None else f"{mask.dtype}{list(mask.shape)}"
            raise ValueError(f"Buckets, mask: expected bool [examples, length], got {got}.")
        needed = np.max(mask * np.arange(1, mask.shape[1] + 1), axis=1, initial=0)
        sizes = sorted({int(length) for length in lengths})
        if not sizes or sizes[0] < 1 or sizes[-1] < needed.max(initial=0):
            raise ValueError(
                f"Buckets, lengths: expected positive lengths, the largest at least that of the longest example, "
                f"{needed.max(initial=0)}, got {list(lengths)}."
            )
        members = [
            np.flatnonzero(bucket) for bucket in np.searchsorted(sizes, needed) == np.arange(len(sizes))[:, None]
        ]
        self._members = {size: rows for size, rows in zip(sizes, members, strict=True) if len(rows)}
        self._steps = {size: count_steps(len(rows), batch_size, False) for size, rows in self._members.items()}
        self.lengths = tuple(self._members)
        self.num_examples, self.steps_per_epoch = len(mask), sum(self._steps.values())
        self.batch_size, self.seed, self.shuffle, self.epochs = batch_size, seed, shuffle, epochs

    def batch(self, step: int) -> dict[str, np.ndarray]:
        """Returns the batch of a step on the host.

        Args:
          step: global step, counted from the start of training through all epochs.
        """
        epoch, number = divmod(step, self.steps_per_epoch)
        number = int(self._order(np.array([number]), self.steps_per_epoch, epoch)[0])
        ends = np.cumsum([*self._steps.values()])
        bucket = int(np.searchsorted(ends, number, side="right"))
        size = self.lengths[bucket]
        return self._read(size, number - int(ends[bucket]) + self._steps[size], epoch)

    @property
    def template(self) -> dict[str, np.ndarray]:
        """Batch by whose shapes a run recognizes its program, wherever it resumes."""
        return self._read(self.lengths[0], 0, 0)

    def _read(self, size: int, number: int, epoch: int) -> dict[str, np.ndarray]:
        """Returns a batch of the bucket of a length."""
        members = self._members[size]
        position = number * self.batch_size + np.arange(self.batch_size)
        rows = members[self._order(position % len(members), len(members), epoch)]
        length = self.arrays_on_host["mask"].shape[1]
        batch = {
            name: _resized(x[rows], size) if x.shape[1:2] == (length,) else x[rows]
            for name, x in self.arrays_on_host.items()
        }
        return exclude(with_epoch(batch, np.full(len(rows), epoch, np.int32)), position < len(members))

    def batches(self, state: Mapping[str, Any] | None = None) -> _BucketIterator:
        """Returns an iterator over batches, from the start or a state ``{"step": n}``."""
        return _BucketIterator(self, 0 if state is None else step_of(state))

    def __iter__(self) -> _BucketIterator:
        """Equivalent to ``batches()``."""
        return self.batches()

    def fingerprint(self) -> dict[str, Any]:
        """Returns the settings and digests by which a resumed run recognizes its input.

        >>> arrays = {"tokens": np.ones((3, 4), np.int32), "mask": np.ones((3, 4), bool)}
        >>> Buckets(arrays, 2, lengths=(4,)).fingerprint()["lengths"]
        [4]
        """
        return {
            "examples": self.num_examples, "seed": self.seed, "shuffle": self.shuffle, "lengths": list(self.lengths),
            "content": _fingerprint.digest(self.arrays_on_host),
        }  # fmt: skip

    def _order(self, position: np.ndarray, size: int, epoch: int) -> np.ndarray:
        if not self.shuffle:
            return position
        return permutation(position, num_examples=size, seed=self.seed, epoch=epoch, xp=np)


class _BucketIterator:
    def __init__(self, loader: Buckets, step: int) -> None:
        self._loader, self._step = loader, step

    def __iter__(self) -> _BucketIterator:
        return self

    def __next__(self) -> Batch:
        epochs = self._loader.epochs
        if epochs is not None and self._step >= epochs * self._loader.steps_per_epoch:
            raise StopIteration
        batch = self._loader.batch(self._step)
        self._step += 1
        return jax.device_put(batch)

    def get_state(self) -> State:
        return {"step": self._step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        self._step = step_of(state)

    def close(self) -> None:
        pass


def _resized(x: np.ndarray, length: int) -> np.ndarray:
    """Returns an array ``[batch, length_before, ...]`` cut or padded with zeros."""
    missing = max(length - x.shape[1], 0)
    return np.pad(x[:, :length], [(0, 0), (0, missing), *[(0, 0)] * (x.ndim - 2)])
