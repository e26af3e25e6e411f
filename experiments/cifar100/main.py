"""The command: what it would do, or the cells and then the report."""

from __future__ import annotations

import json
import os
import pathlib
import signal
import subprocess
import sys
from collections.abc import Sequence
from typing import Any

import jax
import tyro
from rich.console import Console

from experiments.cifar100 import cells, config, curves, methods, plan, published, report, together
from experiments.cifar100.config import Config
from experiments.command import remember_programs, status
from jaxkd import models
from jaxkd._core.files import write_atomically
from jaxkd.training import Preempted

WORKER = "JAXKD_CIFAR100_WORKER"  # set in the processes that `--workers` starts: they leave the report to the first


def cli(arguments: Sequence[str] | None = None) -> int:
    """The command line; returns the exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    settings = tyro.cli(Config, args=arguments, prog="python -m experiments.cifar100")
    console = Console(width=None if sys.stdout.isatty() else 160)
    return status("cifar100", lambda: main(settings, arguments, console))


def main(settings: Config, arguments: Sequence[str], console: Console) -> int:
    """Plans; or fills the cells that are not there yet, and reports all that are."""
    protocol = config.protocol(settings)
    pairs, names = chosen_pairs(settings), chosen_methods(settings)
    wanted = cells.of(pairs, names, config.seeds(settings))
    place = cells.Place(protocol, settings.data_dir, settings.out, given(settings))
    if settings.dry_run:
        console.print(plan.table(plan.of(wanted, place, settings.workers)))
        return 0
    if settings.data_dir is None:
        raise ValueError("--data-dir: name the TFDS data_dir in which cifar100 is prepared (README.md says how).")
    remember_programs(settings.out / ".compiled")
    worker = WORKER in os.environ
    for teacher in dict.fromkeys(cell.teacher for cell in wanted if not place.file(cell).exists()):
        place.teacher(teacher)
    if settings.workers > 1 and not worker:
        spawn(arguments, settings.workers)
    busy = (together if settings.vmapped else cells).run_free(wanted, place, lambda: write_report(place, plots=False))
    if worker:
        return 0
    if busy:
        console.print(f"{busy} cells are being run by other processes; the report is of what is there.")
    console.print(report.table(write_report(place)))
    console.print(f"{place.folder}: report.md, results.json and plots", highlight=False)
    return 0


def chosen_pairs(settings: Config) -> list[str]:
    """The pairs of the command line."""
    if "all" in settings.pair:
        return list(published.PAIRS)
    return list(dict.fromkeys(":".join(cells.split(pair)) for pair in settings.pair))


def chosen_methods(settings: Config) -> list[str]:
    """The methods of the command line in the order of the tables, the student alone first."""
    unknown = [name for name in settings.method if name not in methods.METHODS and name != "all"]
    if unknown:
        raise ValueError(f"--method: expected some of {', '.join(methods.METHODS)}, or all, got {', '.join(unknown)}.")
    wanted = {"student", *settings.method}
    return [name for name in methods.METHODS if name in wanted or "all" in wanted]


def given(settings: Config) -> dict[str, str]:
    """Files of teachers' weights, by the network's name.

    Raises:
      ValueError: an entry is not NAME=FILE, or for no teacher of the command.
    """
    found: dict[str, str] = {}
    teachers = list(dict.fromkeys(cells.split(pair)[0] for pair in chosen_pairs(settings)))
    for entry in settings.teacher_weights:
        name, equals, file = entry.partition("=")
        if not equals or not pathlib.Path(file).is_file():
            raise ValueError(f"--teacher-weights: expected NAME=FILE with a file that is there, got {entry!r}.")
        name = models.canonical(name)
        if name not in teachers or name in found:
            raise ValueError(
                f"--teacher-weights: expected one file for some of the teachers {', '.join(teachers)}, got {entry!r}."
            )
        found[name] = file
    return found


def spawn(arguments: Sequence[str], workers: int) -> None:
    """Runs the cells in processes of their own, and waits for them.

    On a CPU each gets a share of the cores: two processes of one core do more than one of two. Elsewhere each gets one
    of the devices.

    Raises:
      ValueError: there are fewer cores or devices than workers; or a worker failed.
    """
    environments = []
    if jax.default_backend() == "cpu":
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(workers))
        if workers > len(cores):
            raise ValueError(f"--workers: {workers} are more than the {len(cores)} cores there are.")
        shares = [cores[i::workers] for i in range(workers)]
        environments = [{WORKER: ",".join(map(str, share))} for share in shares]
    else:
        count = len(jax.devices())
        if workers > count:
            raise ValueError(f"--workers: {workers} are more than the {count} devices there are.")
        environments = [{WORKER: "", "CUDA_VISIBLE_DEVICES": str(i)} for i in range(workers)]
    command = [sys.executable, "-m", "experiments.cifar100", *arguments]
    running = [subprocess.Popen(command, env={**os.environ, **extra}) for extra in environments]

    def stop(signum: int, frame: Any) -> None:
        raise Preempted(0)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        codes = [process.wait() for process in running]
    except BaseException:  # they save, each what it is at work on
        for process in running:
            process.terminate()
        for process in running:
            process.wait()
        raise
    finally:
        signal.signal(signal.SIGTERM, before)
    if any(codes):
        raise ValueError(f"--workers: processes ended with {codes}; what they finished is kept. Run the command again.")


def write_report(place: cells.Place, plots: bool = True) -> dict[str, Any]:
    """Everything that is finished under this protocol, as Markdown, JSON and plots; returns the JSON.

    After each cell it is written without plots: a command that is stopped early has a report of what it finished.
    """
    there = report.read(place.folder)
    names = {cell["pair"].split(":")[0] for cell in there}
    results = report.collect(there, {name: json.loads(place.teacher_file(name).read_text()) for name in names})
    for pair in results["pairs"] if plots else ():
        for kind, draw in curves.PLOTS.items():
            write_atomically(place.folder / report.picture(pair, kind), draw(results, pair))
    write_atomically(place.folder / "report.md", report.markdown(results))
    write_atomically(place.folder / "results.json", json.dumps(results, indent=1) + "\n")
    return results
