"""Where a distiller's pure functions run, and how batches and states get there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd import checks
from jaxkd.types import DATA_AXIS, Batch, Distiller, Metrics, TrainState


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


def shard(kd: Distiller, mesh: Mesh, *, axis: str | None = None) -> Placed:
    """Splits each batch over a mesh axis and lets the compiler partition one program for the whole batch.

    The state is replicated over the mesh. A batch that does not divide is padded under a mask.

    Args:
      kd: a distiller.
      mesh: the devices, as from `jax.make_mesh`.
      axis: the mesh axis that splits the batch; the first by default.

    Returns:
      A `Placed`; its step donates the state.

    Raises:
      ValueError: the mesh has no such axis.
    """
    axis = mesh.axis_names[0] if axis is None else axis
    checks.known(axis, mesh.axis_names, "shard, mesh axis")
    # The compiler places what is inside the step; a mesh of explicit axes would ask each operation for it.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(axis))
    step = jax.jit(kd.step, in_shardings=(whole, split), out_shardings=whole, donate_argnums=0)
    evaluate = jax.jit(kd.evaluate, in_shardings=(whole, split), out_shardings=whole)
    parts = mesh.shape[axis]

    def place(state: TrainState, batch: Batch) -> tuple[TrainState, Batch]:
        batch = pad(batch, parts)
        return _put(state, whole), batch if _traced(state) else jax.device_put(batch, split)

    return Placed(
        lambda key, batch: jax.device_put(kd.init(key, batch), whole),
        lambda state, batch: step(*place(state, batch)),
        lambda state, batch: evaluate(*place(state, batch)),
    )


def _put(state: TrainState, sharding: NamedSharding) -> TrainState:
    """The state on its devices; it is there already but for the first time. In another program, that one decides."""
    there = _traced(state) or getattr(state.step, "sharding", None) == sharding
    return state if there else jax.device_put(state, sharding)


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
