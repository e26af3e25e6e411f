"""Where a distiller's pure functions run, and how batches and states get there."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd import checks
from jaxkd.types import DATA_AXIS, Array, Batch, Distiller, Metrics, TrainState


class Placed(Distiller):
    """A distiller on its hardware: its three functions, compiled. Calling it is taking a step."""

    __slots__ = ()

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step; ``state`` is donated."""
        return self.step(state, batch)


def jit(kd: Distiller) -> Placed:
    """Compiles for one device, or for wherever the arguments are.

    Args:
      kd: a distiller.

    Returns:
      A `Placed`; its step donates the state.
    """
    return Placed(kd.init, jax.jit(kd.step, donate_argnums=0), jax.jit(kd.evaluate))


def pmap(kd: Distiller, devices: Sequence[jax.Device] | None = None) -> Placed:
    """Splits each batch over the local devices, with `jax.pmap`.

    The state stays an ordinary one, without a leading device axis: the same is on every device, and checkpoints do
    not know how many there were. A batch that does not divide is padded under a mask.

    Args:
      kd: a distiller.
      devices: which devices; all local ones by default.

    Returns:
      A `Placed`; its step donates the state.
    """
    devices = list(jax.local_devices() if devices is None else devices)
    step = jax.pmap(
        kd.step, axis_name=DATA_AXIS, in_axes=(None, 0), out_axes=None, donate_argnums=0, devices=devices
    )  # fmt: skip
    evaluate = jax.pmap(kd.evaluate, axis_name=DATA_AXIS, in_axes=(None, 0), out_axes=None, devices=devices)

    # What pmap returns is placed so; a state that comes otherwise would be a program of its own.
    everywhere = NamedSharding(Mesh(np.array(devices), (DATA_AXIS,)), PartitionSpec())

    def split(batch: Batch) -> Batch:
        batch = pad(batch, len(devices))
        return {name: x.reshape(len(devices), -1, *x.shape[1:]) for name, x in batch.items()}

    return Placed(
        lambda key, batch: jax.device_put(kd.init(key, batch), everywhere),
        lambda state, batch: step(_put(state, everywhere), split(batch)),
        lambda state, batch: evaluate(_put(state, everywhere), split(batch)),
    )


def shard(
    kd: Distiller, mesh: Mesh, *, axis: str | None = None, rules: Mapping[str, PartitionSpec] | None = None
) -> Placed:
    """Splits each batch over a mesh axis and lets the compiler partition one program for the whole batch.

    The state is replicated over the mesh, but for what ``rules`` place otherwise: ``{"bank/": PartitionSpec("data")}``
    gives every device its rows of a memory bank. A batch that does not divide is padded under a mask.

    Args:
      kd: a distiller.
      mesh: the devices, as from `jax.make_mesh`.
      axis: the mesh axis that splits the batch; the first by default.
      rules: regular expressions of paths in the state, such as ``"loss/state/crd/bank/teacher"``, with the placement of
        the arrays there. The first that is found in a path counts.

    Returns:
      A `Placed`; its step donates the state.

    Raises:
      ValueError: the mesh has no such axis; and when a state comes, a rule matches nothing in it, or asks for more
        parts than an array divides into.
    """
    axis = mesh.axis_names[0] if axis is None else axis
    checks.known(axis, mesh.axis_names, "shard, mesh axis")
    # The compiler places what is inside the step; a mesh of explicit axes would ask each operation for it.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(axis))
    parts = mesh.shape[axis]

    @functools.lru_cache(maxsize=4)
    def programs(layout: Any) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
        placed = whole if layout is None else jax.tree.unflatten(*layout)
        step = jax.jit(kd.step, in_shardings=(placed, split), out_shardings=(placed, whole), donate_argnums=0)
        return placed, step, jax.jit(kd.evaluate, in_shardings=(placed, split), out_shardings=whole)

    def of(state: TrainState) -> tuple[Any, Callable[..., Any], Callable[..., Any]]:
        return programs(_layout(state, mesh, rules) if rules else None)

    def place(state: TrainState, batch: Batch, placed: Any) -> tuple[TrainState, Batch]:
        batch = pad(batch, parts)
        return _put(state, whole, placed), batch if _traced(state) else jax.device_put(batch, split)

    def init(key: Array, batch: Batch) -> TrainState:
        state = kd.init(key, batch)
        return jax.device_put(state, of(state)[0])

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        placed, program, _ = of(state)
        return program(*place(state, batch, placed))

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        placed, _, program = of(state)
        return program(*place(state, batch, placed))

    return Placed(init, step, evaluate)


def _layout(state: TrainState, mesh: Mesh, rules: Mapping[str, PartitionSpec]) -> tuple[Any, tuple[NamedSharding, ...]]:
    """The placement of every array of a state, as ``jax.tree.unflatten`` takes it."""
    found, treedef = jax.tree_util.tree_flatten_with_path(state)
    paths = {jax.tree_util.keystr(path, simple=True, separator="/"): x for path, x in found}
    used, placed = set(), []
    for path, x in paths.items():
        pattern = next((pattern for pattern in rules if re.search(pattern, path)), None)
        spec = PartitionSpec() if pattern is None else rules[pattern]
        used.add(pattern)
        for size, names in zip(jnp.shape(x), spec, strict=False):
            names = (names,) if isinstance(names, str) else tuple(names or ())
            parts = math.prod(mesh.shape[name] for name in names)
            if size % parts:
                raise ValueError(
                    f"shard, rule {pattern!r}: {path} {checks.shape(x)} does not divide into {parts} parts of the mesh "
                    f"axis {', '.join(map(repr, names))}. Make its size a multiple, or leave it replicated."
                )
        placed.append(NamedSharding(mesh, spec))
    if unused := [pattern for pattern in rules if pattern not in used]:
        known = [path for path in paths if not path.startswith("opt_state")]
        raise ValueError(f"shard, rules: {unused} match no path of the state. There are {', '.join(known)}.")
    return treedef, tuple(placed)


def _put(state: TrainState, sharding: NamedSharding, placed: Any = None) -> TrainState:
    """The state on its devices; it is there already but for the first time. In another program, that one decides."""
    there = _traced(state) or getattr(state.step, "sharding", None) == sharding
    return state if there else jax.device_put(state, sharding if placed is None else placed)


def _traced(state: TrainState) -> bool:
    return isinstance(state.step, jax.core.Tracer)


def pad(batch: Batch, multiple: int) -> Batch:
    """A batch whose size is a multiple of a number: copies of its last example, which the ``mask`` leaves out.

    A batch that divides is returned as it is.

    >>> {name: x.tolist() for name, x in pad({"label": np.array([3, 4, 5])}, 2).items()}
    {'label': [3, 4, 5, 5], 'mask': [True, True, True, False]}
    """
    size = checks.batch_size(batch)
    missing = -size % multiple
    if not missing:
        return batch

    def extend(x: Any) -> Any:
        lib = np if isinstance(x, np.ndarray) else jnp
        return lib.concatenate([x, lib.repeat(x[-1:], missing, axis=0)])

    mask = batch.get("mask", np.ones(size, bool))
    return {**{k: extend(x) for k, x in batch.items()}, "mask": extend(mask) & (np.arange(size + missing) < size)}
