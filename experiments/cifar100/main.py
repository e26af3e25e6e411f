"""The command: shows its plan, or runs what is not finished and reports."""

import json
import sys
from collections.abc import Sequence
from typing import Any

from rich.console import Console

from experiments.cifar100 import config as configs
from experiments.cifar100 import problem, report
from experiments.cifar100.config import Config
from experiments.kit import cell as cells
from experiments.kit import command, files, plan
from experiments.kit import report as kit_report
from experiments.kit.teachers import Place


def cli(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    return command.run("cifar100", Config, lambda config, console: main(config, arguments, console), arguments, 160)


def main(config: Config, arguments: Sequence[str], console: Console) -> int:
    """Plans; or runs the cells that are not finished, and reports all that are."""
    protocol, pairs = configs.protocol(config), configs.chosen_pairs(config)
    given = configs.given_teachers(config.teacher_weights, pairs)
    wanted = cells.wanted(pairs, configs.chosen_methods(config), configs.seeds(config), problem.PROBLEM)
    place = Place(problem.PROBLEM, protocol, config.data_dir, config.out, given)
    if config.dry_run:
        console.print(plan.table(plan.lines(wanted, place), config.workers))
        return 0
    if config.data_dir is None:
        raise ValueError("--data-dir: name the TFDS data_dir in which cifar100 is prepared (README.md says how).")
    command.remember_programs(config.out / ".compiled")
    pending = [cell for cell in wanted if not place.file(cell).exists()]
    for teacher in dict.fromkeys(cell.teacher for cell in pending):
        place.teacher(teacher)
    if config.workers > 1 and not command.is_worker():
        command.spawn("cifar100", arguments, config.workers)
    busy = cells.run_free(wanted, place, lambda: write_report(place, plots=False), vmapped=config.vmapped)
    if command.is_worker():
        return 0
    if busy:
        console.print(f"{busy} cells are being run by other processes; the report has the finished ones.")
    console.print(report.table(write_report(place)))
    picture = report.picture(wanted[0].pair, "gains")
    console.print(kit_report.closing(place.folder, picture, len(pending)), highlight=False, soft_wrap=True)
    return 0


def write_report(place: Place, plots: bool = True) -> dict[str, Any]:
    """Writes the report of all finished cells; returns the content of the JSON.

    It is written without plots after each cell, so that an interrupted command leaves a report of what it finished.
    """
    finished = report.read(place.folder)
    names = {cell["pair"].split(":")[0] for cell in finished}
    results = report.collect(finished, {name: json.loads(place.teacher_file(name).read_text()) for name in names})
    for name, png in report.draw(results).items() if plots else ():
        files.write(place.folder / name, png)
    files.write(place.folder / "report.md", report.markdown(results))
    files.write_json(place.folder / "results.json", results, indent=1)
    return results
