"""Metrics by task against NumPy: what has no meaning is left out, ignored labels and masks are excluded."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import metrics
from jaxkd.types import Context

RNG = np.random.default_rng(0)


def context(student, label=None, teacher=None, mask=None, **batch):
    batch |= {} if label is None else {"label": jnp.asarray(label)}
    batch |= {} if mask is None else {"mask": jnp.asarray(mask)}
    given = {} if teacher is None else {"logits": jnp.asarray(teacher)}
    return Context({"logits": jnp.asarray(student)}, given, batch, 0)


def nll(logits, label):
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    return -np.take_along_axis(log_p, np.asarray(label)[..., None], -1)[..., 0]


# --- classes --------------------------------------------------------------------------------------------------------

LOGITS, TAUGHT = (RNG.normal(size=(8, 4)).astype(np.float32) for _ in range(2))
LABEL = np.array([0, 1, 2, 3, 0, 1, 2, 3])


@pytest.mark.parametrize(
    ("ignored", "dtype"), [(-1, np.int32), (-1, np.int8), (-100, np.int32), (255, np.int32), (255, np.uint8)], ids=str
)
def test_labels_that_are_no_class_are_excluded(ignored, dtype):
    kept = np.array([True, False] * 4)
    label = np.where(kept, LABEL, ignored).astype(dtype)
    found = metrics.compute(metrics.classification(context(LOGITS, label, TAUGHT)))
    expected = metrics.compute(metrics.classification(context(LOGITS[kept], LABEL[kept], TAUGHT[kept])))
    assert found == pytest.approx(expected, rel=1e-6)
    assert found["nll"] == pytest.approx(nll(LOGITS[kept], LABEL[kept]).mean(), rel=1e-6)
    assert found["accuracy"] == (LOGITS[kept].argmax(-1) == LABEL[kept]).mean()


@pytest.mark.parametrize(
    ("student", "label", "teacher", "names"),
    [
        pytest.param(LOGITS, None, TAUGHT, {"agreement"}, id="no-labels"),
        pytest.param(LOGITS, LABEL, TAUGHT[:, :3], {"accuracy", "nll"}, id="teacher-of-other-classes"),
        pytest.param(LOGITS[:, :1], LABEL % 2, TAUGHT[:, :1], set(), id="one-logit"),
        pytest.param(LOGITS[:, :1], TAUGHT[:, 0], TAUGHT[:, :1], set(), id="regression"),
        pytest.param(LOGITS[:, 0], TAUGHT[:, 0], TAUGHT[:, 0], set(), id="one-number"),
    ],
)
def test_classification_leaves_out_what_has_no_meaning(student, label, teacher, names):
    assert set(metrics.classification(context(student, label, teacher))) == names


def test_teachers_of_other_classes_are_left_out_of_an_ensemble():
    members = {"a/logits": TAUGHT, "b/logits": TAUGHT[:, :3], "logits": TAUGHT}
    given = context(LOGITS, LABEL)._replace(teacher={name: jnp.asarray(x) for name, x in members.items()})
    assert {name for name in metrics.per_teacher(given) if "/" in name} == {
        f"{metric}/a" for metric in ("teacher_accuracy", "teacher_nll", "agreement")
    }


# --- tokens ---------------------------------------------------------------------------------------------------------


def test_tokens_exclude_padding_and_ignored_labels_and_give_the_perplexity_of_the_whole():
    logits, taught = (RNG.normal(size=(6, 5, 7)).astype(np.float32) for _ in range(2))
    label = RNG.integers(0, 7, (6, 5))
    mask = np.arange(5) < np.array([5, 1, 4, 2, 0, 3])[:, None]
    ignored = np.where(RNG.random((6, 5)) < 0.2, -100, label)
    kept = mask & (ignored >= 0)
    size = RNG.integers(1, 6, (6, 5))
    found: dict = {}
    for part in (slice(0, 1), slice(1, 6)):
        given = context(logits[part], ignored[part], taught[part], mask[part], size=jnp.asarray(size[part]))
        found = metrics.merge(found, metrics.tokens(given, bytes_path="batch/size"))
    values, theirs = nll(logits, label)[kept], nll(taught, label)[kept]
    right, agree = logits.argmax(-1) == label, logits.argmax(-1) == taught.argmax(-1)
    assert metrics.compute(found) == pytest.approx(
        {
            "accuracy": right[kept].mean(),
            "nll": values.mean(),
            "perplexity": np.exp(values.mean()),
            "tokens_per_example": kept.sum() / 6,
            "bits_per_byte": values.sum() / np.log(2) / size[kept].sum(),
            "teacher_accuracy": (taught.argmax(-1) == label)[kept].mean(),
            "agreement": agree[kept].mean(),
            "teacher_nll": theirs.mean(),
            "teacher_perplexity": np.exp(theirs.mean()),
        },
        rel=1e-5,
    )


def test_bytes_may_be_counted_by_example():
    given = context(np.zeros((2, 3, 4), np.float32), np.zeros((2, 3), int), size=jnp.array([2, 4]))
    assert metrics.compute(metrics.tokens(given, bytes_path="batch/size"))["bits_per_byte"] == pytest.approx(6 * 2 / 6)


@pytest.mark.parametrize("task", [metrics.tokens, metrics.segmentation])
def test_labels_of_another_shape_are_refused(task):
    with pytest.raises(ValueError, match=r"expected logits \[.*got float32\[8, 4\] and int\d+\[7\]"):
        task(context(LOGITS, LABEL[:7]))
    with pytest.raises(ValueError, match="'batch/label'"):
        task(context(LOGITS))


# --- decisions ------------------------------------------------------------------------------------------------------


def scores(decided, truth):
    both = (decided & truth).sum()
    return {
        "precision": both / decided.sum(),
        "recall": both / truth.sum(),
        "f1": 2 * both / (decided.sum() + truth.sum()),
    }


@pytest.mark.parametrize("last", [(), (1,)], ids=["batch", "batch-1"])
def test_binary_equals_numpy(last):
    z, t = (3 * RNG.normal(size=12).astype(np.float32) for _ in range(2))
    label = np.array([0, 1, 1, 0, 1, -1, 0, 1, 0, 1, 1, 0])
    mask = np.arange(12) != 3
    kept = mask & (label >= 0)
    found: dict = {}
    for part in (slice(0, 5), slice(5, 12)):
        shaped = (x[part].reshape(-1, *last) for x in (z, t))
        student, teacher = shaped
        found = metrics.merge(found, metrics.binary(context(student, label[part], teacher, mask[part])))
    y = label[kept] == 1
    p = 1 / (1 + np.exp(-z[kept].astype(np.float64)))
    expected = {
        "accuracy": ((z[kept] > 0) == y).mean(),
        "nll": -np.log(np.where(y, p, 1 - p)).mean(),
        "teacher_accuracy": ((t[kept] > 0) == y).mean(),
        "agreement": ((z[kept] > 0) == (t[kept] > 0)).mean(),
        **scores(z[kept] > 0, y),
    }
    assert metrics.compute(found) == pytest.approx(expected, rel=1e-5)


def test_multilabel_equals_numpy():
    z = RNG.normal(size=(9, 4)).astype(np.float32)
    label = RNG.integers(0, 2, (9, 4)).astype(np.float32)
    z[:, 3], label[:, 3] = -1, 0  # a label that never occurs, nor is predicted
    label[2, 1] = -1
    mask = np.arange(9) != 4
    found: dict = {}
    for part in (slice(0, 2), slice(2, 9)):
        found = metrics.merge(found, metrics.multilabel(context(z[part], label[part], None, mask[part])))
    kept = mask[:, None] & (label >= 0)
    decided, truth = z > 0, label == 1
    each = [scores(decided[kept[:, c], c], truth[kept[:, c], c])["f1"] for c in range(3)]
    computed = metrics.compute(found)
    assert {k: computed[k] for k in ("precision", "recall", "f1")} == pytest.approx(scores(decided[kept], truth[kept]))
    assert computed["exact"] == pytest.approx(((decided == truth) | ~kept).all(1)[mask].mean())
    assert computed["macro_f1"] == pytest.approx(np.mean(each), rel=1e-6)


def test_decisions_need_a_label_for_each_logit():
    with pytest.raises(ValueError, match=r"binary: expected one label .* got logits float32\[8, 4\] and labels int"):
        metrics.binary(context(LOGITS, LABEL % 2))


# --- pixels and numbers ---------------------------------------------------------------------------------------------


def test_segmentation_equals_numpy():
    logits = RNG.normal(size=(3, 4, 5, 6)).astype(np.float32)
    logits[..., 5] = -9  # the last class is never predicted, and does not occur
    label = RNG.integers(0, 5, (3, 4, 5)).astype(np.uint8)
    label[RNG.random(label.shape) < 0.3] = 255
    mask = np.array([True, True, False])
    found: dict = {}
    for i in range(3):
        part = slice(i, i + 1)
        found = metrics.merge(
            found, jax.jit(metrics.segmentation)(context(logits[part], label[part], None, mask[part]))
        )
    kept = (label != 255) & mask[:, None, None]
    p, y = logits.argmax(-1)[kept], label[kept]
    ious = [((p == c) & (y == c)).sum() / ((p == c) | (y == c)).sum() for c in range(5)]
    computed = metrics.compute(found)
    assert computed["mean_iou"] == pytest.approx(np.mean(ious), rel=1e-6)
    assert computed["accuracy"] == pytest.approx((p == y).mean(), rel=1e-6)


@pytest.mark.parametrize("last", [(), (1,), (3,)], ids=str)
def test_regression_equals_numpy(last):
    student, teacher, target = (RNG.normal(size=(6, *last)).astype(np.float32) for _ in range(3))
    target = target[..., 0] if last == (1,) else target
    mask = np.arange(6) != 1
    found: dict = {}
    for part in (slice(0, 4), slice(4, 6)):
        given = context(student[part], None, teacher[part], mask[part], target=jnp.asarray(target[part]))
        found = metrics.merge(found, metrics.regression(given, label_path="batch/target"))
    s, t, y = (x[mask].reshape(5, -1).astype(np.float64) for x in (student, teacher, target))
    expected = {
        "mse": ((s - y) ** 2).mean(),
        "mae": np.abs(s - y).mean(),
        "rmse": np.sqrt(((s - y) ** 2).mean()),
        "teacher_mse": ((t - y) ** 2).mean(),
        "imitation_mse": ((s - t) ** 2).mean(),
    }
    assert metrics.compute(found) == pytest.approx(expected, rel=1e-5)


def test_regression_of_other_shapes_is_refused():
    with pytest.raises(ValueError, match=r"expected targets of the predictions' shape \[8, 4\], got float32\[8, 3\]"):
        metrics.regression(context(LOGITS, LOGITS[:, :3]))


def test_several_functions_report_together():
    numbers = functools.partial(metrics.regression, label_path="batch/target")
    found = metrics.report([metrics.classification, numbers], context(LOGITS, LABEL, target=jnp.asarray(TAUGHT)))
    assert set(found) == {"accuracy", "nll", "mse", "mae", "rmse"}
    with pytest.raises(ValueError, match="'accuracy', 'nll' would be reported twice"):
        metrics.report([metrics.classification, metrics.tokens], context(LOGITS, LABEL))
