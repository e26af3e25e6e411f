"""Inputs whose batches carry a teacher's outputs: gathered on the device, or read ahead on the host."""

from __future__ import annotations

import abc
import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jaxkd.teachers.cache.read import Cache
from jaxkd.types import Array, Batch

__all__ = ["AttachedLoader", "AttachedResident", "attach"]


def attach(cache: Cache, data: Any) -> Any:
    """An input whose batches carry the cached fields; `Cache.attach` says more.

    Args:
      cache: the outputs.
      data: the input.

    Raises:
      TypeError: this is no input.
    """
    views = getattr(data, "views", cache.views)
    if views != cache.views:
        raise ValueError(
            f"attach: the input has a cache of {views} views attached, and this one has {cache.views}. A student sees "
            "one image in a step: write both caches with the same number of views."
        )
    if hasattr(data, "arrays") and hasattr(data, "gather"):
        return AttachedResident(cache, data)
    if hasattr(data, "batches"):
        return AttachedLoader(cache, data)
    raise TypeError(
        f"attach: expected an input, which has batches(), got {type(data).__name__}. jaxkd.data.Resident(dataset, ...) "
        "and jaxkd.data.Stream(source, ...) are inputs."
    )


class _Attached(abc.ABC):
    """What both modes share: all that the input is, and the number of views."""

    def __init__(self, cache: Cache, data: Any) -> None:
        self.cache, self.views, self._input = cache, cache.views, data
        self.batch_size, self.steps_per_epoch = data.batch_size, data.steps_per_epoch

    def __getattr__(self, name: str) -> Any:
        """What the input has: sizes, seeds and so on."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._input, name)

    def __iter__(self) -> Any:
        """The same as ``batches()``."""
        return self.batches()

    def fingerprint(self) -> dict[str, Any]:
        """What tells this input from another: the input's own, and which outputs are attached."""
        identity = json.dumps(self.cache.manifest["identity"], sort_keys=True)
        own: dict[str, Any] = getattr(self._input, "fingerprint", dict)()
        return {**own, self.cache.name: hashlib.sha256(identity.encode()).hexdigest()[:16]}

    @abc.abstractmethod
    def batches(self, state: Mapping[str, Any] | None = None) -> Any:
        """Batches from the start, or from a state."""


class AttachedResident(_Attached):
    """A resident input and the cached outputs beside it, on the same device.

    Args:
      cache: the outputs.
      data: the input: ``arrays``, a dict with a row for each example, and ``gather(arrays, step)``.

    Attributes:
      arrays: the input's, the cached fields ``[views, cached examples, ...]`` as they are stored, and where each of the
        input's rows stands in them.
    """

    def __init__(self, cache: Cache, data: Any) -> None:
        super().__init__(cache, data)
        reader = cache.reader
        host = {name: np.asarray(data.arrays[name]) for name in ("index", *reader.data) if name in data.arrays}
        rows = reader.rows(host["index"])
        reader.check(host, rows)
        self._rows, self._fields = f"{cache.name}/row", tuple(reader.entries)
        place = _beside(data.arrays["index"])
        added = {**reader.everything(), self._rows: rows.astype(np.int32)}
        self.arrays: dict[str, Array] = {**data.arrays, **jax.device_put(added, place)}
        self._gather = jax.jit(self.gather)

    def gather(self, arrays: Mapping[str, Array], step: Any, **options: Any) -> Batch:
        """The batch of a step: pure, for use under jit, scan and vmap.

        Args:
          arrays: `AttachedResident.arrays`, as the argument of the jitted function.
          step: the global step; it may be traced.
          **options: for the input's own ``gather``, such as ``seed``.

        Returns:
          The input's batch with the cached fields; its ``epoch`` is the number of the view.
        """
        others = {name: value for name, value in arrays.items() if name not in self._fields}
        batch = dict(self._input.gather(others, step, **options))
        view, row = jnp.asarray(batch["epoch"]) % self.views, batch.pop(self._rows)
        cached = {name: arrays[name].at[view, row].get(mode="promise_in_bounds") for name in self._fields}
        return {**batch, "epoch": view, **cached}

    def batches(self, state: Mapping[str, Any] | None = None) -> _ResidentIterator:
        """Batches one by one, for a loop on the host."""
        return _ResidentIterator(self, self._input.batches(state))


class AttachedLoader(_Attached):
    """A streaming input with cached outputs read on the host.

    Args:
      cache: the outputs.
      data: the input. With ``map(function)``, as `jaxkd.data.Stream` has it, reading happens where it reads ahead.
    """

    def __init__(self, cache: Cache, data: Any) -> None:
        ahead = hasattr(data, "map")
        super().__init__(cache, data.map(cache.reader) if ahead else data)
        self._ahead = ahead

    def batches(self, state: Mapping[str, Any] | None = None) -> Any:
        """Batches from the start, or from a state."""
        batches = self._input.batches() if state is None else self._input.batches(state)
        return batches if self._ahead else _HostIterator(self.cache, batches)


class _Iterator(abc.ABC):
    """An input's iterator, with its state."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __iter__(self) -> Any:
        return self

    @abc.abstractmethod
    def __next__(self) -> Batch:
        """The next batch, with the cached outputs."""

    def get_state(self) -> Any:
        """Where the consumer stands."""
        return self._batches.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Goes to a state."""
        self._batches.set_state(state)

    def close(self) -> None:
        """Ends what reads ahead."""
        getattr(self._batches, "close", lambda: None)()


class _ResidentIterator(_Iterator):
    """Counts with the input's iterator, and gathers with the outputs."""

    def __init__(self, attached: AttachedResident, batches: Any) -> None:
        super().__init__(batches)
        self._attached = attached

    def __next__(self) -> Batch:
        step = self._batches.get_state()["step"]
        next(self._batches)  # it knows when to stop
        batch: Batch = self._attached._gather(self._attached.arrays, step)
        return batch


class _HostIterator(_Iterator):
    """Adds to batches that are on the device already."""

    def __init__(self, cache: Cache, batches: Any) -> None:
        super().__init__(batches)
        self._reader = cache.reader

    def __next__(self) -> Batch:
        batch = dict(next(self._batches))
        seen = {name: batch[name] for name in ("index", "epoch", *self._reader.data) if name in batch}
        read = self._reader(jax.device_get(seen))
        return {**batch, **jax.device_put({name: read[name] for name in ("epoch", *self._reader.entries)})}


def _beside(array: Any) -> Any:
    """Where an input's arrays are, on every device of them as a whole."""
    if not isinstance(array, jax.Array) or not array.committed:
        return None
    sharding = array.sharding
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
