"""Objectives of segmentation: structure of pixels, and affinity of regions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import checks
from jaxkd.objectives._adversarial import wasserstein
from jaxkd.objectives._compose import combine, is_zero, term
from jaxkd.objectives._dense._resized import on_changed, resize_map, with_resized
from jaxkd.objectives.discriminators import Discriminator
from jaxkd.types import Array, Objective, Schedule


def structured_segmentation(
    student: tuple[str, str],
    teacher: tuple[str, str],
    *,
    condition: str | None = "batch/image",
    where: str | None = None,
    pixel_weight: float | Array | Schedule = 80.0,
    pair_weight: float | Array | Schedule = 1.0,
    holistic_weight: float | Array | Schedule = 0.1,
    temperature: float | Array | Schedule = 1.0,
    max_window: float | None = 0.5,
    constant_norm: bool = True,
    discriminator: Discriminator | None = None,
    penalty: float = 10.0,
) -> Objective:
    """Classes of pixels, affinity of positions, and a critic of whole maps.

    Also known as: SKD (structured knowledge distillation).

    ``80 KL(p_t ‖ p_s) + 1 PA(F_s, F_t) − 0.1 D(z_s, image)``: `jaxkd.losses.pixel_kl` of the logits,
    `jaxkd.losses.pair_affinity` of a feature, and `wasserstein`, whose critic receives the logits and the image. Liu et
    al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, and "Structured Knowledge
    Distillation for Dense Prediction", TPAMI 2020; the cross-entropy of the labels, of weight 1, is a term beside it.
    The authors' weight of 10 belongs to a divergence that their code sums over a batch of 8 images, which is 80 for the
    mean over images and pixels; here no value depends on the size of the batch. The paper's weight of the affinity is
    1, that of the authors' scripts 0.5. The default affinity is that of their code; the paper's is ``max_window=None,
    constant_norm=False``. The critic of their code does not receive the image: ``condition=None``.

    Every map may have a size of its own: the student's logits and the image are resized bilinearly to the size of the
    teacher's logits, and of two features the larger is pooled.

    Args:
      student: paths of the student's logits and feature, each ``[batch, height, width, ...]``.
      teacher: paths of the teacher's; the classes are the student's, the channels of the feature may differ.
      condition: path of the image, or None for a critic of logits alone.
      where: path of a mask of pixels, bool ``[batch, height, width]`` of any size, such as those that are not void. At
        another resolution, the nearest pixel decides. The critic receives logits of 0 elsewhere.
      pixel_weight: weight of the divergence. A term whose weight is the number 0 is left out.
      pair_weight: weight of the affinity.
      holistic_weight: weight of the critic's score.
      temperature: T of the divergence.
      max_window: as in `jaxkd.losses.pair_affinity`.
      constant_norm: as in `jaxkd.losses.pair_affinity`.
      discriminator: the critic; ``cnn(64, 128)`` by default.
      penalty: weight of the gradient penalty.

    Returns:
      An `Objective` with the terms ``pixel``, ``pair`` and ``holistic``, whose parameters are the critic.

    Raises:
      ValueError: every weight is 0; from ``init``: a path does not exist, or the maps do not fit.

    >>> import jaxkd
    >>> objective = structured_segmentation(("student/logits", "student/f"), ("teacher/logits", "teacher/f"))
    >>> maps = lambda size, channels: {"logits": jnp.zeros((1, size, size, 3)), "f": jnp.ones((1, 4, 4, channels))}
    >>> context = jaxkd.Context(maps(4, 2), maps(8, 5), {"image": jnp.zeros((1, 16, 16, 3))}, 0)
    >>> params, state = objective.init(jax.random.key(0), context)
    >>> sorted(name for name in objective.apply(params, state, context, None).metrics if "/" not in name)
    ['holistic', 'pair', 'pixel']
    """
    (logits, feature), (target, target_feature) = student, teacher
    masked = {} if where is None else {where: target}
    affinity = {"max_window": max_window, "constant_norm": constant_norm}
    parts: dict[str, Objective] = {}
    if not is_zero(pixel_weight):
        kl = term(losses.pixel_kl, logits, target, weight=pixel_weight, where=where, temperature=temperature)
        parts["pixel"] = with_resized(kl, {logits: target, **masked})
    if not is_zero(pair_weight):
        pair = term(losses.pair_affinity, feature, target_feature, weight=pair_weight, where=where, **affinity)
        parts["pair"] = pair if where is None else with_resized(pair, {where: feature})
    if not is_zero(holistic_weight):
        critic = wasserstein(
            logits, target, condition=condition, discriminator=discriminator, penalty=penalty, weight=holistic_weight
        )
        inside = critic if where is None else _zero_elsewhere(critic, (logits, target), where)
        parts["holistic"] = with_resized(inside, {logits: target, **masked})
    if not parts:
        raise ValueError("structured_segmentation: expected a weight other than 0, got 0 for every term.")
    return combine(**parts)


def inter_region(
    student: str | Sequence[str],
    teacher: str | Sequence[str],
    *,
    label_path: str | None = "batch/label",
    logits_path: str = "teacher/logits",
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Affinity between the moments of regions, at one level or several.

    Also known as: IntRA-KD (inter-region affinity knowledge distillation).

    `jaxkd.losses.region_affinity`, its mean over the levels. Hou et al., "Inter-Region Affinity Distillation for Road
    Marking Segmentation", CVPR 2020, section 3. The regions of an image are the classes of its labels, which the paper
    widens by smoothing; a pixel whose label is no class, such as 255 for void, is in none. An image without any label
    has the regions of the classes that the teacher predicts, so that images without labels can be in the batch. Each
    map has the regions at its own size: the weight of a position is the share of its window that the region covers.
    The authors have not published the code of their training.

    Args:
      student: path of the student's map, or of those of several levels.
      teacher: path of the teacher's map of each level; channels, height and width may differ.
      label_path: path of integer labels ``[batch, height, width]`` of any size, or None for predictions alone.
      logits_path: path of the logits that predict, ``[batch, height, width, classes]``; their classes are the regions.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` without parameters.

    Raises:
      ValueError: the levels of student and teacher are not as many; or, from ``init``: a path does not exist, or the
        maps do not fit.

    >>> import jaxkd
    >>> objective = inter_region("student/f", "teacher/f")
    >>> student = {"f": jnp.ones((1, 2, 2, 3))}
    >>> teacher = {"f": jnp.ones((1, 4, 4, 5)), "logits": jnp.zeros((1, 8, 8, 2))}
    >>> label = jnp.zeros((1, 8, 8), jnp.int32).at[:, 4:].set(1)
    >>> objective.apply({}, {}, jaxkd.Context(student, teacher, {"label": label}, 0), None).value
    Array(0., dtype=float32)
    """
    students, teachers = ((x,) if isinstance(x, str) else tuple(x) for x in (student, teacher))
    if len(students) != len(teachers) or not students:
        raise ValueError(
            f"inter_region: expected as many levels of the teacher as of the student, at least one, got "
            f"{len(teachers)} and {len(students)}."
        )
    loss = term(_levels_affinity, students, teachers, "batch/regions", weight=weight)
    paths = (logits_path,) if label_path is None else (logits_path, label_path)
    return on_changed(loss, paths, lambda found: {"batch/regions": _regions(*(found[path] for path in paths))})


