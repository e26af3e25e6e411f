"""The command of a field: trains cells, each once, and reports after each."""

import dataclasses
import functools
import json
import pathlib
import shutil
import statistics
import time
from collections.abc import Mapping
from typing import Any

import jax
import tyro
from rich.console import Console

from experiments.kit import command, files, training
from experiments.kit import report as kit_report
from experiments.kit.rows import cost
from experiments.kit.tasks import plots, report
from experiments.kit.tasks.task import Task, Training, Work


@dataclasses.dataclass(frozen=True)
class Config:
    """Train students of a task with several methods, and compare them.

    The same command resumes an interrupted run and adds methods and seeds to a finished one.
    """

    task: tyro.conf.Positional[str]  # name of the task
    methods: tuple[str, ...] = ()  # methods to run, all by default; the student alone is always among them
    seeds: int = 0  # repetitions, each with initial weights and an order of batches of its own; the task's by default
    first_seed: int = 0  # first of the seeds
    steps: int = 0  # updates of a student; the task's number by default
    data_dir: pathlib.Path | None = None  # folder of prepared TFDS sets
    pretrained: pathlib.Path | None = None  # folder of pretrained models
    dataset: str | None = None  # another prepared TFDS set of the same kind; the task's own by default
    equal_cost: bool = True  # train the student alone again, with as many FLOPs as each method that costs more
    out: pathlib.Path = pathlib.Path("runs")  # folder of results, checkpoints and logs; the field and the task follow
    report: bool = False  # write the report of what is finished, and run nothing


def cli(field: str, tasks: Mapping[str, Task], arguments: list[str] | None = None) -> int:
    """Runs the command line of a field; returns the exit status."""
    return command.run(field, Config, lambda config, console: main(field, tasks, config, console), arguments)


def main(field: str, tasks: Mapping[str, Task], config: Config, console: Console) -> None:
    """Runs or resumes a task, and prints its table."""
    command.check_names("TASK", [config.task], tasks)
    command.at_least(config, "seeds", least=0)
    task = tasks[config.task]
    command.check_names("--methods", config.methods, task.methods)
    if config.dataset is not None and not task.any_set:
        raise ValueError(f"--dataset: the task {config.task} is of one set, and reads no other, got {config.dataset}.")
    config = dataclasses.replace(config, steps=config.steps or task.steps, seeds=config.seeds or task.seeds)
    out = config.out / field / "-".join([config.task, *([config.dataset.replace("/", "-")] if config.dataset else [])])
    with command.own_folder(out, {"steps": config.steps}, "choose another --out"):
        cells = Cells(task, config, out, console)
        if not config.report:
            cells.run()
        results = write(task, config, out)
        console.print(kit_report.TerminalTable(task.title, report.columns(task), report.rows(task, results)))
    picture = f"{next(iter(task.figures), 'gains')}.png"  # what students do, if there is such a picture
    console.print(kit_report.closing(out, picture, cells.trained), highlight=False, soft_wrap=True)


def write(task: Task, config: Config, out: pathlib.Path) -> dict[str, Any]:
    """Writes the report of finished cells; returns its numbers."""
    found = {
        name: {int(path.stem.removeprefix("seed")): json.loads(path.read_text()) for path in sorted(folder.glob("*"))}
        for name in [*task.methods, *sorted(path.name for path in (out / "cells").glob("*@*"))]
        if (folder := out / "cells" / name).is_dir()
    }
    references = out / "references.json"
    results = report.numbers(task, found, json.loads(references.read_text()) if references.exists() else {})
    results["config"] = {"steps": config.steps}
    files.write(out / "gains.png", plots.gains(task, results))
    files.write(out / "curves.png", plots.curves(task, results))
    for name, figure in task.figures.items():
        files.write(out / f"{name}.png", figure.draw(results))
    files.write(out / "report.md", report.markdown(task, results))
    files.write_json(out / "results.json", results, indent=1)
    return results


