"""Number of examples and mask of a batch, and entries of a step's context by path."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from jaxkd._core import checks
from jaxkd._core.checks import describe, shape
from jaxkd.types import Array, Context

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
