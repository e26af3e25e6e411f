"""Identity of a run: settings and data that are compared before it is resumed."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxkd._core import digests, multihost
from jaxkd.training._cadence import Cadence
from jaxkd.training._inputs import Input
from jaxkd.types import Array


def plain(value: Any, where: str = "config") -> Any:
    """Returns a configuration in the form that JSON would give it back.

    It may hold dicts, dataclasses, sequences, named tuples, numbers, strings, paths and None. ``where`` is its name in
    the error message.

    Raises:
      TypeError: a part of the value has no such form, for instance a function or an array.

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
        f"{type(value).__name__}. Give its name or its settings: the value is compared when the run is resumed."
    )


def differences(stored: Any, given: Any) -> list[str]:
    """Returns one line for each entry in which two plain configurations differ.

    >>> differences({"lr": 0.1, "model": {"depth": 8}}, {"lr": 0.2, "model": {"depth": 8}, "seed": 1})
    ['lr: stored 0.1, given 0.2', 'seed: stored nothing, given 1']
    """
    old, new = _flat(stored), _flat(given)
    return [
        f"{name}: stored {_show(old, name)}, given {_show(new, name)}"
        for name in sorted({**old, **new})
        if _show(old, name) != _show(new, name)
    ]


def describe_run(
    train: Input, cadence: Cadence, splits: Mapping[str, Input], *, key: Array | None, best: str | None, config: Any
) -> dict[str, Any]:
    """Returns the settings that must be equal for a run to be resumed, as plain data.

    The number of steps is not among them, so that a run can be made longer, nor are settings that change no number.
    ``best`` is the metric and mode that select the best state.

    Raises:
      TypeError: ``config`` holds something that JSON cannot hold.
    """
    data = None if key is None else jax.random.key_data(key).tolist()
    sizes = {name: _sizes(split) for name, split in splits.items()}
    run = {
        "train": _sizes(train), "evaluate": sizes, "key": data, "best": best, "eval_every": cadence.eval_every,
        "matmul_precision": getattr(jax.config, "jax_default_matmul_precision", None), "config": config,
    }  # fmt: skip
    return {name: plain(value, name) for name, value in run.items()}


def describe_data(train: Input, splits: Mapping[str, Input]) -> dict[str, Any]:
    """Returns ``{"data": ...}`` with the entries of `digests.of_input` for each input.

    To them come digests of its ``functions``: those that run on the host, which each version of Python compiles to
    other instructions. Where the entries differ between the processes of a run, because each reads another part of the
    batches, a digest of each process stands in their place.
    """
    inputs = {"train": train, **splits}
    found = {name: _of_all_processes(plain(_fingerprint(data), f"data.{name}")) for name, data in inputs.items()}
    return {"data": {name: entries for name, entries in found.items() if entries}}


def _of_all_processes(entries: dict[str, Any]) -> dict[str, Any]:
    each = multihost.of_each(hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()[:16])
    return entries if len(set(each)) == 1 else {f"{len(each)} processes": each}


def _fingerprint(data: Any) -> dict[str, Any]:
    found = digests.of_input(data)
    functions = getattr(data, "functions", ())
    if functions and isinstance(functions, tuple | list):
        found[f"functions in {digests.PYTHON}"] = [digests.of_function(function) for function in functions]
    return found


def comparable(stored: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Returns this call's settings, with entries about data as far as comparable.

    A streaming input cannot fingerprint as much of its content as an input in memory, and both may give the same
    batches. Entries about data that only one of the two has are therefore taken from the stored settings.

    >>> comparable({"data": {"train": {"content": "ab"}}}, {"data": {"train": {"examples": 5}}, "key": 1})
    {'data': {'train': {'content': 'ab'}}, 'key': 1}
    """
    old, new = stored.get("data", {}), given.get("data", {})
    data = {
        name: {**known, **{k: v for k, v in new.get(name, {}).items() if k in known}} for name, known in old.items()
    }
    return {**given, "data": data} if "data" in stored else {k: v for k, v in given.items() if k != "data"}


def _sizes(data: Input) -> dict[str, Any]:
    """Returns an input's sizes, of which each process of a run may see another part."""
    sizes = {name: getattr(data, name, None) for name in ("batch_size", "steps_per_epoch")}
    return {name: None if size is None else multihost.from_first(size) for name, size in sizes.items()}


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping) or not value:
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{name}.{key}" if name else str(key))
    return flat


def _show(flat: Mapping[str, Any], name: str) -> str:
    return repr(flat[name]) if name in flat else "nothing"
