"""The report of all parts, from the files of their results."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.accelerator import parts
from jaxkd.training import write_atomically

PAGE, NONE = "report.md", "–"
Results = Mapping[str, Any]

#: published, of Liger's documentation, for the JSD at the sizes of `vocabulary`
PUBLISHED = (("Liger's kernel, JSD", 60.7, 11.1), ("dense, JSD", 213.2, 68.9))


def write(out: Path) -> str:
    """Writes ``report.md`` of the results in a folder, and returns it."""
    found = {part: json.loads(file.read_text()) for part in parts.BUDGETS if (file := out / f"{part}.json").exists()}
    page = markdown(found)
    write_atomically(out / PAGE, page)
    return page


def markdown(results: Mapping[str, Results]) -> str:
    """Returns the report of the parts that there are, in their order."""
    lines = ["# Measurements on an accelerator", ""]
    if any(found["settings"]["rehearsal"] for found in results.values()):
        lines += ["**A rehearsal with tiny sizes on a CPU: the times have no meaning.**", ""]
    lines += ["`python -m benchmarks.accelerator` wrote this page; its log is `accelerator.log`.", ""]
    for machine in _distinct([found["machine"] for found in results.values()]):
        lines += _machine(machine)
    for part in parts.BUDGETS:
        lines += [f"## {TITLES[part]}", ""]
        if part not in results:
            lines += ["Not reached.", ""]
            continue
        lines += [*SECTIONS[part](results[part]), *_ends(results[part])]
    return "\n".join(lines).rstrip() + "\n"


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Returns a table, its first column to the left and numbers to the right; nothing without rows."""
    if not rows:
        return []
    rule = "|".join(["---", *["---:"] * (len(heads) - 1)])
    return [f"| {' | '.join(heads)} |", f"|{rule}|", *(f"| {' | '.join(row)} |" for row in rows), ""]


def _distinct(machines: Sequence[Results]) -> list[Results]:
    return [machine for i, machine in enumerate(machines) if machine not in machines[:i]]


def _machine(machine: Results) -> list[str]:
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    memory = f", {machine['device_bytes'] / 1e9:.0f} GB for JAX" if machine["device_bytes"] else ""
    return [
        f"Machine: {machine['devices']} × {machine['device_kind']}{memory}, {machine['cores']} cores, "
        f"{machine['system']}. Versions: {versions}. Source: {machine['source']}.",
        "",
    ]


def _ends(found: Results) -> list[str]:
    """Returns what has no measurement: errors, too little memory, no time."""
    lines = []
    for row in found["rows"]:
        for kind, text in (("error", "failed"), ("out_of_memory", "out of memory")):
            if kind in row:
                lines.append(f"- {row['case']}: {text} ({row[kind]})")
    if found["not_reached"]:
        lines.append(f"- Not reached: {'; '.join(found['not_reached'])}")
    return [*lines, ""] if lines else []


def _measured(found: Results, entry: str = "seconds") -> list[Results]:
    return [row for row in found["rows"] if entry in row]


def _number(value: float | None, form: str = ",.3g", scale: float = 1.0) -> str:
    return NONE if value is None else f"{value / scale:{form}}"


def _checks(found: Results) -> list[str]:
    lines: list[str] = []
    losses: dict[str, Any] = {}
    for row in found["rows"]:
        losses |= row.get("losses", {})
        if "differences" in row:
            each = [(name, f"{gap:.1e}") for name, gap in row["differences"].items()]
            lines += [
                f"Largest difference of a parameter to `parallel.jit` after three steps, relative to the largest "
                f"parameter; limit {row['limit']:.0e}. Failed: {row['failed'] or 'none'}.",
                "",
            ]
            lines += table(("placement", "difference"), each)
    if not losses:
        return lines
    failed = [name for name, each in losses.items() if not each["passed"]]
    vary = [name for name, each in losses.items() if not each["repeats_bit_for_bit"]]

    def worst(entry: str) -> tuple[str, str]:
        name = max(losses, key=lambda name: losses[name][entry])
        return f"{losses[name][entry]:.1e}", name

    rows = [
        (f"{what}, {precision}", *worst(f"{entry}{end}"))
        for what, entry in (("value", "value_error"), ("directional derivative", "gradient_error"))
        for precision, end in (("highest", ""), ("default", "_default"))
    ]
    lines += [
        f"{len(losses)} losses in float32 against the float64 references: {len(losses) - len(failed)} within the "
        f"limits at the precision `highest`. Failed: {', '.join(failed) or 'none'}. Two equal calls differ in: "
        f"{', '.join(vary) or 'none'}.",
        "",
    ]
    return lines + table(("largest relative error", "error", "loss"), rows)


