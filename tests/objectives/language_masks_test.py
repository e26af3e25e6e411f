"""Objectives of language models in the contract's table: masks, devices, weights of 0 and narrow floats."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Objective, combine, losses, objectives, term
from jaxkd._core.batch_norm import replicas
from tests import objective_runs, tiny

BATCH, TOKENS, WORDS, HEADS, KEPT = 6, 5, 7, 2, 3
EXAMPLES = np.array([True, True, False, True, False, True])
WIDTHS = {"student": 4, "teacher": 6}
KERNELS = {
    side: 0.5 * np.random.default_rng(9).normal(size=(WIDTHS[side], WORDS)).astype(np.float32) for side in WIDTHS
}
MATCHES = np.array([[0, 1], [1, 0], [4, 5]])


class Row(NamedTuple):
    """An objective, and whether it reads tokens; of an example's embedding there are none to mask."""

    objective: Objective
    tokens: bool = True


def with_kernels(objective):
    """Gives an objective the kernels of both networks' last layers, which the runs of this file do not hold."""

    def full(context):
        return context._replace(student_params=KERNELS["student"], teacher_params=KERNELS["teacher"])

    return Objective(
        lambda key, context: objective.init(key, full(context)),
        lambda params, state, context, key: objective.apply(params, state, full(context), key),
    )


LINEAR = ("student/hidden0", "student_params", "teacher/hidden0", "teacher_params", "batch/label")
KD = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0)
SPANS = objectives.span_aligned(jnp.asarray(MATCHES))
ROWS = {
    "minilm": Row(objectives.minilm(0, 1, weight=0.5)),
    "minilm_v2": Row(objectives.minilm_v2(0, 1, heads=1, weight=2.0)),
    "tinybert": Row(objectives.tinybert({0: 1, 1: 1})),
    "mobilebert": Row(objectives.mobilebert({0: 0, 1: 1}, steps_per_layer=2, hidden_names="same{}")),
    "distilbert": Row(objectives.distilbert("student/same0", "teacher/same0")),
    "embedding_transfer": Row(
        objectives.embedding_transfer(
            "student/sentence", "teacher/sentence", cosine=0.5, contrastive=0.1, relational=3.0
        ),
        tokens=False,
    ),
    "span_aligned": Row(SPANS),
    "linear_kd": Row(with_kernels(objectives.linear_kd(*LINEAR, temperature=2.0))),
}


