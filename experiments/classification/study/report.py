"""The numbers, the page and the figure of the study, from its finished cells."""

import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from experiments.classification.study import cells, figure
from experiments.classification.study.table import Rows
from experiments.kit import files, report, statistics

KINDS = ("published", "chosen")
MEASURES = ("accuracy", "agreement", "calibration_error", "cka", "svcca")
GROUPS = {"response": "Response", "features": "Features", "relations": "Relations"}
HEADS = (
    *("method", "published value", "accuracy (%)", "gain"),
    *("chosen value", "accuracy (%)", "gain", "shown", "over KD"),
    *("agreement (%)", "CKA", "SVCCA", "cost", "with the teacher"),
)


def write(rows: Rows, folder: pathlib.Path, settings: Mapping[str, Any], title: str) -> dict[str, Any]:
    """Writes the report of finished cells; returns its numbers."""
    found = cells.read(folder, list(rows))
    references = folder / "references.json"
    results = numbers(rows, found, json.loads(references.read_text()) if references.exists() else {})
    results["config"] = dict(settings)
    files.write_json(folder / "results.json", results, indent=1)
    files.write(folder / "report.md", markdown(results, title))
    if results["rows"]:
        files.write(folder / "gain-and-cost.png", figure.draw(results))
    return results


def numbers(rows: Rows, found: Mapping[str, Any], references: Mapping[str, Any]) -> dict[str, Any]:
    """Returns means, paired gains and costs of finished methods."""
    alone, soft = found.get("student"), found.get("kd")
    results: dict[str, Any] = {"references": dict(references), "rows": {}}
    for name, cell in found.items():
        row, tested = rows[name], cell["test"]
        one: dict[str, Any] = {"title": row.title, "group": row.group, "covers": row.covers, "source": row.source}
        one |= {"values": cell["choice"]["values"], "validation": np.mean(cell["choice"]["accuracy"], axis=1).tolist()}
        one |= {"value": {"published": tested["published"], "chosen": tested["chosen"]}, "flops": tested["flops"]}
        one["measures"] = {
            kind: {measure: statistics.summary(by_seed(tested, kind, measure)) for measure in MEASURES}
            for kind in KINDS
        }
        one["gain"] = {kind: gain(tested, alone, kind) for kind in KINDS} if alone and name != "student" else {}
        one["over_kd"] = gain(tested, soft, "chosen") if soft and name != "kd" else None
        one["cost"] = {k: v / alone["test"]["flops"]["cached"] for k, v in tested["flops"].items()} if alone else {}
        one["seconds"] = cell["choice"]["seconds"] + tested["seconds"]
        results["rows"][name] = one
    every = [cell[what] for cell in found.values() for what in ("choice", "test")]
    return results | statistics.merged(every)


def by_seed(tested: Mapping[str, Any], kind: str, measure: str) -> dict[int, float]:
    """Returns a measure of the students with the published or with the chosen value, by seed."""
    half = len(tested["seeds"])
    part = tested["runs"][:half] if kind == "published" else tested["runs"][half:]
    return {one["seed"]: one["measures"][measure] for one in part}


def gain(tested: Mapping[str, Any], other: Mapping[str, Any], kind: str) -> dict[str, Any] | None:
    """Returns the paired gain over another method, whose value had the same choice."""
    return statistics.paired(by_seed(tested, kind, "accuracy"), by_seed(other["test"], kind, "accuracy"))


def shown(summary: Mapping[str, Any] | None) -> str:
    """Returns whether a gain is shown: ``better``, ``worse``, or ``no`` where the interval contains 0.

    >>> shown({"mean": 0.02, "half": 0.01}), shown({"mean": 0.02, "half": 0.03})
    ('better', 'no')
    """
    if summary is None or summary["mean"] is None or summary["half"] is None:
        return report.NONE
    if abs(summary["mean"]) <= summary["half"]:
        return "no"
    return "better" if summary["mean"] > 0 else "worse"


