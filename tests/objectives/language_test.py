"""Objectives of language models: values from NumPy, learned maps, masks and schedules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Context, objectives
from tests import references
from tests.objectives import plain

BATCH, TOKENS = 2, 4
MASK = np.array([[True, True, True, False], [True, True, False, False]])


def layer(number, width, heads=2):
    attention = (BATCH, TOKENS, heads, width // heads)
    return {f"hidden{number}": (BATCH, TOKENS, width), f"scores{number}": (BATCH, heads, TOKENS, TOKENS)} | {
        f"{name}{number}": attention for name in ("queries", "keys", "values")
    }


GIVEN = plain.context(
    layer(0, 6) | layer(1, 6) | {"embedding": (BATCH, TOKENS, 6)},
    layer(0, 8) | layer(1, 8) | layer(3, 8) | {"embedding": (BATCH, TOKENS, 8)},
    mask=MASK,
)


def value(objective, params=None, given=GIVEN):
    return float(jax.jit(lambda p, c: objective.apply(p, {}, c, None).value)(params or {}, given))


def mean(values):
    """Averages over the tokens that the mask includes."""
    return values[MASK].mean()


def kept(number):
    """Returns the tokens of an example that the mask includes, the others being no keys."""
    return MASK[number].sum()


def attention_kl(student, teacher):
    result = np.zeros((BATCH, TOKENS))
    for row in range(BATCH):
        n = kept(row)
        p, q = (references.log_softmax(np.float64(x[row, :, :n, :n])) for x in (teacher, student))
        result[row, :n] = (np.exp(p) * (p - q)).sum(-1).mean(0)
    return mean(result)


def relation(x, heads):
    """Returns the scores ``[batch, heads, tokens, tokens]`` of joined and split heads."""
    x = np.float64(x).reshape(BATCH, TOKENS, heads, -1)
    return np.einsum("bqhd,bkhd->bhqk", x, x) / np.sqrt(x.shape[-1])


def test_minilm_is_the_sum_of_attention_and_values():
    student, teacher = GIVEN.student, GIVEN.teacher
    want = attention_kl(student["scores1"], teacher["scores3"])
    want += attention_kl(relation(student["values1"], 2), relation(teacher["values3"], 2))
    np.testing.assert_allclose(value(objectives.minilm(1, 3)), want, rtol=1e-5)


def test_minilm_v2_splits_joined_heads():
    """Both networks have two attention heads; one relation head joins them."""
    student, teacher = GIVEN.student, GIVEN.teacher
    want = sum(
        attention_kl(relation(student[f"{name}1"], 1), relation(teacher[f"{name}3"], 1))
        for name in ("queries", "keys", "values")
    )
    np.testing.assert_allclose(value(objectives.minilm_v2(1, 3, heads=1)), want, rtol=1e-5)


def test_tinybert_maps_layers_by_one_projection():
    objective = objectives.tinybert({0: 1, 1: 3})
    params = plain.made(objective, GIVEN).params
    assert jax.tree.map(np.shape, params) == {
        "hidden": {"kernel": (6, 8), "bias": (8,)},
        "embedding": {"kernel": (6, 8), "bias": (8,)},
    }
    exact, student, teacher = plain.f64(params), plain.f64(GIVEN.student), plain.f64(GIVEN.teacher)
    embedded = plain.dense(exact["embedding"], student["embedding"])
    want = mean(((embedded - teacher["embedding"]) ** 2).mean(-1))
    for i, j in ((0, 1), (1, 3)):
        hidden = plain.dense(exact["hidden"], student[f"hidden{i}"])
        want += mean(((hidden - teacher[f"hidden{j}"]) ** 2).mean(-1))
        attention = np.zeros((BATCH, TOKENS))
        for row in range(BATCH):
            n = kept(row)
            difference = student[f"scores{i}"][row, :, :n, :n] - teacher[f"scores{j}"][row, :, :n, :n]
            attention[row, :n] = (difference**2).mean(-1).mean(0)
        want += mean(attention)
    np.testing.assert_allclose(value(objective, params), want, rtol=1e-5)


def test_tinybert_of_one_width_learns_nothing_and_ignores_padding():
    same = GIVEN._replace(student=GIVEN.teacher)
    objective = objectives.tinybert({1: 3, 3: 3}, embedding_name=None)
    assert objective.init(jax.random.key(0), jax.eval_shape(lambda: same)).params == {}
    student = {name: jnp.asarray(x) for name, x in GIVEN.student.items()}
    objective = objectives.tinybert({1: 3})
    params = plain.made(objective, GIVEN).params
    spoiled = student | {name: student[name].at[:, -1].set(jnp.nan) for name in ("hidden1", "embedding")}
    gradient = jax.jit(jax.grad(lambda p, c: objective.apply(p, {}, c, None).value))
    for name, given in (("clean", student), ("spoiled", spoiled)):
        found = gradient(params, GIVEN._replace(student=given))
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found)), name


def test_mobilebert_learns_one_layer_after_the_other():
    given = GIVEN._replace(student=plain.context(layer(0, 8) | layer(1, 8), {}).student)
    objective = objectives.mobilebert({1: 3, 0: 1}, steps_per_layer=5)
    run = jax.jit(lambda c: objective.apply({}, {}, c, None))
    wants = []
    for i, j in ((0, 1), (1, 3)):
        square = (np.float64(given.student[f"hidden{i}"]) - given.teacher[f"hidden{j}"]) ** 2
        attention = attention_kl(given.student[f"scores{i}"], given.teacher[f"scores{j}"])
        wants.append(mean(square.mean(-1)) + attention)
    for step, want in ((0, wants[0]), (4, wants[0]), (5, wants[1]), (9, wants[1]), (10, 0)):
        np.testing.assert_allclose(run(given._replace(step=jnp.int32(step))).value, want, rtol=1e-5)


def test_distilbert_weighs_three_terms():
    given = plain.context(
        {"logits": (BATCH, TOKENS, 5), "hidden": (BATCH, TOKENS, 6)},
        {"logits": (BATCH, TOKENS, 5), "hidden": (BATCH, TOKENS, 6)},
        mask=MASK,
        label=np.array([[-100, 3, -100, -100], [4, -100, -100, -100]]),
        selected=np.array([[False, True, False, False], [True, False, False, False]]),
    )
    student, teacher = plain.f64(given.student), plain.f64(given.teacher)
    p, q = (references.log_softmax(x["logits"] / 2) for x in (teacher, student))
    log_q = references.log_softmax(student["logits"])
    a, b = student["hidden"], teacher["hidden"]
    cosine = (a * b).sum(-1) / np.linalg.norm(a, axis=-1) / np.linalg.norm(b, axis=-1)
    want = 5 * 4 * mean((np.exp(p) * (p - q)).sum(-1)) + mean(1 - cosine)
    want += 2 * -(log_q[0, 1, 3] + log_q[1, 0, 4]) / 2
    np.testing.assert_allclose(value(objectives.distilbert(), given=given), want, rtol=1e-5)


def test_embeddings_are_compared_behind_one_map():
    given = plain.context({"embedding": (5, 3)}, {"embedding": (5, 4)}, mask=np.array([True, True, True, True, False]))
    objective = objectives.embedding_transfer(mse=2.0, cosine=0.5, contrastive=0.1, relational=3.0)
    params = plain.made(objective, given).params
    assert jax.tree.map(np.shape, params) == {"embedding": {"kernel": (3, 4), "bias": (4,)}}
    e, t = (np.float64(x["embedding"][:4]) for x in (given.student, given.teacher))
    mapped = plain.dense(plain.f64(params["embedding"]), e)
    cosine = (mapped * t).sum(-1) / np.linalg.norm(mapped, axis=-1) / np.linalg.norm(t, axis=-1)
    want = 2 * ((mapped - t) ** 2).mean() + 0.5 * (1 - cosine).mean()
    want += 0.1 * references.info_nce(mapped, t).mean() + 3 * references.distance_relation(e, t).mean()
    np.testing.assert_allclose(value(objective, params, given), want, rtol=1e-4)


def test_errors_name_what_was_expected():
    with pytest.raises(ValueError, match="tinybert, layer_map: expected a layer of the teacher for each"):
        objectives.tinybert({})
    with pytest.raises(ValueError, match="mobilebert, steps_per_layer: expected a positive number"):
        objectives.mobilebert({0: 0}, steps_per_layer=0)
    with pytest.raises(ValueError, match="expected a weight other than 0"):
        objectives.embedding_transfer(mse=0)
    with pytest.raises(ValueError, match="'hidden7': there is no such name"):
        objectives.tinybert({7: 1}).init(jax.random.key(0), jax.eval_shape(lambda: GIVEN))
    odd = Context({**GIVEN.student, "hidden1": np.ones((BATCH, TOKENS, 5))}, GIVEN.teacher, {}, 0)
    with pytest.raises(ValueError, match="hidden: expected features of one size for each network"):
        objectives.tinybert({0: 1, 1: 3}).init(jax.random.key(0), jax.eval_shape(lambda: odd))