def _composed(found: Results) -> list[str]:
    rows = []
    for row in _measured(found, "speed_ratio"):
        low, middle, high = row["speed_ratio"]
        times = (f"{row['milliseconds'][side]:.3g}" for side in ("composed", "handwritten"))
        ratios = (_number(row[f"{cost}_ratio"], ".4f") for cost in ("flops", "temporary_bytes"))
        rows.append((row["case"], *ratios, *times, f"{middle:.3f} ({low:.3f} to {high:.3f})"))
    told = "FLOPs and temporary memory are those of the hand-written step with the same losses."
    heads = ("case", "FLOPs ratio", "memory ratio", "composed, ms", "hand-written, ms", "speed ratio")
    return [told, "", *table(heads, rows)] if rows else []


def _images(found: Results) -> list[str]:
    rows = [
        (
            *(row["pair"], str(row["size"]), str(row["batch"]), row["dtype"], row["teacher"]),
            *(_number(row["images_per_second"], ",.0f"), _number(row["step_flops"], ",.3g", 1e9)),
            *(_number(row["fraction_of_peak"], ".1%"), _number(row["compile_seconds"], ".1f")),
        )
        for row in _measured(found)
    ]
    heads = ("pair", "size", "batch", "dtype", "teacher", "images/s", "GFLOP a step", "of peak", "compilation, s")
    return table(heads, rows)


def _dispatch(found: Results) -> list[str]:
    rows = [
        (
            *(row["case"], str(row["steps"])),
            *(f"{row['milliseconds'][form]:.3g}" for form in ("step by step", "one dispatch")),
            f"{row['times_as_fast'][1]:.2f}",
        )
        for row in _measured(found, "times_as_fast")
    ]
    return table(("case", "steps", "step by step, ms a step", "one dispatch, ms a step", "times as fast"), rows)


def _vocabulary(found: Results) -> list[str]:
    rows = [
        (
            *(row["case"], _number(row.get("seconds"), ",.1f", 1e-3), _number(row.get("fraction_of_peak"), ".1%")),
            *(_number(row[name], ",.2f", 1e9) for name in ("temporary_bytes", "program_bytes")),
            _number(row.get("process_peak_bytes"), ",.2f", 1e9),
        )
        for row in _measured(found, "temporary_bytes")
    ]
    published = [(f"published, H100: {name}", f"{ms}", NONE, NONE, NONE, f"{gb}") for name, ms, gb in PUBLISHED]
    told = (
        "8192 tokens, 4096 features, 128,256 words, bfloat16, value and gradients of the student's hidden states and "
        "kernel. The program's memory is that of its arguments, results and temporary arrays, as compiled; the "
        "process's peak is that of the largest case so far. The published rows are not measurements of this machine."
    )
    heads = ("case", "ms", "of peak", "temporary, GB", "program, GB", "peak, GB")
    return [told, "", *table(heads, [*rows, *published])]


def _on_policy(found: Results) -> list[str]:
    rows = [
        (
            *(row["case"], _number(row["seconds"], ",.1f", 1e-3), _number(row["new_tokens_per_second"], ",.0f")),
            *(_number(row["tokens_per_second"], ",.0f"), _number(row["compile_seconds"], ".1f")),
        )
        for row in _measured(found)
    ]
    return table(("case", "ms", "new tokens/s", "tokens/s with prompts", "compilation, s"), rows)


def _seeds(found: Results) -> list[str]:
    if not found["planned"]:
        return ["Skipped: no images were given. `--data-dir` names them.", ""]
    rows = [
        (row["case"], f"{row['test_accuracy']:.2%}", _number(row.get("training_seconds"), ",.0f"))
        for row in _measured(found, "test_accuracy")
    ]
    lines = table(("training", "test accuracy, last epoch", "seconds"), rows)
    for name, epochs in found.get("progress", {}).items():
        lines.append(f"- {name}: interrupted after {epochs:.0f} epochs; the next call resumes it")
    return [*lines, ""] if found.get("progress") else lines


TITLES = {
    "checks": "Losses and placements on the device",
    "composed": "A composed step against a hand-written one",
    "vocabulary": "Losses of 128,256 words from hidden states",
    "images": "Images per second",
    "dispatch": "Epochs in one dispatch",
    "on_policy": "On-policy distillation",
    "seeds": "CIFAR-100, resnet32x4 → resnet8x4, soft targets, 240 epochs",
}
SECTIONS: dict[str, Callable[[Results], list[str]]] = {
    "checks": _checks,
    "composed": _composed,
    "vocabulary": _vocabulary,
    "images": _images,
    "dispatch": _dispatch,
    "on_policy": _on_policy,
    "seeds": _seeds,
}
