"""``results.json``, ``report.md`` and the table for the terminal, from cells that are finished."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table

from experiments.cifar100 import published, rows, statistics
from experiments.cifar100.config import PRESETS, SEEDS, Config
from experiments.cifar100.published import METHODS, TITLES

PICTURES = {
    "learning": "Learning curves: the mean over the seeds, with its 95% interval as a band",
    "gains": "Gain over the student alone, with 95% intervals; hollow: published",
    "agreement": "Agreement with the teacher against accuracy",
    "reliability": "Reliability diagrams, all seeds together",
}


def read(out: str | pathlib.Path) -> list[dict[str, Any]]:
    """The finished cells below a folder: ``PAIR/METHOD/seedN/cell.json``, in the order of their paths."""
    return [json.loads(path.read_text()) for path in sorted(pathlib.Path(out).glob("*/*/seed*/cell.json"))]


def read_teachers(folder: str | pathlib.Path) -> dict[str, dict[str, Any]]:
    """The teachers below a folder, ``FOLDER/teacher.json``, by the name of the network.

    Raises:
      ValueError: there are two of one name, as when one was trained and another one given.
    """
    found: dict[str, dict[str, Any]] = {}
    for path in sorted(pathlib.Path(folder).glob("*/teacher.json")):
        teacher = json.loads(path.read_text())
        name = teacher.get("name", path.parent.name)
        if name in found:
            raise ValueError(f"{path}: expected one teacher named {name}, got a second. Read them one by one.")
        found[name] = teacher
    return found


def collect(cells: Iterable[Mapping[str, Any]], teachers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What ``results.json`` holds; tables and plots are made from it and from nothing else.

    Args:
      cells: of any pairs, methods and seeds.
      teachers: by name; those that no cell has are left out.

    Returns:
      ``pairs``, each as `statistics.of_pair` gives it and with its ``teacher`` (None where that is not among the
      teachers), in the order of the literature, others first; ``devices``, ``versions`` and ``seconds`` of everything.

    Raises:
      ValueError: cells of a pair that cannot be compared.
    """
    cells = list(cells)
    by_pair: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_pair.setdefault(cell["pair"], []).append(cell)
    order = [*sorted(set(by_pair) - set(published.PAIRS)), *(pair for pair in published.PAIRS if pair in by_pair)]
    used = {pair.split(":")[0]: None for pair in order}
    pairs = {}
    for pair in order:
        teacher = teachers.get(pair.split(":")[0])
        found = None if teacher is None else statistics.of_teacher(teacher)
        pairs[pair] = {"teacher": found, **statistics.of_pair(by_pair[pair])}
    everything = [*(teachers[name] for name in used if name in teachers), *cells]
    return {"pairs": pairs, **statistics.merged(everything)}


def command(pair: str, method: str, protocol: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """The command that fills a row under the settings of the others.

    >>> command("vgg13:vgg8", "crd", dataclasses.asdict(PRESETS["paper"]), [0, 1, 2])
    'python -m experiments.cifar100 --data-dir DIR --pair vgg13:vgg8 --method crd --preset paper --seeds 3'
    """
    flags = [field.name for field in dataclasses.fields(Config) if field.name in protocol]
    plain = {name: dataclasses.asdict(preset) for name, preset in PRESETS.items()}
    preset = min(plain, key=lambda name: sum(plain[name][flag] != protocol[flag] for flag in flags))
    told: dict[str, Any] = {"preset": preset}
    told |= {flag: protocol[flag] for flag in flags if plain[preset][flag] != protocol[flag]}
    told |= {"first_seed": min(seeds)} if min(seeds) else {}
    told["seeds"] = max(seeds) - min(seeds) + 1
    options = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in told.items())
    return f"python -m experiments.cifar100 --data-dir DIR --pair {pair} --method {method} {options}"


