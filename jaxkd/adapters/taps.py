"""Taps: any submodule's output, by its path, from what Flax (linen or nnx) records of a forward pass.

A path names a submodule, as ``"ResNetStage_1"`` or ``"encoder/blocks/3"`` (dots do as well), or an intermediate that
the model sows, as ``"ResNetStage_1/preact"``. A module that is called several times has ``"name#0"``, ``"name#1"``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from jaxkd import checks
from jaxkd.types import Array

_CALL = "__call__"


def normalize(path: str) -> tuple[str, int | None]:
    """A path as ``a/b/c`` and the number of the call, if one is asked for.

    >>> normalize("encoder.blocks.3#1")
    ('encoder/blocks/3', 1)
    """
    path, _, number = path.partition("#")
    if number and not number.isdigit():
        raise ValueError(
            f"tap {path + '#' + number!r}: expected the number of a call after '#', as in {path + '#0'!r}."
        )
    return path.replace(".", "/"), int(number) if number else None


def recorded(intermediates: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, tuple[Any, ...]]]:
    """All that was recorded: paths with the outputs of each call."""
    for name, value in intermediates.items():
        path = prefix if name == _CALL else f"{prefix}/{name}" if prefix else str(name)
        if isinstance(value, Mapping):
            yield from recorded(value, path)
        elif path:
            yield path, value if isinstance(value, tuple) else (value,)


def collect(taps: Mapping[str, str], intermediates: Mapping[Any, Any], available: Any = None) -> dict[str, Array]:
    """The tapped outputs, by the names the user gave them.

    Args:
      taps: the user's names and the paths they stand for.
      intermediates: what was recorded.
      available: a function that records everything there is, for the message where a path is not found.

    Raises:
      ValueError: a path does not exist (all that do are listed, with their shapes), it was called more than once and
        no call is named, or its output is not one array.
    """
    outputs = dict(recorded(intermediates))
    found = {}
    for name, spec in taps.items():
        path, call = normalize(spec)
        if path not in outputs:
            everything = dict(recorded(available() if available else intermediates))
            shapes = {p: " and ".join(map(checks.shape, calls)) for p, calls in everything.items()}
            checks.known(path, shapes, f"tap {name!r}, submodule")
        calls = outputs[path]
        if call is None and len(calls) > 1:
            raise ValueError(f"tap {name!r}: {path!r} is called {len(calls)} times; name the call, as in '{path}#0'.")
        if (call or 0) >= len(calls):
            raise ValueError(f"tap {name!r}: {path!r} is called {len(calls)} times, there is no call {call}.")
        value = calls[call or 0]
        if not hasattr(value, "shape"):
            raise ValueError(f"tap {name!r}: expected {path!r} to return one array, got {checks.shape(value)}.")
        found[name] = value
    return found
