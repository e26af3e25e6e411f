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
from experiments.cifar100 import cells, methods, objectives, published, recipe, teachers
from experiments.cifar100.config import Protocol

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

    Every method is traced for its FLOPs. Of each network a few steps are timed, and the methods' times follow from
    their FLOPs.

    Args:
      wanted: the cells.
      place: what they share.
      workers: cells at the same time.

    Returns:
      A line for each teacher, each cache, and each pair and method.
    """
    protocol, lines = place.protocol, []
    rates: dict[str, float] = {}
    for name in track(list(dict.fromkeys(cell.teacher for cell in wanted)), "teachers", transient=True):
        lines += _teacher(name, wanted, place, rates)
    rows = list(dict.fromkeys((cell.teacher, cell.student, cell.method) for cell in wanted))
    for teacher, student, name in track(rows, "students", transient=True):
        same = [cell for cell in wanted if cell[:3] == (teacher, student, name)]
        step, arguments = _step(teacher, student, name, protocol)
        flops = _flops(step, *arguments)
        if student not in rates:
            alone = _step(teacher, student, "student", protocol)
            rates[student] = _flops(alone[0], *alone[1]) / _timed(alone[0], *alone[1])
        steps = protocol.epochs * _steps_per_epoch(protocol)
        steps += methods.initial_steps(methods.METHODS[name], steps)
        state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(_stored(arguments[0])))
        lines.append(
            Line(
                f"{teacher} → {student}: {published.TITLES[name]}",
                len(same),
                sum(place.file(cell).exists() for cell in same),
                steps,
                flops,
                steps * flops / rates[student],
                sum(x.size * 4 for x in jax.tree.leaves(arguments[0].student)),
                2 * state,
            )
        )
    return Plan(lines, workers)


def _teacher(name: str, wanted: Sequence[cells.Cell], place: cells.Place, rates: dict[str, float]) -> list[Line]:
    """The training of a teacher, and the evaluation of all that is cached of it."""
    protocol = place.protocol
    size = protocol.batch_size
    step, arguments = _step(name, name, "student", protocol)
    flops = _flops(step, *arguments)
    rates[name] = flops / _timed(step, *arguments)
    steps = protocol.teacher_epochs * -(-(IMAGES - protocol.holdout) // size)
    bytes_ = sum(x.size * 4 for x in jax.tree.leaves(arguments[0].student))
    state = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(_stored(arguments[0])))
    there = int(name in place.given or place.teacher_file(name).exists())
    lines = [Line(f"teacher {name}", 1, there, steps, flops, steps * flops / rates[name], bytes_, 2 * state)]
    reading = {cell.method for cell in wanted if cell.teacher == name and _cached(cell, protocol)}
    if reading:
        forward = flops / 3
        examples = (protocol.images or IMAGES - protocol.holdout) * protocol.epochs
        row = 2 * (recipe.CLASSES + int(np.prod(recipe.shapes(name)["pooled"])))
        seconds = examples / size * forward / rates[name]
        what = f"outputs of {name} for {len(reading)} methods, {protocol.epochs} views"
        lines.append(Line(what, 1, 0, examples // size, forward, seconds, examples * row, 0))
    return lines


def _cached(cell: cells.Cell, protocol: Protocol) -> bool:
    return cell.method != "student" and cells.reads_cache(cell, protocol)


def _steps_per_epoch(protocol: Protocol) -> int:
    return -(-(protocol.images or IMAGES - protocol.holdout) // protocol.batch_size)


def _step(teacher: str, student: str, name: str, protocol: Protocol) -> tuple[Any, tuple[Any, Any]]:
    """A training step, and the shapes of its arguments."""
    method = methods.METHODS[name]
    examples = protocol.images or IMAGES - protocol.holdout
    labels = np.arange(examples, dtype=np.int32) % recipe.CLASSES
    setting = objectives.Setting(
        teacher, student, 240, labels, lambda tap: jnp.zeros(recipe.shapes(teacher)[tap][-1:], jnp.float32)
    )
    model = recipe.model(student, method.student_taps(teacher, student), protocol.bf16)
    theirs = recipe.model(teacher, method.teacher_taps(teacher, student), protocol.bf16)
    size = protocol.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((size, 32, 32, 3), jnp.float32),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
        "row": jax.ShapeDtypeStruct((size,), jnp.int32),
        "mask": jax.ShapeDtypeStruct((size,), bool),
    }
    if name == "student":
        taught = jaxkd.teachers.none()
    elif cells.reads_cache(cells.Cell(teacher, student, name, 0), protocol):
        taps = {"logits": (recipe.CLASSES,), **{tap: recipe.shapes(teacher)[tap] for tap in teachers.CACHED[1:]}}
        batch |= {f"teacher/{tap}": jax.ShapeDtypeStruct((size, *shape), jnp.float32) for tap, shape in taps.items()}
        taught = jaxkd.Teacher(
            lambda key, batch, student: {},
            lambda state, batch, *, key: {tap: batch[f"teacher/{tap}"] for tap in taps},
            lambda state, student, step: state,
        )
    else:
        variables = jax.eval_shape(theirs.init, jax.random.key(0), batch)
        taught = jaxkd.teachers.frozen(theirs, variables)._replace(init=lambda key, batch, student: variables)
    kd = methods.build(method, setting, model, taught)
    return kd.step, (jax.eval_shape(kd.init, jax.random.key(0), batch), batch)


def _flops(step: Any, state: Any, batch: Any) -> float:
    """Of a step, before the compiler's optimisations; they change little in what convolutions and products cost."""
    found = jax.jit(step).lower(state, batch).cost_analysis()
    return float(found["flops"])  # type: ignore[index]


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


def _stored(state: Any) -> Any:
    """What of a state a checkpoint holds, as arrays of numbers."""
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((2,), jnp.uint32) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x, state
    )


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
        f"Times are of {jax.devices()[0].device_kind}: {STEPS} steps of each network were measured, the methods follow "
        "from their FLOPs; evaluations are not in them."
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
