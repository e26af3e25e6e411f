"""Means, intervals and paired differences over seeds, and results of cells.

Accuracies stay shares from 0 to 1, and a number that is not finite becomes None, so that the file is plain JSON.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import optimize, stats

from experiments.kit import methods
from experiments.kit.recipe import Protocol

BASELINES = ("student", "kd")
ACCURACIES = {"last": ("test", "accuracy"), "best": ("best", "test/accuracy")}  # where a cell has them
MEASURES = ("agreement", "kl_to_teacher", "calibration_error", "nll")
CURVES = ("test/accuracy", "test/nll", "test/agreement", "train/loss", "validation/accuracy")
KEYS = ("pair", "method", "seed", "protocol", "curve", "best", "test")

Cell = Mapping[str, Any]  # the content of a ``cell.json``


class Interval(NamedTuple):
    """A mean and the half width of its 95% confidence interval.

    >>> f"{Interval(1.0, 0.25)}"
    '1.00 ± 0.25'
    """

    mean: float
    half: float

    def __str__(self) -> str:
        return f"{self.mean:.2f} ± {self.half:.2f}"

    def __format__(self, spec: str) -> str:
        return f"{self.mean:{spec}} ± {self.half:{spec.replace('+', '')}}" if spec else str(self)


def interval(values: Any, confidence: float = 0.95) -> Interval:
    """Returns the mean over at least two seeds and its interval by Student's t."""
    values = np.asarray(values, np.float64)
    if values.ndim != 1 or len(values) < 2:
        got = f"shape {list(values.shape)}. One seed has no interval: report it as n = 1"
        raise ValueError(f"values: expected one for each of at least 2 seeds, got {got}.")
    quantile = stats.t.ppf((1 + confidence) / 2, len(values) - 1)
    return Interval(float(values.mean()), float(quantile * values.std(ddof=1) / np.sqrt(len(values))))


def percent(values: Any) -> Interval:
    return interval(100 * np.asarray(values, np.float64))


def gain(accuracy: Sequence[float], baseline: Sequence[float]) -> Interval:
    """Returns the gain over a baseline in points, paired over the seeds."""
    return percent(np.array(accuracy) - np.array(baseline))


def smallest_resolvable_gain(sd: float, seeds: int, *, power: float = 0.8, confidence: float = 0.95) -> float:
    """Returns the true mean difference that a paired t test finds with a given power.

    The test is two-sided. Under a true difference δ, the t statistic of n differences with the standard deviation s has
    the noncentral t distribution of n − 1 degrees of freedom and the noncentrality ``δ √n / s``; solved for δ.

    Args:
      sd: standard deviation of the differences over the seeds, in any unit, which is that of the result.
      seeds: number of differences, at least 2.
      power: probability of an interval that excludes 0, on the side of δ.
      confidence: level of the interval.

    >>> round(smallest_resolvable_gain(1.0, 3), 2), round(smallest_resolvable_gain(1.0, 10), 2)
    (3.26, 1.0)
    """
    if seeds < 2 or not sd >= 0:
        raise ValueError(f"expected sd >= 0 and at least 2 seeds, got {sd} and {seeds}.")
    quantile = stats.t.ppf((1 + confidence) / 2, seeds - 1)

    def missing(noncentrality: float) -> float:
        return float(stats.nct.sf(quantile, seeds - 1, noncentrality)) - power

    return float(optimize.brentq(missing, 0.0, 10 * quantile)) * sd / math.sqrt(seeds)


def resolvable(gains: Iterable[Mapping[str, Any] | None]) -> dict[str, float] | None:
    """Returns what paired differences with the spread of these can resolve.

    Returns:
      The ``seeds`` that most of the summaries have, the median ``sd`` of those, and the `smallest_resolvable_gain`;
      None where no summary has a spread.
    """
    known = [one for one in gains if one is not None and one["sd"] is not None]
    if not known:
        return None
    counts = [len(one["seeds"]) for one in known]
    seeds = max(sorted(set(counts)), key=counts.count)
    sd = float(np.median([one["sd"] for one, count in zip(known, counts, strict=True) if count == seeds]))
    return {"seeds": seeds, "sd": sd, "gain": smallest_resolvable_gain(sd, seeds)}


