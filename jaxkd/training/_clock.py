"""Wall-clock time of a run and its speed, for the rows of its logs."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence

SECONDS, SPEED, TOKEN_SPEED = "seconds", "examples_per_second", "tokens_per_second"
"""Names of the columns that depend on the clock."""


class Clock:
    """Measures a run's seconds and its examples per second.

    >>> times = iter([0.0, 2.0, 4.0, 10.0, 11.0])
    >>> clock = Clock(batch_size=8, now=lambda: next(times))
    >>> clock.reach(4)  # 4 steps in 2 seconds
    >>> clock.speed
    16.0
    >>> clock.reach(4)
    >>> clock.pause()
    >>> clock.seconds(), clock.speed
    (11.0, 16.0)
    """

    def __init__(
        self, batch_size: int, step: int = 0, history: Sequence[Mapping[str, float]] = (), *,
        now: Callable[[], float] = time.monotonic,
    ) -> None:  # fmt: skip
        """Starts at a step, after the seconds of the last row of an earlier process."""
        self._now, self._batch_size, self._step = now, batch_size, step
        self._before = next((row[SECONDS] for row in reversed(history) if SECONDS in row), 0.0)
        self._started = self._last = now()
        self.speed = 0.0

    def reach(self, step: int) -> None:
        """Notes that the device has finished a step."""
        now = self._now()
        if step > self._step and now > self._last:
            self.speed = float(f"{(step - self._step) * self._batch_size / (now - self._last):.4g}")
            self._step, self._last = step, now

    def pause(self) -> None:
        """Leaves the time since the last step, as of an evaluation, out of the speed."""
        self._last = self._now()

    def seconds(self) -> float:
        """Returns the seconds that the run has taken, those of earlier processes included."""
        return round(self._before + self._now() - self._started, 3)
