"""The command: trains, measures everything once on the test split, and reports."""

import json
import shutil
import time
from typing import Any

import jax
import numpy as np
from rich.console import Console

from experiments.digits import problem, report
from experiments.digits.config import TITLES, Config, checked
from experiments.kit import command, files, measures
from experiments.kit import report as kit_report
from experiments.kit.statistics import percent
from jaxkd.training import FitResult


def cli(arguments: list[str] | None = None) -> int:
    return command.run("digits", Config, lambda config, console: main(checked(config), console), arguments, 120)


def main(config: Config, console: Console) -> None:
    if config.restart:
        for name in ("results.json", "report.md", "curves.png", "config.json"):
            (config.out / name).unlink(missing_ok=True)
        for name in (*TITLES, ".compiled"):
            shutil.rmtree(config.out / name, ignore_errors=True)
    instead = "choose another --out, or delete it with --restart"
    with command.own_folder(config.out, config.identity(), instead):
        path = config.out / "results.json"
        trained = not path.exists()
        if trained:
            began = time.monotonic()
            results = measure(train(config, console), config)
            files.write(config.out / "curves.png", report.plot(results))
            files.write(config.out / "report.md", report.markdown(results))
            files.write_json(path, results, indent=2)  # last: where it exists, the run is complete
            console.print(f"done in {time.monotonic() - began:.0f} s", highlight=False)
        results = json.loads(path.read_text())
        console.print(report.table(results))
    console.print(kit_report.closing(config.out, "curves.png", trained), highlight=False, soft_wrap=True)


def train(config: Config, console: Console) -> dict[str, FitResult]:
    """Trains the teachers and the students of every method, or resumes."""
    results: dict[str, FitResult] = {}
    for name in ("teacher", *config.methods):
        weights = results["teacher"].state.student if results else None
        result = results[name] = problem.train(name, weights, config, config.out / name)
        accuracy = percent(problem.validation(result, config)[1][-1])
        console.print(f"{TITLES[name]}: {accuracy} % on the validation split, {config.seeds} seeds", highlight=False)
    return results


def measure(trained: dict[str, FitResult], config: Config) -> dict[str, Any]:
    """Returns everything that is reported; nothing else reads the test split."""
    test = problem.held_out("test")
    images = problem.normalize({"image": test.arrays["image"]})
    labels = np.asarray(test.arrays["label"])
    found: dict[str, Any] = {}
    taught: list[Any] = [None] * config.seeds
    for name, result in trained.items():
        model = problem.network(config.teacher_widths if name == "teacher" else config.student_widths)
        forward = jax.vmap(lambda variables, model=model: model.apply(variables, images, key=None, train=False)[0])
        logits = np.asarray(jax.jit(forward)(result.state.student)["logits"])
        each = [measures.describe(one, labels, teacher) for one, teacher in zip(logits, taught, strict=True)]
        names = ("accuracy", "agreement", "calibration_error")
        steps, accuracy = problem.validation(result, config)
        found[name] = {key: [one[key] for one in each] for key in names if key in each[0]} | {
            "parameters": sum(x.size for x in jax.tree.leaves(result.state.student.params)) // config.seeds,
            "validation": {"step": steps, "accuracy": accuracy.tolist()},
        }
        if name == "teacher":
            taught = list(logits)
    results = {"methods": {name: found[name] for name in config.methods}, "teacher": found["teacher"]}
    return results | {"config": config.identity(), "versions": command.packages("scikit-learn")}