def summary(by_seed: Mapping[int, float | None]) -> dict[str, Any]:
    """Returns mean, standard deviation and 95% interval over the seeds.

    Returns:
      ``seeds``, ``values`` in their order, ``mean``, ``sd`` (of a sample, n − 1) and ``half``, the half width of the
      interval by Student's t. ``sd`` and ``half`` of one seed are None. All three are None where a value is not finite,
      which a mean of the others would hide.
    """
    if not by_seed:
        raise ValueError("by_seed: expected a value for at least one seed, got none.")
    seeds = sorted(by_seed)
    values = [finite(by_seed[seed]) for seed in seeds]
    numbers = [value for value in values if value is not None]
    mean = float(np.mean(numbers)) if len(numbers) == len(values) else None
    several = mean is not None and len(numbers) > 1
    spread = float(np.std(numbers, ddof=1)) if several else None
    half = interval(numbers).half if several else None
    return {"seeds": seeds, "values": values, "mean": mean, "sd": spread, "half": half}


def paired(by_seed: Mapping[int, float | None], baseline: Mapping[int, float | None]) -> dict[str, Any] | None:
    """Returns the `summary` of the differences over the seeds that both have, if any."""
    pairs = {seed: (by_seed[seed], baseline[seed]) for seed in by_seed if seed in baseline}
    return summary({s: None if a is None or b is None else a - b for s, (a, b) in pairs.items()}) if pairs else None


def finite(value: float | None) -> float | None:
    """Returns the number, or None for NaN and infinities."""
    return float(value) if value is not None and math.isfinite(value) else None


def of_pair(cells: Sequence[Cell], unlike_published: Callable[[Mapping[str, Any]], list[str]]) -> dict[str, Any]:
    """Returns the results of a pair.

    Returns:
      ``protocol``, the settings that all cells share; ``unlike_published``; ``best_by``, what the best epoch is chosen
      on; ``seeds`` of all cells; ``methods`` in the order of the tables, others last.
    """
    by_method: dict[str, dict[int, Cell]] = {}
    for cell in cells:
        if missing := [key for key in KEYS if key not in cell]:
            raise ValueError(f"{_name(cell)}: expected the keys {', '.join(KEYS)}, there is no {', '.join(missing)}.")
        seeds = by_method.setdefault(cell["method"], {})
        if cell["seed"] in seeds:
            raise ValueError(f"{_name(cell)}: expected one cell for each seed, got two. Remove the older one.")
        seeds[cell["seed"]] = cell
    _comparable(cells)
    others = [cell["protocol"].items() for cell in cells]
    common = {k: v for k, v in cells[0]["protocol"].items() if k != "seed" and all((k, v) in items for items in others)}
    return {
        "protocol": common,
        "unlike_published": unlike_published(common),
        "best_by": cells[0]["best"]["by"],
        "seeds": sorted({cell["seed"] for cell in cells}),
        "methods": {name: of_method(by_method[name], by_method, common) for name in methods.in_order(by_method)},
    }


