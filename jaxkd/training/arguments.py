"""The arguments of `fit`, checked and completed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd.training.feed import Input
from jaxkd.training.plan import Plan

__all__ = ["exactly_one", "plan_of", "splits_of"]


def plan_of(
    train: Input,
    steps: int | None,
    epochs: int | None,
    evaluate: Any,
    eval_every: int | None,
    directory: Any,
    checkpoint_every: int | None,
    log_every: int,
    chunk: int,
) -> Plan:
    """When things happen in the run that `fit` was asked for, defaults filled in.

    Raises:
      ValueError: an argument is out of its range, or they contradict each other.
    """
    exactly_one(steps=steps, epochs=epochs)
    given = {"steps": steps, "epochs": epochs, "eval_every": eval_every, "checkpoint_every": checkpoint_every}
    for name, value in {**given, "log_every": log_every, "chunk": chunk}.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected a positive number, got {value}.")
    if evaluate is None and eval_every is not None:
        raise ValueError("eval_every is given, and nothing to evaluate: give evaluate=, an input or several by name.")
    if directory is None and checkpoint_every is not None:
        raise ValueError("checkpoint_every is given, and nowhere to save: give directory=.")
    epoch = train.steps_per_epoch
    if evaluate is not None and eval_every is None:
        eval_every = epoch
    if directory is not None and checkpoint_every is None:
        checkpoint_every = eval_every or epoch
    total = steps if steps is not None else (epochs or 0) * epoch
    return Plan(total, log_every, eval_every, checkpoint_every, chunk)


def exactly_one(**given: Any) -> None:
    """Refuses arguments of which not exactly one is given.

    >>> exactly_one(steps=3, epochs=None)
    """
    names = [name for name, value in given.items() if value is not None]
    if len(names) != 1:
        both = " and ".join(names) or "neither"
        raise ValueError(f"expected exactly one of {' and '.join(given)}, got {both}.")


def splits_of(evaluate: Any, best: str | None, best_mode: str) -> dict[str, Input]:
    """The inputs to evaluate on, by name.

    Raises:
      ValueError: a name is taken, ``best`` has nothing to be a metric of, or ``best_mode`` is none.
    """
    if best_mode not in ("max", "min"):
        raise ValueError(f"best_mode: expected 'max' or 'min', got {best_mode!r}.")
    if evaluate is None:
        if best is not None:
            raise ValueError(f"best={best!r} needs an evaluation: give evaluate=, an input or several by name.")
        return {}
    splits = dict(evaluate) if isinstance(evaluate, Mapping) else {"eval": evaluate}
    if "train" in splits:
        raise ValueError("evaluate: the name 'train' is that of the training metrics; choose another.")
    return splits
