"""Loaders whose batches carry cached outputs, gathered on the device or the host.

A batch of an attached loader has the loader's own entries, the fields that the codecs stored, under
``<cache name>/<output>/<field>``, and in ``epoch`` the number of the view. The fields stay encoded until the training
step, where `jaxkd.cache.Cache.decode` turns them into outputs: what travels to the device is a few bytes per example.
"""

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

from jaxkd._core import digests
from jaxkd.cache._read import Cache
from jaxkd.types import Array, Batch


def attach(cache: Cache, loader: Any) -> Any:
    """Returns a loader whose batches carry the teacher's outputs, still encoded.

    The ``epoch`` of its batches is the number of the view, ``epoch % views``, so that the student's transform produces
    the images that the teacher saw. All other entries, and the order of the batches, are those of ``loader``.

    Args:
      cache: from `jaxkd.cache.write_cache` or `jaxkd.cache.open_cache`.
      loader: a `jaxkd.data.Resident`, for which the outputs are placed on its device and gathered there; a `Stream`,
        for which they are read from the files, ahead of the step; or any other loader whose batches have ``index`` and
        ``epoch``. It may hold the cached examples in another order, or a subset of them.

    Returns:
      A loader of the same mode.

    Raises:
      StaleCacheError: the examples are not those that the teacher saw. A `Stream` raises it when it reads them.
      TypeError: the argument is not a loader.
      ValueError: an example is not in the cache, a file of the cache is damaged, or the loader has another cache
        attached with another number of views.
    """
    views = getattr(loader, "views", cache.views)
    if views != cache.views:
        raise ValueError(
            f"attach: expected a loader whose attached cache has {cache.views} views, as this cache has, got {views}. "
            "A student sees one image per step: write both caches with the same number of views."
        )
    if hasattr(loader, "arrays") and hasattr(loader, "gather"):
        return AttachedResident(cache, loader)
    if hasattr(loader, "batches"):
        return AttachedLoader(cache, loader)
    raise TypeError(
        f"attach: expected a loader, which has batches(), got {type(loader).__name__}. Pass "
        "jaxkd.data.Resident(dataset, ...) or jaxkd.data.Stream(source, ...)."
    )


