"""What adapters agree on: how a batch reaches a model, how it is told to train, and what its outputs are called."""

from __future__ import annotations

import contextvars
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import checks, normalization
from jaxkd.types import Array, Batch, Outputs

Inputs = str | Sequence[str] | Callable[[Batch], Any]
"""Which entries of the batch a model is called with: a name, several names, or a function of the batch."""

computing_in: contextvars.ContextVar[Any] = contextvars.ContextVar("jaxkd_computing_in", default=None)
"""The dtype that `jaxkd.adapters.precision` has a model compute in, for layers that would leave it."""

POSITION = "_position"
"""The batch entry that says where in the whole batch an example stands, in a batch that is a part of another."""

_TRAIN = ("train", "training", "is_training")
_INFER = ("deterministic", "use_running_average")


def arguments(inputs: Inputs, batch: Batch) -> tuple[Any, ...]:
    """The positional arguments that a model is called with.

    Raises:
      ValueError: the batch has no such entry; the message lists what it has.

    >>> arguments("image", {"image": 1, "label": 2})
    (1,)
    """
    if callable(inputs):
        found = inputs(batch)
        return found if isinstance(found, tuple) else (found,)
    names = (inputs,) if isinstance(inputs, str) else tuple(inputs)
    shapes = {name: checks.shape(value) for name, value in batch.items()}
    for name in names:
        checks.known(name, shapes, "model input, batch entry", hint="Name the model's inputs: adapters.…(inputs=...).")
    return tuple(batch[name] for name in names)


def mode_flags(function: Callable[..., Any], train: bool) -> dict[str, Any]:
    """The keyword arguments by which a model is told to train: whichever of the usual names its signature has.

    >>> mode_flags(lambda x, *, deterministic: x, train=True)
    {'deterministic': False}
    """
    accepted = inspect.signature(function).parameters
    return {k: train for k in _TRAIN if k in accepted} | {k: not train for k in _INFER if k in accepted}


def name_outputs(result: Any, taps: Mapping[str, Array]) -> Outputs:
    """Outputs from what a model returned and what was tapped: an array is ``logits``, a mapping speaks for itself.

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
            f"{type(result).__name__}. Say what it means: adapters.…(outputs=lambda out: {{'logits': out[0], ...}})."
        )
    if twice := sorted(outputs.keys() & taps.keys()):
        raise ValueError(f"taps: {', '.join(map(repr, twice))} is an output of the model already; rename the tap.")
    return {**outputs, **taps}


def share_of(batch: Batch, values: tuple[Any, ...]) -> normalization.Share:
    """What a model's BatchNorms normalise by: the batch's mask, the mapped axis and the replicas.

    >>> share_of({"image": jax.numpy.ones((4, 2))}, (jax.numpy.ones((4, 2)),)).size
    4
    """
    mask = checks.example_mask(batch)
    sizes = [mask.shape[0]] if mask is not None else [x.shape[0] for x in jax.tree.leaves(values) if jnp.ndim(x)]
    return normalization.share_of(mask, normalization.mapped_axis(), sizes[0] if sizes else None)
