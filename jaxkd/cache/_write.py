"""Writes a cache: evaluates a teacher on every example in every view, by shards.

The work is divided into shards, each a run of rows in one view, and shard ``n`` belongs to writer ``n % writers``. No
writer talks to another: each compares its arguments with the manifest, computes those of its shards that are missing,
and publishes each by one rename. A killed writer loses at most the shard that it was computing; the same call computes
the rest and, because a batch never crosses a shard, ends with the same bytes. The first process marks the manifest as
complete when all shards exist and agree about the examples.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jaxkd import adapters
from jaxkd._core.multihost import barrier, local
from jaxkd.cache import _arrays, _manifest, _probes, _shards
from jaxkd.cache._compare import differences, teacher_difference
from jaxkd.cache._compute import compute_shards
from jaxkd.cache._examples import Examples, digest_of_set, digests, entries, read_examples
from jaxkd.cache._program import Codecs, Program, bytes_per_row
from jaxkd.cache._read import Cache, load_complete
from jaxkd.cache.codecs import full
from jaxkd.types import Model

_SHARDS_PER_VIEW, _MAX_SHARD_BYTES = 16, 256 * 2**20


def write_cache(
    directory: str | os.PathLike[str],
    model: Model,
    variables: Any,
    data: Any,
    *,
    transform: _probes.Transform | None,
    views: int = 1,
    codecs: Codecs | None = None,
    batch_size: int = 256,
    examples_per_shard: int | None = None,
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
    name: str = "cached",
) -> Cache:
    """Evaluates a teacher on every example in every view, once, and opens the cache.

    A training script can always begin with this call: on a finished cache it computes nothing, and after a kill it
    resumes with the missing shards. It raises if the directory holds the outputs of another teacher, transform, set or
    setting. On several hosts, each writes its share of the shards to one shared directory.

    Args:
      directory: directory of the cache; new, or of the same cache.
      model: teacher, with taps for the outputs to store.
      variables: weights of the teacher: linen's dict, an nnx module or `Variables`. It runs in inference mode.
      data: a `jaxkd.data.Dataset`, or the `Resident` or `Stream` of the student's training.
      transform: transform of the student's training, a pure function of the batch whose draws are functions of
        ``(seed, epoch, index)``; None for none. Pass the same one to `jaxkd.distillers.preprocess`.
      views: number of draws of the transform. The student sees view ``e % views`` in epoch ``e``.
      codecs: a codec for each output to store; ``{"logits": codecs.full("float16")}`` by default.
      batch_size: examples per call of the teacher. It affects rounding only.
      examples_per_shard: by default a sixteenth of the set, or as many as fill 256 MiB. An unfinished cache keeps the
        number that it was begun with.
      devices: devices of this host to split each batch over; by default one.
      progress: show progress, with the time left.
      name: prefix of the entries that `jaxkd.cache.attach` adds to a batch. Two caches for one student need two names.

    Raises:
      StaleCacheError: the directory holds other outputs; the message names each difference.
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
    rank, processes = jax.process_index(), jax.process_count()
    left = write_shards(
        directory,
        model,
        variables,
        data,
        transform=transform,
        views=views,
        codecs=codecs,
        batch_size=batch_size,
        examples_per_shard=examples_per_shard,
        shard=(rank, processes),
        devices=devices,
        progress=progress and rank == 0,
    )
    path = pathlib.Path(directory)
    barrier(f"{path.name}: written")
    if rank == 0 and not _finish(path):
        raise ValueError(
            f"{path}: expected all shards, {left} are missing although every host has written its share. Pass a "
            "directory that all hosts share."
        )
    barrier(f"{path.name}: finished")
    return load_complete(path, transform, name)


def write_shards(
    directory: str | os.PathLike[str],
    model: Model,
    variables: Any,
    data: Any,
    *,
    transform: _probes.Transform | None,
    views: int = 1,
    codecs: Codecs | None = None,
    batch_size: int = 256,
    examples_per_shard: int | None = None,
    shard: tuple[int, int] = (0, 1),
    devices: Sequence[jax.Device] | None = None,
    progress: bool = True,
) -> int:
    """Writes one writer's share of a cache, for processes that run independently.

    An array of jobs calls it, for example. `write_cache` with the same arguments then finishes the cache, and computes
    any share that is missing. Arguments and errors are those of `write_cache`. Writer i of n, with ``shard=(i, n)``,
    computes the shards whose number modulo n is i.

    Returns:
      Number of shards of the whole cache that are still missing.

    Raises:
      ValueError: as `write_cache`, whose `StaleCacheError` is one; or ``shard`` is out of range.
    """
    if not 0 <= shard[0] < shard[1]:
        raise ValueError(f"shard: expected (i, n) with 0 <= i < n, got {shard}.")
    for what, number in (("views", views), ("batch_size", batch_size), ("examples_per_shard", examples_per_shard)):
        if number is not None and number < 1:
            raise ValueError(f"{what}: expected at least 1, got {number}.")
    if transform is None and views > 1:
        raise ValueError(
            f"views: expected 1 without a transform, as all views are equal, got {views}. Pass transform=."
        )
    path = pathlib.Path(directory)
    codecs = {"logits": full()} if codecs is None else dict(codecs)
    weights = jax.tree.map(local, adapters.variables(variables))
    program = Program(model, weights, transform, codecs, batch_size=batch_size, devices=devices)
    examples = read_examples(data)
    layout = _plan(path, program, examples, transform, views, examples_per_shard)
    stored = _stored_manifest(path)

    def missing(number: int) -> bool:
        facts = _shards.facts(path, number)
        # Shards of a killed writer are verified by their digests before the cache is built on them. A finished cache is
        # opened by every training script: reading all of it would take long, so only the sizes are compared.
        return facts is None if stored["complete"] else _shards.damage(path, number, facts) is not None

    numbers = [number for number in range(shard[0], layout.total, shard[1]) if missing(number)]
    names = list(stored["identity"]["data"]["entries"])
    compute_shards(path, program, examples, layout, missing=numbers, names=names, progress=progress)
    return sum(_shards.facts(path, number) is None for number in range(layout.total))


