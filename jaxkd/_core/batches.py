"""Number of examples and mask of a batch, and entries of a step's context by path.

Also the examples of a batch that a cached teacher saw otherwise.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd._core.checks import describe, shape
from jaxkd.types import UNSEEN, Array, Context, Mean, Metrics, Outputs

Path = str | tuple["Path", ...]
"""Location of an argument, such as ``"student/logits"``; a tuple of paths for a loss that takes several features."""

_ROOTS = ("student", "teacher", "batch")


def batch_size(batch: Mapping[str, Any]) -> int:
    """Returns the number of examples: the leading dimension that all arrays share.

    Raises:
      ValueError: the batch is empty, or its arrays disagree.

    >>> import jax
    >>> batch_size({"image": jax.numpy.zeros((8, 4)), "label": jax.numpy.zeros(8, int)})
    8
    """
    sizes = {name: x.shape[0] if getattr(x, "ndim", 0) else None for name, x in batch.items()}
    if len(set(sizes.values())) != 1 or None in sizes.values():
        raise ValueError(
            f"batch: expected a dict of arrays [batch, ...] with one leading dimension, got {describe(batch)}."
        )
    return next(iter(sizes.values()))  # type: ignore[return-value]


def example_mask(batch: Mapping[str, Any]) -> Array | None:
    """Returns the batch's checked ``mask``, or None if the batch has none.

    Raises:
      ValueError: the mask is not boolean ``[batch]``.
    """
    mask = batch.get("mask")
    if mask is not None and (mask.dtype != bool or mask.ndim != 1):
        raise ValueError(
            f"batch['mask']: expected bool[batch], True for the examples to include, got {shape(mask)}. For a mask "
            "over tokens use another name and term(..., where='batch/NAME')."
        )
    return mask


def lookup(context: Context, path: Path) -> Any:
    """Returns the value at a path such as ``"student/logits"`` or ``"batch/label"``.

    Args:
      context: outputs and batch of the step.
      path: root, slash and name; the name may itself contain slashes. A tuple or list of paths gives a tuple of values.

    Raises:
      ValueError: the path is not a string, or its root or name does not exist; the message lists the available ones.

    >>> lookup(Context({"logits": 1}, {}, {"label": 2}, 0), "batch/label")
    2
    """
    if isinstance(path, (tuple, list)):
        return tuple(lookup(context, part) for part in path)
    if not isinstance(path, str):
        raise ValueError(f"path: expected one such as 'student/logits' or 'batch/label', got {path!r}.")
    root, _, name = path.partition("/")
    checks.known(root, _ROOTS, f"path {path!r}, root", hint="A path reads like 'student/logits' or 'batch/label'.")
    found = getattr(context, root)
    hints = {
        "student": "Features come from the taps of the student's adapter.",
        "teacher": "Features come from the taps of the teacher's adapter.",
        "batch": "",
    }
    shapes = {key: checks.shape(value) for key, value in found.items()}
    checks.known(name, shapes, f"path {path!r}, {root} entry", hint=hints[root])
    return found[name]


UNSEEN_INPUTS = "unseen_inputs"
"""Metric of a step with a cached teacher: the share of examples whose inputs are not those that the teacher saw."""


def split_unseen(outputs: Outputs, batch: Mapping[str, Any]) -> tuple[Outputs, Metrics]:
    """Returns a teacher's outputs without `jaxkd.types.UNSEEN`, and its metric.

    All floating-point outputs of an unseen example become NaN, so that a loop that reads no metrics notices too. Masked
    examples are not counted. Without the entry, the outputs are returned unmodified, and no metric.

    >>> outputs = {"logits": jnp.ones((2, 1)), "a/_unseen": jnp.array([False, True])}
    >>> found, metrics = split_unseen(outputs, {})
    >>> found["logits"].tolist(), float(metrics[UNSEEN_INPUTS].sum)
    ([[1.0], [nan]], 1.0)
    """
    flags = {name: x for name, x in outputs.items() if name.rpartition("/")[2] == UNSEEN}
    if not flags:
        return outputs, {}
    unseen, mask = functools.reduce(jnp.logical_or, flags.values()), example_mask(batch)
    counted = jnp.ones(unseen.shape, bool) if mask is None else mask
    unseen = unseen & counted
    kept = {name: _without(x, unseen) for name, x in outputs.items() if name not in flags}
    return kept, {UNSEEN_INPUTS: Mean(jnp.sum(unseen, dtype=jnp.float32), jnp.sum(counted, dtype=jnp.float32))}


def is_unseen_metric(name: str) -> bool:
    """Returns whether a metric is `UNSEEN_INPUTS`, or that of one run of several.

    >>> is_unseen_metric("unseen_inputs[3]"), is_unseen_metric("loss")
    (True, False)
    """
    return name.partition("[")[0] == UNSEEN_INPUTS


def _without(x: Array, unseen: Array) -> Array:
    if not jnp.issubdtype(x.dtype, jnp.floating) or x.shape[:1] != unseen.shape:
        return x
    return jnp.where(jnp.expand_dims(unseen, tuple(range(1, x.ndim))), jnp.nan, x)
