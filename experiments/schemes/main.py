"""The command: trains methods and their baselines, and reports after each."""

from __future__ import annotations

import functools
import json
import pathlib
import statistics
import time
from typing import Any

import jax
from rich.console import Console

from experiments.kit import command, cost, files
from experiments.kit import report as kit_report
from experiments.kit.statistics import percent
from experiments.schemes import method as methods
from experiments.schemes import plots, problem, report, teachers
from experiments.schemes.config import Config, checked
from experiments.schemes.method import Own, Setting, Training, alone, offline
from experiments.schemes.methods import METHODS

ROUNDS = 5  # of the measurement of seconds, each with 20 steps of the student alone and of every part


def cli(arguments: list[str] | None = None) -> int:
    return command.run("schemes", Config, lambda config, console: main(checked(config), console), arguments)


def main(config: Config, console: Console) -> None:
    available = [name for name, method in METHODS.items() if config.data in method.problems]
    names = list(config.schemes or available)
    command.check_names("--schemes", names, available)
    with command.own_folder(config.out, config.identity()):
        work = Work(Setting(problem.of(config), config), console)
        for number, name in enumerate(names, 1):
            began, new = time.monotonic(), not work.path(name).exists()
            if new:
                console.print(f"{number}/{len(names)} {METHODS[name].title}", highlight=False)
            row = files.once(work.path(name), functools.partial(work.row, name))
            if config.timing:
                files.once(work.path(name, "times"), functools.partial(work.time, name))
            if new:
                console.print(f"  {report.one_line(row)}; {time.monotonic() - began:.0f} s", highlight=False)
                write(config, work)
        results = write(config, work)
        console.print(kit_report.results_table(report.COLUMNS, report.rows(results), results["config"]))
    console.print(f"{config.out}: results.json, report.md, gains.png", highlight=False)


def write(config: Config, work: Work) -> dict[str, Any]:
    """Writes the report of finished methods; returns the content of its JSON."""
    found, times = work.read("rows"), work.read("times")
    rows = {name: found[name] | {"title": m.title, "group": m.group} for name, m in METHODS.items() if name in found}
    for name in rows.keys() & times:
        rows[name]["time"] = times[name]
    run = {"config": config.identity(), **command.record("scikit-learn")}
    results = {"rows": rows, "networks": work.read("networks"), **run}
    for name, png in plots.draw(results).items():
        files.write(config.out / name, png)
    files.write(config.out / "report.md", report.markdown(results))
    files.write_json(config.out / "results.json", results, indent=2)
    return results


class Work:
    """The trainings of a run, each run once."""

    def __init__(self, setting: Setting, console: Console) -> None:
        self._setting, self._console, self._out = setting, console, setting.config.out
        self._networks: dict[str, dict[str, Any]] = {}
        self._flops: dict[str, float] = {}

    def path(self, name: str, folder: str = "rows") -> pathlib.Path:
        """Returns the file of a finished method, or of its time, in ``"times"``."""
        return self._out / folder / f"{name}.json"

    def read(self, folder: str) -> dict[str, Any]:
        """Returns the content of a folder's files by name: of ``rows``, ``times``, ``networks`` or ``trainings``."""
        return {path.stem: json.loads(path.read_text()) for path in sorted((self._out / folder).glob("*.json"))}

    def row(self, name: str) -> dict[str, Any]:
        """Returns the results of a method and of its baselines at equal cost."""
        method, setting = METHODS[name], self._for(name)
        training = method.build(setting)
        baselines = {"alone": method.alone or alone, "offline": method.offline or offline}
        cheap = {which: build(setting, setting.steps) for which, build in baselines.items()}
        own = self._own(training, *cheap.values())
        flops = training.flops(own[0], self._batch(training))
        all_steps = sum(part.steps for part in training.parts)
        examples = all_steps * self._input(training).batch_size
        row = {"steps": training.steps, "flops": flops, "all_steps": all_steps, "examples": examples}
        row |= self._train(name, training, own)
        for which, build in baselines.items():
            label = which if getattr(method, which) is None else f"{name}-{which}"
            if label not in self._flops:
                self._flops[label] = cost.flops_of_step(cheap[which].make(own[0]), self._batch(cheap[which]))
            steps = cost.budget(flops / self._flops[label])
            compared = self._train(f"{label}-{steps}", build(setting, steps), own)
            row[which] = {"steps": steps, "flops_per_step": self._flops[label]} | compared
            if method.group != "lifelong":  # whose forgetting is read from the curve
                del row[which]["curve"]
        return row

    def time(self, name: str) -> dict[str, float]:
        """Returns the seconds of a step, and their ratio to those of the student alone."""
        setting = self._for(name)
        training, usual = METHODS[name].build(setting), (METHODS[name].alone or alone)(setting, setting.steps)
        (own, *_), batch = self._own(training, usual), self._batch(training)
        base = cost.stopwatch(usual.make(own), self._batch(usual))
        parts = [(part.steps, cost.stopwatch(part.make(own), batch)) for part in training.parts]
        seconds, ratios = [], []
        for _ in range(1 + ROUNDS):
            before = base()
            seconds.append(sum(steps * run() for steps, run in parts) / sum(steps for steps, _ in parts))
            ratios.append(seconds[-1] / before)
        # The first round warms up.
        return {"seconds_per_step": statistics.median(seconds[1:]), "over_alone": statistics.median(ratios[1:])}

    def _for(self, name: str) -> Setting:
        """Returns the setting of a method, with the chain of assistants if it needs one."""
        if not METHODS[name].searched:
            return self._setting
        own = self._own(offline(self._setting, 1))
        return self._setting._replace(chain=teachers.chain(self._setting, own, self._run, self._out / "chain.json"))

    def _run(self, name: str, training: Training, own: list[Own]) -> dict[str, Any]:
        return methods.run(training, own, self._setting, name, self._out / "runs" / name)

    def _input(self, training: Training) -> Any:
        return training.loader(self._setting.problem.students[0], 0)

    def _batch(self, training: Training) -> Any:
        loader = self._input(training)
        return jax.jit(loader.gather)(loader.arrays, 0)

    def _own(self, *trainings: Training) -> list[Own]:
        """Returns each seed's variables of the networks that trainings begin with."""
        names = dict.fromkeys(name for training in trainings for name in training.needs)
        for name in names:
            if name not in self._networks:
                self._networks[name] = self._network(name)
        return [{n: self._networks[n]["variables"][i] for n in names} for i in range(self._setting.config.seeds)]

    def _network(self, name: str) -> dict[str, Any]:
        own = self._own(teachers.training(self._setting, name))
        network = teachers.run(self._setting, name, own, self._out / "runs" / f"network-{name}")
        size = sum(x.size for x in jax.tree.leaves(network["variables"][0].params))
        files.write_json(self.path(name, "networks"), {"accuracy": network["accuracy"], "parameters": size})
        return network

    def _train(self, name: str, training: Training, own: list[Own]) -> dict[str, Any]:
        """Returns the results of a training of all seeds, which is run once."""

        def run() -> dict[str, Any]:
            result = self._run(name, training, own)
            kept = {"accuracy": result["accuracy"], "curve": result["curve"]}
            if training.extra is not None:
                kept["extra"] = dict(training.extra(result["variables"][0]))
            self._console.print(f"  {name}: {percent(kept['accuracy'])} %", highlight=False)
            return kept

        found: dict[str, Any] = files.once(self.path(name, "trainings"), run)
        return found
