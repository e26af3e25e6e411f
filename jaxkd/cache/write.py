"""Writing a cache: every example in every view through the teacher once, by one compiled program, shard by shard."""

from __future__ import annotations

import collections
import concurrent.futures
import os
import pathlib
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import adapters
from jaxkd.progress import show_progress
from jaxkd.teachers.cache import examples, manifest, probes, shards
from jaxkd.teachers.cache.codecs import full
from jaxkd.teachers.cache.compare import another_teacher, contents_of, differences
from jaxkd.teachers.cache.program import Keep, Program, bytes_of, local
from jaxkd.teachers.cache.read import Cache, opened
from jaxkd.types import Model

__all__ = ["write_cache", "write_shards"]

_SHARDS_A_VIEW, _SHARD_BYTES = 16, 256 * 2**20
_READERS, _READ_AHEAD = 4, 8


def write_cache(
    directory: str | os.PathLike[str],
    model: Model,
    variables: Any,
    data: Any,
    *,
    transform: probes.Transform | None,
    views: int = 1,
    keep: Keep | None = None,
    batch_size: int = 256,
    examples_per_shard: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
    name: str = "cached",
) -> Cache:
    """Evaluates a teacher on every example in every view, once, and opens what was written.

    Called again with the same directory it goes on where it was killed, and what is finished is not computed again:
    a training script can always begin with this call. With another teacher, transform, set or settings it is refused.
    On several hosts each writes its part of the shards, into one directory that all of them see.

    Args:
      directory: for the cache; new, or one of the same cache.
      model: the teacher's, with the taps that are to be kept.
      variables: its weights: linen's dict, an nnx module or `Variables`. It runs in inference mode.
      data: the set: a `jaxkd.data.Dataset`, or the `Resident` or `Stream` that will be trained on.
      transform: what the student will be trained with, a pure function of the batch whose draws are functions of
        ``(seed, epoch, index)``; None for none. Bind it once, and give the same one to `jaxkd.training.preprocess`.
      views: how many draws of the transform there are. The student's pass e sees view ``e % views``.
      keep: a codec for each output that is kept; ``{"logits": codecs.full("float16")}`` by default.
      batch_size: of the teacher's evaluation. It changes no more than rounding.
      examples_per_shard: by default a sixteenth of the set, or what fills 256 MiB. One that was begun keeps its own.
      devices: of this host, to split each batch over; by default one.
      progress: show it, with the time left.
      name: of the entries that `Cache.attach` adds to a batch. Two caches for one student need two names.

    Returns:
      The opened `Cache`.

    Raises:
      StaleCacheError: the directory holds the outputs of something else; the message says what differs.
      ValueError: an output does not exist or cannot be stored, or the transform cannot be replayed.

    >>> import tempfile
    >>> from jaxkd import Variables, data
    >>> model = adapters.plain(lambda key, x: np.eye(64, 10), lambda w, x: x.reshape(-1, 64) / 255 @ w)
    >>> digits = data.load("digits", "test")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     cache = write_cache(directory, model, Variables(np.eye(64, 10)), digits, transform=None, progress=False)
    ...     print(cache.num_examples, cache.views, cache.bytes_per_example)
    400 1 20.0
    """
    shard = jax.process_index(), jax.process_count()
    left = write_shards(
        directory,
        model,
        variables,
        data,
        transform=transform,
        views=views,
        keep=keep,
        batch_size=batch_size,
        examples_per_shard=examples_per_shard,
        shard=shard,
        devices=devices,
        progress=progress and shard[0] == 0,
    )
    path = pathlib.Path(directory)
    _barrier(path, "written")
    if shard[0] == 0 and not _finish(path):
        raise ValueError(
            f"{path}: {left} shards are missing although every host has written its own. All hosts have to see the "
            "same directory."
        )
    _barrier(path, "finished")
    return opened(path, transform, name)


