"""The command: train what is not trained yet, each scheme and what it is compared with, and report after each row."""

from __future__ import annotations

import contextlib
import importlib.metadata
import json
import pathlib
import platform
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

import jax
import tyro
from rich.console import Console

from experiments.command import alone as held_alone
from experiments.command import remember_programs, same_run, status
from experiments.schemes import costs, curves, found, problem, report, running, trained
from experiments.schemes.config import Config, checked
from experiments.schemes.rows import ROWS
from experiments.schemes.trials import Own, Setting, Trial, alone, offline
from experiments.statistics import interval
from jaxkd._core import checks
from jaxkd._core.files import write_atomically
from jaxkd._core.progress import show_progress

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy", "scikit-learn")


def cli(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit status."""
    config = tyro.cli(Config, args=arguments, prog="python -m experiments.schemes")
    console = Console(width=None if sys.stdout.isatty() else 140)

    def run() -> int:
        results = main(checked(config), console)
        console.print(report.table(results))
        console.print(f"{config.out}: results.json, report.md, gains.png", highlight=False)
        return 0

    return status("schemes", run)


def main(config: Config, console: Console) -> dict[str, Any]:
    """Runs, or goes on, or finds that all is done; returns what is in ``results.json``."""
    there = [
        name for name, row in ROWS.items() if ("digits" if config.data_dir is None else "cifar100") in row.problems
    ]
    names = list(config.schemes or there)
    for name in names:
        checks.known(name, there, "--schemes")
    for folder in ("rows", "times", "networks", "trainings"):
        (config.out / folder).mkdir(parents=True, exist_ok=True)
    with held_alone(config.out):
        same_run(config.out, config.identity())
        remember_programs(config.out / ".compiled")
        work = Work(Setting(problem.of(config), config), console)
        for number, name in enumerate(names, 1):
            began = time.monotonic()
            if work.path(name).exists():
                if config.timing and not work.path(name, "times").exists():
                    write_atomically(work.path(name, "times"), json.dumps(work.time(name)) + "\n")
                    console.print(f"{number}/{len(names)} {ROWS[name].title}: timed", highlight=False)
                continue
            console.print(f"{number}/{len(names)} {ROWS[name].title}", highlight=False)
            row = work.row(name)
            write_atomically(work.path(name), json.dumps(row) + "\n")
            if config.timing:
                write_atomically(work.path(name, "times"), json.dumps(work.time(name)) + "\n")
            console.print(f"  {report.one_line(row)}; {time.monotonic() - began:.0f} s", highlight=False)
            write(config, work)
        return write(config, work)


def write(config: Config, work: Work) -> dict[str, Any]:
    """The report of all rows that are there."""
    rows = {name: json.loads(work.path(name).read_text()) for name in ROWS if work.path(name).exists()}
    for name, row in rows.items():
        if work.path(name, "times").exists():
            row["time"] = json.loads(work.path(name, "times").read_text())
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in PACKAGES}
    results = {
        "rows": {name: found | {"title": ROWS[name].title, "group": ROWS[name].group, "note": ROWS[name].note}
                 for name, found in rows.items()},
        "networks": work.networks(),
        "config": config.identity(),
        "versions": versions,
        "device": jax.devices()[0].device_kind,
    }  # fmt: skip
    write_atomically(config.out / "gains.png", curves.gains(results))
    write_atomically(config.out / "curves.png", curves.learning(results))
    if any(name.startswith("gap_") for name in rows):
        write_atomically(config.out / "capacity.png", curves.capacity(results))
    write_atomically(config.out / "report.md", report.markdown(results))
    write_atomically(config.out / "results.json", json.dumps(results, indent=2) + "\n")
    return results


class Work:
    """The trainings of a run, each done once.

    Args:
      setting: what the rows are made from.
      console: for progress.
    """

    def __init__(self, setting: Setting, console: Console) -> None:
        self._setting, self._console, self._out = setting, console, setting.config.out
        self._trained: dict[str, dict[str, Any]] = {}
        self._flops: dict[str, float] = {}

    def path(self, name: str, folder: str = "rows") -> pathlib.Path:
        """Where a finished row is; or its time, in ``"times"``."""
        return self._out / folder / f"{name}.json"

    def networks(self) -> dict[str, Any]:
        """How good the pretrained networks are."""
        folder = self._out / "networks"
        return {path.stem: json.loads(path.read_text()) for path in sorted(folder.glob("*.json"))}

    def row(self, name: str) -> dict[str, Any]:
        """A scheme, the student alone and offline distillation at its cost."""
        row, setting = ROWS[name], self._setting
        if row.found:
            setting = setting._replace(chain=self.chain())
        trial = row.build(setting)
        baselines = {"alone": row.alone or alone, "offline": row.offline or offline}
        cheap = {which: build(setting, setting.steps) for which, build in baselines.items()}
        own = self._own([trial, *cheap.values()])
        flops = costs.total_flops(trial, own[0], self._batch(trial))
        kept: dict[str, Any] = {"steps": trial.steps, "flops": flops}
        kept["all_steps"] = sum(part.steps for part in costs.parts_of(trial))
        kept["examples"] = kept["all_steps"] * self._loader(trial).batch_size
        result = self._train(name, trial, own)
        kept |= result
        for which, build in baselines.items():
            label = which if getattr(row, which) is None else f"{name}-{which}"
            if label not in self._flops:
                batch = self._batch(cheap[which])
                self._flops[label] = costs.flops_of_step(cheap[which].make, own[0], batch)
            one = self._flops[label]
            steps = costs.budget(flops / one)
            compared = self._train(f"{label}-{steps}", build(setting, steps), own)
            kept[which] = {"steps": steps, "flops_per_step": one} | compared
        if row.group != "lifelong":  # there, what was forgotten is read from the curve
            for which in baselines:
                del kept[which]["curve"]
        return kept

    def time(self, name: str) -> dict[str, float]:
        """How long a step of a scheme takes, beside the student alone."""
        row, setting = ROWS[name], self._setting
        if row.found:
            setting = setting._replace(chain=self.chain())
        trial, usual = row.build(setting), (row.alone or alone)(setting, setting.steps)
        own = self._own([trial, usual])
        return costs.seconds_beside(trial, usual, own[0], (self._batch(trial), self._batch(usual)))

    def chain(self) -> tuple[str, ...]:
        """The best chain of assistants."""
        own = self._own([offline(self._setting, 1)])

        def train(name: str, trial: Trial, own: list[Own]) -> dict[str, Any]:
            problem, config = self._setting.problem, self._setting.config
            with self._progress(name, trial.steps) as on_eval:
                return running.run(trial, own, problem, config, name, self._out / "runs" / name, on_eval)

        return found.chain(self._setting, own, train, self._out / "chain.json")

    def _loader(self, trial: Trial) -> Any:
        """The first seed's input."""
        return running.loader_of(trial, self._setting.problem.students[0], self._setting.config, 0)

    def _batch(self, trial: Trial) -> Any:
        loader = self._loader(trial)
        return jax.jit(loader.gather)(loader.arrays, 0)

    def _own(self, trials: list[Trial]) -> list[Own]:
        """What each seed has of the networks that trials begin with."""
        names = dict.fromkeys(name for trial in trials for name in trial.needs)
        for name in names:
            if name not in self._trained:
                self._trained[name] = self._network(name)
        count = self._setting.config.seeds
        return [{name: self._trained[name]["variables"][i] for name in names} for i in range(count)]

    def _network(self, name: str) -> dict[str, Any]:
        steps = trained.steps(self._setting, name)
        own = self._own([trained.trial(self._setting, name)])
        with self._progress(f"network {name}", steps) as on_eval:
            network = trained.run(self._setting, name, own, self._out / "runs" / f"network-{name}", on_eval)
        size = sum(x.size for x in jax.tree.leaves(network["variables"][0].params))
        said = {"accuracy": network["accuracy"], "parameters": size}
        write_atomically(self._out / "networks" / f"{name}.json", json.dumps(said) + "\n")
        return network

    def _train(self, name: str, trial: Trial, own: list[Own]) -> dict[str, Any]:
        """A training of all seeds; one of the same name is done once."""
        path = self._out / "trainings" / f"{name}.json"
        if path.exists():
            return json.loads(path.read_text())  # type: ignore[no-any-return]
        with self._progress(name, trial.steps) as on_eval:
            problem, config = self._setting.problem, self._setting.config
            result = running.run(trial, own, problem, config, name, self._out / "runs" / name, on_eval)
        kept = {"accuracy": result["accuracy"], "curve": result["curve"]}
        if trial.extra is not None:
            kept["extra"] = dict(trial.extra(result["variables"][0]))
        write_atomically(path, json.dumps(kept) + "\n")
        self._console.print(f"  {name}: {interval([100 * x for x in kept['accuracy']])} %", highlight=False)
        return kept

    def _progress(self, name: str, steps: int) -> Any:
        @contextlib.contextmanager
        def shown() -> Iterator[Callable[..., None]]:
            with show_progress(steps, 0, console=self._console) as show:

                def on_eval(step: int, metrics: Any, state: Any) -> None:
                    seen = [value for key, value in metrics.items() if key.startswith("validation/accuracy[")]
                    show(step, {"validation/accuracy": sum(seen) / len(seen)})

                yield on_eval

        return shown()
