"""Streaming mode: batches read, decoded and sent ahead of the step, by grain, from any random-access source.

The stream is a function of the step number, as it is in resident mode: the step gives the epoch and the places in it,
the same shuffle gives the rows, and each host reads its part of them. Grain runs that function ahead, in threads or
processes, and keeps the order. So the state is one number, the step that the consumer has reached; what was read ahead
does not count, and it resumes exactly with another number of workers, of hosts, or in resident mode.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd.data import fingerprint
from jaxkd.data.dataset import Dataset
from jaxkd.data.optional import require
from jaxkd.data.order import permutation
from jaxkd.data.protocol import Batch, State, count_steps, step_of

_PURPOSE = "Streaming"
_ON_DEVICE = 2  # Batches waiting on the device: the step works on one while the next is sent.
_THREADS = 4
_READ_AHEAD = 8  # Batches decoded on the host; grain's own default of 500 is meant for single examples.


class Stream:
    """A `Loader` that reads while the device works.

    With several hosts, each reads its own part of every global batch and no other, and all make the same number of
    steps. Put together, the parts are the batch that a single host would have read. Nothing is read before the first
    batch is asked for.

    Args:
      source: what has ``len(source)`` and ``source[i]``, a dict of NumPy values: a `Source`, a `Dataset`, a list.
      batch_size: examples in a global batch, over all hosts.
      seed: the order of each epoch is a function of it and the epoch's number.
      shuffle: a new order of the whole set every epoch; False keeps the source's own.
      epochs: how many passes to make; None for no end.
      workers: processes that read and decode. 0 uses threads of this process, which is right until decoding keeps
        it from feeding the device; a script that uses workers needs ``if __name__ == "__main__":``.
      drop_remainder: leave out what does not fill a batch. Otherwise, where the sizes do not divide, the last
        batch is filled up with other rows of the set and a ``mask``, which every batch then has, is False for them.
      shard: which part of every batch this host reads, ``(process_index, process_count)``; by default what
        `jax.process_index` and `jax.process_count` say.
      transform: of one example, a dict, on the host before batching: decode, resize, choose features. With workers
        it must be picklable. Random augmentation belongs on the device, in `jaxkd.data.augment`.
      device: where batches go. A `jax.sharding.Sharding` makes one global array of all hosts' parts.

    Raises:
      ValueError: no batch can be made of such sizes, or a batch does not divide among the hosts.
      ImportError: grain is not installed; the message says how to.

    Attributes:
      batch_size: examples in a global batch; this host's batches have ``batch_size / process_count`` rows.
      steps_per_epoch: batches in one pass.
      num_examples: in the set.
      padded: the last batch of a pass is filled up, and every batch has a ``mask``.

    >>> from jaxkd.data.dataset import load
    >>> stream = Stream(load("digits", "test"), batch_size=64, seed=0, epochs=1)
    >>> batches = stream.batches()
    >>> first = next(batches)
    >>> first["image"].shape, batches.get_state()
    ((64, 8, 8, 1), {'step': 1})
    >>> batches.close()
    """

    def __init__(
        self,
        source: Any,
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
                f"batch_size: {batch_size} is the size of the global batch, and does not divide among {count} hosts. "
                f"Take {batch_size - batch_size % count} or {batch_size + count - batch_size % count}."
            )
        rows = _Rows(source) if isinstance(source, Dataset) else source
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
        """What tells this input from another, for a run that must go on with the same one.

        The set is not read for it, but for its first and its last example, as they come out of the transform.

        Returns:
          A dict for JSON. What a `Resident` of the same set gives as well is equal to its.

        >>> from jaxkd.data.dataset import load
        >>> Stream(load("digits", "test"), batch_size=50).fingerprint()["examples"]
        400
        """
        read = self._read
        found: dict[str, Any] = {
            "examples": self.num_examples, "seed": read.seed, "shuffle": read.shuffle, "padded": self.padded
        }  # fmt: skip
        found |= {name: str(value) for name in ("name", "split") if (value := getattr(read.source, name, None))}
        ends = [read.ends(), read.ends()]
        if ends[0] == ends[1]:  # or the transform draws at random, and says nothing
            found["first_and_last"] = ends[0]
        return found

    def batches(self, state: Mapping[str, Any] | None = None) -> StreamIterator:
        """Batches from the start, or from a state.

        Args:
          state: of an earlier iterator, of this stream or of a `Resident` with the same set, seed and batch size.

        Returns:
          The iterator. Close it, or let it go, to end what reads ahead.
        """
        return StreamIterator(self, state)

    def __iter__(self) -> StreamIterator:
        """The same as ``batches()``."""
        return self.batches()

    def take(self, rows: Sequence[int] | np.ndarray) -> dict[str, np.ndarray]:
        """Some examples of the source as NumPy arrays, read and transformed as for a batch, in the order asked for.

        Args:
          rows: their positions in the source.
        """
        return self._read.take(np.asarray(rows))

    def map(self, function: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]) -> Stream:
        """The same stream with a function of each batch, which runs on the host where batches are read ahead.

        Args:
          function: of this host's part of a batch, a dict of NumPy arrays; with workers it must be picklable.

        Returns:
          Another stream; this one stays as it is.
        """
        other = copy.copy(self)
        other._ahead = _Then(self._ahead, function)
        return other

    def _pipeline(self, step: int) -> Any:
        """Grain's iterator over the batches from a step on."""
        grain = self._grain
        end = 2**31 - 1 if self.epochs is None else self.epochs * self.steps_per_epoch
        options = grain.ReadOptions(num_threads=_THREADS, prefetch_buffer_size=_READ_AHEAD)
        batches = grain.MapDataset.range(min(step, end), end).map(self._ahead).to_iter_dataset(options)
        if self.workers:
            # Grain reads absl flags when it starts a process, and absl refuses in a program that never parsed any.
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
            # A worker's arrays lie in shared memory that grain frees; on a CPU the device could go on pointing there.
            batch = {key: np.array(value) for key, value in batch.items()}
        if isinstance(self.device, jax.sharding.Sharding):
            sharding = self.device
            return {key: jax.make_array_from_process_local_data(sharding, value) for key, value in batch.items()}
        return jax.device_put(batch, self.device)


