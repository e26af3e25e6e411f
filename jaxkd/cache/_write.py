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
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import adapters
from jaxkd._core.lock import alone
from jaxkd._core.multihost import barrier, from_first, local
from jaxkd.cache import _manifest, _probes, _shards, _storage
from jaxkd.cache._compare import differences, teacher_difference
from jaxkd.cache._compute import compute_shards
from jaxkd.cache._examples import Examples, digest_of_set, digests, entries, read_examples
from jaxkd.cache._program import Codecs, Program, bytes_per_row
from jaxkd.cache._read import Cache, check_examples, load_complete
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

    A training script can always begin with this call: on a finished cache it computes nothing but the digests of its
    files, and after a kill or damage it computes the missing or damaged shards. `open_cache` does not read the files.
    This call raises if the directory holds the outputs of another teacher, transform, set or setting. On several hosts,
    each writes its share of the shards to one shared directory.

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
      ValueError: an output does not exist or cannot be stored, the transform cannot be replayed, another process is
        writing to the directory, or a file that cannot be computed again is damaged.

    >>> import tempfile
    >>> from jaxkd import Variables, data
    >>> model = adapters.plain(lambda key, x: np.eye(64, 10), lambda w, x: x.reshape(-1, 64) / 255 @ w)
    >>> digits = data.load("digits", "test")
    >>> with tempfile.TemporaryDirectory() as directory:
    ...     cache = write_cache(directory, model, Variables(np.eye(64, 10)), digits, transform=None, progress=False)
    ...     print(cache.num_examples, cache.views, list(cache.codecs))
    400 1 ['logits']
    """
    rank, processes = jax.process_index(), jax.process_count()
    path = pathlib.Path(directory)
    plan = _plan(
        path,
        model,
        variables,
        data,
        transform,
        views=views,
        codecs=codecs,
        batch_size=batch_size,
        devices=devices,
        examples_per_shard=examples_per_shard,
    )
    # Many runs may read a finished cache at once, from a directory that they cannot write to: it is not locked.
    if from_first(int(rank == 0 and _is_whole(path, plan.manifest))):
        return load_complete(path, transform, name)
    with alone(path):
        if rank == 0:
            _shards.remove_unfinished(path)
        barrier(f"{path.name}: begun")
        left = _write_share(path, plan, (rank, processes), progress and rank == 0)
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
    path = pathlib.Path(directory)
    plan = _plan(
        path,
        model,
        variables,
        data,
        transform,
        views=views,
        codecs=codecs,
        batch_size=batch_size,
        devices=devices,
        examples_per_shard=examples_per_shard,
    )
    with alone(path, shared=True):
        return _write_share(path, plan, shard, progress)


class _Plan(NamedTuple):
    """Everything that a writer has to know; nothing is written yet.

    Attributes:
      program: the compiled teacher.
      examples: the set.
      transform: transform of the examples.
      probe: the set's probe examples.
      contents: indices and digests of all examples; None for a stream, whose examples are digested as they are read.
      manifest: that of the directory, or the one to begin with.
      probes: samples to begin with; None if the directory has a manifest.
    """

    program: Program
    examples: Examples
    transform: _probes.Transform | None
    probe: Mapping[str, np.ndarray]
    contents: tuple[np.ndarray, np.ndarray] | None
    manifest: dict[str, Any]
    probes: Mapping[str, Mapping[str, np.ndarray]] | None


def _plan(
    path: pathlib.Path,
    model: Model,
    variables: Any,
    data: Any,
    transform: _probes.Transform | None,
    *,
    views: int,
    codecs: Codecs | None,
    batch_size: int,
    devices: Sequence[jax.Device] | None,
    examples_per_shard: int | None,
) -> _Plan:
    """Checks the arguments, and compares them with the manifest if there is one."""
    for what, number in (("views", views), ("batch_size", batch_size), ("examples_per_shard", examples_per_shard)):
        if number is not None and number < 1:
            raise ValueError(f"{what}: expected at least 1, got {number}.")
    if transform is None and views > 1:
        raise ValueError(
            f"views: expected 1 without a transform, as all views are equal, got {views}. Pass transform=."
        )
    codecs = {"logits": full()} if codecs is None else dict(codecs)
    weights = jax.tree.map(local, adapters.variables(variables))
    program = Program(model, weights, transform, codecs, batch_size=batch_size, devices=devices)
    examples = read_examples(data)
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
    if stored is not None:
        plan = _Plan(program, examples, transform, probe, contents, stored, None)
        _compare(path, plan, stored, identity)
        return plan
    outputs = program.shapes(probe)
    per_shard = examples_per_shard or _shard_size(examples.size, program.batch_size, outputs)
    if (total := _shards.Layout(examples.size, views, per_shard).total) > _shards.MAX_SHARDS:
        raise ValueError(
            f"examples_per_shard: expected a number for at most {_shards.MAX_SHARDS} shards, got {per_shard}, which "
            f"makes {total}."
        )
    begun = {
        "format": _manifest.FORMAT,
        "complete": False,
        "identity": identity,
        "transform": _manifest.describe(transform),
        "outputs": outputs,
        "inputs": program.inputs,
        "examples_per_shard": per_shard,
        "made_with": _manifest.made_with(),
    }
    samples = {
        "examples": probe,
        "transform": _probes.effect(transform, probe, views),
        "teacher": program.sample(probe),
    }
    return _Plan(program, examples, transform, probe, contents, begun, samples)


def _compare(path: pathlib.Path, plan: _Plan, stored: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Compares a plan with the manifest of a directory.

    A set in memory is digested as a whole before. Of a stream only the probes are read before; its other examples are
    digested as they are computed, and compared between views in `_finish`.

    Raises:
      StaleCacheError: they differ.
    """
    _manifest.refuse(path, differences(path, stored, identity, plan.transform, plan.probe))
    _manifest.refuse(path, teacher_difference(path, stored, plan.program))
    if plan.contents is not None and not stored["complete"]:
        _manifest.refuse(path, _changed_shards(path, stored, *plan.contents))


