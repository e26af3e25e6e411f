"""The manifest of a cache: the identity of its teacher, data and settings.

``manifest.json`` is written before the first shard, with ``"complete": false``, and replaced when all shards exist.
Every writer and reader first compares its own arguments with the stored identity, so that outputs of two teachers, sets
or settings are never mixed. Functions have no digest: a transform and a network are compared by their results on
probes.
"""

from __future__ import annotations

import functools
import hashlib
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from jaxkd._core import files, tree_paths
from jaxkd._core.multihost import local
from jaxkd.cache import _schema, _storage
from jaxkd.types import Variables

FORMAT = 2
_MAX_SHOWN = 4


class StaleCacheError(ValueError):
    """Raised when a cache belongs to another teacher, transform, set or setting.

    The message names each difference, with both values.
    """


def digests_of(variables: Variables) -> dict[str, str]:
    """Returns dtype, shape and digest of every array of a model, by its path.

    >>> digests_of(Variables({"w": np.zeros((2, 3), np.float32)}))
    {'params/w': 'float32[2, 3] sha256:9d908ecfb6b256de'}
    """
    found = {}
    for name, leaf in tree_paths.by_path(variables).items():
        array = _on_host(leaf)
        digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()
        found[name] = f"{array.dtype.name}{list(array.shape)} sha256:{digest[:16]}"
    return found


def describe(function: Any) -> str:
    """Returns a function's name and bound arguments, for messages.

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
    """Returns versions and device, for information only: nothing compares them."""
    return {"jax": jax.__version__, "numpy": np.__version__, "device": jax.devices()[0].device_kind}


def read(directory: pathlib.Path) -> dict[str, Any] | None:
    """Returns the manifest of a cache, or None if there is none.

    Raises:
      ValueError: the file is not a manifest of this format.
    """
    path = directory / "manifest.json"
    try:
        manifest = _storage.read_json(path)
        fault = _schema.find_fault(manifest)
        if fault is not None:
            raise ValueError(f"{path}, {fault}")
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        if (found := _format_of(path)) not in (None, FORMAT):
            raise ValueError(
                f"{path}: expected format {FORMAT}, got {found!r}. Read it with the version of jaxkd that wrote it, or "
                "write it again."
            ) from None
        raise ValueError(f"{error}. Delete {directory} and write the cache again.") from None
    return manifest


def _format_of(path: pathlib.Path) -> Any:
    try:
        return json.loads(path.read_bytes())["format"]
    except (OSError, ValueError, LookupError, TypeError, RecursionError):
        return None


def key(manifest: Mapping[str, Any]) -> str:
    """Returns a digest of what the shards of a cache depend on: each shard carries it."""
    parts = {**manifest["identity"], "contents": None, "probes": manifest["probes"], "inputs": manifest["inputs"]}
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def write(directory: pathlib.Path, manifest: Mapping[str, Any]) -> None:
    """Replaces the manifest atomically."""
    directory.mkdir(parents=True, exist_ok=True)
    files.write_atomically(directory / "manifest.json", _storage.json_text(manifest) + "\n")


def compare(stored: Mapping[str, Any], given: Mapping[str, Any]) -> list[str]:
    """Returns the differences between two identities, one line for each part.

    A part that is None in either is unknown and not compared.

    >>> compare({"views": 2, "teacher": {"w": "a"}}, {"views": 3, "teacher": {"w": "a"}})
    ['views: 2 in the cache, 3 given']
    """
    lines = []
    for part, value in given.items():
        if value is None or stored.get(part, "nothing") in (None, value):
            continue
        if not (isinstance(value, Mapping) and isinstance(stored.get(part), Mapping)):
            lines.append(f"{part}: {stored.get(part)} in the cache, {value} given")
            continue
        old, new = _flat(stored[part]), _flat(value)
        names = [name for name in sorted({**old, **new}) if old.get(name) != new.get(name)]
        shown = [
            f"{name} {old.get(name, 'missing')} in the cache, {new.get(name, 'missing')} given"
            for name in names[:_MAX_SHOWN]
        ]
        more = [f"and {len(names) - _MAX_SHOWN} more of {len({**old, **new})}"] if len(names) > _MAX_SHOWN else []
        lines.append(f"{part}: " + "; ".join(shown + more))
    return lines


def refuse(directory: pathlib.Path, lines: list[str]) -> None:
    """Raises if there are differences.

    Raises:
      StaleCacheError: lists all of them.
    """
    if lines:
        listed = "\n".join(f"  {line}" for line in lines)
        raise StaleCacheError(
            f"{directory} holds the outputs of another teacher, data set, transform or setting:\n{listed}\nPass the "
            "arguments that it was written with, or write another cache to another directory."
        )


def _flat(value: Any, name: str = "") -> dict[str, Any]:
    if not isinstance(value, Mapping):
        return {name: value}
    flat: dict[str, Any] = {}
    for key, item in value.items():
        flat |= _flat(item, f"{name}.{key}" if name else str(key))
    return flat


def _on_host(leaf: Any) -> np.ndarray:
    if isinstance(leaf, jax.Array) and jax.dtypes.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(local(leaf))
