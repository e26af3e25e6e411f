"""The command: train what is not trained yet, measure everything once on the test split, and report."""

from __future__ import annotations

import importlib.metadata
import json
import pathlib
import platform
import shutil
import sys
import time
from typing import Any

import jax
import numpy as np
import tyro
from rich.console import Console

from experiments.command import alone, remember_programs, same_run, status
from experiments.digits import curves, report, setting, statistics, training
from experiments.digits.config import TITLES, Config, checked
from experiments.statistics import interval
from jaxkd._core.files import write_atomically
from jaxkd._core.progress import show_progress
from jaxkd.training import FitResult
from jaxkd.types import Model

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")


def cli(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.digits")
    console = Console(width=None if sys.stdout.isatty() else 120)

    def run() -> int:
        results = main(checked(config), console)
        console.print(report.table(results))
        console.print(f"{config.out}: results.json, report.md, curves.png", highlight=False)
        return 0

    return status("digits", run)


def main(config: Config, console: Console) -> dict[str, Any]:
    """Runs, or goes on, or finds that all is done; returns what is in ``results.json``."""
    config.out.mkdir(parents=True, exist_ok=True)
    with alone(config.out):
        begin(config)
        remember_programs(config.out / ".compiled")
        path = config.out / "results.json"
        if not path.exists():
            began = time.monotonic()
            teacher, students = train(config, console)
            results = measure(teacher, students, config)
            write_atomically(config.out / "curves.png", curves.draw(results))
            write_atomically(config.out / "report.md", report.markdown(results))
            write_atomically(path, json.dumps(results, indent=2) + "\n")  # last: where it is, all is done
            console.print(f"done in {time.monotonic() - began:.0f} s", highlight=False)
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def begin(config: Config) -> None:
    """Makes sure that what is in the output folder is of this run.

    Raises:
      Refused: it is of a run with other settings.
    """
    if config.restart:
        for name in ("results.json", "report.md", "curves.png", "config.json"):
            (config.out / name).unlink(missing_ok=True)
        for name in (*TITLES, ".compiled"):
            shutil.rmtree(config.out / name, ignore_errors=True)
    same_run(config.out, config.identity(), "choose another --out, or throw it away with --restart")


def train(config: Config, console: Console) -> tuple[FitResult, dict[str, FitResult]]:
    """The teachers, then the students of every method; what an earlier run has done is read from its checkpoints."""
    lengths = {"teacher": config.teacher_epochs * setting.for_teachers(config).steps_per_epoch}
    lengths |= dict.fromkeys(config.methods, config.epochs * setting.for_students(config).steps_per_epoch)
    before = 0
    earlier = sum(steps_done(config.out / name) for name in lengths)
    with show_progress(sum(lengths.values()), earlier, console=console) as show:

        def on_eval(step: int, metrics: Any, state: Any) -> None:
            show(before + step, {"validation/accuracy": statistics.per_seed(metrics, config.seeds).mean()})

        def finished(name: str, result: FitResult) -> FitResult:
            accuracy = 100 * statistics.per_seed(result.history[-1], config.seeds)
            console.print(
                f"{TITLES[name]}: {interval(accuracy)} % on the validation split, {config.seeds} seeds",
                highlight=False,
            )
            return result

        teacher = finished("teacher", training.train_teachers(config, config.out / "teacher", on_eval))
        before += lengths["teacher"]
        students: dict[str, FitResult] = {}
        for name in config.methods:
            result = training.train_students(name, teacher.state.student, config, config.out / name, on_eval)
            students[name] = finished(name, result)
            before += lengths[name]
    return teacher, students


def steps_done(directory: pathlib.Path) -> int:
    """How far an earlier run came."""
    return max((int(path.name) for path in directory.glob("checkpoints/*") if path.name.isdigit()), default=0)


def measure(teacher: FitResult, students: dict[str, FitResult], config: Config) -> dict[str, Any]:
    """Everything that is reported. This is the one place that reads the test split."""
    test = setting.held_out("test")
    images = setting.normalize({"image": test.arrays["image"]})
    labels = np.asarray(test.arrays["label"])

    def logits(model: Model, result: FitResult) -> np.ndarray:
        forward = jax.vmap(lambda variables: model.apply(variables, images, key=None, train=False)[0]["logits"])
        return np.asarray(jax.jit(forward)(result.state.student))

    taught = logits(training.teacher_model(config), teacher)
    methods = {}
    for name, result in students.items():
        found = statistics.describe(logits(training.student_model(config), result), labels, taught)
        methods[name] = found | details(result, config)
    return {
        "methods": methods,
        "teacher": statistics.describe(taught, labels) | details(teacher, config),
        "config": config.identity(),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in PACKAGES},
    }


def details(result: FitResult, config: Config) -> dict[str, Any]:
    """The size of a model, and the curve of its validation accuracy: a list of seeds for each step."""
    rows = [row for row in result.history if "validation/accuracy[0]" in row]
    return {
        "parameters": sum(x.size for x in jax.tree.leaves(result.state.student.params)) // config.seeds,
        "validation": {
            "step": [row["step"] for row in rows],
            "accuracy": [statistics.per_seed(row, config.seeds).tolist() for row in rows],
        },
    }
