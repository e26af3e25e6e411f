"""Weights as a plain orbax directory, which needs no jaxkd to be read, and out of any directory that orbax wrote."""

from __future__ import annotations

import os
import pathlib
import urllib.parse
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]

from jaxkd.training.checkpoint import Checkpoints
from jaxkd.weights import tree
from jaxkd.weights.replacing import replacing

Path = str | os.PathLike[str]


def save_orbax(
    directory: Path, source: Any, *, metadata: Mapping[str, Any] | None = None, overwrite: bool = False
) -> None:
    """Writes weights as an orbax checkpoint, a directory that ``orbax.checkpoint.StandardCheckpointer`` restores.

    What it restores is ``{"params": ..., "batch_stats": ...}``, as linen's ``module.apply`` takes it. The directory is
    there whole or not at all. With several processes, the first one writes.

    Args:
      directory: to be made.
      source: a `TrainState`, of which the student is written, or weights in any form that an adapter knows.
      metadata: what JSON can hold; orbax calls it the checkpoint's custom metadata.
      overwrite: whether a checkpoint may be there already.

    Raises:
      FileExistsError: it is there, and ``overwrite`` is False; or what is there is no checkpoint of orbax.
      TypeError: a leaf is not an array.
      ValueError: an array has no elements, or lies in part on other hosts.

    >>> import tempfile, jax.numpy as jnp
    >>> directory = pathlib.Path(tempfile.mkdtemp()) / "student"
    >>> save_orbax(directory, {"params": {"w": jnp.ones(2)}}, metadata={"accuracy": 0.75})
    >>> load_orbax(directory), load_orbax_metadata(directory)["accuracy"]
    ({'params/w': array([1., 1.], dtype=float32)}, 0.75)
    """
    directory = pathlib.Path(directory).absolute()
    if overwrite and directory.is_dir() and not _is_checkpoint(directory):
        raise FileExistsError(f"{directory} is no checkpoint of orbax, and is not replaced. Choose another name.")
    arrays = tree.on_host(source)
    keys = [".".join(path) for path in arrays]  # what orbax calls an array by
    for key, array in zip(keys, arrays.values(), strict=True):
        if not array.size:
            raise ValueError(f"{key}: {array.dtype}{list(array.shape)} has no elements; orbax stores no such array.")
        if keys.count(key) > 1:
            raise ValueError(f"{key}: orbax has one array for a name, and here are two. Rename a module with a dot.")
    if jax.process_index():
        return
    # One process writes, and must not wait for the others as orbax would have it do.
    alone = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="jaxkd_weights"
    )
    beside = {"producer": tree.producer(), **(metadata or {})}
    with (
        replacing(directory, overwrite=overwrite) as temporary,
        ocp.StandardCheckpointer(multiprocessing_options=alone) as checkpointer,
    ):
        checkpointer.save(temporary, tree.nest(arrays), custom_metadata=beside)
        checkpointer.wait_until_finished()


def load_orbax(directory: Path) -> dict[str, np.ndarray]:
    """The arrays in a directory that orbax wrote, on this host whatever devices they were on.

    Args:
      directory: of one checkpoint: written by `save_orbax`, by a ``StandardCheckpointer`` or ``PyTreeCheckpointer``, or
        one item of a ``CheckpointManager``'s step, such as ``run/100/default``.

    Returns:
      Names to arrays: the path to each, its parts joined by ``/``.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: it holds no checkpoint, or one that is damaged; the message names checkpoints below it.
    """
    arrays = _read(pathlib.Path(directory).absolute())
    return {"/".join(path): array for path, array in arrays.items()}


def load_orbax_metadata(directory: Path) -> dict[str, Any]:
    """What was given to `save_orbax` as metadata, or to orbax as custom metadata.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: it holds no checkpoint.
    """
    directory = pathlib.Path(directory).absolute()
    _expect_checkpoint(directory)
    with ocp.StandardCheckpointer() as checkpointer:
        return dict(checkpointer.metadata(directory).custom_metadata or {})


def load_run(directory: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """The student's weights in the directory of a run, as `jaxkd.training.fit` wrote it.

    Nothing is written, so the run may still be going on; nothing else of the run is read. The checkpoint is verified
    first.

    Args:
      directory: of the run, or of its checkpoints.
      step: which checkpoint, such as ``training.Checkpoints(directory).best()``; by default the last good one, with a
        warning if later ones are damaged.

    Returns:
      Names to arrays, as from `load_orbax`.

    Raises:
      FileNotFoundError: there is no such directory.
      ValueError: there is no checkpoint in it, not of this step, or it is damaged; the message lists the steps there
        are.
    """
    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: there is no such directory.")
    below = directory / "checkpoints"
    root = below if below.is_dir() else directory
    with Checkpoints(root) as checkpoints:
        step = _good_step(checkpoints, step)
    state = root / str(step) / "state"
    arrays = _read(state, item="student")
    named = {}
    for (_, kind, *rest), array in arrays.items():
        # In a checkpoint of a run, a slash, a dot and a percent sign within a part of a name are written as in URLs.
        path = [urllib.parse.unquote(part) for part in rest]
        named["/".join([kind, *path] if kind == "params" else path)] = array
    return named


def _good_step(checkpoints: Checkpoints, step: int | None) -> int:
    root, steps = checkpoints.directory, checkpoints.steps()
    if not steps:
        raise ValueError(f"{root}: expected checkpoints of a run, in folders with a step for a name; there is none.")
    if step is not None and step not in steps:
        raise ValueError(f"{root}: there is no checkpoint of step {step}; there are {list(steps)}.")
    for candidate in reversed(steps) if step is None else (step,):
        if not (problems := checkpoints.damage(candidate)):
            return candidate
        message = f"{root / str(candidate)}: this checkpoint is damaged: {'; '.join(problems[:5])}."
        if candidate in (step, steps[0]):
            raise ValueError(f"{message} There are those of steps {list(steps)}.")
        warnings.warn(f"{message} The one before it is read.", stacklevel=3)
    raise AssertionError  # the last candidate was returned or raised


def _read(directory: pathlib.Path, item: str | None = None) -> dict[tuple[str, ...], np.ndarray]:
    """All arrays of a checkpoint, or those under one name at its top, by the path to each."""
    _expect_checkpoint(directory)
    with ocp.PyTreeCheckpointer() as checkpointer:
        found = checkpointer.metadata(directory).item_metadata
        described = found.tree if hasattr(found, "tree") else found
        if item is not None:
            if item not in described:
                raise ValueError(f"{directory}: expected {item!r} in it, got {sorted(described)}.")
            described = {item: described[item]}
        # Without this, orbax would look for the devices that the arrays were on.
        template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), described)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described)
        args = ocp.args.PyTreeRestore(item=template, restore_args=as_numpy, partial_restore=True)
        try:
            arrays = checkpointer.restore(directory, args=args)
        except Exception as error:  # orbax, tensorstore and JSON each have their own for a damaged file
            raise ValueError(f"{directory}: orbax cannot read this checkpoint: {error}") from error
    return tree.paths(arrays)


def _is_checkpoint(directory: pathlib.Path) -> bool:
    return (directory / "_METADATA").is_file()


def _expect_checkpoint(directory: pathlib.Path) -> None:
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: there is no such directory.")
    if not _is_checkpoint(directory):
        below = sorted(str(found.parent.relative_to(directory)) for found in directory.glob("*/**/_METADATA"))
        hint = f"There are checkpoints below it: {', '.join(below[:10])}." if below else "It has no file _METADATA."
        raise ValueError(f"{directory}: expected a checkpoint of orbax. {hint}")
