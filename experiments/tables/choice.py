"""The tables of docs/which-method.md: by method, what it needs, costs, and gained in the committed results."""

import functools
import pathlib
import tomllib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

from experiments.kit import report
from experiments.kit.methods import METHODS
from experiments.schemes import report as schemes_report
from experiments.tables import committed, overview, speed
from experiments.tables.cells import FEW, measured, table
from experiments.tables.overview import SEVERAL, Compared, Result
from experiments.tables.pages import ROOT, Maker, link

COSTS = ROOT / "benchmarks" / "results" / "which_method.json"
BY_FIELD = ("cifar100", "digits", "schemes")  # experiments of one task, whose results are named by the experiment
STUDY = "classification/study"
VERDICTS = ("helped", "no difference shown", "worse", FEW)


class Found(NamedTuple):
    """A gain of a method in a committed result."""

    result: Result
    method: Compared

    @property
    def verdict(self) -> str:
        one, higher = self.method, self.result.measure.higher
        if len(one.gain["seeds"]) < SEVERAL:
            return FEW
        if one.helps(higher):
            return "helped"
        return "worse" if overview.hurts(one, higher) else "no difference shown"


@functools.cache
def methods() -> dict[str, dict[str, Any]]:
    """Returns the rows of ``methods.toml``."""
    text = pathlib.Path(__file__).with_name("methods.toml").read_text(encoding="utf-8")
    found: dict[str, dict[str, Any]] = tomllib.loads(text)
    return found


@functools.cache
def costs() -> dict[str, dict[str, Any]]:
    """Returns the costs of methods by the name that the benchmark gives them."""
    return {row["method"]: row for row in committed.read(COSTS)["rows"]}


def gains(reference: str) -> Iterable[Found]:
    """Yields the gains of ``FIELD/TASK:ROW``, ``FIELD:ROW`` of all its results or ``schemes/SET:ROW``."""
    name, _, key = reference.rpartition(":")
    if name.startswith("schemes/"):
        yield _scheme(name, key)
        return
    for result in overview.everything()[name.partition("/")[0]]:
        if name in (result.of, result.of.partition("/")[0]):
            yield from (Found(result, one) for one in result.methods if one.key == key)


def _scheme(name: str, key: str) -> Found:
    row = committed.results(name)["rows"][key]
    mean, half = schemes_report.gain(row, "alone")
    gain = {"mean": mean / 100, "half": half / 100, "seeds": list(range(len(row["accuracy"])))}
    compared = Compared(key, row["title"], None, gain)
    return Found(Result("schemes", name, committed.folder(name), overview.POINTS, [compared]), compared)


def _gained(row: Mapping[str, Any], page: pathlib.Path) -> str:
    """Returns a method's gains over the student alone, by verdict."""
    references = row.get("results", [])
    found = [one for reference in references for one in _checked(reference)]
    found += [one for key in row.get("study", []) for one in gains(f"{STUDY}:{key}")]
    parts = []
    for verdict in VERDICTS:
        by_result: dict[str, list[str]] = {}
        for one in found:
            if one.verdict == verdict:
                by_result.setdefault(_linked(one.result, page), []).append(_gain(one))
        shown = [f"{where} {', '.join(each)}".strip() for where, each in by_result.items()]
        parts += [f"{verdict}: {'; '.join(shown)}"] if shown else []
    return ". ".join(part[0].upper() + part[1:] for part in parts) or report.NONE


def _checked(reference: str) -> list[Found]:
    """Returns the gains of a reference, which must be there if the task's results have any row of that kind."""
    found = list(gains(reference))
    if not found and "/" in reference:
        raise KeyError(reference)
    return found


def _linked(result: Result, page: pathlib.Path) -> str:
    field, _, name = result.of.partition("/")
    return link(field if field in BY_FIELD else name, result.folder / "report.md", page)


def _gain(one: Found) -> str:
    """Returns the gain in points, or with its unit; none where there are too few seeds."""
    measure = one.result.measure
    told = [*([] if "%" in measure.title else [measure.title]), *([one.result.variant] if one.result.variant else [])]
    unit = f" ({', '.join(told)})" if told else ""
    return "" if one.verdict == FEW else f"{measured(one.method.gain, measure, sign=True)}{unit}"


def weight(row: Mapping[str, Any]) -> str:
    """Returns the published weight: that of the kit's table unless ``methods.toml`` has another text."""
    if "weight" in row:
        return str(row["weight"])
    terms = dict(METHODS[row["cost"]].weights)
    labels = terms.pop("ce", None)
    named = [f"{value:g}" if len(terms) == 1 else f"{name} {value:g}" for name, value in terms.items()]
    return ", ".join(named + ([] if labels is None else [f"labels {labels:g}"]))


def _step(row: Mapping[str, Any]) -> list[str]:
    """Returns the FLOPs and the memory of a step, relative to the student alone."""
    found = costs().get(row.get("cost", ""), {})
    keys = ("flops_over_alone", "bytes_over_alone")
    return [f"{found[key]:.2f}×" if key in found else report.NONE for key in keys]


def _vocabulary(row: Mapping[str, Any]) -> list[str]:
    """Returns the memory of a loss over a vocabulary, dense and in chunks."""
    of = {one["loss"]: one["temporary_bytes"] for one in speed.rows_of("memory")}
    found = of.get(row.get("memory", ""))
    return [report.NONE if found is None else f"{found[key] / speed.MIB:,.0f}" for key in ("dense", "chunked")]


COLUMNS: Mapping[str, tuple[tuple[str, ...], Callable[[Mapping[str, Any]], list[str]]]] = {
    "step": (("FLOPs", "memory"), _step),
    "vocabulary": (("dense, MiB", "chunked, MiB"), _vocabulary),
    "none": ((), lambda row: []),
}


def which_method(page: pathlib.Path, *, section: str, cost: str = "step") -> str:
    """Returns the table of a section of ``methods.toml``, with costs of a kind of `COLUMNS`."""
    heads, cells = COLUMNS[cost]
    rows = [row for row in methods().values() if row["section"] == section]
    if not rows:
        raise KeyError(section)
    lines = [
        (f"{row['title']}: `{row['name']}`", row["needs"], weight(row), *cells(row), _gained(row, page)) for row in rows
    ]
    return table(("method", "needs", "published weight", *heads, "gain over the student alone"), lines, numbers=False)


def setting(page: pathlib.Path) -> str:
    """Returns a sentence on the step whose cost the tables have."""
    row = costs()["student"]
    memory = f"{row['bytes'] / 2**20:.0f} MiB"
    pair = f"{row['teacher']} teaches {row['student']}, batches of {row['batch_size']} images of CIFAR-100's size"
    return f"Costs are those of a compiled step on a CPU: {pair}. The student alone needs {memory}."


TABLES: Mapping[str, Maker] = {"which_method": which_method, "which_method_setting": setting}
