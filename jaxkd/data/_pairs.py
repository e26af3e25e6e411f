"""A partner of the same class for each example, computed from the step number."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.data._order import as_uint32, hash_bits
from jaxkd.data._protocol import Batch
from jaxkd.data._resident import DeviceLoader, Resident
from jaxkd.data._stream import Rows, Stream

if TYPE_CHECKING:
    from jaxtyping import Array, Int

_TABLES = ("rank", "start", "size")


class SameClass(DeviceLoader):
    """A `Loader` that adds another example of the same class to each example.

    These are the pairs of class-wise self-knowledge distillation: Yun et al., "Regularizing Class-wise Predictions via
    Self-knowledge Distillation", CVPR 2020, section 2; `jaxkd.schemes.class_wise` trains on them. The partner, ``pair``
    and ``pair_index``, is a function of the seed, the epoch and the example's ``index``, independent of the batch size
    and the number of devices. It is uniformly distributed over the other examples of the class. An example without
    others in its class is its own partner. The authors' code draws from the whole class, so that any example can be
    its own partner.

    Args:
      loader: a `Resident`. A `Stream` has no labels of examples that it has not read: see `same_class`.
      label_entry: name of the entry with the classes, integers.
      image: name of the entry from which ``pair`` is taken.

    Raises:
      TypeError: the loader is not a `Resident`.
      ValueError: the set has no such entries, or the labels are not integers ``[examples]``.

    Attributes:
      arrays: the set and an index of its classes. Pass them to jitted functions as an argument.
      batch_size, steps_per_epoch, num_examples, padded, seed, epochs: those of the loader.

    >>> from jaxkd import data
    >>> images = np.arange(6, dtype=np.uint8).reshape(6, 1, 1, 1)
    >>> pairs = SameClass(Resident(data.from_arrays(images, [0, 1, 0, 1, 0, 2]), batch_size=6, shuffle=False))
    >>> batch = next(iter(pairs))
    >>> batch["label"].tolist(), batch["pair_index"].tolist()
    ([0, 1, 0, 1, 0, 2], [2, 3, 0, 1, 2, 5])
    """

    def __init__(self, loader: Resident, *, label_entry: str = "label", image: str = "image") -> None:
        if not isinstance(loader, Resident):
            raise TypeError(
                f"SameClass: expected a Resident, got {type(loader).__name__}. Choosing partners needs the labels "
                "of all examples. For a Stream, pass them to data.same_class."
            )
        missing = [name for name in (label_entry, image, "index") if name not in loader.arrays]
        if missing:
            raise ValueError(f"SameClass: the set has no {missing}, only {sorted(loader.arrays)}.")
        classes = np.asarray(loader.arrays[label_entry])
        if classes.ndim != 1 or not np.issubdtype(classes.dtype, np.integer):
            raise ValueError(
                f"SameClass, {label_entry!r}: expected integers [examples], got {classes.dtype}{list(classes.shape)}."
            )
        self._loader, self._image = loader, image
        self.batch_size, self.steps_per_epoch = loader.batch_size, loader.steps_per_epoch
        self.num_examples, self.padded = loader.num_examples, loader.padded
        self.seed, self.epochs = loader.seed, loader.epochs
        placed = jax.device_put(_tables(classes), loader.arrays[label_entry].sharding)
        self.arrays = {"set": loader.arrays, "classes": placed}
        self._gather = jax.jit(self.gather)

    def gather(self, arrays: Mapping[str, Any], step: Int[Array, ""] | int, *, seed: Any = None) -> Batch:
        """Returns the batch of a step, with the arguments of `Resident.gather`.

        It is the loader's batch with ``pair``, stored images in their dtype, and ``pair_index``.
        """
        columns = {f"pairs/{name}": arrays["classes"][name] for name in _TABLES}
        batch = self._loader.gather({**arrays["set"], **columns}, step, seed=seed)
        rank, start, size = (batch.pop(f"pairs/{name}") for name in _TABLES)
        drawn = _draws(self.seed if seed is None else seed, batch["epoch"], batch["index"], jnp)
        partner = _partners(arrays["classes"]["order"], rank, start, size, drawn, jnp)
        for name, source in (("pair", self._image), ("pair_index", "index")):
            batch[name] = arrays["set"][source].at[partner].get(mode="promise_in_bounds")
        return batch

    def fingerprint(self) -> dict[str, Any]:
        """Returns the loader's fingerprint, with an entry for the pairs."""
        return {**self._loader.fingerprint(), "pairs": "same class"}