class StreamIterator:
    """A `BatchIterator` over a `Stream`.

    Args:
      stream: the loader.
      state: where to start; the beginning by default.
    """

    def __init__(self, stream: Stream, state: Mapping[str, Any] | None = None) -> None:
        self._stream = stream
        self._step = 0 if state is None else step_of(state)
        self._pipeline: Any = None

    def __iter__(self) -> StreamIterator:
        """Returns itself."""
        return self

    def __next__(self) -> Batch:
        """The next batch, on the device."""
        if self._pipeline is None:
            self._pipeline = self._stream._pipeline(self._step)
        batch: Batch = next(self._pipeline)
        self._step += 1
        return batch

    def get_state(self) -> State:
        """``{"step": n}``: how many batches were returned since the start of training, none that wait ahead."""
        return {"step": self._step}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to the step of a state; what was read ahead is dropped."""
        step = step_of(state)
        self.close()
        self._step = step

    def close(self) -> None:
        """Ends the threads and processes that read ahead. The iterator can still go on: they start again."""
        if self._pipeline is not None:
            self._pipeline.close()
            self._pipeline = None


class _Rows:
    """A `Dataset` as a source of examples."""

    def __init__(self, dataset: Dataset) -> None:
        self._arrays = dict(dataset.arrays)

    def __len__(self) -> int:
        return len(self._arrays["index"])

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {key: value[position] for key, value in self._arrays.items()}


@dataclasses.dataclass(frozen=True)
class _ReadBatch:
    """The batch of a step, as NumPy arrays: the pure function that grain runs ahead, in threads or other processes."""

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
            rows = permutation(rows, size=self.num_examples, seed=self.seed, epoch=epoch, xp=np)
        batch = self.take(rows)
        batch["epoch"] = np.full(local, epoch, np.int32)
        if self.padded:
            batch["mask"] = position < self.num_examples
        return batch

    def ends(self) -> str:
        """A digest of the first and the last example."""
        rows = [0, self.num_examples - 1]
        batch = self._stack([self._example(example) for example in self._fetch(rows)])
        batch.setdefault("index", np.array(rows, np.int32))
        return fingerprint.of_rows(batch)

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
                continue  # Text and identifiers do not go to a device.
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
    """A function after another; workers can have it."""

    first: Callable[[int], dict[str, np.ndarray]]
    function: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]

    def __call__(self, step: int) -> dict[str, np.ndarray]:
        return self.function(self.first(step))


def _narrow(key: str, value: np.ndarray) -> np.ndarray:
    """64-bit numbers as the 32-bit ones that JAX uses by default, never by wrapping around."""
    if value.dtype == np.float64:
        return value.astype(np.float32)
    if value.dtype.kind in "iu" and value.dtype.itemsize == 8:
        if value.size and not -(2**31) <= value.min() <= value.max() < 2**31:
            raise ValueError(
                f"{key!r} holds integers past 32 bits, {value.min()} to {value.max()}: change or drop it in a "
                "transform."
            )
        return value.astype(np.int32)
    return value
