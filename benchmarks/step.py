"""Cost of a composed step relative to a hand-written one: FLOPs, memory, traces, speed.

Run ``python -m benchmarks.step`` (or ``make bench``). The step is cross-entropy, soft targets and a learned hint with
SGD and momentum, composed with jaxkd and written by hand (`benchmarks.handwritten`), for an MLP (bound by dispatch) and
for a CIFAR resnet (bound by computation). Each is measured twice: a Python loop of compiled steps
(`jaxkd.parallel.jit`), and an epoch as one scan over a set on the device, as in `jaxkd.training.fit`.

FLOPs and memory are those of the compiled programs, hence exact. The sides take turns in one process, in alternating
order, so that other load of the machine affects both; a ratio is the median over the rounds, with its quartiles. The
placement of programs and arrays in memory changes a small step by some percent, so that the MLP's are rebuilt several
times. The hand-written step uses optax's losses. Another one, which is compiled but not run, uses jaxkd's; the
remaining differences in FLOPs and memory are the cost of the composition.

On a CPU, XLA runs gradients of convolutions many times slower in a scan than outside of it, for either side. Hence the
resnet's epoch is short, with fewer rounds.
"""

from __future__ import annotations

import functools
import itertools
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
from rich.table import Table

import jaxkd
from benchmarks import handwritten
from benchmarks.common import command, costs, described, make_chunk, quartiles, report, seconds_in_turn
from benchmarks.handwritten import CE_WEIGHT, HINT_WEIGHT, KD_WEIGHT, TEMPERATURE
from jaxkd import data, losses, models

SPEED, COST = 0.98, 1.005  # claims: lower limit of the speed ratio, upper limit of the FLOPs and memory ratios
LIBRARY = handwritten.Losses(
    losses.cross_entropy, functools.partial(losses.soft_target_kl, temperature=TEMPERATURE)
)  # fmt: skip


class Case(NamedTuple):
    """A comparison.

    Attributes:
      name: name in the results.
      student: student network.
      teacher: teacher network.
      tap: path of the feature of the hint.
      arrays: set of an epoch.
      batch_size: examples in a batch.
      steps: steps of the loop per round.
      scans: upper limit of the scan's rounds.
      anew: number of times that programs and states are rebuilt.
    """

    name: str
    student: nn.Module
    teacher: nn.Module
    tap: str
    arrays: dict[str, np.ndarray]
    batch_size: int
    steps: int
    scans: int
    anew: int


def cases(mlp_steps: int, resnet_steps: int, resnet_batch: int) -> list[Case]:
    """Returns a case bound by dispatch and one bound by computation."""
    random = np.random.default_rng(0)

    def rows(count: int, shape: tuple[int, ...], classes: int) -> dict[str, np.ndarray]:
        image = random.normal(size=(count, *shape)).astype(np.float32)
        return {"image": image, "label": random.integers(0, classes, count).astype(np.int32)}

    return [
        Case(
            "MLP 64-64-64-10 from 64-512-512-10, batch 128",
            models.MLP((64, 64), 10),
            models.MLP((512, 512), 10),
            "Hidden_1",
            rows(128 * 100, (64,), 10),
            128,
            mlp_steps,
            1000,
            5,
        ),
        Case(
            f"resnet8 from resnet20, batch {resnet_batch}",
            models.create("resnet8", 100),
            models.create("resnet20", 100),
            "ResNetStage_1",
            rows(resnet_batch * 2, (32, 32, 3), 100),
            resnet_batch,
            resnet_steps,
            5 if jax.default_backend() == "cpu" else 1000,
            1,
        ),
    ]


class Side(NamedTuple):
    """One side of a comparison.

    Attributes:
      compiled: compiled program.
      state: initial state.
      run: ``(state, round) -> (state, metrics)``.
      traces: returns the number of traces.
    """

    compiled: Any
    state: Any
    run: Callable[[Any, int], Any]
    traces: Callable[[], int]


def traced(function: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[[], int]]:
    """Returns the function with a counter of its traces."""
    count = [0]

    @functools.wraps(function)
    def counted(*arguments: Any, **options: Any) -> Any:
        count[0] += 1
        return function(*arguments, **options)

    return counted, lambda: count[0]


