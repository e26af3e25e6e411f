"""What the benchmarks share: compiled costs, timing in turn, the machine, and the JSON that `results/` keeps."""

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
import optax
import rich

#: runs one round of a side and waits for its result
Round = Callable[[], Any]


def costs(compiled: Any) -> dict[str, float]:
    """The FLOPs and the temporary bytes of a compiled program; a loop's body counts once among the FLOPs."""
    analysis, memory = compiled.cost_analysis(), compiled.memory_analysis()
    return {"flops": analysis["flops"], "temporary_bytes": memory.temp_size_in_bytes}


def seconds_in_turn(sides: Mapping[str, Round], rounds: int) -> dict[str, list[float]]:
    """Seconds of each side in each round; the sides take turns, in an order that alternates, and the first warms up.

    Whatever else the machine does falls on all of them alike.
    """
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for index in range(rounds + 1):
        for name in sorted(sides, reverse=bool(index % 2)):
            start = time.perf_counter()
            jax.block_until_ready(sides[name]())
            if index:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(ours: Iterable[float], theirs: Iterable[float]) -> float:
    """The median over the rounds of the ratio within a round."""
    return statistics.median(a / b for a, b in zip(ours, theirs, strict=True))


def quartiles(ours: Iterable[float], theirs: Iterable[float]) -> list[float]:
    """The lower quartile, the median and the upper quartile, over the rounds, of the ratio within a round."""
    ratios = sorted(a / b for a, b in zip(ours, theirs, strict=True))
    return statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "platform": jax.devices()[0].device_kind,
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "jax": jax.__version__,
        "flax": flax.__version__,
        "optax": optax.__version__,
    }


def report(rows: list[dict[str, Any]], out: Path | None, versions: Mapping[str, str] | None = None) -> None:
    """Prints the machine, and versions of whatever else took part, and writes the rows with it."""
    found = {**machine(), **(versions or {})}
    rich.print(found)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps({"machine": found, "rows": rows}, indent=2) + "\n")
