"""Placement of a distiller's pure functions, states and batches on devices."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from jaxkd._core import batch_norm, checks
from jaxkd._core.arrays import shardings
from jaxkd.metrics import packing
from jaxkd.parallel import _states
from jaxkd.parallel._batches import Intake, on_mesh, over_devices, pad, ready
from jaxkd.parallel._mesh import entered
from jaxkd.parallel._rules import Rule, layout
from jaxkd.types import DATA_AXIS, Array, Batch, Distiller, Metrics, TrainState


def _refusing_donated(function: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a compiled function, which then names a state that was donated before."""

    @functools.wraps(function)
    def run(state: TrainState, batch: Batch) -> Any:
        try:
            return function(state, batch)
        except (RuntimeError, ValueError):
            checks.state("step, state", state)
            raise

    return _with_methods_of(function, run)


def _with_methods_of(compiled: Callable[..., Any], run: Callable[..., Any]) -> Callable[..., Any]:
    """Adds to a wrapper the methods of `jax.jit`, which `functools.wraps` omits."""
    for method in ("lower", "trace", "eval_shape"):
        if hasattr(compiled, method):
            setattr(run, method, getattr(compiled, method))
    return run


class Placed(Distiller):
    """A distiller placed on devices, with compiled functions. Calling it makes a step.

    Attributes:
      intake: function without arguments that builds a function which puts the batches of one input on the devices.
        ``step`` and ``evaluate`` call such a function themselves, but not when they are traced: a program compiled
        around a step, such as those of `jaxkd.training.fit`, needs batches that are in place.
      source: distiller of the same computation without a placement, by which a run recognizes its step; None for one
        whose functions were replaced afterwards.
    """

    intake: Callable[[], Intake] = staticmethod(lambda: lambda batch: batch)
    source: Distiller | None = None

    def __call__(self, state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        """Makes one step; it donates ``state``, as ``step`` does."""
        return self.step(state, batch)

    def _replace(self, **changed: Any) -> Placed:
        placed = super()._replace(**changed)
        placed.intake = self.intake
        return placed


def jit(kd: Distiller, *, replicas: int | None = None) -> Placed:
    """Compiles a distiller for one device, or for the devices of its arguments.

    Args:
      kd: a distiller.
      replicas: number of equal parts of the batch that BatchNorm normalizes separately; None is 1 here. With 8, the
        results are those of eight devices. A batch that does not divide is padded and masked.
    """
    checks.contract("parallel.jit, kd", kd, Distiller)
    step, evaluate = (_within(replicas, function, replicas or 1) for function in (kd.step, kd.evaluate))
    compiled = map(_anywhere, (jax.jit(step, donate_argnums=0), jax.jit(evaluate)))
    placed = Placed(kd.init, *map(_refusing_donated, compiled))
    placed.intake = lambda: ready
    return _from(kd, replicas, placed)


def _anywhere(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Wraps a compiled function to take arrays of different devices and meshes."""
    moves = False

    @functools.wraps(compiled)
    def run(state: TrainState, batch: Batch) -> Any:
        nonlocal moves
        if isinstance(state.step, jax.core.Tracer):
            return compiled(state, batch)
        batch = ready(batch)
        if not moves:
            # Tried first, because comparing the devices of all arrays would cost host time at every step. An error
            # while tracing or placing leaves the donated state as it is.
            try:
                return compiled(state, batch)
            except Exception:
                if not shardings.differ(state, batch):
                    raise
                moves = True
        return compiled(*shardings.together(state, batch))

    return _with_methods_of(compiled, run)


def pmap(kd: Distiller, devices: Sequence[jax.Device] | None = None, *, replicas: int | None = None) -> Placed:
    """Compiles a distiller with `jax.pmap`, which splits each batch over the devices.

    The state is replicated and has no leading device axis, so that checkpoints do not depend on the number of devices.
    A batch that does not divide is padded and masked. On several hosts, each host gives its part of the batch, and the
    parts must have equal sizes; within a larger program, such as those of `jaxkd.training.fit`, several hosts need
    `shard`.

    Args:
      kd: a distiller.
      devices: devices to use; all by default.
      replicas: number of equal parts of the batch that BatchNorm normalizes separately: None for one per device, 1 for
        statistics of the whole batch, or any multiple or divisor of the number of devices.
    """
    checks.contract("parallel.pmap, kd", kd, Distiller)
    all_devices = list(jax.devices() if devices is None else devices)
    local = sum(device.process_index == jax.process_index() for device in all_devices)
    step, evaluate = (_within(replicas, function, 1) for function in (kd.step, kd.evaluate))
    mapped: dict[str, Any] = {"axis_name": DATA_AXIS, "in_axes": (None, 0), "out_axes": None, "devices": devices}
    step, evaluate = jax.pmap(step, donate_argnums=0, **mapped), jax.pmap(evaluate, **mapped)

    # pmap returns a state with this sharding. A state with another one would be compiled for a second time.
    mesh = Mesh(np.array(all_devices), (DATA_AXIS,), axis_types=(AxisType.Auto,))
    replicated, parts = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(DATA_AXIS))
    split = over_devices(local, math.lcm(len(all_devices), replicas or 1) // len(all_devices) * local, parts)()

    def put(state: TrainState) -> TrainState:
        if isinstance(state.step, jax.core.Tracer):
            if not replicated.is_fully_addressable:
                raise ValueError(
                    "pmap over several hosts cannot be part of a larger program: use parallel.shard for fit."
                )
            return state
        if all(getattr(x, "sharding", None) == replicated for x in jax.tree.leaves(state)):
            return state
        return _states.put(state, jax.tree.map(lambda x: replicated, state))

    def run(function: Callable[..., Any]) -> Callable[..., Any]:
        def on_devices(state: TrainState, batch: Batch) -> Any:
            if isinstance(state.step, jax.core.Tracer):
                return function(put(state), split(batch))
            with entered(mesh):
                return function(put(state), split(batch))

        return on_devices

    placed = Placed(lambda key, batch: put(kd.init(key, batch)), *map(_refusing_donated, map(run, (step, evaluate))))
    return _from(kd, replicas, placed)


def shard(
    kd: Distiller,
    mesh: Mesh,
    *,
    axis: str | None = None,
    rules: Mapping[str, Rule] | None = None,
    replicas: int | None = None,
) -> Placed:
    """Compiles a distiller as one global program, partitioned over a mesh.

    The batch is split over a mesh axis. The state is replicated, except for arrays that ``rules`` split.
    ``{"bank/": PartitionSpec("data")}`` gives every device its rows of a memory bank;
    ``{"student/|teacher/": fully_sharded(mesh)}`` splits both networks and the optimizer's state, whose paths contain
    ``student/`` too. ``init`` makes such a state in parts. A batch that does not divide is padded and masked.

    On several hosts, arrays of one host in a batch are its part of the global batch: the rows for its own devices, in
    their order. The parts may differ in size: all are padded and masked to the size that the hosts agree on at the
    first batch. Global arrays are used unmodified.

    Args:
      kd: a distiller.
      mesh: the devices, as from `jax.make_mesh`.
      axis: mesh axis that splits the batch; the first by default.
      rules: regular expressions of paths in the state, such as ``"objective/state/crd/bank/teacher"``, each with the
        `PartitionSpec` of the arrays there, or a function from a shape to one, such as `fully_sharded`. The first
        expression that is found in a path applies.
      replicas: number of equal parts of the batch that BatchNorm normalizes separately: None for one per part of the
        axis, 1 for statistics of the whole batch, or any other number.

    Raises:
      ValueError: the mesh has no such axis; a rule matches no path of a state, or asks for parts that do not divide an
        array; on several hosts, a part is larger than the size agreed on.
    """
    checks.contract("parallel.shard, kd", kd, Distiller)
    if not isinstance(mesh, Mesh):
        raise TypeError(
            f"shard, mesh: expected a Mesh, as from jax.make_mesh((8,), ('data',)), got {checks.kind(mesh)}."
        )
    axis = mesh.axis_names[0] if axis is None else axis
    checks.known(axis, mesh.axis_names, "shard, mesh axis")
    mesh = shardings.automatic_mesh(mesh)
    whole, split = NamedSharding(mesh, PartitionSpec()), NamedSharding(mesh, PartitionSpec(axis))
    parts = mesh.shape[axis]
    asked, replicas = replicas, parts if replicas is None else replicas
    multiple = math.lcm(parts, replicas or 1)
    intake = on_mesh(mesh, axis, multiple)

    def place(state: TrainState) -> Any:
        return layout(state, mesh, rules or {})

    def init(key: Array, batch: Batch) -> TrainState:
        if not rules:
            state = kd.init(key, batch)
            return _states.put(state, place(state))
        shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), dict(batch))
        with entered(mesh):
            return _states.make(lambda key: kd.init(key, shapes), key, place)

    def step(placed: Any) -> Callable[..., Any]:
        shardings: dict[str, Any] = {"in_shardings": (placed, split), "out_shardings": (placed, whole)}
        return jax.jit(_within(replicas, kd.step), donate_argnums=0, **shardings)

    def evaluate(placed: Any) -> Callable[..., Any]:
        return jax.jit(_within(replicas, kd.evaluate), in_shardings=(placed, split), out_shardings=whole)

    placed = Placed(init, *(_on_mesh(compiled, place, intake(), multiple) for compiled in (step, evaluate)))
    placed.intake = intake
    return _from(kd, asked, placed)


def _from(kd: Distiller, replicas: int | None, placed: Placed) -> Placed:
    """Records the distiller that was placed, with the number of replicas asked for."""
    placed.source = kd
    if replicas is not None:
        placed.source = Distiller(kd.init, *(_within(replicas, f, replicas) for f in (kd.step, kd.evaluate)))
    return placed


def _on_mesh(
    compiled: Callable[..., Any], place: Callable[..., Any], take: Intake, multiple: int
) -> Callable[..., Any]:
    """Returns a function that places its arguments and runs a compiled program.

    ``compiled`` maps the placement of a state to a program, and ``place`` a state to its placement: `layout` with the
    user's rules.
    """

    @functools.lru_cache(maxsize=4)
    def program(treedef: Any, wanted: tuple[NamedSharding, ...]) -> Callable[..., Any]:
        function: Callable[..., Any] = compiled(jax.tree.unflatten(treedef, wanted))
        return function

    last: tuple[Any, list[Any], Callable[..., Any]] | None = None

    def run(state: TrainState, batch: Batch) -> Any:
        nonlocal last
        leaves, treedef = jax.tree.flatten(state)
        if isinstance(state.step, jax.core.Tracer):  # within a larger program, whose arguments are in place
            return program(treedef, tuple(jax.tree.leaves(place(state))))(state, pad(batch, multiple))
        shardings_now = [getattr(x, "sharding", None) for x in leaves]
        # A state that the last step returned is in place; matching the rules again would only cost host time.
        if last is None or last[0] != treedef or last[1] != shardings_now:
            placed = place(state)
            wanted = jax.tree.leaves(placed)
            state, last = _states.put(state, placed), (treedef, wanted, program(treedef, tuple(wanted)))
        with entered(last[1][0].mesh):
            return last[2](state, take(batch))

    return _refusing_donated(run)


def _within(replicas: int | None, function: Callable[..., Any], multiple: int = 1) -> Callable[..., Any]:
    """Wraps a function: pads batches, packs metrics, sets BatchNorm's replicas.

    The number of replicas is set where the function is traced, so that it becomes part of the compiled program.
    """
    function = packing(function)

    @functools.wraps(function)
    def within(state: TrainState, batch: Batch) -> Any:
        with batch_norm.replicas(replicas):
            return function(state, pad(batch, multiple))

    return within


def batch_placer(kd: Distiller) -> Callable[[Batch], Batch]:
    """Returns a function that places the batches of one input for a step.

    Raises:
      ValueError: from that function: there are several hosts, the batch is this host's part, and the distiller,
        wrapped after it was placed, cannot assemble the parts.
    """
    if isinstance(kd, Placed):
        return kd.intake()

    def check(batch: Batch) -> Batch:
        if jax.process_count() > 1 and any(getattr(x, "is_fully_addressable", True) for x in batch.values()):
            raise ValueError(
                "several hosts: this distiller was wrapped after it was placed, so the hosts' parts of a batch cannot "
                "be assembled. Place it last: parallel.shard(preprocess(kd), mesh)."
            )
        return batch

    return check