class Pair:
    """Both sides of a case, from the same parameters."""

    def __init__(self, case: Case) -> None:
        tap, self.case, self.optimizer = {"feature": case.tap}, case, optax.sgd(0.05, momentum=0.9)
        self.batch = jax.device_put({name: value[: case.batch_size] for name, value in case.arrays.items()})
        self.teacher = case.teacher.init(jax.random.key(1), case.arrays["image"][:1])
        objective = jaxkd.combine(
            ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=CE_WEIGHT),
            kd=jaxkd.term(
                losses.soft_target_kl, "student/logits", "teacher/logits", weight=KD_WEIGHT, temperature=TEMPERATURE
            ),
            hint=jaxkd.objectives.hint("student/feature", "teacher/feature", weight=HINT_WEIGHT),
        )
        self.kd = jaxkd.distill(
            jaxkd.adapters.linen(case.student, taps=tap),
            jaxkd.teachers.frozen(jaxkd.adapters.linen(case.teacher, taps=tap), self.teacher),
            objective,
            optimizer=self.optimizer,
        )
        self.start = self.kd.init(jax.random.key(0), self.batch)
        self.resident = data.Resident(
            data.from_arrays(case.arrays["image"], case.arrays["label"]), case.batch_size, drop_remainder=True
        )

    def state(self) -> Any:
        """Returns a new state of the composed step."""
        return jax.tree.map(jnp.copy, self.start)

    def handwritten(self, losses: handwritten.Losses = handwritten.OPTAX) -> tuple[Any, Callable[..., Any]]:
        """Returns a new state of the hand-written step, and that step."""
        student, loss = self.start.student, self.start.objective
        state = handwritten.make_state(
            student.params, loss.params.get("hint", {}), student.state.get("batch_stats", {}), self.optimizer
        )
        case = self.case
        return state, handwritten.make_step(case.student, case.teacher, case.tap, self.optimizer, losses)

    def compiled_with_the_same_losses(self) -> Any:
        """Compiles the hand-written step with jaxkd's losses."""
        state, step = self.handwritten(LIBRARY)
        return jax.jit(step, donate_argnums=0).lower(state, self.teacher, self.batch).compile()

    def loops(self) -> dict[str, Side]:
        """Builds both sides as Python loops over compiled steps."""
        counted, composed_traces = traced(self.kd.step)
        placed = jaxkd.parallel.jit(self.kd._replace(step=counted))
        state, step = self.handwritten()
        step, handwritten_traces = traced(step)
        program = jax.jit(step, donate_argnums=0)

        def run(state: Any, _: int) -> Any:
            for _ in range(self.case.steps):
                state, metrics = placed(state, self.batch)
            return state, metrics

        def run_handwritten(state: Any, _: int) -> Any:
            for _ in range(self.case.steps):
                state, metrics = program(state, self.teacher, self.batch)
            return state, metrics

        program_of: Any = jax.jit(placed.step, donate_argnums=0)
        compiled = program_of.lower(self.start, self.batch).compile()
        return {
            "composed": Side(compiled, self.state(), run, composed_traces),
            "handwritten": Side(
                program.lower(state, self.teacher, self.batch).compile(), state, run_handwritten, handwritten_traces
            ),
        }  # fmt: skip

    def scans(self) -> dict[str, Side]:
        """Builds both sides as epochs in one dispatch, over a set on the device."""
        length, arrays = self.resident.steps_per_epoch, self.resident.arrays
        counted, composed_traces = traced(self.kd.step)
        chunk = make_chunk(counted, self.resident.gather)
        state, step = self.handwritten()
        step, handwritten_traces = traced(step)
        epoch = jax.jit(handwritten.make_epoch(step, self.case.batch_size), donate_argnums=0)
        used = {name: arrays[name] for name in ("image", "label")}
        key = jax.random.key(2)

        def run(state: Any, number: int) -> Any:
            return chunk(state, arrays, jnp.int32(number * length), length=length)

        def run_handwritten(state: Any, number: int) -> Any:
            return epoch(state, self.teacher, used, jax.random.fold_in(key, number))

        compiled = chunk.lower(self.start, arrays, jnp.int32(0), length=length).compile()  # type: ignore[attr-defined]
        return {
            "composed": Side(compiled, self.state(), run, composed_traces),
            "handwritten": Side(
                epoch.lower(state, self.teacher, used, key).compile(), state, run_handwritten, handwritten_traces
            ),
        }

    def difference(self) -> float:
        """Returns the largest difference of a student's parameters after an epoch in the same order."""
        chunk = make_chunk(self.kd.step, self.resident.gather)
        length, arrays = self.resident.steps_per_epoch, self.resident.arrays
        composed, _ = chunk(self.state(), arrays, jnp.int32(0), length=length)
        order = jnp.stack([self.resident.gather(arrays, number)["index"] for number in range(length)])
        state, step = self.handwritten()
        written, _ = jax.jit(functools.partial(handwritten.in_order, step))(state, self.teacher, arrays, order)
        gaps = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), composed.student.params, written["params"])
        return max(jax.tree.leaves(gaps))


