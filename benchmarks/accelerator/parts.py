"""The parts, their budgets, and one part in a process of its own."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

from benchmarks.accelerator.options import Options
from benchmarks.accelerator.record import Record, machine
from benchmarks.accelerator.timing import Box

MINUTES = 9.0
#: seconds of each part, in the order in which they run; the last one has all that is left
BUDGETS: dict[str, float] = {
    "checks": 75,
    "composed": 60,
    "vocabulary": 65,
    "images": 125,
    "dispatch": 35,
    "on_policy": 60,
    "seeds": float("inf"),
}
MACHINE, PROBE = "machine.json", "probe"
LEAST, GRACE, END = 10.0, 12.0, 5.0


def seconds_for(part: str, left: float, minutes: float = MINUTES) -> float:
    """Returns the seconds that a part gets when so many are left; 0 if it cannot start.

    More minutes than `MINUTES` for all parts stretch the budgets.

    A process that does not end in time is terminated, and killed after `GRACE` seconds; `END` remain for the report.

    >>> seconds_for("composed", 400.0), seconds_for("composed", 50.0), seconds_for("composed", 20.0)
    (60.0, 33.0, 0.0)
    """
    most = min(BUDGETS[part] * max(1.0, minutes / MINUTES), left - GRACE - END)
    return most if most >= LEAST else 0.0


def run(part: str, options: Options, out: Path, box: Box) -> None:
    """Runs one part, or writes the machine."""
    from experiments.kit import command

    command.remember_programs(options.work / ".compiled")
    if part == PROBE:
        (options.work / MACHINE).write_text(json.dumps(machine(), indent=1))
        return
    described = json.loads((options.work / MACHINE).read_text())
    module = importlib.import_module(f"benchmarks.accelerator.{part}")
    record = Record(out / f"{part}.json", part, described, settings(part, options))
    try:
        record.run(module.cases(options), box, lambda text: print(f"{part}: {text}", flush=True))
    finally:
        if hasattr(module, "progress"):
            record.content["progress"] = module.progress(options)
        record.write()


def settings(part: str, options: Options) -> dict[str, Any]:
    """Returns the options that decide a part's results."""
    found: dict[str, Any] = {"rehearsal": options.rehearse}
    if part == "seeds":
        found |= {"images": options.data_dir is not None, "teacher_weights": options.teacher_weights is not None}
    return found
