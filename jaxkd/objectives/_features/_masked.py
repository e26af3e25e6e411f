"""Generation of the teacher's feature from a masked feature of the student."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core.axes import example_keys
from jaxkd.objectives._checks import positive, share
from jaxkd.objectives._compose import replace, term
from jaxkd.objectives._features._alignment import align, align_init
from jaxkd.objectives._projection import with_projection
from jaxkd.objectives._tokens import expand, mask_tokens, summed_over_tokens, token_mask
from jaxkd.objectives.layers import conv, conv_init
from jaxkd.types import Array, Context, Objective, ObjectiveVars, Schedule


def masked_generation(
    student: str, teacher: str, *, mask_ratio: float = 0.15, weight: float | Array | Schedule = 1.0
) -> Objective:
    """Squared error of the teacher's feature generated from a masked student's.

    Also known as: MGD (masked generative distillation).

    ``‖G(M·a(F_s)) − F_t‖²`` with random positions M, and learned G and a. Yang et al., "Masked Generative
    Distillation", ECCV 2022, section 3. The alignment a is a 1×1 convolution, present only where the channels differ; M
    masks each position with probability `mask_ratio`; the generator G is two 3×3 convolutions with a ReLU between them.
    The value is a sum over the feature, so its weight is small. The paper's ratios and weights are 0.15 and 7e-5 for
    classification, 0.65 and 2e-5 for one-stage detectors, 0.45 and 5e-7 for two-stage ones (0.5 in their
    configurations), on each of five levels of a pyramid, and 0.75 and 2e-5 for segmentation. For classification the
    authors' code masks channels instead of positions. Their code requires maps of one size; here the larger map is
    pooled.

    Args:
      student: path of the student's map ``[batch, height, width, channels]``.
      teacher: path of the teacher's map.
      mask_ratio: probability that a position is masked, 0 ≤ ratio < 1. Evaluation masks nothing.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` with the parameters ``generator`` and, where the channels differ, ``align``.

    Raises:
      ValueError: the ratio is out of range; or, from ``init``: a path does not exist, or the features do not fit.

    >>> objective = masked_generation("student/f", "teacher/f", mask_ratio=0.65, weight=2e-5)
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 8, 8, 6), feature(2, 8, 8, 4), {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> params["align"]["kernel"].shape, params["generator"]["second"]["kernel"].shape
    ((6, 4), (3, 3, 4, 4))
    """
    share("masked_generation", mask_ratio=mask_ratio)
    if mask_ratio == 1:
        raise ValueError(
            f"masked_generation, mask_ratio: expected a share of positions, 0 <= ratio < 1, got {mask_ratio}."
        )
    loss = term(summed_over_tokens(_squared_error), student, teacher, weight=weight)

    def init(key: Array, context: Context) -> ObjectiveVars:
        first, generator = jax.random.split(key)
        params, channels = align_init("masked_generation", first, context, student, teacher)
        return ObjectiveVars({**params, "generator": _generator_init(generator, channels)})

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        feature, target = align("masked_generation", params, context, student, teacher)
        if key is not None:
            keys = example_keys(key, context, feature.shape[0])
            draws = jax.vmap(lambda k: jax.random.uniform(k, (*feature.shape[1:3], 1)))(keys)
            feature = jnp.where(draws < mask_ratio, 0, feature)
        return replace(context, {student: _generate(context, params["generator"], feature), teacher: target}), state

    return with_projection(init, change, loss)


def dual_masked_generation(
    student: str,
    teacher: str,
    *,
    threshold: float | Array = 1.0,
    temperature: float | Array = 0.5,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Squared error of the teacher's feature generated under attention masks.

    Also known as: DMKD (dual masked knowledge distillation).

    ``‖α·G¹(M^S·a(F_s)) + β·G²(M^C·a(F_s)) − F_t‖²``. Yang et al., "DMKD: Improving Feature-based Knowledge Distillation
    for Object Detection Via Dual Masking Augmentation", ICASSP 2024 (arXiv 2309.02719). The teacher's attention selects
    what is masked in the student. One branch masks positions, the other channels,

        A^S = HW·softmax(mean_c |F_t| / T) over the positions,  A^C = C·softmax(mean_hw |F_t| / T) over the channels,

    and M is 0 where A exceeds the threshold. Each branch has its own generator, and learned weights add their outputs.
    The rest is this library's choice: both attentions have a mean of 1, so the default threshold masks what receives
    more than average attention; α and β are the softmax of two learned numbers, equal at the start; alignment,
    generators and the sum over the feature are those of `masked_generation`. Nothing is random, and evaluation masks as
    training does.

    Args:
      student: path of the student's map ``[batch, height, width, channels]``.
      teacher: path of the teacher's map; maps of two sizes are compared at the smaller size.
      threshold: attention, relative to its mean, above which a position or a channel is masked, > 0.
      temperature: T > 0 of both attentions.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` with the parameters ``spatial``, ``channel``, ``balance`` and, where the channels differ,
      ``align``.

    Raises:
      ValueError: a number is not positive; or, from ``init``: a path does not exist, or the features do not fit.

    >>> objective = dual_masked_generation("student/f", "teacher/f", weight=2e-5)
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 8, 8, 4), feature(2, 8, 8, 4), {}, 0)
    >>> sorted(objective.init(jax.random.key(0), context).params)
    ['balance', 'channel', 'spatial']
    """
    positive("dual_masked_generation", threshold=threshold, temperature=temperature)
    loss = term(summed_over_tokens(_squared_error), student, teacher, weight=weight)
    branches = {"spatial": (1, 2), "channel": (3,)}  # the axes over which each branch's attention is a softmax

    def init(key: Array, context: Context) -> ObjectiveVars:
        first, *keys = jax.random.split(key, 1 + len(branches))
        params, channels = align_init("dual_masked_generation", first, context, student, teacher)
        generators = {name: _generator_init(k, channels) for name, k in zip(branches, keys, strict=True)}
        return ObjectiveVars({**params, **generators, "balance": jnp.zeros(len(branches), jnp.float32)})

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        del key
        feature, target = align("dual_masked_generation", params, context, student, teacher)
        energy, balance = jnp.abs(target), jax.nn.softmax(params["balance"])
        generated = jnp.zeros(())
        for i, (name, axes) in enumerate(branches.items()):
            attention = _attention(context, energy, axes, temperature)
            kept = jnp.where(attention > threshold, 0, feature)
            generated += balance[i] * _generate(context, params[name], kept)
        return replace(context, {student: generated, teacher: target}), state

    return with_projection(init, change, loss)


def _attention(context: Context, energy: Array, axes: tuple[int, ...], temperature: float | Array) -> Array:
    """Softmax over axes of the mean over the others, times their size.

    Its mean is 1. Masked positions have no part in it.
    """
    others = tuple(axis for axis in (1, 2, 3) if axis not in axes)
    scores = jnp.mean(energy, axis=others, keepdims=True)
    size: Any = math.prod(energy.shape[axis] for axis in axes)
    mask = token_mask(context, energy.shape)
    if mask is not None:
        where = expand(mask, energy.ndim)
        count = jnp.maximum(jnp.sum(where, axis=(1, 2, 3), keepdims=True), 1)
        if axes == (1, 2):
            scores, size = jnp.where(where, scores, jnp.finfo(scores.dtype).min), count
        else:
            scores *= math.prod(energy.shape[1:3]) / count
    return size * jax.nn.softmax(scores / temperature, axis=axes)


def _squared_error(student: Array, teacher: Array, *, where: Array | None = None) -> Array:
    """Sums the squared error over an example's feature, as in both papers."""
    return math.prod(student.shape[1:]) * losses.hint_mse(student, teacher, where=where)


def _generator_init(key: Array, channels: int) -> dict[str, Any]:
    first, second = jax.random.split(key)
    return {"first": conv_init(first, 3, channels, channels), "second": conv_init(second, 3, channels, channels)}


def _generate(context: Context, params: dict[str, Any], feature: Array) -> Array:
    return conv(params["second"], mask_tokens(context, jax.nn.relu(conv(params["first"], feature))))
