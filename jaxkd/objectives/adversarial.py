"""Adversarial objectives: a discriminator learns to tell the student's output from the teacher's, the student to pass.

Both games are one scalar, whose gradients `stop_gradient` routes: the discriminator's parameters see only its own
loss, the student only the other, in one forward and one backward pass. The discriminator is a pair of functions; `mlp`
takes anything flat (logits, pooled features), `convolutional` takes maps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd import checks, losses
from jaxkd.objectives.compose import Schedule, counted, lookup, mean, weighted
from jaxkd.objectives.draws import example_keys
from jaxkd.objectives.layers import conv_init, dense, dense_init
from jaxkd.types import Array, Context, LossOut, LossVars, Objective

__all__ = ["Discriminator", "adversarial", "convolutional", "mlp", "wasserstein"]


class Discriminator(NamedTuple):
    """A network of the loss.

    Attributes:
      init: ``(key, shape, outputs) -> params``, for inputs of this shape, the batch included.
      apply: ``(params, x) -> [batch, outputs]``.
    """

    init: Callable[..., Any]
    apply: Callable[..., Array]


def mlp(*widths: int) -> Discriminator:
    """Dense layers of these widths with leaky ReLUs (slope 0.2), on the flattened input.

    >>> network = mlp(8)
    >>> network.apply(network.init(jax.random.key(0), (2, 3), 1), jnp.ones((2, 3))).shape
    (2, 1)
    """

    def init(key: Array, shape: tuple[int, ...], outputs: int) -> Any:
        sizes = (math.prod(shape[1:]), *widths, outputs)
        return [dense_init(k, a, b) for k, a, b in zip(_keys(key, sizes), sizes[:-1], sizes[1:], strict=True)]

    def apply(params: Any, x: Array) -> Array:
        x = x.reshape(x.shape[0], math.prod(x.shape[1:]))
        for i, layer in enumerate(params):
            x = dense(layer, jax.nn.leaky_relu(x, 0.2) if i else x)
        return x

    return Discriminator(init, apply)


def convolutional(*widths: int) -> Discriminator:
    """Convolutions 4×4 of stride 2 and these widths with leaky ReLUs (slope 0.2), a mean over positions, a dense layer.

    >>> network = convolutional(8, 16)
    >>> network.apply(network.init(jax.random.key(0), (2, 8, 8, 3), 1), jnp.ones((2, 8, 8, 3))).shape
    (2, 1)
    """

    def init(key: Array, shape: tuple[int, ...], outputs: int) -> Any:
        if len(shape) != 4:
            raise ValueError(f"convolutional: expected maps [batch, height, width, channels], got {list(shape)}.")
        sizes = (shape[-1], *widths)
        *keys, last = _keys(key, (*sizes, outputs))
        layers = [conv_init(k, 4, a, b) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)]
        return [*layers, dense_init(last, sizes[-1], outputs)]

    def apply(params: Any, x: Array) -> Array:
        for layer in params[:-1]:
            kernel = layer["kernel"].astype(x.dtype)
            x = jax.lax.conv_general_dilated(x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
            x = jax.nn.leaky_relu(x + layer["bias"].reshape(1, 1, 1, -1), 0.2)
        return dense(params[-1], jnp.mean(x, axis=(1, 2)))

    return Discriminator(init, apply)


def adversarial(
    student: str,
    teacher: str,
    *,
    discriminator: Discriminator | None = None,
    labels: str | None = None,
    classes: int | None = None,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """A discriminator between the student's and the teacher's logits or features, and the student against it.

    The discriminator D, of one logit for "teacher's", minimises ``softplus(−D(t)) + softplus(D(s))``, the student
    ``softplus(−D(s))``: Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, equation 1, with the
    non-saturating form of its section 3 for the generator. With labels: Xu, Hsu & Huang, "Training Shallow and Thin
    Networks for Acceleration via Knowledge Distillation with Conditional Adversarial Networks", ICLR workshop 2018,
    where D also tells the class of what it is given, and student and discriminator both minimise that cross-entropy.

    Args:
      student: path of the student's logits or feature ``[batch, ...]``.
      teacher: path of the teacher's, of the same shape.
      discriminator: the network; ``mlp(128, 128)`` by default, for maps ``convolutional(64, 128)``.
      labels: path of integer classes ``[batch]``, for the conditional form.
      classes: how many there are; by default as many as the last axis has entries, which is right for logits.
      weight: a number, or an optax schedule of the step; of the student's part. The discriminator's own is 1, since
        its parameters see nothing else.

    Returns:
      An `Objective` that owns the discriminator. Its metrics are the student's loss, its weight, and the
      discriminator's loss and accuracy.

    Raises:
      ValueError: when it is initialised or applied: a path does not exist, the shapes differ, or the labels are not
        integers ``[batch]``.

    >>> objective = adversarial("student/logits", "teacher/logits", discriminator=mlp(8))
    >>> logits = {"logits": jnp.ones((2, 3))}
    >>> context = Context(logits, logits, {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> sorted(name for name in objective.apply(params, {}, context, None).metrics if name)
    ['accuracy', 'discriminator', 'weight']
    """

    def outputs(context: Context) -> int:
        if labels is None:
            return 1
        label = lookup(context, labels)
        if not jnp.issubdtype(label.dtype, jnp.integer) or len(label.shape) != 1:
            raise ValueError(f"{labels}: expected integer classes [batch], got {checks.shape(label)}.")
        return 1 + (int(lookup(context, student).shape[-1]) if classes is None else classes)

    def init(key: Array, context: Context) -> LossVars:
        shape = _same(context, student, teacher)
        return LossVars({"discriminator": _default(discriminator, shape).init(key, shape, outputs(context))})

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        del key
        network = _default(discriminator, _same(context, student, teacher))
        s, t, mask = _pair(context, student, teacher)
        live, fixed = params["discriminator"], jax.lax.stop_gradient(params["discriminator"])
        of_teacher, of_student = network.apply(live, t), network.apply(live, jax.lax.stop_gradient(s))
        passing = network.apply(fixed, s)
        game = jax.nn.softplus(-of_teacher[:, 0]) + jax.nn.softplus(of_student[:, 0])
        values = jax.nn.softplus(-passing[:, 0])
        if labels is not None:
            label = lookup(context, labels)
            told = [losses.cross_entropy(x[:, 1:], label, where=mask) for x in (of_teacher, of_student, passing)]
            game, values = game + told[0] + told[1], values + told[2]
        right = 0.5 * ((of_teacher[:, 0] > 0).astype(jnp.float32) + (of_student[:, 0] < 0).astype(jnp.float32))
        out = weighted(values, mask, weight, context, state, discriminator=game, accuracy=right)
        return _play(out, game, mask, context)

    return Objective(init, apply)


def wasserstein(
    student: str,
    teacher: str,
    *,
    condition: str | None = None,
    discriminator: Discriminator | None = None,
    penalty: float = 10.0,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """The same game with a Wasserstein critic and gradient penalty, the holistic loss of structured distillation.

    The critic D minimises ``D(s) − D(t) + penalty · (‖∇D(x̂)‖ − 1)²`` at a random point x̂ between s and t for each
    example, the student ``−D(s)``. Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017, equation
    3; Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, where the critic also
    sees the image. A norm of 0 has no slope here, so that a critic that is flat does not end in NaN.

    Args:
      student: path of the student's logits or feature ``[batch, ...]``.
      teacher: path of the teacher's, of the same shape.
      condition: path of what the critic sees as well, joined along the last axis: an image for score maps of its
        height and width.
      discriminator: the critic; ``mlp(128, 128)`` by default, for maps ``convolutional(64, 128)``.
      penalty: the weight of the gradient penalty.
      weight: a number, or an optax schedule of the step; of the student's part.

    Returns:
      An `Objective` that owns the critic. Its metrics are the student's loss, its weight, and the critic's loss. In an
      evaluation x̂ is the middle.

    Raises:
      ValueError: when it is initialised or applied: a path does not exist, or the shapes do not fit.

    >>> objective = wasserstein("student/logits", "teacher/logits", discriminator=mlp(8))
    >>> logits = {"logits": jnp.ones((2, 3))}
    >>> context = Context(logits, logits, {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> jax.tree.map(jnp.shape, params["discriminator"][0])
    {'bias': (8,), 'kernel': (3, 8)}
    """

    def seen(context: Context) -> tuple[int, ...]:
        shape = _same(context, student, teacher)
        if condition is None:
            return shape
        other = lookup(context, condition).shape
        if other[:-1] != shape[:-1]:
            raise ValueError(
                f"wasserstein, {condition}: expected {[*shape[:-1], 'channels']}, to be joined along the last axis, "
                f"got {list(other)}."
            )
        return (*shape[:-1], shape[-1] + other[-1])

    def init(key: Array, context: Context) -> LossVars:
        shape = seen(context)
        return LossVars({"discriminator": _default(discriminator, shape).init(key, shape, 1)})

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        network = _default(discriminator, seen(context))
        s, t, mask = _pair(context, student, teacher)
        live, fixed = params["discriminator"], jax.lax.stop_gradient(params["discriminator"])
        # The condition is what both games are about, and no move in either.
        extra = () if condition is None else (jax.lax.stop_gradient(counted(context, lookup(context, condition))),)

        def critic(weights: Any, x: Array) -> Array:
            return network.apply(weights, jnp.concatenate([x, *(y.astype(x.dtype) for y in extra)], axis=-1))[:, 0]

        still = jax.lax.stop_gradient(s)
        mix = jnp.expand_dims(_uniform(key, context, s.shape[0]), tuple(range(1, s.ndim)))
        slope = jax.grad(lambda x: jnp.sum(critic(live, x)))(mix * still + (1 - mix) * t)
        square = jnp.sum(slope.reshape(slope.shape[0], -1) ** 2, axis=1)
        norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        game = critic(live, still) - critic(live, t) + penalty * (norm - 1) ** 2
        return _play(weighted(-critic(fixed, s), mask, weight, context, state, discriminator=game), game, mask, context)

    return Objective(init, apply)


def _keys(key: Array, sizes: tuple[int, ...]) -> list[Array]:
    return list(jax.random.split(key, len(sizes) - 1))


def _default(discriminator: Discriminator | None, shape: tuple[int, ...]) -> Discriminator:
    if discriminator is not None:
        return discriminator
    return convolutional(64, 128) if len(shape) == 4 else mlp(128, 128)


def _same(context: Context, student: str, teacher: str) -> tuple[int, ...]:
    s, t = lookup(context, student), lookup(context, teacher)
    if s.shape != t.shape or len(s.shape) < 2:
        raise ValueError(
            f"{teacher}: expected the shape of {student}, {list(s.shape)}, got {list(t.shape)}. A discriminator would "
            "tell two shapes apart by their shapes; tap layers that agree."
        )
    return tuple(s.shape)


def _pair(context: Context, student: str, teacher: str) -> tuple[Array, Array, Array | None]:
    s, t = (counted(context, jnp.asarray(lookup(context, path))) for path in (student, teacher))
    dtype = jnp.result_type(s, t, jnp.float32)
    return s.astype(dtype), t.astype(dtype), checks.example_mask(context.batch)


def _uniform(key: Array | None, context: Context, size: int) -> Array:
    """One number in [0, 1) for each example; ½ without a key."""
    if key is None:
        return jnp.full(size, 0.5, jnp.float32)
    return jax.vmap(jax.random.uniform)(example_keys(key, context, size))


def _play(out: LossOut, game: Array, mask: Array | None, context: Context) -> LossOut:
    """The student's part and the discriminator's own loss as one scalar."""
    return out._replace(value=out.value + mean(game, mask, context.axis_name)[0])
