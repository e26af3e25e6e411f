"""Which mask a term uses under a mask over tokens: one rule, as a table of arguments and losses."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Context, losses, objectives, term

BATCH, TOKENS = 3, 4
MASK = np.array([[True, True, False, False], [False] * 4, [True, False, True, True]])
EXAMPLES = MASK.any(1)


def pooled(student: Any, teacher: Any, *, where: Any = None) -> Any:
    """Mean over tokens ``[batch, tokens]``; it takes a mask over tokens alone."""
    where = jnp.ones(student.shape, bool) if where is None else jnp.asarray(where)
    if where.shape != student.shape:
        raise ValueError("where")
    return jnp.sum(jnp.where(where, (student - teacher) ** 2, 0), axis=1) / jnp.maximum(jnp.sum(where, axis=1), 1)


def bare(student: Any, teacher: Any) -> Any:
    return jnp.mean((student - teacher) ** 2, axis=tuple(range(1, student.ndim)))


def labeled(student: Any, label: Any) -> Any:
    return bare(student, jnp.zeros_like(student)) + jnp.sum(label, axis=1)


class Case(NamedTuple):
    """A loss, the shape of its arguments, and the mask that it is to have, or a part of the error."""

    loss: Any
    shape: tuple[int, ...]
    mask: str


CASES = {
    "logits_of_other_size": Case(losses.soft_target_kl, (BATCH, 5), "examples"),
    "logits_with_as_many_classes_as_tokens": Case(losses.soft_target_kl, (BATCH, TOKENS), "examples"),
    "dist_with_as_many_classes_as_tokens": Case(losses.dist, (BATCH, TOKENS), "relation"),
    "features_as_many_as_tokens": Case(losses.hint_mse, (BATCH, TOKENS), "examples"),
    "values_of_tokens": Case(pooled, (BATCH, TOKENS), "tokens"),
    "token_logits": Case(losses.soft_target_kl, (BATCH, TOKENS, 5), "each"),
    "token_logits_with_as_many_classes_as_tokens": Case(losses.soft_target_kl, (BATCH, TOKENS, TOKENS), "each"),
    "binary_logits_of_labels_or_tokens": Case(losses.binary_kl, (BATCH, TOKENS), "takes either mask"),
    "loss_without_a_mask": Case(bare, (BATCH, TOKENS), "takes no mask. Name the mask by where='batch/NAME'"),
    "loss_without_a_mask_of_another_size": Case(bare, (BATCH, 5), "examples"),
    "token_features_without_a_mask": Case(bare, (BATCH, TOKENS, 5), "excluded tokens would count"),
    "heads_before_tokens": Case(bare, (BATCH, 2, TOKENS, 5), "excluded tokens would count"),
    "other_tokens": Case(losses.hint_mse, (BATCH, TOKENS + 1, 5), "which of the 5 tokens are padding is unknown"),
    "a_single_token": Case(losses.hint_mse, (BATCH, 1, 5), "examples"),
    "map": Case(losses.hint_mse, (BATCH, 2, 2, 5), "examples"),
}


def arguments(shape):
    rng = np.random.default_rng(0)
    return tuple(rng.normal(size=shape).astype(np.float32) for _ in "st")


def run(loss, shape, where=None, **batch):
    student, teacher = arguments(shape)
    context = Context({"x": student}, {"x": teacher}, {"mask": MASK, **batch}, 0)
    objective = term(loss, "student/x", "teacher/x", where=where)
    objective.init(jax.random.key(0), jax.eval_shape(lambda: context))
    return objective.apply({}, {}, context, None).metrics[""]


@pytest.mark.parametrize("name", CASES)
def test_term_under_a_mask_over_tokens(name):
    loss, shape, mask = CASES[name]
    student, teacher = arguments(shape)
    if mask not in ("examples", "tokens", "each", "relation"):
        with pytest.raises(ValueError, match=mask):
            run(loss, shape)
        return
    found = run(loss, shape)
    if mask == "each":
        expected = loss(student, teacher)[MASK]
    elif mask == "tokens":
        squares = (student - teacher) ** 2
        expected = np.array([squares[i][MASK[i]].mean() for i in np.flatnonzero(EXAMPLES)])
    else:
        expected = loss(student[EXAMPLES], teacher[EXAMPLES])
    np.testing.assert_allclose(found.sum, expected.sum(), rtol=1e-5)
    assert found.count == expected.size


@pytest.mark.parametrize("name", ["binary_logits_of_labels_or_tokens", "loss_without_a_mask", "other_tokens"])
def test_named_mask_over_examples_decides(name):
    loss, shape, _ = CASES[name]
    found = run(loss, shape, "batch/all", all=np.ones(BATCH, bool))
    student, teacher = arguments(shape)
    np.testing.assert_allclose(found.sum, loss(student[EXAMPLES], teacher[EXAMPLES]).sum(), rtol=1e-5)
    assert found.count == EXAMPLES.sum()


def test_named_mask_over_tokens_decides():
    found = run(losses.binary_kl, (BATCH, TOKENS), "batch/tokens", tokens=MASK)
    student, teacher = arguments((BATCH, TOKENS))
    each = [losses.binary_kl(student[i : i + 1, MASK[i]], teacher[i : i + 1, MASK[i]]) for i in (0, 2)]
    np.testing.assert_allclose(found.sum, np.sum(each), rtol=1e-5)


def test_integers_in_the_shape_of_the_mask_may_be_of_tokens_or_not():
    student = arguments((BATCH, 5))[0]
    batch = {"mask": MASK, "label": np.ones((BATCH, TOKENS), np.int32)}
    with pytest.raises(ValueError, match=r"int32\[3, 4\] has the shape of batch\['mask'\].*takes no mask"):
        term(labeled, "student/x", "batch/label").apply({}, {}, Context({"x": student}, {}, batch, 0), None)


def test_objectives_refuse_features_of_other_tokens():
    student, teacher = arguments((BATCH, TOKENS + 1, 5))
    context = Context({"x": student}, {"x": teacher}, {"mask": MASK}, 0)
    for objective in (objectives.hint("student/x", "teacher/x"), objectives.variational("student/x", "teacher/x")):
        with pytest.raises(ValueError, match=r"expected features of the 4 tokens.*got \[3, 5, 5\]"):
            made = objective.init(jax.random.key(0), context)
            objective.apply(made.params, made.state, context, None)


def test_mask_out_refuses_what_may_be_tokens_or_features():
    x = arguments((BATCH, TOKENS))[0]
    context = Context({}, {}, {"mask": MASK}, 0)
    with pytest.raises(ValueError, match=r"mask_out: float32\[3, 4\] has the shape of the mask"):
        objectives.mask_out(context, x)
    np.testing.assert_array_equal(objectives.mask_out(context, x[..., None])[..., 0], np.where(MASK, x, 0))
    np.testing.assert_array_equal(objectives.mask_out(context, x[:, None])[:, 0], np.where(EXAMPLES[:, None], x, 0))
    with pytest.raises(ValueError, match="which of the 5 tokens"):
        objectives.mask_out(context, arguments((BATCH, TOKENS + 1, 5))[0])