def _plan(
    path: pathlib.Path,
    program: Program,
    examples: Examples,
    transform: _probes.Transform | None,
    views: int,
    examples_per_shard: int | None,
) -> _shards.Layout:
    """Compares the arguments with the manifest, or begins one; returns the layout.

    A set in memory is digested as a whole, here. Of a stream only the probes are read now; its other examples are
    digested as they are computed, and compared between views in `_finish`.
    """
    stored = _manifest.read(path)
    probe = examples.take(_probes.rows(examples.size))
    names = entries(probe)
    if stored is not None and (known := stored["identity"]["data"]["entries"]).keys() <= names.keys():
        names = {name: names[name] for name in known}  # the teacher has not seen further entries: they may differ
    whole = examples.whole
    contents = None if whole is None else (whole["index"], digests(whole, list(names)))
    identity = {
        "teacher": _manifest.digests_of(program.variables),
        "data": {"examples": examples.size, "entries": names},
        "contents": None if contents is None else digest_of_set(*contents),
        "views": views,
        "codecs": {name: dict(codec.settings) for name, codec in program.codecs.items()},
    }
    if stored is None:
        outputs = program.shapes(probe)
        parts = {
            "examples": probe,
            "transform": _probes.effect(transform, probe, views),
            "teacher": program.sample(probe),
        }
        _probes.save(path / "probes.npz", parts)
        stored = {
            "format": _manifest.FORMAT,
            "complete": False,
            "identity": identity,
            "transform": _manifest.describe(transform),
            "outputs": outputs,
            "inputs": program.inputs,
            "examples_per_shard": examples_per_shard or _shard_size(examples.size, program.batch_size, outputs),
            "made_with": _manifest.made_with(),
        }
        _manifest.write(path, stored)  # last: a manifest without its probes could not be compared
    else:
        _manifest.refuse(path, differences(path, stored, identity, transform, probe))
        _manifest.refuse(path, teacher_difference(path, program))
    layout = _shards.Layout(examples.size, views, stored["examples_per_shard"])
    if contents is not None and not stored["complete"]:
        _manifest.refuse(path, _changed_shards(path, layout, *contents))
    return layout


def _changed_shards(path: pathlib.Path, layout: _shards.Layout, index: np.ndarray, values: np.ndarray) -> list[str]:
    """Returns a line for the first shard written from other examples, or none."""
    for number in range(layout.total):
        _, first, last = layout.place(number)
        given, facts = digest_of_set(index[first:last], values[first:last]), _shards.facts(path, number)
        if facts is not None and facts["contents"] != given:
            return [f"data: examples {first} to {last - 1}: {facts['contents']} in the cache, {given} given"]
    return []


def _shard_size(count: int, batch_size: int, outputs: Mapping[str, Any]) -> int:
    size = min(-(-count // _SHARDS_PER_VIEW), max(_MAX_SHARD_BYTES // max(bytes_per_row(outputs), 1), 1))
    return -(-size // batch_size) * batch_size


def _finish(path: pathlib.Path) -> bool:
    """Completes index and manifest; returns False if a shard is missing.

    Raises:
      ValueError: examples share an index, or the set changed while it was read.
    """
    stored = _stored_manifest(path)
    if stored["complete"]:
        return True
    identity = stored["identity"]
    layout = _shards.Layout(identity["data"]["examples"], identity["views"], stored["examples_per_shard"])
    all_facts = [facts for number in range(layout.total) if (facts := _shards.facts(path, number)) is not None]
    if len(all_facts) < layout.total:
        return False
    for number, facts in enumerate(all_facts):
        first = all_facts[number % layout.per_view]
        if facts["contents"] != first["contents"]:
            raise ValueError(
                f"{path}: shard {number} was written from other examples than the same rows in view 0 "
                f"({facts['contents']}, {first['contents']}): the set changed while it was read. Write the cache again."
            )
    index, values = (
        np.concatenate([_shards.load(path, number, name, dtype) for number in range(layout.per_view)])
        for name, dtype in (("index", "int64"), ("digests", "uint64"))
    )
    unique, counts = np.unique(index, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"data: expected a different index for every example, got {int(unique[counts > 1][0])} "
            f"{int(counts.max())} times. A batch finds its outputs by index."
        )
    for name, array in (("index", index), ("digests", values)):
        _arrays.replace_array(path / f"{name}.npy", array)
    _manifest.write(
        path,
        {
            **stored,
            "complete": True,
            "identity": {**identity, "contents": digest_of_set(index, values)},
            "bytes": bytes_per_row(stored["outputs"]) * layout.examples * layout.views,
            "bytes_on_disk": sum(file["bytes"] for facts in all_facts for file in facts["files"].values()),
            "seconds": sum(facts["seconds"] for facts in all_facts),
        },
    )
    return True


def _stored_manifest(path: pathlib.Path) -> dict[str, Any]:
    stored = _manifest.read(path)
    assert stored is not None, "_plan has written it"
    return stored
