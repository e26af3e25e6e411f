"""Objectives on maps of one size: outputs, labels and masks are resized first."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import checks
from jaxkd._core.batches import lookup
from jaxkd.objectives._compose import replace
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars


def with_resized(objective: Objective, like: Mapping[str, str]) -> Objective:
    """Applies an objective to maps that are resized to the height and width of others.

    A loss of pixels compares maps of one size; networks of different strides, labels and masks have several. Values are
    interpolated bilinearly between the centers of pixels, with antialiasing where a map shrinks; integers and masks
    take the nearest pixel's value. Gradients flow through the interpolation.

    Args:
      objective: the objective to apply.
      like: path of the map whose size to take, by the path of the map to resize, such as ``{"teacher/logits":
        "student/logits", "batch/label": "student/logits"}``. Maps are ``[batch, height, width, ...]``.

    Returns:
      An `Objective` with the parameters, the state and the metrics of the given one.

    Raises:
      TypeError: `objective` is not an objective.
      ValueError: no path is given; or, from ``init``: a path does not exist, or is not that of a map.

    >>> from jaxkd import losses
    >>> from jaxkd.objectives import term
    >>> kl = term(losses.pixel_kl, "student/logits", "teacher/logits")
    >>> objective = with_resized(kl, {"student/logits": "teacher/logits"})
    >>> student, teacher = {"logits": jnp.zeros((1, 2, 2, 3))}, {"logits": jnp.zeros((1, 8, 8, 3))}
    >>> objective.apply({}, {}, Context(student, teacher, {}, 0), None).value
    Array(0., dtype=float32)
    """
    checks.contract("with_resized, objective", objective, Objective)
    if not like:
        raise ValueError('with_resized, like: expected paths such as {"teacher/logits": "student/logits"}, got none.')

    def resized(maps: Mapping[str, Any]) -> dict[str, Any]:
        for path, x in maps.items():
            if len(x.shape) < 3:
                raise ValueError(
                    f"with_resized, {path}: expected a map [batch, height, width, ...], got {checks.shape(x)}."
                )
        return {path: resize_map(maps[path], maps[other].shape[1:3]) for path, other in like.items()}

    return on_changed(objective, (*like, *like.values()), resized)


def on_changed(
    objective: Objective, paths: Iterable[str], change: Callable[[Mapping[str, Any]], Mapping[str, Any]]
) -> Objective:
    """Applies an objective to a context with some entries changed.

    Args:
      objective: the objective.
      paths: paths of the entries that the change reads.
      change: function of these entries by path; it returns the new ones by path, which may be new.
    """
    paths = tuple(dict.fromkeys(paths))

    def read(context: Context) -> dict[str, Any]:
        return {path: lookup(context, path) for path in paths}

    def init(key: Array, context: Context) -> ObjectiveVars:
        return objective.init(key, replace(context, jax.eval_shape(change, read(context))))

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        return objective.apply(params, state, replace(context, change(read(context))), key)

    return Objective(init, apply)


def resize_map(x: Array, size: tuple[int, ...]) -> Array:
    """Returns a map ``[batch, height, width, ...]`` of another height and width.

    >>> resize_map(jnp.array([[[0.0, 4.0]]])[..., None], (1, 4)).ravel()
    Array([0., 1., 3., 4.], dtype=float32)
    >>> resize_map(jnp.array([[[1, 255, 2, 3]]]), (1, 2)).ravel()
    Array([255,   3], dtype=int32)
    """
    if tuple(x.shape[1:3]) == tuple(size):
        return x
    if jnp.issubdtype(x.dtype, jnp.floating):
        wide = jnp.promote_types(x.dtype, jnp.float32)
        return jax.image.resize(x.astype(wide), (x.shape[0], *size, *x.shape[3:]), "linear").astype(x.dtype)
    for axis, length in enumerate(size, 1):
        x = jnp.take(x, ((2 * jnp.arange(length) + 1) * x.shape[axis]) // (2 * length), axis=axis)
    return x
