"""The cells of the study: of each method, the choice of a value, and its students on the test split."""

import functools
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import jax
import numpy as np
from rich.console import Console

from experiments.classification.study import choice
from experiments.classification.study.table import Row, Rows
from experiments.kit import command, files

CHOICE_SEEDS = (1000, 1001)  # of the choice; the seeds of the test begin at 0


class Work(Protocol):
    """An opened problem."""

    def train(self, row: Row, values: Sequence[float], seeds: Sequence[int]) -> Mapping[str, Any]:
        """Returns ``accuracy`` on the validation split, its ``curve`` and ``params``, of each value and its seed."""

    def measure(self, params: Any) -> Mapping[str, float]:
        """Returns the measures of a student on the test split."""

    def flops(self, row: Row) -> Mapping[str, float]:
        """Returns the FLOPs of a step, with ``cached`` outputs of the teacher and with a ``live`` one."""

    def references(self) -> Mapping[str, Any]:
        """Returns the measures of the teacher."""


class Cells:
    """Cells in a folder, each a JSON file that is written when it is complete."""

    def __init__(self, rows: Rows, folder: pathlib.Path, opened: Callable[[], Work], console: Console) -> None:
        self._rows, self._folder, self._opened, self._console = rows, folder, opened, console
        self._work: Work | None = None

    @property
    def work(self) -> Work:
        """The problem, which is opened for the first cell that is not finished."""
        if self._work is None:
            self._work = self._opened()
        return self._work

    def run(self, names: Sequence[str], seeds: Sequence[int], finished: Callable[[], Any]) -> None:
        """Runs every cell that is not finished."""
        files.once(self._folder / "references.json", lambda: dict(self.work.references()))
        for name in sorted(names, key=lambda name: self._rows[name].convolves):  # the slow ones last
            pending = [path for path in (self.path(name, "choice"), self.path(name, "test")) if not path.exists()]
            chosen = files.once(self.path(name, "choice"), functools.partial(self._choice, name))
            test = functools.partial(self._test, name, chosen["chosen"], seeds)
            tested = files.once(self.path(name, "test"), test)
            if tested["seeds"] != list(seeds) or tested["chosen"] != chosen["chosen"]:
                told = f"{tested['chosen']:g} and the seeds {tested['seeds']}"
                raise ValueError(
                    f"{self.path(name, 'test')}: expected {chosen['chosen']:g} and {list(seeds)}, got {told}."
                )
            if pending:
                self._say(name, chosen, tested)
                finished()

    def path(self, name: str, what: str) -> pathlib.Path:
        return self._folder / "cells" / name / f"{what}.json"

    def _choice(self, name: str) -> dict[str, Any]:
        """Returns the accuracies on the validation split of each value, and the value of the best."""
        row, began = self._rows[name], time.monotonic()
        values, seeds = choice.runs(row.values, CHOICE_SEEDS)
        accuracy = choice.by_value(self.work.train(row, values, seeds)["accuracy"], CHOICE_SEEDS)
        chosen = choice.choose(row.values, accuracy, row.published)
        found = {"values": list(row.values), "seeds": list(CHOICE_SEEDS), "accuracy": accuracy, "chosen": chosen}
        return found | {"seconds": time.monotonic() - began, **command.record()}

    def _test(self, name: str, chosen: float, seeds: Sequence[int]) -> dict[str, Any]:
        """Returns the measures of students with the published and with the chosen value."""
        row, began = self._rows[name], time.monotonic()
        values, numbers = choice.runs((row.published, chosen), seeds)
        trained = self.work.train(row, values, numbers)
        each = []
        for i, (value, seed) in enumerate(zip(values, numbers, strict=True)):
            measures = self.work.measure(jax.tree.map(lambda x, i=i: x[i], trained["params"]))
            curve = np.asarray(trained["curve"], np.float64)[:, i].round(4).tolist()
            each.append({"value": value, "seed": seed, "measures": dict(measures), "curve": curve})
        found = {"published": row.published, "chosen": chosen, "seeds": list(seeds), "runs": each}
        return found | {"flops": dict(self.work.flops(row)), "seconds": time.monotonic() - began, **command.record()}

    def _say(self, name: str, chosen: Mapping[str, Any], tested: Mapping[str, Any]) -> None:
        half = len(tested["seeds"])
        published, tuned = (
            100 * float(np.mean([one["measures"]["accuracy"] for one in part]))
            for part in (tested["runs"][:half], tested["runs"][half:])
        )
        seconds = chosen["seconds"] + tested["seconds"]
        line = (
            f"{name}: published {tested['published']:g}: {published:.2f} %, chosen {tested['chosen']:g}: {tuned:.2f} %"
        )
        line = f"{line}; {seconds:.0f} s"
        self._console.print(line, highlight=False)
        with (self._folder / "log.txt").open("a") as log:
            log.write(f"{line}\n")


def read(folder: pathlib.Path, names: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Returns the finished cells of methods by name, ``choice`` and ``test`` of each."""
    found = {}
    for name in names:
        paths = {what: folder / "cells" / name / f"{what}.json" for what in ("choice", "test")}
        if all(path.exists() for path in paths.values()):
            found[name] = {what: json.loads(path.read_text()) for what, path in paths.items()}
    return found
