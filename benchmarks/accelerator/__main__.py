"""The command: runs the parts, each in a process of its own, and writes the report."""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from benchmarks.accelerator import parts, report
from benchmarks.accelerator.options import Options
from benchmarks.accelerator.timing import Box

OUT, WORK, LOG = Path("benchmarks/results/accelerator"), Path("runs/accelerator"), "accelerator.log"
NONE = (
    "This machine has no accelerator that JAX can use: nothing was measured and nothing was written. "
    "`python -m benchmarks.accelerator --rehearse --out runs/rehearsal` runs every part with tiny sizes on a CPU."
)


def parser() -> argparse.ArgumentParser:
    """Returns the parser of the command line, which needs no further library."""
    made = argparse.ArgumentParser("python -m benchmarks.accelerator", description="Measure one accelerator.")
    made.add_argument(
        "--minutes", type=float, default=parts.MINUTES, help="minutes for all parts together (default: 9)"
    )
    made.add_argument(
        "--parts", nargs="+", choices=list(parts.BUDGETS), default=list(parts.BUDGETS), help="parts to run"
    )
    made.add_argument(
        "--data-dir", type=Path, help="images of the trainings: a TFDS data_dir with cifar100, or an .npz"
    )
    made.add_argument(
        "--teacher-weights", type=Path, help="trained resnet32x4; without it, the teacher is trained first"
    )
    made.add_argument("--seeds", type=int, default=5, help="trainings to fill (default: 5)")
    made.add_argument("--out", type=Path, default=OUT, help=f"folder of the results (default: {OUT})")
    made.add_argument("--work", type=Path, default=WORK, help=f"folder of trainings and programs (default: {WORK})")
    made.add_argument("--again", action="store_true", help="measure every case again, also those that have a result")
    made.add_argument("--rehearse", action="store_true", help="tiny sizes, on a CPU; the times have no meaning")
    made.add_argument(
        "--report", action="store_true", help="write the report of the results there are, and run nothing"
    )
    made.add_argument("--part", help=argparse.SUPPRESS)
    made.add_argument("--until", type=float, help=argparse.SUPPRESS)
    return made


def start(part: str, arguments: Sequence[str], until: float, log: TextIO) -> int:
    """Runs a part in a process of its own, terminated at its end; returns the exit status."""
    command = [sys.executable, "-m", "benchmarks.accelerator", *arguments, "--part", part, "--until", str(until)]
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=_environment())
    try:
        return process.wait(max(0.0, until - time.time()))
    except subprocess.TimeoutExpired:
        process.terminate()  # a training saves a checkpoint; every other case is lost
    except BaseException:
        process.terminate()
        process.wait()
        raise
    try:
        return process.wait(parts.GRACE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def _environment() -> dict[str, str]:
    """Returns the environment of a part, which may use more of a GPU's memory than JAX's default of three quarters."""
    return {"XLA_PYTHON_CLIENT_MEM_FRACTION": "0.92", "PYTHONUNBUFFERED": "1", **os.environ}


def main(arguments: Sequence[str] | None = None, clock: Any = time.time) -> int:
    """Runs one part, or all of them."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    asked = parser().parse_args(arguments)
    options = Options(asked.rehearse, asked.work, asked.data_dir, asked.teacher_weights, asked.seeds)
    if asked.part:
        parts.run(asked.part, options, asked.out, Box(asked.until))
        return 0
    if asked.rehearse and asked.out == OUT:
        print("--rehearse: name another folder with --out; that of the results holds measurements.", file=sys.stderr)
        return 2
    if not asked.report:
        whole = Box(clock() + 60 * asked.minutes, clock)
        if not _measure(asked, arguments, whole):
            return 2
    print(report.write(asked.out))
    return 0


def _measure(asked: argparse.Namespace, arguments: Sequence[str], whole: Box) -> bool:
    """Runs the parts; returns False on a machine without an accelerator."""
    described = asked.work / parts.MACHINE
    described.parent.mkdir(parents=True, exist_ok=True)
    described.unlink(missing_ok=True)
    status = start(parts.PROBE, arguments, whole.clock() + 60, sys.stderr)
    machine: Any = json.loads(described.read_text()) if status == 0 else {"platform": "cpu"}
    if machine["platform"] == "cpu" and not asked.rehearse:
        print(NONE, file=sys.stderr)
        return False
    asked.out.mkdir(parents=True, exist_ok=True)
    with (asked.out / LOG).open("a") as log:

        def say(text: str) -> None:
            print(text, flush=True)
            print(text, file=log, flush=True)

        versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
        say(f"{machine['devices']} × {machine['device_kind']}; {versions}; {whole.left:.0f} s left")
        for part in asked.parts:
            if asked.again:
                (asked.out / f"{part}.json").unlink(missing_ok=True)
            seconds = parts.seconds_for(part, whole.left, asked.minutes)
            if not seconds:
                say(f"{part}: not reached, {whole.left:.0f} s left")
                continue
            say(f"{part}: at most {seconds:.0f} s")
            begun = whole.clock()
            status = start(part, arguments, begun + seconds, log)
            say(f"{part}: ended with status {status} after {whole.clock() - begun:.0f} s")
            report.write(asked.out)
    return True


if __name__ == "__main__":
    raise SystemExit(main())
