"""Knowledge review: the student's stages, fused from deep to shallow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core.batches import lookup
from jaxkd.objectives import layers
from jaxkd.objectives._checks import sizes
from jaxkd.objectives._compose import replace, term
from jaxkd.objectives._projection import with_projection
from jaxkd.objectives._tokens import feature_mask, mask_feature, mask_tokens
from jaxkd.types import Array, Context, Objective, ObjectiveVars, Schedule


def review(
    students: Sequence[str],
    teachers: Sequence[str],
    *,
    hidden_size: int | None = None,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Hierarchical context losses between fused student and teacher stages.

    Also known as: ReviewKD (knowledge review).

    Chen et al., "Distilling Knowledge via Knowledge Review", CVPR 2021, section 3, with its attention-based fusion and
    hierarchical context loss. From the deepest stage to the shallowest:

    - a 1×1 convolution and a BatchNorm map the student's feature to the common width, x;
    - the fused feature of the deeper stage, y, is resized to x (nearest neighbor); a 1×1 convolution of both and a
      sigmoid give two attention maps, and ``x ← a₁·x + a₂·y``. The deepest stage has no y;
    - x is resized to the teacher's size (nearest neighbor), and is the next stage's y;
    - a 3×3 convolution and a BatchNorm map x to the teacher's channels, for the comparison.

    As in the authors' code, convolutions before a BatchNorm have no bias and the width is that of the student's deepest
    stage, at most 512; their weight also rises linearly over the first 20 epochs. In evaluation BatchNorm uses running
    statistics.

    Args:
      students: paths of the student's features from shallow to deep, maps ``[batch, height, width, channels]`` or
        vectors ``[batch, channels]``, which are treated as maps of one position.
      teachers: paths of the teacher's features, one for each of the student's.
      hidden_size: common width of the fused features.
      weight: weight of the sum over the stages, a number or a schedule.

    Returns:
      An `Objective` with the parameters ``{"project", "attention", "output"}`` for each stage ``"stage0"``, ..., and
      the running statistics of ``project`` and ``output`` as its state.

    Raises:
      ValueError: there are no stages, or not as many students as teachers; or, from ``init``: a path does not exist, or
        a feature is neither a map nor a vector.

    >>> objective = review(("student/a", "student/b"), ("teacher/a", "teacher/b"))
    >>> shapes = lambda **shapes: {name: jax.ShapeDtypeStruct(s, jnp.float32) for name, s in shapes.items()}
    >>> context = Context(shapes(a=(2, 8, 8, 4), b=(2, 4, 4, 6)), shapes(a=(2, 8, 8, 5), b=(2, 4, 4, 7)), {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> jax.tree.map(jnp.shape, params["stage0"]["attention"]), params["stage1"]["output"]["kernel"].shape
    ({'bias': (2,), 'kernel': (12, 2)}, (3, 3, 6, 7))
    """
    students, teachers = tuple(students), tuple(teachers)
    if not students or len(students) != len(teachers):
        raise ValueError(
            "review: expected as many paths of students as of teachers, at least one, from shallow to deep, got "
            f"{len(students)} and {len(teachers)}."
        )
    if hidden_size is not None:
        sizes("review", hidden_size=hidden_size)
    stages = range(len(students))
    # New paths rather than the given ones, since a feature may be given twice.
    fused, targets = (tuple(f"{root}/review{i}" for i in stages) for root in ("student", "teacher"))
    loss = term(_contexts, fused, targets, weight=weight)

    def init(key: Array, context: Context) -> ObjectiveVars:
        channels = [lookup(context, path).shape[-1] for path in students]
        width = min(512, channels[-1]) if hidden_size is None else hidden_size
        params, state = {}, {}
        for i, stage_key in zip(stages, jax.random.split(key, len(students)), strict=True):
            into, attention, out = jax.random.split(stage_key, 3)
            outputs = lookup(context, teachers[i]).shape[-1]
            project, norm = layers.connector_init(into, channels[i], width), layers.batch_norm_init(outputs)
            output = {**layers.conv_init(out, 3, width, outputs, bias=False), "norm": norm.params}
            params[f"stage{i}"] = {"project": project.params, "output": output}
            if i < stages[-1]:
                params[f"stage{i}"]["attention"] = layers.dense_init(attention, 2 * width, 2)
            state[f"stage{i}"] = {"project": project.state, "output": norm.state}
        return ObjectiveVars(params, state)

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        values: dict[str, Array] = {}
        new: dict[str, Any] = {}
        deeper, train = None, key is not None
        for i in reversed(stages):
            own, old = params[f"stage{i}"], state[f"stage{i}"]
            x, target = (mask_feature(context, _map(lookup(context, paths[i]))) for paths in (students, teachers))
            x, project = layers.connector(own["project"], old["project"], x, context, train=train)
            if deeper is not None:
                deeper = _nearest(deeper, x.shape[1:3])
                attention = jax.nn.sigmoid(layers.dense(own["attention"], jnp.concatenate([x, deeper], axis=-1)))
                x = x * attention[..., :1] + deeper * attention[..., 1:]
            deeper = x = mask_tokens(context, _nearest(mask_tokens(context, x), target.shape[1:3]))
            norm, y = own["output"]["norm"], layers.conv(own["output"], x)
            mask = feature_mask(context, y.shape)
            y, output = layers.batch_norm(norm, old["output"], y, mask=mask, axis_name=context.axis_name, train=train)
            values |= {fused[i]: mask_tokens(context, y), targets[i]: target}
            new[f"stage{i}"] = {"project": project, "output": output}
        return replace(context, values), new

    return with_projection(init, change, loss)


def _contexts(students: Sequence[Array], teachers: Sequence[Array], *, where: Array | None = None) -> Array:
    if where is not None:
        where = jnp.any(where, axis=tuple(range(1, where.ndim)))  # masked positions are 0 in both maps
    pairs = zip(students, teachers, strict=True)
    return sum((losses.hierarchical_context(s, t, where=where) for s, t in pairs), start=jnp.zeros(()))


def _map(feature: Array) -> Array:
    feature = feature[:, None, None, :] if feature.ndim == 2 else feature
    layers.maps("review", [feature])
    return feature


def _nearest(x: Array, size: Sequence[int]) -> Array:
    """Resizes a map by nearest neighbor: position i reads ⌊i·old/new⌋, as in PyTorch."""
    for axis, new in zip((1, 2), size, strict=True):
        old = x.shape[axis]
        if new % old == 0:  # a repeat is a broadcast, cheaper than a gather
            x = x if new == old else jnp.repeat(x, new // old, axis=axis)
        else:
            x = jnp.take(x, jnp.array([i * old // new for i in range(new)]), axis=axis)
    return x
