"""The manifest: what a cache was made from, compared before a cached output is used or another is added."""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import numpy as np

from jaxkd.teachers.cache import shards
from jaxkd.types import Variables

__all__ = ["FORMAT", "StaleCacheError", "arrays_of", "compare", "describe", "made_with", "read", "refuse", "write"]

FORMAT = 1
_SHOWN = 4


class StaleCacheError(ValueError):
    """A cache was written from another teacher, transform or data set, or with other settings.

    The message says which differ, and both values.
    """


def arrays_of(variables: Variables) -> dict[str, str]:
    """A digest of every array of a model, parameters and state, by its path.

    Args:
      variables: the model's.

    Returns:
      ``{"params/...": "float32[3, 4] sha256:..."}``.

    >>> arrays_of(Variables({"w": np.zeros((2, 3), np.float32)}))
    {'params/w': 'float32[2, 3] sha256:9d908ecfb6b256de'}
    """
    found = {}
    for part, tree in (("params", variables.params), ("state", variables.state)):
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = "/".join([part, *(jax.tree_util.keystr((key,), simple=True) for key in path)])
            array = _on_host(leaf)
            digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
            found[name] = f"{array.dtype.name}{list(array.shape)} sha256:{digest[:16]}"
    return found


def describe(function: Any) -> str:
    """A function with its bound arguments, as far as it can be told, for messages.

    >>> describe(functools.partial(describe, function=3))
    'describe(function=3)'
    """
    if function is None:
        return "none"
    if parts := getattr(function, "transforms", None):
        return f"compose({', '.join(map(describe, parts))})"
    if isinstance(function, functools.partial):
        bound = [*map(repr, function.args), *(f"{name}={value!r}" for name, value in function.keywords.items())]
        return f"{describe(function.func)}({', '.join(bound)})"
    return str(getattr(function, "__qualname__", type(function).__qualname__))


def made_with() -> dict[str, str]:
    """Versions and device, for information: they are not compared."""
    return {"jax": jax.__version__, "numpy": np.__version__, "device": jax.devices()[0].device_kind}


def read(directory: pathlib.Path) -> dict[str, Any] | None:
    """The manifest of a cache, or None if there is none.

    Raises:
      ValueError: it is no manifest of this version.
    """
    path = directory / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(
            f"{path}: expected JSON, got something else ({error}). Delete {directory} and write it again."
        ) from None
    if manifest.get("format") != FORMAT:
        raise ValueError(
            f"{path}: expected format {FORMAT}, got {manifest.get('format')!r}. Read it with the version of jaxkd that "
            "wrote it, or write it again."
        )
    return manifest


def write(directory: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Replaces the manifest, all at once."""
    shards.write_atomically(directory / "manifest.json", (json.dumps(manifest, indent=1) + "\n").encode())


def compare(there: Mapping[str, Any], here: Mapping[str, Any]) -> list[str]:
    """Where two identities differ, one line for each of their parts.

    Args:
      there: as stored.
      here: as given. A part that is None, there or here, is not known and not compared.

    >>> compare({"views": 2, "teacher": {"w": "a"}}, {"views": 3, "teacher": {"w": "a"}})
    ['views: 2 there, 3 here']
    """
    lines = []
    for part, value in here.items():
        if value is None or there.get(part, "nothing") in (None, value):
            continue
        if not (isinstance(value, Mapping) and isinstance(there.get(part), Mapping)):
            lines.append(f"{part}: {there.get(part)} there, {value} here")
            continue
        old, new = _flat(there[part]), _flat(value)
        names = [name for name in sorted({**old, **new}) if old.get(name) != new.get(name)]
        shown = [f"{name} {old.get(name, 'missing')} there, {new.get(name, 'missing')} here" for name in names[:_SHOWN]]
        more = [f"and {len(names) - _SHOWN} more of {len({**old, **new})}"] if len(names) > _SHOWN else []
        lines.append(f"{part}: " + "; ".join(shown + more))
    return lines


def refuse(directory: pathlib.Path, lines: list[str]) -> None:
    """Raises where there are differences.

    Raises:
      StaleCacheError: with all of them.
    """
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise StaleCacheError(
            f"{directory} holds the outputs of something else:\n{listed}\nGive what it was written with, or write "
            "another cache in another directory."
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{name}.{key}" if name else str(key))
    return flat


def _on_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array):
        if jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
            leaf = jax.random.key_data(leaf)
        if not leaf.is_fully_addressable and not leaf.is_fully_replicated:
            from jax.experimental import multihost_utils

            leaf = multihost_utils.process_allgather(leaf, tiled=True)
    return np.asarray(leaf)


Transform = Callable[[Any], Any]
