"""The cost of a training: FLOPs of its steps, and seconds beside the student's."""

import math
import statistics
from typing import Any

import jax
import jax.numpy as jnp

from experiments.kit import plan
from experiments.schemes.method import Make, Own, Training


def flops_of_step(make: Make, own: Own, batch: Any) -> float:
    """Returns the FLOPs of one step of a seed, as the compiler counts them."""
    kd = make(own)
    return plan.flops(kd.step, jax.eval_shape(kd.init, jax.random.key(0), batch), batch, compiled=True)


def total_flops(training: Training, own: Own, batch: Any) -> float:
    """Returns the FLOPs of the whole training of a seed."""
    return sum(part.steps * flops_of_step(part.make, own, batch) for part in training.all_parts)


def budget(steps: float) -> int:
    """Rounds steps so that trainings of nearly equal cost are one training.

    The numbers are twelve evaluations of so many steps each, a twentieth apart. They differ by at most 4 % from the
    argument, and by less than one step below 240 steps.

    >>> [budget(steps) for steps in (1200, 1210, 1300, 30.4)]
    [1200, 1200, 1320, 30]
    """
    if steps < 240:
        return max(round(steps), 1)
    each = round(100 * 1.05 ** round(math.log(steps / 1200, 1.05)))
    pieces = -(-each // 100)  # the loop runs pieces of equal length as one program
    return 12 * pieces * round(each / pieces)


def seconds_beside(
    training: Training, reference: Training, own: Own, batches: tuple[Any, Any], rounds: int = 5
) -> dict[str, float]:
    """Returns the seconds of a step, and their ratio to those of another training."""
    parts, base = training.all_parts, _runner(reference.make, own, batches[1])
    timed = [_runner(part.make, own, batches[0]) for part in parts]
    total = sum(part.steps for part in parts)
    seconds, ratios = [], []
    for _ in range(rounds + 1):
        before = base()
        seconds.append(sum(part.steps * run() for part, run in zip(parts, timed, strict=True)) / total)
        ratios.append(seconds[-1] / before)
    # The first round warms up.
    return {"seconds_per_step": statistics.median(seconds[1:]), "over_alone": statistics.median(ratios[1:])}


def _runner(make: Make, own: Own, batch: Any) -> Any:
    kd = make(own)
    step = jax.jit(kd.step, donate_argnums=0)
    state = jax.tree.map(jnp.copy, kd.init(jax.random.key(0), batch))

    def run() -> float:
        nonlocal state
        seconds, state = plan.seconds_per_step(step, state, batch, steps=20)
        return seconds

    run()
    return run
