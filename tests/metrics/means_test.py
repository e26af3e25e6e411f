import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd.types import Context, Mean


def test_unequal_batches_merge_to_the_mean_over_all_examples():
    values = np.arange(10, dtype=np.float32)
    parts = [jaxkd.metrics.from_values(jnp.asarray(part)) for part in (values[:7], values[7:9], values[9:])]
    merged: dict = {}
    for part in parts:
        merged = jaxkd.metrics.merge(merged, {"x": part})
    assert jaxkd.metrics.compute(merged) == {"x": values.mean()}


def test_masked_values_have_no_influence_even_if_nan():
    where = jnp.array([True, False, True])
    mean = jaxkd.metrics.from_values(jnp.array([1.0, jnp.nan, 4.0]), where)
    assert (float(mean.sum), float(mean.count)) == (5.0, 2.0)


def test_count_of_zero_gives_nan():
    none = jaxkd.metrics.from_values(jnp.ones(3), jnp.zeros(3, bool))
    assert math.isnan(jaxkd.metrics.compute({"x": none})["x"])


def test_integers_and_booleans_become_float32():
    for values in (jnp.array([True, False]), jnp.array([1, 0]), jnp.array([1, 0], jnp.bfloat16)):
        mean = jaxkd.metrics.from_values(values)
        assert mean.sum.dtype == mean.count.dtype == jnp.float32
        assert jaxkd.metrics.compute({"x": mean}) == {"x": 0.5}


def test_mask_of_another_shape_is_refused():
    with pytest.raises(ValueError, match=r"where: expected the shape of the values, \[2, 3\], got \[2\]"):
        jaxkd.metrics.from_values(jnp.ones((2, 3)), jnp.ones(2, bool))


def test_stacked_metrics_have_to_be_summed_before_compute():
    stacked = {"x": Mean(jnp.array([1.0, 2.0]), jnp.array([1.0, 3.0]))}
    with pytest.raises(ValueError, match=r"metric 'x': expected a scalar.*metrics\.total"):
        jaxkd.metrics.compute(stacked)
    assert jaxkd.metrics.compute(jaxkd.metrics.total(stacked)) == {"x": 0.75}


def test_psum_gives_the_metric_of_the_global_batch():
    values = jnp.arange(16.0).reshape(8, 2)
    where = values.astype(int) % 3 != 0
    mapped = jax.pmap(lambda v, w: jaxkd.metrics.psum({"x": jaxkd.metrics.from_values(v, w)}, "d"), axis_name="d")(
        values, where
    )
    whole = jaxkd.metrics.compute({"x": jaxkd.metrics.from_values(values, where)})
    assert jaxkd.metrics.compute(jax.tree.map(lambda x: x[3], mapped)) == whole


def _context(**batch):
    rng = np.random.default_rng(0)
    student, teacher = (jnp.asarray(rng.normal(size=(6, 4)), jnp.float32) for _ in range(2))
    return Context({"logits": student}, {"logits": teacher}, {k: jnp.asarray(v) for k, v in batch.items()}, step=0)


def test_classification_equals_numpy():
    label = np.array([0, 1, 2, 3, 0, 1])
    mask = np.array([True, True, False, True, False, True])
    context = _context(label=label, mask=mask)
    found = jaxkd.metrics.compute(jax.jit(jaxkd.metrics.classification)(context._replace(step=jnp.int32(0))))
    student, teacher = (np.asarray(x["logits"], np.float64)[mask] for x in (context.student, context.teacher))
    log_p = student - np.log(np.exp(student).sum(-1, keepdims=True))
    expected = {
        "accuracy": (student.argmax(-1) == label[mask]).mean(),
        "teacher_accuracy": (teacher.argmax(-1) == label[mask]).mean(),
        "agreement": (student.argmax(-1) == teacher.argmax(-1)).mean(),
        "nll": -log_p[np.arange(4), label[mask]].mean(),
    }
    assert found == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("context", "names"),
    [
        (_context(), {"agreement"}),
        (_context(label=np.zeros(6, int))._replace(teacher={}), {"accuracy", "nll"}),
        (_context(label=np.zeros(6, int))._replace(student={}), {"teacher_accuracy"}),
        (_context(label=np.zeros((6, 4), np.float32)), {"agreement"}),  # soft labels
        (_context(label=np.zeros((6, 2), int)), {"agreement"}),  # another task's
        (_context()._replace(teacher={"logits": jnp.zeros((6, 7))}), set()),  # other classes
    ],
)
def test_metrics_without_their_inputs_are_omitted(context, names):
    assert set(jaxkd.metrics.classification(context)) == names


def test_mask_over_examples_is_broadcast_to_tokens():
    logits = jnp.zeros((2, 3, 5)).at[..., 1].set(1.0)
    label = jnp.array([[1, 1, 0], [0, 0, 0]])
    batch = {"label": label, "mask": jnp.array([True, False])}
    found = jaxkd.metrics.classification(Context({"logits": logits}, {}, batch, step=0))
    assert float(found["accuracy"].count) == 3
    assert jaxkd.metrics.compute(found)["accuracy"] == pytest.approx(2 / 3)
