"""Taps: submodules' outputs by path, from what Flax records of a forward pass.

A path names a submodule, as ``"ResNetStage_1"`` or ``"encoder/blocks/3"`` (dots work as well), or an intermediate that
the model sows, as ``"ResNetStage_1/preact"``. For a module with several calls, ``"name#0"`` and ``"name#1"`` select
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from jaxkd._core import checks
from jaxkd.types import Array

_CALL = "__call__"


def normalize(path: str) -> tuple[str, int | None]:
    """Splits a tap into its path ``a/b/c`` and the number of the call, or None.

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
    """Yields the path and the outputs of all calls of each recorded submodule."""
    for name, value in intermediates.items():
        path = prefix if name == _CALL else f"{prefix}/{name}" if prefix else str(name)
        if isinstance(value, Mapping):
            yield from recorded(value, path)
        elif path:
            yield path, value if isinstance(value, tuple) else (value,)


def collect(taps: Mapping[str, str], intermediates: Mapping[Any, Any], available: Any = None) -> dict[str, Array]:
    """Returns the tapped outputs by the user's names.

    Args:
      taps: the user's names and their paths.
      intermediates: the recorded outputs.
      available: function that records every submodule's output, for the message about a missing path.

    Raises:
      ValueError: a path does not exist (the message lists those that do, with their shapes), a module with several
        calls is tapped without a call number, or its output is not one array.
    """
    outputs = dict(recorded(intermediates))
    tapped = {}
    for name, spec in taps.items():
        path, call = normalize(spec)
        if path not in outputs and available:  # for the message, which lists every submodule
            pick_call(f"tap {name!r}", path, call, dict(recorded(available())))
        value = pick_call(f"tap {name!r}", path, call, outputs)
        if not hasattr(value, "shape"):
            raise ValueError(f"tap {name!r}: expected {path!r} to return one array, got {checks.shape(value)}.")
        tapped[name] = value
    return tapped


def pick_call(what: str, path: str, call: int | None, outputs: Mapping[str, Sequence[Any]]) -> Any:
    """Returns a submodule's output in one of its calls, or raises.

    >>> pick_call("tap 'f'", "stem", 1, {"stem": ("first", "second")})
    'second'
    """
    shapes = {name: " and ".join(map(checks.shape, calls)) for name, calls in outputs.items()}
    checks.known(path, shapes, f"{what}, submodule")
    calls = outputs[path]
    if call is None and len(calls) > 1:
        raise ValueError(f"{what}: {path!r} is called {len(calls)} times; name the call, as in '{path}#0'.")
    if (call or 0) >= len(calls):
        raise ValueError(f"{what}: {path!r} is called {len(calls)} times, there is no call {call}.")
    return calls[call or 0]
