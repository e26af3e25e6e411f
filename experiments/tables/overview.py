"""The tables of docs/results.md: every committed result, field by field, in one line each."""

import functools
import pathlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from experiments.digits import config as digits
from experiments.kit import report, statistics
from experiments.kit.methods import TITLES
from experiments.kit.tasks.task import Measure
from experiments.schemes import report as schemes_report
from experiments.tables import committed
from experiments.tables.cells import FEW, Summary, listed, measured, table
from experiments.tables.pages import ROOT, Maker, link

REST = "did not help"
HEAD = ("task, measure", "student alone", "best method", "gain, equal steps", "gain, equal FLOPs", "seeds", REST)
OF_SCHEMES = ("family", "student alone (%)", "best scheme", "gain over alone", "gain over offline KD", "seeds", REST)
TITLE = {"cifar100": "CIFAR-100"}
POINTS = Measure("test accuracy (%)", scale=100, digits=1)
FIGURES = ("gains.png", "curves.png")
SEVERAL = 3  # fewest seeds that a result needs to be read


class Compared(NamedTuple):
    """A method beside the student alone of the same seeds."""

    key: str  # its name in the results
    title: str
    alone: Summary | None  # the student alone
    gain: Summary  # paired gain at equal steps
    at_cost: Summary | None = None  # paired gain at equal FLOPs

    def helps(self, higher: bool) -> bool:
        """Returns whether the interval of the gain excludes 0 on the better side."""
        mean, half = self.gain["mean"], self.gain["half"]
        return mean is not None and half is not None and (mean if higher else -mean) > half


class Result(NamedTuple):
    """A committed result."""

    name: str  # name of the task
    of: str  # name of the results, ``FIELD`` or ``FIELD/NAME``
    folder: pathlib.Path  # folder of its report and figures
    measure: Measure  # measure that decides the gains
    methods: Sequence[Compared]  # all methods but the student alone
    figures: Sequence[str] = FIGURES
    variant: str = ""  # what its methods have in common, where a task has several results

    @property
    def seeds(self) -> int:
        return max((len(one.gain["seeds"]) for one in self.methods), default=0)


@functools.cache
def everything() -> dict[str, list[Result]]:
    """Returns all committed results by field."""
    found: dict[str, list[Result]] = {}
    for name in committed.names():
        found.setdefault(name.partition("/")[0], []).extend(_results(name))
    return found


def _results(name: str) -> Iterable[Result]:
    """Yields the results of a file, whose form tells the experiment."""
    content, folder = committed.results(name), committed.folder(name)
    if "pairs" in content:
        yield from _pairs(name, content, folder)
    elif "teacher" in content and "methods" in content:
        yield _digits(content, folder)
    elif committed.is_task(name):
        yield from _tasks(name, content, folder)
    elif committed.is_study(name):
        yield from _study(name, content, folder)


def _tasks(name: str, content: Mapping[str, Any], folder: pathlib.Path) -> Iterable[Result]:
    """Yields a result for each student that methods are compared with."""
    task, rows = committed.task(name), content["rows"]
    by_student: dict[str, list[Compared]] = {}
    for key, row in rows.items():
        if gains := row["gains"]:
            baseline = task.methods[key].baseline
            at_cost = gains.get("cost") if task.equal_cost else None
            alone = rows[baseline]["measures"].get(task.first)
            by_student.setdefault(baseline, []).append(Compared(key, row["title"], alone, gains["steps"], at_cost))
    for baseline, methods in by_student.items():
        own = f", {rows[baseline]['title']}" if len(by_student) > 1 else ""
        yield Result(name.partition("/")[2] + own, name, folder, task.measures[task.first], methods)


def _study(name: str, content: Mapping[str, Any], folder: pathlib.Path) -> Iterable[Result]:
    """Yields a result of the published values of all losses, and one of the values chosen on validation images."""
    rows = content["rows"]
    for kind in rows["student"]["measures"]:
        alone = rows["student"]["measures"][kind]["accuracy"]
        gains = {key: row["gain"].get(kind) for key, row in rows.items()}
        methods = [Compared(key, rows[key]["title"], alone, gain) for key, gain in gains.items() if gain]
        title, variant = f"{name.partition('/')[2]}, {kind} values", f"{kind} value"
        yield Result(title, name, folder, POINTS, methods, ("gain-and-cost.png",), variant)


