"""What training costs: FLOPs of the compiled steps, and seconds measured beside the student alone."""

from __future__ import annotations

import math
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp

from experiments.schemes.trials import Make, Own, Part, Trial


def parts_of(trial: Trial) -> list[Part]:
    """What a training is made of."""
    return list(trial.parts) or [Part(trial.make, trial.steps)]


def flops_of_step(make: Make, own: Own, batch: Any) -> float:
    """The FLOPs of one step of a seed, as the compiler counts them; it counts the body of a loop once."""
    kd = make(own)
    state = jax.eval_shape(kd.init, jax.random.key(0), batch)
    analysis: Any = jax.jit(kd.step).lower(state, batch).compile().cost_analysis()
    return float(analysis["flops"])


def total_flops(trial: Trial, own: Own, batch: Any) -> float:
    """The FLOPs of the whole training of a seed."""
    return sum(part.steps * flops_of_step(part.make, own, batch) for part in parts_of(trial))


def budget(steps: float) -> int:
    """About as many steps, of a few numbers: trainings of nearly equal cost are then one, and a program has one length.

    The numbers are twelve evaluations of so many steps each, a twentieth apart; they differ by at most 4 % from what is
    asked for, and below 240 steps by less than one.

    >>> [budget(steps) for steps in (1200, 1210, 1300, 30.4)]
    [1200, 1200, 1320, 30]
    """
    if steps < 240:
        return max(round(steps), 1)
    each = round(100 * 1.05 ** round(math.log(steps / 1200, 1.05)))
    pieces = -(-each // 100)  # each of the same length
    return 12 * pieces * round(each / pieces)


def seconds_beside(
    trial: Trial, reference: Trial, own: Own, batches: tuple[Any, Any], rounds: int = 5
) -> dict[str, float]:
    """How long a step takes, and how many times as long as one of another trial: medians over rounds in turn.

    Args:
      trial: what to time; of several parts, the mean over all its steps.
      reference: what it is compared with.
      own: of a seed.
      batches: one for either.
      rounds: how often each is timed.
    """
    parts = parts_of(trial)
    ours = [_runner(part.make, own, batches[0]) for part in parts]
    theirs = _runner(reference.make, own, batches[1])
    total = sum(part.steps for part in parts)
    seconds, ratios = [], []
    for i in range(rounds + 1):
        base = theirs()
        times = [run() for run in ours]
        mean = sum(part.steps * t for part, t in zip(parts, times, strict=True)) / total
        if i:
            seconds.append(mean)
            ratios.append(mean / base)
    return {"seconds_per_step": statistics.median(seconds), "over_alone": statistics.median(ratios)}


def _runner(make: Make, own: Own, batch: Any, steps: int = 20) -> Any:
    kd = make(own)
    step = jax.jit(kd.step, donate_argnums=0)
    state = jax.tree.map(jnp.copy, kd.init(jax.random.key(0), batch))

    def run() -> float:
        nonlocal state
        began = time.perf_counter()
        for _ in range(steps):
            state, metrics = step(state, batch)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - began) / steps

    run()
    return run
