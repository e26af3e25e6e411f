"""``results.json``, ``report.md`` and the terminal's table of finished cells."""

import functools
import json
import pathlib
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.cifar100 import config as configs
from experiments.cifar100 import published, tables
from experiments.kit import plots, report, statistics
from experiments.kit.methods import METHODS, TITLES
from experiments.kit.report import NONE, duration, markdown_table

TEXTS: dict[str, Any] = tomllib.loads(pathlib.Path(__file__).with_name("texts.toml").read_text(encoding="utf-8"))
PICTURES: dict[str, str] = TEXTS["pictures"]


def read(folder: str | pathlib.Path) -> list[dict[str, Any]]:
    """Returns the finished cells below a folder, ``PAIR/METHOD/seedN/cell.json``."""
    return [json.loads(path.read_text()) for path in sorted(pathlib.Path(folder).glob("*/*/seed*/cell.json"))]


def collect(cells: Iterable[Mapping[str, Any]], teachers: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Returns the content of ``results.json``, from which tables and plots are made."""
    cells = list(cells)
    by_pair: dict[str, list[Mapping[str, Any]]] = {}
    for cell in cells:
        by_pair.setdefault(cell["pair"], []).append(cell)
    order = [*sorted(set(by_pair) - set(published.PAIRS)), *(pair for pair in published.PAIRS if pair in by_pair)]
    pairs = {}
    for pair in order:
        teacher = teachers.get(pair.split(":")[0])
        of_teacher = None if teacher is None else statistics.of_teacher(teacher, published.unlike_published)
        pairs[pair] = {"teacher": of_teacher, **statistics.of_pair(by_pair[pair], published.unlike_published)}
    used = dict.fromkeys(pair.split(":")[0] for pair in order)
    return {"pairs": pairs, **statistics.merged([*(teachers[name] for name in used if name in teachers), *cells])}


def command(pair: str, method: str, protocol: Mapping[str, Any], seeds: Sequence[int]) -> str:
    """Returns the command that runs a method with the settings of the others.

    >>> command("vgg13:vgg8", "crd", published.PROTOCOL.settings(), [0, 1, 2])
    'python -m experiments.cifar100 --data-dir DIR --pair vgg13:vgg8 --method crd --preset paper --seeds 3'
    """
    presets = {name: preset.settings() for name, preset in configs.PRESETS.items()}
    flags = [name for name in configs.Config.__dataclass_fields__ if name in protocol]
    preset = min(presets, key=lambda name: sum(presets[name][flag] != protocol[flag] for flag in flags))
    options: dict[str, Any] = {"preset": preset}
    options |= {flag: protocol[flag] for flag in flags if presets[preset][flag] != protocol[flag]}
    options |= {"first_seed": min(seeds)} if min(seeds) else {}
    options["seeds"] = max(seeds) - min(seeds) + 1
    text = " ".join(f"--{name.replace('_', '-')} {value}" for name, value in options.items())
    return f"python -m experiments.cifar100 --data-dir DIR --pair {pair} --method {method} {text}"


def table(results: Mapping[str, Any]) -> report.TerminalTable:
    heads = ("", "n", "last (%)", "best (%)", "over alone", "over KD", "agreement (%)", "published (%)", "compared")
    title = "CIFAR-100, test set, last epoch: mean ± standard deviation over the seeds"
    texts: list[Sequence[str] | None] = []
    for pair, found in results["pairs"].items():
        by = "test" if found["best_by"].startswith("test") else "validation"
        texts.append((f"[bold]{_arrow(pair)}[/bold]", *("",) * 2, f"by {by}", *("",) * 5))
        for row in tables.rows(pair, found):
            if row[0] == "teacher" or row[1] != "0":
                compared = " ".join(text for text in row[11:-1] if text != NONE).replace("**", "") or NONE
                texts.append((*row[:3], row[4].split(" at ")[0], *row[5:8], row[10], compared))
        texts.append(None)
    return report.TerminalTable(title, heads, texts)


def picture(pair: str, kind: str) -> str:
    return f"{pair.replace(':', '-')}-{kind}.png"


def draw(results: Mapping[str, Any]) -> dict[str, bytes]:
    drawn: dict[str, bytes] = {}
    for pair, found in results["pairs"].items():
        title, gain = _arrow(pair), functools.partial(published.gain, pair)
        drawn[picture(pair, "learning")] = plots.pair_learning(title, found)
        drawn[picture(pair, "gains")] = plots.pair_gains(title, found, gain)
        drawn[picture(pair, "agreement")] = plots.pair_agreement(title, found)
        drawn[picture(pair, "reliability")] = plots.pair_reliability(title, found)
    return drawn


def _arrow(pair: str) -> str:
    return pair.replace(":", " → ")


def markdown(results: Mapping[str, Any]) -> str:
    rest = [pair for pair in published.PAIRS if pair not in results["pairs"]]
    parts = [
        TEXTS["introduction"],
        *(_of_pair(pair, found) for pair, found in results["pairs"].items()),
        *([_not_run(rest, results)] if rest else []),
        "## Where and with what",
        f"Devices: {', '.join(results['devices']) or 'not recorded'}. Time of all trainings that are reported here, "
        f"one after the other: {duration(results['seconds'])}. "
        f"Versions: {report.versions_line(results['versions']) or 'not recorded'}.",
    ]
    return "\n\n".join(parts) + "\n"


def _of_pair(pair: str, found: Mapping[str, Any]) -> str:
    methods = found["methods"]
    absent = [name for name in METHODS if name not in methods and tables.defined(pair, name)]
    short = [*absent, *(name for name, one in methods.items() if len(one["seeds"]) < len(found["seeds"]))]
    table = markdown_table(tables.columns(found), tables.rows(pair, found))
    parts = [f"## {_arrow(pair)}", _protocol(pair, found), table, *_power(found), *_rerun(pair)]
    if short:
        commands = "\n".join(command(pair, name, found["protocol"], found["seeds"]) for name in short)
        parts.append(TEXTS["not_run"].format(seeds=len(found["seeds"]), commands=commands))
    parts += [f"![{title}]({picture(pair, kind)})" for kind, title in PICTURES.items()]
    parts += [
        f"### At the {tables.best_title(found).replace(' (%)', '').replace('*', '')}",
        TEXTS["chosen_on_test" if found["best_by"].startswith("test") else "chosen_on_held_out"],
    ]
    heads = ("method", "accuracy (%)", "gain over alone", "gain over KD", "best − last")
    parts.append(markdown_table(heads, tables.best_rows(found)))
    if similar := tables.cka_rows(found):
        parts += ["### Linear CKA with the teacher's stages, on a fixed part of the test set"]
        parts += [markdown_table(similar[0], similar[1:])]
    if classes := tables.class_rows(found):
        parts += [f"### The {tables.EXTREMES} classes that a method helps most, and hurts most"]
        parts += [TEXTS["classes"], markdown_table(("method", "most helped", "most hurt"), classes, numbers=False)]
    return "\n\n".join([*parts, "### Settings", *_settings(found)])


def _not_run(pairs: Sequence[str], results: Mapping[str, Any]) -> str:
    protocol, seeds = published.PROTOCOL.settings(), list(range(configs.SEEDS["paper"]))
    for found in results["pairs"].values():
        protocol, seeds = found["protocol"], found["seeds"]
    told = command(" ".join(pairs), "all", protocol, seeds)
    return str(TEXTS["not_run_pairs"].format(pairs=", ".join(pairs), command=told))


def _protocol(pair: str, found: Mapping[str, Any]) -> str:
    if not found["unlike_published"]:
        return str(TEXTS["published"])
    near, text = (
        published.nearest(pair),
        TEXTS["not_published"].format(differences="; ".join(found["unlike_published"])),
    )
    another = pair not in published.PAIRS and near in published.PAIRS
    return text + (TEXTS["another_pair"].format(pair=_arrow(near)) if another else "")


def _power(found: Mapping[str, Any]) -> list[str]:
    """Returns what the seeds of a pair can resolve, as a paragraph."""
    gains = (one["gain"]["last"].get("student") for one in found["methods"].values())
    told = report.power(statistics.resolvable(gains), "points")
    return [told] if told else []


def _rerun(pair: str) -> list[str]:
    found = {name: published.rerun(pair, name) for name in METHODS}
    told = [f"{TITLES[name]} {one.mean:.2f} ± {one.spread:.2f}" for name, one in found.items() if one]
    return [f"An independent rerun of five seeds found, on the last epoch: {', '.join(told)}."] if told else []


def _settings(found: Mapping[str, Any]) -> list[str]:
    methods, teacher = found["methods"], found["teacher"]
    rows = [(name, published.words(name, value)) for name, value in found["protocol"].items()]
    sizes, steps = ({one[key] for one in methods.values() if one[key]} for key in ("parameters", "steps"))
    line = f"Seeds: {', '.join(map(str, found['seeds']))}."
    if sizes:
        line += f" Parameters of the student: {_listed(sizes)}"
        line += f", of the teacher: {teacher['parameters']:,}." if teacher and teacher["parameters"] else "."
    line += f" Steps: {_listed(steps)}." if steps else ""
    line += f" Time of the students: {duration(sum(one['seconds'] for one in methods.values()))}."
    if teacher and teacher["source"] != "trained":
        line += f" The teacher's weights are from elsewhere ({teacher['source']})."
    elif teacher:
        line += f" Time of the teacher: {duration(teacher['seconds'])}."
    own = [
        (TITLES.get(name, name), ", ".join(f"{k} = {published.words(k, v)}" for k, v in one["protocol"].items()))
        for name, one in methods.items()
        if one["protocol"]
    ]
    tables = [(("setting", "value"), rows), *([(("method", "settings of its own"), own)] if own else [])]
    common, *others = (markdown_table(*table, numbers=False) for table in tables)
    return [common, line, *others]


def _listed(numbers: set[int]) -> str:
    return " or ".join(f"{number:,}" for number in sorted(numbers))
