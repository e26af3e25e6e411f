"""Computation of a run: its traced programs and the arrays that it starts from.

Two calls of `fit` are the same run if they compute the same. The programs are compared by their text, which holds
models, losses, weights, schedules, the optimizer and the transforms. The initial state is compared by its values:
weights of the teacher and the student, and numbers that an optimizer keeps in its state.
"""

from __future__ import annotations

import gzip
import math
import pathlib
import re
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxkd import parallel
from jaxkd._core import digests, multihost, tree_paths
from jaxkd._core.files import write_atomically
from jaxkd.training._inputs import is_resident
from jaxkd.training._traced_program import Program, first_difference, trace
from jaxkd.types import Batch, Distiller, TrainState

NAME = "program.txt.gz"
"""File of a run's directory that holds the text of its programs."""

_TOLERANCE = 1e-5  # of an array's norm: an initialization may round differently on another machine
_COLUMNS = 1024


class Computation(NamedTuple):
    """Computation of a run.

    Attributes:
      programs: by name, such as ``"step"``.
      identity: entries of the run's identity, as plain data.
    """

    programs: Mapping[str, Program]
    identity: dict[str, Any]


def describe_computation(
    kd: Distiller,
    train_data: Any,
    splits: Mapping[str, Any],
    *,
    state: TrainState,
    batch: Batch,
    stored: Mapping[str, Any],
) -> Computation:
    """Traces the programs of a run and digests its initial state.

    A distiller that was placed on devices is traced as it was before, so that a run can be resumed on others. The batch
    is one of the training input; ``stored`` is the identity of the run in the directory, whose batch may have had
    another number of examples.
    """
    while isinstance(kd, parallel.Placed) and kd.source is not None:
        kd = kd.source
    # An input whose batches differ in their other dimensions has one that does not depend on where a run resumes.
    batch = getattr(train_data, "template", batch)
    shapes = _with_shapes(batch, stored.get("batch", {}))
    programs = {"step": trace(kd.step, state=state, batch=shapes)}
    if splits:
        programs["evaluate"] = _trace_evaluation(kd, splits, state, shapes)
    for name, data in {"train": train_data, **splits}.items():
        if is_resident(data):
            programs[f"{name} batches"] = trace(data.gather, arrays=data.arrays, step=np.int32(0))
    places = any(program.places for program in programs.values())
    identity = {
        "environment": {
            "jax": jax.__version__,
            "platform": jax.default_backend(),
            "python": digests.PYTHON,
            "devices": jax.device_count() if places else None,
        },
        "batch": stored.get("batch", tree_paths.manifest(batch)),
        "programs": {name: program.digest for name, program in programs.items()},
        "initial": {name: _sketch(leaf) for name, leaf in tree_paths.named(state).items()},
    }
    return Computation(programs, identity)


def check_computation(directory: pathlib.Path, stored: Mapping[str, Any], given: Computation) -> list[str]:
    """Returns a line for each part of the computation that differs from the run's.

    Another version of JAX or another platform may write one computation differently. The differences are then a
    warning, and the result is empty.
    """
    problems = []
    texts = None
    for name, program in given.programs.items():
        known = stored.get("programs", {}).get(name, program.digest)
        if known != program.digest:
            texts = _read_programs(directory) if texts is None else texts
            found = f"the programs differ first in {first_difference(texts[name], program)}" if name in texts else ""
            problems.append(f"{name}: {found or f'stored the program {known}, given {program.digest}'}")
    problems += _other_values(stored.get("initial", {}), given.identity["initial"])
    before, now = stored.get("environment", {}), given.identity["environment"]
    changed = [name for name in now if name in before and before[name] != now[name]]
    if not problems or not changed:
        return problems
    listed = ", ".join(f"{name} {before[name]} before and {now[name]} now" for name in changed)
    warnings.warn(
        f"{directory}: the run was written elsewhere ({listed}), where the same computation may be written "
        "differently. It is resumed, although it is not certain that it is the same:\n  " + "\n  ".join(problems[:5]),
        stacklevel=4,
    )
    return []


def write_programs(directory: pathlib.Path, programs: Mapping[str, Program]) -> None:
    """Writes the text of all programs, in which a later call finds differences."""
    text = "\n\n".join(f"{name}\n{program.text}" for name, program in programs.items())
    write_atomically(directory / NAME, gzip.compress(text.encode(), mtime=0))


