"""Tf-KD's virtual teacher is a teacher: a frozen one that says what the formula says, and reads the label for it."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from jaxkd import losses, term
from tests import tiny
from tests.schemes import self_runs

CORRECT, TEMPERATURE = 0.9, 5.0


def table():
    """p_d of each class, from the paper: a for the label, and the rest evenly."""
    rest = (1 - CORRECT) / (tiny.CLASSES - 1)
    return np.where(np.eye(tiny.CLASSES, dtype=bool), CORRECT, rest)


def test_virtual_teacher_is_a_frozen_teacher():
    virtual = term(losses.virtual_teacher_kl, "student/logits", "batch/label", correct=CORRECT, temperature=TEMPERATURE)
    real = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=TEMPERATURE)
    model = jaxkd.adapters.plain(lambda key, y: jnp.zeros((3, 3)), lambda w, y: w[y], inputs="label")
    teacher = jaxkd.teachers.frozen(model, jaxkd.Variables(jnp.log(jnp.asarray(table(), jnp.float32))))
    batches, sgd = [tiny.batch(8, i) for i in range(3)], optax.sgd(0.1, momentum=0.9)
    one = jaxkd.distill(tiny.student, jaxkd.teachers.none(), jaxkd.combine(kd=virtual), optimizer=sgd)
    other = jaxkd.distill(tiny.student, teacher, jaxkd.combine(kd=real), optimizer=sgd)
    state, found = self_runs.run(one, batches)
    expected, metrics = self_runs.run(other, batches)
    tiny.assert_close(state.student, expected.student)
    np.testing.assert_allclose([m["kd"] for m in found], [m["kd"] for m in metrics], rtol=1e-5)


def test_value_from_the_formula():
    given = tiny.batch(8)
    logits = np.random.default_rng(0).normal(size=(8, 3))
    target = np.log(table()[given["label"]])
    found = losses.virtual_teacher_kl(
        jnp.asarray(logits, jnp.float32), given["label"], correct=CORRECT, temperature=TEMPERATURE
    )
    np.testing.assert_allclose(jax.device_get(found).mean(), self_runs.kl(target, logits, TEMPERATURE), rtol=1e-5)
