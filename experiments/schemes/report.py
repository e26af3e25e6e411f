"""The table for the terminal, and ``report.md``, from ``results.json``."""

import pathlib
from typing import Any

import numpy as np

from experiments.kit import report, statistics
from experiments.kit.statistics import Interval, percent
from jaxkd import metrics

REFERENCES = ("alone", "offline")

COLUMNS = (
    *("scheme", "accuracy (%)", "alone, equal cost", "offline KD, equal cost", "gain over alone", "gain over offline"),
    *("MFLOPs / example", "time / example", "training cost"),
)


def gain(found: dict[str, Any], over: str) -> Interval:
    """Returns the gain over a baseline of equal cost in points, paired over the seeds."""
    return statistics.gain(found["accuracy"], found[over]["accuracy"])


def verdict(found: dict[str, Any], over: str) -> str:
    """Returns ``helps`` or ``hurts`` if the gain excludes 0, else ``unclear``."""
    mean, half = gain(found, over)
    return "helps" if mean > half else "hurts" if mean < -half else "unclear"


def one_line(found: dict[str, Any]) -> str:
    """Returns a finished method as a line of the log."""
    gains = (f"over {over} {gain(found, over):+.2f}" for over in REFERENCES)
    return ", ".join((f"{percent(found['accuracy'])} %", *gains))


def rows(results: dict[str, Any]) -> list[report.Row]:
    config = results["config"]
    steps, rows = config["epochs"] * (config["images"] // config["batch"]), []
    for found in results["rows"].values():
        accuracies = (f"{percent(one['accuracy'])}" for one in (found, *(found[over] for over in REFERENCES)))
        gains = (f"{gain(found, over):+.2f}" for over in REFERENCES)
        cost, time = found["flops"] / (found["alone"]["flops_per_step"] * steps), ""
        if "time" in found:
            each = found["time"]["seconds_per_step"] * found["all_steps"] / found["examples"]
            time = f"{1e6 * each:.0f} µs ({found['time']['over_alone']:.1f}×)"
        flops = f"{found['flops'] / found['examples'] / 1e6:.3g}"
        rows.append((found["title"], *accuracies, *gains, flops, time, f"{cost:.2f}×"))
    return rows


def markdown(results: dict[str, Any]) -> str:
    config = results["config"]
    before = {name: one for name, one in results["networks"].items() if not name.startswith("half")}
    networks = ", ".join(f"{name} {percent(one['accuracy'])} %" for name, one in before.items())
    compared = {name: one for name, one in results["rows"].items() if name not in REFERENCES}
    notes = "\n".join(f"- **{one['title']}** {_words(one)}" for one in compared.values())
    gaps = any(name.startswith("gap_") for name in results["rows"])
    capacity = "![Students of teachers of all sizes](capacity.png)\n\n" if gaps else ""
    return report.page(
        pathlib.Path(__file__).with_name("page.txt"),
        **{"data": config["data"], "seeds": config["seeds"], "device": results["device"], "networks": networks},
        table=report.markdown_table(COLUMNS, rows(results)),
        sections=capacity + _bits(results) + _tasks(results),
        notes=notes,
        settings=report.settings_section(results),
    )


def _section(title: str, columns: report.Row, cells: list[report.Row], text: str) -> str:
    """Returns a section with a table, or nothing without cells."""
    return f"## {title}\n\n{report.markdown_table(columns, cells)}\n\n{text}\n\n" if cells else ""


def _bits(results: dict[str, Any]) -> str:
    cells = []
    for found in results["rows"].values():
        if "bytes" in (extra := found.get("extra", {})):
            times = f"{extra['float32_bytes'] / extra['bytes']:.2f}×"
            sizes = (f"{extra[key]:,}" for key in ("bytes", "codes", "scales", "float32_bytes"))
            cells.append((found["title"], f"{percent(found['accuracy'])}", *sizes, times))
    columns = ("student", "accuracy (%)", "bytes on disk", "of them codes", "of them scales", "in float32", "smaller")
    text = (
        "Files of the first seed, as `jaxkd.weights.save_quantized` writes them: with BatchNorm, biases and the header."
    )
    return _section("Few bits", columns, cells, text)


def _tasks(results: dict[str, Any]) -> str:
    lifelong = [found for found in results["rows"].values() if found["group"] == "lifelong"]
    cells = [_forgotten("fine-tuned, no teacher", found["alone"]) for found in lifelong[:1]]
    cells += [_forgotten(found["title"], found) for found in lifelong]
    columns = ("student", "average accuracy (%)", "forgetting", "backward transfer", "told the task (%)")
    text = (
        "Of all classes, after the last task; forgetting and backward transfer in points (Chaudhry et al., 2018; "
        "Lopez-Paz &\nRanzato, 2017), on the validation split. Told the task, only the task's own classes are answers."
    )
    return _section("Task after task", columns, cells, text)


def _forgotten(title: str, found: dict[str, Any]) -> tuple[str, ...]:
    def each(name: str) -> list[np.ndarray]:
        """Returns each seed's accuracy on each task after each task."""
        tasks = range(len(found["curve"][0]["step"]))
        return [np.array([curve[f"{name}/{task}"] for task in tasks], np.float64).T for curve in found["curve"]]

    after, within = each("accuracy"), each("accuracy_within")
    measures = (metrics.average_accuracy, metrics.forgetting, metrics.backward_transfer)
    values = [[measure(one) for one in after] for measure in measures]
    values.append([metrics.average_accuracy(one) for one in within])
    return (title, *(f"{percent(value)}" for value in values))


def _words(found: dict[str, Any]) -> str:
    words = {"helps": "better than", "hurts": "worse than", "unclear": "not told apart from"}
    return (
        f"is {words[verdict(found, 'alone')]} the student alone ({gain(found, 'alone'):+.2f}) and "
        f"{words[verdict(found, 'offline')]} offline distillation ({gain(found, 'offline'):+.2f}) at equal cost."
    )
