"""Where a distiller's pure functions run, and how batches and states get there."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd import checks, normalization
from jaxkd.parallel import states
from jaxkd.parallel.batches import Intake, common_multiple, on_mesh, over_devices, pad
from jaxkd.parallel.rules import Rule, layout
from jaxkd.training.packed import packing
from jaxkd.types import DATA_AXIS, Array, Batch, Distiller, Metrics, TrainState


class Placed(Distiller):
    """A distiller on its hardware: its three functions, compiled. Calling it is taking a step.

    Attributes:
      intake: makes a function that puts the batches of one input on the devices. The steps do so by themselves; a
        program that is compiled around a step, as those of `jaxkd.training.fit` are, needs batches that have been
        through it.
    """

    intake: Callable[[], Intake] = staticmethod(lambda: _as_it_is)

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """One step; ``state`` is donated."""
        return self.step(state, batch)

    def _replace(self, **changed: Any) -> Placed:
        placed = super()._replace(**changed)
        placed.intake = self.intake
        return placed


def jit(kd: Distiller, *, replicas: int | None = None) -> Placed:
    """Compiles for one device, or for wherever the arguments are.

    Args:
      kd: a distiller.
      replicas: into how many parts BatchNorm divides the batch, to normalise each by itself; None is 1 here. With 8,
        the numbers are those of eight devices. A batch that does not divide is padded under a mask.

    Returns:
      A `Placed`; its step donates the state.
    """
    multiple = common_multiple(1, replicas)
    step, evaluate = (_within(replicas, function, multiple) for function in (kd.step, kd.evaluate))
    return Placed(kd.init, jax.jit(step, donate_argnums=0), jax.jit(evaluate))


def pmap(kd: Distiller, devices: Sequence[jax.Device] | None = None, *, replicas: int | None = None) -> Placed:
    """Splits each batch over the devices, with `jax.pmap`.

    The state stays an ordinary one, without a leading device axis: the same is on every device, and checkpoints do
    not know how many there were. A batch that does not divide is padded under a mask. On several hosts, the batch that
    each gives is its part, and the parts must be of equal size; within a larger program, such as those of
    `jaxkd.training.fit`, several hosts need `shard`.

    Args:
      kd: a distiller.
      devices: which devices; all by default.
      replicas: into how many parts BatchNorm divides the batch, to normalise each by itself: None for one per device,
        1 for the statistics of the whole batch, or any multiple or divisor of the number of devices.

    Returns:
      A `Placed`; its step donates the state.
    """
    everything = list(jax.devices() if devices is None else devices)
    here = sum(device.process_index == jax.process_index() for device in everything)
    step, evaluate = (_within(replicas, function, 1) for function in (kd.step, kd.evaluate))
    mapped: dict[str, Any] = {"axis_name": DATA_AXIS, "in_axes": (None, 0), "out_axes": None, "devices": devices}
    step, evaluate = jax.pmap(step, donate_argnums=0, **mapped), jax.pmap(evaluate, **mapped)

    # What pmap returns is placed so; a state that comes otherwise would be a program of its own.
    everywhere = NamedSharding(Mesh(np.array(everything), (DATA_AXIS,)), PartitionSpec())
    split = over_devices(here, common_multiple(len(everything), replicas) // len(everything) * here)()

    def put(state: TrainState) -> TrainState:
        if isinstance(state.step, jax.core.Tracer):
            if not everywhere.is_fully_addressable:
                raise ValueError(
                    "pmap over several hosts cannot be part of a larger program: use parallel.shard for fit."
                )
            return state
        if getattr(state.step, "sharding", None) == everywhere:
            return state
        return states.put(state, jax.tree.map(lambda x: everywhere, state))

    return Placed(
        lambda key, batch: put(kd.init(key, batch)),
        lambda state, batch: step(put(state), split(batch)),
        lambda state, batch: evaluate(put(state), split(batch)),
    )


def shard(
    kd: Distiller,
    mesh: Mesh,
    *,
    axis: str | None = None,
    rules: Mapping[str, Rule] | None = None,
    replicas: int | None = None,
) -> Placed:
    """Splits each batch over a mesh axis and lets the compiler partition one program for the whole batch.

    The state is replicated over the mesh, but for what ``rules`` place otherwise. ``{"bank/": PartitionSpec("data")}``
    gives every device its rows of a memory bank; ``{"student/|teacher/": fully_sharded(mesh)}`` splits both networks,
    and the optimizer's state, whose paths hold ``student/`` too. Such a state is also made in parts by ``init``. A
    batch that does not divide is padded under a mask.

    On several hosts, arrays of one host in a batch are its part of the global batch: the rows for its own devices, in
    their order. The parts may differ in size: all are filled up, under a mask, to the size that the hosts agree on at
    the first batch. Global arrays are taken as they are.

    Args:
      kd: a distiller.
      mesh: the devices, as from `jax.make_mesh`.
      axis: the mesh axis that splits the batch; the first by default.
      rules: regular expressions of paths in the state, such as ``"loss/state/crd/bank/teacher"``, with how the arrays
        there are split: a `PartitionSpec`, or a function from a shape to one, such as `fully_sharded`. The first that
        is found in a path counts.
      replicas: into how many parts BatchNorm divides the batch, to normalise each by itself: None for one per part of
        the axis, 1 for the statistics of the whole batch, or any other number.

    Returns:
      A `Placed`; its step donates the state.

    Raises:
      ValueError: the mesh has no such axis; when a state comes, a rule matches nothing in it, or asks for more parts
        than an array divides into; on several hosts, a part is larger than those agreed on.
    """
    axis = mesh.axis_names[0] if axis is None else axis
    checks.known(axis, mesh.axis_names, "shard, mesh axis")
    # The compiler places what is inside the step; a mesh of explicit axes would ask each operation for it.
    mesh = Mesh(mesh.devices, mesh.axis_names)
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(axis))
    parts = mesh.shape[axis]
    replicas = parts if replicas is None else replicas
    multiple = common_multiple(parts, replicas)
    intake = on_mesh(mesh, axis, multiple)

    def place(state: TrainState) -> Any:
        return layout(state, mesh, rules or {})

    def init(key: Array, batch: Batch) -> TrainState:
        if not rules:
            state = kd.init(key, batch)
            return states.put(state, place(state))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), dict(batch))
        return states.make(lambda key: kd.init(key, shapes), key, place)

    def step(placed: Any) -> Callable[..., Any]:
        shardings: dict[str, Any] = {"in_shardings": (placed, split), "out_shardings": (placed, whole)}
        return jax.jit(_within(replicas, kd.step), donate_argnums=0, **shardings)

    def evaluate(placed: Any) -> Callable[..., Any]:
        return jax.jit(_within(replicas, kd.evaluate), in_shardings=(placed, split), out_shardings=whole)

    placed = Placed(init, *(_on_mesh(compiled, place, intake(), multiple) for compiled in (step, evaluate)))
    placed.intake = intake
    return placed


def _on_mesh(
    compiled: Callable[..., Any], place: Callable[..., Any], take: Intake, multiple: int
) -> Callable[..., Any]:
    """What puts a state and a batch where they belong, and runs the program for a state that lies so."""

    @functools.lru_cache(maxsize=4)
    def program(treedef: Any, shardings: tuple[NamedSharding, ...]) -> Callable[..., Any]:
        function: Callable[..., Any] = compiled(jax.tree.unflatten(treedef, shardings))
        return function

    last: tuple[Any, list[Any], Callable[..., Any]] | None = None

    def run(state: TrainState, batch: Batch) -> Any:
        nonlocal last
        leaves, treedef = jax.tree.flatten(state)
        if isinstance(state.step, jax.core.Tracer):  # in a larger program: it has put both there already
            return program(treedef, tuple(jax.tree.leaves(place(state))))(state, pad(batch, multiple))
        there = [getattr(x, "sharding", None) for x in leaves]
        if last is None or last[0] != treedef or last[1] != there:  # what the last step returned is in place
            placed = place(state)
            shardings = jax.tree.leaves(placed)
            state, last = states.put(state, placed), (treedef, shardings, program(treedef, tuple(shardings)))
        return last[2](state, take(batch))

    return run


def _within(replicas: int | None, function: Callable[..., Any], multiple: int = 1) -> Callable[..., Any]:
    """The function of a padded batch, with its replicas set wherever it is traced, so that no cache mixes them up."""
    function = packing(function)

    @functools.wraps(function)
    def within(state: TrainState, batch: Batch) -> Any:
        with normalization.replicas(replicas):
            return function(state, pad(batch, multiple))

    return within


def _as_it_is(batch: Batch) -> Batch:
    return batch
