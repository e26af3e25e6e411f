"""Rows of the study: a method, what its number means, its published value and the grid of values to choose from."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import optax

from jaxkd.types import Model, Objective

GRID = (0.01, 0.1, 1.0, 10.0, 100.0)  # multiples of the published value


class Part(NamedTuple):
    """A stage of a training; most methods have one."""

    objective: Objective  # what the stage minimizes
    rate: Any = 1.0  # multiple of the common learning rate, or a function of the share of the training that has passed
    share: float = 0.0  # share of the training that the stage takes; 0 for the last one
    student: bool = True  # whether the stage trains the student, and not only what the objective learns


class Row(NamedTuple):
    """A method of the study."""

    title: str  # name in tables and figures
    parts: Callable[[Any, Any], list[Part]]  # ``(setting, value) -> stages``, where the value may be traced
    published: float  # the published value, or the best-known one
    source: str  # what the value is, and where the published one is from
    taps: tuple[str, ...] = ()  # taps of the teacher that it reads beside the logits; none of a student alone
    group: str = "response"  # table of docs/methods.md: ``response``, ``features`` or ``relations``
    covers: str = ""  # method of docs/methods.md
    grid: tuple[float, ...] = ()  # values to choose from; multiples of the published one by default
    taught: bool = True  # whether there is a teacher
    mix: str = ""  # how labeled images are mixed, ``mixup`` or ``cutmix``
    wrap: Callable[[Model], Model] | None = None  # wrapper of the student's network
    convolves: bool = False  # whether the objective has 3 × 3 convolutions, which are slow in a loop on a CPU

    @property
    def values(self) -> tuple[float, ...]:
        """The values of the grid; the published one is among them."""
        return self.grid or tuple(float(f"{self.published * factor:.6g}") for factor in GRID)


Rows = Mapping[str, Row]


def cosine(rate: float, steps: int, factor: Any = 1.0) -> optax.Schedule:
    """Returns a learning rate that falls to 0 along a cosine; the factor may be a function of the share that passed."""
    fall = optax.cosine_decay_schedule(rate, steps)
    if callable(factor):
        return lambda step: rate * factor(step / steps)
    return lambda step: factor * fall(step)