def table(results: Mapping[str, Any]) -> Table:
    """The table for a terminal: what has been run, a section for each pair."""
    shown = Table(title="CIFAR-100, test set, last epoch: mean ± standard deviation over the seeds")
    heads = ("", "n", "last (%)", "best (%)", "over alone", "over KD", "agreement (%)", "published (%)", "compared")
    for i, head in enumerate(heads):
        shown.add_column(head, justify="right" if i else "left", no_wrap=not i)
    for pair, found in results["pairs"].items():
        by = "test" if found["best_by"].startswith("test") else "validation"
        shown.add_row(f"[bold]{pair.replace(':', ' → ')}[/bold]", *("",) * 2, f"by {by}", *("",) * 5)
        for row in rows.of_pair(pair, found):
            if row[0] == "teacher" or row[1] != "0":
                compared = " ".join(text for text in row[11:-1] if text != rows.NONE).replace("**", "") or rows.NONE
                shown.add_row(*row[:3], row[4].split(" at ")[0], *row[5:8], row[10], compared)
        shown.add_section()
    return shown


# The page.


def markdown(results: Mapping[str, Any]) -> str:
    """``report.md``.

    Args:
      results: as `collect` makes them.
    """
    versions = ", ".join(f"{name} {' and '.join(found)}" for name, found in results["versions"].items())
    rest = [pair for pair in published.PAIRS if pair not in results["pairs"]]
    parts = [
        _INTRODUCTION,
        *(_of_pair(pair, found) for pair, found in results["pairs"].items()),
        *([_not_run(rest, results)] if rest else []),
        "## Where and with what",
        f"Devices: {', '.join(results['devices']) or 'not recorded'}. Time of all trainings that are reported here, "
        f"one after the other: {_duration(results['seconds'])}. Versions: {versions or 'not recorded'}.",
    ]
    return "\n\n".join(parts) + "\n"


_INTRODUCTION = """# CIFAR-100: distillation beside the published numbers

Accuracy is top-1 on the 10,000 test images after the **last** epoch: mean ± standard deviation (n − 1) over the seeds,
and the 95% interval of the mean by Student's t. A gain is the difference between two students of the same seed,
averaged over the seeds that both have, ± half its 95% interval; where these are fewer than the method has, it says how
many. One seed has no interval, and is marked n = 1. Agreement is how often a student chooses the class that its teacher
chooses, KL is KL(teacher ‖ student) in nats at temperature 1, and the calibration error is the expected one with 15
bins. A dash stands for what does not exist: no published value, or nothing to compare with."""


_CLASSES = """In points over the student alone, the mean over the seeds that both have. A class has 100 test images, so
that a few points are noise."""


def _of_pair(pair: str, found: Mapping[str, Any]) -> str:
    methods = found["methods"]
    absent = [name for name in METHODS if name not in methods and rows.defined(pair, name)]
    short = [*absent, *(name for name, one in methods.items() if len(one["seeds"]) < len(found["seeds"]))]
    parts = [
        f"## {pair.split(':')[0]} → {pair.split(':')[1]}",
        _protocol(pair, found),
        tabulated(rows.columns(found), rows.of_pair(pair, found)),
        *_rerun(pair),
    ]
    if short:
        commands = "\n".join(command(pair, name, found["protocol"], found["seeds"]) for name in short)
        parts.append(f"What is not run yet, or not with all {len(found['seeds'])} seeds:\n\n```\n{commands}\n```")
    parts += [f"![{title}]({picture(pair, kind)})" for kind, title in PICTURES.items()]
    parts += [f"### At the {rows.best_title(found).replace(' (%)', '').replace('*', '')}", _best_note(found)]
    heads = ("method", "accuracy (%)", "gain over alone", "gain over KD", "best − last")
    parts.append(tabulated(heads, rows.best_rows(found)))
    if similar := rows.cka_rows(found):
        parts += ["### Linear CKA with the teacher's stages, on a fixed part of the test set"]
        parts += [tabulated(similar[0], similar[1:])]
    if classes := rows.class_rows(found):
        parts += [f"### The {rows.EXTREMES} classes that a method helps most, and hurts most"]
        parts += [_CLASSES, tabulated(("method", "most helped", "most hurt"), classes, numbers=False)]
    return "\n\n".join([*parts, "### Settings", *_settings(found)])


