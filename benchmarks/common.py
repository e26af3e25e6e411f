"""Shared by the benchmarks: compiled costs, alternating timing, machine, JSON results."""

from __future__ import annotations

import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich

from jaxkd import data
from jaxkd.training import keep_freed_memory

#: runs one round of a side and returns arrays to wait for
Round = Callable[[], Any]


def command(main: Callable[..., None]) -> None:
    """Runs a benchmark's command line, in a process that keeps its memory: for all sides."""
    import tyro

    keep_freed_memory()
    tyro.cli(main)


def described(text: str) -> Any:
    """Returns the description of an argument, for annotations, which only a command line reads."""
    import tyro

    return tyro.conf.arg(help=text)


def costs(compiled: Any) -> dict[str, float]:
    """Returns FLOPs and temporary bytes of a compiled program.

    The FLOPs include a loop's body once.
    """
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {"flops": analysis["flops"], "temporary_bytes": memory.temp_size_in_bytes}


def seconds_in_turn(
    sides: Mapping[str, Round], rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Measures the seconds of each side in each round.

    The sides take turns, in alternating order, so that other load of the machine affects all of them. An additional
    first round warms up. With the clock `time.process_time`, they are seconds of all processors together.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds + 1):
        for name in sorted(sides, reverse=bool(index % 2)):
            start = clock()
            jax.block_until_ready(sides[name]())
            if index:
                seconds[name].append(clock() - start)
    return seconds


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """Returns the median over rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def quartiles(ours: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """Returns the quartiles over rounds of the ratio within a round."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3


def make_chunk(step: Callable[..., Any], gather: Callable[..., Any]) -> Callable[..., Any]:
    """Compiles steps on resident data as one dispatch, as `jaxkd.training.fit` runs them.

    Returns:
      ``(state, arrays, first, *, length) -> (state, stacked metrics)``, compiled per length; it donates the state.
    """

    def chunk(state: Any, arrays: Any, first: Any, *, length: int) -> Any:
        def one_step(state: Any, number: Any) -> Any:
            return step(state, gather(arrays, number))

        return jax.lax.scan(one_step, state, first + jnp.arange(length, dtype=jnp.int32))

    return jax.jit(chunk, static_argnames="length", donate_argnums=0)


def random_images(examples: int) -> data.Dataset:
    """Returns random images and labels of CIFAR-100's form: the time does not depend on their content."""
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (examples, 32, 32, 3), np.uint8)
    return data.from_arrays(image, random.integers(0, 100, examples), num_classes=100, name="random")


def machine() -> dict[str, Any]:
    """Returns the machine and the versions of a measurement."""
    return {
        "platform": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
    }


def report(rows: list[dict[str, Any]], out: Path | None, versions: Mapping[str, str] | None = None) -> None:
    """Prints machine and versions, and writes them with the rows to a file.

    Args:
      rows: results.
      out: JSON file, or None.
      versions: versions of other libraries that were measured.
    """
    described = {**machine(), **(versions or {})}
    rich.print(described)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": described, "rows": rows}, indent=2) + "\n")