def outputs(rng, width):
    def draw(*shape):
        return rng.normal(size=(BATCH, *shape)).astype(np.float32)

    layers = {}
    for number in range(2):
        layers |= {f"hidden{number}": draw(TOKENS, width), f"same{number}": draw(TOKENS, 4)}
        layers[f"scores{number}"] = draw(HEADS, TOKENS, TOKENS)
        layers |= {f"{name}{number}": draw(TOKENS, HEADS, width // HEADS) for name in ("queries", "keys", "values")}
    return layers | {"embedding": draw(TOKENS, width), "sentence": draw(width), "logits": draw(TOKENS, WORDS)}


def arrays():
    rng = np.random.default_rng(0)
    given: dict[str, Any] = {side: outputs(rng, width) for side, width in WIDTHS.items()}
    ends = np.cumsum(rng.integers(1, 3, (2, BATCH, TOKENS)), axis=-1).astype(np.int32)
    labels = rng.integers(0, WORDS, (2, BATCH, TOKENS)).astype(np.int32)
    given["batch"] = {"label": labels[0], "teacher_label": labels[1], "ends": ends[0], "teacher_ends": ends[1]}
    given["batch"]["selected"] = np.arange(TOKENS)[None, :] % 2 == np.arange(BATCH)[:, None] % 2
    return given


def cropped(name, x):
    """Returns an array without the last tokens."""
    if name.startswith("scores"):
        return x[:, :, :KEPT, :KEPT]
    return x if name == "sentence" else x[:, :KEPT]


def by_name(function, given):
    return {side: {name: function(name, x) for name, x in own.items()} for side, own in given.items()}


def garbled(given, garbage, tokens):
    """Fills masked examples, and with ``tokens`` the last tokens of all, with garbage."""

    def fill(name, x):
        bad = np.asarray(garbage, x.dtype) if x.dtype == np.float32 else np.asarray(WORDS + 2, x.dtype)
        bad = np.bool_(True) if x.dtype == bool else x if "ends" in name else bad
        x = np.array(x)
        x[~EXAMPLES] = bad if "ends" not in name else x[~EXAMPLES]
        if tokens and name != "sentence" and "ends" not in name:
            if name.startswith("scores"):
                x[:, :, KEPT:], x[..., KEPT:] = bad, bad
            else:  # what is selected lies within the mask
                x[:, KEPT:] = bad if x.dtype != bool else False
        return x

    filled = by_name(fill, given)
    filled["batch"]["mask"] = EXAMPLES[:, None] & (np.arange(TOKENS) < KEPT)[None, :] if tokens else EXAMPLES
    return filled


def variables(row):
    made = objective_runs.initialize(row.objective, arrays())
    rng = np.random.default_rng(1)
    return jax.tree.map(lambda x: x + 0.1 * np.abs(rng.normal(size=x.shape)).astype(np.float32), made)


@pytest.mark.parametrize("tokens", [False, True], ids=["examples", "tokens"])
@pytest.mark.parametrize("name", ROWS)
def test_masked_equals_dropped(name, tokens):
    row, given = ROWS[name], arrays()
    if tokens and name == "span_aligned":
        given["batch"]["ends"][:, KEPT - 1] = given["batch"]["teacher_ends"][:, KEPT - 1] = 9  # no span over the crop
        given["batch"]["ends"][:, KEPT:] = given["batch"]["teacher_ends"][:, KEPT:] = [10, 11]
    made = variables(row)
    rest = jax.tree.map(lambda x: x[EXAMPLES], by_name(cropped, given) if tokens else given)
    want = objective_runs.run(row.objective, made, rest)
    assert any(np.abs(g).max() > 0 for g in jax.tree.leaves((want.student, want.params)))
    for garbage in np.nan, 1e30:
        found = objective_runs.run(row.objective, made, garbled(given, garbage, tokens))
        np.testing.assert_allclose(found.value, want.value, rtol=2e-5, atol=1e-6)
        tiny.assert_close(found.params, want.params, rtol=2e-4, atol=2e-5)
        for output, gradient in found.student.items():
            kept = cropped(output, gradient) if tokens else gradient
            np.testing.assert_allclose(kept[EXAMPLES], want.student[output], rtol=2e-4, atol=2e-5, err_msg=output)
            assert (gradient[~EXAMPLES] == 0).all()
            if tokens and output != "sentence":
                assert np.abs(gradient).sum() == pytest.approx(np.abs(kept).sum(), rel=1e-6), output


@pytest.mark.slow
@pytest.mark.parametrize("way, count", [("pmap", 2), ("shard_map", 2), ("jit", 2)])
@pytest.mark.parametrize("name", ROWS)
def test_devices_equal_one(name, way, count):
    row = ROWS[name]
    filled, made = garbled(arrays(), np.nan, row.tokens and name != "span_aligned"), variables(row)
    want = objective_runs.run(row.objective, made, filled)
    with replicas(1):
        found = objective_runs.on_devices(row.objective, way, count)(made, filled)
    np.testing.assert_allclose(found.value, want.value, rtol=2e-5, atol=1e-6)
    tiny.assert_close((found.params, found.student), (want.params, want.student), rtol=2e-4, atol=2e-5)


WEIGHTED = {
    "minilm": lambda weight: objectives.minilm(0, 1, weight=weight),
    "minilm_v2": lambda weight: objectives.minilm_v2(0, 1, heads=1, weight=weight),
    "tinybert": lambda weight: objectives.tinybert({0: 1}, weight=weight),
    "mobilebert": lambda weight: objectives.mobilebert({1: 1}, steps_per_layer=9, hidden_names="same{}", weight=weight),
    "embedding_transfer": lambda weight: objectives.embedding_transfer(
        "student/sentence", "teacher/sentence", mse=weight, cosine=lambda step: weight * step
    ),
    "distilbert": lambda weight: objectives.distilbert(
        "student/same0", "teacher/same0", soft_weight=weight, label_weight=weight, feature_weight=weight
    ),
    "span_aligned": lambda weight: objectives.span_aligned(jnp.asarray(MATCHES), weight=weight),
    "linear_kd": lambda weight: with_kernels(objectives.linear_kd(*LINEAR, label_weight=weight, teacher_weight=weight)),
}


@pytest.mark.parametrize("name", [pytest.param(name, marks=pytest.mark.slow) for name in WEIGHTED])
def test_a_weight_of_0_leaves_the_others_alone(name):
    """Bit for bit; and a weight of 2 counts twice."""
    given = arrays()
    alone = objective_runs.run(KD, objective_runs.initialize(KD, given), given)

    def beside(weight):
        both = combine(kd=KD, other=WEIGHTED[name](jnp.asarray(weight, jnp.float32)))
        return objective_runs.run(both, objective_runs.initialize(both, given), given)

    nothing, once, twice = (beside(weight) for weight in (0.0, 1.0, 2.0))
    assert float(nothing.value) == float(alone.value)
    tiny.assert_equal(nothing.student, alone.student)
    assert all((g == 0).all() for g in jax.tree.leaves(nothing.params))
    assert once.value != alone.value
    np.testing.assert_allclose(twice.value - alone.value, 2 * (once.value - alone.value), rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_bfloat16(name):
    """Losses are computed in float32, and gradients are rounded to the outputs' type."""
    row, given, made = ROWS[name], arrays(), variables(ROWS[name])
    narrow = {
        side: {n: jnp.asarray(x, jnp.bfloat16) if x.dtype == np.float32 else x for n, x in own.items()}
        for side, own in given.items()
    }
    wide = jax.tree.map(lambda x: np.asarray(x, np.float32) if x.dtype == jnp.bfloat16 else x, narrow)
    found, want = (objective_runs.run(row.objective, made, x) for x in (narrow, wide))
    assert found.value.dtype == jnp.float32
    np.testing.assert_allclose(found.value, want.value, rtol=2e-3)
    for output, gradient in found.student.items():
        assert gradient.dtype == jnp.bfloat16
        right = want.student[output]
        np.testing.assert_allclose(np.float32(gradient), right, atol=0.02 * np.abs(right).max() + 1e-7, err_msg=output)
