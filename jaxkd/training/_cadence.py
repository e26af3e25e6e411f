"""Cadence of a run: the steps at which it logs, evaluates, saves and dispatches.

It is a pure function of the arguments of `fit` and the step number.

Two programs that scan over 30 and 70 steps need not give the last bits of one that scans over 100, because XLA
optimizes each length by itself. Exact resume therefore needs fixed piece boundaries: they lie on a grid that starts at
step 0 and not at the step where a process starts, so that a resumed run dispatches the same pieces, with the same
compiled programs, as a run that was never interrupted.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax

from jaxkd.training._arguments import is_whole
from jaxkd.training._inputs import Input


class Cadence(NamedTuple):
    """Intervals of a run, in steps.

    Attributes:
      steps: number of the last step.
      log_every: steps that a row of training metrics covers.
      eval_every: steps between evaluations; None for no evaluation.
      checkpoint_every: steps between checkpoints; None for no checkpoint.
      chunk: largest number of steps in one dispatch.
    """

    steps: int
    log_every: int
    eval_every: int | None = None
    checkpoint_every: int | None = None
    chunk: int = 100


def due(every: int | None, step: int, cadence: Cadence) -> bool:
    """Returns whether an event is due after a step: at its interval, and at the end.

    >>> cadence = Cadence(steps=10, log_every=1)
    >>> [step for step in range(1, 11) if due(4, step, cadence)]
    [4, 8, 10]
    """
    return every is not None and (step % every == 0 or step == cadence.steps)


def next_event(cadence: Cadence, step: int) -> int:
    """Returns the next step with an evaluation or a checkpoint, or the last step.

    >>> next_event(Cadence(steps=100, log_every=10, eval_every=30, checkpoint_every=40), 30)
    40
    """
    events = [every * (step // every + 1) for every in (cadence.eval_every, cadence.checkpoint_every) if every]
    return min([*events, cadence.steps])


def next_piece(cadence: Cadence, step: int) -> int:
    """Returns the last step of the dispatch that begins at a step.

    Between two events, a run is cut into equal pieces of at most ``chunk`` steps, which may differ by one. If neither
    interval divides the other, the distances between events take many values; pieces are then powers of two, so that
    few programs have to be compiled.

    >>> cadence = Cadence(steps=500, log_every=10, eval_every=250, checkpoint_every=250)
    >>> next_piece(cadence, 0), next_piece(cadence, 83), next_piece(cadence, 166), next_piece(cadence, 250)
    (83, 166, 250, 333)
    """
    end = next_event(cadence, step)
    intervals = [every for every in (cadence.eval_every, cadence.checkpoint_every) if every]
    # Pieces are counted from the event before `step`, never from `step` itself, which may be where a run resumes.
    start = max((step // every * every for every in intervals), default=0)
    if not intervals or max(intervals) % min(intervals) == 0:
        count = -(-(end - start) // cadence.chunk)
        return next(edge for i in range(1, count + 1) if (edge := start + (end - start) * i // count) > step)
    edge = start
    while edge <= step:
        edge += 1 << (min(end - edge, cadence.chunk).bit_length() - 1)
    return edge


def make_cadence(
    steps_per_epoch: int,
    *,
    evaluates: bool,
    saves: bool,
    steps: int | None,
    epochs: int | None,
    eval_every: int | None,
    checkpoint_every: int | None,
    log_every: int,
    chunk: int | None,
) -> Cadence:
    """Checks the interval arguments of `fit` and fills in their defaults.

    ``evaluates`` is True if there is an input to evaluate on, ``saves`` if there is a directory for checkpoints. A
    ``chunk`` of None is one step on a CPU, where XLA runs the gradients of convolutions many times slower within a loop
    than outside of one, and 100 steps elsewhere.

    Raises:
      TypeError: an argument is not a whole number.
      ValueError: an argument is out of its range, or two of them contradict each other.
    """
    exactly_one(steps=steps, epochs=epochs)
    given = {"steps": steps, "epochs": epochs, "eval_every": eval_every, "checkpoint_every": checkpoint_every}
    for name, value in {**given, "log_every": log_every, "chunk": chunk}.items():
        if value is not None and not is_whole(value):
            raise TypeError(f"{name}: expected a whole number, got {value!r}.")
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value}.")
    if not evaluates and eval_every is not None:
        raise ValueError("eval_every needs an evaluation: give eval_data=, an input or several by name.")
    if not saves and checkpoint_every is not None:
        raise ValueError("checkpoint_every needs a directory to save checkpoints in: give directory=.")
    if evaluates and eval_every is None:
        eval_every = steps_per_epoch
    if saves and checkpoint_every is None:
        checkpoint_every = eval_every or steps_per_epoch
    total = steps if steps is not None else (epochs or 0) * steps_per_epoch
    if chunk is None:
        chunk = 1 if jax.default_backend() == "cpu" else 100
    return Cadence(total, log_every, eval_every, checkpoint_every, chunk)


def exactly_one(**given: Any) -> None:
    """Raises unless exactly one argument is given, that is, not None.

    >>> exactly_one(steps=3, epochs=None)
    """
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        raise ValueError(f"expected exactly one of {' and '.join(given)}, got {' and '.join(names) or 'neither'}.")


def splits_of(eval_data: Any, best: str | None, best_mode: str) -> dict[str, Input]:
    """Returns the inputs to evaluate on by name, after checking the arguments.

    Raises:
      ValueError: a split has a reserved name, ``best`` is given without an evaluation, or ``best_mode`` is unknown.
    """
    if best_mode not in ("max", "min"):
        raise ValueError(f"best_mode: expected 'max' or 'min', got {best_mode!r}.")
    if eval_data is None:
        if best is not None:
            raise ValueError(f"best={best!r} needs an evaluation: give eval_data=, an input or several by name.")
        return {}
    splits = dict(eval_data) if isinstance(eval_data, Mapping) else {"eval": eval_data}
    if "train" in splits:
        raise ValueError("eval_data: the name 'train' is reserved for the training metrics; choose another.")
    return splits
