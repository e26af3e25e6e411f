"""The committed results, read once."""

import functools
import importlib
import json
import pathlib
from typing import Any

from experiments.kit.tasks.task import Task
from experiments.tables.pages import ROOT


@functools.cache
def read(path: pathlib.Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def folder(name: str) -> pathlib.Path:
    """Returns the folder of results of ``FIELD`` or ``FIELD/NAME``."""
    field, _, rest = name.partition("/")
    return ROOT / "experiments" / field / "results" / rest


def results(name: str) -> dict[str, Any]:
    found: dict[str, Any] = read(folder(name) / "results.json")
    return found


def names() -> list[str]:
    """Returns the names of all committed results, ``FIELD`` or ``FIELD/NAME``."""
    files = sorted((ROOT / "experiments").glob("*/results/**/results.json"))
    parts = [(path.relative_to(ROOT / "experiments").parts[0], path) for path in files]
    return ["/".join([field, *path.parent.relative_to(folder(field)).parts]) for field, path in parts]


def fields() -> list[str]:
    """Returns the experiments that have a page."""
    return [path.parent.name for path in sorted((ROOT / "experiments").glob("*/README.md"))]


def is_task(name: str) -> bool:
    """Returns whether results are those of a task of the kit."""
    rows = results(name).get("rows", {})
    return bool(rows) and all("gains" in row for row in rows.values())


def is_study(name: str) -> bool:
    """Returns whether results are those of the study of all losses, with published and with chosen values."""
    rows = results(name).get("rows", {})
    return bool(rows) and all("covers" in row for row in rows.values())


@functools.cache
def task(name: str) -> Task:
    """Returns the task of ``FIELD/TASK``, whose measures and titles its results have."""
    field, _, called = name.partition("/")
    tasks: dict[str, Task] = importlib.import_module(f"experiments.{field}.main").TASKS
    return tasks[called if called in tasks else called.partition("-")[0]]  # ``TASK-SET`` is of another data set
