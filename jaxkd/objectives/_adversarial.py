"""Adversarial objectives: a discriminator between student and teacher outputs.

Both losses are one scalar, and `stop_gradient` routes their gradients in a single forward and backward pass: the
discriminator's parameters receive only the gradient of the discriminator's loss, the student only that of its own.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import batches
from jaxkd._core.axes import example_keys
from jaxkd._core.batches import lookup
from jaxkd.objectives._checks import class_labels, not_negative, sizes
from jaxkd.objectives._compose import add_loss, reduce_values
from jaxkd.objectives._dense._resized import resize_map
from jaxkd.objectives._tokens import mask_feature, mask_tokens
from jaxkd.objectives.discriminators import Discriminator, cnn, mlp
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars, Schedule


def adversarial(
    student: str,
    teacher: str,
    *,
    discriminator: Discriminator | None = None,
    label_path: str | None = None,
    num_classes: int | None = None,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Non-saturating GAN loss between the student's and the teacher's outputs.

    The discriminator D, whose output is the logit of "teacher", minimizes ``softplus(−D(t)) + softplus(D(s))``, the
    student ``softplus(−D(s))``: Goodfellow et al., "Generative Adversarial Nets", NeurIPS 2014, equation 1, with the
    non-saturating form of its section 3 for the generator. With labels: Xu, Hsu & Huang, "Training Shallow and Thin
    Networks for Acceleration via Knowledge Distillation with Conditional Adversarial Networks", ICLR workshop 2018,
    where D also classifies its input, and student and discriminator both minimize that cross-entropy.

    Args:
      student: path of the student's logits or feature ``[batch, ...]``.
      teacher: path of the teacher's logits or feature, in the same shape.
      discriminator: the network; ``mlp(128, 128)`` by default, ``cnn(64, 128)`` for maps.
      label_path: path of integer classes ``[batch]``, for the conditional form.
      num_classes: number of classes; the size of the last axis by default, which is right for logits.
      weight: weight of the student's loss, a number or a schedule. The discriminator's loss has the weight 1.

    Returns:
      An `Objective` whose parameters are the discriminator. It also reports the discriminator's loss and accuracy.

    Raises:
      ValueError: from ``init``: a path does not exist, shapes differ, or the labels are not integers ``[batch]``.

    >>> objective = adversarial("student/logits", "teacher/logits", discriminator=mlp(8))
    >>> logits = {"logits": jnp.ones((2, 3))}
    >>> context = Context(logits, logits, {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> sorted(name for name in objective.apply(params, {}, context, None).metrics if name)
    ['accuracy', 'discriminator', 'weight']
    """
    if num_classes is not None:
        sizes("adversarial", num_classes=num_classes)

    def outputs(context: Context) -> int:
        if label_path is None:
            return 1
        class_labels(context, label_path)
        return 1 + (int(lookup(context, student).shape[-1]) if num_classes is None else num_classes)

    def init(key: Array, context: Context) -> ObjectiveVars:
        shape = _common_shape(context, student, teacher)
        return ObjectiveVars({"discriminator": _default(discriminator, shape).init(key, shape, outputs(context))})

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del key
        network = _default(discriminator, _common_shape(context, student, teacher))
        s, t, mask = _inputs(context, student, teacher)
        trained, fixed = params["discriminator"], jax.lax.stop_gradient(params["discriminator"])
        real, fake = network.apply(trained, t), network.apply(trained, jax.lax.stop_gradient(s))
        passed = network.apply(fixed, s)
        game = jax.nn.softplus(-real[:, 0]) + jax.nn.softplus(fake[:, 0])
        values = jax.nn.softplus(-passed[:, 0])
        if label_path is not None:
            label = lookup(context, label_path)
            of_real, of_fake, of_passed = (
                losses.cross_entropy(x[:, 1:], label, where=mask) for x in (real, fake, passed)
            )
            game, values = game + of_real + of_fake, values + of_passed
        accuracy = 0.5 * ((real[:, 0] > 0).astype(jnp.float32) + (fake[:, 0] < 0).astype(jnp.float32))
        out = reduce_values(values, mask, weight, context, state, discriminator=game, accuracy=accuracy)
        return add_loss(out, game, mask, context)

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
    """Wasserstein GAN loss with gradient penalty between student and teacher.

    Also known as: SKD (structured knowledge distillation, the holistic term), WGAN-GP.

    The critic D minimizes ``D(s) − D(t) + penalty · (‖∇D(x̂)‖ − 1)²`` at a random point x̂ between s and t for each
    example, the student ``−D(s)``. Gulrajani et al., "Improved Training of Wasserstein GANs", NeurIPS 2017, equation 3;
    Liu et al., "Structured Knowledge Distillation for Semantic Segmentation", CVPR 2019, where the critic also receives
    the image (that of the authors' code does not); their weight is 0.1, beside 1 for the labels, with the penalty's
    weight of 10. The gradient of a norm of 0 is 0 here, so a critic with zero gradient does not yield NaN.

    Args:
      student: path of the student's logits or feature ``[batch, ...]``.
      teacher: path of the teacher's logits or feature, in the same shape.
      condition: path of a further input of the critic, such as the image, joined along the last axis. For maps it is
        resized to their height and width, bilinearly.
      discriminator: the critic; ``mlp(128, 128)`` by default, ``cnn(64, 128)`` for maps.
      penalty: weight of the gradient penalty.
      weight: weight of the student's loss, a number or an optax schedule of the step.

    Returns:
      An `Objective` whose parameters are the critic. It also reports the critic's loss. In evaluation x̂ is the
      midpoint.

    Raises:
      ValueError: from ``init``: a path does not exist, or the shapes do not fit.

    >>> objective = wasserstein("student/logits", "teacher/logits", discriminator=mlp(8))
    >>> logits = {"logits": jnp.ones((2, 3))}
    >>> context = Context(logits, logits, {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> jax.tree.map(jnp.shape, params["discriminator"][0])
    {'bias': (8,), 'kernel': (3, 8)}
    """
    not_negative("wasserstein", penalty=penalty)

    def input_shape(context: Context) -> tuple[int, ...]:
        shape = _common_shape(context, student, teacher)
        if condition is None:
            return shape
        other = lookup(context, condition).shape
        if len(other) != len(shape) or other[0] != shape[0] or (len(shape) != 4 and other[:-1] != shape[:-1]):
            sides = ["height", "width"] if len(shape) == 4 else shape[1:-1]
            raise ValueError(
                f"wasserstein, {condition}: expected {[shape[0], *sides, 'channels']}, to be joined along the last "
                f"axis, got {list(other)}."
            )
        return (*shape[:-1], shape[-1] + other[-1])

    def init(key: Array, context: Context) -> ObjectiveVars:
        shape = input_shape(context)
        return ObjectiveVars({"discriminator": _default(discriminator, shape).init(key, shape, 1)})

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        network = _default(discriminator, input_shape(context))
        s, t, mask = _inputs(context, student, teacher)
        trained, fixed = params["discriminator"], jax.lax.stop_gradient(params["discriminator"])
        extra: list[Array] = []
        if condition is not None:
            # A condition that is a student output must not be trained to fool the critic.
            other = jax.lax.stop_gradient(mask_feature(context, lookup(context, condition))).astype(s.dtype)
            extra.append(resize_map(other, s.shape[1:3]) if s.ndim == 4 else other)

        def critic(weights: Any, x: Array) -> Array:
            return network.apply(weights, jnp.concatenate([x, *extra], axis=-1))[:, 0]

        fake = jax.lax.stop_gradient(s)
        mix = jnp.expand_dims(_uniform(key, context, s.shape[0]), tuple(range(1, s.ndim)))
        # The critic scores each example by itself, so the gradient of the sum holds each example's own gradient.
        grads = jax.grad(lambda x: jnp.sum(critic(trained, x)))(mix * fake + (1 - mix) * t)
        grads = mask_tokens(context, grads)
        square = jnp.sum(grads.reshape(len(grads), -1) ** 2, axis=1)
        norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        game = critic(trained, fake) - critic(trained, t) + penalty * (norm - 1) ** 2
        out = reduce_values(-critic(fixed, s), mask, weight, context, state, discriminator=game)
        return add_loss(out, game, mask, context)

    return Objective(init, apply)