def same_class(stream: Stream, labels: Any, *, image: str = "image") -> Stream:
    """Adds another example of the same class to each example of a `Stream`.

    The partners equal those of `SameClass` for the same set and seed. Each host reads the partners of its part of a
    batch, so that reading takes twice as long.

    Args:
      stream: stream to extend; its ``index`` counts in its source, or is that of its `Dataset`.
      labels: class of every example of the source, integers ``[examples]``.
      image: name of the entry from which ``pair`` is taken.

    Returns:
      A new stream, whose batches have ``pair`` and ``pair_index``.

    Raises:
      ValueError: the labels are not integers ``[examples]``; or, while reading, they differ from those of a batch.

    >>> from jaxkd import data
    >>> digits = data.load("digits", "test")
    >>> batches = same_class(Stream(digits, batch_size=8, epochs=1), digits.arrays["label"]).batches()
    >>> batch = next(batches)
    >>> batch["pair"].shape, bool((batch["pair_index"] == batch["index"]).any())
    ((8, 8, 8, 1), False)
    >>> batches.close()
    """
    labels = np.asarray(labels)
    if labels.shape != (stream.num_examples,) or not np.issubdtype(labels.dtype, np.integer):
        raise ValueError(
            f"same_class, labels: expected integers [{stream.num_examples}], one for each example of the source, got "
            f"{labels.dtype}{list(labels.shape)}."
        )
    source = stream._read.source
    index = source._arrays["index"] if isinstance(source, Rows) else np.arange(stream.num_examples)
    return stream.map(_AddPairs(stream._read, labels, np.asarray(index), _tables(labels), image))


@dataclasses.dataclass(frozen=True)
class _AddPairs:
    """Adds partners to a batch on the host, where batches are read ahead."""

    read: Any
    labels: np.ndarray
    index: np.ndarray
    tables: dict[str, np.ndarray]
    image: str

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        order = np.argsort(self.index)
        rows = order[np.searchsorted(self.index, batch["index"], sorter=order) % len(order)]
        if (self.index[rows] != batch["index"]).any() or (
            "label" in batch and (self.labels[rows] != batch["label"]).any()
        ):
            raise ValueError(
                "same_class, labels: expected the label of each example of the source, in its order; this batch "
                "has other labels."
            )
        rank, start, size = (self.tables[name][rows] for name in _TABLES)
        drawn = _draws(self.read.seed, batch["epoch"], batch["index"], np)
        partners = self.read.take(_partners(self.tables["order"], rank, start, size, drawn, np))
        return {**batch, "pair": partners[self.image], "pair_index": partners["index"]}


def _tables(classes: np.ndarray) -> dict[str, np.ndarray]:
    """Sorts the rows by class, and locates each row in the run of its class.

    The tables are int32 ``[examples]``: ``order``, the rows sorted by class; and for each row the ``start`` and
    ``size`` of its class in that order, and its ``rank`` within the class.
    """
    _, of_class, sizes = np.unique(classes, return_inverse=True, return_counts=True)
    order = np.argsort(of_class, kind="stable").astype(np.int32)
    starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])[of_class].astype(np.int32)
    rank = np.empty(len(classes), np.int32)
    rank[order] = np.arange(len(classes), dtype=np.int32)
    return {"order": order, "rank": rank - starts, "start": starts, "size": sizes[of_class].astype(np.int32)}


def _partners(order: Any, rank: Any, start: Any, size: Any, drawn: Any, xp: Any) -> Any:
    """Returns, for each row, another row of its class, or itself if it has none."""
    # The bits modulo the number of partners have a bias below one in 2**32 / size. Moving 1 to size - 1 rows ahead,
    # cyclically, reaches every other row of the class.
    ahead = xp.where(size > 1, 1 + (drawn % xp.maximum(size - 1, 1).astype(np.uint32)).astype(np.int32), 0)
    place = start + (rank + ahead) % size
    return order[place] if xp is np else order.at[place].get(mode="promise_in_bounds")


def _draws(seed: Any, epoch: Any, index: Any, xp: Any) -> Any:
    """Returns 32 random bits per example, independent of order and augmentation."""
    seeded = hash_bits(as_uint32(seed, xp) + np.uint32(0x85EBCA77))
    key = seeded ^ hash_bits(epoch.astype(np.uint32) + np.uint32(0xC2B2AE3D))
    return hash_bits(
        hash_bits(hash_bits(key) + np.uint32(0x27D4EB2F)) ^ hash_bits(index.astype(np.uint32) + np.uint32(0x165667B1))
    )
