"""Rows and best states of totals and derived metrics: however a set is batched, also across a resume."""

import jax
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, losses, metrics, term
from jaxkd.data import Dataset, Resident, Stream
from jaxkd.training import fit
from tests.training.toy import Died, raising, timeless

RNG = np.random.default_rng(0)
MASK = np.arange(3) < np.array([1, 3, 2, 3, 1, 1, 3, 0, 2, 1])[:, None]
ARRAYS = {
    "x": RNG.normal(size=(10, 3, 4)).astype(np.float32),
    "label": RNG.integers(0, 5, (10, 3)).astype(np.int32),
    "first": RNG.integers(0, 5, 10).astype(np.int32),
    "index": np.arange(10, dtype=np.int32),
}
SETTINGS = {"key": jax.random.key(0), "progress": False}


def dataset(**more):
    return Dataset({**ARRAYS, "mask": MASK, **more}, 5, "toy")


def apply(params, x):
    return {"logits": x @ params, "pooled": x[:, 0] @ params}


def distiller(tokens=1.0, first=0.5):
    student = jaxkd.adapters.plain(lambda key, x: jax.random.normal(key, (4, 5)), apply, inputs="x")
    objective = combine(
        tokens=term(losses.cross_entropy, "student/logits", "batch/label", weight=tokens),
        first=term(losses.cross_entropy, "student/pooled", "batch/first", weight=first),
    )
    return jaxkd.distill(student, jaxkd.teachers.none(), objective, optimizer=optax.sgd(0.1), metrics=[metrics.tokens])


def nll(logits, label):
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, label[..., None], -1)[..., 0]


@pytest.mark.parametrize("batch_size", [3, 10])
@pytest.mark.parametrize("kind", [Resident, Stream])
def test_evaluation_does_not_depend_on_the_batches(kind, batch_size):
    kd, data = distiller(), kind(dataset(), batch_size, shuffle=False)
    result = fit(kd, data, steps=1, eval_data=data, best="eval/perplexity", best_mode="min", **SETTINGS)
    out = apply(np.asarray(result.state.student.params, np.float64), ARRAYS["x"].astype(np.float64))
    tokens, first = nll(out["logits"], ARRAYS["label"])[MASK], nll(out["pooled"], ARRAYS["first"])[MASK.any(1)]
    row = result.history[-1]
    assert row["eval/loss"] == pytest.approx(tokens.mean() + 0.5 * first.mean(), rel=1e-5)
    assert row["eval/perplexity"] == result.best.value == pytest.approx(np.exp(tokens.mean()), rel=1e-5)


def test_rows_of_several_steps_resume_exactly_and_weigh_each_step(tmp_path):
    kd = distiller(first=optax.linear_schedule(1.0, 0.0, 6))
    # Without masks, every step counts the same numbers of tokens and examples, and the row is the mean of its steps.
    data = Resident(Dataset(ARRAYS, 5, "toy"), 5, seed=0)
    settings = SETTINGS | {"steps": 6, "eval_data": data, "eval_every": 2, "log_every": 3, "chunk": 1}
    single = fit(kd, data, **settings | {"log_every": 1})
    whole = fit(kd, data, **settings)
    steps = [row["train/loss"] for row in single.history if "train/loss" in row]
    rows = [row["train/loss"] for row in whole.history if "train/loss" in row]
    np.testing.assert_allclose(rows, np.reshape(steps, (2, 3)).mean(1), rtol=1e-6)
    with pytest.raises(Died):
        fit(kd, data, directory=tmp_path, on_eval=raising(4, Died()), tensorboard=False, **settings)
    resumed = fit(kd, data, directory=tmp_path, tensorboard=False, **settings)
    assert timeless(resumed.history) == timeless(whole.history)


def test_best_metric_that_is_nan_warns():
    kd, data, unlabeled = (
        distiller(),
        Resident(dataset(), 5),
        Resident(dataset(label=np.full((10, 3), -1, np.int32)), 5),
    )
    with pytest.warns(UserWarning, match=r"best: 'eval/accuracy' is NaN at step 1.*check the mask and the labels"):
        result = fit(kd, data, steps=1, eval_data=unlabeled, best="eval/accuracy", **SETTINGS)
    assert result.best is None


def test_total_that_is_nan_stops_a_run_and_is_named_once():
    kd, data = distiller(), Resident(dataset(x=np.full((10, 3, 4), np.nan, np.float32)), 5)
    with pytest.raises(FloatingPointError, match="'first' is nan, 'tokens' is nan, 'loss' is nan") as error:
        fit(kd, data, steps=1, **SETTINGS)
    assert error.value.terms == ("first", "tokens", "loss")
