"""Checks whose errors name what was expected, what came and what to do."""

from __future__ import annotations

import difflib
import importlib
from collections.abc import Iterable, Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.types import Distiller, Model, Objective, Teacher, TrainState

_FORMS: dict[Any, tuple[str, ...]] = {form: form._fields for form in (Model, Teacher, Objective, Distiller)}
_MADE_BY = {
    Model: "Wrap a module in its adapter: jaxkd.adapters.linen(module), nnx(module) or plain(init, apply).",
    Teacher: "Make one of a model and its weights: jaxkd.teachers.frozen(model, variables). Without a teacher, use "
    "jaxkd.teachers.none().",
    Objective: "Bind a loss with jaxkd.term({loss}, 'student/...', 'teacher/...').",
    Distiller: "Make one with jaxkd.distill(student, teacher, objective, optimizer=...) or a scheme.",
}


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


def contract(what: str, value: Any, form: Any) -> None:
    """Raises unless a value has the functions of a contract, such as `Model`.

    The contracts are `Model`, `Teacher`, `Objective` and `Distiller`. Anything that has their functions is accepted,
    except where it is known to be something else: another of the four, or a module of Flax, whose methods ``init`` and
    ``apply`` have other arguments.

    Raises:
      TypeError: the message tells how one is made.

    >>> contract("distill, student", jax.nn.relu, Model)
    Traceback (most recent call last):
    TypeError: distill, student: expected a Model, got the function relu. Wrap a module in its adapter: \
jaxkd.adapters.linen(module), nnx(module) or plain(init, apply).
    """
    other = next((known for known in _FORMS if isinstance(value, known)), None)
    module = any(base.__module__.startswith("flax.") for base in type(value).__mro__)
    fits = all(callable(getattr(value, field, None)) for field in _FORMS[form])
    if isinstance(value, form) or (fits and not (other or module or isinstance(value, type))):
        return
    inner = getattr(value, "func", value)  # unwraps a functools.partial
    advice = _MADE_BY[form].replace("{loss}", str(getattr(inner, "__name__", "loss")) if callable(value) else "loss")
    if form is Objective and isinstance(value, Mapping):
        advice = f"Sum objectives by name: jaxkd.combine({', '.join(f'{name}=...' for name in value)})."
    raise TypeError(f"{what}: expected {_article(form.__name__)}, got {kind(value)}. {advice}")


def optimizer(what: str, value: Any) -> None:
    """Raises unless a value is an optax transformation.

    >>> optimizer("distill, optimizer", jax.nn.relu)
    Traceback (most recent call last):
    TypeError: distill, optimizer: expected an optax transformation, such as optax.adam(1e-3), got the function relu. \
Call it with its learning rate.
    """
    if not all(callable(getattr(value, field, None)) for field in ("init", "update")) or hasattr(value, "apply"):
        advice = " Call it with its learning rate." if callable(value) else ""
        raise TypeError(
            f"{what}: expected an optax transformation, such as optax.adam(1e-3), got {kind(value)}.{advice}"
        )


def batch(what: str, value: Any) -> None:
    """Raises unless a value is a mapping of names to arrays.

    >>> batch("step, batch", {"image": jnp.zeros(2)})
    """
    if not isinstance(value, Mapping):
        raise TypeError(
            f"{what}: expected a dict of arrays by name, such as {{'image': images, 'label': labels}}, got "
            f"{kind(value)}."
        )
    wrong = {
        name: kind(x)
        for name, x in value.items()
        if x is None
        or isinstance(x, (str, bytes))
        or (isinstance(x, (list, tuple)) and not all(hasattr(leaf, "shape") for leaf in jax.tree.leaves(x)))
    }
    if wrong:
        raise TypeError(f"{what}: expected arrays, got {wrong}. Convert them, for instance with numpy.asarray.")


def key(what: str, value: Any) -> None:
    """Raises unless a value is a PRNG key.

    >>> key("init, key", jax.random.key(0))
    """
    dtype = getattr(value, "dtype", None)
    if dtype is None or not (jnp.issubdtype(dtype, jax.dtypes.prng_key) or (dtype == jnp.uint32 and value.ndim)):
        raise TypeError(f"{what}: expected a PRNG key, such as jax.random.key(0), got {kind(value)}.")


def state(what: str, value: Any) -> None:
    """Raises unless a value is a train state whose arrays exist.

    Raises:
      TypeError: it is something else.
      ValueError: it was donated to a step.
    """
    if not all(hasattr(value, field) for field in TrainState._fields):
        raise TypeError(
            f"{what}: expected a TrainState, from init or from the last step, got {kind(value)}. A step returns a "
            "pair: state, metrics = step(state, batch)."
        )
    for x in jax.tree.leaves(value):
        if isinstance(x, jax.Array) and not isinstance(x, jax.core.Tracer) and x.is_deleted():
            raise ValueError(
                f"{what}: expected a state whose arrays exist, got one that was donated to an earlier step. Use the "
                "state that this step returned: state, metrics = step(state, batch); to keep the old one, copy it: "
                "jax.tree.map(jax.numpy.copy, state)."
            )


def kind(value: Any) -> str:
    """Returns a description of a value for messages.

    >>> kind(None), kind({"a": 1}), kind(int), kind(kind)
    ('None', "a dict of 'a'", 'the class int', 'the function kind')
    """
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if hasattr(value, "shape"):
        return shape(value)
    if isinstance(value, (bool, int, float, str)) or value is None:
        return repr(value)
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    name = _article(type(value).__name__)
    return f"{name} of {', '.join(map(repr, value)) or 'nothing'}" if isinstance(value, Mapping) else name


def _article(name: str) -> str:
    return f"{'an' if name[:1] in 'AEIOU' else 'a'} {name}"


def require(module: str, purpose: str, extra: str = "data") -> ModuleType:
    """Imports an optional library, or raises an error that names its extra.

    >>> require("json", purpose="reading configurations").dumps([1])
    '[1]'
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        missing = error.name or module
        raise ImportError(
            f"{purpose} needs {module!r}, and {missing!r} could not be imported ({error}). Install it with: "
            f'pip install "jaxkd-toolkit[{extra}]"',
            name=missing,
        ) from error
