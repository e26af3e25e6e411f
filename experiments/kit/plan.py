"""The plan of a command: runs, FLOPs, time and disk."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.filesize import decimal
from rich.progress import track

import jaxkd
from experiments.kit import cell as cells
from experiments.kit import methods, report
from experiments.kit.report import duration
from experiments.kit.rows import cost
from experiments.kit.teachers import Place
from jaxkd.types import Context, Distiller, Objective

STEPS = 3  # steps that are timed, after one that compiles


class Line(NamedTuple):
    """One kind of work."""

    what: str
    runs: int  # seeds, or 1
    done: int  # number of finished runs
    steps: int  # steps of a run
    flops: float  # FLOPs of a step
    seconds: float  # seconds of a run on this machine
    bytes: int  # bytes on disk of a finished run
    working: int  # further bytes on disk during a run

    @property
    def left(self) -> int:
        return self.runs - self.done


class Network(NamedTuple):
    """The cost of training a network on labels."""

    flops: float  # FLOPs of a step
    rate: float  # FLOPs a second
    weights: int  # bytes of parameters and statistics
    state: int  # bytes of a checkpoint


def lines(wanted: Sequence[cells.Cell], place: Place) -> list[Line]:
    """Returns a line for each teacher, each cache, and each pair and method.

    Nothing is written, and no data is read. Of each network a few steps are timed and traced for their FLOPs, of each
    method its objective is traced. A method's step costs the student's step, the teacher's forward pass where its
    outputs are not cached, and the objective.
    """
    names = dict.fromkeys(name for cell in wanted for name in cell[:2])
    networks = {name: _network(name, place) for name in track(names, "networks", transient=True)}
    found = []
    for name in dict.fromkeys(cell.teacher for cell in wanted):
        found += _teacher(name, networks[name], wanted, place)
    rows = list(dict.fromkeys(cell[:3] for cell in wanted))
    for teacher, student, name in track(rows, "methods", transient=True):
        same = [cell for cell in wanted if cell[:3] == (teacher, student, name)]
        found.append(_students(same, networks[teacher], networks[student], place))
    return found


def _network(name: str, place: Place) -> Network:
    problem, protocol = place.problem, place.protocol
    model, ce, optimizer = problem.model(name, (), protocol.bf16), methods.cross_entropy(), problem.optimizer(name, 240)
    kd = jaxkd.distill(model, jaxkd.teachers.none(), ce, optimizer=optimizer)
    batch = _batch(place)
    state = jax.eval_shape(kd.init, jax.random.key(0), batch)
    count = cost.flops(kd.step, state, batch)
    return Network(count, count / _timed(kd, batch), _bytes(state.student), _bytes(state))


def _teacher(name: str, network: Network, wanted: Sequence[cells.Cell], place: Place) -> list[Line]:
    problem, protocol = place.problem, place.protocol
    steps = protocol.teacher_epochs * -(-(problem.examples - protocol.holdout) // protocol.batch_size)
    done = int(name in place.given or place.teacher_file(name).exists())
    seconds = steps * network.flops / network.rate
    found = [Line(f"teacher {name}", 1, done, steps, network.flops, seconds, network.weights, 2 * network.state)]
    reading = {cell.method for cell in wanted if cell.teacher == name and _cached(cell, place)}
    if reading:
        forward = network.flops / 3
        views = _images(place) * protocol.epochs
        row = 2 * (problem.classes + int(np.prod(problem.shapes(name)["pooled"])))
        what = f"outputs of {name} for {len(reading)} methods, {protocol.epochs} views"
        seconds = views / protocol.batch_size * forward / network.rate
        found.append(Line(what, 1, 0, views // protocol.batch_size, forward, seconds, views * row, 0))
    return found


def _students(same: Sequence[cells.Cell], teacher_cost: Network, own: Network, place: Place) -> Line:
    problem, protocol, (teacher, student, name, _) = place.problem, place.protocol, same[0]
    method = methods.METHODS[name]
    labels = np.arange(_images(place), dtype=np.int32) % problem.classes
    shapes = problem.shapes(teacher)
    setting = methods.Setting(teacher, student, 240, labels, lambda tap: jnp.zeros(shapes[tap][-1:], jnp.float32))
    live = name != "student" and not _cached(same[0], place)
    steps = protocol.epochs * -(-_images(place) // protocol.batch_size)
    first = methods.initial_steps(method, steps)
    parts = [(steps, method.objective(setting))]
    parts += [(first, method.initial_objective(setting))] if method.initial is not None else []
    labels_only, _ = _objective(methods.cross_entropy(), same[0], place)  # the network's step includes it already
    total, kept = 0.0, own.state + live * teacher_cost.weights
    for count, objective in parts:
        extra, size_of = _objective(objective, same[0], place)
        total += count * (own.flops + extra - labels_only + live * teacher_cost.flops / 3)
        kept += size_of
    what, done = f"{teacher} → {student}: {method.title}", sum(place.file(cell).exists() for cell in same)
    both, seconds = steps + first, total / own.rate
    return Line(what, len(same), done, both, total / both, seconds, own.weights, 2 * kept)


def _objective(objective: Objective, cell: cells.Cell, place: Place) -> tuple[float, int]:
    """Returns FLOPs of an objective with its gradients, and its checkpoint's bytes."""
    size, key, problem = place.protocol.batch_size, jax.random.key(0), place.problem
    shapes = ({"logits": (problem.classes,), **problem.shapes(name)} for name in (cell.student, cell.teacher))
    outputs: list[Any] = [{tap: _shape(size, *shape) for tap, shape in one.items()} for one in shapes]
    (student, teacher), batch = outputs, _batch(place)
    made = jax.eval_shape(lambda: objective.init(key, Context(student, teacher, batch, jnp.int32(0))))

    def value(params: Any, student: Any, state: Any, teacher: Any, batch: Any) -> Any:
        return objective.apply(params, state, Context(student, teacher, batch, jnp.int32(0)), key).value

    count = cost.flops(jax.grad(value, argnums=(0, 1)), made.params, student, made.state, teacher, batch)
    return count, 2 * _bytes(made.params) + _bytes(made.state)  # with the momenta of the parameters


