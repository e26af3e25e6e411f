"""What a composed step costs over a hand-written one: compiled FLOPs and memory (exact), traces, and speed (a ratio).

Run ``python -m benchmarks.step`` (or ``make bench``). The step is cross-entropy + soft targets + a learned hint with
SGD and momentum, once composed with jaxkd and once written out (`benchmarks.handwritten`), for an MLP (bound by
dispatch) and for a CIFAR resnet (bound by computation). Each is measured twice: a Python loop of compiled steps
(`jaxkd.parallel.jit`), and an epoch as one scan over data on the device (the chunk that `jaxkd.training.fit` runs).

Both sides run in turn in one process, in an order that alternates, so that whatever else the machine does falls on
both; a ratio is the median over the rounds, given with its quartiles. Where a program and its arrays happen to lie in
memory makes some percent of a small step, so the MLP's are made anew several times. The hand-written step uses optax's
losses. A second one, which is only compiled, uses jaxkd's: what FLOPs and memory then remain are the composition's.

On a CPU, XLA runs the gradients of convolutions many times slower in a scan than outside of it, whoever wrote it; the
resnet's epoch is therefore short here, and has fewer rounds.
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
import tyro
from rich.table import Table

import jaxkd
from benchmarks import handwritten
from benchmarks.common import costs, quartiles, report, seconds_in_turn
from benchmarks.handwritten import CE_WEIGHT, HINT_WEIGHT, KD_WEIGHT, TEMPERATURE
from jaxkd import data, losses, models
from jaxkd.training import compiled_steps as programs

SPEED, COST = 0.98, 1.005  # what is claimed: steps a second at least, FLOPs and memory at most (1.00)
LIBRARY = handwritten.Losses(
    losses.cross_entropy, functools.partial(losses.soft_target_kl, temperature=TEMPERATURE)
)  # fmt: skip


class Case(NamedTuple):
    """A pair of networks, the path of the feature that is hinted, the data of an epoch, and the batch."""

    name: str
    student: nn.Module
    teacher: nn.Module
    tap: str
    arrays: dict[str, np.ndarray]
    batch_size: int
    #: steps of the loop in one round
    steps: int
    #: rounds of the scan, at most
    scans: int
    #: how many times the programs and the states are made anew
    anew: int


def cases(mlp_steps: int, resnet_steps: int, resnet_batch: int) -> list[Case]:
    """The two sizes at which overhead shows differently."""
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
    """One side of a comparison: a compiled function, its first state, and how a round advances that."""

    compiled: Any
    state: Any
    #: ``(state, round) -> state``
    run: Callable[[Any, int], Any]
    traces: Callable[[], int]


def traced(function: Callable[..., Any]) -> tuple[Callable[..., Any], Callable[[], int]]:
    """The function, and how often it has been traced."""
    count = [0]

    @functools.wraps(function)
    def counted(*arguments: Any, **options: Any) -> Any:
        count[0] += 1
        return function(*arguments, **options)

    return counted, lambda: count[0]


class Pair:
    """A case, composed and written out, from the same parameters."""

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
        """A fresh state of the composed step."""
        return jax.tree.map(jnp.copy, self.start)

    def handwritten(self, losses: handwritten.Losses = handwritten.OPTAX) -> tuple[Any, Callable[..., Any]]:
        """A fresh state of the step written out, and that step."""
        student, loss = self.start.student, self.start.loss
        state = handwritten.make_state(
            student.params, loss.params.get("hint", {}), student.state.get("batch_stats", {}), self.optimizer
        )
        case = self.case
        return state, handwritten.make_step(case.student, case.teacher, case.tap, self.optimizer, losses)

    def compiled_with_the_same_losses(self) -> Any:
        """The step written out with jaxkd's losses."""
        state, step = self.handwritten(LIBRARY)
        return jax.jit(step, donate_argnums=0).lower(state, self.teacher, self.batch).compile()

    def loops(self) -> dict[str, Side]:
        """A Python loop over compiled steps."""
        counted, ours = traced(self.kd.step)
        placed = jaxkd.parallel.jit(self.kd._replace(step=counted))
        state, step = self.handwritten()
        step, theirs = traced(step)
        program = jax.jit(step, donate_argnums=0)

        def run(state: Any, _: int) -> Any:
            for _ in range(self.case.steps):
                state, metrics = placed(state, self.batch)
            return state, metrics

        def run_handwritten(state: Any, _: int) -> Any:
            for _ in range(self.case.steps):
                state, metrics = program(state, self.teacher, self.batch)
            return state, metrics

        program_of: Any = placed.step
        compiled = program_of.lower(self.start, self.batch).compile()
        return {
            "composed": Side(compiled, self.state(), run, ours),
            "handwritten": Side(
                program.lower(state, self.teacher, self.batch).compile(), state, run_handwritten, theirs
            ),
        }  # fmt: skip

    def scans(self) -> dict[str, Side]:
        """An epoch in one dispatch, over data on the device."""
        length, arrays = self.resident.steps_per_epoch, self.resident.arrays
        counted, ours = traced(self.kd.step)
        chunk = programs.run_chunk(counted, self.resident.gather)
        state, step = self.handwritten()
        step, theirs = traced(step)
        epoch = jax.jit(handwritten.make_epoch(step, self.case.batch_size), donate_argnums=0)
        used = {name: arrays[name] for name in ("image", "label")}
        key = jax.random.key(2)

        def run(state: Any, number: int) -> Any:
            return chunk(state, arrays, jnp.int32(number * length), length=length)

        def run_handwritten(state: Any, number: int) -> Any:
            return epoch(state, self.teacher, used, jax.random.fold_in(key, number))

        compiled = chunk.lower(self.start, arrays, jnp.int32(0), length=length).compile()  # type: ignore[attr-defined]
        return {
            "composed": Side(compiled, self.state(), run, ours),
            "handwritten": Side(epoch.lower(state, self.teacher, used, key).compile(), state, run_handwritten, theirs),
        }

    def difference(self) -> float:
        """The largest of a student's parameter after an epoch in the same order, of both sides."""
        chunk = programs.run_chunk(self.kd.step, self.resident.gather)
        length, arrays = self.resident.steps_per_epoch, self.resident.arrays
        ours, _ = chunk(self.state(), arrays, jnp.int32(0), length=length)
        order = jnp.stack([self.resident.gather(arrays, number)["index"] for number in range(length)])
        state, step = self.handwritten()
        theirs, _ = jax.jit(functools.partial(handwritten.in_order, step))(state, self.teacher, arrays, order)
        gaps = jax.tree.map(lambda a, b: float(jnp.max(jnp.abs(a - b))), ours.student.params, theirs["params"])
        return max(jax.tree.leaves(gaps))