def _read_programs(directory: pathlib.Path) -> dict[str, str]:
    """Returns the stored texts by name; empty if the file is missing or damaged."""
    try:
        text = gzip.decompress((directory / NAME).read_bytes()).decode()
    except (OSError, EOFError, ValueError):
        return {}
    parts = (section.partition("\n") for section in text.split("\n\n"))
    return {name: program for name, _, program in parts}


def _trace_evaluation(kd: Distiller, splits: Mapping[str, Any], state: TrainState, batch: Batch) -> Program:
    """Traces the evaluation of a resident split, or else of a training batch.

    Reading a batch of a stream may be slow, so that it is done only if the evaluation cannot take a training batch.
    """
    for data in filter(is_resident, splits.values()):
        shapes = jax.eval_shape(data.gather, data.arrays, np.int32(0))
        return trace(kd.evaluate, state=state, batch=shapes)
    try:
        return trace(kd.evaluate, state=state, batch=batch)
    except Exception:  # whatever a model raises for a batch of another kind
        batches = next(iter(splits.values())).batches()
        try:
            return trace(kd.evaluate, state=state, batch=next(batches))
        finally:
            getattr(batches, "close", lambda: None)()


def _with_shapes(batch: Batch, stored: Mapping[str, str]) -> Any:
    """Returns the shapes of a batch, with the stored number of examples.

    An input may end with a smaller batch, and a run may resume there.

    >>> _with_shapes({"x": np.zeros((3, 5), np.float32)}, {"x": "float32[8,5]"})
    {'x': ShapeDtypeStruct(shape=(8, 5), dtype=float32)}
    """
    names = tree_paths.named(batch)

    def shape(name: str, leaf: Any) -> Any:
        found = re.fullmatch(r"(.*)\[(\d+)((?:,\d+)*)\]", stored.get(name, ""))
        own = tuple(np.shape(leaf))
        if not found or not own or tree_paths.describe(leaf) != f"{found[1]}[{own[0]}{found[3]}]":
            return leaf
        return jax.ShapeDtypeStruct((int(found[2]), *own[1:]), leaf.dtype)

    leaves = [shape(name, leaf) for name, leaf in names.items()]
    return jax.tree.unflatten(jax.tree.structure(batch), leaves)


def _sketch(leaf: Any) -> str:
    """Returns two numbers by which an array is recognized, or else a digest.

    They are the norm and the product with fixed vectors, which rounding changes little and other values much.

    >>> _sketch(np.array([3.0, 4.0])), _sketch(np.array([4.0, 3.0])), _sketch(np.array([1, 2])) == _sketch(np.arange(2))
    ('5 1.72393931', '5 2.82872396', False)
    """
    array = multihost.local(leaf)
    if tree_paths.is_key(array) or not jax.numpy.issubdtype(array.dtype, np.inexact):
        return "#" + digests.of_array(array)
    values = np.asarray(array)
    values = values.astype(np.complex128).view(np.float64) if np.iscomplexobj(values) else values
    values = values.astype(np.float32) if values.dtype.itemsize < 4 else values
    values = values.reshape(-1)
    norm = math.sqrt(float(np.vdot(values, values)))
    if not math.isfinite(norm):
        return "#" + digests.of_array(array)
    rows = np.pad(values, (0, -values.size % _COLUMNS)).reshape(-1, _COLUMNS)
    columns = np.cos(1.3 * np.arange(_COLUMNS) + 0.5).astype(values.dtype)
    product = float(np.cos(0.7 * np.arange(len(rows))) @ (rows @ columns).astype(np.float64))
    return f"{norm:.9g} {product:.9g}"


def _other_values(stored: Mapping[str, str], given: Mapping[str, str]) -> list[str]:
    """Returns one line for each part of the state with other initial values."""
    lines = []
    for part in dict.fromkeys(name.partition("/")[0] for name in given):
        names = [name for name in given if name.partition("/")[0] == part and name in stored]
        other = [name for name in names if not _close(stored[name], given[name])]
        if other:
            lines.append(f"{part}: {len(other)} of {len(names)} arrays start with other values, first {other[0]}")
    return lines


def _close(stored: str, given: str) -> bool:
    if stored == given or "#" in stored + given:
        return stored == given
    one, other = ([float(number) for number in sketch.split()] for sketch in (stored, given))
    return all(abs(a - b) <= _TOLERANCE * max(one[0], other[0]) for a, b in zip(one, other, strict=True))
