"""`term` and `combine`: paths, values, schedules, masks, names and error messages."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import Context, Objective, ObjectiveOut, ObjectiveVars, combine, losses, term
from jaxkd.objectives import lookup, masked_mean

RNG = np.random.default_rng(0)
LOGITS, TARGETS = (RNG.normal(size=(4, 3)).astype(np.float32) for _ in range(2))
LABELS = np.array([0, 2, 1, 1])
KEEP = np.array([True, False, True, True])
TOKENS, TOKEN_TARGETS = (RNG.normal(size=(2, 5, 3)).astype(np.float32) for _ in range(2))
TOKEN_KEEP = np.array([[True, True, False, False, False], [True, True, True, True, False]])
KD = ("student/logits", "teacher/logits")


def context(**batch):
    return Context({"logits": LOGITS, "f/g": LOGITS}, {"logits": TARGETS}, {"label": LABELS, **batch}, jnp.int32(2))


def tokens(**batch):
    return Context({"logits": TOKENS}, {"logits": TOKEN_TARGETS}, batch, 0)


def run(objective, on=None, **batch):
    return objective.apply({}, {}, context(**batch) if on is None else on, None)


# --- paths ----------------------------------------------------------------------------------------------------------


def test_lookup_accepts_slashes_in_names():
    np.testing.assert_array_equal(lookup(context(), "student/f/g"), LOGITS)


@pytest.mark.parametrize(
    ("path", "listed"),
    [
        pytest.param("student/logit", ["did you mean 'logits'", "float32[4, 3]", "'f/g'", "taps"], id="student"),
        pytest.param("teacher/stage", ["'logits' float32[4, 3]", "taps of the teacher's adapter"], id="teacher"),
        pytest.param("batch/labels", ["did you mean 'label'", "int64[4]"], id="batch"),
        pytest.param("studnt/logits", ["did you mean 'student'", "'student_params', 'teacher'"], id="root"),
        pytest.param("logits", ["reads like 'student/logits'"], id="no-root"),
        pytest.param("student", ["there is no such name", "'logits'"], id="no-name"),
    ],
)
def test_unknown_path_lists_available_entries(path, listed):
    with pytest.raises(ValueError, match=re.escape(repr(path))) as error:
        run(combine(kd=term(losses.logit_mse, path, "teacher/logits")))
    for part in listed:
        assert part in str(error.value)
    assert error.value.__notes__ == ["in the objective 'kd'"]


def test_error_names_every_level_of_nesting():
    objective = combine(outer=combine(inner=term(losses.logit_mse, *KD)))
    short = context()._replace(teacher={"logits": TARGETS[:, :2]})
    for fails in (
        lambda: run(objective, short),
        lambda: objective.init(jax.random.key(0), jax.eval_shape(lambda: short)),
    ):
        with pytest.raises(ValueError, match="expected") as error:
            fails()
        notes = [note for note in error.value.__notes__ if "objective" in note]  # JAX adds a note, too
        assert notes == ["in the objective 'inner'", "in the objective 'outer'"]


# --- values ---------------------------------------------------------------------------------------------------------


def test_scalar_loss_raises():
    objective = term(lambda s, t: jnp.mean((s - t) ** 2), *KD)
    for fails in (lambda: run(objective), lambda: run(objective, mask=KEEP)):
        with pytest.raises(ValueError, match=r"one value per example \[batch\], got float32\[\]. Leave out the mean"):
            fails()


def test_value_is_weighted_mean_and_metric_is_unweighted():
    out = run(term(losses.logit_mse, *KD, weight=0.25))
    values = losses.logit_mse(LOGITS, TARGETS)
    np.testing.assert_allclose(out.value, 0.25 * values.mean(), rtol=1e-6)
    np.testing.assert_allclose(out.metrics[""], (values.sum(), 4), rtol=1e-6)
    assert out.metrics["weight"] == (0.25, 1)


@pytest.mark.parametrize("weight", [0, 0.0, 3, np.float64(0.5), jnp.float32(0.5)], ids=repr)
def test_weight_accepts_any_number(weight):
    out = run(term(losses.logit_mse, *KD, weight=weight))
    np.testing.assert_allclose(out.value, float(weight) * losses.logit_mse(LOGITS, TARGETS).mean(), rtol=1e-6)
    assert out.value.dtype == jnp.float32


def test_schedules_of_weight_and_hyperparameters_follow_the_step():
    objective = term(
        losses.soft_target_kl, *KD, weight=optax.linear_schedule(8.0, 0.0, 4), temperature=lambda step: 1.0 + step
    )
    traces = []

    @jax.jit
    def at(step):
        traces.append(None)
        return objective.apply({}, {}, context()._replace(step=step), None)

    for step in range(4):
        out = at(step)
        expected = losses.soft_target_kl(LOGITS, TARGETS, temperature=1.0 + step).mean()
        np.testing.assert_allclose(out.value, (8 - 2 * step) * expected, rtol=1e-5)
        np.testing.assert_allclose(out.metrics["weight"].sum, 8 - 2 * step)
    assert len(traces) == 1


def test_partial_binds_a_hyperparameter_that_is_a_function():
    loss = functools.partial(lambda s, t, distance: distance(s, t), distance=lambda s, t: jnp.abs(s - t).sum(-1))
    np.testing.assert_allclose(run(term(loss, *KD)).value, np.abs(LOGITS - TARGETS).sum(-1).mean(), rtol=1e-6)


# --- masks ----------------------------------------------------------------------------------------------------------

OWN = {
    "takes_where": losses.logit_mse,
    "ignores_where": lambda s, t: losses.logit_mse(s, t),
    "passes_it_on": lambda *arrays, **options: losses.logit_mse(*arrays, **options),
}


@pytest.mark.parametrize("loss", OWN.values(), ids=OWN)
def test_batch_mask_applies_to_every_loss(loss):
    out = run(term(loss, *KD), mask=KEEP)
    expected = losses.logit_mse(LOGITS[KEEP], TARGETS[KEEP])
    np.testing.assert_allclose(out.value, expected.mean(), rtol=1e-6)
    np.testing.assert_allclose(out.metrics[""], (expected.sum(), 3), rtol=1e-6)


def test_mask_reaches_a_relation_through_kwargs():
    wrapped = lambda *arrays, **options: losses.distance_relation(*arrays, **options)  # noqa: E731
    found, expected = (run(term(loss, *KD), mask=KEEP).value for loss in (wrapped, losses.distance_relation))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("examples", [None, np.array([True, False]), np.array([False, False])], ids=repr)
@pytest.mark.parametrize("loss", OWN.values(), ids=OWN)
def test_token_loss_combines_token_and_batch_masks(loss, examples):
    batch = {"valid": TOKEN_KEEP} | ({} if examples is None else {"mask": examples})
    out = run(term(loss, *KD, where="batch/valid"), tokens(**batch))
    keep = TOKEN_KEEP if examples is None else TOKEN_KEEP & examples[:, None]
    values = losses.logit_mse(TOKENS, TOKEN_TARGETS)[keep]
    np.testing.assert_allclose(out.value, values.sum() / max(len(values), 1), rtol=1e-6)
    np.testing.assert_allclose(out.metrics[""], (values.sum(), keep.sum()), rtol=1e-6)


def test_token_loss_uses_batch_mask():
    out = run(term(losses.logit_mse, *KD), tokens(mask=np.array([False, True])))
    np.testing.assert_allclose(out.value, losses.logit_mse(TOKENS[1], TOKEN_TARGETS[1]).mean(), rtol=1e-6)


def test_mask_of_another_shape_raises():
    loss = lambda s, t: losses.logit_mse(s, t)  # noqa: E731
    with pytest.raises(ValueError, match=r"expected bool\[2, 5\] at where='batch/valid'.*got bool\[2\]"):
        run(term(loss, *KD, where="batch/valid"), tokens(valid=np.array([True, False])))


def test_batch_mask_of_another_dtype_raises():
    with pytest.raises(ValueError, match=r"batch\['mask'\]: expected bool\[batch\].*where='batch/NAME'"):
        run(term(losses.logit_mse, *KD), mask=np.ones(4, np.float32))


def test_batch_mask_over_tokens_averages_tokens_and_examples():
    values = losses.logit_mse(TOKENS, TOKEN_TARGETS)
    out = run(term(losses.logit_mse, *KD), tokens(mask=TOKEN_KEEP))
    np.testing.assert_allclose(out.metrics[""], (values[TOKEN_KEEP].sum(), 6), rtol=1e-6)
    pooled = Context(
        {"logits": LOGITS[:2]}, {"logits": TARGETS[:2]}, {"mask": np.array([[True, False], [False] * 2])}, 0
    )
    np.testing.assert_allclose(
        run(term(losses.logit_mse, *KD), pooled).metrics[""],
        (losses.logit_mse(LOGITS[:1], TARGETS[:1])[0], 1),
        rtol=1e-6,
    )


def test_batch_mask_over_tokens_reaches_rows_of_tokens():
    """A loss whose rows are the tokens of all examples, such as a relation between tokens."""
    flat = lambda s, t, **rest: losses.dist(s.reshape(-1, 3), t.reshape(-1, 3), **rest)  # noqa: E731
    out = run(term(flat, *KD), tokens(mask=TOKEN_KEEP))
    expected = losses.dist(TOKENS[TOKEN_KEEP], TOKEN_TARGETS[TOKEN_KEEP])
    np.testing.assert_allclose(out.metrics[""], (expected.sum(), 6), rtol=1e-5)


def test_batch_mask_over_tokens_reaches_a_loss_of_examples_that_takes_it():
    def mean_over_tokens(s, t, *, where=None):
        return jnp.mean((s - t) ** 2, axis=(1, 2), where=True if where is None else where[..., None])

    out = run(term(mean_over_tokens, *KD, weight=2.0), tokens(mask=TOKEN_KEEP))
    expected = [np.mean((TOKENS[i] - TOKEN_TARGETS[i])[TOKEN_KEEP[i]] ** 2) for i in range(2)]
    np.testing.assert_allclose(out.value, 2 * np.mean(expected), rtol=1e-6)
    out = run(term(mean_over_tokens, *KD, where="batch/valid"), tokens(mask=np.array([True, False]), valid=TOKEN_KEEP))
    np.testing.assert_allclose(out.metrics[""], (expected[0], 1), rtol=1e-6)


@pytest.mark.parametrize("loss", [lambda s, t: losses.dist(s[:, 0], t[:, 0]), losses.hint_mse])
def test_loss_of_examples_that_reads_excluded_tokens_raises(loss):
    with pytest.raises(ValueError, match=r"takes no mask over tokens, so that excluded tokens would count"):
        run(term(loss, *KD), tokens(mask=TOKEN_KEEP))
    out = run(term(loss, *KD, where="batch/examples"), tokens(mask=TOKEN_KEEP, examples=np.array([True, True])))
    np.testing.assert_allclose(out.value, loss(TOKENS, TOKEN_TARGETS).mean(), rtol=1e-6)


# --- weights --------------------------------------------------------------------------------------------------------


def test_class_weighted_mean_divides_by_the_sum_of_the_weights():
    by_class = np.array([0.1, 1.0, 10.0], np.float32)
    shares, values = by_class[LABELS], losses.cross_entropy(LOGITS, LABELS)
    objective = term(losses.cross_entropy, "student/logits", "batch/label", weight=2.0, weights="batch/share")
    for mask in (None, KEEP):
        kept = slice(None) if mask is None else mask
        out = run(objective, share=shares, **({} if mask is None else {"mask": mask}))
        expected = np.sum(shares[kept] * values[kept]), np.sum(shares[kept])
        np.testing.assert_allclose(out.value, 2 * expected[0] / expected[1], rtol=1e-6)
        np.testing.assert_allclose(out.metrics[""], expected, rtol=1e-6)


def test_weights_are_of_tokens_or_of_their_examples():
    values, shares = losses.logit_mse(TOKENS, TOKEN_TARGETS), RNG.uniform(size=(2, 5)).astype(np.float32)
    for share, full in ((shares, shares), (shares[:, 0], np.repeat(shares[:, :1], 5, 1))):
        out = run(term(losses.logit_mse, *KD, weights="batch/share"), tokens(mask=TOKEN_KEEP, share=share))
        expected = np.sum((full * values)[TOKEN_KEEP]), np.sum(full[TOKEN_KEEP])
        np.testing.assert_allclose(out.metrics[""], expected, rtol=1e-6)


def test_weight_of_0_excludes_a_value_whatever_it_holds():
    def value(logits):
        given = context(share=np.where(KEEP, 2.0, 0.0).astype(np.float32))._replace(student={"logits": logits})
        return run(term(losses.soft_target_kl, *KD, weights="batch/share"), given).value

    poisoned = jnp.asarray(np.where(KEEP[:, None], LOGITS, np.nan))
    found, gradient = jax.value_and_grad(value)(poisoned)
    np.testing.assert_allclose(found, losses.soft_target_kl(LOGITS[KEEP], TARGETS[KEEP]).mean(), rtol=1e-6)
    assert (gradient[~KEEP] == 0).all() and np.isfinite(gradient).all()


def test_weights_of_zero_give_0():
    out = run(term(losses.logit_mse, *KD, weights="batch/share"), share=np.zeros(4, np.float32))
    assert float(out.value) == 0 and out.metrics[""] == (0, 0)


def test_weighted_mean_is_over_all_devices():
    shares = np.array([1.0, 2.0, 0.0, 5.0], np.float32)
    objective = term(losses.logit_mse, *KD, weights="batch/share")

    def share_of(student, teacher, share):
        given = Context({"logits": student}, {"logits": teacher}, {"share": share}, 0, "d")
        out = objective.apply({}, {}, given, None)
        return jax.lax.pmean(out.value, "d")

    split = [jnp.asarray(x).reshape(2, 2, *x.shape[1:]) for x in (LOGITS, TARGETS, shares)]
    found = jax.vmap(share_of, axis_name="d")(*split)
    expected = np.sum(shares * losses.logit_mse(LOGITS, TARGETS)) / 8
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-6)


@pytest.mark.parametrize("share", [np.ones(3, np.float32), np.ones(4, bool), np.ones((4, 2), np.float32)])
def test_weights_of_another_shape_or_dtype_raise(share):
    with pytest.raises(ValueError, match=r"logit_mse: expected numbers \[4\].* at weights='batch/share', got "):
        run(term(losses.logit_mse, *KD, weights="batch/share"), share=share)


def test_weights_that_are_no_path_are_those_of_the_loss():
    def weighted(s, t, *, weights):
        return jnp.mean((s - t) ** 2 * jnp.asarray(weights).reshape(1, -1), axis=-1)

    out = run(term(weighted, *KD, weights=[0.0, 1.0, 0.0]))
    np.testing.assert_allclose(out.value, np.mean((LOGITS - TARGETS)[:, 1] ** 2) / 3, rtol=1e-6)


def test_batch_mask_over_other_tokens_raises():
    with pytest.raises(ValueError, match=r"per token, \[2, 4\], got \[2, 5\]. Name a mask of that shape"):
        run(term(losses.logit_mse, *KD), tokens(mask=TOKEN_KEEP[:, 1:]))


def test_garbage_in_masked_examples_reaches_no_gradient():
    def value(logits):
        return run(term(losses.soft_target_kl, *KD), context(mask=KEEP)._replace(student={"logits": logits})).value

    poisoned = np.where(KEEP[:, None], LOGITS, np.nan)
    gradient = jax.grad(value)(jnp.asarray(poisoned))
    np.testing.assert_allclose(gradient, jax.grad(value)(jnp.asarray(LOGITS)), rtol=1e-6)
    assert (gradient[~KEEP] == 0).all()


# --- means ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=["bfloat16", "float16"])
@pytest.mark.parametrize("where", [None, np.ones(1001, bool)], ids=["whole", "masked"])
def test_mean_accumulates_low_precision_in_float32(dtype, where):
    average, metric = masked_mean(jnp.full(1001, 100, dtype), where)
    assert (float(average), float(metric.sum), float(metric.count)) == (100.0, 100_100.0, 1001.0)


# --- combine --------------------------------------------------------------------------------------------------------


def test_combine_of_nothing_raises():
    with pytest.raises(ValueError, match="at least one named objective"):
        combine()


def test_combine_of_a_bare_loss_raises():
    with pytest.raises(TypeError, match=r"combine\(kd=...\).*got the function.*jaxkd.term\(soft_target_kl, "):
        combine(kd=losses.soft_target_kl)


def counting(start):
    """An objective with a counter as state, whose metric is drawn from its key."""

    def init(key, context):
        return ObjectiveVars(
            {"scale": jnp.float32(start)}, {"count": jnp.int32(start), "key": jax.random.key_data(key)}
        )

    def apply(params, state, context, key):
        drawn = jnp.float32(0) if key is None else jax.random.uniform(key)
        return ObjectiveOut(params["scale"], {**state, "count": state["count"] + 1}, {"drawn": (drawn, 1)})

    return Objective(init, apply)


def test_combine_separates_parameters_state_metrics_and_keys():
    objective = combine(a=counting(1), ce=term(losses.cross_entropy, "student/logits", "batch/label"), b=counting(5))
    made = objective.init(jax.random.key(0), jax.eval_shape(context))
    assert made.params == {"a": {"scale": 1}, "b": {"scale": 5}}
    assert made.state.keys() == {"a", "b"}
    assert (made.state["a"]["key"] != made.state["b"]["key"]).any()
    out = objective.apply(made.params, made.state, context(), jax.random.key(1))
    assert {name: int(state["count"]) for name, state in out.state.items()} == {"a": 2, "b": 6}
    assert out.metrics["a/drawn"][0] != out.metrics["b/drawn"][0]
    assert list(out.metrics) == ["a/drawn", "ce", "ce/weight", "b/drawn"]
    np.testing.assert_allclose(out.value, 6 + out.metrics["ce"].sum / 4, rtol=1e-6)
    assert float(objective.apply(made.params, made.state, context(), None).metrics["a/drawn"][0]) == 0


# --- several layers at once -----------------------------------------------------------------------------------------


def test_tuple_of_paths_gives_tuple_of_features():
    """Losses of several layers, such as FSP and KD-SVD, need no objective of their own."""
    rng = np.random.default_rng(0)
    layers = {name: jnp.asarray(rng.normal(size=(4, 3, 3, 5)), jnp.float32) for name in "abc"}
    others = {name: jnp.asarray(rng.normal(size=(4, 3, 3, 5)), jnp.float32) for name in "abc"}
    where = jnp.array([True, True, False, True])
    context = Context(layers, others, {"mask": where}, 0)
    for loss, names in ((losses.solution_flow, "ab"), (losses.singular_vectors, "abc")):
        student, teacher = (tuple(f"{root}/{name}" for name in names) for root in ("student", "teacher"))
        objective = combine(flow=term(loss, student, teacher, weight=2.0))
        assert not jax.tree.leaves(objective.init(jax.random.key(0), jax.eval_shape(lambda: context)))
        out = objective.apply({}, {}, context, None)
        expected = loss(tuple(layers[n] for n in names), tuple(others[n] for n in names), where=where)
        np.testing.assert_allclose(out.value, 2 * expected.sum() / 3, rtol=1e-6)
        lists = term(loss, list(student), list(teacher), weight=2.0)
        np.testing.assert_array_equal(lists.apply({}, {}, context, None).value, out.value)
    with pytest.raises(ValueError, match="path: expected one such as 'student/logits' or 'batch/label', got None"):
        term(losses.cross_entropy, "student/a", None).apply({}, {}, context, None)
    with pytest.raises(ValueError, match=r"'d': there is no such name"):
        term(losses.solution_flow, ("student/a", "student/d"), ("teacher/a", "teacher/b")).apply({}, {}, context, None)
