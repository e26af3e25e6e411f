"""Rows of the conformance table for objectives of detectors, on outputs and levels made from the tiny models' maps."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import Objective, combine, dense, losses, objectives

ANCHORS = dense.anchors((4, 4), [2], [2], [1.0])  # of images of 4 by 4 pixels


def squares(x):
    return jnp.concatenate([x, x**2], axis=-1)


def outputs_and_batch(student, teacher, batch):
    count = len(batch["label"])
    pooled = student["map"].reshape(count, 2, 2, 2, 2, 4).mean(axis=(2, 4))
    own = {
        "level0": squares(student["map"]),
        "level1": squares(pooled),
        "logits": 3 * pooled.reshape(count, 4, 4),
        "offsets": jnp.sin(3 * pooled).reshape(count, 4, 4),
    }
    rows = teacher["map"].reshape(count, 4, 5)
    other = {"level0": squares(teacher["map"]), "logits": 3 * rows[..., :4], "offsets": rows[..., 1:]}
    label = batch["label"].astype(jnp.float32)[:, None]
    x, y = jnp.concatenate([0 * label, 2 - label / 2], axis=1), jnp.concatenate([label / 2, 0 * label], axis=1)
    boxes = jnp.stack([x, y, x + 1.5, y + 1.8], axis=-1)
    exists = jnp.concatenate([batch["label"][:, None] > 0, batch["label"][:, None] != 1], axis=1)
    return own, other, {**batch, "boxes": jnp.where(exists[..., None], boxes, 0), "box_mask": exists}


def of_detectors(objective):
    """Gives an objective the outputs of detectors, their pyramids, and boxes."""

    def full(context, evaluate=lambda function, *x: function(*x)):
        student, teacher, batch = evaluate(outputs_and_batch, context.student, context.teacher, dict(context.batch))
        return context._replace(student=student, teacher=teacher, batch=batch)

    return combine(
        detector=Objective(
            lambda key, context: objective.init(key, full(context, jax.eval_shape)),
            lambda params, state, context, key: objective.apply(params, state, full(context), key),
        )
    )


def levels(make, level_map, *args, **options):
    return of_detectors(objectives.pyramid(functools.partial(make, *args, **options), level_map))


BOTH = {0: 0, 1: 0}
LARGE = {"alpha": 0.1, "beta": 0.05, "gamma": 0.1, "relation": 0.05}
DETECTION: dict[str, tuple[Any, ...]] = {
    "detector_kd": (
        of_detectors(objectives.detector_kd(ANCHORS, level_map={0: 0})),
        {"detector/classes": 0.5, "detector/boxes": 0.5, "detector/hints/level0": 0.5},
        True,
    ),
    "soft_detections": (
        of_detectors(objectives.soft_detections(ANCHORS, box_weight=0.5)),
        {"detector/classes": 1.0, "detector/boxes": 0.5},
    ),
    "focal_and_global": (
        levels(objectives.focal_and_global, BOTH, **LARGE, weight=0.5),
        {"detector/level0": 0.5, "detector/level1": 0.5},
        True,
    ),
    "fine_grained_imitation": (
        levels(objectives.fine_grained_imitation, {0: 0}, scales=(1.0,), ratios=(1.0,), weight=0.3),
        {"detector/level0": 0.3},
        True,
    ),
    "pyramid_of_pearson_features": (
        levels(objectives.aligned, BOTH, losses.pearson_features, weight=6.0),
        {"detector/level0": 6.0, "detector/level1": 6.0},
        True,
    ),
    "pyramid_of_masked_generation": (
        levels(objectives.masked_generation, {1: 0}, mask_ratio=0.65, weight=0.02),
        {"detector/level1": 0.02},
        True,
    ),
}