def _pairs(name: str, content: Mapping[str, Any], folder: pathlib.Path) -> Iterable[Result]:
    for pair, found in content["pairs"].items():
        alone = found["methods"].get("student", {}).get("last")
        methods = [
            Compared(key, TITLES.get(key, key), alone, gain)
            for key, one in found["methods"].items()
            if (gain := one["gain"]["last"].get("student"))
        ]
        title = f"{pair.replace(':', ' → ')}, {name.partition('/')[2].replace('-', ' ')}"
        pictures = [f"{pair.replace(':', '-')}-{kind}.png" for kind in ("gains", "learning")]
        yield Result(title, name, folder, POINTS, methods, pictures)


def _digits(content: Mapping[str, Any], folder: pathlib.Path) -> Result:
    alone, first = content["methods"]["student"]["accuracy"], content["config"]["first_seed"]
    methods = [
        Compared(key, digits.TITLES[key], _summary(alone, first), _summary(one["accuracy"], first, alone))
        for key, one in content["methods"].items()
        if key != "student"
    ]
    return Result("100 labels", "digits", folder, POINTS, methods, ("curves.png",))


def _summary(values: Sequence[float], first: int = 0, baseline: Sequence[float] | None = None) -> Summary:
    """Returns the summary of values by seed, or of their differences from a baseline."""
    own = {first + i: value for i, value in enumerate(values)}
    if baseline is None:
        return statistics.summary(own)
    return statistics.paired(own, {first + i: value for i, value in enumerate(baseline)}) or {}


def line(result: Result, page: pathlib.Path) -> tuple[str, ...]:
    """Returns the row of a result: the best method whose gain excludes 0, and those that have none."""
    higher = result.measure.higher
    figures = [name for name in result.figures if (result.folder / name).exists()]
    links = [link(_called(name), result.folder / name, page) for name in figures]
    called = link(result.name, result.folder / "report.md", page)
    task = f"{called}: {result.measure.title}" + (f" ({', '.join(links)})" if links else "")
    if result.seeds < SEVERAL or not result.methods:
        return (task, report.NONE, report.NONE, FEW, FEW, str(max(result.seeds, 1)), report.NONE)
    read = [one for one in result.methods if len(one.gain["seeds"]) >= SEVERAL]
    few = [f"{one.title} ({FEW})" for one in result.methods if one not in read]
    helping = sorted((one for one in read if one.helps(higher)), key=lambda one: one.gain["mean"], reverse=higher)
    rest = [_verdict(one, higher) for one in read if not one.helps(higher)] + few
    if not helping:
        alone = measured(result.methods[0].alone, result.measure)
        return (task, alone, "none", report.NONE, report.NONE, str(result.seeds), listed(rest))
    best = helping[0]
    at_cost = measured(best.at_cost, result.measure, sign=True)
    gains = (measured(best.gain, result.measure, sign=True), at_cost)
    return (task, measured(best.alone, result.measure), best.title, *gains, str(result.seeds), listed(rest))


def _called(figure: str) -> str:
    """Returns the name of a figure without that of its pair."""
    return figure.removesuffix(".png").split("-")[-1]


def hurts(one: Compared, higher: bool) -> bool:
    """Returns whether the interval of the gain excludes 0 on the worse side."""
    return one.gain["mean"] is not None and one.helps(not higher)


def _verdict(one: Compared, higher: bool) -> str:
    return f"{one.title} (worse)" if hurts(one, higher) else one.title


