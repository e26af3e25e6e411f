"""Opens a cache after comparing its identity, and reads it by example and view."""

from __future__ import annotations

import dataclasses
import functools
import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import adapters
from jaxkd.cache import _examples, _inputs, _manifest, _shards, _storage, _tokens
from jaxkd.cache._compare import differences
from jaxkd.cache._probes import Transform
from jaxkd.cache._program import INPUTS, SUMS, Codecs, file_name
from jaxkd.cache.codecs import Codec, from_settings
from jaxkd.types import Array, Outputs


class Entry(NamedTuple):
    """A stored field: its file in a shard, its dtype, and the shape of one example.

    Of a ``masked`` one, the file holds rows of single tokens, as `jaxkd.cache._tokens` describes.
    """

    file: str
    dtype: str
    shape: tuple[int, ...]
    masked: bool = False


@dataclasses.dataclass(frozen=True)
class Reader:
    """A picklable function that adds the cached fields to a NumPy batch on the host.

    Attributes:
      directory: directory of the cache.
      layout: layout of its shards.
      entries: stored fields by their names in a batch.
      data: entries of an example that the teacher saw, with dtypes and shapes; they are compared.
      contents: digest of all examples in their order.
      key: the key of the cache, which each of its shards carries.
      tokens: number of tokens of an example in the masked fields; 0 if there is none.
    """

    directory: pathlib.Path
    layout: _shards.Layout
    entries: Mapping[str, Entry]
    data: Mapping[str, str]
    contents: str
    key: str
    tokens: int = 0

    def rows(self, index: np.ndarray) -> np.ndarray:
        """Returns the rows of the examples with these indices.

        Raises:
          ValueError: one of them is not in the cache.
        """
        known, order, _ = _examples_of(self.directory, self.contents, self.layout.examples)
        index = np.asarray(index)
        place = np.minimum(np.searchsorted(known, index, sorter=order), len(known) - 1)
        rows = order[place]
        if (missing := known[rows] != index).any():
            raise ValueError(
                f"batch['index']: {int(missing.sum())} of {len(index)} examples are not in the cache {self.directory} "
                f"of {len(known)}, index {int(index[missing][0])} for one. Write a cache of the set that you train on."
            )
        return rows

    def check(self, batch: Mapping[str, np.ndarray], rows: np.ndarray) -> None:
        """Compares the contents of examples with those that the teacher saw.

        Raises:
          StaleCacheError: they differ.
        """
        known = _examples_of(self.directory, self.contents, self.layout.examples)[2]
        if line := _examples.content_difference(known[rows], batch, self.data):
            _manifest.refuse(self.directory, [line])

    def read(self, rows: np.ndarray, views: np.ndarray) -> dict[str, np.ndarray]:
        """Returns fields of some rows, each in its own view, by their names in a batch.

        Raises:
          ValueError: a file does not hold the bytes that were written.
        """
        index = _examples_of(self.directory, self.contents, self.layout.examples)[0]
        numbers = views * self.layout.per_view + rows // self.layout.per_shard
        found: dict[str, np.ndarray] = {}  # allocated when a file has shown the size of a row
        if not len(rows):
            return {
                name: np.empty((0, *entry.shape), _storage.dtype_of(entry.dtype))
                for name, entry in self.entries.items()
            }
        for number in map(int, np.unique(numbers)):
            chosen = np.flatnonzero(numbers == number)
            view, first, _ = self.layout.place(number)
            local = rows[chosen] - first
            fields, more = self._fields(number, local)
            known = self._load(number, Entry(SUMS, "uint32", ()))[local]
            by_file = {**more, **{self.entries[name].file: value for name, value in fields.items()}}
            if (wrong := _storage.row_sums(index[rows[chosen]], view, by_file) != known).any():
                raise ValueError(
                    f"{self.directory}, shard {number:06d}: the outputs of {int(wrong.sum())} examples are not those "
                    f"that were written, index {int(index[rows[chosen]][wrong][0])} for one. {_shards.REPAIR}"
                )
            for name, value in fields.items():
                found.setdefault(name, np.empty((len(rows), *value.shape[1:]), value.dtype))[chosen] = value
        return found

    def _fields(self, number: int, rows: np.ndarray) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Returns fields of rows of a shard by name, and the bits of their mask by file."""
        if not self.tokens:
            return {name: self._load(number, entry)[rows] for name, entry in self.entries.items()}, {}
        bits, ends = self._masks(number)
        places = _tokens.places(bits[rows], ends[rows], self.tokens)
        fields = {
            # Clipped: the place in a damaged file is found out by the checksum of its row.
            name: self._rows(number, entry, ends).take(places, axis=0, mode="clip")
            if entry.masked
            else self._load(number, entry)[rows]
            for name, entry in self.entries.items()
        }
        return fields, {_tokens.MASK: bits[rows]}

    def _load(self, number: int, entry: Entry) -> np.ndarray:
        _, first, last = self.layout.place(number)
        return _shards.load(self.directory, number, entry.file, entry.dtype, (last - first, *entry.shape))

    def _masks(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Returns the mask of a shard, as bits, and the ends of its examples."""
        bits = self._load(number, Entry(_tokens.MASK, "uint8", (-(-self.tokens // 8),)))
        return bits, self._load(number, Entry(_tokens.ENDS, "int64", ()))

    def _rows(self, number: int, entry: Entry, ends: np.ndarray) -> np.ndarray:
        """Returns the rows of all stored tokens of a shard."""
        return _shards.load(self.directory, number, entry.file, entry.dtype, (int(ends[-1]), *entry.shape[1:]))

    def load_all(self) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
        """Returns every field ``[views, rows, ...]``, after verifying the files' digests.

        A masked field has the rows of all stored tokens ``[stored, ...]`` instead. The second result says which of them
        are those of an example, int32 ``[views, rows, tokens]``; without masked fields it is None.

        Raises:
          ValueError: a file does not hold the bytes that were written.
        """
        self.verify()
        shards, whole = range(self.layout.total), (self.layout.views, self.layout.examples)  # view by view
        masks = [self._masks(number) for number in shards] if self.tokens else []
        found = {}
        for name, entry in self.entries.items():
            if entry.masked:
                parts = [self._rows(number, entry, ends) for number, (_, ends) in zip(shards, masks, strict=True)]
                found[name] = np.concatenate(parts)
            else:
                parts = [self._load(number, entry) for number in shards]
                found[name] = np.concatenate(parts).reshape(*whole, *entry.shape)
        if not self.tokens:
            return found, None
        before = np.cumsum([0, *(int(ends[-1]) for _, ends in masks)])
        places = [_tokens.places(*mask, self.tokens) + start for mask, start in zip(masks, before[:-1], strict=True)]
        return found, np.concatenate(places).reshape(*whole, self.tokens).astype(np.int32)

    def verify(self) -> None:
        """Reads every file and compares its digest.

        Raises:
          ValueError: a file does not hold the bytes that were written.
        """
        for fault in _shards.damaged(self.directory, range(self.layout.total), self.key).values():
            raise ValueError(f"{fault}. {_shards.REPAIR}")

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the batch with the cached fields, its ``epoch`` the view's number."""
        rows = self.rows(batch["index"])
        self.check(batch, rows)
        views = np.asarray(batch["epoch"]) % self.layout.views
        return {**batch, "epoch": views.astype(np.int32), **self.read(rows, views)}


@dataclasses.dataclass(frozen=True)
class Cache:
    """Teacher outputs on disk, from `write_cache` or `open_cache`.

    Attributes:
      directory: directory of the files.
      manifest: identity of teacher, data and settings, and sizes.
      transform: the transform of the cached views. Pass it to `jaxkd.distillers.preprocess`.
      name: prefix of the entries that `jaxkd.cache.attach` adds to a batch.
    """

    directory: pathlib.Path
    manifest: Mapping[str, Any]
    transform: Transform | None
    name: str = "cached"

    @property
    def views(self) -> int:
        """Number of draws of the transform."""
        return int(self.manifest["identity"]["views"])

    @property
    def num_examples(self) -> int:
        """Number of examples."""
        return int(self.manifest["identity"]["data"]["examples"])

    @functools.cached_property
    def bytes(self) -> int:
        """Size of all its files in bytes: outputs, checksums, index and probes."""
        return sum(path.stat().st_size for path in self.directory.rglob("*") if path.is_file())

    @property
    def bytes_per_example(self) -> float:
        """Size of the files for one example in one view, in bytes."""
        return self.bytes / (self.num_examples * self.views)

    @property
    def seconds(self) -> float:
        """Time of the teacher on all views and hosts, without reading and compiling."""
        return float(self.manifest["seconds"])

    def seconds_saved(self, epochs: int) -> float:
        """Returns a live teacher's time in a number of epochs, minus `seconds`."""
        return self.seconds / self.views * (epochs - self.views)

    def summary(self, epochs: int | None = None) -> str:
        """Returns size and time as text, and the time that the cache saves in some epochs."""
        stored = ", ".join(f"{name} ({_joined(codec)})" for name, codec in self.manifest["identity"]["codecs"].items())
        size = f"{self.bytes / 2**20:.3g} MiB on disk, {self.bytes_per_example:.4g} bytes each"
        text = (
            f"{self.directory}: {stored} of {self.num_examples} examples in {self.views} views, {size}; teacher "
            f"{self.seconds:.3g} s"
        )
        if epochs is None:
            return text
        live = self.seconds / self.views * epochs
        saved = self.seconds_saved(epochs)
        return f"{text}; a live teacher takes {live:.3g} s in {epochs} epochs, so the cache saves {saved:.3g} s"

    @functools.cached_property
    def codecs(self) -> dict[str, tuple[Codec, tuple[int, ...]]]:
        """Codec of each output, and shape of one example's output."""
        outputs = self.manifest["outputs"]
        return {
            name: (from_settings(settings), tuple(outputs[name]["shape"]))
            for name, settings in self.manifest["identity"]["codecs"].items()
        }

    @functools.cached_property
    def reader(self) -> Reader:
        """Reader of the stored fields, by example and view."""
        identity = self.manifest["identity"]
        entries = {
            f"{self.name}/{output}/{field}": Entry(
                file_name(output, field), described["dtype"], tuple(described["shape"]), facts.get("masked", False)
            )
            for output, facts in self.manifest["outputs"].items()
            for field, described in facts["fields"].items()
        }
        entries[f"{self.name}/{INPUTS}"] = Entry(INPUTS, "float32", (len(self.manifest["inputs"]),))
        layout = _shards.Layout(self.num_examples, self.views, self.manifest["examples_per_shard"])
        return Reader(
            self.directory,
            layout,
            entries,
            identity["data"]["entries"],
            identity["contents"],
            _manifest.key(self.manifest),
            max(entry.shape[0] if entry.masked else 0 for entry in entries.values()),
        )

    def decode(self, batch: Mapping[str, Any]) -> Outputs:
        """Returns the teacher's outputs from a batch of an attached loader.

        They are float32 arrays ``[batch, ...]`` by name, and the further arrays of the codecs. `jaxkd.teachers.cached`
        calls this function inside the step.

        Raises:
          ValueError: the batch lacks a stored field.
        """
        if not self.reader.entries.keys() <= batch.keys():
            raise ValueError(
                f"teachers.cached: expected a batch with {sorted(self.reader.entries)}, got {sorted(batch)}. Train on "
                "jaxkd.cache.attach(cache, loader) in place of the loader. A set to evaluate on needs its own cache, "
                "written with views=1 and the transform of the evaluation and attached in the same way."
            )
        outputs: dict[str, Array] = {}
        for output, (codec, shape) in self.codecs.items():
            fields = {
                field: batch[f"{self.name}/{output}/{field}"] for field in self.manifest["outputs"][output]["fields"]
            }
            for suffix, value in codec.decode(fields, shape).items():
                # Otherwise, the compiler would decode a value again for each of the many that a loss compares it with.
                outputs[f"{output}{suffix}"] = jax.lax.optimization_barrier(value)
        return outputs

    def unseen(self, batch: Mapping[str, Any], tolerance: float) -> Array:
        """Returns ``bool[batch]``, True for an example that the teacher saw otherwise.

        Args:
          batch: batch of an attached loader after all transforms of the step, as the student receives it.
          tolerance: largest difference of a floating-point entry, relative to its size. Integers have to be equal.

        Raises:
          StaleCacheError: the batch lacks an entry that the teacher read.
        """
        return _inputs.unseen(batch, self.manifest["inputs"], batch[f"{self.name}/{INPUTS}"], tolerance)

    def outputs(self, index: Any, view: int = 0) -> Outputs:
        """Returns the teacher's outputs for the examples of some indices in a view.

        They are float32 arrays ``[batch, ...]`` by name, and the further arrays of the codecs.

        Raises:
          ValueError: the cache has no such example or view.
        """
        if not 0 <= view < self.views:
            raise ValueError(f"view: expected 0 to {self.views - 1}, got {view}.")
        rows = self.reader.rows(np.atleast_1d(index))
        return self.decode(self.reader.read(rows, np.full(len(rows), view)))


def open_cache(
    directory: str | os.PathLike[str],
    *,
    transform: Transform | None,
    variables: Any = None,
    views: int | None = None,
    codecs: Codecs | None = None,
    name: str = "cached",
) -> Cache:
    """Opens a finished cache without the teacher's model.

    Args:
      directory: directory of the cache.
      transform: transform of the student's training, or None. Its results on the probes have to equal those of the
        transform that the cache was written with.
      variables: weights of the teacher, to compare; like the next two, not compared if None.
      views: number of views.
      codecs: codec of each output.
      name: prefix of the entries that `jaxkd.cache.attach` adds to a batch.

    Raises:
      FileNotFoundError: the directory holds no cache.
      StaleCacheError: an argument differs from what the cache was written with; the message names it.
      ValueError: the cache is unfinished, or files are missing.
    """
    path = pathlib.Path(directory)
    stored = _manifest.read(path)
    if stored is None:
        raise FileNotFoundError(
            f"{path}: expected a cache, found no manifest.json. Write one with jaxkd.cache.write_cache."
        )
    identity = {
        "teacher": None if variables is None else _manifest.digests_of(adapters.variables(variables)),
        "views": views,
        "codecs": None if codecs is None else {output: dict(codec.settings) for output, codec in codecs.items()},
    }
    _manifest.refuse(path, differences(path, stored, identity, transform))
    return load_complete(path, transform, name)


def load_complete(path: pathlib.Path, transform: Transform | None, name: str) -> Cache:
    """Returns a cache whose identity the caller has compared.

    Raises:
      ValueError: the cache is unfinished, or files are missing.
    """
    stored = _manifest.read(path)
    assert stored is not None, "the caller has read the manifest"
    cache = Cache(path.absolute(), stored, transform, name)
    layout = _shards.Layout(cache.num_examples, cache.views, stored["examples_per_shard"])
    key, folders = _manifest.key(stored), _shards.numbers(path)
    missing = [
        number for number in range(layout.total) if number not in folders or _shards.facts(path, number, key) is None
    ]
    if missing or not stored["complete"]:
        raise ValueError(
            f"{path}: {len(missing)} of {layout.total} shards are missing or incomplete, {missing[:4]} first. Call "
            "write_cache again with the same arguments: it computes the missing ones."
        )
    return cache


def _joined(settings: Mapping[str, Any]) -> str:
    return " ".join(str(value) for value in settings.values())


# `contents` is part of the key: a directory may be deleted and written with another set.
@functools.lru_cache(maxsize=8)
def _examples_of(directory: pathlib.Path, contents: str, count: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the indices of all rows, the order that sorts them, and digests."""
    index, digests = check_examples(directory, contents, count)
    return index, np.argsort(index, kind="stable"), digests


def check_examples(directory: pathlib.Path, contents: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the indices of all rows and the digests of their examples.

    Raises:
      ValueError: a file is missing, or does not hold what was written.
    """
    try:
        index, digests = (
            np.array(_storage.open_array(str(directory / f"{name}.npy"), dtype, (count,)))
            for name, dtype in (("index", "int64"), ("digests", "uint64"))
        )
    except ValueError as error:
        raise ValueError(f"{error}. {_shards.REPAIR}") from None
    if _examples.digest_of_set(index, digests) != contents:
        raise ValueError(
            f"{directory}: index.npy and digests.npy do not hold the bytes that were written. {_shards.REPAIR}"
        )
    return index, digests
