"""`preprocess`: a distiller that transforms its batches first."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from jaxkd import combine, losses, term
from tests import tiny


def test_training_and_evaluation_have_separate_transforms():
    objective = combine(kd=term(losses.soft_target_kl, "student/logits", "teacher/logits"))
    kd = jaxkd.distill(tiny.student, tiny.teacher(), objective, optimizer=optax.sgd(0.1))
    double = lambda batch: {**batch, "image": 2.0 * batch["image"].astype(jnp.float32)}  # noqa: E731
    triple = lambda batch: {**batch, "image": 3.0 * batch["image"].astype(jnp.float32)}  # noqa: E731
    raw = {**tiny.batch(4), "image": np.arange(4 * 32, dtype=np.uint8).reshape(4, 4, 4, 2)}
    whole = jaxkd.distillers.preprocess(kd, train_transform=double, eval_transform=triple)
    state = whole.init(jax.random.key(0), raw)
    tiny.assert_equal(state, kd.init(jax.random.key(0), double(raw)))
    tiny.assert_close(whole.step(state, raw), kd.step(state, double(raw)))
    tiny.assert_close(whole.evaluate(state, raw), kd.evaluate(state, triple(raw)))
    same = jaxkd.distillers.preprocess(kd)
    tiny.assert_equal(same.evaluate(state, tiny.batch(4)), kd.evaluate(state, tiny.batch(4)))
