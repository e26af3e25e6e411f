"""Factor transfer: a paraphraser of the teacher, a translator of the student."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core.batches import lookup
from jaxkd.objectives._checks import positive
from jaxkd.objectives._compose import replace, term
from jaxkd.objectives._projection import with_projection
from jaxkd.objectives._tokens import feature_mask, mask_feature, mask_tokens, tokens_as_rows
from jaxkd.objectives.layers import batch_norm as normalized
from jaxkd.objectives.layers import batch_norm_init, conv, conv_init, maps
from jaxkd.types import Array, Context, Objective, ObjectiveVars, PyTree, Schedule

_LAYERS = ("first", "second", "third")
_SLOPE = 0.1


def paraphraser(teacher: str, *, rate: float = 0.5, weight: float | Array | Schedule = 1.0) -> Objective:
    """Reconstruction loss of an autoencoder of the teacher's feature.

    Also known as: FT (factor transfer), its first stage.

    ``mean (D(E(F_t)) − F_t)²``. Kim, Park & Kwak, "Paraphrasing Complex Network: Network Compression via Factor
    Transfer", NeurIPS 2018, section 3. The autoencoder is trained before the student and without labels. The encoder E
    is three 3×3 convolutions (C → C → rC → rC channels), the decoder D its mirror image (transposed convolutions of
    stride 1 are convolutions), each followed by a leaky ReLU of slope 0.1 and, as in the authors' code, without
    BatchNorm. `factor_translator` takes the trained parameters.

    Args:
      teacher: path of the teacher's map ``[batch, height, width, channels]``, such as ``"teacher/stage3"``.
      rate: r > 0, channels of the factor for each channel of the teacher's map; the paper's k.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` with the parameters ``{"encoder": {"first", ...}, "decoder": ...}``. It does not read the student.

    Raises:
      ValueError: the rate is not positive; or, from ``init``: the path does not exist or does not hold a map.

    >>> objective = paraphraser("teacher/f")
    >>> context = Context({}, {"f": jax.ShapeDtypeStruct((2, 4, 4, 8), jnp.float32)}, {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> params["encoder"]["third"]["kernel"].shape, params["decoder"]["third"]["kernel"].shape
    ((3, 3, 4, 4), (3, 3, 8, 8))
    """
    positive("paraphraser", rate=rate)
    loss = term(losses.hint_mse, "student/reconstruction", "teacher/target", weight=weight)

    def init(key: Array, context: Context) -> ObjectiveVars:
        feature = lookup(context, teacher)
        maps("paraphraser", [feature])
        return ObjectiveVars(_autoencoder(key, feature.shape[-1], rate))

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        del key
        target = mask_feature(context, lookup(context, teacher))
        reconstruction = _layers(context, params["decoder"], _layers(context, params["encoder"], target))
        context = replace(context, {"student/reconstruction": reconstruction, "teacher/target": target})
        return tokens_as_rows(context, "student/reconstruction", "teacher/target"), state

    return with_projection(init, change, loss)


def factor_translator(
    student: str,
    teacher: str,
    *,
    trained: PyTree | None = None,
    rate: float = 0.5,
    batch_norm: bool = False,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Distance between attention maps of the student's and the teacher's factors.

    Also known as: FT (factor transfer).

    ``mean |n(A(E(F_t))) − n(A(T(F_s)))|`` with the attention maps A of the two factors. Kim, Park & Kwak, "Paraphrasing
    Complex Network: Network Compression via Factor Transfer", NeurIPS 2018, section 3 with p = 1, in the form of
    popular code (see `jaxkd.losses.factor_transfer`). The translator T is three 3×3 convolutions (C_s → C_s → rC_t →
    rC_t channels) with leaky ReLUs, as in the authors' code without BatchNorm, and is learned with the student. In the
    usual CIFAR-100 benchmark, the translator has a BatchNorm after each convolution, and the paraphraser none. The
    paraphraser's encoder E is frozen: it is state, which neither gradients nor weight decay reach.

    A first stage trains ``combine(factor=paraphraser("teacher/stage3"), ...)``; the second takes its parameters:
    ``factor_translator("student/stage3", "teacher/stage3", trained=first.objective.params["factor"])``.

    Args:
      student: path of the student's map ``[batch, height, width, channels]``.
      teacher: path of the teacher's map; channels and size may differ.
      trained: parameters of a `paraphraser` of the same feature and rate; None for a random projection, unlike the
        paper.
      rate: r > 0, channels of the factor for each channel of the teacher's map.
      batch_norm: whether each convolution of the translator is followed by a BatchNorm.
      weight: a number, or an optax schedule of the step; 200 in the usual CIFAR-100 recipe.

    Returns:
      An `Objective` with the parameters ``{"translator": {"first", ...}}`` and the state ``{"paraphraser": ...}``; with
      BatchNorms, also the parameters ``norms`` and their statistics.

    Raises:
      ValueError: the rate is not positive; or, from ``init``: a path does not exist or does not hold a map, or the
        trained parameters do not fit the teacher's feature.

    >>> objective = factor_translator("student/f", "teacher/f")
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 8, 8, 6), feature(2, 4, 4, 8), {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> params["translator"]["third"]["kernel"].shape
    (3, 3, 4, 4)
    """
    positive("factor_translator", rate=rate)
    loss = term(_factor_transfer, student, teacher, weight=weight)

    def init(key: Array, context: Context) -> ObjectiveVars:
        features = [lookup(context, path) for path in (student, teacher)]
        maps("factor_translator", features)
        channels, targets = (feature.shape[-1] for feature in features)
        factors = _factors(targets, rate)
        key, own = jax.random.split(key)
        frozen = _autoencoder(own, targets, rate)
        if trained is not None:
            given, wanted = (jax.tree.map(jnp.shape, tree) for tree in (trained, frozen))
            if given != wanted:
                raise ValueError(
                    f"factor_translator: expected trained= as the parameters of paraphraser({teacher!r}, rate={rate}), "
                    f"{wanted}, got {given}."
                )
            frozen = jax.tree.map(lambda x: jnp.array(x, jnp.float32), trained)  # a copy, since the state is donated
        widths = (channels, channels, factors, factors)
        made = ObjectiveVars({"translator": _stack(key, widths)}, {"paraphraser": frozen})
        if not batch_norm:
            return made
        norms = {name: batch_norm_init(width) for name, width in zip(_LAYERS, widths[1:], strict=True)}
        return ObjectiveVars(*({**part, "norms": {n: v[i] for n, v in norms.items()}} for i, part in enumerate(made)))

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        feature, target = (mask_feature(context, lookup(context, path)) for path in (student, teacher))
        factor = _layers(context, state["paraphraser"]["encoder"], target)
        if not batch_norm:
            return replace(context, {student: _layers(context, params["translator"], feature), teacher: factor}), state
        norms = {}
        for name in _LAYERS:
            feature = conv(params["translator"][name], feature)
            mask = feature_mask(context, feature.shape)
            feature, norms[name] = normalized(
                params["norms"][name],
                state["norms"][name],
                feature,
                mask=mask,
                axis_name=context.axis_name,
                train=key is not None,
            )
            feature = mask_tokens(context, jax.nn.leaky_relu(feature, _SLOPE))
        return replace(context, {student: feature, teacher: factor}), {**state, "norms": norms}

    return with_projection(init, change, loss)


def _factors(channels: int, rate: float) -> int:
    return max(1, int(channels * rate))


def _autoencoder(key: Array, channels: int, rate: float) -> dict[str, Any]:
    factors = _factors(channels, rate)
    down, up = jax.random.split(key)
    return {
        "encoder": _stack(down, (channels, channels, factors, factors)),
        "decoder": _stack(up, (factors, factors, channels, channels)),
    }


def _stack(key: Array, widths: tuple[int, ...]) -> dict[str, Any]:
    keys = jax.random.split(key, len(_LAYERS))
    return {name: conv_init(keys[i], 3, widths[i], widths[i + 1]) for i, name in enumerate(_LAYERS)}


def _layers(context: Context, params: dict[str, Any], x: Array) -> Array:
    for name in _LAYERS:
        x = mask_tokens(context, jax.nn.leaky_relu(conv(params[name], x), _SLOPE))
    return x


def _factor_transfer(student: Array, teacher: Array, *, where: Array | None = None) -> Array:
    """Factor transfer with a mean over unmasked positions, if both factors have them.

    At masked positions, both factors are 0.
    """
    if where is None or where.ndim == 1:
        return losses.factor_transfer(student, teacher, where=where)
    count = jnp.sum(where, axis=(1, 2))
    values = losses.factor_transfer(student, teacher, where=count > 0)
    same = student.shape[:3] == teacher.shape[:3]
    return values * math.prod(where.shape[1:]) / jnp.maximum(count, 1) if same else values
