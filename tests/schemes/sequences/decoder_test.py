"""`schemes.on_policy` with a decoder, whose cache lives inside the step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import jaxkd
from jaxkd import adapters, losses, models, parallel, schemes, teachers, term
from tests import tiny

PROMPT, LENGTH, WORDS = 2, 3, 9
CONFIG = models.DecoderConfig(vocabulary=WORDS, width=8, layers=1, heads=2)
MODEL = adapters.nnx(lambda rngs: models.Decoder(CONFIG, rngs=rngs), inputs=models.token_inputs)
LOSS = jaxkd.combine(
    single=term(losses.reverse_kl, "student/logits", "teacher/logits"),
    to_go=term(schemes.sequences.reverse_kl_to_go, "student/logits", "teacher/logits", "batch/label"),
)


def batch(size, seed=0):
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, WORDS, (size, PROMPT + LENGTH)).astype(np.int32)
    where = np.tile(np.arange(PROMPT + LENGTH), (size, 1))
    return {
        "tokens": tokens,
        "label": np.pad(tokens[:, 1:], ((0, 0), (0, 1))),
        "mask": (where >= PROMPT - 1) & (where < PROMPT + LENGTH - 1),
        "index": np.arange(size, dtype=np.int32),
    }


def distiller():
    teacher = teachers.frozen(MODEL, MODEL.init(jax.random.key(3), batch(1)))
    kd = jaxkd.distill(MODEL, teacher, LOSS, optimizer=optax.sgd(0.5))
    generate = models.generator(
        lambda rngs: models.Decoder(CONFIG, rngs=rngs),
        prompt=PROMPT,
        length=LENGTH,
        end=0,
        entries=("tokens", "label", "mask"),
    )
    return schemes.on_policy(kd, generate, fraction=0.5)


@pytest.mark.slow
def test_the_step_trains_on_its_own_sequences():
    kd = distiller()
    state, step = kd.init(jax.random.key(0), batch(6)), jax.jit(kd.step)
    for seed in range(2):
        new, metrics = step(state, batch(6, seed))
        found = tiny.numbers(metrics)
        assert found["generated"] == 0.5 and np.isfinite(found["loss"])
        # Three sequences of the data have all their tokens, and the student's end where it draws 0.
        assert 3 * LENGTH + 3 <= metrics["single"].count <= 6 * LENGTH
        moved = jax.tree.map(lambda a, b: bool((a != b).any()), state.student.params, new.student.params)
        assert any(jax.tree.leaves(moved))
        state = new


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["pmap", "shard"])
def test_placement_equals_jit(placement):
    kd, devices = distiller(), jax.devices()[:4]
    mesh = Mesh(np.array(devices), (jaxkd.DATA_AXIS,))
    placed = parallel.pmap(kd, devices) if placement == "pmap" else parallel.shard(kd, mesh)
    state = kd.init(jax.random.key(0), batch(6))
    other, step = jax.tree.map(jnp.copy, state), jax.jit(kd.step)
    for seed in range(2):
        state, expected = step(state, batch(6, seed))
        other, found = placed(other, batch(6, seed))
        assert tiny.numbers(found) == pytest.approx(tiny.numbers(expected), rel=1e-4, abs=1e-5)
    tiny.assert_close(other, state, rtol=1e-4, atol=1e-5)
