"""The form of a manifest, checked before anything is computed from it.

A manifest may come from anywhere. Whatever it says, a reader neither leaves the directory nor allocates more than the
files hold.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.cache import codecs
from jaxkd.cache._shards import MAX_SHARDS, Layout
from jaxkd.cache.codecs._codec import example_keys

_MAX_EXAMPLES = 2**31 - 1  # an index is an int32
_MAX_VALUES = 2**31  # of one output of one example


def find_fault(manifest: Mapping[str, Any]) -> str | None:
    """Returns what is wrong with a manifest, or None.

    >>> find_fault({"complete": 1})
    'complete: expected true or false, got 1'
    """
    try:
        _check(manifest)
    except _Fault as fault:
        return str(fault)
    return None


class _Fault(Exception):
    """A part of a manifest is not of the form that it has to have."""


def _check(manifest: Mapping[str, Any]) -> None:
    complete = _part(manifest, "complete", bool, "true or false")
    _part(manifest, "format", int, "a number")
    identity = _part(manifest, "identity", dict, "an object")
    data = _part(identity, "data", dict, "an object")
    _names(identity, "teacher")
    _names(data, "entries")
    examples = _count(data, "examples", _MAX_EXAMPLES)
    per_shard = _count(manifest, "examples_per_shard", _MAX_EXAMPLES)
    shards = Layout(examples, _count(identity, "views", MAX_SHARDS), per_shard).total
    if shards > MAX_SHARDS:
        raise _Fault(f"examples_per_shard: expected at most {MAX_SHARDS} shards, got {shards}")
    if identity.get("contents") is not None or complete:
        _part(identity, "contents", str, "a text")
    _part(manifest, "transform", str, "a text")
    _part(manifest, "probes", str, "a text")
    inputs = _part(manifest, "inputs", list, "a list")
    if not all(isinstance(name, str) for name in inputs):
        raise _Fault(f"inputs: expected names, got {inputs!r}")
    if complete:
        seconds = _part(manifest, "seconds", int | float, "a number")
        if not 0 <= seconds < math.inf:
            raise _Fault(f"seconds: expected a number of at least 0, got {seconds!r}")
    _outputs(_part(manifest, "outputs", dict, "an object"), _part(identity, "codecs", dict, "an object"))


def _outputs(outputs: Mapping[str, Any], settings: Mapping[str, Any]) -> None:
    """Compares the stored fields with those that the codecs have for the outputs."""
    if outputs.keys() != settings.keys() or not outputs:
        raise _Fault(f"outputs: expected those of the codecs, {sorted(settings)}, got {sorted(outputs)}")
    for name in outputs:
        output, chosen = _part(outputs, name, dict, "an object"), _part(settings, name, dict, "an object")
        shape = _part(output, "shape", list, "a list")
        # `all` first: a product of something else is not one number.
        if not all(type(n) is int and n >= 0 for n in shape) or math.prod(shape) > _MAX_VALUES:
            raise _Fault(f"outputs, {name!r}: expected the shape of an output, got {shape!r}")
        try:
            codec = codecs.from_settings(chosen)
            place = jax.ShapeDtypeStruct((1,), jnp.int32)
            fields = jax.eval_shape(
                lambda x, index, codec=codec: codec.encode(x, example_keys(index, index)),
                jax.ShapeDtypeStruct((1, *shape), jnp.float32),
                place,
            )
        except (TypeError, ValueError) as error:
            raise _Fault(f"codecs, {name!r}: {error}".rstrip(".")) from None
        wanted = {field: {"dtype": x.dtype.name, "shape": list(x.shape[1:])} for field, x in fields.items()}
        if output.get("fields") != wanted:
            raise _Fault(f"outputs, {name!r}: expected the fields {wanted}, got {output.get('fields')!r}")
        if output.get("masked", False) not in ((False, True) if codec.masked and len(shape) == 2 else (False,)):
            raise _Fault(f"outputs, {name!r}: expected an output that may be masked, got {output['masked']!r}")
    tokens = {outputs[name]["shape"][0] for name in outputs if outputs[name].get("masked")}
    if len(tokens) > 1:
        raise _Fault(f"outputs: expected one number of tokens for one mask, got {sorted(tokens)}")


def _part(parts: Mapping[str, Any], name: str, kind: Any, expected: str) -> Any:
    value = parts.get(name)
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise _Fault(f"{name}: expected {expected}, got {value!r}")
    return value


def _count(parts: Mapping[str, Any], name: str, most: int) -> int:
    value: int = _part(parts, name, int, f"a number from 1 to {most}")
    if not 1 <= value <= most:
        raise _Fault(f"{name}: expected a number from 1 to {most}, got {value}")
    return value


def _names(parts: Mapping[str, Any], name: str) -> None:
    if not all(isinstance(text, str) for text in _part(parts, name, dict, "an object").values()):
        raise _Fault(f"{name}: expected texts by name, got {parts[name]!r}")
