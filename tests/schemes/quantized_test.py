"""Quantized students in distillation."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import jaxkd
from jaxkd import Variables, combine, losses, term
from jaxkd.wrappers import learned_codebook, quantize, quantize_with, quantized
from tests import tiny

KD = combine(
    kd=term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0),
    feature=term(losses.logit_mse, "student/logits", "teacher/logits", weight=0.1),
)
BASE = jax.tree.map(lambda x: 2 * x, tiny.student.init(jax.random.key(3), tiny.batch(2)))
STUDENTS = {
    "straight": quantized(tiny.student, bits=2, bucket=8),
    "points": learned_codebook(tiny.student, BASE, bits=2, bucket=8),
}


def distiller(student, rate=0.1):
    return jaxkd.distill(student, tiny.teacher(), KD, optimizer=optax.sgd(rate, momentum=0.9))


def run(kd, batches, step=None, state=None):
    state = kd.init(jax.random.key(1), batches[0]) if state is None else state
    step, found = step or jax.jit(kd.step), []
    for batch in batches:
        state, metrics = step(state, batch)
        found.append(tiny.numbers(metrics))
    return state, found


@pytest.mark.slow
def test_quantized_training_beats_quantization_afterwards():
    """With one bit: rounding in or after training, and learned points."""
    batches = jax.tree.map(lambda *x: jnp.stack(x), *[tiny.batch(16, i) for i in range(8)])
    held_out, coarse = tiny.batch(64, 99), {"bits": 1, "bucket": 8}

    def trained(student, rate):
        kd = distiller(student, rate)
        epoch = lambda state, _: jax.lax.scan(kd.step, state, batches)  # noqa: E731
        run = jax.jit(lambda state: jax.lax.scan(epoch, state, None, length=40)[0])
        return run(kd.init(jax.random.key(1), tiny.batch(16))).student.params

    def loss(params):
        kd = distiller(tiny.student)
        state = kd.init(jax.random.key(1), held_out)._replace(student=Variables(params))
        return tiny.numbers(jax.jit(kd.evaluate)(state, held_out))["loss"]

    plain = trained(tiny.student, 0.1)
    rounded = loss(quantize(plain, **coarse))
    assert loss(plain) < 0.3 * rounded
    assert loss(quantize(trained(quantized(tiny.student, **coarse), 0.02), **coarse)) < 0.7 * rounded
    points = trained(learned_codebook(tiny.student, Variables(plain), **coarse), 0.02)
    assert loss(quantize_with(plain, points, bucket=8)) < 0.85 * rounded


def test_eight_bits_train_like_full_precision():
    batches = [tiny.batch(8, i) for i in range(5)]
    plain, expected = run(distiller(tiny.student), batches)
    state, found = run(distiller(quantized(tiny.student, bits=8)), batches)
    tiny.assert_close(state.student, plain.student, rtol=5e-2, atol=5e-3)
    assert found[-1]["loss"] == pytest.approx(expected[-1]["loss"], rel=5e-2)


def test_evaluation_uses_quantized_weights():
    kd, batch = distiller(STUDENTS["straight"]), tiny.batch(8)
    state, _ = run(kd, [batch])
    plain = distiller(tiny.student)
    dense = state._replace(student=Variables(quantize(state.student.params, bits=2, bucket=8)))
    evaluated = tiny.numbers(jax.jit(kd.evaluate)(state, batch))
    assert evaluated == pytest.approx(tiny.numbers(jax.jit(plain.evaluate)(dense, batch)), rel=1e-6)


@pytest.mark.parametrize("name", ["straight", "points"])
def test_shard_map_equals_jit_with_one_trace(name):
    kd, spec = distiller(STUDENTS[name]), jax.sharding.PartitionSpec
    mesh, traces = Mesh(np.array(jax.devices()[:4]), (jaxkd.DATA_AXIS,)), []

    @jax.jit
    def step(state, batch):
        traces.append(None)
        split = spec(jaxkd.DATA_AXIS)
        return jax.shard_map(kd.step, mesh=mesh, in_specs=(spec(), split), out_specs=spec())(state, batch)

    batches = [tiny.batch(8, i) for i in range(3)]
    start = kd.init(jax.random.key(1), batches[0])
    everywhere = jax.device_put(start, jax.NamedSharding(mesh, spec()))
    state, _ = run(kd, batches, step=step, state=everywhere)
    tiny.assert_close(state.student, run(kd, batches)[0].student, rtol=1e-4, atol=1e-5)
    assert jax.tree.map(jnp.shape, state.student) == jax.tree.map(jnp.shape, start.student)
    assert len(traces) == 1


@pytest.mark.slow
def test_fixed_weights_are_bit_exact_on_seven_devices():
    """A mean over seven devices is inexact, so fixed integers must not be averaged."""
    kd, count = distiller(STUDENTS["points"]), 7
    placed = jaxkd.parallel.pmap(kd, jax.devices()[:count], replicas=1)
    start = kd.init(jax.random.key(1), tiny.batch(count)).student
    state, _ = run(placed, [tiny.batch(count, i) for i in range(3)], step=placed)
    tiny.assert_equal(state.student.state, start.state)
    assert (state.student.params["first"] != start.params["first"]).any()
