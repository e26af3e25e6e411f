"""Rows of the conformance table for objectives of segmentation, on maps made from the tiny models' outputs."""

import jax
import jax.numpy as jnp

from jaxkd import Objective, combine, losses, objectives, term
from jaxkd.objectives.discriminators import Discriminator
from tests import tiny

# A critic without an output bias: its loss does not depend on one, so the bias would never change.
CRITIC = Discriminator(
    lambda key, shape, outputs: jax.random.normal(key, (shape[-1], outputs)),
    lambda kernel, x: jnp.mean(jnp.tanh(x @ kernel), axis=(1, 2)),
)


def outputs_and_batch(student, teacher, batch):
    """Logits at two resolutions, labels of pixels with void ones, and an image without any label."""
    image = batch["image"]
    label = jnp.where(image[..., 1] > 1, 255, (image[..., 0] > 0).astype(jnp.int32))
    label = jnp.where((batch["label"] == 0)[:, None, None], 255, label)
    found = [{"pixels": x["map"][..., : tiny.CLASSES], "map": x["map"]} for x in (student, teacher)]
    return *found, {**batch, "label": label, "inside": image[..., 1] <= 1}


def on_maps(objective):
    """Gives an objective maps of logits, and labels of pixels."""

    def full(context, evaluate=lambda function, *x: function(*x)):
        student, teacher, batch = evaluate(outputs_and_batch, context.student, context.teacher, dict(context.batch))
        return context._replace(student=student, teacher=teacher, batch=batch)

    return Objective(
        lambda key, context: objective.init(key, full(context, jax.eval_shape)),
        lambda params, state, context, key: objective.apply(params, state, full(context), key),
    )


SKD = objectives.structured_segmentation(
    ("student/pixels", "student/map"),
    ("teacher/pixels", "teacher/map"),
    where="batch/inside",
    pixel_weight=2.0,
    discriminator=CRITIC,
    penalty=0.5,
)
REGIONS = objectives.inter_region("student/map", "teacher/map", logits_path="teacher/pixels", weight=3.0)
CHANNELS = term(losses.channel_kl, "student/pixels", "teacher/pixels", where="batch/inside", weight=3.0)

SEGMENTATION = {
    "structured_segmentation": (
        combine(skd=on_maps(SKD)),
        {"skd/pixel": 2.0, "skd/pair": 1.0, "skd/holistic": 0.1},
        True,
        {"skd/holistic/discriminator": 1.0},
    ),
    "inter_region": (combine(regions=on_maps(REGIONS)), {"regions": 3.0}),
    "channels_of_included_pixels": (
        combine(cwd=on_maps(objectives.with_resized(CHANNELS, {"teacher/pixels": "student/pixels"}))),
        {"cwd": 3.0},
    ),
}
"""For each: the objective, the weights of its terms, whether it has parameters, and what else its loss adds."""
