"""How far a cache is written, and how long it will take."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

__all__ = ["show_progress"]

_SECONDS_BETWEEN_LINES = 10.0


@contextlib.contextmanager
def show_progress(
    total: int, *, enabled: bool = True, console: Console | None = None
) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal, a line now and then elsewhere.

    Args:
      total: examples to evaluate, over all views.
      enabled: False shows nothing.
      console: where to; standard output by default.

    Yields:
      What to call with the number of examples that were done.

    >>> with show_progress(10) as advance:
    ...     advance(10)
    teacher outputs: 10/10 examples  (... examples/s, ETA 0:00:00)
    """
    console = Console() if console is None else console
    if not enabled or not total:
        yield lambda done: None
    elif console.is_terminal:
        columns = (TextColumn("teacher outputs"), MofNCompleteColumn(), BarColumn(), TimeElapsedColumn())
        with Progress(*columns, TextColumn("ETA"), TimeRemainingColumn(), console=console) as bar:
            task = bar.add_task("", total=total)
            yield lambda done: bar.update(task, advance=done)
    else:
        yield _lines(console, total)


def _lines(console: Console, total: int) -> Callable[[int], None]:
    started = said = time.monotonic()
    reached = 0

    def advance(done: int) -> None:
        nonlocal reached, said
        reached += done
        now = time.monotonic()
        if reached < total and now - said < _SECONDS_BETWEEN_LINES:
            return
        said = now
        rate = reached / max(now - started, 1e-9)
        left = int((total - reached) / rate)
        eta = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        line = f"teacher outputs: {reached}/{total} examples  ({rate:.3g} examples/s, ETA {eta})"
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    return advance
