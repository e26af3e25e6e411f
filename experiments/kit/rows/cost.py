"""The cost of a step in FLOPs and in seconds, and trainings of equal cost."""

import math
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
from jax.extend.core import jaxpr_as_fun

from jaxkd.types import Distiller


def flops(function: Any, *arguments: Any, compiled: bool = False) -> float:
    """Returns the FLOPs of a function, with each `jax.lax.scan` as often as it repeats its body.

    The compiler counts the body of a loop once, which would make generation and recurrent networks look cheap. The body
    of a `jax.lax.while_loop`, whose number of iterations is not known, counts once here too.

    >>> step = lambda x: jax.lax.scan(lambda x, _: (x @ x, None), x, length=10)[0]
    >>> flops(step, jnp.ones((8, 8))) // flops(lambda x: x @ x, jnp.ones((8, 8)))
    10.0
    """
    return _with_loops(jax.make_jaxpr(function)(*arguments), compiled)


def _with_loops(program: Any, compiled: bool) -> float:
    """Returns the FLOPs of a traced program, bodies of nested loops as often as they run."""
    total = _counted(program, compiled)
    for body, length in _loops(program.jaxpr):
        total += length * _with_loops(body, compiled) - _counted(body, compiled)
    return total


def _counted(program: Any, compiled: bool) -> float:
    """Returns the FLOPs of a traced program as the compiler counts them."""
    shapes = [jax.ShapeDtypeStruct(aval.shape, aval.dtype) for aval in program.in_avals]
    lowered = jax.jit(jaxpr_as_fun(program)).lower(*shapes)
    analysis: Any = (lowered.compile() if compiled else lowered).cost_analysis()
    return float(analysis.get("flops", 0.0))


def _loops(jaxpr: Any) -> Iterator[tuple[Any, int]]:
    """Yields the bodies of a program's outermost scans, with their lengths."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "scan":
            yield equation.params["jaxpr"], equation.params["length"]
            continue
        for value in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from _loops(inner)


def flops_of_step(kd: Distiller, batch: Any) -> float:
    """Returns the FLOPs of one step, as the compiler counts them."""
    return flops(kd.step, jax.eval_shape(kd.init, jax.random.key(0), batch), batch, compiled=True)


def seconds_per_step(step: Any, state: Any, batch: Any, steps: int = 1) -> tuple[float, Any]:
    """Returns the mean seconds of some steps, and the state after them."""
    began = time.perf_counter()
    metrics = None
    for _ in range(steps):
        state, metrics = step(state, batch)
    jax.block_until_ready((state, metrics))
    return (time.perf_counter() - began) / steps, state


def stopwatch(kd: Distiller, batch: Any) -> Callable[[], float]:
    """Returns a function that runs further steps and returns the seconds of one; the program is compiled before."""
    step = jax.jit(kd.step, donate_argnums=0)
    state = jax.tree.map(jnp.copy, kd.init(jax.random.key(0), batch))

    def run() -> float:
        nonlocal state
        seconds, state = seconds_per_step(step, state, batch, steps=20)
        return seconds

    run()
    return run


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
