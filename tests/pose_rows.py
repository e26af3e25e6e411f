"""Rows of the conformance table for objectives of poses, on heatmaps made from the tiny models' outputs."""

import jax
import jax.numpy as jnp

from jaxkd import Objective, combine, objectives
from jaxkd.objectives.discriminators import Discriminator

# A discriminator without an output bias, as for other games of the table.
GAME = Discriminator(
    lambda key, shape, outputs: jax.random.normal(key, (shape[-1], outputs)),
    lambda kernel, x: jnp.mean(jnp.tanh(x @ kernel), axis=(1, 2)),
)


def outputs_and_batch(student, teacher, batch):
    """Heatmaps of images and of clips of two frames, at two resolutions, and an image without a visible joint."""
    visible = (batch["label"] % 2 == 0)[:, None] & jnp.array([[True, False]]) | (batch["label"] == 1)[:, None]

    def heatmaps(x):
        one = x["map"][..., :2]
        return {"map": x["map"], "heatmaps": one, "clips": jnp.stack([one, one[:, ::-1]], axis=1)}

    entries = {"visible": visible, "visible_in_clips": jnp.stack([visible, visible], axis=1)}
    return heatmaps(student), heatmaps(teacher), {**batch, **entries}


def on_heatmaps(objective):
    """Gives an objective heatmaps and the joints that are visible."""

    def full(context, evaluate=lambda function, *x: function(*x)):
        student, teacher, batch = evaluate(outputs_and_batch, context.student, context.teacher, dict(context.batch))
        return context._replace(student=student, teacher=teacher, batch=batch)

    return Objective(
        lambda key, context: objective.init(key, full(context, jax.eval_shape)),
        lambda params, state, context, key: objective.apply(params, state, full(context), key),
    )


INTEGRAL = objectives.integral_pose(
    "student/heatmaps",
    "teacher/heatmaps",
    student_feature="student/map",
    teacher_feature="teacher/map",
    joint_path="batch/visible",
    structure_weight=2.0,
)
TEMPORAL = objectives.temporal_adversarial(
    "student/clips", "teacher/clips", joint_path="batch/visible_in_clips", discriminator=GAME, weight=0.1
)
CLIPS = objectives.pose_heatmaps("student/clips", "teacher/clips", joint_path="batch/visible_in_clips", weight=3.0)

POSES = {
    "integral_pose": (
        combine(pose=on_heatmaps(INTEGRAL)),
        {"pose/heatmap": 1.0, "pose/feature": 1.0, "pose/structure": 2.0},
        True,
    ),
    "temporal_adversarial": (
        combine(temporal=on_heatmaps(TEMPORAL)),
        {"temporal": 0.1},
        True,
        {"temporal/discriminator": 1.0},
    ),
    "pose_heatmaps_of_clips": (combine(kd=on_heatmaps(CLIPS)), {"kd": 3.0}),
}
"""For each: the objective, the weights of its terms, whether it has parameters, and what else its loss adds."""