def of_method(
    cells: Mapping[int, Cell], others: Mapping[str, Mapping[int, Cell]], common: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns the results of a method on a pair, given the cells of all methods and the settings that these share.

    Returns:
      The `summary` of ``last``, ``best``, of each of `MEASURES` and of ``cka`` by stage; ``gain``, paired with
      ``student`` and ``kd`` (None where they share no seed); and what tables and plots need besides.
    """
    ordered = [cells[seed] for seed in sorted(cells)]
    baselines = {name: others.get(name, {}) for name in BASELINES if others.get(name) is not cells}
    values = {when: _each(cells, *path) for when, path in ACCURACIES.items()}
    gains = {
        when: {name: paired(values[when], _each(baseline, *path)) for name, baseline in baselines.items()}
        for when, path in ACCURACIES.items()
    }
    measures = {name: _each(cells, "test", name) for name in MEASURES}
    similar = {seed: one or {} for seed, one in _each(cells, "test", "cka").items()}
    stages = {stage: {seed: one.get(stage) for seed, one in similar.items()} for stage in similar[min(cells)]}
    return {
        "seeds": sorted(cells),
        "protocol": {k: v for k, v in ordered[0]["protocol"].items() if k not in common and k != "seed"},
        **{when: summary(one) for when, one in values.items()},
        "best_epochs": [cell["best"]["epoch"] for cell in ordered],
        "gain": gains,
        **{name: None if set(one.values()) == {None} else summary(one) for name, one in measures.items()},
        "cka": {stage: summary(one) for stage, one in stages.items()},
        "class_gain": class_gain(cells, baselines["student"]) if "student" in baselines else None,
        "reliability": pooled([cell["test"]["reliability"] for cell in cells.values()]),
        "curve": curves(ordered),
        **costs(list(cells.values())),
    }


def of_teacher(cell: Cell, unlike_published: Callable[..., list[str]]) -> dict[str, Any]:
    """Returns the results of a teacher, which is one network and has no intervals."""
    test, best = cell["test"], cell.get("best", {})  # weights from elsewhere have no history
    return {
        "last": finite(test["accuracy"]),
        "best": finite(best.get("test/accuracy")),
        "best_epoch": best.get("epoch"),
        "source": cell.get("source", "trained"),
        **{name: finite(test.get(name)) for name in ("calibration_error", "nll")},
        "protocol": dict(cell["protocol"]),
        "unlike_published": unlike_published(cell["protocol"], teacher=True),
        "reliability": pooled([test["reliability"]]),
        **costs([cell]),
    }


def class_gain(cells: Mapping[int, Cell], alone: Mapping[int, Cell]) -> dict[str, Any] | None:
    """Returns the gain on each class over the student alone, paired over the seeds, if there are any."""
    both = sorted(set(cells) & set(alone))
    ours, theirs = (np.array([one[s]["test"]["per_class"] for s in both], np.float64) for one in (cells, alone))
    return {"seeds": both, "mean": [finite(x) for x in (ours - theirs).mean(axis=0)]} if both else None


def pooled(bins: Sequence[Mapping[str, Sequence[float]]]) -> dict[str, Any]:
    """Returns the reliability bins of the examples of several seeds together."""
    count = np.array([one["count"] for one in bins])
    total = count.sum(axis=0)

    def mean(name: str) -> list[float | None]:
        # An empty bin may hold NaN, which must not reach the sum.
        values = np.where(count > 0, np.array([one[name] for one in bins], np.float64), 0)
        return [finite(v) for v in (count * values).sum(axis=0) / np.maximum(total, 1)]

    return {"count": [int(n) for n in total], "confidence": mean("confidence"), "accuracy": mean("accuracy")}


def curves(cells: Sequence[Cell]) -> dict[str, list[Any]]:
    """Returns ``epoch``, and for each of `CURVES` a list for each seed."""
    epochs = list(cells[0]["curve"]["epoch"])
    for cell in cells[1:]:
        if list(cell["curve"]["epoch"]) != epochs:
            expected = f"expected a curve of the epochs of seed {cells[0]['seed']}, {len(epochs)} to {epochs[-1]}"
            raise ValueError(f"{_name(cell)}: {expected}, got others. Run it again with the same --eval-every.")
    names = [name for name in CURVES if all(name in cell["curve"] for cell in cells)]
    found: dict[str, list[Any]] = {"epoch": epochs}
    return found | {name: [[finite(v) for v in cell["curve"][name]] for cell in cells] for name in names}


def costs(cells: Sequence[Cell]) -> dict[str, Any]:
    rates = [cell["images_per_second"] for cell in cells if finite(cell.get("images_per_second"))]
    return {
        "parameters": cells[0].get("parameters"),
        "steps": cells[0].get("steps"),
        "seconds": _seconds(cells),
        "images_per_second": float(np.mean(rates)) if rates else None,
    }


def merged(cells: Iterable[Cell]) -> dict[str, Any]:
    """Returns the devices and versions of cells, and the sum of their seconds."""
    cells = list(cells)
    versions = [cell.get("versions") or {} for cell in cells]
    names = dict.fromkeys(name for one in versions for name in one)
    return {
        "devices": sorted({cell["device"] for cell in cells if cell.get("device")}),
        "versions": {name: sorted({str(one[name]) for one in versions if name in one}) for name in names},
        "seconds": _seconds(cells),
    }


def _seconds(cells: Iterable[Cell]) -> float:
    return sum((cell.get("seconds") or 0 for cell in cells), 0.0)


def _comparable(cells: Sequence[Cell]) -> None:
    """Raises unless cells share the protocol; methods may have further settings."""
    shared = {field.name for field in dataclasses.fields(Protocol)}
    earlier: dict[str, Cell] = {}
    for cell in cells:
        same_method = earlier.setdefault(cell["method"], cell)
        names = sorted((shared | set(cell["protocol"]) | set(same_method["protocol"])) - {"seed"})
        for part, name in [("best", "by"), *(("protocol", name) for name in names)]:
            against = cells[0] if part == "best" or name in shared else same_method
            expected, got = (one[part].get(name) for one in (against, cell))
            if expected != got:
                what = "the best epoch chosen on" if part == "best" else f"{name} ="
                advice = "Cells of other settings do not pair; give them an --out of their own."
                raise ValueError(
                    f"{_name(cell)}: expected {what} {expected}, as {_name(against)} has it, got {got}. {advice}"
                )


def _each(cells: Mapping[int, Cell], part: str, name: str) -> dict[int, Any]:
    """Returns a number of each cell by its seed, or None where a cell does not have it."""
    return {seed: cell[part].get(name) for seed, cell in cells.items()}


def _name(cell: Cell) -> str:
    return f"cell {cell.get('pair', '?')} / {cell.get('method', '?')} / seed {cell.get('seed', '?')}"