class Cells:
    """The cells of a task: a method and a seed each."""

    def __init__(self, task: Task, config: Config, out: pathlib.Path, console: Console) -> None:
        self._task, self._config, self._out, self._console = task, config, out, console
        self.trained = 0  # cells that this process has run

    @functools.cached_property
    def work(self) -> Work:
        """The opened task."""
        return self._task.open(self._config, self._out / "prepared")

    def run(self) -> None:
        """Runs every cell that is not finished, seed by seed."""
        task, config = self._task, self._config
        names = [name for name in task.methods if name == "student" or name in (config.methods or task.methods)]
        files.once(self._out / "references.json", lambda: {k: dict(v) for k, v in self.work.references().items()})
        for seed in command.seeds(config):
            for name in names:
                cell = self.cell(name, seed, config.steps)
                if config.equal_cost and task.equal_cost and name != task.methods[name].baseline:
                    self._alone(task.methods[name].baseline, cell, seed)

    def cell(self, method: str, seed: int, steps: int, name: str = "") -> dict[str, Any]:
        """Returns the results of a cell, which is run once."""
        path = self._out / "cells" / (name or method) / f"seed{seed}.json"
        if path.exists():
            return json.loads(path.read_text())  # type: ignore[no-any-return]
        folder = self._out / "trainings" / (name or method) / f"seed{seed}"
        self.trained += 1
        found: dict[str, Any] = files.once(path, lambda: self._train(method, seed, steps, folder), indent=1)
        shutil.rmtree(folder / "checkpoints", ignore_errors=True)  # the log stays
        measured = report.measures_line(self._task, found["measures"])
        self._console.print(f"{name or method} seed {seed}: {measured}; {found['seconds']:.0f} s", highlight=False)
        write(self._task, self._config, self._out)
        return found

    def _alone(self, baseline: str, cell: Mapping[str, Any], seed: int) -> None:
        """Trains the baseline with as many FLOPs as a cell that costs at least a tenth more."""
        usual = self.cell(baseline, seed, self._config.steps)
        ratio = cell["flops"] / usual["flops"]
        if ratio > 1.1:
            steps = cost.budget(self._config.steps * ratio)
            self.cell(baseline, seed, steps, f"{baseline}@{steps}")

    def _train(self, method: str, seed: int, steps: int, folder: pathlib.Path) -> dict[str, Any]:
        made: Training = self.work.training(method, seed, steps)
        every = max(made.steps // self._task.evaluations, 1)
        start: Any = (
            {"key": jax.random.fold_in(jax.random.key(0), seed)} if made.state is None else {"state": made.state}
        )
        batch = next(iter(made.inputs.batches()))
        like = made.state or jax.eval_shape(made.kd.init, jax.random.key(0), batch)
        flops = cost.flops(made.kd.step, like, batch)
        result = training.run(
            made.kd,
            made.inputs,
            dict(made.splits),
            steps=made.steps,
            eval_every=every,
            checkpoint_every=max(every, 1),
            directory=folder,
            log_every=every,
            tensorboard=False,
            progress=f"{folder.parent.name}, seed {seed}",
            **start,
        )
        began = time.monotonic()
        measures = {name: float(value) for name, value in self.work.measure(method, seed, result.state).items()}
        spent = measures.pop("flops", flops * made.steps + made.before.get("flops", 0.0))
        if speeds := [row["examples_per_second"] for row in result.history if "examples_per_second" in row]:
            measures["examples_per_second"] = statistics.median(speeds)
        curve = [row for row in result.history if any(name.startswith(tuple(made.splits)) for name in row)]
        return {
            "method": method,
            "seed": seed,
            "steps": made.steps,
            "settings": dict(self._task.methods[method].settings),
            "measures": measures,
            "samples": list(self.work.samples(method, result.state)) if seed == self._config.first_seed else [],
            "shown": self._shown(method, result.state) if seed == self._config.first_seed else {},
            "curve": [{"step": row["step"], **{k: v for k, v in row.items() if "/" in k}} for row in curve],
            "parameters": sum(x.size for x in jax.tree.leaves(result.state.student.params)),
            "flops": spent,
            "seconds": result.history[-1]["seconds"] + made.before.get("seconds", 0.0),
            "measuring": time.monotonic() - began,
            **command.record(),
        }

    def _shown(self, method: str, state: Any) -> dict[str, Any]:
        """Returns what the task's figures show of a student."""
        figures = self._task.figures.items()
        return {name: figure.shown(self.work, method, state) for name, figure in figures if figure.shown is not None}
