"""The command: trains methods and their baselines, and reports after each."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from experiments.kit import command, files
from experiments.kit import report as kit_report
from experiments.kit.rows.table import Baseline, Rows
from experiments.schemes import method as methods
from experiments.schemes import plots, problem, report, teachers
from experiments.schemes.config import Config, checked
from experiments.schemes.method import Own, Setting, Training, alone, offline
from experiments.schemes.methods import METHODS


def cli(arguments: list[str] | None = None) -> int:
    return command.run("schemes", Config, lambda config, console: main(checked(config), console), arguments)


def main(config: Config, console: Console) -> None:
    available = [name for name, method in METHODS.items() if config.data in method.problems]
    names = list(config.schemes or available)
    command.check_names("--schemes", names, available)
    with command.own_folder(config.out, config.identity()):
        work = Work(Setting(problem.of(config), config), console)
        trained = 0
        for number, name in enumerate(names, 1):
            began, new = time.monotonic(), not work.path(name).exists()
            trained += new
            if new:
                console.print(f"{number}/{len(names)} {METHODS[name].title}", highlight=False)
            row = files.once(work.path(name), functools.partial(work.scheme, name))
            if config.timing:
                files.once(work.path(name, "times"), functools.partial(work.seconds, name))
            if new:
                console.print(f"  {report.one_line(row)}; {time.monotonic() - began:.0f} s", highlight=False)
                write(config, work)
        results = write(config, work)
        console.print(kit_report.results_table(report.COLUMNS, report.rows(results), results["config"]))
    console.print(kit_report.closing(config.out, "gains.png", trained), highlight=False, soft_wrap=True)


def write(config: Config, work: Work) -> dict[str, Any]:
    """Writes the report of finished methods; returns the content of its JSON."""
    found, times = work.read("rows"), work.read("times")
    finished = {
        name: found[name] | {"title": m.title, "group": m.group} for name, m in METHODS.items() if name in found
    }
    for name in finished.keys() & times:
        finished[name]["time"] = times[name]
    run = {"config": config.identity(), **command.record("scikit-learn")}
    results = {"rows": finished, "networks": work.read("networks"), **run}
    for name, png in plots.draw(results).items():
        files.write(config.out / name, png)
    files.write(config.out / "report.md", report.markdown(results))
    files.write_json(config.out / "results.json", results, indent=2)
    return results


class Work(Rows):
    """The rows of schemes, and the networks that they begin with."""

    def __init__(self, setting: Setting, console: Console) -> None:
        super().__init__(setting.config.out, setting.problem.students[0], setting.config.seeds, console)
        self._setting = setting

    def run(self, name: str, training: Training, own: Sequence[Own]) -> dict[str, Any]:
        return methods.run(training, own, self._setting, name, self.folder / "runs" / name)

    def network(self, name: str) -> dict[str, Any]:
        own = self.own(teachers.training(self._setting, name))
        return teachers.run(self._setting, name, own, self.folder / "runs" / f"network-{name}")

    def scheme(self, name: str) -> dict[str, Any]:
        """Returns the row of a method."""
        method, setting = METHODS[name], self._for(name)
        own, usual = {"alone": method.alone, "offline": method.offline}, {"alone": alone, "offline": offline}
        baselines = {
            which: Baseline(f"{name}-{which}" if build else which, functools.partial(build or usual[which], setting))
            for which, build in own.items()
        }
        row = self.row(name, method.build(setting), baselines, setting.steps)
        if method.group != "lifelong":  # whose forgetting is read from the curve
            for which in baselines:
                del row[which]["curve"]
        return row

    def seconds(self, name: str) -> dict[str, float]:
        """Returns the seconds of a step of a method, and their ratio to those of the student alone."""
        method, setting = METHODS[name], self._for(name)
        return self.time(method.build(setting), (method.alone or alone)(setting, setting.steps))

    def _for(self, name: str) -> Setting:
        """Returns the setting of a method, with the chain of assistants if it needs one."""
        if not METHODS[name].searched:
            return self._setting
        own = self.own(offline(self._setting, 1))
        return self._setting._replace(chain=teachers.chain(self._setting, own, self.run, self.folder / "chain.json"))
