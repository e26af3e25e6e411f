"""Streaming mode: grain reads batches ahead, from any random-access source.

A batch is a function of the step number, as in resident mode: the step gives the epoch and the positions in it, the
same shuffle gives the rows, and each host reads its part of them. Grain evaluates that function ahead, in threads or
processes, and keeps the order. So the state is one number, the step that the consumer has reached, whatever was read
ahead, and a run resumes exactly with another number of workers or hosts, or in resident mode.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd._core.batches import exclude
from jaxkd._core.checks import require
from jaxkd.data import _fingerprint
from jaxkd.data._dataset import Dataset
from jaxkd.data._order import permutation
from jaxkd.data._protocol import Batch, State, count_steps, step_of, with_epoch

_PURPOSE = "Streaming"
_ON_DEVICE = 2  # Batches that wait on the device, so that a transfer overlaps with the step.
_THREADS = 4
_READ_AHEAD = 8  # Batches decoded on the host; grain's default of 500 is meant for single examples.


class Stream:
    """A `Loader` that reads while the device works.

    With several hosts, each reads its part of every global batch only, and all take the same number of steps. The
    concatenated parts are the batch that a single host would have read. Reading starts with the first ``next``.

    Args:
      dataset: any object with ``len(source)`` and ``source[i]``, a dict of NumPy values: `Source`, `Dataset`, a list.
      batch_size: examples in a global batch, over all hosts.
      seed: seed of the order; the order of an epoch is a function of the seed and the epoch's number.
      shuffle: whether each epoch has a new order of the whole set; False keeps the source's order.
      epochs: number of epochs after which `batches` stops; None for no end.
      workers: number of processes that read and decode. 0 uses threads of this process, which suffices until decoding
        is slower than the device; a script that uses workers needs ``if __name__ == "__main__":``.
      drop_remainder: whether to leave out the last examples of an epoch when they do not fill a batch. Otherwise the
        last batch is filled up with other rows of the set, and every batch gets a ``mask``, False for those rows.
      shard: part of every batch that this host reads, ``(process_index, process_count)``; by default
        `jax.process_index` and `jax.process_count`.
      transform: function of one example, a dict, that runs on the host before batching: to decode, resize, choose
        features. With workers it must be picklable. Random augmentation belongs on the device: `data.compose`.
      device: device or sharding of the batches. A `jax.sharding.Sharding` makes one global array of all hosts' parts.

    Raises:
      ValueError: a size is not positive, no batch can be filled, or a batch does not divide among the hosts.
      ImportError: grain is not installed; the message names the package to install.

    Attributes:
      batch_size: examples in a global batch; this host's batches have ``batch_size / process_count`` rows.
      steps_per_epoch: batches in one epoch.
      num_examples: examples in the set.
      padded: whether the last batch of an epoch is filled up, so that every batch has a ``mask``.

    >>> from jaxkd import data
    >>> stream = Stream(data.load("digits", "test"), batch_size=64, seed=0, epochs=1)
    >>> batches = stream.batches()
    >>> first = next(batches)
    >>> first["image"].shape, batches.get_state()
    ((64, 8, 8, 1), {'step': 1})
    >>> batches.close()
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int,
        seed: int = 0,
        *,
        shuffle: bool = True,
        epochs: int | None = None,
        workers: int = 0,
        drop_remainder: bool = False,
        shard: tuple[int, int] | None = None,
        transform: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        device: jax.Device | jax.sharding.Sharding | None = None,
    ) -> None:
        self._grain = require("grain", purpose=_PURPOSE)
        index, count = (jax.process_index(), jax.process_count()) if shard is None else shard
        if not 0 <= index < count:
            raise ValueError(f"shard: expected (process_index, process_count) with 0 <= index < count, got {shard}.")
        if batch_size % count:
            raise ValueError(
                f"batch_size: the global batch of {batch_size} does not divide among {count} hosts. "
                f"Use {batch_size - batch_size % count} or {batch_size + count - batch_size % count}."
            )
        rows = Rows(dataset) if isinstance(dataset, Dataset) else dataset
        self.num_examples = len(rows)
        self.steps_per_epoch = count_steps(self.num_examples, batch_size, drop_remainder)
        self.padded = self.steps_per_epoch * batch_size > self.num_examples
        self.batch_size, self.epochs, self.workers, self.device = batch_size, epochs, workers, device
        self._read = _ReadBatch(
            source=rows,
            num_examples=self.num_examples,
            batch_size=batch_size,
            steps_per_epoch=self.steps_per_epoch,
            padded=self.padded,
            seed=seed,
            shuffle=shuffle,
            shard=(index, count),
            transform=transform,
        )
        self._ahead: Callable[[int], dict[str, np.ndarray]] = self._read

    def fingerprint(self) -> dict[str, Any]:
        """Returns the settings and a digest by which a resumed run recognizes its input.

        JSON can represent them. The digest covers the first and the last example, as the transform returns them. The
        entries in common with a `Resident` of the same set are equal.

        >>> from jaxkd import data
        >>> Stream(data.load("digits", "test"), batch_size=50).fingerprint()["examples"]
        400
        """
        read = self._read
        result: dict[str, Any] = {
            "examples": self.num_examples, "seed": read.seed, "shuffle": read.shuffle, "padded": self.padded
        }  # fmt: skip
        result |= {name: str(value) for name in ("name", "split") if (value := getattr(read.source, name, None))}
        ends = [read.ends(), read.ends()]
        if ends[0] == ends[1]:  # otherwise the transform draws at random, and its digest has no meaning
            result["first_and_last"] = ends[0]
        return result

    @property
    def functions(self) -> tuple[Callable[..., Any], ...]:
        """Functions that run on the host, in their order: the transform, those of `map`."""
        found: list[Callable[..., Any]] = []
        ahead = self._ahead
        while isinstance(ahead, _Then):
            found, ahead = [ahead.function, *found], ahead.first
        transform = self._read.transform
        return tuple(found if transform is None else [transform, *found])

    def batches(self, state: Mapping[str, Any] | None = None) -> StreamIterator:
        """Returns an iterator over batches, from the start or from a state.

        The state may be that of a `Resident` with the same set, seed and batch size. The iterator's threads and
        processes stop when it is closed or garbage-collected.
        """
        return StreamIterator(self, state)

    def __iter__(self) -> StreamIterator:
        """Equivalent to ``batches()``."""
        return self.batches()

    def take(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Reads the examples at positions of the source, stacked as in a batch."""
        return self._read.take(np.asarray(rows))

    def map(self, function: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Stream:
        """Returns a new stream that applies a function to each batch on the host.

        The function takes this host's part of a batch, a dict of NumPy arrays. It runs where batches are read ahead;
        with workers it must be picklable.
        """
        other = copy.copy(self)
        other._ahead = _Then(self._ahead, function)
        return other

    def _pipeline(self, step: int) -> Any:
        """Returns grain's iterator over the batches from a step on."""
        grain = self._grain
        end = 2**31 - 1 if self.epochs is None else self.epochs * self.steps_per_epoch
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_READ_AHEAD)
        batches = grain.MapDataset.range(min(step, end), end).map(self._ahead).to_iter_dataset(options)
        if self.workers:
            # Grain reads absl's flags when it starts a process, and absl raises in a program that never parsed them.
            flags = require("absl.flags", purpose=_PURPOSE).FLAGS
            if not flags.is_parsed():
                flags.mark_as_parsed()
            batches = batches.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=self.workers, per_worker_buffer_size=_ON_DEVICE)
            )
        batches = batches.map(self._put)
        return iter(grain.experimental.ThreadPrefetchIterDataset(batches, prefetch_buffer_size=_ON_DEVICE))

    def _put(self, batch: dict[str, np.ndarray]) -> Batch:
        if self.workers:
            # A worker's arrays lie in shared memory that grain frees, and on a CPU a device array may alias them.
            batch = {key: np.array(value) for key, value in batch.items()}
        if isinstance(self.device, jax.sharding.Sharding):
            return {key: jax.make_array_from_process_local_data(self.device, x) for key, x in batch.items()}
        return jax.device_put(batch, self.device)


