"""Objectives of poses: heatmaps of images and clips, changes between frames.

Heatmaps are ``[batch, height, width, joints]``, or those of clips ``[batch, frames, height, width, joints]``. Those of
the teacher may have another resolution: they are resized to the student's, linearly.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import checks
from jaxkd._core.batches import lookup
from jaxkd.objectives._adversarial import adversarial
from jaxkd.objectives._compose import combine, replace, term
from jaxkd.objectives._features._hint import hint
from jaxkd.objectives.discriminators import Discriminator
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars, Schedule


def pose_heatmaps(
    student: str,
    teacher: str,
    *,
    joint_path: str | None = None,
    where: str | None = None,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Mean squared difference of heatmaps, of images or of the frames of clips.

    `jaxkd.losses.heatmap_mse` over the positions and joints, for clips also over the frames. With heatmaps of the true
    points from `jaxkd.dense.draw_heatmaps` as an entry of the batch, and their visible joints, this is the usual
    supervised objective; with the teacher's, it is fast pose distillation (Zhang, Zhu & Ye, CVPR 2019), of each frame.

    Args:
      student: path of the student's heatmaps.
      teacher: path of the teacher's heatmaps, or of true ones, such as ``"batch/heatmaps"``.
      joint_path: path of a mask of the joints to include, ``[batch, joints]`` or ``[batch, frames, joints]``; all of
        them by default.
      where: path of a mask over examples, such as those with labels, in place of the batch's own ``mask``.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` without parameters or state. An example without a joint to include has the value 0.

    Raises:
      ValueError: from ``init``: a path does not exist, or the shapes do not fit.

    >>> objective = pose_heatmaps("student/heatmaps", "batch/heatmaps", joint_path="batch/point_mask")
    >>> batch = {"heatmaps": jnp.zeros((1, 2, 2, 2)), "point_mask": jnp.array([[True, False]])}
    >>> found = jnp.full((1, 2, 2, 2), 3.0)
    >>> objective.apply({}, {}, Context({"heatmaps": found}, {}, batch, 0), None).value
    Array(9., dtype=float32)
    """
    return _term(_heatmap_mse, student, teacher, joint_path, where, weight)


