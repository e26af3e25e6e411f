"""The same distillation with jaxkd, Keras and Tunix: steps per second, and losses.

Run ``pip install -e '.[experiments,peers]'`` and ``python -m benchmarks.peers``; only this benchmark needs the peers.
An MLP 64-64-64-10 learns from one of 64-512-512-10 on the digits, by SGD with momentum and 0.1 CE + 0.9 T² KL.
All sides start from the same weights. Their first steps use the same batches, and the losses must agree, so that the
timed work is the same; then the sides take turns. In batches of 128, a CPU spends most of a step in the teacher's
matrix products, which all sides share; in batches of 16 it does not, and an accelerator does not in either.

The timed calls are a user's: ``fit`` of jaxkd and of Keras with the set in memory, including shuffling, callbacks and
logging, and Tunix's trainer, which takes single batches, with batches that are on the device already.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import rich
import tyro
from rich.table import Table
from rich.text import Text

from benchmarks.common import command, quartiles, report, seconds_in_turn
from benchmarks.peers import setting
from benchmarks.peers.setting import Setting, Side

FIT, LOOP = "jaxkd fit", "jaxkd loop"
KERAS, KERAS_50, TUNIX = "Keras fit", "Keras fit, 50 steps per execution", "Tunix train"
#: claimed lower limits of `fit`'s steps per second over a peer's
CLAIMS = {KERAS: 1.4, TUNIX: 2.5}
TOLERANCE = 1e-4  # relative, of the losses: float32 rounding, and Keras's clipping of probabilities at 1e-7
PACKAGES = {"keras": "keras", "tunix": "google-tunix"}

Make = Callable[[Setting], Side]


def makers(steps: int) -> dict[str, tuple[str, Make]]:
    """Returns, by the name of a side, its module in this package and a function that builds it."""

    def of(module: str, function: str, **options: Any) -> tuple[str, Make]:
        def make(chosen: Setting) -> Side:
            found = importlib.import_module(f"benchmarks.peers.{module}")
            side: Side = getattr(found, function)(chosen, steps, **options)
            return side

        return module, make

    return {
        FIT: of("ours", "fit"),
        LOOP: of("ours", "loop"),
        KERAS: of("keras", "fit"),
        KERAS_50: of("keras", "fit", steps_per_execution=50),
        TUNIX: of("tunix", "train"),
    }


def measure(chosen: Setting, sides: Mapping[str, tuple[str, Make]], rounds: int) -> list[dict[str, Any]]:
    """Returns a row per side; a side that cannot be built has an error instead of times."""
    made: dict[str, Side] = {}
    rows: dict[str, dict[str, Any]] = {name: {"side": name} for name in sides}
    for name, (module, make) in sides.items():
        try:
            made[name] = make(chosen)
            rows[name]["losses"] = made[name].losses()
        except Exception as error:  # a peer may fail in any way, without preventing the others' measurement
            if module not in PACKAGES:
                raise
            made.pop(name, None)
            rows[name]["error"] = f"{type(error).__name__}: {error}"
    expected = np.array(rows[FIT]["losses"])
    seconds = seconds_in_turn({name: side.round for name, side in made.items()}, rounds)
    for name, side in made.items():
        rows[name]["loss_difference"] = float(np.max(np.abs(np.array(rows[name]["losses"]) / expected - 1)))
        rows[name]["steps_per_second"] = side.steps / statistics.median(seconds[name])
        per_step = {each: [second / made[each].steps for second in seconds[each]] for each in (FIT, name)}
        rows[name]["fit_over_it"] = quartiles(per_step[name], per_step[FIT])
    return list(rows.values())


def show(rows: list[dict[str, Any]], batch_size: int) -> None:
    table = Table(title=f"MLP 64-64-64-10 from 64-512-512-10, digits, batch {batch_size}", title_justify="left")
    table.caption = "difference: largest relative difference of the losses of the first steps"
    for column in ("", "steps per second", "jaxkd fit / this", "claimed", "difference"):
        table.add_column(column, justify="right" if column else "left")
    for row in rows:
        if "error" in row:
            table.add_row(row["side"], "not measured", "", "", "")
            continue
        low, middle, high = row["fit_over_it"]
        claim = CLAIMS.get(row["side"])
        table.add_row(
            row["side"],
            f"{row['steps_per_second']:,.0f}",
            f"{middle:.2f} ({low:.2f} to {high:.2f})",
            f"≥ {claim}" if claim else "",
            f"{row['loss_difference']:.1e}",
        )
    rich.print(table)
    for row in rows:
        if "error" in row:
            rich.print(Text(f"{row['side']} was not measured: {row['error']}"))


def broken(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the violated claims."""
    found = []
    for row in rows:
        if "error" in row:
            continue
        if row["loss_difference"] > TOLERANCE:
            found.append(f"{row['side']}, batch {row['batch']}: losses differ by {row['loss_difference']:.1e}")
        if row["side"] in CLAIMS and row["fit_over_it"][1] < CLAIMS[row["side"]]:
            found.append(f"{row['side']}, batch {row['batch']}: {row['fit_over_it'][1]:.2f} times")
    return found


def versions() -> dict[str, str]:
    found = {}
    for name, package in PACKAGES.items():
        try:
            found[name] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    return found


def main(
    rounds: Annotated[int, tyro.conf.arg(help="number of timed rounds")] = 11,
    steps: Annotated[int, tyro.conf.arg(help="steps of each side per round, in epochs of 100")] = 500,
    batch_sizes: Annotated[tuple[int, ...], tyro.conf.arg(help="batch sizes, one table each")] = (128, 16),
    compared: Annotated[int, tyro.conf.arg(help="number of first steps whose losses are compared")] = 20,
    out: Annotated[Path | None, tyro.conf.arg(help="JSON file to write the results to")] = None,
) -> None:
    """Compares jaxkd with the distillation of other libraries."""
    rows = []
    for batch_size in batch_sizes:
        found = measure(setting.make(batch_size, 100, compared), makers(steps), rounds)
        show(found, batch_size)
        rows += [{"batch": batch_size, **row} for row in found]
    claims = broken(rows)
    rich.print("all measured claims hold" if not claims else "violated claims: " + "; ".join(claims))
    report(rows, out, versions())


if __name__ == "__main__":
    command(main)
