"""Computes the missing shards of a cache, reading the set ahead of the device."""

from __future__ import annotations

import collections
import concurrent.futures
import contextlib
import pathlib
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from jaxkd._core.progress import show_progress
from jaxkd.cache import _shards, _storage, _tokens
from jaxkd.cache._examples import Examples, digest_of_set, digests
from jaxkd.cache._program import SUMS, Program

_READERS, _READ_AHEAD = 4, 8


class _Block(NamedTuple):
    """Examples of one batch, and their digests."""

    batch: dict[str, np.ndarray]
    digests: np.ndarray


def compute_shards(
    path: pathlib.Path,
    program: Program,
    examples: Examples,
    layout: _shards.Layout,
    *,
    missing: Sequence[int],
    names: Sequence[str],
    key: str,
    progress: bool,
) -> None:
    """Evaluates the teacher on the rows of the missing shards, and writes them.

    ``missing`` has the numbers of these shards, ``names`` the entries of an example that are digested. ``key`` is that
    of the cache.
    """
    places = [layout.place(number) for number in missing]
    total = sum(last - first for _, first, last in places)
    # A batch never crosses a shard: a shard is then the same, bit for bit, whichever shards were computed before it.
    tasks = [
        np.arange(start, min(start + program.batch_size, last))
        for _, first, last in places
        for start in range(first, last, program.batch_size)
    ]

    def fetch(rows: np.ndarray) -> _Block:
        batch = examples.take(rows)
        return _Block(batch, digests(batch, names))

    shown, reached = progress and total > 0, 0
    with (
        show_progress(total, what="teacher outputs", unit="examples", enabled=shown) as show,
        _read_ahead(fetch, tasks) as blocks,
    ):
        for number, (view, first, last) in zip(missing, places, strict=True):
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
            index, seen = arrays.pop("index"), arrays.pop("digests")
            read = arrays
            if program.masked:
                read, arrays = _tokens.split(arrays.pop(_tokens.MASK), arrays, program.masked)
            arrays[SUMS] = _storage.row_sums(index, view, read)  # of what a reader has at hand
            if not view:  # the rows are the same in every view
                arrays |= {"index": index, "digests": seen}
            notes = {"key": key, "rows": last - first, "contents": digest_of_set(index, seen), "seconds": seconds}
            _shards.write_shard(path, number, arrays, notes)


@contextlib.contextmanager
def _read_ahead(function: Callable[[Any], Any], tasks: Iterable[Any]) -> Iterator[Iterator[Any]]:
    """Yields an iterator over a function's results, computed by threads ahead of use."""
    pool = concurrent.futures.ThreadPoolExecutor(_READERS)

    def results() -> Iterator[Any]:
        waiting: collections.deque[Any] = collections.deque()  # in the order of the tasks, and bounded
        for task in tasks:
            waiting.append(pool.submit(function, task))
            if len(waiting) >= _READ_AHEAD:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()

    try:
        yield results()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)
