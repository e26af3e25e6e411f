"""Checkpoints: a whole `TrainState` and what the host knows beside it, under one step number, with orbax.

    <directory>/<step>/state   the arrays, as a nested dict of names that any orbax reader can open
    <directory>/<step>/extra   JSON: what the caller gave, and the name, dtype and shape of every array

Orbax writes into a temporary directory and renames it when everything is there, so a checkpoint is whole or it is not
one. Containers are not stored: names are, and the state that is being restored into says what they are leaves of.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped]
from orbax.checkpoint import checkpoint_managers

from jaxkd.types import PyTree

__all__ = ["CheckpointError", "Checkpoints", "Restored"]

_FORMAT = 1


class CheckpointError(ValueError):
    """A checkpoint is not there, or is not one of the state that it should be restored into."""


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
    """The checkpoints in one directory: the last few, and the best one.

    Every process of a run makes one and calls it at the same time; orbax sees to who writes what. Saving returns
    when the checkpoint is on disk: the arrays of a state are donated to the next step, and must not be read later.

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
          keep: how many of the last ones stay, beside the best; None for all.

        Raises:
          ValueError: ``keep`` is not positive.
        """
        if keep is not None and keep < 1:
            raise ValueError(f"keep: expected at least 1 checkpoint, or None for all, got {keep}.")
        self.directory = pathlib.Path(directory).absolute()
        self._policy = _Policy(keep)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=self._policy, cleanup_tmp_directories=True, enable_async_checkpointing=False
        )
        self._manager = ocp.CheckpointManager(self.directory, options=options)

    def steps(self) -> tuple[int, ...]:
        """The steps of all whole checkpoints, ascending."""
        return tuple(step for step in sorted(self._manager.all_steps()) if self._whole(step))

    def latest(self) -> int | None:
        """The last step, or None if there is no checkpoint."""
        return max(self.steps(), default=None)

    def save(
        self, step: int, state: PyTree, extra: Mapping[str, Any] | None = None, *, best: int | None = None
    ) -> None:
        """Saves a state. If there is a checkpoint of this step already, nothing happens.

        Args:
          step: the number of updates made.
          state: a pytree of arrays, typed PRNG keys among them.
          extra: what JSON can hold.
          best: the step of the best checkpoint so far, this one's or an older one's. It stays, however old it gets.

        Raises:
          ValueError: two leaves of the state have one name.
        """
        if step in self.steps():
            return
        if step in self._manager.all_steps():
            self._manager.delete(step)  # not whole: it would be in the way
        leaves = _named(state)
        arrays, manifest, implementations = {}, {}, {}
        for name, leaf in leaves.items():
            manifest[name] = _describe(leaf)
            if _is_key(leaf):
                implementations[name] = str(jax.random.key_impl(leaf))
                leaf = jax.random.key_data(leaf)
            if np.size(leaf):  # orbax stores no empty arrays; their shape says everything
                arrays[name] = leaf if isinstance(leaf, jax.Array) else np.asarray(leaf)
        beside = {
            "format": _FORMAT,
            "leaves": manifest,
            "keys": implementations,
            "best": best,
            "extra": dict(extra or {}),
        }
        self._policy.best = best
        items = ocp.args.Composite(state=ocp.args.StandardSave(_nest(arrays)), extra=ocp.args.JsonSave(beside))
        self._manager.save(step, args=items, force=True)

    def extra(self, step: int | None = None) -> dict[str, Any]:
        """What was saved beside a state, without reading the state.

        Args:
          step: which checkpoint; the last one by default.

        Returns:
          The ``extra`` of `save`.

        Raises:
          CheckpointError: there is no such checkpoint.
        """
        return self._beside(self._choose(step))["extra"]

    def best(self) -> int | None:
        """The step that the last checkpoint names as the best, or None."""
        return None if self.latest() is None else self._beside(self._choose(None))["best"]

    def restore(self, target: PyTree, step: int | None = None) -> Restored:
        """Reads a checkpoint into the structure of a state.

        Args:
          target: a state of this structure: arrays, or `jax.ShapeDtypeStruct` with shardings. Its values are not read.
          step: which checkpoint; the last one by default.

        Returns:
          The state, with the dtypes, shapes and devices of the target.

        Raises:
          CheckpointError: there is no such checkpoint, or its arrays are not those of the target; the message names
            what is missing, what is too much and what has another shape or dtype.

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
        beside, leaves = self._beside(step), _named(target)
        self._compare(step, beside["leaves"], {name: _describe(leaf) for name, leaf in leaves.items()})
        templates = {name: _template(leaf) for name, leaf in leaves.items()}
        read = _nest({name: template for name, template in templates.items() if np.prod(template.shape)})
        items = ocp.args.Composite(state=ocp.args.StandardRestore(read))
        arrays = _flat(self._manager.restore(step, args=items).state) if read else {}
        restored = []
        for name, leaf in leaves.items():
            empty = np.zeros(templates[name].shape, templates[name].dtype)
            restored.append(_rebuild(leaf, arrays.get(name, empty), beside["keys"].get(name)))
        self._policy.best = beside["best"]
        return Restored(step, jax.tree.unflatten(jax.tree.structure(target), restored), beside["extra"])

    def close(self) -> None:
        """Lets the directory go."""
        self._manager.close()

    def __enter__(self) -> Checkpoints:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _whole(self, step: int) -> bool:
        return all((self.directory / str(step) / item).is_dir() for item in ("state", "extra"))

    def _choose(self, step: int | None) -> int:
        found = self.steps()
        if not found:
            raise CheckpointError(f"there is no checkpoint in {self.directory}.")
        if step is not None and step not in found:
            raise CheckpointError(f"there is no checkpoint of step {step} in {self.directory}; there are {found}.")
        return found[-1] if step is None else step

    def _beside(self, step: int) -> dict[str, Any]:
        beside = self._manager.restore(step, args=ocp.args.Composite(extra=ocp.args.JsonRestore())).extra
        if not isinstance(beside, dict) or beside.get("format") != _FORMAT:
            found = beside.get("format") if isinstance(beside, dict) else beside
            raise CheckpointError(
                f"{self.directory / str(step)}: expected a checkpoint of jaxkd in format {_FORMAT}, got {found!r}. It "
                "was written by another version or by something else."
            )
        return beside

    def _compare(self, step: int, stored: Mapping[str, str], wanted: Mapping[str, str]) -> None:
        problems = []
        for name in sorted({**stored, **wanted}):
            if name not in stored:
                problems.append(f"{name}: missing in the checkpoint; the state has {wanted[name]}")
            elif name not in wanted:
                problems.append(f"{name}: {stored[name]} in the checkpoint; the state has no such array")
            elif stored[name] != wanted[name]:
                problems.append(f"{name}: {stored[name]} in the checkpoint, {wanted[name]} in the state")
        if problems:
            more = [f"... and {len(problems) - 20} more"] if len(problems) > 20 else []
            raise CheckpointError(
                f"the checkpoint of step {step} is not one of this state.\n  "
                + "\n  ".join(problems[:20] + more)
                + f"\nMake the models, objective and optimizer as they were for {self.directory}, or choose another "
                "directory."
            )


