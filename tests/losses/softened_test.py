"""Softmax losses at a constant temperature: a compiler that knows T rounds z / T in two ways."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests import references
from tests.loss_runs import as_users_compile

LOWEST = float(np.finfo(np.float32).min)
SCORES = np.array(
    [[3e10, -3e10, 1.0], [7e9, 7e9, 6.9e9], [LOWEST] * 3, [LOWEST, 1.0, 2.0], [1e30, -1e30, 0.0]], np.float32
)
LABELS: Any = np.array([0, 1, 2, 1, 0])
EYE: Any = np.eye(3, dtype=np.float32)


def flow(scores):
    """Vectors with products up to 1e30."""
    return jnp.clip(scores, -1e15, 1e15)[None, :, None, :]


def of_pair(name):
    return lambda z, T: getattr(losses, name)(z, z, temperature=T)


CALLS: dict[str, Any] = {
    **{
        name: of_pair(name)
        for name in (
            "soft_target_kl",
            "reverse_kl",
            "generalized_jsd",
            "skew_kl",
            "skew_reverse_kl",
            "total_variation",
            "universal_logit_distance",
        )
    },
    "class_weighted_cross_entropy": lambda z, T: losses.class_weighted_cross_entropy(z, z, temperature=T),
    "dist": lambda z, T: losses.dist(z, z, temperature=T),
    "decoupled_kd": lambda z, T: losses.decoupled_kd(z, z, LABELS, temperature=T),
    "virtual_teacher_kl": lambda z, T: losses.virtual_teacher_kl(z, LABELS, temperature=T),
    "frame_kl": lambda z, T: losses.frame_kl(z[None], z[None], temperature=T),
    "pixel_kl": lambda z, T: losses.pixel_kl(z[None, None], z[None, None], temperature=T),
    "channel_kl": lambda z, T: losses.channel_kl(z.T[None, None], z.T[None, None], temperature=T),
    "value_relation_kl": lambda z, T: losses.value_relation_kl(flow(z), flow(z)),
    "binary_kl": lambda z, T: losses.binary_kl(z, z, temperature=T),
    "linear_soft_target_kl": lambda z, T: losses.linear_soft_target_kl(z, EYE, z, EYE, temperature=T),
    **{
        name: lambda z, T, name=name: getattr(losses, name)(z, EYE, z, EYE, temperature=T)
        for name in ("linear_generalized_jsd", "linear_reverse_kl", "linear_skew_kl", "linear_total_variation")
    },
}


@pytest.mark.parametrize("name", CALLS)
def test_large_logits_at_a_constant_temperature(name):
    def total(z):
        value = CALLS[name](z, 3.0)
        return jnp.where(jnp.isfinite(value), value, 0).sum(), value

    compiled = jax.jit(jax.value_and_grad(total, has_aux=True), compiler_options=as_users_compile())
    (_, value), slope = compiled(SCORES)
    assert not np.isnan(value).any() and np.isfinite(slope).all()
    if name == "virtual_teacher_kl":
        return
    if name == "dist":  # equal probabilities correlate, and constant ones have no correlation
        np.testing.assert_allclose(np.delete(value, 2) - value[0], 0, atol=1e-3)
    elif name != "class_weighted_cross_entropy":
        np.testing.assert_allclose(value, 0, atol=1e-5)


@pytest.mark.parametrize("temperature", [3.0, 7.0, 0.3])
def test_values_at_large_logits(temperature):
    """The gap of 1e8 between two classes, to 1e-7 of it."""
    student, teacher = jnp.array([[7e9, 6.9e9, 0.0]]), jnp.array([[6.9e9, 7e9, 0.0]])
    jitted = jax.jit(lambda s, t: losses.soft_target_kl(s, t, temperature=temperature))
    expected = references.soft_target_kl(student, teacher, temperature=temperature)
    np.testing.assert_allclose(jitted(student, teacher), expected, rtol=1e-6)


def test_a_finite_mask_stays_finite():
    """finfo.min over a temperature below 1, or below a positive maximum, does not become -inf."""
    student = jnp.array([[5.0, LOWEST, 1.0]])
    value, slope = jax.value_and_grad(lambda s: losses.soft_target_kl(s, s, temperature=0.5).sum())(student)
    assert value == 0 and (slope == 0).all()


def test_small_divergences_of_all_forms():
    """At a KL of 3e-6 and of 3e-8 every form keeps three digits; nothing is negative."""
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(8, 1000)).astype(np.float32)
    eye = jnp.eye(1000)
    for size in (2.5e-3, 2.5e-4):
        student = (teacher + size * rng.normal(size=teacher.shape)).astype(np.float32)
        kl = references.soft_target_kl(student, teacher, temperature=1.0)
        jsd = references.generalized_jsd(student, teacher)
        values = {
            "dense": (losses.soft_target_kl(student, teacher, temperature=1.0), kl),
            "chunked": (losses.linear_soft_target_kl(student, eye, teacher, eye), kl),
            "frames": (losses.frame_kl(student[None], teacher[None], blank_weight=1.0)[0], kl),
            "attention": (losses.attention_kl(student[None, None], teacher[None, None])[0], kl),
            "channels": (
                losses.channel_kl(student.T[None, None], teacher.T[None, None], temperature=1.0) * 8,
                kl.sum(),
            ),
            "dense JSD": (losses.generalized_jsd(student, teacher), jsd),
            "chunked JSD": (losses.linear_generalized_jsd(student, eye, teacher, eye), jsd),
        }
        for name, (value, expected) in values.items():
            np.testing.assert_allclose(value, expected, rtol=1e-3, err_msg=f"{name}, {size}")
