"""The same distillation by jaxkd, by Keras and by Tunix, in turn in one run: steps a second, and the losses.

Run ``pip install -e '.[experiments,peers]'`` and ``python -m benchmarks.peers``; the peers are dependencies of nothing
else. An MLP 64-64-64-10 learns from one of 64-512-512-10 on the digits by SGD with momentum and 0.1 cross-entropy +
0.9 T² KL. All start from the same weights. The first steps are made on the same batches, and the losses must agree, so
that what is timed is the same work; then all take turns. In batches of 128, a CPU spends most of a step in the
teacher's matrix products, which are everybody's; in batches of 16 it does not, as an accelerator would not in either.

What is timed is what a user calls: ``fit`` of jaxkd and of Keras with the set in memory, shuffled, callbacks, logging
and all, and Tunix's trainer, which takes batches one by one, with batches that lie on the device already.
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

from benchmarks.common import quartiles, report, seconds_in_turn
from benchmarks.peers import setting
from benchmarks.peers.setting import Setting, Side

FIT, LOOP = "jaxkd fit", "jaxkd loop"
KERAS, KERAS_50, TUNIX = "Keras fit", "Keras fit, 50 steps per execution", "Tunix train"
#: how many times a peer's steps a second jaxkd's `fit` makes, at least
CLAIMS = {KERAS: 1.4, TUNIX: 2.5}
TOLERANCE = 1e-4  # of the losses, relative: those of float32, and Keras' clipping of probabilities at 1e-7
PACKAGES = {"keras": "keras", "tunix": "google-tunix"}

Make = Callable[[Setting], Side]


def makers(steps: int) -> dict[str, tuple[str, Make]]:
    """Name of a side: its module in this package, and what makes it of a setting."""

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
    """A row for each side; one that cannot be made says why."""
    made: dict[str, Side] = {}
    rows: dict[str, dict[str, Any]] = {name: {"side": name} for name in sides}
    for name, (module, make) in sides.items():
        try:
            made[name] = make(chosen)
            rows[name]["losses"] = made[name].losses()
        except Exception as error:  # a peer may fail in any way; the others are measured all the same
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
    table.caption = "difference: the largest, relative, of the losses of the first steps"
    for column in ("", "steps a second", "jaxkd fit over it", "claimed", "difference"):
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
    """The claims that are not kept."""
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
    rounds: Annotated[int, tyro.conf.arg(help="timed rounds")] = 11,
    steps: Annotated[int, tyro.conf.arg(help="steps of each side in a round, in epochs of 100")] = 500,
    batch_sizes: Annotated[tuple[int, ...], tyro.conf.arg(help="examples in a batch: one table for each")] = (128, 16),
    compared: Annotated[int, tyro.conf.arg(help="first steps whose losses are compared")] = 20,
    out: Annotated[Path | None, tyro.conf.arg(help="also write the figures there, as JSON")] = None,
) -> None:
    """Compares jaxkd with other libraries' distillation."""
    rows = []
    for batch_size in batch_sizes:
        found = measure(setting.make(batch_size, 100, compared), makers(steps), rounds)
        show(found, batch_size)
        rows += [{"batch": batch_size, **row} for row in found]
    claims = broken(rows)
    rich.print("every claim that was measured holds" if not claims else "not as claimed: " + "; ".join(claims))
    report(rows, out, versions())


if __name__ == "__main__":
    tyro.cli(main)
