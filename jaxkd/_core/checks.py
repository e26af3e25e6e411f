"""Checks whose errors name what was expected, what came and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from typing import Any


def known(name: str, available: Iterable[str] | Mapping[str, str], what: str, *, hint: str = "") -> None:
    """Raises unless ``name`` is one of ``available``.

    Args:
      name: the requested name.
      available: the existing names; a mapping adds a detail, such as a shape, to each name.
      what: the kind of thing that is named, as the message's first words, such as ``"student output"``.
      hint: advice for the case in which the list of names alone does not suggest the fix.

    Raises:
      ValueError: with every available name, and the closest one.

    >>> known("stage3", ["logits", "stage2"], "student output")
    Traceback (most recent call last):
    ValueError: student output 'stage3': there is no such name (did you mean 'stage2'?). Available: 'logits', 'stage2'.
    """
    details = {str(k): f" {v}" for k, v in available.items()} if isinstance(available, Mapping) else {}
    names = sorted(map(str, available))
    if name in names:
        return
    close = difflib.get_close_matches(name, names, n=1)
    guess = f" (did you mean {close[0]!r}?)" if close else ""
    listed = ", ".join(f"{n!r}{details.get(n, '')}" for n in names) or "nothing"
    raise ValueError(f"{what} {name!r}: there is no such name{guess}. Available: {listed}.{' ' + hint if hint else ''}")


def describe(tree: Mapping[str, Any]) -> str:
    """Returns one line that lists names with dtypes and shapes, for messages.

    >>> import jax
    >>> describe({"image": jax.ShapeDtypeStruct((8, 4), "float32")})
    "'image' float32[8, 4]"
    """
    return ", ".join(f"{name!r} {x}" for name, x in shapes(tree).items())


def shapes(tree: Mapping[str, Any]) -> dict[str, str]:
    """Returns the `shape` of each entry by its name, as details for `known`.

    >>> shapes({"text": "a", "number": 1})
    {'text': 'str', 'number': 'int'}
    """
    return {name: shape(x) for name, x in tree.items()}


def shape(x: Any) -> str:
    """Returns an array's dtype and shape, or another value's type, for messages.

    >>> import jax
    >>> shape(jax.ShapeDtypeStruct((8, 4), "float32")), shape("text")
    ('float32[8, 4]', 'str')
    """
    return f"{x.dtype}{list(x.shape)}" if hasattr(x, "shape") else type(x).__name__


def kind(x: Any) -> str:
    """Returns the kind of a wrong argument, and a module's adapter, for messages.

    >>> kind(3), kind(dict)
    ('int', 'the class dict')
    """
    if isinstance(x, type):
        return f"the class {x.__name__}" + (", without its ()" if hasattr(x, "apply") or hasattr(x, "eval") else "")
    name = type(x).__name__
    for base in type(x).__mro__:
        if base.__module__.startswith("flax.linen"):
            return f"the linen module {name}: adapters.linen({name}(...)) makes a Model of it"
        if base.__module__.startswith("flax.nnx"):
            return f"the nnx module {name}: adapters.nnx makes a Model of it"
    return name


def distiller(what: str, kd: Any) -> None:
    """Raises unless a value has the three functions of a `jaxkd.Distiller`.

    Raises:
      TypeError: it has not.

    >>> distiller("parallel.jit", "text")
    Traceback (most recent call last):
    TypeError: parallel.jit: expected a Distiller, as from jaxkd.distill or a scheme, got str.
    """
    if not all(callable(getattr(kd, name, None)) for name in ("init", "step", "evaluate")):
        raise TypeError(f"{what}: expected a Distiller, as from jaxkd.distill or a scheme, got {kind(kd)}.")


def same_shape(name: str, logits: Mapping[str, Any]) -> tuple[int, ...]:
    """Returns the shape that all logits share.

    Raises:
      ValueError: the shapes differ.

    >>> import jax
    >>> same_shape("f", {"student/logits": jax.ShapeDtypeStruct((2, 3), "float32")})
    (2, 3)
    """
    found = {tuple(x.shape) for x in logits.values()}
    if len(found) != 1:
        raise ValueError(f"{name}: expected logits of one shape, got {describe(logits)}.")
    return found.pop()
