"""What makes a run this run and not another: compared before a directory is gone on with."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxkd.training.feed import Input
from jaxkd.training.plan import Plan
from jaxkd.types import Array

__all__ = ["as_known", "differences", "of_data", "of_run", "plain"]


def plain(value: Any, where: str = "config") -> Any:
    """A configuration as JSON would give it back.

    Args:
      value: dicts, dataclasses, sequences, named tuples, numbers, strings, paths, None.
      where: its name, for the message.

    Returns:
      Dicts, lists, numbers, strings and None.

    Raises:
      TypeError: something in it has no such form, a function or an array for instance.

    >>> plain({"lr": np.float32(0.5), "sizes": (1, 2)})
    {'lr': 0.5, 'sizes': [1, 2]}
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    elif hasattr(value, "_asdict"):
        value = value._asdict()
    if isinstance(value, Mapping):
        return {str(key): plain(item, f"{where}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = sorted(value, key=repr) if isinstance(value, set | frozenset) else value
        return [plain(item, f"{where}[{i}]") for i, item in enumerate(items)]
    raise TypeError(
        f"{where}: expected what JSON can hold (dict, list, number, string, None) or a dataclass of it, got "
        f"{type(value).__name__}. Give its name or its settings: it is compared when the run is resumed."
    )


def differences(stored: Any, given: Any) -> list[str]:
    """Where two plain configurations differ, one line each.

    Args:
      stored: the one on disk.
      given: the one of this call.

    Returns:
      Nothing if they are equal.

    >>> differences({"lr": 0.1, "model": {"depth": 8}}, {"lr": 0.2, "model": {"depth": 8}, "seed": 1})
    ['lr: 0.1 there, 0.2 here', 'seed: nothing there, 1 here']
    """
    there, here = _flat(stored), _flat(given)
    return [
        f"{name}: {_show(there, name)} there, {_show(here, name)} here"
        for name in sorted({**there, **here})
        if _show(there, name) != _show(here, name)
    ]


def of_run(
    train: Input, plan: Plan, splits: Mapping[str, Input], key: Array | None, best: str | None, config: Any
) -> dict[str, Any]:
    """What must be equal for a run to be gone on with. The number of steps is not in it.

    Args:
      train: its input.
      plan: when things happen in it.
      splits: what it evaluates on.
      key: for its initial state.
      best: what it watches.
      config: the user's own settings.

    Returns:
      A plain configuration.

    Raises:
      TypeError: there is something in ``config`` that is not a setting.
    """
    every = {name: getattr(plan, name) for name in ("log_every", "eval_every", "checkpoint_every", "chunk")}
    data = None if key is None else jax.random.key_data(key).tolist()
    sizes = {name: _sizes(split) for name, split in splits.items()}
    run = {"train": _sizes(train), "evaluate": sizes, "key": data, "best": best, "every": every, "config": config}
    return {name: plain(value, name) for name, value in run.items()}


def of_data(train: Input, splits: Mapping[str, Input]) -> dict[str, Any]:
    """What the inputs say of their content, those that have a method ``fingerprint()``.

    Args:
      train: what is trained on.
      splits: what is evaluated on.

    Returns:
      ``{"data": {"train": ..., "eval": ...}}``, plain.
    """
    asked = {name: getattr(data, "fingerprint", None) for name, data in {"train": train, **splits}.items()}
    return {"data": {name: plain(ask(), f"data.{name}") for name, ask in asked.items() if ask is not None}}


def as_known(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """This call's run, as far as the stored one can be compared with it.

    An input that streams cannot say as much of its content as one in memory, and both may give the same batches. So
    of the data, what only one of the two says is taken from the stored one.

    Args:
      stored: the one on disk.
      given: the one of this call.

    >>> as_known({"data": {"train": {"content": "ab"}}}, {"data": {"train": {"examples": 5}}, "key": 1})
    {'data': {'train': {'content': 'ab'}}, 'key': 1}
    """
    there, here = stored.get("data", {}), given.get("data", {})
    data = {
        name: {**said, **{k: v for k, v in here.get(name, {}).items() if k in said}} for name, said in there.items()
    }
    return {**given, "data": data} if "data" in stored else {k: v for k, v in given.items() if k != "data"}


def _sizes(data: Input) -> dict[str, Any]:
    return {name: getattr(data, name, None) for name in ("batch_size", "steps_per_epoch")}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{name}.{key}" if name else str(key))
    return flat


def _show(flat: Mapping[str, Any], name: str) -> str:
    return repr(flat[name]) if name in flat else "nothing"
