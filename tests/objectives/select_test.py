"""An objective between parts of the student: selection of the parts, and no gradient to the teacher part."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, objectives, term
from jaxkd.objectives import select
from jaxkd.types import Context

RNG = np.random.default_rng(0)
STUDENT = {
    name: jnp.asarray(RNG.normal(size=shape), jnp.float32)
    for name, shape in {
        "logits": (5, 3),
        "a/logits": (5, 3),
        "a/b/logits": (5, 3),
        "a/f": (5, 4),
        "b/f": (5, 2),
    }.items()
}
TEACHER = {"logits": jnp.asarray(RNG.normal(size=(5, 3)), jnp.float32)}
CONTEXT = Context(STUDENT, TEACHER, {"label": jnp.arange(5) % 3, "mask": jnp.arange(5) < 4}, jnp.int32(3))
KL = term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=lambda step: 0.5 * step)


@pytest.mark.parametrize(
    ("student", "teacher", "expected"),
    [
        ("a", "a/b", ("a/logits", "a/b/logits")),
        ("a/b", "", ("a/b/logits", "logits")),
        ("", "a", ("logits", "a/logits")),
        ("a", None, ("a/logits", None)),
    ],
)
def test_named_parts_are_compared(student, teacher, expected):
    s, t = STUDENT[expected[0]], TEACHER["logits"] if expected[1] is None else STUDENT[expected[1]]
    plain = CONTEXT._replace(student={"logits": s}, teacher={"logits": t})
    found = select(KL, student=student, teacher=teacher).apply({}, {}, CONTEXT, None)
    wanted = KL.apply({}, {}, plain, None)
    assert float(found.value) == float(wanted.value) > 0
    assert found.metrics.keys() == wanted.metrics.keys()


def test_teacher_part_receives_no_gradient():
    objective = select(KL, student="a", teacher="a/b")
    slope = jax.grad(lambda s: objective.apply({}, {}, CONTEXT._replace(student=s), None).value)(STUDENT)
    assert (slope["a/logits"][:4] != 0).any()
    assert not any((x != 0).any() for name, x in slope.items() if name != "a/logits")


def test_parameters_fit_the_parts():
    hint = objectives.hint("student/f", "teacher/f")
    made = select(hint, student="a", teacher="b").init(jax.random.key(0), CONTEXT)
    assert made.params["kernel"].shape == (4, 2)
    shapes = jax.eval_shape(lambda: CONTEXT._replace(step=0))
    assert select(hint, student="b", teacher="a").init(jax.random.key(0), shapes).params["kernel"].shape == (2, 4)


def test_unknown_part_raises():
    with pytest.raises(ValueError, match="select: expected outputs of 'c', and the model has 'a', 'a/b', 'b'"):
        select(KL, student="c").init(jax.random.key(0), CONTEXT)
    with pytest.raises(ValueError, match=r"no parts.*wrappers.joint"):
        select(KL, teacher="c").apply({}, {}, CONTEXT._replace(student={"logits": STUDENT["logits"]}), None)
