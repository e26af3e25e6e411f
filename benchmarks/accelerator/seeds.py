"""Whole trainings of the published protocol: CIFAR-100, resnet32x4 → resnet8x4, soft targets, 240 epochs.

The cells are those of `experiments.cifar100`, in its folders below ``--work``: a process that is terminated saves a
checkpoint, and the next call resumes. The images are those of a TFDS data_dir, or of an ``.npz`` file with
``train_image``, ``train_label``, ``test_image`` and ``test_label``, which needs no further library.
"""

from __future__ import annotations

import csv
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.accelerator.options import Options
from benchmarks.accelerator.record import Case
from benchmarks.accelerator.timing import Box
from experiments.cifar100 import problem, published
from experiments.kit import cell as cells
from experiments.kit.recipe import Problem, Protocol
from experiments.kit.teachers import Place
from jaxkd import data

TEACHER, STUDENT, METHOD = "resnet32x4", "resnet8x4", "kd"
TINY = Protocol(epochs=1, teacher_epochs=1, batch_size=8)
NO_DATA = "no images: name them with --data-dir (a TFDS data_dir with cifar100, or an .npz file)"


@functools.lru_cache(maxsize=2)
def from_file(path: Any, split: str) -> data.Dataset:
    """Returns a split of an ``.npz`` file."""
    with np.load(path) as file:
        return data.from_arrays(file[f"{split}_image"], file[f"{split}_label"], num_classes=100, name="cifar100")


def place(options: Options) -> Place:
    """Returns problem, protocol and folders."""
    found: Problem = problem.PROBLEM
    if options.data_dir is not None and options.data_dir.suffix == ".npz":
        found = found._replace(load=from_file)
    given = {} if options.teacher_weights is None else {names(options)[0]: str(options.teacher_weights)}
    protocol = TINY if options.rehearse else published.PROTOCOL
    return Place(found, protocol, options.data_dir, options.work / "cifar100", given, progress=False)


def names(options: Options) -> tuple[str, str]:
    """Returns teacher and student."""
    return ("resnet14", "resnet8") if options.rehearse else (TEACHER, STUDENT)


def wanted(options: Options) -> list[cells.Cell]:
    """Returns the cells, one for each seed."""
    return [cells.Cell(*names(options), METHOD, seed) for seed in range(options.seeds)]


def cases(options: Options) -> list[Case]:
    """Returns the teacher and the students; none without images."""
    if options.data_dir is None:
        return []
    teacher = Case(f"teacher {names(options)[0]}", 5, functools.partial(of_teacher, options), resumes=True)
    students = [Case(str(cell), 5, functools.partial(of_cell, options, cell), resumes=True) for cell in wanted(options)]
    return [teacher, *students]


def of_teacher(options: Options, box: Box) -> dict[str, Any]:
    """Returns the teacher's measures, trained or resumed first where no weights are given."""
    del box
    found, where = place(options), names(options)[0]
    found.teacher(where)
    kept = json.loads(found.teacher_file(where).read_text())
    return {
        "source": kept["source"],
        "test_accuracy": kept["test"]["accuracy"],
        "training_seconds": kept.get("seconds"),
    }


def of_cell(options: Options, cell: cells.Cell, box: Box) -> dict[str, Any]:
    """Returns a student's measures, trained or resumed first."""
    del box
    found = place(options)
    cells.run_free([cell], found)
    kept = json.loads(found.file(cell).read_text())
    return {
        **{"seed": cell.seed, "test_accuracy": kept["test"]["accuracy"], "best": kept["best"]},
        **{"agreement": kept["test"]["agreement"], "images_per_second": kept["images_per_second"]},
        **{"training_seconds": kept["seconds"], "steps": kept["steps"], "protocol": found.protocol.settings()},
    }


def progress(options: Options) -> dict[str, float]:
    """Returns the epochs of trainings that are interrupted, by their name."""
    if options.data_dir is None:
        return {}
    found, teacher = place(options), names(options)[0]
    folders = {str(cell): found.directory(cell) for cell in wanted(options) if not found.file(cell).exists()}
    if not found.teacher_file(teacher).exists():
        folders[f"teacher {teacher}"] = found.teacher_file(teacher).parent
    return {name: epochs for name, folder in folders.items() if (epochs := _epochs(folder / "metrics.csv"))}


def _epochs(file: Path) -> float:
    if not file.exists():
        return 0.0
    with file.open() as lines:
        return max((float(row["epoch"]) for row in csv.DictReader(lines) if row.get("epoch")), default=0.0)
