"""Bounds of the divergence to a teacher of k classes: they enclose the true one, with and without errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Context
from jaxkd.cache import codecs
from jaxkd.metrics import compute, kl_bounds
from tests import references


@pytest.mark.parametrize(
    "codec",
    [codecs.top_k(6, "float32"), codecs.packed_top_k(6, levels=4), codecs.packed_top_k(40, levels=64)],
    ids=["exact", "coarse", "whole"],
)
def test_bounds_enclose_the_true_divergence(codec):
    """Token by token, for students near to the teacher and far from it."""
    rng = np.random.default_rng(0)
    teacher = 2 * rng.normal(size=(1, 50, 40)).astype(np.float32)
    student = teacher + np.linspace(0, 3, 50, dtype=np.float32)[None, :, None] * rng.normal(size=teacher.shape)
    decoded = jax.jit(lambda x: codec.decode(codec.encode(x), (50, 40)))(teacher)
    named = {f"logits{suffix}": x[0] for suffix, x in decoded.items()}

    @jax.jit
    def bounds(row, outputs):
        single = {name: x[None] for name, x in outputs.items()}
        found = kl_bounds(Context({"logits": row[None]}, single, {}, 0))
        return found["kl_lower"].sum, found["kl_upper"].sum

    lower, upper = jax.vmap(bounds)(jnp.asarray(student[0], jnp.float32), named)
    true = references.soft_target_kl(student[0], teacher[0], temperature=1.0)
    assert (lower <= true + 1e-5).all() and (true <= upper + 1e-5).all()
    assert (lower > 0).any()
    if codec.settings.get("levels") != 4:
        assert np.mean(upper - lower) < 3 * np.mean(true), "the bounds say something"


def test_masked_tokens_do_not_count():
    teacher = {"f/log_probs": np.log([[[0.6], [0.5]]]).astype(np.float32), "f/indices": np.array([[[0], [1]]])}
    student = {"f": np.zeros((1, 2, 3), np.float32)}
    given = Context(student, teacher, {"mask": np.array([[True, False]])}, 0)
    found = compute(jax.jit(lambda context: kl_bounds(context, output="f"))(given))
    want = 0.6 * np.log(0.6 * 3) + 0.4 * np.log(0.4 / (2 / 3))
    np.testing.assert_allclose(found["kl_lower"], want, rtol=1e-5)
    # all of the tail's 0.4 in one class, of which the student has 1/3
    np.testing.assert_allclose(found["kl_upper"], 0.6 * np.log(0.6 * 3) + 0.4 * np.log(0.4 * 3), rtol=1e-5)
