"""Time boxes, and the seconds of a call."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax

Clock = Callable[[], float]


class Box(NamedTuple):
    """A time box: a moment that work must not pass.

    Attributes:
      until: moment on the clock at which the box ends.
      clock: seconds since a moment that all processes share.
    """

    until: float
    clock: Clock = time.time

    @property
    def left(self) -> float:
        """Seconds until the end, at least 0."""
        return max(0.0, self.until - self.clock())

    def fits(self, seconds: float) -> bool:
        """Returns whether work of so many seconds ends in time."""
        return seconds <= self.left

    def part(self, seconds: float) -> Box:
        """Returns a box of so many seconds from now, which ends no later than this one."""
        return Box(min(self.until, self.clock() + seconds), self.clock)


class Seconds(NamedTuple):
    """Seconds of one call: the median over the rounds, and the quartiles."""

    median: float
    quartiles: tuple[float, float, float]
    calls: int

    def row(self, scale: float = 1.0) -> dict[str, Any]:
        """Returns them as entries of a result, for one of ``scale`` equal steps of a call."""
        return {
            "seconds": self.median / scale,
            "seconds_quartiles": [value / scale for value in self.quartiles],
            "timed_calls": self.calls,
        }


def seconds_of(
    call: Callable[[], Any], box: Box, rounds: int = 5, least: float = 0.3, clock: Clock = time.perf_counter
) -> Seconds:
    """Measures a call whose program is compiled.

    The first call warms up, and the second one decides how many calls make a round of at least ``least`` seconds. There
    are fewer rounds if the box ends before, but at least one.
    """
    jax.block_until_ready(call())
    start = clock()
    jax.block_until_ready(call())
    once = max(clock() - start, 1e-9)
    repeats = max(1, min(1000, round(least / once)))
    seconds: list[float] = []
    while not seconds or (len(seconds) < rounds and box.fits(1.5 * repeats * seconds[-1])):
        start = clock()
        result = None
        for _ in range(repeats):
            result = call()
        jax.block_until_ready(result)
        seconds.append((clock() - start) / repeats)
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else seconds * 3
    return Seconds(statistics.median(seconds), (low, middle, high), repeats * len(seconds))
