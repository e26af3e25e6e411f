"""From the metrics of every step, as the device gives them, to the rows that are logged."""

from __future__ import annotations

import collections
import math
from collections.abc import Iterator, Mapping

import numpy as np

from jaxkd.training.plan import Plan
from jaxkd.training.programs import Packed

__all__ = ["Meter", "NonFiniteError"]


class NonFiniteError(FloatingPointError):
    """The loss became NaN or infinite.

    Attributes:
      step: updates made, the bad one included.
      terms: the metrics that are not finite there, the loss itself last.
      indices: ``batch["index"]`` of the bad update, without what its ``mask`` leaves out; None if batches have none.
        With several processes, each has those of its own part of the batch.
    """

    def __init__(self, message: str, step: int, terms: tuple[str, ...], indices: np.ndarray | None = None) -> None:
        super().__init__(message)
        self.step, self.terms, self.indices = step, terms, indices


class Meter:
    """Keeps the metrics of the steps in flight, and the sums of the row that is not full yet.

    Sums are float64 on the host, added step after step, so that a row does not depend on how the steps came.

    >>> from jaxkd.training.programs import pack
    >>> from jaxkd.types import Mean
    >>> meter = Meter(Plan(steps=3, log_every=2), steps_per_epoch=2)
    >>> for step in range(3):
    ...     meter.add(step, pack({"loss": Mean(float(step), 1.0)}), 1)
    >>> list(meter.rows())
    [{'step': 2, 'epoch': 1.0, 'train/loss': 0.5}, {'step': 3, 'epoch': 1.5, 'train/loss': 2.0}]
    """

    def __init__(self, plan: Plan, steps_per_epoch: int, window: Mapping[str, list[float]] | None = None) -> None:
        """Begins a row, or goes on with one.

        Args:
          plan: says when a row is full.
          steps_per_epoch: to give a row its epoch.
          window: what `window` gave when the run was saved.
        """
        self._plan, self._steps_per_epoch = plan, steps_per_epoch
        self._flying: collections.deque[tuple[int, Packed, int]] = collections.deque()
        self._restored = dict(window or {})
        self._names: tuple[str, ...] = tuple(self._restored)
        self._sums = np.array([self._restored[name] for name in self._names], np.float64).reshape(-1, 2).T

    def add(self, first: int, packed: Packed, count: int) -> None:
        """Takes the metrics of some steps, without waiting for them.

        Args:
          first: the updates made before them.
          packed: their metrics, ``[..., 2, names]``.
          count: of steps; theirs are the last in ``packed``.
        """
        packed.array.copy_to_host_async()
        self._flying.append((first, packed, count))

    def rows(self, in_flight: int = 0) -> Iterator[dict[str, float]]:
        """The rows that are full, once all but the last few steps are done.

        Args:
          in_flight: how many of the last `add` not to wait for.

        Yields:
          ``step``, ``epoch`` and the means over the row's steps, named ``train/...``.

        Raises:
          NonFiniteError: the loss of a step is not finite; the rows before it have been given out.
        """
        while len(self._flying) > in_flight:
            first, packed, count = self._flying.popleft()
            values = np.asarray(packed.array).astype(np.float64).reshape(-1, 2, len(packed.names))[-count:]
            self._align(packed.names)
            bad = None if np.isfinite(values[:, 0]).all() else _first_bad(values[:, 0], packed.names)
            for offset, value in enumerate(values):
                step = first + offset + 1
                if bad is not None and offset == bad[0]:
                    raise _error(step, {name: value[0, packed.names.index(name)] for name in bad[1]})
                self._sums += value
                if step % self._plan.log_every == 0 or step == self._plan.steps:
                    yield self._row(step)

    @property
    def window(self) -> dict[str, list[float]]:
        """The sums and counts of the row that is not full yet, for JSON."""
        return {name: pair for name, pair in zip(self._names, self._sums.T.tolist(), strict=True) if any(pair)}

    def _align(self, names: tuple[str, ...]) -> None:
        if names != self._names:
            known = dict(zip(self._names, self._sums.T, strict=True))
            self._sums = np.array([known.get(name, np.zeros(2)) for name in names], np.float64).reshape(-1, 2).T
            self._names = names

    def _row(self, step: int) -> dict[str, float]:
        row: dict[str, float] = {"step": step, "epoch": step / self._steps_per_epoch}
        for name, (sum_, count) in zip(self._names, self._sums.T.tolist(), strict=True):
            row[f"train/{name}"] = sum_ / count if count else math.nan
        self._sums = np.zeros_like(self._sums)
        return row


def _is_loss(name: str) -> bool:
    return name.partition("[")[0] == "loss"


def _first_bad(sums: np.ndarray, names: tuple[str, ...]) -> tuple[int, list[str]] | None:
    """The first step whose loss is not finite, and everything in it that is not; without a loss, whatever is first."""
    finite = np.isfinite(sums)
    losses = [i for i, name in enumerate(names) if _is_loss(name)] or list(range(len(names)))
    steps = np.flatnonzero(~finite[:, losses].all(axis=1))
    if not steps.size:
        return None
    step = int(steps[0])
    return step, sorted((name for i, name in enumerate(names) if not finite[step, i]), key=_is_loss)


def _error(step: int, values: Mapping[str, float]) -> NonFiniteError:
    terms = tuple(values)
    listed = ", ".join(f"{name!r} is {value}" for name, value in values.items())
    return NonFiniteError(f"the loss is not finite in update {step}: {listed}.", step, terms)
