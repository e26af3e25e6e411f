"""Rows of a table: methods that are trained once, each beside baselines that cost as many FLOPs."""

import abc
import json
import pathlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
from rich.console import Console

from experiments.kit import files
from experiments.kit.rows import cost
from experiments.kit.rows.seeds import Own, Training
from experiments.kit.statistics import percent
from jaxkd import data

ROUNDS = 5  # of the measurement of seconds, each with 20 steps of every program


class Baseline(NamedTuple):
    """What a method is compared with."""

    label: str  # name of its trainings, which all rows with the same baseline share
    build: Callable[[int], Training]  # makes its training for so many steps


class Rows(abc.ABC):
    """The rows of a run and their trainings, each a JSON file of its own that is written when it is complete.

    ``images`` are those of the first seed, from which a step is counted and timed.
    """

    by = "accuracy"  # metric of the results

    def __init__(self, folder: pathlib.Path, images: data.Dataset, seeds: int, console: Console) -> None:
        self.folder, self.console, self._images, self._seeds = folder, console, images, seeds
        self._networks: dict[str, dict[str, Any]] = {}
        self._flops: dict[str, float] = {}

    @abc.abstractmethod
    def run(self, name: str, training: Training, own: Sequence[Own]) -> dict[str, Any]:
        """Trains all seeds; returns what `experiments.kit.rows.seeds.run` returns."""

    @abc.abstractmethod
    def network(self, name: str) -> dict[str, Any]:
        """Returns the metric and ``variables``, by seed, of a network that methods begin with."""

    def text(self, values: Sequence[float]) -> str:
        """Returns the metric over the seeds as text."""
        return f"{percent(values)} %"

    def path(self, name: str, folder: str = "rows") -> pathlib.Path:
        """Returns the file of a finished row, or of another result."""
        return self.folder / folder / f"{name}.json"

    def read(self, folder: str) -> dict[str, Any]:
        """Returns the content of a folder's files by name: of ``rows``, ``networks`` or ``trainings``."""
        return {path.stem: json.loads(path.read_text()) for path in sorted((self.folder / folder).glob("*.json"))}

    def row(self, name: str, training: Training, baselines: Mapping[str, Baseline], steps: int) -> dict[str, Any]:
        """Returns the results of a training and of its baselines, whose cost is counted in a training of some steps."""
        cheap = {which: baseline.build(steps) for which, baseline in baselines.items()}
        own = self.own(training, *cheap.values())
        flops, all_steps = training.flops(own[0], self._batch(training)), sum(part.steps for part in training.parts)
        row: dict[str, Any] = {"steps": training.steps, "flops": flops, "all_steps": all_steps}
        row |= {"examples": all_steps * self._input(training).batch_size, **self._train(name, training, own)}
        for which, (label, build) in baselines.items():
            if label not in self._flops:
                self._flops[label] = cost.flops_of_step(cheap[which].make(own[0]), self._batch(cheap[which]))
            equal = cost.budget(flops / self._flops[label])
            compared = self._train(f"{label}-{equal}", build(equal), own)
            row[which] = {"steps": equal, "flops_per_step": self._flops[label], **compared}
        return row

    def time(self, training: Training, usual: Training) -> dict[str, float]:
        """Returns the seconds of a step, and their ratio to those of another training, measured in turn."""
        (own, *_), batch = self.own(training, usual), self._batch(training)
        base = cost.stopwatch(usual.make(own), self._batch(usual))
        parts = [(part.steps, cost.stopwatch(part.make(own), batch)) for part in training.parts]
        seconds, ratios = [], []
        for _ in range(1 + ROUNDS):
            before = base()
            seconds.append(sum(steps * run() for steps, run in parts) / sum(steps for steps, _ in parts))
            ratios.append(seconds[-1] / before)
        # The first round warms up.
        return {"seconds_per_step": statistics.median(seconds[1:]), "over_alone": statistics.median(ratios[1:])}

    def own(self, *trainings: Training) -> list[Own]:
        """Returns each seed's variables of the networks that trainings begin with, which are trained once."""
        names = dict.fromkeys(name for training in trainings for name in training.needs)
        for name in names:
            if name not in self._networks:
                found = self._networks[name] = self.network(name)
                size = sum(x.size for x in jax.tree.leaves(found["variables"][0].params))
                files.write_json(self.path(name, "networks"), {self.by: found[self.by], "parameters": size})
        return [{name: self._networks[name]["variables"][i] for name in names} for i in range(self._seeds)]

    def _input(self, training: Training) -> Any:
        return training.loader(self._images, 0)

    def _batch(self, training: Training) -> Any:
        loader = self._input(training)
        return jax.jit(loader.gather)(loader.arrays, 0)

    def _train(self, name: str, training: Training, own: list[Own]) -> dict[str, Any]:
        """Returns the results of a training of all seeds, which is run once."""

        def run() -> dict[str, Any]:
            result = self.run(name, training, own)
            kept = {self.by: result[self.by], "curve": result["curve"]}
            if training.extra is not None:
                kept["extra"] = dict(training.extra(result["variables"][0]))
            self.console.print(f"  {name}: {self.text(kept[self.by])}", highlight=False)
            return kept

        found: dict[str, Any] = files.once(self.path(name, "trainings"), run)
        return found
