"""The rows of the report's tables, from `experiments.kit.statistics.of_pair`."""

import math
from collections.abc import Mapping
from typing import Any

from experiments.cifar100 import problem, published
from experiments.kit import methods, report, statistics
from experiments.kit.methods import METHODS, TITLES
from experiments.kit.report import NONE, Row

EXTREMES = 5
INSIDE = "published inside the interval"


def defined(pair: str, method: str) -> bool:
    """Returns whether the method exists for the pair: some need layers of one shape."""
    teacher, student = pair.split(":")
    return methods.defined(method, teacher, student, problem.PROBLEM)


def best_title(found: Mapping[str, Any]) -> str:
    """Returns the title of the best epoch, which names what it is chosen on."""
    return "best *test* epoch (%)" if found["best_by"].startswith("test") else "best validation epoch (%)"


def columns(found: Mapping[str, Any]) -> Row:
    compared: Row = ("ours − published", INSIDE)
    if found["unlike_published"]:
        compared = ("published gain", "direction", INSIDE)
    return (
        *("method", "seeds", "last epoch (%)", "95% interval", best_title(found)),
        *("gain over alone", "gain over KD", "agreement (%)", "KL to teacher", "calibration error (%)"),
        *("published (%)", *compared, "images/s"),
    )


def rows(pair: str, found: Mapping[str, Any]) -> list[Row]:
    """Returns a pair's table: teacher, methods of the literature, others."""
    names = [*METHODS, *(name for name in found["methods"] if name not in METHODS)]
    texts = [_teacher(pair, found), *(_method(pair, name, found) for name in names)]
    return [tuple(row.get(column, NONE) for column in columns(found)) for row in texts]


def _teacher(pair: str, found: Mapping[str, Any]) -> dict[str, str]:
    one, paper = found["teacher"], published.value(pair, "teacher")
    row = {"method": "teacher", "published (%)": report.number(paper)}
    if one is None:
        return row | {"last epoch (%)": "no record"}
    if one["best"] is not None:
        row[best_title(found)] = f"{report.percent(one['best'])} at {report.epochs([one['best_epoch']])}"
    if not one["unlike_published"]:
        row["ours − published"] = _over(one["last"], paper)
    last, error = report.percent(one["last"]), report.percent(one["calibration_error"])
    row |= {"seeds": "1", "last epoch (%)": last, "95% interval": "n = 1", "calibration error (%)": error}
    return row | {"images/s": report.number(one["images_per_second"], ",.0f")}


def _method(pair: str, name: str, found: Mapping[str, Any]) -> dict[str, str]:
    one, paper = found["methods"].get(name), published.value(pair, name)
    gain = None if name == "student" else published.gain(pair, name)
    row = {"method": TITLES.get(name, name), "published (%)": report.number(paper)}
    row["published gain"] = report.number(gain, "+z.2f")
    if one is None:
        return row | {"seeds": "0", "last epoch (%)": "not run yet" if defined(pair, name) else "not defined"}
    return row | {
        "seeds": str(len(one["seeds"])),
        "last epoch (%)": report.mean_and_sd(one["last"]),
        "95% interval": report.interval(one["last"]),
        best_title(found): f"{report.mean_and_sd(one['best'])} at {report.epochs(one['best_epochs'])}",
        **dict(zip(("gain over alone", "gain over KD"), _gains(found, name, "last"), strict=True)),
        "agreement (%)": report.mean(one["agreement"]),
        "KL to teacher": report.mean(one["kl_to_teacher"], 1, ".3f"),
        "calibration error (%)": report.mean(one["calibration_error"]),
        "ours − published": _over(one["last"]["mean"], paper),
        "direction": direction(one["gain"]["last"].get("student"), gain),
        INSIDE: _inside(pair, name, found),
        "images/s": report.number(one["images_per_second"], ",.0f"),
    }


