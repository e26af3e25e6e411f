"""The table of one experiment: of a task of the kit, of the digits, of CIFAR-100, of the schemes."""

import pathlib
from collections.abc import Callable, Mapping
from typing import Any

from experiments.cifar100 import published
from experiments.cifar100 import tables as cifar100_tables
from experiments.digits import report as digits_report
from experiments.kit import report
from experiments.kit.methods import TITLES
from experiments.kit.tasks import report as task_report
from experiments.kit.tasks.task import Task
from experiments.schemes import report as schemes_report
from experiments.tables import committed
from experiments.tables.cells import measured, table, text
from experiments.tables.pages import Maker

Row = Mapping[str, Any]


def _chosen(option: str, default: list[str], separator: str = ",") -> list[str]:
    return option.split(separator) if option else default


def task(page: pathlib.Path, *, results: str, columns: str = "", rows: str = "") -> str:
    """Returns the table of a task, whose columns (``a,b``) and rows (``a;b``) can be chosen by name."""
    of, found = committed.task(results), committed.results(results)
    every = {**found["references"], **found["rows"]}
    default = [*list(of.measures)[:3], *("gain_cost" if key == "cost" else "gain" for key in task_report.equal(of))]
    chosen = {name: _column(of, name) for name in _chosen(columns, default)}
    lines = [
        (name if name in found["references"] else row["title"], *(column(row) for _, column in chosen.values()))
        for name, row in ((name, every[name]) for name in _chosen(rows, list(every), ";"))
    ]
    return table(("method", *(head for head, _ in chosen.values())), lines)


def _column(of: Task, name: str) -> tuple[str, Callable[[Row], str]]:
    """Returns the head and the text of a column; references, which were measured once, have the measures alone."""
    if name in ("gain", "gain_cost"):
        key, first = ("cost" if name == "gain_cost" else "steps"), of.measures[of.first]
        head = f"gain, equal {task_report.equal(of)[key]}"
        return head, lambda row: measured(row["gains"][key], first, sign=True) if key in row.get("gains", {}) else ""
    if name == "best":
        first = of.measures[of.first]
        return (
            "best evaluation",
            lambda row: (
                measured({**row["best"], "half": 0.0}, first).split(" ±")[0]
                if (row.get("best") and row["best"]["mean"] is not None)
                else ""
            ),
        )
    if name == "parameters":
        return name, lambda row: f"{int(row[name]):,}" if name in row else ""
    measure = of.measures[name]

    def cell(row: Row) -> str:
        if "measures" in row:
            return measured(row["measures"].get(name), measure)
        return report.NONE if row.get(name) is None else f"{measure.scale * row[name]:.{measure.digits}f}"

    return measure.title, cell


def digits(page: pathlib.Path, *, columns: str = "") -> str:
    """Returns the demo's table; columns are named by their numbers, from 0."""
    rows = digits_report.rows(committed.results("digits"))
    chosen = [int(number) for number in _chosen(columns, list(map(str, range(len(digits_report.COLUMNS)))))]
    head = [digits_report.COLUMNS[i] for i in chosen]
    return table(head, ([row[i] for i in chosen] for row in rows))


def cifar100(page: pathlib.Path, *, results: str, pair: str, columns: str = "") -> str:
    """Returns the rows of a pair that were run."""
    found = committed.results(f"cifar100/{results}")["pairs"][pair]
    heads = {
        "accuracy": "accuracy, last epoch (%)",
        "gain": "gain over alone",
        "gain_kd": "gain over KD",
        "agreement": "agreement (%)",
        "calibration": "calibration error (%)",
        "published": "published gain",
        "direction": "direction",
        "seeds": "seeds",
    }
    default = ["accuracy", "gain", "gain_kd", "calibration", "published", "direction"]
    lines = []
    if (teacher := found["teacher"]) is not None:
        error = report.percent(teacher["calibration_error"])
        lines.append(("teacher", {"accuracy": report.percent(teacher["last"]), "calibration": error}))
    for name, one in found["methods"].items():
        over = one["gain"]["last"]
        gain = None if name == "student" else published.gain(pair, name)
        cells = {
            "accuracy": text(one["last"], 100, 2),
            "gain": text(over.get("student"), 100, 2, sign=True),
            "gain_kd": text(over.get("kd"), 100, 2, sign=True),
            "agreement": report.mean(one["agreement"]),
            "calibration": report.mean(one["calibration_error"]),
            "published": report.number(gain, "+z.2f"),
            "direction": cifar100_tables.direction(over.get("student"), gain),
            "seeds": str(len(one["seeds"])),
        }
        lines.append((TITLES.get(name, name), cells))
    chosen = _chosen(columns, default)
    rows = [(name, *(cells.get(column, report.NONE) for column in chosen)) for name, cells in lines]
    return table(("method", *(heads[column] for column in chosen)), rows)


def schemes(page: pathlib.Path, *, rows: str = "", results: str = "schemes/digits") -> str:
    """Returns accuracies and gains of schemes at equal cost."""
    found = committed.results(results)
    every = dict(zip(found["rows"], schemes_report.rows(found), strict=True))
    lines = [every[name] for name in _chosen(rows, list(every), ";")]
    shown = (0, 1, 4, 5, 8)
    return table([schemes_report.COLUMNS[i] for i in shown], ([line[i] for i in shown] for line in lines))


def study(page: pathlib.Path, *, results: str = "classification/study", group: str = "") -> str:
    """Returns gains of all losses, or of one group, published and chosen values, the largest of a group first."""
    rows = [row for row in committed.results(results)["rows"].values() if row["gain"] and group in ("", row["group"])]
    lines = []
    groups = list(dict.fromkeys(row["group"] for row in rows))
    for row in sorted(rows, key=lambda row: (groups.index(row["group"]), -row["gain"]["chosen"]["mean"])):
        value, same = row["value"]["chosen"], row["value"]["chosen"] == row["value"]["published"]
        gains = [text(row["gain"][kind], 100, 1, sign=True) for kind in ("published", "chosen")]
        chosen = f"{value:g} (published)" if same else f"{value:g}"
        lines.append((row["title"], row["group"], gains[0], chosen, gains[1], f"{row['cost']['cached']:.2f}×"))
    return table(("method", "table", "gain, published value", "chosen value", "gain, chosen value", "cost"), lines)


TABLES: Mapping[str, Maker] = {"task": task, "digits": digits, "cifar100": cifar100, "schemes": schemes, "study": study}
