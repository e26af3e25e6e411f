"""What a command would do, what it costs, and the disk it takes, from compiled programs and a few measured steps."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from rich.progress import track
from rich.table import Table

import jaxkd
from experiments.cifar100 import cells, methods, objectives, published, recipe, training
from experiments.cifar100.config import Protocol
from jaxkd.types import Context, Objective

IMAGES, STEPS = 50_000, 3


class Line(NamedTuple):
    """One kind of work.

    Attributes:
      what: in words.
      runs: how often it is to be done: seeds, or 1.
      done: how many of them are there already.
      steps: of each.
      flops: of a step.
      seconds: of each, alone on this machine.
      bytes: on disk, of each, when it is finished.
      working: on disk beside that, while one is being run.
    """

    what: str
    runs: int
    done: int
    steps: int
    flops: float
    seconds: float
    bytes: int
    working: int

    @property
    def left(self) -> int:
        """How many are still to be done."""
        return self.runs - self.done


class Plan(NamedTuple):
    """What is to be done, and how many at a time."""

    lines: list[Line]
    workers: int


def of(wanted: Sequence[cells.Cell], place: cells.Place, workers: int) -> Plan:
    """What a command would do. Nothing is written, and no data is read: the images are random ones.

    Of each network a few steps are timed and traced for their FLOPs, of each method its objective is traced. A
    method's step costs the student's, the teacher's forward pass where it is not computed once, and the objective.

    Args:
      wanted: the cells.
      place: what they share.
      workers: cells at the same time.

    Returns:
      A line for each teacher, each cache, and each pair and method.
    """
    protocol, lines = place.protocol, []
    names = dict.fromkeys(name for cell in wanted for name in cell[:2])
    networks = {name: _network(name, protocol) for name in track(names, "networks", transient=True)}
    for name in dict.fromkeys(cell.teacher for cell in wanted):
        lines += _teacher(name, networks[name], wanted, place)
    rows = list(dict.fromkeys(cell[:3] for cell in wanted))
    for teacher, student, name in track(rows, "methods", transient=True):
        same = [cell for cell in wanted if cell[:3] == (teacher, student, name)]
        lines.append(_students(same, networks[teacher], networks[student], place))
    return Plan(lines, workers)


class Network(NamedTuple):
    """What training a network by itself takes.

    Attributes:
      flops: of a step.
      rate: FLOPs a second.
      weights: bytes of parameters and statistics.
      state: bytes of a checkpoint.
    """

    flops: float
    rate: float
    weights: int
    state: int


def _network(name: str, protocol: Protocol) -> Network:
    model = recipe.model(name, (), protocol.bf16)
    optimizer = recipe.optimizer(name, 240)
    kd = jaxkd.distill(model, jaxkd.teachers.none(), training.supervised(), optimizer=optimizer)
    batch = {"image": _shape(protocol.batch_size, 32, 32, 3), **_rows(protocol)}
    state = jax.eval_shape(kd.init, jax.random.key(0), batch)
    flops = _flops(kd.step, state, batch)
    return Network(flops, flops / _timed(kd.step, state, batch), _bytes(state.student), _bytes(state))


def _teacher(name: str, network: Network, wanted: Sequence[cells.Cell], place: cells.Place) -> list[Line]:
    """The training of a teacher, and the evaluation of all that is cached of it."""
    protocol = place.protocol
    steps = protocol.teacher_epochs * -(-(IMAGES - protocol.holdout) // protocol.batch_size)
    there = int(name in place.given or place.teacher_file(name).exists())
    seconds = steps * network.flops / network.rate
    lines = [Line(f"teacher {name}", 1, there, steps, network.flops, seconds, network.weights, 2 * network.state)]
    reading = {cell.method for cell in wanted if cell.teacher == name and _cached(cell, protocol)}
    if reading:
        forward = network.flops / 3
        steps = _images(protocol) * protocol.epochs // protocol.batch_size
        row = 2 * (recipe.CLASSES + int(np.prod(recipe.shapes(name)["pooled"])))
        what = f"outputs of {name} for {len(reading)} methods, {protocol.epochs} views"
        seconds = _images(protocol) * protocol.epochs / protocol.batch_size * forward / network.rate
        lines.append(Line(what, 1, 0, steps, forward, seconds, _images(protocol) * protocol.epochs * row, 0))
    return lines


def _students(same: Sequence[cells.Cell], taught_by: Network, network: Network, place: cells.Place) -> Line:
    """The seeds of a pair and a method."""
    protocol, (teacher, student, name, _) = place.protocol, same[0]
    method = methods.METHODS[name]
    labels = np.arange(_images(protocol), dtype=np.int32) % recipe.CLASSES
    setting = objectives.Setting(
        teacher, student, 240, labels, lambda tap: jnp.zeros(recipe.shapes(teacher)[tap][-1:], jnp.float32)
    )
    live = name != "student" and not _cached(same[0], protocol)
    steps = protocol.epochs * -(-_images(protocol) // protocol.batch_size)
    first = methods.initial_steps(method, steps)
    parts = [(steps, method.objective(setting))]
    if method.initial is not None:
        parts.append((first, method.initial(setting)))
    own, _ = _objective(training.supervised(), teacher, student, protocol)  # the network's step has it already
    flops, past_probabilities = 0.0, 0
    for count, objective in parts:
        extra, size_of = _objective(objective, teacher, student, protocol)
        flops += count * (network.flops + extra - own + live * taught_by.flops / 3)
        past_probabilities += size_of
    state = network.state + past_probabilities + live * taught_by.weights
    return Line(
        f"{teacher} → {student}: {published.TITLES[name]}",
        len(same),
        sum(place.file(cell).exists() for cell in same),
        steps + first,
        flops / (steps + first),
        flops / network.rate,
        network.weights,
        2 * state,
    )


def _objective(objective: Objective, teacher: str, student: str, protocol: Protocol) -> tuple[float, int]:
    """FLOPs of an objective with its gradients, and the bytes that a checkpoint holds of it."""
    size, key = protocol.batch_size, jax.random.key(0)
    ours, theirs = ({"logits": _shape(size, recipe.CLASSES), **_taps(name, size)} for name in (student, teacher))

    batch: Any = _rows(protocol)
    made = jax.eval_shape(lambda: objective.init(key, Context(ours, theirs, batch, jnp.int32(0))))

    def value(params: Any, ours: Any, state: Any, theirs: Any, batch: Any) -> Any:
        return objective.apply(params, state, Context(ours, theirs, batch, jnp.int32(0)), key).value

    flops = _flops(jax.grad(value, argnums=(0, 1)), made.params, ours, made.state, theirs, batch)
    return flops, 2 * _bytes(made.params) + _bytes(made.state)  # with its momenta


def _taps(name: str, size: int) -> dict[str, Any]:
    return {tap: _shape(size, *shape) for tap, shape in recipe.shapes(name).items()}


def _cached(cell: cells.Cell, protocol: Protocol) -> bool:
    return cell.method != "student" and cells.reads_cache(cell, protocol)


def _images(protocol: Protocol) -> int:
    return protocol.images or IMAGES - protocol.holdout


def _shape(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


def _rows(protocol: Protocol) -> dict[str, jax.ShapeDtypeStruct]:
    """What a batch has beside its images."""
    rows = (protocol.batch_size,)
    integers = jax.ShapeDtypeStruct(rows, jnp.int32)
    return {"label": integers, "row": integers, "mask": jax.ShapeDtypeStruct(rows, bool)}


def _bytes(tree: Any) -> int:
    """Of a tree's arrays in a checkpoint; a key is two numbers."""
    leaves = jax.tree.leaves(tree)
    return sum(8 if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x.size * x.dtype.itemsize for x in leaves)


