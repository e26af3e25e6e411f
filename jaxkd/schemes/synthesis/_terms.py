"""Terms of synthesizers' losses: scalars of the unmasked batch on all devices."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd.schemes.synthesis._contract import mean_of, total
from jaxkd.types import Array


def cross_entropy(logits: Array, labels: Array, *, mask: Array | None = None, axis_name: str | None = None) -> Array:
    """``mean CE(t, y)``, DAFL's one-hot loss (equation 3) for the teacher's argmax y.

    >>> cross_entropy(jnp.zeros((2, 4)), jnp.array([0, 1])).round(4)
    Array(1.3863, dtype=float32)
    """
    return mean_of(losses.cross_entropy(logits, labels, where=mask), mask, axis_name)


def activation(features: Array, *, mask: Array | None = None, axis_name: str | None = None) -> Array:
    """``−mean |f|``, DAFL's activation loss (equation 4) on the teacher's features f.

    The paper has each example's ℓ1 norm, ``−mean ‖f‖₁``; the authors' code also averages over the entries of f, and the
    published weight is for the code.

    >>> activation(jnp.array([[1.0, -3.0]]))
    Array(-2., dtype=float32)
    """
    features = features.astype(jnp.promote_types(features.dtype, jnp.float32)).reshape(len(features), -1)
    if mask is not None:
        features = jnp.where(mask[:, None], features, 0)
    return -mean_of(jnp.mean(jnp.abs(features), axis=1), mask, axis_name)


def information_entropy(logits: Array, *, mask: Array | None = None, axis_name: str | None = None) -> Array:
    """``Σ_c p̄_c log p̄_c`` of the mean prediction p̄, DAFL's information entropy.

    It is the negative of the entropy of equation 5, and lowest for balanced classes. The authors' code has the
    logarithm to base 10; here it is the natural logarithm.

    >>> information_entropy(jnp.zeros((3, 2))).round(4)
    Array(-0.6931, dtype=float32)
    """
    logits = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    if mask is not None:
        logits = jnp.where(mask[:, None], logits, 0)
    p = jax.nn.softmax(logits)
    if mask is not None:
        p = jnp.where(mask[:, None], p, 0)
    count = total(jnp.asarray(len(p), p.dtype) if mask is None else jnp.sum(mask, dtype=p.dtype), axis_name)
    mean = total(jnp.sum(p, axis=0), axis_name) / jnp.where(count > 0, count, 1)
    return jnp.sum(mean * jnp.log(jnp.maximum(mean, jnp.finfo(mean.dtype).tiny)))


def total_variation(images: Array, *, mask: Array | None = None, axis_name: str | None = None) -> Array:
    """``Σ_d ‖x − shift_d(x)‖₂``, with shifts down, right and along both diagonals.

    R_TV of DeepInversion (CVPR 2020, equation 3). As in the authors' code, each norm is over the whole batch.
    The repository of CMI has the mean of ``|x − shift_d(x)|`` in its place.

    >>> total_variation(jnp.array([[0.0, 3.0], [4.0, 0.0]]).reshape(1, 2, 2, 1))  # 5 + 5 + 1 + 0
    Array(11., dtype=float32)
    """
    x = images
    differences = (
        x[:, :, :-1] - x[:, :, 1:],
        x[:, :-1] - x[:, 1:],
        x[:, 1:, :-1] - x[:, :-1, 1:],
        x[:, :-1, :-1] - x[:, 1:, 1:],
    )
    return sum((norm(d, mask=mask, axis_name=axis_name) for d in differences), jnp.zeros((), jnp.float32))


def norm(x: Array, *, mask: Array | None = None, axis_name: str | None = None) -> Array:
    """``‖x‖₂`` over the whole batch, with gradient 0 at 0.

    >>> norm(jnp.array([[3.0], [4.0], [9.0]]), mask=jnp.array([True, True, False]))
    Array(5., dtype=float32)
    """
    x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    if mask is not None:
        x = jnp.where(jnp.expand_dims(mask, tuple(range(1, x.ndim))), x, 0)
    square = total(jnp.sum(x**2), axis_name)
    return jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)


def competition(
    student: Array, teacher: Array, *, temperature: float = 3.0, mask: Array | None = None, axis_name: str | None = None
) -> Array:
    """``1 − mean JS(p_t, p_s)``, low where student and teacher disagree.

    R_compete of Adaptive DeepInversion (CVPR 2020, equations 7 and 8), with the temperature of the authors' code. That
    code also clips probabilities to [0.01, 0.99] and exchanges the arguments of its two divergences; this is the
    paper's form.

    >>> logits = jnp.array([[2.0, 0.0]])
    >>> competition(logits, logits)
    Array(1., dtype=float32)
    """
    js = losses.generalized_jsd(student, teacher, beta=0.5, temperature=temperature, where=mask)
    return 1 - mean_of(js, mask, axis_name)


def disagreement(student: Array, teacher: Array, *, mask: Array | None = None, axis_name: str | None = None) -> Array:
    """``−mean 1[argmax s = argmax t] · KL(p_t ‖ p_s)``, the adversarial loss of CMI.

    It is low for images that student and teacher classify alike, but with other probabilities. As in the authors' code,
    it is restricted to examples on which student and teacher agree, and divided by the number of all examples.

    >>> disagreement(jnp.array([[2.0, 0.0]]), jnp.array([[2.0, 0.0]]))
    Array(0., dtype=float32)
    """
    agree = jnp.argmax(student, axis=-1) == jnp.argmax(teacher, axis=-1)
    kl = losses.soft_target_kl(student, teacher, temperature=1.0, where=mask)
    return -mean_of(jnp.where(agree, kl, 0), mask, axis_name)
