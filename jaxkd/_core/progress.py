"""Progress of long work: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from typing import Protocol

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SECONDS_BETWEEN_LINES = 10.0


class Show(Protocol):
    """Callback that a run calls with its current step."""

    def __call__(self, step: int, row: Mapping[str, float] | None = None) -> None:
        """Reports that the device has reached a step, optionally with new metrics."""
        ...


@contextlib.contextmanager
def show_progress(
    steps: int,
    first: int = 0,
    *,
    what: str = "step",
    unit: str = "steps",
    enabled: bool = True,
    console: Console | None = None,
) -> Iterator[Show]:
    """Shows a progress bar on a terminal, or prints a line about every ten seconds.

    Args:
      steps: total number of steps.
      first: step at which the work starts, above 0 when a run resumes.
      what: label before the count.
      unit: unit of the printed rate.
      enabled: False shows nothing.
      console: console to write to; standard output by default.

    Yields:
      The function to call with each step that is reached.

    >>> with show_progress(10) as show:
    ...     show(10, {"step": 10, "train/loss": 0.5})
    step 10/10  train/loss 0.5000  (... steps/s, ETA 0:00:00)
    """
    if not enabled:
        yield lambda step, row=None: None
        return
    console = Console() if console is None else console
    with (_bar if console.is_terminal else _lines)(console, steps, first, what, unit) as show:
        yield show


def summary(row: Mapping[str, float]) -> str:
    """Formats the loss, accuracy and NLL of a metrics row, or else its first values.

    >>> summary({"step": 5, "train/loss": 1.0, "train/kd": 0.25, "eval/accuracy": 0.5})
    'train/loss 1.0000  eval/accuracy 0.5000'
    """
    watched = [name for name in row if name.rsplit("/", 1)[-1] in ("loss", "accuracy", "nll")]
    shown = watched[:4] or [name for name in row if name not in ("step", "epoch")][:4]
    return "  ".join(f"{name} {row[name]:.4f}" for name in shown)


@contextlib.contextmanager
def _bar(console: Console, steps: int, first: int, what: str, unit: str) -> Iterator[Show]:
    columns = (
        TextColumn(what),
        MofNCompleteColumn(),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("ETA"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[metrics]}"),
    )
    del unit  # the bar shows times, not rates
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("", total=steps, completed=first, metrics="")
        known: dict[str, float] = {}

        def show(step: int, row: Mapping[str, float] | None = None) -> None:
            known.update(row or {})
            progress.update(task, completed=step, metrics=summary(known))

        yield show


@contextlib.contextmanager
def _lines(console: Console, steps: int, first: int, what: str, unit: str) -> Iterator[Show]:
    started = printed = time.monotonic()
    known: dict[str, float] = {}

    def show(step: int, row: Mapping[str, float] | None = None) -> None:
        nonlocal printed
        known.update(row or {})
        now = time.monotonic()
        # The last step's metrics arrive in later calls; printing the final line before them would lose them.
        finished = step == steps and (row is not None or not known)
        if not (now - printed >= _SECONDS_BETWEEN_LINES or finished):
            return
        printed = now
        rate = (step - first) / max(now - started, 1e-9)
        left = int((steps - step) / rate) if rate > 0 else 0
        eta = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        numbers = f"  {summary(known)}" if known else ""
        line = f"{what} {step}/{steps}{numbers}  ({rate:.3g} {unit}/s, ETA {eta})"
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    yield show
