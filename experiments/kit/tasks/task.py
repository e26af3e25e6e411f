"""What a task of a field defines: measures, methods, data and trainings."""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from jaxkd.types import Distiller, TrainState


class Measure(NamedTuple):
    """A number that is measured of a trained student."""

    title: str  # name in tables, with its unit
    scale: float = 1.0  # factor of the number in tables, 100 for a share in per cent
    digits: int = 2  # decimal places in tables
    higher: bool = True  # whether more is better


class Method(NamedTuple):
    """A row of the table."""

    title: str  # name in the table
    note: str = ""  # paper and settings, for the page
    settings: Mapping[str, Any] = {}  # its own settings, part of what decides its numbers
    student: str = "student"  # name of the network that it trains, where a task has several
    baseline: str = "student"  # method that it is compared with


class Training(NamedTuple):
    """A training of one seed."""

    kd: Distiller  # the distiller
    inputs: Any  # its input
    steps: int  # number of updates
    splits: Mapping[str, Any] = {}  # inputs that are evaluated during the training
    state: TrainState | None = None  # the initial state, where it is not that of ``kd.init``
    before: Mapping[str, float] = {}  # cost of what the method computes first: ``flops``, ``seconds``


class Figure(NamedTuple):
    """A figure of one task, beside those that every task has."""

    title: str  # what it shows, for the page
    draw: Callable[[Mapping[str, Any]], bytes]  # returns a PNG from the numbers of ``results.json``, finished or not
    # What it shows of the first seed's students, as JSON holds it: a function of the work, the method and the state. It
    # is in ``results.json`` as ``rows[method]["shown"]``, by the name of the figure.
    shown: Callable[[Any, str, TrainState], Any] | None = None


class Work(Protocol):
    """An opened task: its data are loaded, its teachers are there."""

    def training(self, method: str, seed: int, steps: int) -> Training:
        """Returns the training of a method and a seed."""

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        """Returns the measures of a trained student on the test split, and any further numbers.

        One named ``flops`` is the cost of the training, where that of a step depends on its data.
        """

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        """Returns lines that a person can read of the first seed's student; none where there is nothing to read."""

    def references(self) -> Mapping[str, Mapping[str, float]]:
        """Returns the measures of what is compared with, by name: of the teacher first."""


class Task(NamedTuple):
    """A task of a field."""

    title: str  # heading of its page
    about: str  # a paragraph on data, teacher and student
    measures: Mapping[str, Measure]  # by name; the first one decides the gains
    methods: Mapping[str, Method]  # by name; the student alone is ``student``
    steps: int  # updates of a student
    evaluations: int  # evaluations during a training
    open: Callable[[Any, pathlib.Path], Work]  # opens it with a `run.Config`, and a folder for what it computes once
    curve: str = "validation/loss"  # the metric of evaluations that learning curves show
    rises: bool = False  # whether more of that metric is better
    seeds: int = 3  # repetitions by default
    equal_cost: bool = True  # whether FLOPs are what a method costs: the student alone then also gets as many
    figures: Mapping[str, Figure] = {}  # its own figures, by the name of the file without its ending
    any_set: bool = False  # whether it runs on any set of its kind, by ``--dataset``

    @property
    def first(self) -> str:
        """Name of the measure that decides the gains."""
        return next(iter(self.measures))
