"""Reading a cache: opened against what it is to be used with, then read by example and view."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from jaxkd import adapters
from jaxkd.teachers.cache import examples, manifest, shards
from jaxkd.teachers.cache.codecs import Codec, from_settings
from jaxkd.teachers.cache.compare import differences
from jaxkd.teachers.cache.probes import Transform
from jaxkd.teachers.cache.program import Keep, file_name
from jaxkd.types import Array, Outputs

__all__ = ["Cache", "Entry", "Reader", "open_cache", "opened"]


class Entry(NamedTuple):
    """A field of an output as it stands in a batch: its file, its dtype, and the shape of one example."""

    file: str
    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Reader:
    """Cached fields of batches, on the host: a function of a NumPy batch that worker processes can have.

    Attributes:
      directory: of the cache.
      layout: of its shards.
      entries: by their names in a batch.
      data: the entries of an example that are compared, with dtypes and shapes.
      contents: a digest of which examples there are.
    """

    directory: pathlib.Path
    layout: shards.Layout
    entries: Mapping[str, Entry]
    data: Mapping[str, str]
    contents: str

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Where examples are in the cache.

        Raises:
          ValueError: it does not hold one of them.
        """
        known, order = _order(self.directory, self.contents)
        index = np.asarray(index)
        place = np.minimum(np.searchsorted(known, index, sorter=order), len(known) - 1)
        rows = order[place]
        if (missing := known[rows] != index).any():
            raise ValueError(
                f"batch['index']: {int(missing.sum())} of {len(index)} examples are not in the cache {self.directory} "
                f"of {len(known)}, index {int(index[missing][0])} for one. Write a cache of the set that is trained on."
            )
        return rows

    def check(self, batch: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        """Compares examples with those that the teacher saw.

        Raises:
          StaleCacheError: they are others.
        """
        known = shards.open_array(str(self.directory / "digests.npy"), "uint64")
        if line := examples.differing(known[rows], batch, self.data):
            manifest.refuse(self.directory, [line])

    def read(self, rows: np.ndarray, views: np.ndarray) -> dict[str, np.ndarray]:
        """The fields of some rows, each in a view of its own, by their names in a batch."""
        numbers = views * self.layout.per_view + rows // self.layout.per_shard
        found = {
            name: np.empty((len(rows), *entry.shape), shards.dtype_of(entry.dtype))
            for name, entry in self.entries.items()
        }
        for number in np.unique(numbers):
            here = np.flatnonzero(numbers == number)
            _, first, _ = self.layout.place(int(number))
            for name, entry in self.entries.items():
                found[name][here] = shards.load(self.directory, int(number), entry.file, entry.dtype)[
                    rows[here] - first
                ]
        return found

    def everything(self) -> dict[str, np.ndarray]:
        """Every field of every row in every view, ``[views, rows, ...]``, after a check of the files' digests.

        Raises:
          ValueError: a file holds other bytes than were written.
        """
        self.verify()
        found = {}
        for name, entry in self.entries.items():
            parts = [
                np.concatenate(
                    [
                        shards.load(self.directory, view * self.layout.per_view + part, entry.file, entry.dtype)
                        for part in range(self.layout.per_view)
                    ]
                )
                for view in range(self.layout.views)
            ]
            found[name] = np.stack(parts)
        return found

    def verify(self) -> None:
        """Reads every file and compares its digest.

        Raises:
          ValueError: a file holds other bytes than were written.
        """
        for number in range(self.layout.total):
            if found := shards.damage(self.directory, number, shards.facts(self.directory, number)):
                raise ValueError(f"{found}. Delete that shard's folder, and write_cache will compute it again.")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The batch with the cached fields of its examples, and its ``epoch`` the view that they are of."""
        rows = self.rows(batch["index"])
        self.check(batch, rows)
        views = np.asarray(batch["epoch"]) % self.layout.views
        return {**batch, "epoch": views.astype(np.int32), **self.read(rows, views)}


@dataclasses.dataclass(frozen=True)
class Cache:
    """Teacher outputs on disk, by example and view; from `write_cache` or `open_cache`.

    Attributes:
      directory: where they are.
      manifest: what they were made from.
      transform: the one that they are right for. Give it to `jaxkd.training.preprocess`.
      name: of the entries that `attach` adds to a batch.
    """

    directory: pathlib.Path
    manifest: Mapping[str, Any]
    transform: Transform | None
    name: str = "cached"

    @property
    def views(self) -> int:
        """How many draws of the transform there are."""
        return int(self.manifest["identity"]["views"])

    @property
    def num_examples(self) -> int:
        """How many examples there are."""
        return int(self.manifest["identity"]["data"]["examples"])

    @property
    def bytes(self) -> int:
        """What the outputs take, in files and in memory."""
        return int(self.manifest["bytes"])

    @property
    def bytes_per_example(self) -> float:
        """What the outputs of one example in one view take."""
        return self.bytes / (self.num_examples * self.views)

    @property
    def seconds(self) -> float:
        """How long the teacher took, over all views and hosts; reading the set and compiling are not in it."""
        return float(self.manifest["seconds"])

    def seconds_saved(self, epochs: int) -> float:
        """What a teacher evaluated in each of some epochs would have taken beyond `seconds`."""
        return self.seconds / self.views * (epochs - self.views)

    def summary(self, epochs: int | None = None) -> str:
        """Size and time, for a person.

        Args:
          epochs: of a training run, to say what it saves.
        """
        kept = ", ".join(f"{name} ({_of(codec)})" for name, codec in self.manifest["identity"]["keep"].items())
        text = (
            f"{self.directory}: {kept} of {self.num_examples} examples in {self.views} views, "
            f"{self.bytes / 2**20:.3g} MiB, {self.bytes_per_example:.4g} bytes each; teacher {self.seconds:.3g} s"
        )
        if epochs is None:
            return text
        live = self.seconds / self.views * epochs
        saved = self.seconds_saved(epochs)
        return f"{text}; {epochs} epochs with a live one take {live:.3g} s, so {saved:.3g} s are saved"

    @functools.cached_property
    def codecs(self) -> dict[str, tuple[Codec, tuple[int, ...]]]:
        """The codec of each output, and the shape of one example's output."""
        outputs = self.manifest["outputs"]
        return {
            name: (from_settings(settings), tuple(outputs[name]["shape"]))
            for name, settings in self.manifest["identity"]["keep"].items()
        }

    @functools.cached_property
    def reader(self) -> Reader:
        """Its fields, by example and view."""
        identity = self.manifest["identity"]
        entries = {
            f"{self.name}/{output}/{field}": Entry(file_name(output, field), kept["dtype"], tuple(kept["shape"]))
            for output, facts in self.manifest["outputs"].items()
            for field, kept in facts["fields"].items()
        }
        layout = shards.Layout(self.num_examples, self.views, self.manifest["examples_per_shard"])
        return Reader(self.directory, layout, entries, identity["data"]["entries"], identity["contents"])

    def decode(self, batch: Mapping[str, Any]) -> Outputs:
        """A teacher's outputs from a batch that has the cached fields.

        Raises:
          ValueError: it does not have them.
        """
        outputs: dict[str, Array] = {}
        for output, (codec, shape) in self.codecs.items():
            prefix = f"{self.name}/{output}/"
            fields = {
                name.removeprefix(prefix): batch[name]
                for name in self.reader.entries
                if name.startswith(prefix) and name in batch
            }
            if len(fields) < len(self.manifest["outputs"][output]["fields"]):
                raise ValueError(
                    f"teachers.cached: expected a batch with {sorted(self.reader.entries)}, got {sorted(batch)}. Train "
                    "on cache.attach(data) in the place of data. A set that is evaluated on needs a cache of its own, "
                    "with views=1 and the transform of the evaluation, attached to it in the same way."
                )
            outputs |= {f"{output}{suffix}": value for suffix, value in codec.decode(fields, shape).items()}
        return outputs

    def outputs(self, index: Any, view: int = 0) -> Outputs:
        """The teacher's outputs for some examples in a view.

        Args:
          index: of the examples, integers ``[batch]``.
          view: which draw of the transform.

        Returns:
          Float32 arrays ``[batch, ...]`` by name, and what else the codecs give.

        Raises:
          ValueError: there is no such example or view.
        """
        if not 0 <= view < self.views:
            raise ValueError(f"view: expected 0 to {self.views - 1}, got {view}.")
        rows = self.reader.rows(np.atleast_1d(index))
        return self.decode(self.reader.read(rows, np.full(len(rows), view)))

    def attach(self, data: Any) -> Any:
        """An input whose batches carry the teacher's outputs, still encoded.

        The ``epoch`` of its batches is the number of the view, ``epoch % views``, so that the student's transform
        makes the images that the teacher saw. Otherwise they are the same batches in the same order.

        Args:
          data: a `jaxkd.data.Resident`, with which the outputs lie on the device and are gathered there; a `Stream`,
            with which they are read from the files, ahead of the step; or any other input whose batches have ``index``
            and ``epoch``. It may hold the cached set in another order, or some of it.

        Returns:
          An input of the same mode.

        Raises:
          StaleCacheError: the examples are not those that the teacher saw. With a `Stream`, when they are read.
          ValueError: the cache does not hold an example, a file of it is damaged, or the input has another cache
            attached with another number of views.
        """
        from jaxkd.teachers.cache.attach import attach  # it attaches a Cache

        return attach(self, data)


def open_cache(
    directory: str | os.PathLike[str],
    *,
    transform: Transform | None,
    variables: Any = None,
    views: int | None = None,
    keep: Keep | None = None,
    name: str = "cached",
) -> Cache:
    """Opens a cache that is written, where the teacher itself is not at hand or not wanted.

    Args:
      directory: of the cache.
      transform: what the student will be trained with; it has to do what the one did that the cache was written with.
      variables: the teacher's weights, to be compared.
      views: expected number of views, to be compared.
      keep: expected codecs, to be compared.
      name: of the entries that `Cache.attach` adds to a batch.

    Returns:
      The opened `Cache`.

    Raises:
      FileNotFoundError: there is no cache.
      StaleCacheError: what is given differs from what it was written with; the message says where.
      ValueError: it is not finished, or files of it are missing.
    """
    path = pathlib.Path(directory)
    stored = manifest.read(path)
    if stored is None:
        raise FileNotFoundError(f"{path}: there is no cache here. Write one with jaxkd.teachers.write_cache.")
    identity = {
        "teacher": None if variables is None else manifest.arrays_of(adapters.variables(variables)),
        "views": views,
        "keep": None if keep is None else {output: dict(codec.settings) for output, codec in keep.items()},
    }
    manifest.refuse(path, differences(path, stored, identity, transform))
    return opened(path, transform, name)


def opened(path: pathlib.Path, transform: Transform | None, name: str) -> Cache:
    """A cache whose manifest was compared before.

    Raises:
      ValueError: it is not finished, or files of it are missing.
    """
    stored = manifest.read(path)
    assert stored is not None, "its manifest was read before"
    cache = Cache(path.absolute(), stored, transform, name)
    layout = shards.Layout(cache.num_examples, cache.views, stored["examples_per_shard"])
    missing = [number for number in range(layout.total) if shards.facts(path, number) is None]
    if missing or not stored["complete"]:
        raise ValueError(
            f"{path}: {len(missing)} of {layout.total} shards are missing or not whole, {missing[:4]} first. Call "
            "write_cache again with the same arguments: it computes what is missing."
        )
    return cache


def _of(settings: Mapping[str, Any]) -> str:
    return " ".join(str(value) for value in settings.values())


@functools.lru_cache(maxsize=8)
def _order(directory: pathlib.Path, contents: str) -> tuple[np.ndarray, np.ndarray]:
    known = np.asarray(shards.open_array(str(directory / "index.npy"), "int64"))
    return known, np.argsort(known, kind="stable")