def _flops(function: Any, *arguments: Any) -> float:
    """Before the compiler's optimizations, which change little in what convolutions and products cost."""
    found: Any = jax.jit(function).lower(*arguments).cost_analysis()
    return float(found["flops"])


def _timed(step: Any, state: Any, batch: Any) -> float:
    """Seconds of a step: the shortest of a few, after one that compiles."""
    random = np.random.default_rng(0)

    def filled(shape: Any) -> Any:
        if jnp.issubdtype(shape.dtype, jax.dtypes.prng_key):
            return jax.random.key(0)
        if jnp.issubdtype(shape.dtype, jnp.floating):
            return jnp.asarray(random.normal(size=shape.shape), shape.dtype)
        return jnp.zeros(shape.shape, shape.dtype) + jnp.asarray(shape.dtype == bool, shape.dtype)

    state, batch = jax.tree.map(filled, (state, batch))
    compiled = jax.jit(step)
    times = []
    for _ in range(1 + STEPS):
        began = time.perf_counter()
        jax.block_until_ready(compiled(state, batch))
        times.append(time.perf_counter() - began)
    return min(times[1:])


def table(plan: Plan) -> Table:
    """The plan for a terminal."""
    shown = Table(title=f"What would be run, {plan.workers} at a time", show_footer=True)
    left = [line for line in plan.lines if line.left]
    seconds = sum(line.left * line.seconds for line in left)
    disk = sum(line.runs * line.bytes for line in plan.lines) + plan.workers * max(
        (line.working for line in left), default=0
    )
    totals = ("all", "", "", "", "", "", duration(seconds / plan.workers), f"at most {size(disk)}")
    heads = ("", "runs", "done", "steps", "GFLOP a step", "each", "still", "disk")
    for head, foot in zip(heads, totals, strict=True):
        shown.add_column(head, foot, justify="right" if head else "left")
    for line in plan.lines:
        shown.add_row(
            line.what,
            str(line.runs),
            str(line.done),
            f"{line.steps:,}",
            f"{line.flops / 1e9:.2f}",
            duration(line.seconds),
            duration(line.left * line.seconds),
            size(line.runs * line.bytes),
        )
    shown.caption = (
        f"Times are of {jax.devices()[0].device_kind}: {STEPS} steps of each network were measured, what methods add "
        "follows from its FLOPs; evaluations and compilation are not in them."
    )
    return shown


def duration(seconds: float) -> str:
    """Hours and minutes.

    >>> duration(5400), duration(59)
    ('1 h 30 min', '1 min')
    """
    minutes = round(seconds / 60)
    if not minutes:
        return f"{seconds:.0f} s"
    return f"{minutes // 60} h {minutes % 60:02d} min" if minutes >= 60 else f"{minutes} min"


def size(count: float) -> str:
    """Bytes, in the largest unit that gives a whole number.

    >>> size(1536), size(5 * 2**20)
    ('1.5 KiB', '5.0 MiB')
    """
    for unit in itertools.chain(("B", "KiB", "MiB", "GiB")):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"
