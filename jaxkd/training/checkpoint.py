"""Checkpoints: a whole `TrainState` and what the host knows beside it, under one step number, with orbax.

    <directory>/<step>/state        the arrays, as a nested dict of names that any orbax reader can open
    <directory>/<step>/extra.json   what the caller gave, and the name, dtype and shape of every array
    <directory>/<step>/SHA256SUMS   what each file should hold

All three are written into ``<step>.unfinished``, which is renamed when everything is there: whenever the process dies,
a directory with a number for its name was whole once. What it holds is compared with the list before it is believed.
Containers are not stored: names are, and the state that is being restored into says what they are leaves of.
"""

from __future__ import annotations

import json
import os
import pathlib
import shutil
import warnings
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]

from jaxkd.training import digests, disk, hosts, leaves
from jaxkd.types import PyTree

__all__ = ["CheckpointError", "Checkpoints", "Restored"]

_FORMAT = 2
_BESIDE = "extra.json"
_NOTHING, _FAILED = -1, -2


class CheckpointError(ValueError):
    """A checkpoint is not there, is damaged, is of another state, or could not be written."""


class Restored(NamedTuple):
    """What `Checkpoints.restore` found.

    Attributes:
      step: under which it was saved.
      state: the pytree, in the structure, and on the devices, of the target.
      extra: what was saved beside it.
    """

    step: int
    state: PyTree
    extra: dict[str, Any]