def results(page: pathlib.Path) -> str:
    """Returns a section with table and figure for each field, and the fields without results."""
    found, sections = everything(), []
    for field in committed.fields():
        own = ROOT / "experiments" / field / "README.md"
        tasks, names = found.get(field, []), [name for name in committed.names() if name.partition("/")[0] == field]
        parts = [table(HEAD, (line(one, page) for one in tasks), numbers=False)] if tasks else []
        parts += [_schemes(name, page) for name in names if _is_schemes(name)]
        if parts:
            sections += [f"## {TITLE.get(field, field.capitalize())}", *parts]
            read = [one for one in tasks if one.seeds >= SEVERAL]
            shown = max(read, key=lambda one: len(one.methods), default=None)
            if shown:  # the figure of most methods
                sections.append(f"!{link(f'Results of {shown.name}', shown.folder / shown.figures[0], page)}")
            sections.append(f"Setting, cost and discussion: {link(f'experiments/{field}', own, page)}.")
    if without := [field for field in committed.fields() if field not in found]:
        links = [link(field, ROOT / "experiments" / field / "README.md", page) for field in without]
        sections += ["## No committed results yet", f"{', '.join(links)}."]
    return "\n\n".join(sections)


def _is_schemes(name: str) -> bool:
    rows = committed.results(name).get("rows", {})
    return bool(rows) and all("offline" in row for row in rows.values())


def _schemes(name: str, page: pathlib.Path) -> str:
    """Returns the table of the schemes: of each family, the best over the student alone, and what did not help."""
    content, folder = committed.results(name), committed.folder(name)
    families: dict[str, list[dict[str, Any]]] = {}
    for row in content["rows"].values():
        families.setdefault(row["group"], []).append(row)
    lines = []
    for family, rows in families.items():
        if family == "references":
            continue
        verdicts = {row["title"]: schemes_report.verdict(row, "alone") for row in rows}
        helping = [row for row in rows if verdicts[row["title"]] == "helps"]
        words = {"hurts": " (worse)", "unclear": ""}
        rest = [title + words[verdict] for title, verdict in verdicts.items() if verdict in words]
        if helping:
            best = max(helping, key=lambda row: schemes_report.gain(row, "alone").mean)
            gains = [f"{schemes_report.gain(best, over):+.1f}" for over in schemes_report.REFERENCES]
            alone = f"{schemes_report.percent(best['alone']['accuracy']):.1f}"
            lines.append((family, alone, best["title"], *gains, str(len(best["accuracy"])), listed(rest)))
        else:
            count = str(len(rows[0]["accuracy"]))
            lines.append((family, report.NONE, "none", report.NONE, report.NONE, count, listed(rest)))
    links = f"{link('report', folder / 'report.md', page)}, {link('gains', folder / 'gains.png', page)}"
    told = f"Test accuracy on {content['config']['data']}, everything at equal training cost in FLOPs ({links})."
    return f"{told}\n\n{table(OF_SCHEMES, lines, numbers=False)}"


def counts(page: pathlib.Path) -> str:
    """Returns a sentence with the numbers of results, students and seeds."""
    tasks = [one for found in everything().values() for one in found]
    enough = [one for one in tasks if one.seeds >= SEVERAL]
    least, most = min(one.seeds for one in enough), max(one.seeds for one in enough)
    few = len(tasks) - len(enough)
    schemes = [len(committed.results(name)["rows"]) for name in committed.names() if _is_schemes(name)]
    told = f" and a comparison of {schemes[0] - 2} schemes" if schemes else ""  # its two references are no schemes
    rest = f'; {few} others have fewer and are marked "{FEW}"' if few else ""
    return f"There are results of {len(enough)} students with {least} to {most} seeds{told}{rest}."


def benchmarks(page: pathlib.Path) -> str:
    """Returns links to all results of the benchmarks, with their machines."""
    lines = []
    for path in sorted((ROOT / "benchmarks" / "results").glob("*.json")):
        content = committed.read(path)
        machine = content.get("machine", {}) if isinstance(content, dict) else {}
        where = f"{machine.get('platform', report.NONE)}, {machine.get('cores', report.NONE)} cores"
        log = path.with_suffix(".log")
        logged = link("log", log, page) if log.exists() else report.NONE
        lines.append((link(path.stem, path, page), where, f"JAX {machine.get('jax', report.NONE)}", logged))
    return table(("benchmark", "machine", "version", "log"), lines, numbers=False)


TABLES: Mapping[str, Maker] = {"results": results, "results_count": counts, "results_benchmarks": benchmarks}