def compare(make: Callable[[], dict[str, Side]], rounds: int, steps: int, anew: int = 1) -> dict[str, Any]:
    """Returns a row of compiled costs, traces and times.

    Args:
      make: builds and compiles the sides.
      rounds: number of timed rounds in total.
      steps: steps of a side per round.
      anew: number of calls of ``make``.
    """
    sides: dict[str, Side] = {}
    states: dict[str, Any] = {}
    seconds: dict[str, list[float]] = {"composed": [], "handwritten": []}

    def round_of(name: str) -> Callable[[], Any]:
        numbers = itertools.count()

        def run() -> Any:
            states[name], metrics = sides[name].run(states[name], next(numbers))
            return states[name], metrics

        return run

    for _ in range(anew):
        sides = make()
        states = {name: side.state for name, side in sides.items()}
        timed = seconds_in_turn({name: round_of(name) for name in sides}, -(-rounds // anew))
        seconds = {name: [*seconds[name], *timed[name]] for name in sides}
    compiled = {name: costs(side.compiled) for name, side in sides.items()}
    return {
        **{cost: {name: compiled[name][cost] for name in sides} for cost in ("flops", "temporary_bytes")},
        "traces": {name: side.traces() for name, side in sides.items()},
        "milliseconds": {name: 1e3 * statistics.median(seconds[name]) / steps for name in sides},
        # A ratio of steps per second is the inverse ratio of times.
        "speed_ratio": quartiles(seconds["handwritten"], seconds["composed"]),
    }


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """Returns the rows of a case."""
    pair = Pair(case)
    loop = compare(pair.loops, rounds, case.steps, case.anew)
    loop["of_the_same_losses"] = costs(pair.compiled_with_the_same_losses())
    scan = compare(pair.scans, min(rounds, case.scans), pair.resident.steps_per_epoch, case.anew)
    scan["difference_after_an_epoch"] = pair.difference()
    return [{"case": case.name, "mode": mode, **row} for mode, row in (("loop", loop), ("scan", scan))]


def show(row: dict[str, Any]) -> None:
    table = Table(title=f"{row['case']}: {row['mode']}", title_justify="left")
    for column in ("", "composed", "hand-written", "ratio", "claimed"):
        table.add_column(column, justify="right" if column else "left")
    for label, key, unit, digits in (
        ("FLOPs", "flops", 1, 5),
        ("temporary memory, MiB", "temporary_bytes", 2**20, 3),
        ("traces", "traces", 1, 0),
    ):
        ours, theirs = row[key]["composed"] / unit, row[key]["handwritten"] / unit
        claim = "" if key == "traces" or row["mode"] == "scan" else "1.00"
        table.add_row(label, f"{ours:,.7g}", f"{theirs:,.7g}", f"{ours / theirs:.{digits}f}", claim)
        if key in row.get("of_the_same_losses", {}):
            same = row["of_the_same_losses"][key] / unit
            table.add_row("  with the same losses", f"{ours:,.7g}", f"{same:,.7g}", f"{ours / same:.{digits}f}")
    low, middle, high = row["speed_ratio"]
    ours, theirs = (1e3 / row["milliseconds"][side] for side in ("composed", "handwritten"))
    table.add_row(
        "steps per second", f"{ours:,.5g}", f"{theirs:,.5g}", f"{middle:.3f} ({low:.3f} to {high:.3f})", f"≥ {SPEED}"
    )
    if "difference_after_an_epoch" in row:
        table.caption = (
            "largest difference of a parameter after an epoch in the same order: "
            f"{row['difference_after_an_epoch']:.1e}"
        )
    rich.print(table)


def broken(row: dict[str, Any]) -> list[str]:
    """Returns the claims that a row violates."""
    place = f"{row['case']}, {row['mode']}"
    violated = [
        f"{place}: {cost} ratio {ours / theirs:.4f}"
        for cost in (("flops", "temporary_bytes") if row["mode"] == "loop" else ())
        if (ours := row[cost]["composed"]) / (theirs := row[cost]["handwritten"]) > COST
    ]
    return violated + ([f"{place}: speed ratio {speed:.3f}"] if (speed := row["speed_ratio"][1]) < SPEED else [])


def main(
    rounds: Annotated[int, described("number of timed rounds")] = 30,
    mlp_steps: Annotated[int, described("steps of the MLP's loop per round")] = 200,
    resnet_steps: Annotated[int, described("steps of the resnet's loop per round")] = 4,
    resnet_batch: int = 32,
    out: Annotated[Path | None, described("JSON file to write the results to")] = None,
) -> None:
    """Compares a composed distillation step with a hand-written one."""
    rows = []
    for case in cases(mlp_steps, resnet_steps, resnet_batch):
        for row in measure(case, rounds):
            show(row)
            rows.append(row)
    claims = [claim for row in rows for claim in broken(row)]
    rich.print("all claims hold" if not claims else "violated claims: " + "; ".join(claims))
    report(rows, out)


if __name__ == "__main__":
    command(main)