class Checkpoints:
    """The checkpoints in one directory: the last few, and the best one that each of them knows.

    Every process of a run makes one and calls it at the same time; orbax sees to who writes what. Saving returns
    when the checkpoint is on disk: the arrays of a state are donated to the next step, and must not be read later.

    What is read is verified first. A damaged checkpoint is reported, and never deleted: `restore` goes back to the one
    before it, and `recover`, with which a run goes on, also renames it, to ``<step>.corrupt``.

    >>> import tempfile
    >>> with Checkpoints(tempfile.mkdtemp(), keep=1) as checkpoints:
    ...     for step in (1, 2, 3):
    ...         checkpoints.save(step, {"w": jnp.full(2, step)}, {"note": f"after {step}"}, best=1)
    ...     restored = checkpoints.restore({"w": jnp.zeros(2, int)})
    ...     checkpoints.steps(), restored.step, restored.state["w"].tolist(), restored.extra
    ((1, 3), 3, [3, 3], {'note': 'after 3'})

    Attributes:
      directory: where they are.
    """

    def __init__(self, directory: str | os.PathLike[str], *, keep: int | None = 3) -> None:
        """Opens a directory, and makes it if it is not there.

        Args:
          directory: of nothing but these checkpoints.
          keep: how many of the last ones stay, and with each the best one that it names; None for all.

        Raises:
          ValueError: ``keep`` is not positive.
        """
        if keep is not None and keep < 1:
            raise ValueError(f"keep: expected at least 1 checkpoint, or None for all, got {keep}.")
        self.directory = pathlib.Path(directory).absolute()
        self.directory.mkdir(parents=True, exist_ok=True)
        self._keep = keep
        self._orbax = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
        self._whole: set[int] = set()  # saved or verified by this process
        self._best_of: dict[int, int | None] = {}

    def steps(self) -> tuple[int, ...]:
        """The steps of all checkpoints, ascending. They are not verified: `damage` does that."""
        return tuple(sorted(int(path.name) for path in self.directory.iterdir() if path.name.isdigit()))

    def latest(self) -> int | None:
        """The last step, or None if there is no checkpoint."""
        return max(self.steps(), default=None)

    def damage(self, step: int) -> list[str]:
        """What is wrong with the files of a checkpoint.

        Args:
          step: which one. One that this object has saved or verified is not read again.

        Returns:
          A line for each bad file; nothing if all of them are as they were written.
        """
        problems = [] if step in self._whole else digests.find_damage(self.directory / str(step))
        if not problems:
            self._whole.add(step)
        return problems

    def save(
        self, step: int, state: PyTree, extra: Mapping[str, Any] | None = None, *, best: int | None = None
    ) -> None:
        """Saves a state. If there is a checkpoint of this step already, nothing happens.

        Args:
          step: the number of updates made.
          state: a pytree of arrays, typed PRNG keys among them.
          extra: what JSON can hold.
          best: the step of the best checkpoint so far, this one's or an older one's. It stays as long as this one.

        Raises:
          ValueError: two leaves of the state have one name.
          TypeError: there is something in ``extra`` that JSON cannot hold.
          CheckpointError: it could not be written, because the disk is full for instance; what was there still is.
        """
        if step in self.steps() and not self.damage(step):
            return
        arrays, implementations = {}, {}
        for name, leaf in leaves.named(state).items():
            if leaves.is_key(leaf):
                implementations[name] = str(jax.random.key_impl(leaf))
                leaf = jax.random.key_data(leaf)
            if np.size(leaf):  # orbax stores no empty arrays; their shape says everything
                arrays[name] = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        beside = {
            "format": _FORMAT,
            "leaves": leaves.manifest(state),
            "keys": implementations,
            "best": best,
            "extra": dict(extra or {}),
        }
        text = json.dumps(beside)  # what is not JSON is refused here, before anything is written
        try:
            self._write(step, arrays, text)
        except (OSError, RuntimeError, ValueError) as error:  # whatever tensorstore makes of a full disk
            self._clear()
            raise CheckpointError(
                f"the checkpoint of step {step} could not be written to {self.directory}: {disk.reason(error)}. What "
                f"was there is unharmed, the checkpoints of steps {self.steps()} among it. Once that is mended, for "
                "instance by making room on the disk, the same command goes on from the last of them."
            ) from error
        self._whole.add(step)
        self._best_of[step] = best
        self._prune()

    def recover(self) -> int | None:
        """The last checkpoint from which a run goes on exactly, as the whole run's owner sees it.

        A checkpoint that is damaged is renamed to ``<step>.corrupt`` and reported by a warning; the one before it is
        taken. So is it if the best one that it names is damaged: the run will make that again. Only if there is no
        such older one, the best is given up.

        Returns:
          Its step, or None if there was never a checkpoint.

        Raises:
          CheckpointError: there are checkpoints, and all of them are damaged. Nothing was renamed.
        """
        error: CheckpointError | None = None
        chosen = best = _NOTHING
        if jax.process_index() == 0:
            try:
                chosen, best = self._recover()
            except CheckpointError as caught:
                error, chosen = caught, _FAILED
        chosen, best = hosts.from_first(chosen), hosts.from_first(best)
        if error is not None:
            raise error
        if chosen == _FAILED:
            raise CheckpointError(f"all checkpoints in {self.directory} are damaged; process 0 says how.")
        self._whole |= {chosen, best} - {_NOTHING}
        return None if chosen == _NOTHING else chosen

    def extra(self, step: int | None = None) -> dict[str, Any]:
        """What was saved beside a state, without reading the state.

        Args:
          step: which checkpoint; the last good one by default.

        Returns:
          The ``extra`` of `save`.

        Raises:
          CheckpointError: there is no such checkpoint, or it is damaged.
        """
        return self._beside(self._choose(step))["extra"]

    def best(self) -> int | None:
        """The step that the last checkpoint names as the best, or None."""
        return None if self.latest() is None else self._beside(self._choose(None))["best"]

    def restore(self, target: PyTree, step: int | None = None) -> Restored:
        """Reads a checkpoint into the structure of a state.

        Args:
          target: a state of this structure: arrays, or `jax.ShapeDtypeStruct` with shardings. Its values are not read.
          step: which checkpoint; the last good one by default, with a warning if later ones are damaged.

        Returns:
          The state, with the dtypes, shapes and devices of the target.

        Raises:
          CheckpointError: there is no such checkpoint, it is damaged, or its arrays are not those of the target; the
            message names what is missing, what is too much and what has another shape or dtype.

        >>> import tempfile
        >>> checkpoints = Checkpoints(tempfile.mkdtemp())
        >>> checkpoints.save(1, {"w": jnp.zeros((2, 3))})
        >>> checkpoints.restore({"w": jnp.zeros((2, 4)), "b": jnp.zeros(4)})  # doctest: +IGNORE_EXCEPTION_DETAIL
        Traceback (most recent call last):
        jaxkd.training.checkpoint.CheckpointError: the checkpoint of step 1 is not one of this state.
          b: missing in the checkpoint; the state has float32[4]
          w: float32[2,3] in the checkpoint, float32[2,4] in the state
        """
        step = self._choose(step)
        beside, wanted = self._beside(step), leaves.named(target)
        if problems := leaves.differences(beside["leaves"], leaves.manifest(target)):
            more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
            raise CheckpointError(
                f"the checkpoint of step {step} is not one of this state.\n  "
                + "\n  ".join(problems[:20] + more)
                + f"\nMake the models, objective and optimizer as they were for {self.directory}, or choose another "
                "directory."
            )
        templates = {name: leaves.template(leaf) for name, leaf in wanted.items()}
        read = leaves.nest({name: template for name, template in templates.items() if np.prod(template.shape)})
        items = ocp.args.Composite(state=ocp.args.StandardRestore(read))
        arrays = leaves.flat(self._orbax.restore(self.directory / str(step), args=items).state) if read else {}
        restored = []
        for name, leaf in wanted.items():
            empty = np.zeros(templates[name].shape, templates[name].dtype)
            restored.append(_rebuild(leaf, arrays.get(name, empty), beside["keys"].get(name)))
        return Restored(step, jax.tree.unflatten(jax.tree.structure(target), restored), beside["extra"])

    def close(self) -> None:
        """Lets the directory go."""
        self._orbax.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _write(self, step: int, arrays: Mapping[str, Any], text: str) -> None:
        unfinished, final = self.directory / f"{step}.unfinished", self.directory / str(step)
        self._clear()
        hosts.barrier("jaxkd checkpoints: cleared")
        items = ocp.args.Composite(state=ocp.args.StandardSave(leaves.nest(arrays)))
        self._orbax.save(unfinished, args=items, force=True)
        hosts.barrier("jaxkd checkpoints: written")
        if jax.process_index() == 0:
            (unfinished / _BESIDE).write_text(text)
            digests.write_digests(unfinished)
            if final.exists():  # damaged, or `save` would not have come here
                self._set_aside(step)
            unfinished.rename(final)
            disk.sync(self.directory)
        hosts.barrier("jaxkd checkpoints: renamed")

    def _clear(self) -> None:
        """Removes what a process left that died while it saved or deleted, and what a failed save left."""
        if jax.process_index() == 0:
            for pattern in ("*.unfinished*", "*.deleted"):
                for path in self.directory.glob(pattern):
                    shutil.rmtree(path, ignore_errors=True)

    def _prune(self) -> None:
        if self._keep is not None and jax.process_index() == 0:
            steps = self.steps()
            last = steps[-self._keep :]
            for step in set(steps) - {*last, *map(self._best_named_by, last)}:
                # Under another name first: half a checkpoint must not look like one.
                deleted = self.directory / f"{step}.deleted"
                (self.directory / str(step)).rename(deleted)
                shutil.rmtree(deleted, ignore_errors=True)
        hosts.barrier("jaxkd checkpoints: pruned")

    def _set_aside(self, step: int) -> pathlib.Path:
        path = self.directory / str(step)
        names = (f"{step}.corrupt{'' if i == 0 else f'.{i}'}" for i in range(1000))
        aside = next(self.directory / name for name in names if not (self.directory / name).exists())
        return path.rename(aside)

    def _recover(self) -> tuple[int, int]:
        steps = self.steps()
        damaged: dict[int, list[str]] = {}

        def good(step: int) -> bool:
            if step in steps and step not in damaged and (problems := self.damage(step)):
                damaged[step] = problems
            return step in steps and step not in damaged

        last = _NOTHING
        for step in reversed(steps):
            if good(step):
                best = self._best_named_by(step)
                last = step if last == _NOTHING else last
                if best is None or good(best):
                    break
        else:
            # None that is good names a good best one, or none is good at all.
            step, best = last, None
        if step == _NOTHING and steps:
            raise CheckpointError(self._nothing_good(damaged))
        renamed = {number: self._set_aside(number) for number in sorted(damaged)}
        for number, path in renamed.items():
            warnings.warn(
                f"the checkpoint of step {number} is damaged: {_listed(damaged[number])}. It is set aside as {path}; "
                f"the run goes on from the checkpoint of step {step}.",
                stacklevel=4,
            )
        if step != _NOTHING and best is None and (lost := self._best_named_by(step)) is not None:
            warnings.warn(
                f"the best checkpoint so far, of step {lost}, is damaged or missing, and there is no older one to go "
                f"back to: its state is lost. The run goes on from the checkpoint of step {step}.",
                stacklevel=4,
            )
        return step, _NOTHING if best is None else best

    def _choose(self, step: int | None) -> int:
        found = self.steps()
        if not found:
            raise CheckpointError(f"there is no checkpoint in {self.directory}.")
        if step is not None:
            if step not in found:
                raise CheckpointError(f"there is no checkpoint of step {step} in {self.directory}; there are {found}.")
            if problems := self.damage(step):
                path = self.directory / str(step)
                raise CheckpointError(f"the checkpoint of step {step}, {path}, is damaged: {_listed(problems)}.")
            return step
        damaged: dict[int, list[str]] = {}
        for step in reversed(found):
            if not (problems := self.damage(step)):
                break
            damaged[step] = problems
        else:
            raise CheckpointError(self._nothing_good(damaged))
        for number, problems in damaged.items():
            warnings.warn(
                f"the checkpoint of step {number}, {self.directory / str(number)}, is damaged: {_listed(problems)}. "
                f"That of step {step} is read instead.",
                stacklevel=3,
            )
        return step

    def _nothing_good(self, damaged: Mapping[int, list[str]]) -> str:
        lines = [f"{self.directory / str(step)}: {_listed(damaged[step])}" for step in sorted(damaged)]
        return (
            f"no checkpoint in {self.directory} is good:\n  " + "\n  ".join(lines) + "\nNothing was deleted. Bring a "
            "good copy back, move these away to begin anew, or choose another directory."
        )

    def _beside(self, step: int) -> dict[str, Any]:
        path = self.directory / str(step) / _BESIDE
        beside = json.loads(path.read_text())
        if not isinstance(beside, dict) or beside.get("format") != _FORMAT:
            found = beside.get("format") if isinstance(beside, dict) else beside
            raise CheckpointError(
                f"{path}: expected a checkpoint of jaxkd in format {_FORMAT}, got {found!r}. It was written by another "
                "version or by something else."
            )
        return beside

    def _best_named_by(self, step: int) -> int | None:
        if step not in self._best_of:
            self._best_of[step] = None if self.damage(step) else self._beside(step)["best"]
        return self._best_of[step]


def _rebuild(leaf: Any, array: Any, implementation: str | None) -> Any:
    # A host array becomes an uncommitted one, as the target's was, free to follow what it is used with.
    array = array if isinstance(array, jax.Array) else jnp.array(array)
    if implementation is None:
        return array
    key = jax.random.wrap_key_data(array, impl=implementation)
    if key.dtype != leaf.dtype:
        raise CheckpointError(f"a PRNG key of {implementation!r} was stored; the state has one of {leaf.dtype}.")
    return key


def _listed(problems: list[str]) -> str:
    return "; ".join(problems[:5]) + (f"; and {len(problems) - 5} more files" if len(problems) > 5 else "")