def _not_run(pairs: Sequence[str], results: Mapping[str, Any]) -> str:
    """The published pairs that have no cell, and a command for them under the settings of those that have."""
    protocol, seeds = dataclasses.asdict(PRESETS["paper"]), list(range(SEEDS["paper"]))
    for found in results["pairs"].values():
        protocol, seeds = found["protocol"], found["seeds"]
    told = command(" ".join(pairs), "all", protocol, seeds)
    return f"## Published pairs that are not run yet\n\n{', '.join(pairs)}\n\n```\n{told}\n```"


def _protocol(pair: str, found: Mapping[str, Any]) -> str:
    if not found["unlike_published"]:
        return "The published protocol: accuracies can be compared as they are."
    near = published.nearest(pair).replace(":", " → ")
    other = (
        f" Nothing is published for this pair: published gains are those of {near}."
        if pair not in published.PAIRS
        else ""
    )
    return (
        f"Not the published protocol ({'; '.join(found['unlike_published'])}): accuracies cannot be compared with the "
        "published ones. What can be is whether a method helps or hurts. *direction* says whether our gain over the "
        "student alone has the sign of the published one, and *unclear* that our interval contains 0."
        + (other if published.nearest(pair) in published.PAIRS else "")
    )


def _best_note(found: Mapping[str, Any]) -> str:
    if found["best_by"].startswith("test"):
        return (
            "The epoch is chosen on the very images that it is measured on, which makes every number too high. It is "
            "here because part of the literature reports it."
        )
    return "The epoch is chosen on held-out training images, and measured on the test set."


def _rerun(pair: str) -> list[str]:
    found = {name: published.rerun(pair, name) for name in METHODS}
    told = [f"{TITLES[name]} {one.mean:.2f} ± {one.spread:.2f}" for name, one in found.items() if one]
    return [f"An independent rerun of five seeds found, on the last epoch: {', '.join(told)}."] if told else []


def _settings(found: Mapping[str, Any]) -> list[str]:
    common = tabulated(
        ("setting", "value"), [(k, statistics.words(k, v)) for k, v in found["protocol"].items()], numbers=False
    )
    sizes = {one["parameters"] for one in found["methods"].values() if one["parameters"]}
    steps = {one["steps"] for one in found["methods"].values() if one["steps"]}
    seconds = sum(one["seconds"] for one in found["methods"].values())
    line = f"Seeds: {', '.join(map(str, found['seeds']))}."
    if sizes:
        line += f" Parameters of the student: {' or '.join(f'{size:,}' for size in sorted(sizes))}"
        teacher = found["teacher"] and found["teacher"]["parameters"]
        line += f", of the teacher: {teacher:,}." if teacher else "."
    line += f" Steps: {' or '.join(f'{step:,}' for step in sorted(steps))}." if steps else ""
    line += f" Time of the students: {_duration(seconds)}."
    if found["teacher"] and found["teacher"]["source"] != "trained":
        line += f" The teacher's weights are from elsewhere ({found['teacher']['source']})."
    elif found["teacher"]:
        line += f" Time of the teacher: {_duration(found['teacher']['seconds'])}."
    own = [
        (TITLES.get(name, name), ", ".join(f"{k} = {statistics.words(k, v)}" for k, v in one["protocol"].items()))
        for name, one in found["methods"].items()
        if one["protocol"]
    ]
    return [common, line, *([tabulated(("method", "settings of its own"), own, numbers=False)] if own else [])]


def picture(pair: str, kind: str) -> str:
    """The name of a plot's file.

    >>> picture("resnet56:resnet20", "gains")
    'resnet56-resnet20-gains.png'
    """
    return f"{pair.replace(':', '-')}-{kind}.png"


def tabulated(head: rows.Row, cells: Iterable[rows.Row], numbers: bool = True) -> str:
    """A table in Markdown; what follows the first column is aligned to the right where it holds numbers."""
    marks = ("---", *("---:" if numbers else "---",) * (len(head) - 1))
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, marks, *cells])


def _duration(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
