"""Checks of the arguments of `fit`, before anything is computed or written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxkd._core import tree_paths
from jaxkd.training._inputs import is_resident
from jaxkd.types import Distiller, TrainState


def check_distiller(kd: Any) -> None:
    """Raises TypeError unless an object has the functions of a `Distiller`.

    >>> check_distiller(3)
    Traceback (most recent call last):
    TypeError: kd: expected a distiller, such as jaxkd.distill(student, teacher, objective, optimizer=...) ...
    """
    if isinstance(kd, Distiller) or all(callable(getattr(kd, name, None)) for name in Distiller._fields):
        return
    raise TypeError(
        "kd: expected a distiller, such as jaxkd.distill(student, teacher, objective, optimizer=...) or a scheme "
        f"returns, got {type(kd).__name__}."
    )


def check_input(data: Any, name: str) -> None:
    """Raises TypeError or ValueError unless an object is an input.

    >>> check_input({"x": np.zeros(3)}, "train_data")
    Traceback (most recent call last):
    TypeError: train_data: expected an input with batch_size, steps_per_epoch and batches(), got dict without ...
    """
    names = ("batch_size", "steps_per_epoch") + (() if is_resident(data) else ("batches",))
    missing = [attribute for attribute in names if not hasattr(data, attribute)]
    if missing:
        raise TypeError(
            f"{name}: expected an input with batch_size, steps_per_epoch and batches(), got {type(data).__name__} "
            f"without {', '.join(missing)}. jaxkd.data.Resident(arrays, batch_size) makes one of a dict of arrays, "
            "jaxkd.data.Stream(source, batch_size) of anything with len(source) and source[i], and "
            "jaxkd.data.from_batches(epoch_batches, steps_per_epoch) of any iterable of batches."
        )
    for attribute in ("batch_size", "steps_per_epoch"):
        value = getattr(data, attribute)
        if not is_whole(value) or value < 1:
            raise ValueError(f"{name}: expected a positive whole number as its {attribute}, got {value!r}.")


def check_inputs(train_data: Any, eval_data: Any) -> None:
    """Raises TypeError or ValueError unless all inputs of `fit` are inputs."""
    check_input(train_data, "train_data")
    if not isinstance(eval_data, Mapping):
        splits = {} if eval_data is None else {"eval_data": eval_data}
    elif not eval_data:
        raise ValueError("eval_data: expected at least one input by name, or None, got an empty mapping.")
    else:
        splits = {f"eval_data[{name!r}]": data for name, data in eval_data.items()}
    for name, data in splits.items():
        check_input(data, name)


def check_length(train_data: Any, steps: int) -> None:
    """Raises ValueError if a streaming input has fewer batches than the run has steps."""
    epochs = getattr(train_data, "epochs", None)
    if is_whole(epochs) and not is_resident(train_data) and epochs * train_data.steps_per_epoch < steps:
        raise ValueError(
            f"train_data: expected an input of at least {steps} batches, got one that ends after {epochs} epochs of "
            f"{train_data.steps_per_epoch}. Make it with epochs=None, which repeats."
        )


def check_start(key: Any, state: Any) -> None:
    """Raises unless a run's key is a PRNG key and its state is usable.

    >>> check_start(0, None)
    Traceback (most recent call last):
    TypeError: key: expected a PRNG key, such as jax.random.key(0), got int.
    """
    is_raw = isinstance(key, jax.Array | np.ndarray) and key.dtype == np.uint32 and key.ndim > 0
    if key is not None and not tree_paths.is_key(key) and not is_raw:
        raise TypeError(f"key: expected a PRNG key, such as jax.random.key(0), got {_kind(key)}.")
    if state is None:
        return
    if not all(hasattr(state, name) for name in TrainState._fields):
        raise TypeError(
            f"state: expected a TrainState, such as kd.init(key, batch) returns, got {_kind(state)}. Checkpoints are "
            "read with jaxkd.training.Checkpoints."
        )
    deleted = [name for name, x in tree_paths.by_path(state).items() if isinstance(x, jax.Array) and x.is_deleted()]
    if deleted:
        raise ValueError(
            f"state: expected arrays, got {len(deleted)} that a step has taken over, the first is {deleted[0]}. A step "
            "with donate_argnums=0 deletes the state that it is given: pass the one that it returned."
        )


def check_functions(**functions: Any) -> None:
    """Raises TypeError unless each argument is None or can be called."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise TypeError(f"{name}: expected a function or None, got {_kind(function)}.")


def check_directory(directory: Any) -> None:
    """Raises TypeError unless a directory is a path or None."""
    if directory is not None and not isinstance(directory, str | os.PathLike):
        raise TypeError(f"directory: expected a path or None, got {_kind(directory)}.")


def is_whole(value: Any) -> bool:
    """Returns whether a value is a whole number.

    >>> is_whole(3), is_whole(np.int64(3)), is_whole(3.0), is_whole(True)
    (True, True, False, False)
    """
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _kind(value: Any) -> str:
    return tree_paths.describe(value) if hasattr(value, "shape") else type(value).__name__
