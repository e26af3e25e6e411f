"""Features where the teacher attends, and their relation to the whole image."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.objectives._checks import not_negative, positive
from jaxkd.objectives._compose import replace, term
from jaxkd.objectives._dense._boxes import in_cells
from jaxkd.objectives._features._alignment import align, align_init
from jaxkd.objectives._projection import with_projection
from jaxkd.objectives._tokens import mask_tokens
from jaxkd.objectives.layers import dense, dense_init
from jaxkd.types import Array, Context, Objective, ObjectiveVars, Schedule

_NORM_EPSILON = 1e-5


def focal_and_global(
    student: str,
    teacher: str,
    *,
    boxes_path: str = "batch/boxes",
    box_mask_path: str = "batch/box_mask",
    image_path: str = "batch/image",
    temperature: float | Array = 0.5,
    alpha: float | Array = 1e-3,
    beta: float | Array = 5e-4,
    gamma: float | Array = 1e-3,
    relation: float | Array = 5e-6,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Attention-weighted difference of maps, and of their learned global relations.

    Also known as: FGD (focal and global distillation).

    ``L_focal + λ Σ (R_s(F_s) − R_t(F_t))²``. Yang et al., "Focal and Global Knowledge Distillation for Detectors", CVPR
    2022, equations 3 to 13. The focal term is `jaxkd.losses.focal_global`. The relation R is a global context block
    (Cao et al., GCNet) of each network, and both blocks are learned with the student,

        R(F) = F + W₂ relu(norm(W₁ c)),  c = Σ_i softmax_i(w·F_i) F_i over the positions i,

    with 1×1 convolutions W₁ to half of the channels and W₂ back, and a LayerNorm of learned scale and bias. As in the
    authors' code W₂ begins as 0, so that R is the identity at first, and a 1×1 convolution aligns the student's
    channels only where they differ. Their w has a bias, which cancels in the softmax; it is left out here. The paper's
    α, β, γ and λ are the defaults for one-stage detectors with anchors; 5e-5, 2.5e-5, 5e-5 and 5e-7 for two-stage ones;
    1.6e-3, 8e-4, 8e-4 and 8e-6 for those without anchors. Each level of a pyramid has parameters of its own (see
    `pyramid`).

    Args:
      student: path of the student's map ``[batch, height, width, channels]``.
      teacher: path of the teacher's map; the larger map is pooled to the smaller.
      boxes_path: path of the objects' boxes ``[batch, n, 4]``, in pixels of the image.
      box_mask_path: path of their mask ``[batch, n]``, True for those that exist.
      image_path: path of the images, whose size over the map's is the size of its cells.
      temperature: T > 0 of the attentions.
      alpha: α, weight of the positions within boxes.
      beta: β, weight of the other positions.
      gamma: γ, weight of the difference of attentions.
      relation: λ, weight of the global relation.
      weight: weight of the whole, a number or an optax schedule of the step.

    Returns:
      An `Objective` with the parameters ``student_context``, ``teacher_context`` and, where the channels differ,
      ``align``. An image without objects has its background, its attentions and its relation.

    Raises:
      ValueError: a number is out of its range; or, from ``init``: a path does not exist, or shapes do not fit.

    >>> objective = focal_and_global("student/f", "teacher/f")
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> batch = {"image": jnp.zeros((2, 32, 32, 3)), "boxes": jnp.zeros((2, 5, 4)), "box_mask": jnp.ones((2, 5), bool)}
    >>> params = objective.init(jax.random.key(0), Context(feature(2, 8, 8, 6), feature(2, 8, 8, 4), batch, 0)).params
    >>> params["align"]["kernel"].shape, params["teacher_context"]["first"]["kernel"].shape
    ((6, 4), (4, 2))
    """
    positive("focal_and_global", temperature=temperature)
    not_negative("focal_and_global", alpha=alpha, beta=beta, gamma=gamma, relation=relation)
    paths = "batch/focal_boxes", box_mask_path, "student/focal_relation", "teacher/focal_relation"
    coefficients: dict[str, Any] = {
        "temperature": temperature,
        "alpha": alpha,
        "beta": beta,
        "gamma": gamma,
        "relation": relation,
    }
    loss = term(_focal_and_global, student, teacher, *paths, weight=weight, **coefficients)

    def init(key: Array, context: Context) -> ObjectiveVars:
        first, own, other = jax.random.split(key, 3)
        params, channels = align_init("focal_and_global", first, context, student, teacher)
        blocks = {f"{side}_context": _block_init(k, channels) for side, k in (("student", own), ("teacher", other))}
        return ObjectiveVars({**params, **blocks})

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        del key
        feature, target = align("focal_and_global", params, context, student, teacher)
        values = {
            student: feature,
            teacher: target,
            "batch/focal_boxes": in_cells(context, boxes_path, image_path, *feature.shape[1:3]),
            "student/focal_relation": mask_tokens(context, _block(params["student_context"], feature)),
            "teacher/focal_relation": mask_tokens(context, _block(params["teacher_context"], target)),
        }
        return replace(context, values), state

    return with_projection(init, change, loss)


def _focal_and_global(
    student: Array,
    teacher: Array,
    boxes: Array,
    box_mask: Array,
    related: Array,
    target: Array,
    *,
    relation: float | Array,
    temperature: float | Array,
    alpha: float | Array,
    beta: float | Array,
    gamma: float | Array,
    where: Array | None = None,
) -> Array:
    options = {"temperature": temperature, "alpha": alpha, "beta": beta, "gamma": gamma}
    focal = losses.focal_global(student, teacher, boxes, **options, box_where=box_mask, where=where)
    return focal + relation * math.prod(related.shape[1:]) * losses.hint_mse(related, target, where=where)


def _block_init(key: Array, channels: int) -> dict[str, Any]:
    """Initializes a global context block, whose last layer is 0."""
    attention, first = jax.random.split(key)
    hidden = max(channels // 2, 1)
    return {
        "attention": dense_init(attention, channels, 1, bias=False),
        "first": dense_init(first, channels, hidden),
        "norm": {"scale": jnp.ones(hidden, jnp.float32), "bias": jnp.zeros(hidden, jnp.float32)},
        "second": {
            "kernel": jnp.zeros((hidden, channels), jnp.float32),
            "bias": jnp.zeros(channels, jnp.float32),
        },
    }


def _block(params: Any, x: Array) -> Array:
    """Applies a global context block to a map, in float32 or better."""
    attention = jax.nn.softmax(dense(params["attention"], x), axis=(1, 2))
    hidden = dense(params["first"], jnp.sum(attention * x, axis=(1, 2)))
    centered = hidden - jnp.mean(hidden, axis=-1, keepdims=True)
    variance = jnp.mean(centered**2, axis=-1, keepdims=True)
    scale, bias = params["norm"]["scale"][None], params["norm"]["bias"][None]
    hidden = jax.nn.relu(centered * jax.lax.rsqrt(variance + _NORM_EPSILON) * scale + bias)
    return x + dense(params["second"], hidden)[:, None, None, :]
