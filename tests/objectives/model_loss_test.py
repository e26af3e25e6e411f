"""A scalar loss of the model: its value, its count under masks and devices, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import Context, combine, objectives
from tests import objective_runs, tiny

OBJECTIVE = objectives.model_loss("student/aux_loss", weight=0.5)


def context(scalar, **batch):
    return Context({"aux_loss": jnp.asarray(scalar)}, {}, {"label": np.zeros(4, int), **batch}, 0)


@pytest.mark.parametrize(("mask", "value", "count"), [((1, 1, 1, 1), 1.5, 4), ((0, 1, 0, 0), 1.5, 1), ((0,) * 4, 0, 0)])
def test_value_counts_the_unmasked_examples(mask, value, count):
    out = OBJECTIVE.apply({}, {}, context(3.0, mask=np.array(mask, bool)), None)
    assert (float(out.value), float(out.metrics[""].sum), float(out.metrics[""].count)) == (value, 3.0 * count, count)


def test_devices_are_merged_by_their_examples():
    """Each device has the scalar of its own share; here both have the same."""
    given = {
        "student": {"aux_loss": np.full(2, 3.0, np.float32)},
        "teacher": {},
        "batch": {"mask": np.array([[True, True], [True, False]])},
    }

    def local(student, batch, scale):
        made = Context({"aux_loss": student["aux_loss"] * scale}, {}, batch, 0, objective_runs.AXIS)
        return jax.lax.pmean(OBJECTIVE.apply({}, {}, made, None).value, objective_runs.AXIS)

    scale = np.array([1.0, 4.0], np.float32)
    found = jax.vmap(local, axis_name=objective_runs.AXIS)(given["student"], given["batch"], scale)
    np.testing.assert_allclose(found, 0.5 * (2 * 3 + 1 * 12) / 3, rtol=1e-6)


def test_student_trains_on_its_own_loss():
    def apply(params, image):
        return {"logits": image.reshape(len(image), -1) @ params, "aux_loss": jnp.mean(params**2)}

    model = jaxkd.adapters.plain(lambda key, image: jnp.ones((32, 3)), apply)
    kd = jaxkd.distill(model, jaxkd.teachers.none(), combine(aux=OBJECTIVE), optimizer=optax.sgd(0.1))
    state = kd.init(jax.random.key(0), tiny.batch(4))
    state, metrics = kd.step(state, tiny.batch(4))
    np.testing.assert_allclose(state.student.params, 1 - 0.1 * 0.5 * 2 / 96, rtol=1e-6)
    assert tiny.numbers(metrics)["aux"] == 1.0


def test_output_other_than_a_scalar_raises():
    for output in np.ones(4, np.float32), np.int32(1):
        with pytest.raises(ValueError, match=r"model_loss, student/aux_loss: expected a floating-point scalar, got"):
            OBJECTIVE.init(jax.random.key(0), context(output))
    with pytest.raises(ValueError, match="student entry 'aux_loss'"):
        OBJECTIVE.init(jax.random.key(0), Context({}, {}, {}, 0))