def table_rows(results: Mapping[str, Any], group: str | None = None) -> list[report.Row]:
    """Returns the rows of the table, of one group or of all methods."""
    found = []
    for one in results["rows"].values():
        if group in (None, one["group"]):
            texts = [one["title"]]
            for kind in KINDS:
                gained = one["gain"].get(kind)
                texts += [f"{one['value'][kind]:g}", _share(one["measures"][kind]["accuracy"]), _points(gained)]
            measured = one["measures"]["chosen"]
            texts += [shown(one["gain"].get("chosen")) if one["gain"] else report.NONE]
            texts += [_points(one["over_kd"]), report.mean(measured["agreement"], spec=".1f")]
            texts += [report.mean(measured[name], 1) for name in ("cka", "svcca")]
            texts += [f"{one['cost'][how]:.2f}×" if one["cost"] else report.NONE for how in ("cached", "live")]
            found.append(tuple(texts))
    return found


def _share(summary: Mapping[str, Any]) -> str:
    half = "" if summary["half"] is None else f" ± {100 * summary['half']:.1f}"
    return report.mean(summary, spec=".1f") + half


def _points(summary: Mapping[str, Any] | None) -> str:
    if summary is None or summary["mean"] is None:
        return report.NONE
    return f"{100 * summary['mean']:+z.1f} ± {100 * summary['half']:.1f}"


def table(results: Mapping[str, Any], title: str) -> report.TerminalTable:
    return report.TerminalTable(title, HEADS, table_rows(results))


def markdown(results: Mapping[str, Any], title: str) -> str:
    """Returns ``report.md``."""
    config, teacher = results["config"], results["references"].get("teacher", {})
    parts = [f"# {title}", _about(results)]
    for group, heading in GROUPS.items():
        if made := table_rows(results, group):
            parts += [f"## {heading}", report.markdown_table(HEADS, made)]
    parts += ["![Gain against cost](gain-and-cost.png)", "## What the seeds can show", *_power(results)]
    parts += ["## Grids, and validation accuracy of each value", report.markdown_table(*_grids(results), numbers=False)]
    settings = [(name, f"{value:g}" if isinstance(value, float) else str(value)) for name, value in config.items()]
    if teacher:
        settings.append(("teacher's test accuracy", f"{100 * teacher['accuracy']:.2f} %"))
    parts += ["## Settings", report.markdown_table(("setting", "value"), settings, numbers=False)]
    parts.append(
        f"Devices: {', '.join(results['devices'])}. Versions: {report.versions_line(results['versions'])}. "
        f"All trainings and measurements took {report.duration(results['seconds'])}, compilation included."
    )
    return "\n\n".join(parts) + "\n"


def _about(results: Mapping[str, Any]) -> str:
    seeds, others = results["config"]["seeds"], max(len(results["rows"]) - 1, 0)
    return f"""Each method is trained with its published value, usually the weight of its term (where none is used, with
1), and with the value of a grid of five that has the best mean accuracy on the validation split. The budget of the
choice is the same for every method, the student alone included, which chooses its learning rate. The choice has two
seeds of its own; the table shows the test split, {seeds} other seeds, as means with 95% intervals (Student's t). A gain
is the paired difference from the student alone of the same column and seed. *Shown* says whether the interval of the
chosen value's gain excludes 0; of {others} methods without any effect, one in twenty would be expected to. Agreement,
and the similarities of the last stage to the teacher's (linear CKA and SVCCA on the test images), are those of the
chosen value. The cost is that of a step in FLOPs, as a multiple of the student's alone, with the teacher's outputs
cached, as here, and with the teacher evaluated in the step."""


def _power(results: Mapping[str, Any]) -> list[str]:
    gains = [one["gain"]["chosen"] for one in results["rows"].values() if one["gain"]]
    told = report.power(statistics.resolvable(gains), "points", digits=1)
    return [told] if told else ["No method beside the student alone is finished."]


def _grids(results: Mapping[str, Any]) -> tuple[Sequence[str], list[report.Row]]:
    found: list[report.Row] = []
    for one in results["rows"].values():
        pairs = zip(one["values"], one["validation"], strict=True)
        texts = [f"{value:g}: {100 * accuracy:.1f}" for value, accuracy in pairs]
        found.append((one["title"], one["source"], "; ".join(texts), f"{one['value']['chosen']:g}"))
    return ("method", "the value", "value: accuracy (%)", "chosen"), found