def compare(make: Callable[[], dict[str, Side]], rounds: int, steps: int, anew: int = 1) -> dict[str, Any]:
    """One row: the costs as compiled, and the seconds of a step, in turn.

    Args:
      make: the sides, compiled for this call.
      rounds: how many to time in all.
      steps: that a side makes in a round.
      anew: how many times to call ``make``.
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
    found = {name: costs(side.compiled) for name, side in sides.items()}
    return {
        **{cost: {name: found[name][cost] for name in sides} for cost in ("flops", "temporary_bytes")},
        "traces": {name: side.traces() for name, side in sides.items()},
        "milliseconds": {name: 1e3 * statistics.median(seconds[name]) / steps for name in sides},
        # steps a second over steps a second: the other's time over one's own
        "speed_ratio": quartiles(seconds["handwritten"], seconds["composed"]),
    }


def measure(case: Case, rounds: int) -> list[dict[str, Any]]:
    """The rows of a case."""
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
            table.add_row("  of the same losses", f"{ours:,.7g}", f"{same:,.7g}", f"{ours / same:.{digits}f}")
    low, middle, high = row["speed_ratio"]
    ours, theirs = (1e3 / row["milliseconds"][side] for side in ("composed", "handwritten"))
    table.add_row(
        "steps a second", f"{ours:,.5g}", f"{theirs:,.5g}", f"{middle:.3f} ({low:.3f} to {high:.3f})", f"≥ {SPEED}"
    )
    if "difference_after_an_epoch" in row:
        table.caption = (
            "largest difference of a parameter after an epoch in the same order: "
            f"{row['difference_after_an_epoch']:.1e}"
        )
    rich.print(table)


def broken(row: dict[str, Any]) -> list[str]:
    """The claims that a row does not keep."""
    where = f"{row['case']}, {row['mode']}"
    found = [
        f"{where}: {cost} ratio {ours / theirs:.4f}"
        for cost in (("flops", "temporary_bytes") if row["mode"] == "loop" else ())
        if (ours := row[cost]["composed"]) / (theirs := row[cost]["handwritten"]) > COST
    ]
    return found + ([f"{where}: speed ratio {speed:.3f}"] if (speed := row["speed_ratio"][1]) < SPEED else [])


def main(
    rounds: Annotated[int, tyro.conf.arg(help="timed rounds")] = 30,
    mlp_steps: Annotated[int, tyro.conf.arg(help="steps of the MLP's loop in a round")] = 200,
    resnet_steps: Annotated[int, tyro.conf.arg(help="steps of the resnet's loop in a round")] = 4,
    resnet_batch: int = 32,
    out: Annotated[Path | None, tyro.conf.arg(help="also write the figures there, as JSON")] = None,
) -> None:
    """Compares a composed distillation step with a hand-written one."""
    rows = []
    for case in cases(mlp_steps, resnet_steps, resnet_batch):
        for row in measure(case, rounds):
            show(row)
            rows.append(row)
    claims = [claim for row in rows for claim in broken(row)]
    rich.print("every claim holds" if not claims else "not as claimed: " + "; ".join(claims))
    report(rows, out)


if __name__ == "__main__":
    tyro.cli(main)
