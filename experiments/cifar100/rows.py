"""The rows of the report's tables: cells of text, from what `statistics.of_pair` knows of a pair."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from experiments.cifar100 import published, statistics
from experiments.cifar100.measures import CLASS_NAMES
from experiments.cifar100.methods import undefined
from experiments.cifar100.published import METHODS, TITLES

EXTREMES = 5
NONE = "–"
NOT_RUN = "not run yet"
UNDEFINED = "not defined"

Row = tuple[str, ...]


def defined(pair: str, method: str) -> bool:
    """Whether the method exists for the pair: some need layers of one shape.

    >>> defined("resnet14:resnet8", "fsp"), defined("wrn_16_2:wrn_16_1", "fsp")
    (True, False)
    """
    teacher, student = pair.split(":")
    return undefined(method, teacher, student) is None


def columns(found: Mapping[str, Any]) -> Row:
    """The head of a pair's table."""
    compared = ("published gain", "direction") if found["unlike_published"] else ("ours − published",)
    return (
        *("method", "seeds", "last epoch (%)", "95% interval", best_title(found)),
        *("gain over alone", "gain over KD", "agreement (%)", "KL to teacher", "calibration error (%)"),
        *("published (%)", *compared, "images/s"),
    )


def best_title(found: Mapping[str, Any]) -> str:
    """What the best epoch is chosen on has to be said: on the test set the choice flatters."""
    return "best *test* epoch (%)" if found["best_by"].startswith("test") else "best validation epoch (%)"


def of_pair(pair: str, found: Mapping[str, Any]) -> list[Row]:
    """The cells of a pair's table: the teacher, then every method of the literature, then others."""
    names = [*METHODS, *(name for name in found["methods"] if name not in METHODS)]
    return [_teacher_row(pair, found), *(_row(pair, name, found) for name in names)]


def _teacher_row(pair: str, found: Mapping[str, Any]) -> Row:
    teacher, paper = found["teacher"], published.value(pair, "teacher")
    compared = [_number(paper), NONE, NONE] if found["unlike_published"] else [_number(paper), NONE]
    if teacher is None:
        return ("teacher", NONE, "no record", *(NONE,) * 7, *compared, NONE)
    if not found["unlike_published"] and not teacher["unlike_published"] and paper is not None:
        compared[1] = _number(_minus(_times(teacher["last"]), paper), "+")
    best = NONE
    if teacher["best"] is not None:
        best = f"{_percent(teacher['best'])} at {_epochs([teacher['best_epoch']])}"
    error = _percent(teacher["calibration_error"])
    rate = _number(teacher["images_per_second"], ",.0f")
    return ("teacher", "1", _percent(teacher["last"]), "n = 1", best, *(NONE,) * 4, error, *compared, rate)


def _row(pair: str, name: str, found: Mapping[str, Any]) -> Row:
    paper, title = published.value(pair, name), TITLES.get(name, name)
    one = found["methods"].get(name)
    if one is None:
        compared = [NONE] * (2 if found["unlike_published"] else 1)
        if found["unlike_published"] and name != "student":
            compared[0] = _number(published.gain(pair, name), "+")
        return (
            title,
            "0",
            NOT_RUN if defined(pair, name) else UNDEFINED,
            *(NONE,) * 7,
            _number(paper),
            *compared,
            NONE,
        )
    return (
        title,
        str(len(one["seeds"])),
        _mean_and_sd(one["last"]),
        _interval(one["last"]),
        f"{_mean_and_sd(one['best'])} at {_epochs(one['best_epochs'])}",
        *(_gain(found, name, baseline) for baseline in statistics.BASELINES),
        _mean(one["agreement"], 100),
        _mean(one["kl_to_teacher"], 1, ".3f"),
        _mean(one["calibration_error"], 100),
        _number(paper),
        *_compared(pair, name, found),
        _number(one["images_per_second"], ",.0f"),
    )


def _compared(pair: str, name: str, found: Mapping[str, Any]) -> Row:
    """Accuracies where the protocol is the published one; else only the gain, and whether its sign is the same."""
    one = found["methods"][name]
    if not found["unlike_published"]:
        return (_number(_minus(_times(one["last"]["mean"]), published.value(pair, name)), "+"),)
    if name == "student":
        return NONE, NONE
    paper = published.gain(pair, name)
    return _number(paper, "+"), direction(one["gain"]["last"].get("student"), paper)