def _inside(pair: str, name: str, found: Mapping[str, Any]) -> str:
    """Returns whether the published accuracy, or gain where the protocol differs, is one that ours allow."""
    one = found["methods"][name]
    if found["unlike_published"]:
        return inside(one["gain"]["last"].get("student"), published.gain(pair, name), None)
    return inside(one["last"], published.value(pair, name), published.half_width(pair, name))


def inside(ours: Mapping[str, Any] | None, paper: float | None, half: float | None) -> str:
    """Returns whether a difference to a published number is within the interval of both.

    The half widths of independent means are added as squares. Where the published spread is not known, ours decides
    alone, and the text says so.

    >>> inside({"mean": 0.752, "half": 0.003}, 75.0, 0.2), inside({"mean": 0.752, "half": 0.001}, 75.0, None)
    ('yes (both known)', 'no (ours alone)')
    """
    if ours is None or paper is None or ours["mean"] is None:
        return NONE
    if ours["half"] is None:
        return "n = 1"
    whole = math.hypot(100 * ours["half"], half or 0.0)
    known = "ours alone" if half is None else "both known"
    return f"{'yes' if abs(100 * ours['mean'] - paper) <= whole else 'no'} ({known})"


def _over(share: float | None, paper: float | None) -> str:
    return report.difference(None if share is None else 100 * share, paper)


def direction(ours: Mapping[str, Any] | None, paper: float | None) -> str:
    """Returns whether a gain has the published sign, if its interval excludes 0.

    >>> direction({"mean": 0.02, "half": 0.01, "seeds": [0, 1]}, 0.83)
    'agrees'
    """
    if ours is None or paper is None or ours["mean"] is None:
        return NONE
    if ours["half"] is None:
        return "unclear (n = 1)"
    if abs(ours["mean"]) <= ours["half"] or paper == 0:
        return "unclear"
    return "agrees" if (ours["mean"] > 0) == (paper > 0) else "**opposite**"


def _gains(found: Mapping[str, Any], name: str, when: str) -> Row:
    one = found["methods"][name]
    exist = [baseline != name and baseline in found["methods"] for baseline in statistics.BASELINES]
    return tuple(
        report.gain(one["gain"][when][baseline], len(one["seeds"])) if exists else NONE
        for baseline, exists in zip(statistics.BASELINES, exist, strict=True)
    )


def best_rows(found: Mapping[str, Any]) -> list[Row]:
    rows = []
    for name, one in found["methods"].items():
        later = report.difference(one["best"]["mean"], one["last"]["mean"], 100)
        rows.append((TITLES.get(name, name), report.mean_and_sd(one["best"]), *_gains(found, name, "best"), later))
    return rows


def cka_rows(found: Mapping[str, Any]) -> list[Row]:
    """Returns head and rows of the table of similarities; none where no cell has them."""
    similar = {TITLES.get(name, name): one["cka"] for name, one in found["methods"].items() if one["cka"]}
    stages = list(dict.fromkeys(stage for one in similar.values() for stage in one))
    rows = [(title, *(report.mean(one.get(stage), 1, ".3f") for stage in stages)) for title, one in similar.items()]
    return [("method", *stages), *rows] if stages else []


def class_rows(found: Mapping[str, Any]) -> list[Row]:
    """Returns the classes that each method helps most, and those that it hurts most."""
    rows = []
    for name, one in found["methods"].items():
        if one["class_gain"] is None:
            continue
        every, seeds = one["class_gain"]["mean"], one["class_gain"]["seeds"]
        known = len(every) == len(problem.CLASS_NAMES)
        names = problem.CLASS_NAMES if known else [f"class {i}" for i in range(len(every))]
        means = {c: mean for c, mean in enumerate(every) if mean is not None}
        order = sorted(means, key=lambda c: (-means[c], c))
        extremes = [c for c in order if means[c] > 0], [c for c in reversed(order) if means[c] < 0]
        texts = (", ".join(f"{names[c]} {100 * means[c]:+z.1f}" for c in side[:EXTREMES]) or NONE for side in extremes)
        rows.append((f"{TITLES.get(name, name)} {'(n = 1)' if len(seeds) == 1 else ''}".strip(), *texts))
    return rows
