"""The queue of the reduced CIFAR-100 protocol: ``python -m experiments.cells``.

resnet20 → resnet8, 12 epochs of all 50,000 images, three seeds. Cells that are committed below
``experiments/cifar100/results`` are finished; the others are run, one after the other, and an interrupted queue resumes
where it stopped. ``--keep`` copies finished cells, without their weights, to where they are committed.
"""

import dataclasses
import json
import pathlib
import shutil
import sys
from collections.abc import Sequence

from rich.console import Console

from experiments.cifar100 import config as configs
from experiments.cifar100 import main as cifar100
from experiments.cifar100 import problem
from experiments.kit import cell as cells
from experiments.kit import command
from experiments.kit.teachers import Place

RESULTS = pathlib.Path(__file__).parent / "cifar100" / "results"
TEACHER = RESULTS / "teachers" / "resnet20-12-epochs" / "weights.safetensors"
PAIR = "resnet20:resnet8"
METHODS = ("student", "kd", "at", "rkd", "crd", "dkd", "dist")


@dataclasses.dataclass(frozen=True)
class Queue:
    """Run the cells of the reduced CIFAR-100 protocol that are not finished."""

    data_dir: pathlib.Path | None = None  # TFDS data_dir in which cifar100 is prepared as array_record
    method: tuple[str, ...] = METHODS  # methods to run; the student alone is always among them
    seeds: int = 3  # students of each method
    workers: int = 1  # cells at the same time, each in a process of its own
    keep: bool = False
    """copy finished cells and their report, without weights, below experiments/cifar100/results; run nothing"""
    dry_run: bool = False  # show what would be run, its cost and its disk, and exit
    out: pathlib.Path = pathlib.Path("runs/cifar100")  # folder of weights, logs and reports


def arguments(queue: Queue) -> list[str]:
    """Returns the arguments of ``python -m experiments.cifar100`` that run the queue."""
    found = ["--pair", PAIR, "--method", *queue.method, "--preset", "reduced", "--seeds", str(queue.seeds)]
    found += ["--teacher-weights", f"resnet20={TEACHER}", "--workers", str(queue.workers), "--out", str(queue.out)]
    found += [] if queue.data_dir is None else ["--data-dir", str(queue.data_dir)]
    return found + (["--dry-run"] if queue.dry_run else [])


def committed(place: Place) -> pathlib.Path:
    return RESULTS / f"{place.protocol.epochs}-epochs"


def restore(wanted: Sequence[cells.Cell], place: Place) -> list[cells.Cell]:
    """Puts committed cells back in place; returns those that it copied."""
    copied = []
    for cell in wanted:
        source = committed(place) / cell.path
        if not (source / "cell.json").exists() or place.file(cell).exists():
            continue
        protocol = json.loads((source / "cell.json").read_text())["protocol"]
        if protocol != place.protocol.settings():
            raise ValueError(f"{source}: expected a cell of {place.protocol}, got {protocol}. Remove it, or move it.")
        shutil.copytree(source, place.directory(cell), dirs_exist_ok=True)
        copied.append(cell)
    return copied


def keep(wanted: Sequence[cells.Cell], place: Place) -> list[cells.Cell]:
    """Copies finished cells and their report, without weights; returns the cells."""
    finished = [cell for cell in wanted if place.file(cell).exists()]
    for cell in finished:
        target = committed(place) / cell.path
        target.mkdir(parents=True, exist_ok=True)
        for name in ("cell.json", "metrics.csv"):
            if (place.directory(cell) / name).exists():
                shutil.copy2(place.directory(cell) / name, target)
    for pattern in ("report.md", "results.json", "log.txt", "*.png") if finished else ():
        for path in place.folder.glob(pattern):
            shutil.copy2(path, committed(place))
    return finished


def main(queue: Queue, console: Console) -> int:
    config = configs.Config(preset="reduced", seeds=queue.seeds, method=queue.method)
    wanted = cells.wanted([PAIR], configs.chosen_methods(config), configs.seeds(config), problem.PROBLEM)
    teacher = {"resnet20": str(TEACHER)}
    place = Place(problem.PROBLEM, configs.protocol(config), queue.data_dir, queue.out, teacher)
    if queue.keep:
        told = f"{len(keep(wanted, place))} of {len(wanted)} cells are finished and kept in {committed(place)}"
        console.print(told, highlight=False)
        return 0
    if not queue.dry_run:
        console.print(f"{len(restore(wanted, place))} of {len(wanted)} cells are committed", highlight=False)
    return cifar100.cli(arguments(queue))


if __name__ == "__main__":
    sys.exit(command.run("cells", Queue, main))
