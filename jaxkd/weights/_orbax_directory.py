"""Weights as a plain orbax directory, and from any directory that orbax wrote."""

from __future__ import annotations

import os
import pathlib
import urllib.parse
import warnings
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxkd._core import digests, files, tree_paths
from jaxkd._core.files import replacing
from jaxkd.training import Checkpoints
from jaxkd.weights import _tree

Path = str | os.PathLike[str]


def save_orbax(
    directory: Path, source: Any, *, metadata: Mapping[str, Any] | None = None, overwrite: bool = False
) -> None:
    """Writes weights as an orbax checkpoint that needs no jaxkd to be read.

    ``orbax.checkpoint.StandardCheckpointer`` restores ``{"params": ..., "batch_stats": ...}``, as linen's
    ``module.apply`` takes it. The directory is written completely or not at all. With several processes, the first
    one writes.

    Args:
      directory: directory to create.
      source: a `TrainState`, whose student is written, or weights in any form that an adapter accepts.
      metadata: JSON-serializable mapping, stored as orbax's custom metadata.
      overwrite: replace an existing checkpoint.

    Raises:
      FileExistsError: the directory exists and ``overwrite`` is False, or it is not an orbax checkpoint.
      TypeError: a leaf is not an array.
      ValueError: an array has no elements, or another host holds a part of it; or orbax would take the path for a
        pattern.

    >>> import tempfile, jax.numpy as jnp
    >>> directory = pathlib.Path(tempfile.mkdtemp()) / "student"
    >>> save_orbax(directory, {"params": {"w": jnp.ones(2)}}, metadata={"accuracy": 0.75})
    >>> load_orbax(directory), load_orbax_metadata(directory)["accuracy"]
    ({'params/w': array([1., 1.], dtype=float32)}, 0.75)
    """
    directory = pathlib.Path(directory).absolute()
    files.check_literal(directory)
    if overwrite and directory.is_dir() and not _is_checkpoint(directory):
        raise FileExistsError(
            f"{directory}: expected an orbax checkpoint to replace, got another directory. Choose another name."
        )
    arrays = _tree.on_host(source)
    keys = [".".join(path) for path in arrays]  # the names under which orbax stores the arrays
    for key, array in zip(keys, arrays.values(), strict=True):
        if not array.size:
            raise ValueError(f"{key}: {array.dtype}{list(array.shape)} has no elements, and orbax cannot store it.")
        if keys.count(key) > 1:
            raise ValueError(f"{key}: orbax would give two arrays this name. Rename the module with a dot in its name.")
    if jax.process_index():
        return
    ocp = files.orbax_checkpoint()
    # This process alone writes: by default orbax would wait for the others at a barrier.
    single_process = ocp.options.MultiprocessingOptions(
        primary_host=0, active_processes={0}, barrier_sync_key_prefix="jaxkd_weights"
    )
    custom_metadata = {"producer": _tree.producer(), **(metadata or {})}
    with (
        replacing(directory, overwrite=overwrite) as temporary,
        ocp.StandardCheckpointer(multiprocessing_options=single_process) as checkpointer,
    ):
        checkpointer.save(temporary, tree_paths.nest(arrays), custom_metadata=custom_metadata)
        checkpointer.wait_until_finished()


def load_orbax(directory: Path) -> dict[str, np.ndarray]:
    """Reads the arrays of an orbax checkpoint as NumPy arrays, by their paths.

    A name is a path joined by ``/``. The devices that the arrays were on need not exist.

    Args:
      directory: one checkpoint: written by `save_orbax`, by a ``StandardCheckpointer`` or ``PyTreeCheckpointer``, or
        one item of a ``CheckpointManager``'s step, such as ``run/100/default``.

    Raises:
      FileNotFoundError: the directory does not exist.
      ValueError: it holds no checkpoint, or a damaged one; the message names checkpoints in its subdirectories.
    """
    arrays = _read(pathlib.Path(directory).absolute())
    return {"/".join(path): array for path, array in arrays.items()}


def load_orbax_metadata(directory: Path) -> dict[str, Any]:
    """Reads the custom metadata of an orbax checkpoint, such as `save_orbax` wrote.

    Raises:
      FileNotFoundError: the directory does not exist.
      ValueError: it holds no checkpoint.
    """
    directory = pathlib.Path(directory).absolute()
    _expect_checkpoint(directory)
    ocp = files.orbax_checkpoint()
    with ocp.StandardCheckpointer() as checkpointer:
        return dict(checkpointer.metadata(directory).custom_metadata or {})