def direction(ours: Mapping[str, Any] | None, paper: float | None) -> str:
    """Whether a gain has the sign of the published one, if it can be told from 0.

    >>> direction({"mean": 0.02, "half": 0.01, "seeds": [0, 1]}, 0.83)
    'agrees'
    >>> direction({"mean": 0.02, "half": 0.03, "seeds": [0, 1]}, 0.83)
    'unclear'
    """
    if ours is None or paper is None or ours["mean"] is None:
        return NONE
    if ours["half"] is None:
        return "unclear (n = 1)"
    if abs(ours["mean"]) <= ours["half"] or paper == 0:
        return "unclear"
    return "agrees" if (ours["mean"] > 0) == (paper > 0) else "**opposite**"


def best_rows(found: Mapping[str, Any]) -> list[Row]:
    """The gains once more, at each cell's best epoch."""
    return [
        (
            TITLES.get(name, name),
            _mean_and_sd(one["best"]),
            *(_gain(found, name, baseline, "best") for baseline in statistics.BASELINES),
            _number(_times(_minus(one["best"]["mean"], one["last"]["mean"])), "+"),
        )
        for name, one in found["methods"].items()
    ]


def cka_rows(found: Mapping[str, Any]) -> list[Row]:
    """Head and cells of the table of similarities; none where no cell has them."""
    methods = {name: one["cka"] for name, one in found["methods"].items() if one["cka"]}
    stages = list(dict.fromkeys(stage for one in methods.values() for stage in one))
    if not stages:
        return []
    cells = [(TITLES.get(name, name), *(_mean(one.get(s), 1, ".3f") for s in stages)) for name, one in methods.items()]
    return [("method", *stages), *cells]


def class_rows(found: Mapping[str, Any]) -> list[Row]:
    """The classes that a method helps most, and those that it hurts most."""
    told = []
    for name, one in found["methods"].items():
        if one["class_gain"] is not None:
            means = {c: mean for c, mean in enumerate(one["class_gain"]["mean"]) if mean is not None}
            order = sorted(means, key=lambda c: (-means[c], c))
            helped = [c for c in order if means[c] > 0][:EXTREMES]
            hurt = [c for c in reversed(order) if means[c] < 0][:EXTREMES]
            of = "(n = 1)" if len(one["class_gain"]["seeds"]) == 1 else ""
            texts = (
                ", ".join(f"{_class(c, len(one['class_gain']['mean']))} {100 * means[c]:+z.1f}" for c in group) or NONE
                for group in (helped, hurt)
            )
            told.append((f"{TITLES.get(name, name)} {of}".strip(), *texts))
    return told


# Words for numbers. None, which stands for NaN too, is never printed as a number.


def _number(value: float | None, spec: str = "") -> str:
    return NONE if value is None else f"{value:{spec if spec.endswith('f') else spec + 'z.2f'}}"


def _percent(value: float | None) -> str:
    return "not finite" if value is None else f"{100 * value:.2f}"


def _times(value: float | None) -> float | None:
    return None if value is None else 100 * value


def _minus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a - b


def _mean(found: Mapping[str, Any] | None, scale: float, spec: str = ".2f") -> str:
    if found is None:
        return NONE
    return "not finite" if found["mean"] is None else f"{scale * found['mean']:{spec}}"


def _mean_and_sd(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "not finite"
    spread = "(n = 1)" if found["sd"] is None else f"± {100 * found['sd']:.2f}"
    return f"{100 * found['mean']:.2f} {spread}"


def _interval(found: Mapping[str, Any]) -> str:
    if found["mean"] is None:
        return "not finite"
    if found["half"] is None:
        return "n = 1"
    return f"{100 * (found['mean'] - found['half']):.2f} to {100 * (found['mean'] + found['half']):.2f}"


def _gain(found: Mapping[str, Any], name: str, baseline: str, when: str = "last") -> str:
    """A gain, and over how many seeds where these are not all that the method has."""
    one = found["methods"][name]
    if name == baseline or baseline not in found["methods"]:
        return NONE
    gain = one["gain"][when][baseline]
    if gain is None:
        return "no seed in common"
    if gain["mean"] is None:
        return "not finite"
    count, of = len(gain["seeds"]), len(one["seeds"])
    spread = "(n = 1)" if gain["half"] is None else f"± {100 * gain['half']:.2f}"
    fewer = f" ({count} of {of} seeds)" if count < of else ""
    return f"{100 * gain['mean']:+z.2f} {spread}{fewer}"


def _epochs(epochs: Sequence[float]) -> str:
    first, last = min(epochs), max(epochs)
    return f"epoch {first:g}" if first == last else f"epochs {first:g} to {last:g}"


def _class(number: int, classes: int) -> str:
    return CLASS_NAMES[number] if classes == len(CLASS_NAMES) else f"class {number}"
