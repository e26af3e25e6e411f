"""`linear_kd` is the sum of its two terms: values, metrics, masks, schedules, and gradients of a step."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import losses, teachers, term, wrappers
from jaxkd.objectives import linear_kd
from tests import tiny

WORDS, HIDDEN = 7, 4


def init(key, word):
    one, two = jax.random.split(key)
    table = jax.random.normal(one, (WORDS, HIDDEN))
    return {"embedding": table, "kernel": jax.random.normal(two, (HIDDEN, WORDS))}


MODEL = jaxkd.adapters.plain(init, lambda p, word: {"hidden": jnp.tanh(p["embedding"][word])}, inputs="word")
TAUGHT = MODEL.init(jax.random.key(7), {"word": jnp.zeros((1, 3), int)})
RANDOM = np.random.default_rng(0)
BATCH = {
    "word": RANDOM.integers(0, WORDS, (4, 3)).astype(np.int32),
    "label": RANDOM.integers(0, WORDS, (4, 3)).astype(np.int32),
    "mask": np.array([[1, 1, 1], [1, 0, 0], [0, 0, 0], [1, 1, 0]], bool),
}
STUDENT, TEACHER = ("student/hidden", "student_params/kernel"), ("teacher/hidden", "teacher_params/kernel")
TIED = ("student/hidden", "student_params/embedding")


def halving(step):
    return 0.5**step


def warming(step):
    return 1.0 + step


def one_pass(student=STUDENT, **options):
    return linear_kd(
        *student, *TEACHER, "batch/label", label_weight=halving, teacher_weight=0.7, temperature=warming, **options
    )


def two_terms(student=STUDENT):
    transpose = ".T" if student is TIED else ""
    student = student[0], student[1] + transpose
    return jaxkd.combine(
        ce=term(losses.linear_cross_entropy, *student, "batch/label", weight=halving),
        kd=term(losses.linear_soft_target_kl, *student, *TEACHER, weight=0.7, temperature=warming),
    )


def trained(objective, model=MODEL, batch=BATCH, steps=2):
    kd = jaxkd.distill(
        model, teachers.frozen(MODEL, TAUGHT), objective, optimizer=optax.sgd(1.0), metrics=lambda context: {}
    )
    state, step = kd.init(jax.random.key(0), batch), jax.jit(kd.step)
    for _ in range(steps):
        state, metrics = step(state, batch)
    return state.student.params, tiny.numbers(metrics)


@pytest.mark.parametrize(
    "student, options", [(STUDENT, {}), (TIED, {"transposed": (True, False)})], ids=["head", "tied"]
)
def test_a_step_is_that_of_the_two_terms(student, options):
    params, metrics = trained(one_pass(student, **options))
    expected, right = trained(two_terms(student))
    assert metrics.keys() == right.keys() and {"ce", "kd", "ce/weight", "kd/weight", "loss"} <= metrics.keys()
    assert metrics == pytest.approx(right, rel=1e-5)
    tiny.assert_close(params, expected, rtol=1e-5, atol=1e-6)


def test_masked_tokens_may_hold_anything():
    spoiled = BATCH | {"label": np.where(BATCH["mask"], BATCH["label"], -100)}
    params, metrics = trained(one_pass())
    again, same = trained(one_pass(), batch=spoiled)
    assert metrics == same
    tiny.assert_equal(again, params)
    named = {k: x for k, x in spoiled.items() if k != "mask"} | {"response": BATCH["mask"]}
    again, same = trained(one_pass(where="batch/response"), batch=named)
    assert same == pytest.approx(metrics, rel=1e-6)
    tiny.assert_close(again, params, rtol=1e-6, atol=1e-7)


def test_micro_batches_give_the_step_of_the_whole_batch():
    params, metrics = trained(one_pass(), wrappers.accumulate(MODEL, 2))
    expected, right = trained(one_pass())
    assert metrics == pytest.approx(right, rel=1e-5)
    tiny.assert_close(params, expected, rtol=1e-5, atol=1e-6)


def test_it_nests_in_a_combination():
    _, metrics = trained(jaxkd.combine(words=one_pass(), again=two_terms()), steps=1)
    assert metrics["words/ce"] == pytest.approx(metrics["again/ce"], rel=1e-5)
    assert metrics["words/kd"] == pytest.approx(metrics["again/kd"], rel=1e-5)


def test_wrong_paths():
    with pytest.raises(ValueError, match=r"linear_kd: expected the paths.*got 4 paths"):
        linear_kd(*STUDENT, *TEACHER)
