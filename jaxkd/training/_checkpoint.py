"""Checkpoints of a `TrainState` and of the caller's data, stored with orbax.

    <directory>/<step>/state        arrays, as a nested dict of names that any orbax reader can open
    <directory>/<step>/extra.json   data of the caller, and the name, dtype and shape of every array
    <directory>/<step>/SHA256SUMS   digest of every file

A save is atomic: all files are written into ``<step>.unfinished``, and the folder is renamed when it is complete.
Whenever the process dies, a folder named by a number was complete once. Disks and copies may damage it afterwards, so
its files are compared with their digests before anything is read from it. Containers are not stored: the state that a
checkpoint is restored into supplies the tree, and arrays are found in it by name.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import digests, files, multihost, tree_paths
from jaxkd.types import PyTree

_FORMAT = 2
_EXTRA = "extra.json"
_NONE, _FAILED = -1, -2  # in place of a step, where processes exchange integers


class CheckpointError(ValueError):
    """A checkpoint is missing, damaged, of another state, or could not be written."""


class Restored(NamedTuple):
    """Result of `Checkpoints.restore`.

    Attributes:
      step: step under which the state was saved.
      state: pytree with the structure and the devices of the target.
      extra: data that the caller saved with the state.
    """

    step: int
    state: PyTree
    extra: dict[str, Any]


class Checkpoints:
    """Checkpoints in one directory: the last few, and the best one that each names.

    All processes of a run construct it and call its methods at the same time; orbax divides the writing among them.
    A save returns when the checkpoint is on disk: the next step donates the arrays of the state, so that nothing may
    read them later.

    Checkpoints are verified before they are read. A damaged one is reported and never deleted: `restore` falls back to
    the one before it, and `recover`, from which a run resumes, also renames it to ``<step>.corrupt``. A reader beside a
    run that is still active, which removes old checkpoints, reads another one instead.

    >>> import tempfile
    >>> with Checkpoints(tempfile.mkdtemp(), keep=1) as checkpoints:
    ...     for step in (1, 2, 3):
    ...         checkpoints.save(step, {"w": jnp.full(2, step)}, {"note": f"after {step}"}, best=1)
    ...     restored = checkpoints.restore({"w": jnp.zeros(2, int)})
    ...     checkpoints.steps(), restored.step, restored.state["w"].tolist(), restored.extra
    ((1, 3), 3, [3, 3], {'note': 'after 3'})

    Attributes:
      directory: folder of the checkpoints.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int | None = 3) -> None:
        """Opens a directory, and creates it if it is missing.

        Args:
          directory: folder that holds nothing but these checkpoints.
          keep: number of last checkpoints to keep, each with the best one that it names; None for all.

        Raises:
          ValueError: ``keep`` is not positive, or orbax would take the path for a pattern.
        """
        if keep is not None and keep < 1:
            raise ValueError(f"keep: expected at least 1 checkpoint, or None for all, got {keep}.")
        self.directory = pathlib.Path(directory).absolute()
        files.check_literal(self.directory)
        self.directory.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._ocp = files.orbax_checkpoint()
        self._orbax = self._ocp.Checkpointer(self._ocp.CompositeCheckpointHandler())
        self._verified: set[int] = set()  # steps that this process has saved or verified
        self._best_of: dict[int, int | None] = {}

    def steps(self) -> tuple[int, ...]:
        """Returns the steps of all checkpoints in ascending order, without verifying them."""
        return tuple(sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit()))

    def latest(self) -> int | None:
        """Returns the last step, or None if there is no checkpoint."""
        return max(self.steps(), default=None)

    def damage(self, step: int) -> list[str]:
        """Returns one line for each damaged file of a checkpoint.

        A checkpoint that this object has saved or verified is not read again.
        """
        problems = [] if step in self._verified else digests.find_damage(self.directory / str(step))
        if not problems:
            self._verified.add(step)
        return problems

    def save(
        self, step: int, state: PyTree, extra: Mapping[str, Any] | None = None, *, best: int | None = None
    ) -> None:
        """Saves a state, unless there is an intact checkpoint of this step already.

        Args:
          step: number of updates made.
          state: pytree of arrays, which may include typed PRNG keys.
          extra: data that JSON can hold, which `extra` and `restore` return.
          best: step of the best checkpoint so far, this or an older one, which is kept as long as this one.

        Raises:
          ValueError: two leaves of the state have the same name.
          TypeError: ``extra`` holds something that JSON cannot hold.
          CheckpointError: the checkpoint could not be written, for instance because the disk is full; existing
            checkpoints are intact.
        """
        if step in self.steps() and not self.damage(step):
            return
        arrays, implementations = {}, {}
        for name, leaf in tree_paths.named(state).items():
            if tree_paths.is_key(leaf):
                implementations[name] = str(jax.random.key_impl(leaf))
                leaf = jax.random.key_data(leaf)
            if np.size(leaf):  # orbax cannot store empty arrays, and the manifest holds their shapes
                arrays[name] = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        description = {
            "format": _FORMAT,
            "leaves": tree_paths.manifest(state),
            "keys": implementations,
            "best": best,
            "extra": dict(extra or {}),
        }
        text = json.dumps(description)  # raises before anything is written
        try:
            self._write(step, arrays, text)
        except (OSError, RuntimeError, ValueError) as error:  # tensorstore reports a full disk as any of these
            self._clear()
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.directory}: {files.reason(error)}. The "
                f"existing checkpoints, of steps {self.steps()}, are intact. Remove the cause, for instance by making "
                "room on the disk; the same command then resumes from the last of them."
            ) from error
        self._verified.add(step)
        self._best_of[step] = best
        self._prune()

    def recover(self) -> int | None:
        """Finds the checkpoint that a run resumes from, and sets damaged ones aside.

        Damaged checkpoints are renamed to ``<step>.corrupt`` and reported by a warning. The last intact checkpoint
        whose best one is intact too is chosen: if the best one is damaged, a run that starts from before it makes it
        again. Only if there is no such checkpoint, the best state is given up. Only the owner of the run, who holds
        its lock, may call this.

        Returns:
          Step of the checkpoint, or None if there are no checkpoints.

        Raises:
          CheckpointError: all checkpoints are damaged. None has been renamed.
        """
        # The first process decides, and the others follow: each looking by itself could see another state of a network
        # file system. An error is sent too, so that no process waits for one that has raised.
        error: CheckpointError | None = None
        chosen = best = _NONE
        if jax.process_index() == 0:
            try:
                chosen, best = self._recover()
            except CheckpointError as caught:
                error, chosen = caught, _FAILED
        chosen, best = multihost.from_first(chosen), multihost.from_first(best)
        if error is not None:
            raise error
        if chosen == _FAILED:
            raise CheckpointError(f"all checkpoints in {self.directory} are damaged; see the error of process 0.")
        self._verified |= {chosen, best} - {_NONE}
        return None if chosen == _NONE else chosen

    def extra(self, step: int | None = None) -> dict[str, Any]:
        """Returns the ``extra`` of a checkpoint, by default of the last intact one.

        The state is not read.

        Raises:
          CheckpointError: there is no such checkpoint, or it is damaged.
        """
        extra: dict[str, Any] = self._read(step, self._description)["extra"]
        return extra

    def best(self) -> int | None:
        """Returns the step that the last checkpoint names as the best, or None."""
        return None if self.latest() is None else self._read(None, self._description)["best"]

    def restore(self, target: PyTree, step: int | None = None) -> Restored:
        """Reads a checkpoint into the structure of a state.

        Args:
          target: a state of this structure: arrays, or `jax.ShapeDtypeStruct` with shardings. Its values are not read.
          step: step of the checkpoint; the last intact one by default, with a warning if later ones are damaged.

        Raises:
          CheckpointError: there is no such checkpoint, it is damaged, or its arrays are not those of the target; the
            message lists the arrays that are missing, superfluous, or of another shape or dtype.

        >>> import tempfile
        >>> checkpoints = Checkpoints(tempfile.mkdtemp())
        >>> checkpoints.save(1, {"w": jnp.zeros((2, 3))})
        >>> checkpoints.restore({"w": jnp.zeros((2, 4)), "b": jnp.zeros(4)})  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        jaxkd.training.CheckpointError: the checkpoint of step 1 holds a different state.
          b: missing in the checkpoint; the state has float32[4]
          w: float32[2,3] in the checkpoint, float32[2,4] in the state
        """
        restored: Restored = self._read(step, lambda chosen: self._restore(target, chosen))
        return restored

    def _restore(self, target: PyTree, step: int) -> Restored:
        description, wanted = self._description(step), tree_paths.named(target)
        if problems := tree_paths.differences(description["leaves"], tree_paths.manifest(target)):
            more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
            raise CheckpointError(
                f"the checkpoint of step {step} holds a different state.\n  "
                + "\n  ".join(problems[:20] + more)
                + f"\nBuild the same models, objective and optimizer as for {self.directory}, or choose another "
                "directory."
            )
        templates = {name: tree_paths.template(leaf) for name, leaf in wanted.items()}
        read = tree_paths.nest({name: template for name, template in templates.items() if np.prod(template.shape)})
        items = self._ocp.args.Composite(state=self._ocp.args.StandardRestore(read))
        arrays = tree_paths.flat(self._orbax.restore(self.directory / str(step), args=items).state) if read else {}
        restored = []
        for name, leaf in wanted.items():
            empty = np.zeros(templates[name].shape, templates[name].dtype)
            restored.append(_rebuild(leaf, arrays.get(name, empty), description["keys"].get(name)))
        return Restored(step, jax.tree.unflatten(jax.tree.structure(target), restored), description["extra"])

    def close(self) -> None:
        """Releases orbax's resources."""
        self._orbax.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, step: int, arrays: Mapping[str, Any], text: str) -> None:
        # Barriers: no process writes before leftovers are removed, the first process computes digests only after all
        # have written, and no process continues before the rename.
        unfinished, final = self.directory / f"{step}.unfinished", self.directory / str(step)
        self._clear()
        multihost.barrier("jaxkd checkpoints: cleared")
        items = self._ocp.args.Composite(state=self._ocp.args.StandardSave(tree_paths.nest(arrays)))
        with files.quiet_loops():
            self._orbax.save(unfinished, args=items, force=True)
        multihost.barrier("jaxkd checkpoints: written")
        if jax.process_index() == 0:
            (unfinished / _EXTRA).write_text(text)
            digests.write_digests(unfinished)
            if final.exists():  # damaged, since `save` returns early for an intact one
                self._set_aside(step)
            unfinished.rename(final)
            files.sync(self.directory)
        multihost.barrier("jaxkd checkpoints: renamed")

    def _clear(self) -> None:
        """Removes folders of saves and deletions that did not complete."""
        if jax.process_index() == 0:
            for pattern in ("*.unfinished*", "*.deleted"):
                for path in self.directory.glob(pattern):
                    _remove(path)

    def _prune(self) -> None:
        if self._keep is not None and jax.process_index() == 0:
            steps = self.steps()
            last = steps[-self._keep :]
            for step in set(steps) - {*last, *map(self._best_named_by, last)}:
                # Renamed first, since a deletion that is interrupted must not leave an incomplete checkpoint.
                deleted = self.directory / f"{step}.deleted"
                (self.directory / str(step)).rename(deleted)
                _remove(deleted)
        multihost.barrier("jaxkd checkpoints: pruned")

    def _set_aside(self, step: int) -> pathlib.Path:
        path = self.directory / str(step)
        names = (f"{step}.corrupt{'' if i == 0 else f'.{i}'}" for i in range(1000))
        target = next(self.directory / name for name in names if not os.path.lexists(self.directory / name))
        return path.rename(target)

    def _recover(self) -> tuple[int, int]:
        """Returns the step to resume from and the best step; renames damaged ones."""
        steps = self.steps()
        damaged: dict[int, list[str]] = {}

        def good(step: int) -> bool:
            if step in steps and step not in damaged and (problems := self.damage(step)):
                damaged[step] = problems
            return step in steps and step not in damaged

        last = _NONE
        for step in reversed(steps):
            if good(step):
                best = self._best_named_by(step)
                last = step if last == _NONE else last
                if best is None or good(best):
                    break
        else:
            # No intact checkpoint names an intact best one; there may be no intact checkpoint at all.
            step, best = last, None
        if step == _NONE and steps:
            raise CheckpointError(self._all_damaged(damaged))
        renamed = {number: self._set_aside(number) for number in sorted(damaged)}
        for number, path in renamed.items():
            warnings.warn(
                f"the checkpoint of step {number} is damaged: {_listed(damaged[number])}. It is set aside as {path}; "
                f"the run resumes from the checkpoint of step {step}.",
                stacklevel=4,
            )
        if step != _NONE and best is None and (lost := self._best_named_by(step)) is not None:
            warnings.warn(
                f"the best checkpoint so far, of step {lost}, is damaged or missing, and no older checkpoint is left "
                f"from which to make it again: its state is lost. The run resumes from the checkpoint of step {step}.",
                stacklevel=4,
            )
        return step, _NONE if best is None else best

    def _read(self, step: int | None, read: Callable[[int], Any]) -> Any:
        """Calls a function with an intact checkpoint's step; repeats if it is removed."""
        return digests.read_whole(
            lambda: self.directory / str(self._choose(step)), lambda folder: read(int(folder.name))
        )

    def _choose(self, step: int | None) -> int:
        """Returns the step of an intact checkpoint: the given one, or by default the last."""
        steps = self.steps()
        if not steps:
            raise CheckpointError(f"there is no checkpoint in {self.directory}.")
        if step is not None:
            if step not in steps:
                raise CheckpointError(
                    f"there is no checkpoint of step {step} in {self.directory}; expected one of {steps}."
                )
            if problems := self._damage_of_present(step):
                path = self.directory / str(step)
                raise CheckpointError(f"the checkpoint of step {step}, {path}, is damaged: {_listed(problems)}.")
            return step
        damaged: dict[int, list[str]] = {}
        for step in reversed(steps):
            if not (problems := self._damage_of_present(step)):
                break
            damaged[step] = problems
        else:
            raise CheckpointError(self._all_damaged(damaged))
        for number, problems in damaged.items():
            warnings.warn(
                f"the checkpoint of step {number}, {self.directory / str(number)}, is damaged: {_listed(problems)}. "
                f"The checkpoint of step {step} is read instead.",
                stacklevel=6,
            )
        return step

    def _damage_of_present(self, step: int) -> list[str]:
        """Returns the `damage` of a checkpoint, unless a run has removed it meanwhile."""
        if problems := self.damage(step):
            digests.expect_present(self.directory / str(step))
        return problems

    def _all_damaged(self, damaged: Mapping[int, list[str]]) -> str:
        lines = [f"{self.directory / str(step)}: {_listed(damaged[step])}" for step in sorted(damaged)]
        return (
            f"all checkpoints in {self.directory} are damaged:\n  " + "\n  ".join(lines) + "\nNothing was deleted. "
            "Restore one from a copy, move these away to start from the beginning, or choose another directory."
        )

    def _description(self, step: int) -> dict[str, Any]:
        path = self.directory / str(step) / _EXTRA
        description = json.loads(path.read_text())
        if not isinstance(description, dict) or description.get("format") != _FORMAT:
            found = description.get("format") if isinstance(description, dict) else description
            raise CheckpointError(
                f"{path}: expected a checkpoint of jaxkd in format {_FORMAT}, got {found!r}. Another version of jaxkd "
                "or another program wrote it; read it with that."
            )
        return description

    def _best_named_by(self, step: int) -> int | None:
        if step not in self._best_of:
            self._best_of[step] = None if self.damage(step) else self._description(step)["best"]
        return self._best_of[step]


def _rebuild(leaf: Any, array: Any, implementation: str | None) -> Any:
    """Returns an array that was read as a leaf like the target's."""
    # A host array becomes an uncommitted one, like the target's, which JAX may move to the device of other operands.
    array = array if isinstance(array, jax.Array) else jnp.array(array)
    if implementation is None:
        return array
    key = jax.random.wrap_key_data(array, impl=implementation)
    if key.dtype != leaf.dtype:
        raise CheckpointError(f"PRNG key: expected {leaf.dtype}, that of the state, got {implementation!r}.")
    return key


def _remove(path: pathlib.Path) -> None:
    """Removes a folder, or a link to one and not what it leads to."""
    if path.is_symlink():
        path.unlink(missing_ok=True)
    else:
        shutil.rmtree(path, ignore_errors=True)


def _listed(problems: list[str]) -> str:
    return "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more files" if len(problems) > 5 else "")
