"""Masked generation: parts of the student's feature are hidden, and the teacher's is to be generated from the rest."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.objectives.compose import Schedule, counted, lookup, replace, term
from jaxkd.objectives.draws import example_keys
from jaxkd.objectives.layers import conv, conv_init, dense, dense_init, maps, match_size
from jaxkd.objectives.mapped import mapped
from jaxkd.types import Array, Context, LossVars, Objective


def masked_generation(
    student: str, teacher: str, *, mask_ratio: float = 0.15, weight: float | Array | Schedule = 1.0
) -> Objective:
    """Masked generative distillation: ``‖G(M·a(F_s)) − F_t‖²``, M random positions, G and a learned.

    Yang et al., "Masked Generative Distillation", ECCV 2022, section 3. The alignment a is a 1×1 convolution,
    there only where the channels differ; M hides each position with probability `mask_ratio`, for every example anew;
    the generator G is two 3×3 convolutions with a ReLU between. The value is the sum over the feature, and the weight
    accordingly small. The paper's settings, ratio and weight: 0.15 and 7e-5 for classification, 0.65 and 2e-5 for
    one-stage detectors, 0.45 and 5e-7 for two-stage ones, 0.75 and 2e-5 for segmentation. For classification the
    authors' code hides channels instead of positions. It requires maps of one size; here the larger is pooled.

    Args:
      student: path of the student's map ``[batch, height, width, channels]``.
      teacher: path of the teacher's map.
      mask_ratio: the share of positions that are hidden, 0 ≤ ratio < 1. In evaluation none is.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` that owns ``{"generator": {"first", "second"}}`` and, where the channels differ, ``"align"``.

    Raises:
      ValueError: the ratio is no share; or, when it is initialised: a path does not exist, or the features do not fit.

    >>> objective = masked_generation("student/f", "teacher/f", mask_ratio=0.65, weight=2e-5)
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 8, 8, 6), feature(2, 8, 8, 4), {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> params["align"]["kernel"].shape, params["generator"]["second"]["kernel"].shape
    ((6, 4), (3, 3, 4, 4))
    """
    if not 0 <= mask_ratio < 1:
        raise ValueError(f"mask_ratio: expected a share of positions, at least 0 and below 1, got {mask_ratio}.")
    loss = term(_squared_error, student, teacher, weight=weight)

    def init(key: Array, context: Context) -> LossVars:
        align, generator = jax.random.split(key)
        params, channels = _align_init("masked_generation", align, context, student, teacher)
        return LossVars({**params, "generator": _generator_init(generator, channels)})

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        feature, target = _aligned("masked_generation", params, context, student, teacher)
        if key is not None:
            keys = example_keys(key, context, feature.shape[0])
            draws = jax.vmap(lambda k: jax.random.uniform(k, (*feature.shape[1:3], 1)))(keys)
            feature = jnp.where(draws < mask_ratio, 0, feature)
        return replace(context, {student: _generate(params["generator"], feature), teacher: target}), state

    return mapped(init, change, loss)


def dual_masked_generation(
    student: str,
    teacher: str,
    *,
    threshold: float | Array = 1.0,
    temperature: float | Array = 0.5,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Dual masked generation: ``‖α·G¹(M^S·a(F_s)) + β·G²(M^C·a(F_s)) − F_t‖²``, what the teacher attends to hidden.

    Yang et al., "DMKD: Improving Feature-based Knowledge Distillation for Object Detection Via Dual Masking
    Augmentation", ICASSP 2024 (arXiv 2309.02719). The teacher's attention says what is hidden from the student, so that
    it is what matters that has to be generated: one branch hides positions, the other channels,

        A^S = HW·softmax(mean_c |F_t| / T) over the positions,  A^C = C·softmax(mean_hw |F_t| / T) over the channels,

    and M is 0 where A is above the threshold. Each branch has a generator of its own, two 3×3 convolutions with a ReLU
    between, and learned weights add up what they generate. In this it follows the paper; the rest is chosen here and
    may differ from the authors' settings: both attentions have a mean of 1, so that the threshold's default of 1 hides
    what is attended to more than on average; α and β are the softmax of two learned numbers, equal at the start;
    alignment, generators and the sum over the feature are those of `masked_generation`. Nothing is random, and
    evaluation hides the same as training.

    Args:
      student: path of the student's map ``[batch, height, width, channels]``.
      teacher: path of the teacher's map; maps of two sizes are compared at the smaller.
      threshold: how much attention, relative to the average, hides a position or a channel, > 0.
      temperature: of both attentions, > 0.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` that owns ``{"spatial": {"first", "second"}, "channel": {...}, "balance"}`` and, where the channels
      differ, ``"align"``.

    Raises:
      ValueError: threshold or temperature are not positive; or, when it is initialised: a path does not exist, or the
        features do not fit.

    >>> objective = dual_masked_generation("student/f", "teacher/f", weight=2e-5)
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 8, 8, 4), feature(2, 8, 8, 4), {}, 0)
    >>> sorted(objective.init(jax.random.key(0), context).params)
    ['balance', 'channel', 'spatial']
    """
    if any(not isinstance(x, jax.core.Tracer) and x <= 0 for x in (threshold, temperature)):
        raise ValueError(f"expected a positive threshold and temperature, got {threshold} and {temperature}.")
    loss = term(_squared_error, student, teacher, weight=weight)
    hidden = {"spatial": (1, 2), "channel": (3,)}

    def init(key: Array, context: Context) -> LossVars:
        align, *keys = jax.random.split(key, 1 + len(hidden))
        params, channels = _align_init("dual_masked_generation", align, context, student, teacher)
        generators = {name: _generator_init(k, channels) for name, k in zip(hidden, keys, strict=True)}
        return LossVars({**params, **generators, "balance": jnp.zeros(len(hidden), jnp.float32)})

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        del key
        feature, target = _aligned("dual_masked_generation", params, context, student, teacher)
        energy, balance = jnp.abs(target), jax.nn.softmax(params["balance"])
        generated = jnp.zeros(())
        for i, (name, axes) in enumerate(hidden.items()):
            others = tuple(axis for axis in (1, 2, 3) if axis not in axes)
            attention = jax.nn.softmax(jnp.mean(energy, axis=others, keepdims=True) / temperature, axis=axes)
            size = math.prod(target.shape[axis] for axis in axes)
            generated += balance[i] * _generate(params[name], jnp.where(size * attention > threshold, 0, feature))
        return replace(context, {student: generated, teacher: target}), state

    return mapped(init, change, loss)


def _squared_error(student: Array, teacher: Array, *, where: Array | None = None) -> Array:
    """The sum over an example's feature, as these methods have it."""
    return math.prod(student.shape[1:]) * losses.hint_mse(student, teacher, where=where)


def _align_init(name: str, key: Array, context: Context, student: str, teacher: str) -> tuple[dict[str, Any], int]:
    """The alignment, where there has to be one, and the teacher's channels."""
    features = [lookup(context, path) for path in (student, teacher)]
    maps(name, features)
    channels, targets = (feature.shape[-1] for feature in features)
    return ({} if channels == targets else {"align": dense_init(key, channels, targets)}), targets


def _aligned(name: str, params: Any, context: Context, student: str, teacher: str) -> tuple[Array, Array]:
    feature, target = match_size(name, *(counted(context, lookup(context, path)) for path in (student, teacher)))
    return dense(params["align"], feature) if "align" in params else feature, target


def _generator_init(key: Array, channels: int) -> dict[str, Any]:
    first, second = jax.random.split(key)
    return {"first": conv_init(first, 3, channels, channels), "second": conv_init(second, 3, channels, channels)}


def _generate(params: dict[str, Any], feature: Array) -> Array:
    return conv(params["second"], jax.nn.relu(conv(params["first"], feature)))
