"""Wall-clock time of a run and its speed, for the rows of its logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

SECONDS, SPEED, TOKEN_SPEED = "seconds", "examples_per_second", "tokens_per_second"
"""Names of the columns that depend on the clock."""


class Clock:
    """Measures a run's seconds, and the examples per second of each row.

    >>> times = iter([0.0, 9.0, 11.0, 13.0, 20.0, 22.0])
    >>> clock = Clock(batch_size=8, now=lambda: next(times))
    >>> clock.reach(4)  # with the compilation
    >>> clock.reach(8), clock.reach(12)
    (None, None)
    >>> clock.row_speed()  # 8 steps in 4 seconds
    16.0
    >>> clock.pause()
    >>> clock.seconds()
    22.0

    Attributes:
      step: last step that the host knows to be finished.
    """

    def __init__(
        self, batch_size: int, step: int = 0, history: Sequence[Mapping[str, float]] = (), *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Starts at a step, after the seconds of the last row of an earlier process."""
        self._now, self._batch_size, self.step = now, batch_size, step
        self._before = next((row[SECONDS] for row in reversed(history) if SECONDS in row), 0.0)
        self._started = self._last = now()
        self._steps, self._busy = 0, 0.0  # of the row so far
        self._dispatches, self._speed = 0, 0.0

    def reach(self, step: int) -> None:
        """Notes that the host knows of the device having finished a step.

        It may learn of several dispatches at once, so that the time of one of them means nothing; a row's speed is that
        of all its steps. The first dispatch, which compiles, is left out where others follow in its row.
        """
        if step <= self.step:
            return
        now = self._now()
        if self._dispatches == 1:
            self._steps, self._busy = 0, 0.0
        self._dispatches += 1
        self._steps, self._busy = self._steps + step - self.step, self._busy + now - self._last
        self.step, self._last = step, now

    def row_speed(self) -> float:
        """Returns the examples per second since the row before, or those of that row."""
        if self._steps and self._busy > 0:
            self._speed = float(f"{self._steps * self._batch_size / self._busy:.4g}")
        self._steps, self._busy = 0, 0.0
        return self._speed

    def pause(self) -> None:
        """Leaves the time since the last step, as of an evaluation, out of the speed."""
        self._last = self._now()

    def seconds(self) -> float:
        """Returns the seconds that the run has taken, those of earlier processes included."""
        return round(self._before + self._now() - self._started, 3)