def _cached(cell: cells.Cell, place: Place) -> bool:
    return cell.method != "student" and cells.reads_cache(cell, place.protocol)


def _images(place: Place) -> int:
    return place.protocol.images or place.problem.examples - place.protocol.holdout


def _shape(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _batch(place: Place) -> dict[str, Any]:
    size, kinds = place.protocol.batch_size, {"label": jnp.int32, "row": jnp.int32, "mask": bool}
    rows = {name: jax.ShapeDtypeStruct((size,), kind) for name, kind in kinds.items()}
    return {"image": _shape(size, *place.problem.shape), **rows}


def _bytes(tree: Any) -> int:
    """Returns the bytes of a tree's arrays in a checkpoint."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def _timed(kd: Distiller, batch: Any) -> float:
    """Returns the seconds of a step, the shortest of a few."""
    batch = jax.tree.map(lambda x: jnp.ones(x.shape, x.dtype), batch)
    state, step = jax.jit(kd.init)(jax.random.key(0), batch), jax.jit(kd.step)
    return min([cost.seconds_per_step(step, state, batch)[0] for _ in range(1 + STEPS)][1:])


def table(planned: Sequence[Line], workers: int) -> report.TerminalTable:
    heads = ("", "runs", "done", "steps", "GFLOP a step", "each", "still", "disk")
    rows = [
        (
            *(line.what, str(line.runs), str(line.done), f"{line.steps:,}", f"{line.flops / 1e9:.2f}"),
            *(duration(line.seconds), duration(line.left * line.seconds), decimal(line.runs * line.bytes)),
        )
        for line in planned
    ]
    seconds = sum(line.left * line.seconds for line in planned)
    disk = sum(line.runs * line.bytes for line in planned)
    disk += workers * max((line.working for line in planned if line.left), default=0)
    total = ("all", *("",) * 5, duration(seconds / workers), f"at most {decimal(disk)}")
    note = (
        f"Times are for {jax.devices()[0].device_kind}: {STEPS} steps of each network were measured, and what methods "
        "add follows from its FLOPs. Evaluation and compilation are not included."
    )
    return report.TerminalTable(f"What would be run, {workers} at a time", heads, [*rows, None, total], note)
