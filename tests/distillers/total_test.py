"""The total of a distillation: weighted terms, however a set is batched, masked or split over devices."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import Model, ObjectiveOut, ObjectiveVars, Variables, combine, losses, term
from tests import tiny

RNG = np.random.default_rng(0)
HARD = np.array([[0.0, 0.0]], np.float32)
"""Logits with a cross-entropy of log 2."""

EASY = np.array([[50.0, 0.0]], np.float32)
"""Logits with a cross-entropy of 0 at the label 0."""


def student(*outputs):
    """A student that returns entries of the batch, in this order."""

    def apply(variables, batch, *, key, train):
        return {name: variables.params * batch[name] for name in outputs}, {}

    return Model(lambda key, batch: Variables(jnp.ones(())), apply)


def distill(objective, *outputs, model=None):
    model, optimizer = model or student(*outputs), optax.sgd(0.0)
    return jaxkd.distill(model, jaxkd.teachers.none(), objective, optimizer=optimizer, metrics=lambda _: {})


def evaluate(kd, batches):
    state, found = kd.init(jax.random.key(0), batches[0]), {}
    for batch in batches:
        found = jaxkd.metrics.merge(found, jax.jit(kd.evaluate)(state, batch))
    return tiny.numbers(found)


def ce(output="logits", **options):
    return term(losses.cross_entropy, f"student/{output}", "batch/label", **options)


def test_total_counts_tokens_where_its_term_does():
    easy = {"logits": np.repeat(EASY[None], 4, 1), "label": np.zeros((1, 4), int), "mask": np.ones((1, 4), bool)}
    hard = {
        "logits": np.repeat(HARD[None], 4, 1),
        "label": np.zeros((1, 4), int),
        "mask": np.array([[True, False, False, False]]),
    }
    together = {name: np.concatenate([easy[name], hard[name]]) for name in easy}
    for objective in (ce(), combine(ce=ce())):
        for batches in ([easy, hard], [together]):
            found = evaluate(distill(objective, "logits"), batches)
            np.testing.assert_allclose([found["loss"], found.get("ce", found.get("objective"))], np.log(2) / 5, 1e-6)


def tokens_and_examples():
    logits = RNG.normal(size=(6, 5, 3)).astype(np.float32)
    mask = np.arange(5) < np.array([1, 5, 2, 5, 0, 3])[:, None]
    label = RNG.integers(0, 3, (6, 5))
    batch = {"logits": logits, "pooled": logits[:, 0], "label": label, "first": label[:, 0], "mask": mask}
    log_p = logits.astype(np.float64) - np.log(np.exp(logits.astype(np.float64)).sum(-1, keepdims=True))
    nll = -np.take_along_axis(log_p, label[..., None], -1)[..., 0]
    return batch, 0.5 * nll[mask].mean() + 2.0 * nll[mask.any(1), 0].mean()


def objective():
    first = term(losses.cross_entropy, "student/pooled", "batch/first", weight=2.0)
    return combine(tokens=ce(weight=0.5), nested=combine(first=first))


@pytest.mark.parametrize("ends", [(6,), (1, 6), (1, 2, 3, 4, 5, 6)], ids=str)
def test_total_is_the_weighted_sum_of_its_terms_however_a_set_is_batched(ends):
    batch, expected = tokens_and_examples()
    batches = [{k: x[a:b] for k, x in batch.items()} for a, b in zip((0, *ends[:-1]), ends, strict=True)]
    found = evaluate(distill(objective(), "logits", "pooled"), batches)
    assert found["loss"] == pytest.approx(expected, rel=1e-6)
    assert found["loss"] == pytest.approx(0.5 * found["tokens"] + 2 * found["nested/first"], rel=1e-6)


def test_total_is_that_of_the_global_batch_on_every_device():
    batch, expected = tokens_and_examples()
    kd = distill(objective(), "logits", "pooled")
    state = kd.init(jax.random.key(0), batch)
    split = {name: x.reshape(2, 3, *x.shape[1:]) for name, x in batch.items()}
    mapped = jax.pmap(kd.evaluate, axis_name=jaxkd.DATA_AXIS, in_axes=(None, 0))(state, split)
    trained = jax.pmap(kd.step, axis_name=jaxkd.DATA_AXIS, in_axes=(None, 0))(state, split)[1]
    for reported in (mapped, trained):
        assert tiny.numbers(jax.tree.map(lambda x: x[1], reported))["loss"] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("first", [np.ones((7, 4), np.float32), np.float32(1), {"a": np.ones(3)}], ids=np.shape)
def test_examples_are_counted_from_the_batch(first):
    """Not from whichever output comes first: it may be a scalar or have any leading dimension."""

    def apply(variables, batch, *, key, train):
        return {"anchors": first, "logits": variables.params * batch["logits"]}, {}

    def mean(params, state, context, key):
        return ObjectiveOut(jnp.mean(context.student["logits"]), {}, {})

    own = jaxkd.Objective(lambda key, context: ObjectiveVars(), mean)
    kd = distill(own, "logits", model=student()._replace(apply=apply))
    logits = (5 + RNG.normal(size=(8, 5))).astype(np.float32)
    found = evaluate(kd, [{"logits": logits[:6]}, {"logits": logits[6:]}])
    assert found["loss"] == pytest.approx(logits.mean(), rel=1e-5)


def test_row_of_several_steps_weighs_each_with_the_schedule_at_its_step():
    kd = distill(combine(a=ce(weight=optax.linear_schedule(3.0, 1.0, 2)), b=ce(weight=0.5)), "logits")
    batches = [{"logits": x * np.ones((2, 1), np.float32), "label": np.ones(2, int)} for x in (HARD, EASY, HARD)]
    state, found = kd.init(jax.random.key(0), batches[0]), {}
    for batch in batches:
        state, reported = kd.step(state, batch)
        found = jaxkd.metrics.merge(found, reported)
    totals = [(3 + 0.5) * np.log(2), (2 + 0.5) * 50, (1 + 0.5) * np.log(2)]
    assert tiny.numbers(found)["loss"] == pytest.approx(np.mean(totals), rel=1e-6)


def test_empty_term_adds_nothing():
    objective = combine(ce=ce(where="batch/labeled"), all=ce(weight=2.0))
    batch = {"logits": np.repeat(HARD, 2, 0), "label": np.zeros(2, int), "labeled": np.zeros(2, bool)}
    found = evaluate(distill(objective, "logits"), [batch, batch])
    assert found["loss"] == pytest.approx(2 * np.log(2), rel=1e-6)
    assert np.isnan(found["ce"])