def integral_pose(
    student: str,
    teacher: str,
    *,
    student_feature: str,
    teacher_feature: str,
    joint_path: str | None = None,
    heatmap_weight: float | Array | Schedule = 1.0,
    feature_weight: float | Array | Schedule = 1.0,
    structure_weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Distance of heatmaps, of a feature, and of the relations between joints.

    Also known as: integral knowledge distillation of poses.

    The sum of three weighted terms, which the metrics name ``heatmap``, ``feature`` and ``structure``: `pose_heatmaps`,
    `hint` and `jaxkd.losses.joint_structure`. Xu et al., "Integral Knowledge Distillation for Multi-Person Pose
    Estimation", IEEE Signal Processing Letters 2020. The abstract names these terms, and neither their weights nor the
    form of the structure, so that both are readings of it.

    Args:
      student: path of the student's heatmaps.
      teacher: path of the teacher's heatmaps.
      student_feature: path of the student's feature, whose size and channels may differ.
      teacher_feature: path of the teacher's feature.
      joint_path: path of a mask of the joints to include, for heatmaps and structure; all of them by default, since
        the teacher has a heatmap of every joint, visible or not.
      heatmap_weight: weight of the heatmaps' term, a number or a schedule.
      feature_weight: weight of the feature's term, a number or a schedule.
      structure_weight: weight of the structure's term, a number or a schedule.

    Returns:
      An `Objective` whose parameters are the regressor of `hint`, where the features differ in shape.

    Raises:
      ValueError: from ``init``: a path does not exist, or the shapes do not fit.

    >>> objective = integral_pose(
    ...     "student/heatmaps", "teacher/heatmaps", student_feature="student/f", teacher_feature="teacher/f"
    ... )
    >>> outputs = lambda width: {"heatmaps": jnp.ones((1, 4, 4, 3)), "f": jnp.ones((1, 4, 4, width))}
    >>> params = objective.init(jax.random.key(0), Context(outputs(2), outputs(5), {}, 0)).params
    >>> jax.tree.map(jnp.shape, params["feature"])
    {'bias': (5,), 'kernel': (1, 1, 2, 5)}
    """
    return combine(
        heatmap=pose_heatmaps(student, teacher, joint_path=joint_path, weight=heatmap_weight),
        feature=hint(student_feature, teacher_feature, weight=feature_weight),
        structure=_term(_joint_structure, student, teacher, joint_path, None, structure_weight),
    )


def temporal_adversarial(
    student: str,
    teacher: str,
    *,
    joint_path: str | None = None,
    discriminator: Discriminator | None = None,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Non-saturating GAN loss between changes of heatmaps from frame to frame.

    Also known as: the temporal term of dynamic kernel distillation.

    `adversarial` on ``h_t − h_{t−1}``, t = 2 … T: a discriminator tells the changes of the true heatmaps, or of a
    teacher's, from those of the student. Nie et al., "Dynamic Kernel Distillation for Efficient Pose Estimation in
    Videos", ICCV 2019. The abstract states the input of the discriminator. Its network and the game are a reading: one
    network reads all changes of a clip as the channels of one map, so that it also sees the order of the frames.

    Args:
      student: path of the student's heatmaps ``[batch, frames, height, width, joints]``.
      teacher: path of true heatmaps, such as ``"batch/heatmaps"``, or of the teacher's.
      joint_path: path of a mask of the joints ``[batch, frames, joints]``. The change of a joint that either of both
        frames lacks is 0 on both sides, which no discriminator can tell apart.
      discriminator: the network; ``cnn(64, 128)`` by default.
      weight: weight of the student's loss, a number or a schedule. The discriminator's loss has the weight 1.

    Returns:
      An `Objective` whose parameters are the discriminator.

    Raises:
      ValueError: from ``init``: a path does not exist, the shapes do not fit, or a clip has a single frame.

    >>> objective = temporal_adversarial("student/heatmaps", "batch/heatmaps")
    >>> heatmaps = {"heatmaps": jnp.ones((2, 3, 8, 8, 5))}
    >>> params = objective.init(jax.random.key(0), Context(heatmaps, {}, heatmaps, 0)).params
    >>> jnp.shape(params["discriminator"][0]["kernel"])  # two changes of five joints
    (4, 4, 10, 64)
    """
    game = adversarial("student/heatmap_changes", "teacher/heatmap_changes", discriminator=discriminator, weight=weight)

    def changed(context: Context) -> Context:
        mine, theirs = lookup(context, student), lookup(context, teacher)
        if len(mine.shape) != 5 or mine.shape[1] < 2:
            raise ValueError(
                f"temporal_adversarial, {student}: expected heatmaps of clips of two frames or more "
                f"[batch, frames, height, width, joints], got {checks.shape(mine)}."
            )
        theirs = _resized(theirs, mine)
        if theirs.shape != mine.shape:
            raise ValueError(
                f"temporal_adversarial, {teacher}: expected the joints and frames of {student}, "
                f"{checks.shape(mine)}, got {checks.shape(theirs)}."
            )
        visible = _included(
            mine, None if joint_path is None else lookup(context, joint_path), context.batch.get("mask")
        )
        both = (visible[:, 1:] & visible[:, :-1])[:, :, None, None]

        def change(x: Array) -> Array:
            x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
            return _merged(jnp.where(both, x[:, 1:] - x[:, :-1], 0))

        changes = {"student/heatmap_changes": change(mine), "teacher/heatmap_changes": change(theirs)}
        return replace(context, changes)

    def init(key: Array, context: Context) -> ObjectiveVars:
        return game.init(key, jax.eval_shape(changed, context._replace(axis_name=None)))

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        return game.apply(params, state, changed(context), key)

    return Objective(init, apply)


def _term(
    loss: Any, student: str, teacher: str, joint_path: str | None, where: str | None, weight: float | Array | Schedule
) -> Objective:
    paths = (student, teacher) if joint_path is None else (student, teacher, joint_path)
    return term(loss, *paths, where=where, weight=weight)


def _heatmap_mse(student: Array, teacher: Array, joints: Array | None = None, *, where: Array | None = None) -> Array:
    """Returns the distance of heatmaps, of a clip over the joints of all frames."""
    visible, teacher = _included(student, joints, where), _resized(teacher, student)
    if student.ndim == 5:
        student, teacher, visible = _merged(student), _merged(teacher), visible.reshape(len(visible), -1)
    return losses.heatmap_mse(student, teacher, joint_where=visible)


def _joint_structure(
    student: Array, teacher: Array, joints: Array | None = None, *, where: Array | None = None
) -> Array:
    """Returns the distance of the joints' relations, of a clip the mean over frames.

    Frames without a joint to include are left out.
    """
    visible, teacher = _included(student, joints, where), _resized(teacher, student)
    if student.ndim == 4:
        return losses.joint_structure(student, teacher, joint_where=visible)
    rows = [x.reshape(-1, *x.shape[2:]) for x in (student, teacher, visible)]
    values = losses.joint_structure(rows[0], rows[1], joint_where=rows[2]).reshape(student.shape[:2])
    return jnp.sum(values, axis=1) / jnp.maximum(jnp.sum(jnp.any(visible, axis=2), axis=1), 1)


def _included(heatmaps: Array, joints: Array | None, where: Array | None) -> Array:
    """Returns the joints to include, of images or of the frames of clips."""
    if len(heatmaps.shape) not in (4, 5):
        raise ValueError(
            "heatmaps: expected [batch, height, width, joints], or of clips [batch, frames, height, width, joints], "
            f"got {checks.shape(heatmaps)}."
        )
    shape = (*heatmaps.shape[:-3], heatmaps.shape[-1])
    if joints is None:
        joints = jnp.ones(shape, bool)
    elif joints.shape != shape or joints.dtype != bool:
        raise ValueError(
            f"joint_path: expected bool{list(shape)}, the joints of the student's heatmaps {list(heatmaps.shape)}, got "
            f"{checks.shape(joints)}."
        )
    return joints if where is None else joints & jnp.expand_dims(where, tuple(range(where.ndim, len(shape))))


def _resized(teacher: Array, student: Array) -> Array:
    """Returns the teacher's heatmaps in the size of the student's."""
    if teacher.ndim != student.ndim or teacher.shape[-3:-1] == student.shape[-3:-1]:
        return teacher
    shape = (*teacher.shape[:-3], *student.shape[-3:-1], teacher.shape[-1])
    return jax.image.resize(teacher.astype(jnp.promote_types(teacher.dtype, jnp.float32)), shape, "linear")


def _merged(x: Array) -> Array:
    """Returns ``[batch, height, width, frames · joints]`` of clips."""
    batch, frames, height, width, joints = x.shape
    return jnp.transpose(x, (0, 2, 3, 1, 4)).reshape(batch, height, width, frames * joints)