class _Policy(checkpoint_managers.PreservationPolicy):
    """The last n and the best."""

    def __init__(self, keep: int | None) -> None:
        self._keep = keep
        self.best: int | None = None

    def should_preserve(self, checkpoints: Any, *, context: Any) -> list[bool]:
        del context
        late = len(checkpoints) - (len(checkpoints) if self._keep is None else self._keep)
        return [index >= late or info.step == self.best for index, info in enumerate(checkpoints)]


def _named(tree: PyTree) -> dict[str, Any]:
    """Every leaf by the path to it, with ``/`` between its parts."""
    named: dict[str, Any] = {}
    for path, leaf in jax.tree_util.tree_flatten_with_path(tree)[0]:
        # A slash within a part (a term's name may have one) must not look like a level.
        name = "/".join(_part(entry).replace("%", "%25").replace("/", "%2F").replace(".", "%2E") for entry in path)
        if name in named:
            raise ValueError(f"two arrays of the state have the name {name!r}, and could not be told apart later.")
        named[name] = leaf
    return named


def _part(entry: Any) -> str:
    for attribute in ("key", "name", "idx"):
        if hasattr(entry, attribute):
            return str(getattr(entry, attribute))
    return str(entry)


def _nest(named: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = leaf
    return nested


def _flat(nested: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for part, value in nested.items():
        flat |= _flat(value, f"{prefix}{part}/") if isinstance(value, Mapping) else {prefix + part: value}
    return flat


def _is_key(leaf: Any) -> bool:
    return jax.dtypes.issubdtype(getattr(leaf, "dtype", np.dtype(bool)), jax.dtypes.prng_key)


def _describe(leaf: Any) -> str:
    dtype = leaf.dtype if hasattr(leaf, "dtype") else jnp.result_type(leaf)
    return f"{dtype}[{','.join(map(str, np.shape(leaf)))}]"


def _template(leaf: Any) -> Any:
    """What orbax is to read for a leaf: numbers on the leaf's devices, or on the host if nobody chose a device."""
    data = jax.eval_shape(jax.random.key_data, leaf) if _is_key(leaf) else leaf
    dtype = data.dtype if hasattr(data, "dtype") else jnp.result_type(data)
    sharding = getattr(leaf, "sharding", None) if getattr(leaf, "committed", True) else None
    if sharding is None:
        return np.empty(np.shape(data), dtype)
    return jax.ShapeDtypeStruct(np.shape(data), dtype, sharding=sharding)


def _rebuild(leaf: Any, array: Any, implementation: str | None) -> Any:
    # A host array becomes an uncommitted one, as the target's was, free to follow what it is used with.
    array = array if isinstance(array, jax.Array) else jnp.array(array)
    if implementation is None:
        return array
    key = jax.random.wrap_key_data(array, impl=implementation)
    if key.dtype != leaf.dtype:
        raise CheckpointError(f"a PRNG key of {implementation!r} was stored; the state has one of {leaf.dtype}.")
    return key
