"""The table, the page and the numbers of a task, from its cells."""

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.kit import report, statistics
from experiments.kit.tasks.task import Measure, Task


def numbers(task: Task, cells: Mapping[str, Mapping[int, Any]], references: Mapping[str, Any]) -> dict[str, Any]:
    """Returns means and paired gains of all methods, from ``cells[method][seed]``."""
    rows = {}
    for name, seeds in cells.items():
        known = {key for cell in seeds.values() for key in cell["measures"]}
        measured = {key: {seed: cell["measures"].get(key) for seed, cell in seeds.items()} for key in sorted(known)}
        first = next(iter(seeds.values()))
        rows[name] = {
            "title": title(task, name),
            "measures": {key: statistics.summary(values) for key, values in measured.items()},
            "gains": gains(task, name, cells),
            "best": statistics.summary({seed: best(task, cell["curve"]) for seed, cell in seeds.items()}),
            "curve": {seed: cell["curve"] for seed, cell in seeds.items()},
            **{key: first[key] for key in ("parameters", "flops", "steps", "samples")},
            "shown": first.get("shown", {}),
            "seconds": sum(cell["seconds"] for cell in seeds.values()),
        }
    return {
        "rows": rows,
        "references": dict(references),
        **statistics.merged(c for s in cells.values() for c in s.values()),
    }


def best(task: Task, curve: Sequence[Mapping[str, float]]) -> float | None:
    """Returns the best value of a learning curve; None if it has none."""
    values = [row[task.curve] for row in curve if task.curve in row]
    return (max if task.rises else min)(values, default=None)


def title(task: Task, name: str) -> str:
    """Returns the title of a method, or of the student alone with another number of steps."""
    method, _, steps = name.partition("@")
    return task.methods[method].title + (f", {int(steps):,} steps" if steps else "")


def gains(task: Task, name: str, cells: Mapping[str, Mapping[int, Any]]) -> dict[str, Any]:
    """Returns the paired gains of the first measure: at equal steps, and at equal cost where that differs."""
    method = task.methods.get(name)
    if method is None or name == method.baseline or method.baseline not in cells:
        return {}

    def values(of: str) -> dict[int, float]:
        return {seed: cell["measures"][task.first] for seed, cell in cells[of].items()}

    def steps_of(other: str) -> float:
        return float(next(iter(cells[other].values()))["flops"])

    found = {"steps": statistics.paired(values(name), values(method.baseline))}
    others = [other for other in cells if other.startswith(f"{method.baseline}@")]
    cost = steps_of(name)
    if others and cost > 1.1 * steps_of(method.baseline):
        nearest = min(others, key=lambda other: abs(steps_of(other) - cost))
        if abs(steps_of(nearest) / cost - 1) < 0.1:
            found["cost"] = statistics.paired(values(name), values(nearest))
    elif cost <= 1.1 * steps_of(method.baseline):
        found["cost"] = found["steps"]
    return found


def text(summary: Mapping[str, Any] | None, measure: Measure, sign: bool = False) -> str:
    """Returns a mean with the half width of its 95% interval, in the measure's unit."""
    if summary is None or summary["mean"] is None:
        return report.NONE if summary is None else "not finite"
    spec = f"{'+z' if sign else ''}.{measure.digits}f"
    half = "" if summary["half"] is None else f" ± {measure.scale * summary['half']:.{measure.digits}f}"
    return f"{measure.scale * summary['mean']:{spec}}{half}"


def columns(task: Task) -> tuple[str, ...]:
    """Returns the heads of the table."""
    measured = (measure.title for measure in task.measures.values())
    return (
        "method",
        *measured,
        *(f"gain, equal {of}" for of in equal(task).values()),
        "best evaluation",
        "parameters",
        "training cost",
    )


def equal(task: Task) -> dict[str, str]:
    """Returns what methods have in common with the student alone where they are compared, by the gain's name."""
    return {"steps": "steps", "cost": "FLOPs"} if task.equal_cost else {"steps": "steps"}


