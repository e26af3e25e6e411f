"""Time to the first step: tracing, lowering, compilation, and the first call, beside a hand-written step.

Run ``python -m benchmarks.compile_time``. The composed step and the hand-written one of `benchmarks.step` are built
anew in every round, in one process, without a cache of compiled programs, in alternating order. The times are those of
all processors together, so that other load of the machine affects them little; FLOPs, jaxpr equations and lines of the
compiled program are exact.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import jax
import rich
import tyro
from rich.table import Table

from benchmarks.common import command, costs, ratio, report
from benchmarks.step import LIBRARY, Pair, cases

PHASES = ("trace", "lower", "compile", "first step")
COMPOSED, HANDWRITTEN = "composed", "handwritten"

#: a step, its state and its other arguments
Parts = tuple[Callable[..., Any], Any, tuple[Any, ...]]


def sides(pair: Pair) -> dict[str, Callable[[], Parts]]:
    """Returns functions that build a step, its state and its other arguments."""

    def composed() -> Parts:
        return pair.kd.step, pair.state(), (pair.batch,)

    def by_hand() -> Parts:
        state, step = pair.handwritten(LIBRARY)
        return step, state, (pair.teacher, pair.batch)

    return {COMPOSED: composed, HANDWRITTEN: by_hand}


def seconds_of(make: Callable[[], Parts]) -> tuple[dict[str, float], Any, int]:
    """Returns the seconds of each phase, the compiled program, and the equations of its jaxpr."""
    jax.clear_caches()
    step, state, arguments = make()
    jax.block_until_ready(state)
    times, start = {}, time.process_time()

    def lap(phase: str) -> None:
        nonlocal start
        now = time.process_time()
        times[phase], start = now - start, now

    traced = jax.jit(step, donate_argnums=0).trace(state, *arguments)
    lap("trace")
    lowered = traced.lower()
    lap("lower")
    compiled = lowered.compile()
    lap("compile")
    jax.block_until_ready(compiled(state, *arguments))
    lap("first step")
    return times, compiled, len(traced.jaxpr.eqns)


def measure(pair: Pair, name: str, rounds: int) -> dict[str, Any]:
    """Returns the row of a case."""
    made = sides(pair)
    seconds: dict[str, list[dict[str, float]]] = {side: [] for side in made}
    exact: dict[str, dict[str, float]] = {}
    for number in range(rounds + 1):
        for side in sorted(made, reverse=bool(number % 2)):
            times, compiled, equations = seconds_of(made[side])
            exact[side] = {"equations": equations, "lines": compiled.as_text().count("\n"), **costs(compiled)}
            if number:  # the first round warms up
                seconds[side].append(times)
    total = {side: [sum(each.values()) for each in seconds[side]] for side in made}
    return {
        "case": name,
        "seconds": {
            side: {phase: statistics.median(each[phase] for each in seconds[side]) for phase in PHASES} for side in made
        },
        "program": exact,
        "time_ratio": ratio(total[COMPOSED], total[HANDWRITTEN]),
    }


def main(
    rounds: Annotated[int, tyro.conf.arg(help="number of timed rounds")] = 5,
    resnet_batch: int = 32,
    only: Annotated[str, tyro.conf.arg(help="substring of the names of the cases to measure")] = "",
    out: Annotated[Path | None, tyro.conf.arg(help="JSON file to write the results to")] = None,
) -> None:
    """Measures the time to the first step of a composed distillation and of a hand-written one."""
    rows = []
    for case in cases(1, 1, resnet_batch):
        if only not in case.name:
            continue
        row = measure(Pair(case), case.name, rounds)
        rows.append(row)
        table = Table(title=case.name, title_justify="left")
        for column in ("s of all processors", *PHASES, "equations", "lines"):
            table.add_column(column, justify="right" if column in (*PHASES, "equations", "lines") else "left")
        for side, times in row["seconds"].items():
            program = row["program"][side]
            counts = (f"{program[key]:,}" for key in ("equations", "lines"))
            table.add_row(side, *(f"{times[phase]:.3f}" for phase in PHASES), *counts)
        table.caption = f"all phases, composed / hand-written: {row['time_ratio']:.2f}"
        rich.print(table)
    report(rows, out)


if __name__ == "__main__":
    jax.config.update("jax_enable_compilation_cache", False)
    command(main)
