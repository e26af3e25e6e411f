"""Progress of long work: a bar on a terminal, a line every ten seconds elsewhere.

The remaining time follows from the steps and the time since the start, without the time of `Show.phase`: compilation
happens once, so that a rate that includes it would promise hours and then jump to minutes.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn, TimeElapsedColumn
from rich.table import Column
from rich.text import Text

_SECONDS_BETWEEN_LINES = 10.0
_NARROW = 100  # columns of a terminal below which the bar is shorter


class Show(Protocol):
    """Callback that a run calls with its current step."""

    def __call__(self, step: int, row: Mapping[str, float] | None = None) -> None:
        """Reports that the device has reached a step, optionally with new metrics."""
        ...

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Names work that happens once, ``"compiling"``, and leaves it out of the rate."""
        ...


class Silent:
    """A `Show` that shows nothing."""

    def __call__(self, step: int, row: Mapping[str, float] | None = None) -> None:
        """Does nothing."""

    def phase(self, name: str) -> contextlib.AbstractContextManager[None]:
        """Does nothing."""
        return contextlib.nullcontext()


class Pace:
    """Estimates the remaining time of steps, without that of phases.

    >>> times = iter([0.0, 0.0, 30.0, 34.0, 34.0])
    >>> pace = Pace(steps=10, now=lambda: next(times))
    >>> with pace.phase("compiling"):
    ...     pace.text()
    'compiling'
    >>> pace.reach(4)  # after 30 seconds of compilation and 4 of training
    >>> pace.rate, pace.text()
    (1.0, 'ETA 0:00:06')
    """

    def __init__(self, steps: int, first: int = 0, *, now: Callable[[], float] = time.monotonic) -> None:
        """Starts the clock at a step, above 0 when a run resumes."""
        self.now, self.steps, self._first, self.step = now, steps, first, first
        self._started = now()
        self._excluded, self._began, self._phase = 0.0, 0.0, ""
        self.rate = 0.0  # steps per second

    @contextlib.contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Names work whose time is left out of the rate."""
        self._phase, self._began = name, self.now()
        try:
            yield
        finally:
            self._phase = ""
            self._excluded += self.now() - self._began

    def reach(self, step: int) -> None:
        """Notes that a step is reached; an earlier one, with late metrics, is ignored."""
        self.step = max(step, self.step)
        busy = self.now() - self._started - self._excluded
        self.rate = (self.step - self._first) / busy if busy > 0 else 0.0

    def text(self) -> str:
        """Returns the name of the phase, or the remaining time."""
        if self._phase:
            return self._phase
        if self.step >= self.steps:
            return "ETA 0:00:00"
        if not self.rate:
            return "ETA -:--:--"
        left = int((self.steps - self.step) / self.rate)
        return f"ETA {left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"


@contextlib.contextmanager
def show_progress(
    steps: int,
    first: int = 0,
    *,
    what: str = "step",
    unit: str = "steps",
    enabled: bool = True,
    console: Console | None = None,
    now: Callable[[], float] = time.monotonic,
) -> Iterator[Show]:
    """Shows a progress bar on a terminal, or prints a line about every ten seconds.

    Args:
      steps: total number of steps.
      first: step at which the work starts, above 0 when a run resumes.
      what: label before the count.
      unit: unit of the printed rate.
      enabled: False shows nothing.
      console: console to write to; standard output by default.
      now: clock, in seconds.

    Yields:
      The function to call with each step that is reached.

    >>> with show_progress(10) as show:
    ...     show(10, {"step": 10, "train/loss": 0.5})
    step 10/10  train/loss 0.5000  (... steps/s, ETA 0:00:00)
    """
    if not enabled:
        yield Silent()
        return
    console, pace = Console() if console is None else console, Pace(steps, first, now=now)
    if not console.is_terminal:
        yield _Lines(console, pace, what, unit)
        return
    fixed = Column(no_wrap=True)  # a narrow terminal shortens the metrics, and nothing else
    columns = (
        TextColumn(what, markup=False, table_column=fixed),
        MofNCompleteColumn(table_column=fixed),
        BarColumn(bar_width=12 if console.width < _NARROW else 40, table_column=fixed),
        TimeElapsedColumn(table_column=fixed),
        _Computed(lambda task: pace.text(), fixed),
        _Computed(lambda task: str(task.fields["metrics"])),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bar(progress, pace)


def summary(row: Mapping[str, float]) -> str:
    """Formats the loss, accuracy and NLL of a metrics row, or else its first values.

    Of a sweep, whose names end in what is swept, it formats means.

    >>> summary({"step": 5, "train/loss": 1.0, "train/kd": 0.25, "eval/accuracy": 0.5})
    'train/loss 1.0000  eval/accuracy 0.5000'
    >>> summary({"step": 5, "train/loss[seed=0]": 1.0, "train/loss[seed=1]": 2.0})
    'train/loss 1.5000'
    """
    values: dict[str, list[float]] = {}
    for name, value in row.items():
        values.setdefault(name.partition("[")[0], []).append(value)
    watched = [name for name in values if name.rsplit("/", 1)[-1] in ("loss", "accuracy", "nll")]
    shown = watched[:4] or [name for name in values if name not in ("step", "epoch")][:4]
    return "  ".join(f"{name} {sum(values[name]) / len(values[name]):.4f}" for name in shown)


class _Computed(ProgressColumn):
    """A column whose text a function returns; it is cut where the terminal ends."""

    def __init__(self, text: Callable[[Task], str], table_column: Column | None = None) -> None:
        super().__init__(table_column)
        self._text = text

    def render(self, task: Task) -> Text:
        return Text(self._text(task), no_wrap=True, overflow="ellipsis")


class _Bar:
    """Updates a progress bar."""

    def __init__(self, progress: Progress, pace: Pace) -> None:
        self._progress, self._pace = progress, pace
        self._task = progress.add_task("", total=pace.steps, completed=pace.step, metrics="")
        self._known: dict[str, float] = {}
        self.phase = pace.phase

    def __call__(self, step: int, row: Mapping[str, float] | None = None) -> None:
        self._known.update(row or {})
        self._pace.reach(step)
        self._progress.update(self._task, completed=self._pace.step, metrics=summary(self._known))


class _Lines:
    """Prints a line every ten seconds, and at the end."""

    def __init__(self, console: Console, pace: Pace, what: str, unit: str) -> None:
        self._console, self._pace, self._what, self._unit = console, pace, what, unit
        self._printed = pace.now()
        self._known: dict[str, float] = {}
        self.phase = pace.phase

    def __call__(self, step: int, row: Mapping[str, float] | None = None) -> None:
        self._known.update(row or {})
        self._pace.reach(step)
        now = self._pace.now()
        # The last step's metrics arrive in later calls; printing the final line before them would lose them.
        finished = step == self._pace.steps and (row is not None or not self._known)
        if not (now - self._printed >= _SECONDS_BETWEEN_LINES or finished):
            return
        self._printed = now
        numbers = f"  {summary(self._known)}" if self._known else ""
        head, pace = f"{self._what} {self._pace.step}/{self._pace.steps}", self._pace
        text = f"{head}{numbers}  ({pace.rate:.3g} {self._unit}/s, {pace.text()})"
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
