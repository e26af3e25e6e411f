"""The tables of the literature, in ``published.csv``: top-1 test accuracy in per cent.

Methods up to CRD are from the tables of Tian et al., "Contrastive Representation Distillation", ICLR 2020: the last
epoch, the mean of five runs where student and teacher are of one family and of three elsewhere. Later methods are from
their own papers and from those that compared with them; several report the best test epoch, which is too high.
"""

import csv
import math
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from scipy import stats

from experiments.kit.recipe import Protocol

PROTOCOL = Protocol(epochs=240, teacher_epochs=240)  # the literature's settings
HARMLESS = ("eval_every", "bf16")  # of `Protocol`: the published protocol with either is still the published one
OF_TEACHERS = ("teacher_epochs", "holdout", "batch_size")

with (pathlib.Path(__file__).parent / "published.csv").open() as _file:
    _HEAD, *_ROWS = csv.reader(_file)
PAIRS = tuple(_HEAD[1:])  # first those of one family
_VALUES = {(pair, row[0]): float(x) for row in _ROWS for pair, x in zip(PAIRS, row[1:], strict=True) if x}


class Rerun(NamedTuple):
    """An independent rerun, on the last epoch: the mean and the reported spread."""

    mean: float
    spread: float


RERUN_SEEDS = 5
_RERUNS = {  # five seeds, not by the authors: how near a faithful run comes
    ("resnet32x4:resnet8x4", "student"): Rerun(72.49, 0.27),
    ("resnet32x4:resnet8x4", "kd"): Rerun(73.17, 0.21),
    ("resnet32x4:resnet8x4", "crd"): Rerun(75.33, 0.20),
    ("resnet32x4:resnet8x4", "crd_kd"): Rerun(75.33, 0.26),
}


def value(pair: str, method: str) -> float | None:
    """Returns the published accuracy of a method or of ``"teacher"``, if any."""
    return _VALUES.get((pair, method))


def nearest(pair: str) -> str:
    """Returns the published pair that a pair is compared with: itself, if it is one."""
    narrow = all(name.removeprefix("resnet").isdigit() and name != "resnet50" for name in pair.split(":"))
    return "resnet56:resnet20" if pair not in PAIRS and narrow else pair


def gain(pair: str, method: str) -> float | None:
    """Returns the published gain over the student alone of the `nearest` pair."""
    pair = nearest(pair)
    taught, alone = value(pair, method), value(pair, "student")
    return None if taught is None or alone is None else taught - alone


def rerun(pair: str, method: str) -> Rerun | None:
    return _RERUNS.get((pair, method))


def half_width(pair: str, method: str) -> float | None:
    """Returns half the 95% interval of a published accuracy, in points, where its spread is known.

    The papers' tables have no spreads; known are those of independent reruns of five seeds.
    """
    found = rerun(pair, method)
    return None if found is None else float(stats.t.ppf(0.975, RERUN_SEEDS - 1)) * found.spread / math.sqrt(RERUN_SEEDS)


def unlike_published(protocol: Mapping[str, Any], teacher: bool = False) -> list[str]:
    """Returns how settings differ from those of the literature."""
    found = []
    for name, paper in PROTOCOL.settings().items():
        compared = name in OF_TEACHERS if teacher else name not in HARMLESS
        if compared and (name not in protocol or protocol[name] != paper):
            here = words(name, protocol[name]) if name in protocol else "not recorded"
            found.append(f"{name}: {here} here, {words(name, paper)} published")
    return found


def words(name: str, value: Any) -> str:
    """Returns the value of a setting as text.

    >>> words("images", None), words("cached", True), words("stages", [1, 2])
    ('all', 'yes', '1, 2')
    """
    if isinstance(value, list | tuple):
        return ", ".join(map(str, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "all" if name == "images" and value is None else str(value)