def rows(task: Task, results: Mapping[str, Any]) -> list[report.Row]:
    """Returns the rows of the table, references first."""
    first, found = task.measures[task.first], []
    for name, one in results["references"].items():
        shown = [_number(one.get(key), measure) for key, measure in task.measures.items()]
        size = f"{int(one['parameters']):,}" if "parameters" in one else ""
        found.append((name, *shown, *[""] * len(equal(task)), "", size, ""))
    alone = results["rows"].get("student", {}).get("flops")
    for one in results["rows"].values():
        shown = [text(one["measures"].get(key), measure) for key, measure in task.measures.items()]
        gained = [text(one["gains"][key], first, sign=True) if key in one["gains"] else "" for key in equal(task)]
        cost = f"{one['flops'] / alone:.2f}×" if alone else ""
        peak = "" if one["best"] is None or one["best"]["mean"] is None else f"{one['best']['mean']:.3f}"
        found.append((one["title"], *shown, *gained, peak, f"{one['parameters']:,}", cost))
    return found


def measures_line(task: Task, measures: Mapping[str, float]) -> str:
    """Returns the measures of a finished cell as a line."""
    named = {key: measure for key, measure in task.measures.items() if key in measures}
    return ", ".join(f"{measure.title} {_number(measures[key], measure)}" for key, measure in named.items())


def markdown(task: Task, results: Mapping[str, Any]) -> str:
    """Returns ``report.md``."""
    first = task.measures[task.first]
    seeds = max((len(one["curve"]) for one in results["rows"].values()), default=0)
    notes = [f"- **{method.title}**: {method.note}" for method in task.methods.values() if method.note]
    better = "more" if first.higher else "less"
    cost = ", and after as many FLOPs where a method costs more" if task.equal_cost else ""
    figures = "".join(f"![{figure.title}]({name}.png)\n\n" for name, figure in task.figures.items())
    return f"""# {task.title}

{task.about}

Means over {seeds} seeds with 95% intervals (Student's t) on the test split. Gains are differences of
"{first.title}" ({better} is better), seed by seed: from the student alone after as many steps{cost}.
"Best evaluation" is the mean of each seed's best `{task.curve}`; no student is chosen by it.
The training cost is that of all FLOPs, teachers included, as a multiple of the student's alone.

{report.markdown_table(columns(task), rows(task, results))}
{_power(task, results)}
![Gains over the student alone](gains.png)

![Learning curves](curves.png)

{figures}{_samples(results)}## Methods

{chr(10).join(notes)}

Steps: {results["config"]["steps"]:,}. Devices: {", ".join(results["devices"])}. Versions:
{report.versions_line(results["versions"])}. Training took {report.duration(results["seconds"])}.
"""


def _number(value: float | None, measure: Measure) -> str:
    return report.NONE if value is None else f"{measure.scale * value:.{measure.digits}f}"


def _power(task: Task, results: Mapping[str, Any]) -> str:
    """Returns what the seeds can resolve as a paragraph, or nothing where a method has one seed."""
    first = task.measures[task.first]
    found = statistics.resolvable(one["gains"].get("steps") for one in results["rows"].values())
    unit = "points" if first.scale == 100 else f"of {first.title}"
    told = report.power(found, unit, first.scale, first.digits)
    return f"\n{told}\n" if told else ""


def _samples(results: Mapping[str, Any]) -> str:
    """Returns the section of lines to read, of each method's first seed."""
    found: Sequence[tuple[str, Any]] = [
        (one["title"], one["samples"]) for one in results["rows"].values() if one["samples"]
    ]
    if not found:
        return ""
    lines = [f"### {name}\n\n" + "\n".join(f"- {line}" for line in samples) for name, samples in found]
    return "## To read side by side\n\n" + "\n\n".join(lines) + "\n\n"
