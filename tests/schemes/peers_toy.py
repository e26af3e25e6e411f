"""Helpers for tests of peers: a network with BatchNorm, runs, pmap against jit."""

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import losses, term
from tests import tiny

CE = term(losses.cross_entropy, "student/logits", "batch/label")
KL = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0)
SGD = optax.sgd(0.2, momentum=0.9)
CLIPPED = optax.chain(optax.clip_by_global_norm(0.05), SGD)
DEVICES = 4


class Network(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4)(x.reshape(x.shape[0], -1))
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(x)
        return nn.Dense(tiny.CLASSES)(nn.relu(x))


normed = jaxkd.adapters.linen(Network(), taps={"vector": "norm"}, inputs="image")
"""Model with BatchNorm, whose ``vector`` is its output, ``[batch, 4]``."""


def head(pool=True):
    """Returns a classifier for exits at ``map`` or, without pooling, at ``vector``."""

    def apply(params, feature):
        return (feature.mean(axis=(1, 2)) if pool else feature) @ params

    def init(key, feature):
        return jax.random.normal(key, (feature.shape[-1], tiny.CLASSES))

    return jaxkd.adapters.plain(init, apply, inputs="feature")


def run(kd, steps, *, size=8, step=None, state=None, seed=1, batch=tiny.batch):
    state = kd.init(jax.random.key(seed), batch(size)) if state is None else state
    step, found = step or jax.jit(kd.step), []
    for i in range(steps):
        state, metrics = step(state, batch(size, i))
        found.append(tiny.numbers(metrics))
    return state, found


def assert_placed(kd, *, size=6, steps=2, batch=tiny.batch):
    """Asserts that pmap, on padded batches, gives the results of jit."""
    expected, metrics = run(kd, steps, size=size, batch=batch)
    seen = tiny.numbers(jax.jit(kd.evaluate)(expected, batch(size)))
    placed = jaxkd.parallel.pmap(kd, jax.devices()[:DEVICES], replicas=1)
    state, found = run(kd, steps, size=size, step=placed, batch=batch)
    for one, other in zip(found, metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-5)
    assert tiny.numbers(placed.evaluate(state, batch(size))) == pytest.approx(seen, rel=1e-4, abs=1e-5)
    tiny.assert_close(state, expected, rtol=1e-3, atol=1e-5)


def gradients(objective, variables, context):
    """Returns value and gradients by objective parameters and student outputs."""

    def value(params, student):
        return objective.apply(params, variables.state, context._replace(student=student), jax.random.key(0)).value

    return jax.value_and_grad(value, (0, 1))(variables.params, dict(context.student))


def numeric(function, x, epsilon=1e-6):
    """Computes central differences of a function of one NumPy array."""
    slope = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[i] = epsilon
        slope[i] = (function(x + step) - function(x - step)) / (2 * epsilon)
    return slope
