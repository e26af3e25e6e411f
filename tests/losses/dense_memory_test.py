"""Compiled memory of value and gradient of dense losses, in arrays of logits."""

import functools

import jax
import jax.numpy as jnp
import pytest

from jaxkd import losses

TOKENS, WORDS, HIDDEN = 512, 4096, 16


@pytest.mark.slow
@pytest.mark.parametrize("loss", ["soft_target_kl", "generalized_jsd", "decoupled_kd"])
def test_five_arrays_of_logits(loss):
    """From hidden states on a CPU: at most the two arrays of logits and three more."""

    def total(student, kernel, teacher, labels):
        more = (labels,) if loss == "decoupled_kd" else ()
        return functools.partial(getattr(losses, loss), temperature=2.0)(student @ kernel, teacher, *more).mean()

    arrays = (TOKENS, HIDDEN), (HIDDEN, WORDS), (TOKENS, WORDS)
    described = (
        *(jax.ShapeDtypeStruct(shape, jnp.float32) for shape in arrays),
        jax.ShapeDtypeStruct((TOKENS,), jnp.int32),
    )
    memory = jax.jit(jax.value_and_grad(total, argnums=(0, 1))).lower(*described).compile().memory_analysis()
    assert 1 <= memory.temp_size_in_bytes / (4 * TOKENS * WORDS) < 5.1
