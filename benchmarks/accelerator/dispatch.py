"""An epoch of resident data as one dispatch, against one dispatch for each step."""

from __future__ import annotations

import functools
import statistics
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks import step
from benchmarks.accelerator import composed
from benchmarks.accelerator.options import Options
from benchmarks.accelerator.record import Case
from benchmarks.accelerator.timing import Box
from benchmarks.common import make_chunk, quartiles, seconds_in_turn


def cases(options: Options) -> list[Case]:
    """Returns an epoch of each pair of `composed`."""
    return [
        Case(f"{pair.name}, batch {pair.batch_size}", 5 if number == 0 else 15, functools.partial(epoch, pair))
        for number, pair in enumerate(composed.pairs(options.rehearse))
    ]


def epoch(case: step.Case, box: Box) -> dict[str, Any]:
    """Returns the milliseconds of a step in both forms, which gather the same batches on the device."""
    pair = step.Pair(case)
    steps, arrays, gather = pair.resident.steps_per_epoch, pair.resident.arrays, pair.resident.gather
    chunk: Any = make_chunk(pair.kd.step, gather)
    whole = chunk.lower(pair.state(), arrays, jnp.int32(0), length=steps).compile()
    one = jax.jit(lambda state, arrays, number: pair.kd.step(state, gather(arrays, number)), donate_argnums=0)
    single: Any = one.lower(pair.state(), arrays, jnp.int32(0)).compile()
    states = {"one dispatch": pair.state(), "step by step": pair.state()}

    def in_one() -> Any:
        states["one dispatch"], metrics = whole(states["one dispatch"], arrays, jnp.int32(0))
        return metrics

    def by_steps() -> Any:
        metrics = None
        for number in range(steps):
            states["step by step"], metrics = single(states["step by step"], arrays, jnp.int32(number))
        return metrics

    sides: dict[str, Callable[[], Any]] = {"one dispatch": in_one, "step by step": by_steps}
    seconds = seconds_in_turn(sides, 11 if box.left > 10 else 3)
    return {
        "steps": steps,
        "milliseconds": {name: 1e3 * statistics.median(each) / steps for name, each in seconds.items()},
        "times_as_fast": quartiles(seconds["step by step"], seconds["one dispatch"]),
    }
