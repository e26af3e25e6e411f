"""Low-rank additions: they begin as the trained model, train alone, and share its weights with the teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import losses, objectives, teachers, wrappers
from jaxkd.wrappers import lora, merge_lora, with_base

RNG = np.random.default_rng(0)
WEIGHTS = {
    "first": {"kernel": RNG.normal(size=(6, 2, 4)).astype(np.float32), "bias": np.zeros(8, np.float32)},
    "second": {"kernel": RNG.normal(size=(8, 5)).astype(np.float32)},
}
BATCH = {"x": RNG.normal(size=(7, 6)).astype(np.float32), "label": RNG.integers(0, 5, 7)}


def forward(w, x):
    hidden = jnp.tanh(x @ w["first"]["kernel"].reshape(6, 8) + w["first"]["bias"][None])
    return hidden @ w["second"]["kernel"]


MODEL = jaxkd.adapters.plain(lambda key, x: jax.tree.map(jnp.zeros_like, WEIGHTS), forward, inputs="x")
LORA = lora(MODEL, jaxkd.Variables(WEIGHTS), rank=2, alpha=3.0)


def test_it_begins_as_the_trained_model():
    variables = LORA.init(jax.random.key(0), BATCH)
    assert jax.tree.map(jnp.shape, variables.params) == {
        "first": {"kernel": {"a": (6, 2), "b": (2, 8)}},
        "second": {"kernel": {"a": (8, 2), "b": (2, 5)}},
    }
    outputs, _ = LORA.apply(variables, BATCH, key=None, train=False)
    np.testing.assert_allclose(outputs["logits"], forward(WEIGHTS, BATCH["x"]), rtol=1e-5)
    with pytest.raises(ValueError, match="merge_lora: expected the variables of a model from lora"):
        merge_lora(jaxkd.Variables(WEIGHTS))


def test_merged_weights_are_those_of_the_formula():
    variables = LORA.init(jax.random.key(0), BATCH)
    params = jax.tree.map(lambda x: x + 0.1, variables.params)
    merged = merge_lora(variables._replace(params=params))
    a, b = (np.float64(params["first"]["kernel"][name]) for name in "ab")
    want = np.float64(WEIGHTS["first"]["kernel"]) + 3 / 2 * (a @ b).reshape(6, 2, 4)
    np.testing.assert_allclose(merged.params["first"]["kernel"], want, rtol=1e-5)
    outputs, _ = LORA.apply(variables._replace(params=params), BATCH, key=None, train=False)
    np.testing.assert_allclose(outputs["logits"], MODEL.apply(merged, BATCH, key=None, train=False)[0]["logits"])


def test_the_base_is_the_teacher_and_is_held_once():
    objective = objectives.select(
        jaxkd.combine(
            kd=jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits"),
            ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label"),
        ),
        teacher="base",
    )
    kd = jaxkd.distill(with_base(MODEL, LORA), teachers.none(), objective, optimizer=optax.adam(0.1))
    state = kd.init(jax.random.key(0), BATCH)
    sizes = {size(WEIGHTS): "base", size(state.student.params): "additions"}
    assert len(sizes) == 2
    # One copy of the weights, the additions, and two moments of the additions; keys and counters take a few bytes.
    held = sum(x.nbytes for x in jax.tree.leaves((state.student, state.teacher, state.opt_state, state.objective)))
    assert held - size(WEIGHTS) - 3 * size(state.student.params) < 64
    step = jax.jit(kd.step)
    first = None
    for _ in range(3):
        state, metrics = step(state, BATCH)
        first = metrics if first is None else first
    for old, new in zip(jax.tree.leaves(WEIGHTS), jax.tree.leaves(state.student.state["base"]), strict=True):
        np.testing.assert_array_equal(old, new)
    assert metrics["ce"].sum < first["ce"].sum
    assert first["kd"].sum == 0 < metrics["kd"].sum


def size(tree):
    return sum(x.nbytes for x in jax.tree.leaves(tree))


def test_a_part_is_selected_and_wrong_arguments_are_named():
    variables = lora(MODEL, jaxkd.Variables(WEIGHTS), include="second").init(jax.random.key(0), BATCH)
    assert list(variables.params) == ["second"]
    with pytest.raises(ValueError, match="lora, rank: expected a number of at least 1, got 0"):
        lora(MODEL, jaxkd.Variables(WEIGHTS), rank=0)
    with pytest.raises(ValueError, match="lora, alpha: expected a positive number, got -1"):
        lora(MODEL, jaxkd.Variables(WEIGHTS), alpha=-1.0)
    with pytest.raises(ValueError, match="lora, include: expected kernels of two or more axes, got 'first/bias'"):
        lora(MODEL, jaxkd.Variables(WEIGHTS), include="bias").init(jax.random.key(0), BATCH)
    assert wrappers.lora is lora