class _Attached(abc.ABC):
    """Base of both modes: delegates to the loader and adds the number of views."""

    def __init__(self, cache: Cache, loader: Any) -> None:
        self.cache, self.views, self._loader = cache, cache.views, loader
        self.batch_size, self.steps_per_epoch = loader.batch_size, loader.steps_per_epoch

    def __getattr__(self, name: str) -> Any:
        """Returns an attribute of the loader: sizes, seeds and so on."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._loader, name)

    def __iter__(self) -> Any:
        """Returns ``batches()``."""
        return self.batches()

    def fingerprint(self) -> dict[str, Any]:
        """Returns the entries of the loader's data and a digest of the cache's identity."""
        identity = json.dumps(self.cache.manifest["identity"], sort_keys=True)
        return {**digests.of_input(self._loader), self.cache.name: hashlib.sha256(identity.encode()).hexdigest()[:16]}

    @abc.abstractmethod
    def batches(self, state: Mapping[str, Any] | None = None) -> Any:
        """Returns an iterator over batches, from the start or from a state."""


class AttachedResident(_Attached):
    """A resident loader with the cached outputs on the same device.

    Attributes:
      arrays: the loader's arrays, the stored fields ``[views, cached examples, ...]`` in their stored dtypes, and the
        row in these fields of each of the loader's examples. Of masked fields there are the stored tokens
        ``[stored, ...]``, and the place of each token in them ``[views, cached examples, tokens]``.
    """

    def __init__(self, cache: Cache, loader: Any) -> None:
        super().__init__(cache, loader)
        reader = cache.reader
        host = {name: np.asarray(loader.arrays[name]) for name in ("index", *reader.data) if name in loader.arrays}
        rows = reader.rows(host["index"])
        reader.check(host, rows)
        self._rows, self._places = f"{cache.name}/row", f"{cache.name}/place"
        self._fields = {name: entry.masked for name, entry in reader.entries.items()}
        sharding = _replicated_like(loader.arrays["index"])
        fields, places = reader.load_all()
        added = {**fields, self._rows: rows.astype(np.int32)} | ({} if places is None else {self._places: places})
        self.arrays: dict[str, Array] = {**loader.arrays, **jax.device_put(added, sharding)}
        self._gather = jax.jit(self.gather)

    def gather(self, arrays: Mapping[str, Array], step: Any, **options: Any) -> Batch:
        """Returns the batch of a step: a pure function, for use under jit, scan and vmap.

        ``arrays`` is `AttachedResident.arrays`, an argument of the jitted function rather than a constant in it.
        Options, such as ``seed``, are those of the loader's ``gather``. The ``epoch`` of the batch is the number of the
        view.
        """
        # The loader gathers the row number like any other per-example array; the fields have a leading axis of views,
        # so they are indexed here, by (view, row).
        own = {*self._fields, self._places}
        per_example = {name: value for name, value in arrays.items() if name not in own}
        batch = dict(self._loader.gather(per_example, step, **options))
        view, row = jnp.asarray(batch["epoch"]) % self.views, batch.pop(self._rows)
        place: Any = arrays[self._places][view, row] if self._places in arrays else None
        cached = {
            name: arrays[name].at[place if masked else (view, row)].get(mode="promise_in_bounds")
            for name, masked in self._fields.items()
        }
        return {**batch, "epoch": view, **cached}

    def batches(self, state: Mapping[str, Any] | None = None) -> _ResidentIterator:
        """Returns an iterator over batches, for a loop on the host."""
        return _ResidentIterator(self, self._loader.batches(state))


class AttachedLoader(_Attached):
    """A streaming loader with cached outputs read on the host.

    If the loader has ``map(function)``, as `jaxkd.data.Stream` does, its read-ahead workers read the outputs too.
    """

    def __init__(self, cache: Cache, loader: Any) -> None:
        ahead = hasattr(loader, "map")
        super().__init__(cache, loader.map(cache.reader) if ahead else loader)
        self._ahead = ahead

    def batches(self, state: Mapping[str, Any] | None = None) -> Any:
        """Returns an iterator over batches, from the start or from a state."""
        batches = self._loader.batches() if state is None else self._loader.batches(state)
        return batches if self._ahead else _HostIterator(self.cache, batches)


class _Iterator(abc.ABC):
    """Iterator over the loader's batches that shares the loader's state."""

    def __init__(self, batches: Any) -> None:
        self._batches = batches

    def __iter__(self) -> Any:
        return self

    @abc.abstractmethod
    def __next__(self) -> Batch:
        """Returns the next batch, with the cached outputs."""

    def get_state(self) -> Any:
        """Returns the position of the consumer."""
        return self._batches.get_state()

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Moves to a position."""
        self._batches.set_state(state)

    def close(self) -> None:
        """Stops the loader's read-ahead workers."""
        getattr(self._batches, "close", lambda: None)()


class _ResidentIterator(_Iterator):
    """Takes the step from the loader's iterator and gathers its batch with outputs."""

    def __init__(self, attached: AttachedResident, batches: Any) -> None:
        super().__init__(batches)
        self._attached = attached

    def __next__(self) -> Batch:
        step = self._batches.get_state()["step"]
        next(self._batches)  # advances the step, and raises StopIteration after the last epoch
        batch: Batch = self._attached._gather(self._attached.arrays, step)
        return batch


class _HostIterator(_Iterator):
    """Adds the outputs to batches that are already on the device."""

    def __init__(self, cache: Cache, batches: Any) -> None:
        super().__init__(batches)
        self._reader = cache.reader

    def __next__(self) -> Batch:
        batch = dict(next(self._batches))
        needed = {name: batch[name] for name in ("index", "epoch", *self._reader.data) if name in batch}
        read = self._reader(jax.device_get(needed))
        return {**batch, **jax.device_put({name: read[name] for name in ("epoch", *self._reader.entries)})}


def _replicated_like(array: Any) -> Any:
    """Returns a sharding that replicates over the array's devices, or None."""
    if not isinstance(array, jax.Array) or not array.committed:
        return None
    sharding = array.sharding
    return NamedSharding(sharding.mesh, PartitionSpec()) if isinstance(sharding, NamedSharding) else sharding