def _default(discriminator: Discriminator | None, shape: tuple[int, ...]) -> Discriminator:
    if discriminator is not None:
        return discriminator
    return cnn(64, 128) if len(shape) == 4 else mlp(128, 128)


def _common_shape(context: Context, student: str, teacher: str) -> tuple[int, ...]:
    s, t = lookup(context, student), lookup(context, teacher)
    if s.shape != t.shape or len(s.shape) < 2:
        raise ValueError(
            f"{teacher}: expected the shape of {student}, {list(s.shape)}, got {list(t.shape)}. Tap layers of one "
            "shape with at least two axes: a discriminator could separate two shapes without reading the values."
        )
    return tuple(s.shape)


def _inputs(context: Context, student: str, teacher: str) -> tuple[Array, Array, Array | None]:
    s, t = (mask_feature(context, jnp.asarray(lookup(context, path))) for path in (student, teacher))
    dtype = jnp.result_type(s, t, jnp.float32)
    return s.astype(dtype), t.astype(dtype), batches.example_mask(context.batch)


def _uniform(key: Array | None, context: Context, size: int) -> Array:
    """Draws a number in [0, 1) for each example; 0.5 without a key."""
    if key is None:
        return jnp.full(size, 0.5, jnp.float32)
    return jax.vmap(jax.random.uniform)(example_keys(key, context, size))
