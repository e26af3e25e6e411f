"""Models that begin with trained variables: students, co-trained teachers and moving averages."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import losses, schemes, teachers, term, wrappers
from tests import tiny

CE = term(losses.cross_entropy, "student/logits", "batch/label")
TRAINED = jax.tree.map(np.asarray, tiny.student.init(jax.random.key(5), tiny.batch(1)))
KEY, BATCH = jax.random.key(0), tiny.batch(8)


def test_a_student_begins_with_a_copy():
    trained = jax.tree.map(jnp.asarray, TRAINED)
    kd = jaxkd.distill(wrappers.pretrained(tiny.student, trained), teachers.none(), CE, optimizer=optax.sgd(0.1))
    state = kd.init(KEY, BATCH)
    tiny.assert_equal(state.student, TRAINED)
    jax.tree.map(lambda x: x.delete(), state.student)
    tiny.assert_equal(trained, TRAINED)


def test_a_teacher_that_trains_begins_with_them():
    teacher = wrappers.pretrained(tiny.student, TRAINED)
    kd = schemes.online(tiny.student, teacher, CE, teacher_objective=CE, optimizer=optax.sgd(0.1))
    tiny.assert_equal(wrappers.get_member(kd.init(KEY, BATCH).student, "teacher"), TRAINED)


@pytest.mark.parametrize("own", [False, True])
def test_a_moving_average_begins_with_the_student_or_its_own(own):
    other = jax.tree.map(lambda x: 2 * x, TRAINED)
    teacher = teachers.ema(tiny.student, decay=0.75, variables=other if own else None)
    kd = jaxkd.distill(wrappers.pretrained(tiny.student, TRAINED), teacher, CE, optimizer=optax.sgd(0.1))
    state = kd.init(KEY, BATCH)
    tiny.assert_equal(state.teacher, other if own else TRAINED)
    new, _ = kd.step(state, BATCH)
    expected = jax.tree.map(lambda a, b: 0.75 * a + 0.25 * b, state.teacher, new.student)
    tiny.assert_close(new.teacher, expected)


def test_narrower_weights_are_widened():
    narrow = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TRAINED)
    begun = wrappers.pretrained(tiny.student, narrow).init(KEY, BATCH)
    tiny.assert_equal(begun, jax.tree.map(lambda x: x.astype(np.float32), narrow))


WRONG = {
    "a missing name": ({"first": TRAINED.params["first"]}, r"params/second is missing, for float32\[4,3\]"),
    "another name": ({**TRAINED.params, "third": np.ones(2)}, r"params/third is float32\[2\], for nothing"),
    "another shape": ({**TRAINED.params, "first": np.ones((3, 4), np.float32)}, r"params/first is float32\[3,4\], for"),
    "another kind": (
        {**TRAINED.params, "first": np.ones((2, 4), int)},
        r"params/first is int32\[2,4\], for float32\[2,4\]",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_other_weights_are_refused(name):
    params, message = WRONG[name]
    with pytest.raises(ValueError, match=f"pretrained, variables: .*{message}.*fit_to"):
        wrappers.pretrained(tiny.student, jaxkd.Variables(params)).init(KEY, BATCH)
    with pytest.raises(ValueError, match=f"ema, variables: .*{message}"):
        teachers.ema(tiny.student, variables=jaxkd.Variables(params)).init(KEY, BATCH, TRAINED)


def test_a_wrong_model_or_form_is_refused():
    with pytest.raises(TypeError, match="pretrained, model: expected a Model"):
        wrappers.pretrained(TRAINED, tiny.student)
    with pytest.raises(TypeError, match="Wrap bare parameters as"):
        wrappers.pretrained(tiny.student, TRAINED.params)