def _levels_affinity(students: Any, teachers: Any, regions: Array, *, where: Array | None = None) -> Array:
    """Returns the mean over the levels of the affinities' differences ``[batch]``."""
    found = [losses.region_affinity(s, t, regions, where=where) for s, t in zip(students, teachers, strict=True)]
    return jnp.mean(jnp.stack(found), axis=0)


def _regions(logits: Array, label: Array | None = None) -> Array:
    """Returns masks of the labels' classes; without labels, of the predicted ones."""
    if logits.ndim != 4 or (label is not None and (label.ndim != 3 or not jnp.issubdtype(label.dtype, jnp.integer))):
        raise ValueError(
            "inter_region: expected logits [batch, height, width, classes] and integer labels [batch, height, width], "
            f"got {checks.shape(logits)} and {checks.shape(label)}."
        )
    logits = jax.lax.stop_gradient(logits)
    if label is not None:
        logits = resize_map(logits, label.shape[1:])
    predicted = jax.nn.one_hot(jnp.argmax(logits, axis=-1), logits.shape[-1], dtype=bool)
    if label is None:
        return predicted
    labeled = jax.nn.one_hot(label, logits.shape[-1], dtype=bool)
    return jnp.where(jnp.any(labeled, axis=(1, 2, 3), keepdims=True), labeled, predicted)


def _zero_elsewhere(objective: Objective, maps: Sequence[str], where: str) -> Objective:
    """Applies an objective to maps that are 0 outside of a mask of their size."""
    return on_changed(
        objective, (*maps, where), lambda found: {x: jnp.where(found[where][..., None], found[x], 0) for x in maps}
    )