class StreamIterator:
    """A `BatchIterator` over a `Stream`."""

    def __init__(self, stream: Stream, state: Mapping[str, Any] | None = None) -> None:
        self._stream = stream
        self._step = 0 if state is None else step_of(state)
        self._pipeline: Any = None

    def __iter__(self) -> StreamIterator:
        return self

    def __next__(self) -> Batch:
        if self._pipeline is None:
            self._pipeline = self._stream._pipeline(self._step)
        batch: Batch = next(self._pipeline)
        self._step += 1
        return batch

    def get_state(self) -> State:
        """Returns ``{"step": n}``, the number of batches returned, not of those read."""
        return {"step": self._step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to the step of a state and drops the batches read ahead."""
        step = step_of(state)
        self.close()
        self._step = step

    def close(self) -> None:
        """Stops the threads and processes that read ahead, until the next ``next``."""
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None


class Rows:
    """A `Dataset` as a source of examples."""

    def __init__(self, dataset: Dataset) -> None:
        self._arrays = dict(dataset.arrays)

    def __len__(self) -> int:
        return len(self._arrays["index"])

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {key: value[position] for key, value in self._arrays.items()}


@dataclasses.dataclass(frozen=True)
class _ReadBatch:
    """Reads the batch of a step as NumPy arrays; grain runs this function ahead."""

    source: Any
    num_examples: int
    batch_size: int
    steps_per_epoch: int
    padded: bool
    seed: int
    shuffle: bool
    shard: tuple[int, int]
    transform: Callable[[dict[str, Any]], dict[str, Any]] | None

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        epoch, within = divmod(int(step), self.steps_per_epoch)
        index, count = self.shard
        local = self.batch_size // count
        position = within * self.batch_size + index * local + np.arange(local)
        rows = position % self.num_examples
        if self.shuffle:
            rows = permutation(rows, num_examples=self.num_examples, seed=self.seed, epoch=epoch, xp=np)
        batch = with_epoch(self.take(rows), np.full(local, epoch, np.int32))
        return exclude(batch, position < self.num_examples) if self.padded else batch

    def ends(self) -> str:
        """Computes a digest of the first and the last example."""
        rows = [0, self.num_examples - 1]
        batch = self._stack([self._example(example) for example in self._fetch(rows)])
        batch.setdefault("index", np.array(rows, np.int32))
        return _fingerprint.of_rows(batch)

    def take(self, rows: np.ndarray) -> dict[str, np.ndarray]:
        batch = self._stack([self._example(example) for example in self._fetch(rows.tolist())])
        batch.setdefault("index", rows.astype(np.int32))
        return batch

    def _fetch(self, rows: list[int]) -> list[dict[str, Any]]:
        several = getattr(self.source, "__getitems__", None)
        return [self.source[row] for row in rows] if several is None else several(rows)

    def _example(self, example: dict[str, Any]) -> dict[str, Any]:
        return example if self.transform is None else self.transform(example)

    def _stack(self, examples: list[dict[str, Any]]) -> dict[str, np.ndarray]:
        batch = {}
        for key in examples[0]:
            values = [np.asarray(example[key]) for example in examples]
            if values[0].dtype.kind not in "buif":
                continue  # Text cannot be placed on a device.
            shapes = {value.shape for value in values}
            if len(shapes) > 1:
                raise ValueError(
                    f"{key!r} differs in shape from example to example, {sorted(shapes)[:3]}, and cannot be batched. "
                    "Give the Stream a transform that makes each example the same shape, or leaves the feature out."
                )
            batch[key] = _narrow(key, np.stack(values))
        return batch


@dataclasses.dataclass(frozen=True)
class _Then:
    """Composition of two functions that worker processes can unpickle."""

    first: Callable[[int], dict[str, np.ndarray]]
    function: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        return self.function(self.first(step))


def _narrow(key: str, value: np.ndarray) -> np.ndarray:
    """Converts 64-bit numbers to JAX's default 32-bit types, and raises on overflow."""
    if value.dtype == np.float64:
        return value.astype(np.float32)
    if value.dtype.kind in "iu" and value.dtype.itemsize == 8:
        if value.size and not -(2**31) <= value.min() <= value.max() < 2**31:
            raise ValueError(
                f"{key!r} holds integers that exceed 32 bits, {value.min()} to {value.max()}: convert or drop it in a "
                "transform."
            )
        return value.astype(np.int32)
    return value