def _begin(path: pathlib.Path, plan: _Plan) -> dict[str, Any]:
    """Returns the manifest of the directory, which is written if there is none."""
    if plan.probes is None:
        return plan.manifest
    stored = _manifest.read(path)
    if stored is None:
        stored = {**plan.manifest, "probes": _probes.save(path / "probes.npz", plan.probes)}
        _manifest.write(path, stored)  # last: a manifest without its probes could not be compared
    else:  # another writer of the same cache began at the same time
        _compare(path, plan, stored, plan.manifest["identity"])
    return stored


def _write_share(path: pathlib.Path, plan: _Plan, shard: tuple[int, int], progress: bool) -> int:
    """Computes a share's missing and damaged shards; returns how many are left."""
    stored = _begin(path, plan)
    layout, key = _layout(stored), _manifest.key(stored)
    # Every shard is verified by its digests before a cache is built on it.
    wrong = _shards.damaged(path, range(shard[0], layout.total, shard[1]), key)
    if wrong and (given := plan.program.shapes(plan.probe)) != stored["outputs"]:
        _manifest.refuse(path, [f"outputs: {stored['outputs']} in the cache, {given} given"])
    names = list(stored["identity"]["data"]["entries"])
    compute_shards(
        path, plan.program, plan.examples, layout, missing=sorted(wrong), names=names, key=key, progress=progress
    )
    return sum(_shards.facts(path, number, key) is None for number in range(layout.total))


def _is_whole(path: pathlib.Path, stored: Mapping[str, Any]) -> bool:
    """Returns whether a cache is finished and undamaged; every file is read."""
    if not stored["complete"]:
        return False
    layout = _layout(stored)
    try:
        check_examples(path, stored["identity"]["contents"], layout.examples)
    except ValueError:
        return False
    return not _shards.damaged(path, range(layout.total), _manifest.key(stored))


def _layout(stored: Mapping[str, Any]) -> _shards.Layout:
    identity = stored["identity"]
    return _shards.Layout(identity["data"]["examples"], identity["views"], stored["examples_per_shard"])


def _changed_shards(path: pathlib.Path, stored: Mapping[str, Any], index: np.ndarray, values: np.ndarray) -> list[str]:
    """Returns a line for the first shard written from other examples, or none."""
    layout, key = _layout(stored), _manifest.key(stored)
    for number in range(layout.total):
        _, first, last = layout.place(number)
        given, facts = digest_of_set(index[first:last], values[first:last]), _shards.facts(path, number, key)
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
    stored = _manifest.read(path)
    assert stored is not None, "_begin has written it"
    identity, layout, key = stored["identity"], _layout(stored), _manifest.key(stored)
    all_facts = [facts for number in range(layout.total) if (facts := _shards.facts(path, number, key)) is not None]
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
        np.concatenate([_of_view_0(path, layout, number, name, dtype) for number in range(layout.per_view)])
        for name, dtype in (("index", "int64"), ("digests", "uint64"))
    )
    unique, counts = np.unique(index, return_counts=True)
    if (counts > 1).any():
        raise ValueError(
            f"data: expected a different index for every example, got {int(unique[counts > 1][0])} "
            f"{int(counts.max())} times. A batch finds its outputs by index."
        )
    contents = digest_of_set(index, values)
    if stored["complete"] and contents != identity["contents"]:
        raise ValueError(
            f"{path}: damaged shards were computed again from other examples than before ({identity['contents']}, "
            f"{contents}): the set has changed. Delete {path} and write the cache again."
        )
    for name, array in (("index", index), ("digests", values)):
        _storage.replace_array(path / f"{name}.npy", array)
    seconds = sum(facts["seconds"] for facts in all_facts)
    finished = {"complete": True, "identity": {**identity, "contents": contents}, "seconds": seconds}
    _manifest.write(path, {**stored, **finished})
    return True


def _of_view_0(path: pathlib.Path, layout: _shards.Layout, number: int, name: str, dtype: str) -> np.ndarray:
    _, first, last = layout.place(number)
    return _shards.load(path, number, name, dtype, (last - first,))