def load_run(directory: Path, step: int | None = None) -> dict[str, np.ndarray]:
    """Reads the student's weights from a directory that `jaxkd.training.fit` wrote.

    Names are those of `load_orbax`. Only the student is read, and nothing is written, so the run may still be active:
    if it removes the checkpoint meanwhile, the next one is read. The checkpoint is verified first.

    Args:
      directory: directory of the run, or of its checkpoints.
      step: step of the checkpoint, such as ``training.Checkpoints(directory).best()``; by default that of the last
        undamaged one, with a warning if later ones are damaged.

    Raises:
      FileNotFoundError: the directory does not exist.
      ValueError: it holds no checkpoint, or none of this step, or a damaged one; the message lists the existing steps.
    """
    directory = pathlib.Path(directory).absolute()
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: expected a directory, found none.")
    below = directory / "checkpoints"
    root = below if below.is_dir() else directory
    with Checkpoints(root) as checkpoints:
        arrays = digests.read_whole(
            lambda: root / str(_good_step(checkpoints, step)), lambda folder: _read(folder / "state", item="student")
        )
    named = {}
    for (_, kind, *rest), array in arrays.items():
        # A run's checkpoint percent-encodes slashes, dots and percent signs within a part of a name.
        path = [urllib.parse.unquote(part) for part in rest]
        named["/".join([kind, *path] if kind == "params" else path)] = array
    return named


def _good_step(checkpoints: Checkpoints, step: int | None) -> int:
    root, steps = checkpoints.directory, checkpoints.steps()
    if not steps:
        raise ValueError(f"{root}: expected checkpoints of a run, in folders named by their step; found none.")
    if step is not None and step not in steps:
        raise ValueError(f"{root}: expected a checkpoint of step {step}, found steps {list(steps)}.")
    for candidate in reversed(steps) if step is None else (step,):
        if not (problems := checkpoints.damage(candidate)):
            return candidate
        digests.expect_present(root / str(candidate))
        message = f"{root / str(candidate)}: this checkpoint is damaged: {'; '.join(problems[:5])}."
        if candidate in (step, steps[0]):
            raise ValueError(f"{message} Existing steps: {list(steps)}.")
        warnings.warn(f"{message} Reading the previous one.", stacklevel=5)
    raise AssertionError  # the last candidate was returned, or raised


def _read(directory: pathlib.Path, item: str | None = None) -> dict[tuple[str, ...], np.ndarray]:
    """Returns the arrays of a checkpoint, or of one top-level item, by their paths."""
    _expect_checkpoint(directory)
    files.check_literal(directory)
    ocp = files.orbax_checkpoint()
    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(directory).item_metadata
        described = saved.tree if hasattr(saved, "tree") else saved
        if described is None:
            raise ValueError(f"{directory}: orbax cannot read this checkpoint: it does not describe its arrays.")
        if item is not None:
            if item not in described:
                raise ValueError(f"{directory}: expected an item {item!r}, got {sorted(described)}.")
            described = {item: described[item]}
        # NumPy restore arguments: by default orbax restores to the devices that the arrays were saved from.
        template = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), described)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), described)
        args = ocp.args.PyTreeRestore(item=template, restore_args=as_numpy, partial_restore=True)
        try:
            arrays = checkpointer.restore(directory, args=args)
        except Exception as error:  # orbax, tensorstore and JSON raise different errors for a damaged file
            raise ValueError(f"{directory}: orbax cannot read this checkpoint: {error}") from error
    return tree_paths.by_parts(arrays)


def _is_checkpoint(directory: pathlib.Path) -> bool:
    return (directory / "_METADATA").is_file()


def _expect_checkpoint(directory: pathlib.Path) -> None:
    if not directory.is_dir():
        raise FileNotFoundError(f"{directory}: expected a directory, found none.")
    if not _is_checkpoint(directory):
        below = sorted(str(found.parent.relative_to(directory)) for found in directory.glob("*/**/_METADATA"))
        hint = f"Its subdirectories {', '.join(below[:10])} are." if below else "It has no file _METADATA."
        raise ValueError(f"{directory}: expected an orbax checkpoint, got another directory. {hint}")
