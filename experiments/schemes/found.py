"""A chain of assistants, found on the validation split."""

from __future__ import annotations

import json
import pathlib
from collections.abc import Callable
from typing import Any

import numpy as np

from experiments.schemes.trials import Own, Setting, Trial, taught
from jaxkd import schemes, teachers
from jaxkd._core.files import write_atomically
from jaxkd.types import Variables

MODELS = ("large", "middle", "student")
"""The networks that a chain may go through, and the student."""

Train = Callable[[str, Trial, list[Own]], dict[str, Any]]
"""Trains all seeds of a trial: ``(name, trial, own) -> `` what `running.run` returns."""


def chain(setting: Setting, own: list[Own], train: Train, path: pathlib.Path) -> tuple[str, ...]:
    """The best chain from the teacher to the student, by `jaxkd.schemes.phases.best_chain`; found once.

    Args:
      setting: what the networks are made from.
      own: each seed's ``"teacher"``.
      train: trains a link.
      path: of the file that keeps what was found.
    """
    if path.exists():
        return tuple(json.loads(path.read_text())["chain"])
    best: dict[str | None, tuple[float, list[Variables]]] = {None: (0.0, [one["teacher"] for one in own])}
    scores: dict[str, float] = {}

    def score(before: str | None, model: str) -> float:
        network = setting.problem.network(before or "teacher")

        def teacher(own: Own) -> Any:
            return teachers.frozen(network, own["before"])

        link = taught(setting, setting.steps, setting.problem.network(model), teacher, needs=("before",))
        found = train(f"link-{before or 'teacher'}-{model}", link, [{"before": one} for one in best[before][1]])
        accuracy = float(np.mean([curve["accuracy"][-1] for curve in found["curve"]]))
        scores[f"{before or 'teacher'} to {model}"] = accuracy
        if model not in best or accuracy > best[model][0]:
            best[model] = accuracy, found["variables"]
        return accuracy

    found, _ = schemes.phases.best_chain(MODELS, score)
    write_atomically(path, json.dumps({"chain": list(found), "validation accuracy": scores}, indent=2) + "\n")
    return found
