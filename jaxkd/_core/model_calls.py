"""Calls of modules: inputs, output names and taps.

A tap is a submodule's output, selected by its path from what Flax records of a forward pass. A path names a submodule,
as ``"ResNetStage_1"`` or ``"encoder/blocks/3"`` (dots work as well), or an intermediate that the model sows, as
``"ResNetStage_1/preact"``. For a module with several calls, ``"name#0"`` and ``"name#1"`` select one.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import axes, batch_norm, batches, checks
from jaxkd.types import RESERVED, STEP, TAUGHT, Array, Batch, Outputs

Inputs = str | Sequence[str] | Callable[[Batch], Any]
"""Entries of the batch that a model is called with: a name, several names, or a function of the batch."""

computing_in: contextvars.ContextVar[Any] = contextvars.ContextVar("jaxkd_computing_in", default=None)
"""Dtype set by `jaxkd.wrappers.precision`, for layers that would otherwise promote to float32."""


def model_batch(batch: Batch, step: Any, taught: Outputs | None = None) -> Batch:
    """Returns a batch with the step and, for a student, the teacher's outputs.

    Most models read neither of the two. A student whose additional outputs depend on the teacher does, such as an input
    gradient for the teacher's predicted class, or a feature into which the teacher's is mixed.

    Raises:
      ValueError: the batch has a reserved entry already, which would be overwritten.

    >>> model_batch({"image": 1}, 3)
    {'image': 1, 'step': 3}
    """
    refuse_entries("batch", batch, RESERVED)
    return {**batch, STEP: step} if taught is None else {**batch, STEP: step, TAUGHT: taught}


def refuse_entries(what: str, batch: Batch, names: Iterable[str]) -> None:
    """Raises if a batch has one of these entries, which mean something else.

    >>> refuse_entries("batch", {"image": 1}, ["step"])
    """
    if taken := [name for name in names if name in batch]:
        raise ValueError(
            f"{what}: {', '.join(map(repr, taken))} is reserved for an entry that models are given beside the batch "
            f"(jaxkd.types), but the batch has {', '.join(map(repr, batch))}. Rename the user's entry, for instance in "
            "jaxkd.distillers.preprocess(kd, ...), and read the new name: adapters.…(inputs=...)."
        )


def arguments(inputs: Inputs, batch: Batch) -> tuple[Any, ...]:
    """Returns the positional arguments of a model's call.

    Raises:
      ValueError: the batch has no such entry; the message lists its entries.

    >>> arguments("image", {"image": 1, "label": 2})
    (1,)
    """
    if callable(inputs):
        values = inputs(batch)
        return values if isinstance(values, tuple) else (values,)
    names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    for name in names:
        hint = "Name the model's inputs: adapters.…(inputs=...)."
        checks.known(name, checks.shapes(batch), "model input, batch entry", hint=hint)
    return tuple(batch[name] for name in names)


def name_outputs(result: Any, taps: Mapping[str, Array]) -> Outputs:
    """Names a model's outputs: an array is ``logits``, a mapping has names.

    Raises:
      ValueError: the model returned something else, or a tap has the name of an output.

    >>> name_outputs({"logits": 1}, {"stage2": 2})
    {'logits': 1, 'stage2': 2}
    """
    if isinstance(result, Mapping):
        outputs = dict(result)
    elif hasattr(result, "shape"):
        outputs = {"logits": result}
    else:
        raise ValueError(
            f"model output: expected an array (the logits) or a mapping of names to arrays, got "
            f"{type(result).__name__}. Name the outputs: adapters.…(outputs=lambda out: {{'logits': out[0], ...}})."
        )
    return add_outputs("taps", outputs, taps)


def add_outputs(what: str, outputs: Outputs, new: Mapping[str, Array]) -> Outputs:
    """Returns a model's outputs and new ones; raises where their names collide.

    >>> add_outputs("taps", {"logits": 1}, {"stage2": 2})
    {'logits': 1, 'stage2': 2}
    """
    if twice := sorted(outputs.keys() & new.keys()):
        raise ValueError(
            f"{what}: {', '.join(map(repr, twice))} is an output of the model already; choose another name."
        )
    return {**outputs, **new}


def check_names(what: str, names: Iterable[str], reserved: str = "") -> None:
    """Raises unless there are names, and all can prefix outputs: ``"name/logits"``.

    >>> check_names("views", ["pair"])
    """
    names = list(names)
    if not names:
        raise ValueError(f"{what}: expected at least one, got none.")
    if wrong := [name for name in names if not name or "/" in name or name == reserved]:
        other = f" and are not {reserved!r}" if reserved else ""
        raise ValueError(f"{what}: expected names that are not empty, hold no slash{other}, got {wrong}.")


def share_of(batch: Batch, values: tuple[Any, ...]) -> batch_norm.Share:
    """Returns the BatchNorm `Share` of a batch: its mask, mapped axis and replicas.

    >>> share_of({"image": jax.numpy.ones((4, 2))}, (jax.numpy.ones((4, 2)),)).size
    4
    """
    mask = batches.example_mask(batch)
    sizes = [mask.shape[0]] if mask is not None else [x.shape[0] for x in jax.tree.leaves(values) if jnp.ndim(x)]
    return batch_norm.share_of(mask, axes.data_axis(), sizes[0] if sizes else None)


# --- taps

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

    ``available`` records every submodule's output, for the message about a missing path.

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