def write_shards(
    directory: str | os.PathLike[str],
    model: Model,
    variables: Any,
    data: Any,
    *,
    transform: probes.Transform | None,
    views: int = 1,
    keep: Keep | None = None,
    batch_size: int = 256,
    examples_per_shard: int | None = None,
    shard: tuple[int, int] = (0, 1),
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> int:
    """One writer's part of a cache, for processes that do not know of each other (an array of jobs, say).

    `write_cache` with the same arguments finishes the cache when all parts are there, and computes what is not.

    Args:
      directory: as in `write_cache`.
      model: as in `write_cache`.
      variables: as in `write_cache`.
      data: as in `write_cache`.
      transform: as in `write_cache`.
      views: as in `write_cache`.
      keep: as in `write_cache`.
      batch_size: as in `write_cache`.
      examples_per_shard: as in `write_cache`.
      shard: ``(i, n)``: the shards whose number leaves i when divided by n.
      devices: as in `write_cache`.
      progress: as in `write_cache`.

    Returns:
      How many shards of the whole cache are still missing.

    Raises:
      StaleCacheError: as in `write_cache`.
      ValueError: as in `write_cache`.
    """
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard: expected (i, n) with 0 <= i < n, got {shard}.")
    for what, number in (("views", views), ("batch_size", batch_size), ("examples_per_shard", examples_per_shard)):
        if number is not None and number < 1:
            raise ValueError(f"{what}: expected at least 1, got {number}.")
    if transform is None and views > 1:
        raise ValueError(f"views: {views} views without a transform are all the same. Give transform=, or views=1.")
    path = pathlib.Path(directory)
    keep = {"logits": full()} if keep is None else dict(keep)
    program = Program(model, local(adapters.variables(variables)), transform, keep, batch_size, devices)
    found = examples.of(data)
    layout = _plan(path, program, found, transform, views, keep, examples_per_shard)
    complete = _manifest(path)["complete"]

    def missing(number: int) -> bool:
        facts = shards.facts(path, number)
        # What a killed writer left is read once more before it is built upon; of what is finished, sizes are enough.
        return facts is None if complete else shards.damage(path, number, facts) is not None

    todo = [number for number in range(shard[0], layout.total, shard[1]) if missing(number)]
    _compute(path, program, found, layout, todo, progress)
    return sum(shards.facts(path, number) is None for number in range(layout.total))


def _plan(
    path: pathlib.Path,
    program: Program,
    found: examples.Examples,
    transform: probes.Transform | None,
    views: int,
    keep: Keep,
    examples_per_shard: int | None,
) -> shards.Layout:
    """Compares with what the directory holds, or begins there; how it is laid out."""
    stored = manifest.read(path)
    probe = found.take(probes.rows(found.size))
    names = examples.entries(probe)
    if stored is not None and (known := stored["identity"]["data"]["entries"]).keys() <= names.keys():
        names = {name: names[name] for name in known}  # what the set has besides, the teacher has not seen
    digests = None if found.whole is None else examples.digests(found.whole, list(names))
    contents = None if digests is None else contents_of(found.whole["index"], digests)  # type: ignore[index]
    identity = {
        "teacher": manifest.arrays_of(program.variables),
        "data": {"examples": found.size, "entries": names},
        "contents": contents,
        "views": views,
        "keep": {name: dict(codec.settings) for name, codec in keep.items()},
    }
    if stored is None:
        outputs = program.shapes(probe)
        parts = {
            "examples": probe,
            "transform": probes.effect(transform, probe, views),
            "teacher": program.sample(probe),
        }
        probes.save(path / "probes.npz", parts)
        stored = {
            "format": manifest.FORMAT,
            "complete": False,
            "identity": identity,
            "transform": manifest.describe(transform),
            "outputs": outputs,
            "examples_per_shard": examples_per_shard or _shard_size(found.size, program.batch_size, outputs),
            "made_with": manifest.made_with(),
        }
        manifest.write(path, stored)
    else:
        manifest.refuse(path, differences(path, stored, identity, transform, probe))
        manifest.refuse(path, another_teacher(path, program))
    layout = shards.Layout(found.size, views, stored["examples_per_shard"])
    if digests is not None and not stored["complete"]:
        manifest.refuse(path, _others(path, layout, found.whole["index"], digests))  # type: ignore[index]
    return layout


def _others(path: pathlib.Path, layout: shards.Layout, index: np.ndarray, digests: np.ndarray) -> list[str]:
    """Which finished shards hold other examples than the set does."""
    lines = []
    for number in range(layout.total):
        _, first, last = layout.place(number)
        here, facts = contents_of(index[first:last], digests[first:last]), shards.facts(path, number)
        if facts is not None and facts["contents"] != here:
            lines.append(f"data: examples {first} to {last - 1}: {facts['contents']} there, {here} here")
    return lines[:1]


def _shard_size(count: int, batch_size: int, outputs: Mapping[str, Any]) -> int:
    bytes_each = sum(bytes_of(field) for output in outputs.values() for field in output["fields"].values())
    size = min(-(-count // _SHARDS_A_VIEW), max(_SHARD_BYTES // max(bytes_each, 1), 1))
    return -(-size // batch_size) * batch_size


class _Block(NamedTuple):
    """Some examples of a shard, as they were read."""

    batch: dict[str, np.ndarray]
    digests: np.ndarray


def _compute(
    path: pathlib.Path,
    program: Program,
    found: examples.Examples,
    layout: shards.Layout,
    todo: Sequence[int],
    progress: bool,
) -> None:
    names = list(_manifest(path)["identity"]["data"]["entries"])
    total = sum(last - first for _, first, last in map(layout.place, todo))
    tasks = [
        np.arange(start, min(start + program.batch_size, last))
        for _, first, last in map(layout.place, todo)
        for start in range(first, last, program.batch_size)
    ]

    def fetch(rows: np.ndarray) -> _Block:
        batch = found.take(rows)
        return _Block(batch, examples.digests(batch, names))

    shown, reached = progress and total > 0, 0
    with (
        show_progress(total, what="teacher outputs", unit="examples", enabled=shown) as show,
        _ahead(fetch, tasks) as blocks,
    ):
        for number in todo:
            view, first, last = layout.place(number)
            parts: dict[str, list[np.ndarray]] = collections.defaultdict(list)
            seconds, done = 0.0, first
            while done < last:
                block = next(blocks)
                started = time.perf_counter()
                for file, value in program.encode(block.batch, view).items():
                    parts[file].append(value)
                seconds += time.perf_counter() - started
                parts["index"].append(np.asarray(block.batch["index"], np.int64))
                parts["digests"].append(block.digests)
                done += len(block.digests)
                reached += len(block.digests)
                show(reached)
            arrays = {file: np.concatenate(values) for file, values in parts.items()}
            who = contents_of(arrays["index"], arrays["digests"])
            if view:  # the first view's shards say which examples the rows are
                del arrays["index"], arrays["digests"]
            shards.write_shard(path, number, arrays, {"rows": last - first, "contents": who, "seconds": seconds})


class _ahead:
    """Results of a function in order, computed by threads while earlier ones are used."""

    def __init__(self, function: Any, tasks: Iterable[Any]) -> None:
        self._function, self._tasks = function, iter(tasks)
        self._pool = concurrent.futures.ThreadPoolExecutor(_READERS)

    def __enter__(self) -> Iterator[Any]:
        def results() -> Iterator[Any]:
            waiting: collections.deque[Any] = collections.deque()
            for task in self._tasks:
                waiting.append(self._pool.submit(self._function, task))
                if len(waiting) >= _READ_AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

        return results()

    def __exit__(self, *_: Any) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)


def _finish(path: pathlib.Path) -> bool:
    """Completes the manifest, if every shard is there.

    Raises:
      ValueError: examples share an index, or the set changed while it was read.
    """
    stored = _manifest(path)
    if stored["complete"]:
        return True
    identity = stored["identity"]
    layout = shards.Layout(identity["data"]["examples"], identity["views"], stored["examples_per_shard"])
    found = [shards.facts(path, number) for number in range(layout.total)]
    whole = [facts for facts in found if facts is not None]
    if len(whole) < layout.total:
        return False
    for number, facts in enumerate(whole):
        first = whole[number % layout.per_view]
        if facts["contents"] != first["contents"]:
            raise ValueError(
                f"{path}: shard {number} was written from other examples than the same rows in view 0 "
                f"({facts['contents']}, {first['contents']}): the set changed while it was read. Write the cache again."
            )
    index, digests = (
        np.concatenate([shards.load(path, number, name, dtype) for number in range(layout.per_view)])
        for name, dtype in (("index", "int64"), ("digests", "uint64"))
    )
    values, counts = np.unique(index, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"data: expected an index of its own for every example, got {int(values[counts > 1][0])} "
            f"{int(counts.max())} times. A student's batch could not tell their outputs apart."
        )
    for name, array in (("index", index), ("digests", digests)):
        shards.replace_array(path / f"{name}.npy", array)
    size = sum(bytes_of(field) for output in stored["outputs"].values() for field in output["fields"].values())
    manifest.write(
        path,
        {
            **stored,
            "complete": True,
            "identity": {**identity, "contents": contents_of(index, digests)},
            "bytes": size * layout.examples * layout.views,
            "bytes_on_disk": sum(file["bytes"] for facts in whole for file in facts["files"].values()),
            "seconds": sum(facts["seconds"] for facts in whole),
        },
    )
    return True


def _manifest(path: pathlib.Path) -> dict[str, Any]:
    stored = manifest.read(path)
    assert stored is not None, "_plan wrote it"
    return stored


def _barrier(path: pathlib.Path, event: str) -> None:
    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(f"{path.name}: {event}")
