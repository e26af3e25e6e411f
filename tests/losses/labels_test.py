"""Losses without a teacher network: special cases of one another, and valid and invalid labels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests import references
from tests.loss_runs import run
from tests.loss_table import BY_NAME

INF = np.inf
SOFT, SMOOTH, VIRTUAL = (BY_NAME[name] for name in ("soft_cross_entropy", "label_smoothing", "virtual_teacher_kl"))
CROSS_ENTROPY, KL = BY_NAME["cross_entropy"], BY_NAME["soft_target_kl"]
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])


def one_hot(labels, classes):
    return np.eye(classes)[labels]


# --- cross_entropy ----------------------------------------------------------------------------------------------------


@DTYPES
def test_cross_entropy_of_an_invalid_label_is_nan(dtype):
    arrays = np.zeros((5, 4)), np.array([0, 3, 4, -1, 2**31 - 1])
    value, (gradient,) = run(CROSS_ENTROPY, arrays, dtype=dtype)
    np.testing.assert_allclose(value, [np.log(4), np.log(4), np.nan, np.nan, np.nan], rtol=1e-6)
    np.testing.assert_allclose(gradient[:2], [[-0.75, 0.25, 0.25, 0.25], [0.25, 0.25, 0.25, -0.75]], rtol=1e-6)
    where = np.array([True, True, False, False, False])
    value, (gradient,) = run(CROSS_ENTROPY, arrays, where=where, dtype=dtype)
    np.testing.assert_allclose(value, [np.log(4), np.log(4), 0, 0, 0], rtol=1e-6)
    np.testing.assert_array_equal(gradient[2:], 0)


@pytest.mark.parametrize(
    "dtype, labels",
    [(jnp.int8, [0, 5, 100, 127]), (jnp.uint8, [0, 5, 200, 255]), (jnp.uint32, [0, 5, 500, 999])],
    ids=["int8", "uint8", "uint32"],
)
def test_cross_entropy_takes_every_integer_type(dtype, labels):
    """Also where the number of classes is none: labels of 8 bits of 1000 classes."""
    scores = np.random.default_rng(0).normal(size=(4, 1000))
    value = losses.cross_entropy(jnp.asarray(scores, jnp.float32), jnp.array(labels, dtype))
    np.testing.assert_allclose(value, references.cross_entropy(scores, np.array(labels)), rtol=1e-5)


@DTYPES
def test_cross_entropy_of_a_masked_class(dtype):
    """An impossible label costs infinitely much, a masked class that is not the label nothing."""
    scores = np.array([[0.0, 0.0, -INF]] * 2)
    value, (gradient,) = run(CROSS_ENTROPY, (scores, np.array([1, 2])), dtype=dtype)
    np.testing.assert_allclose(value, [np.log(2), INF], rtol=1e-6)
    np.testing.assert_allclose(gradient[0], [0.5, -0.5, 0.0], rtol=1e-6)


@DTYPES
def test_confident_logits_lose_no_digits(dtype):
    """-log p near p = 1 and far from it: the softmax is never formed."""
    scores = np.array([[100.0, 0.0], [1e4, -1e4], [0.0, 30.0]])
    value, _ = run(CROSS_ENTROPY, (scores, np.array([1, 1, 0])), dtype=dtype)
    np.testing.assert_allclose(value, [100.0, 2e4, 30.0], rtol=1e-6)


# --- soft_cross_entropy -----------------------------------------------------------------------------------------------


@DTYPES
def test_soft_cross_entropy_of_certain_targets_is_the_cross_entropy(dtype):
    scores, labels = CROSS_ENTROPY.inputs()
    scores[:, 7] = np.where(labels == 7, scores[:, 7], -INF)  # excluded wherever it is not the label
    value, (gradient, _) = run(SOFT, (scores, one_hot(labels, 10)), dtype=dtype)
    expected, (expected_gradient,) = run(CROSS_ENTROPY, (scores, labels), dtype=dtype)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)


@DTYPES
def test_soft_cross_entropy_is_the_kl_and_the_entropy_of_the_teacher(dtype):
    student, teacher = KL.inputs()
    teacher[:, 3] = student[:, 3] = -INF
    log_q = references.log_softmax(teacher)
    q = np.exp(log_q)
    entropy = -(q * np.where(q > 0, log_q, 0)).sum(-1)
    value, (gradient, _) = run(SOFT, (student, q), dtype=dtype)
    divergence, (slope, _) = run(KL, (student, teacher), hyper={"temperature": 1.0}, dtype=dtype)
    np.testing.assert_allclose(value, divergence + entropy, rtol=1e-5)
    np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


@DTYPES
def test_targets_that_are_zero_add_nothing(dtype):
    """0 log 0: also where the class is excluded, where a product would be 0 times infinity."""
    scores = np.array([[0.0, 0.0, -INF], [0.0, 0.0, -INF]])
    value, (of_scores, of_targets) = run(SOFT, (scores, np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])), dtype=dtype)
    np.testing.assert_allclose(value, [np.log(2), INF], rtol=1e-6)
    np.testing.assert_allclose(of_scores[0], [0, 0, 0], atol=1e-7)
    np.testing.assert_allclose(of_targets[0], [np.log(2), np.log(2), 0], rtol=1e-6)
    assert np.isfinite(of_scores).all()
    assert np.isfinite(of_targets).all()


def test_the_targets_of_mixed_labels():
    """Mixup: the mixture of the targets is the mixture of the losses, and nothing is normalized."""
    scores, labels = CROSS_ENTROPY.inputs()
    mixed = 0.3 * one_hot(labels, 10) + 0.7 * one_hot(labels[::-1], 10)
    both = [run(CROSS_ENTROPY, (scores, one))[0] for one in (labels, labels[::-1])]
    np.testing.assert_allclose(run(SOFT, (scores, mixed))[0], 0.3 * both[0] + 0.7 * both[1], rtol=1e-12)
    np.testing.assert_allclose(run(SOFT, (scores, 2 * mixed))[0], 2 * run(SOFT, (scores, mixed))[0], rtol=1e-12)


def test_labels_are_no_targets():
    with pytest.raises(ValueError, match=r"targets.*float.*int32\[4\]"):
        losses.soft_cross_entropy(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32))
    with pytest.raises(ValueError, match=r"targets.*\[4, 3\].*\[3\].*cross_entropy"):
        losses.soft_cross_entropy(jnp.zeros((4, 3)), jnp.zeros(3))


# --- label_smoothing --------------------------------------------------------------------------------------------------


@DTYPES
def test_no_smoothing_is_the_cross_entropy(dtype):
    """Exactly 0 of a class that is excluded is nothing; the least of it costs infinitely much."""
    scores, labels = CROSS_ENTROPY.inputs()
    scores[:, 7] = np.where(labels == 7, scores[:, 7], -INF)
    value, (gradient,) = run(SMOOTH, (scores, labels), hyper={"smoothing": 0.0}, dtype=dtype)
    expected, (expected_gradient,) = run(CROSS_ENTROPY, (scores, labels), dtype=dtype)
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-5, atol=1e-7)
    value, (gradient,) = run(SMOOTH, (scores, labels), dtype=dtype)
    np.testing.assert_array_equal(value[labels != 7], INF)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("smoothing", [0.1, 0.5, 1.0])
def test_smoothing_mixes_the_cross_entropy_with_that_of_the_uniform_distribution(smoothing):
    scores, labels = SMOOTH.inputs()
    value, (gradient,) = run(SMOOTH, (scores, labels), hyper={"smoothing": smoothing})
    uniform = -references.log_softmax(scores).mean(-1)
    expected = (1 - smoothing) * references.cross_entropy(scores, labels) + smoothing * uniform
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    smoothed = (1 - smoothing) * one_hot(labels, 10) + smoothing / 10
    of_targets, (slope, _) = run(SOFT, (scores, smoothed))
    np.testing.assert_allclose(value, of_targets, rtol=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=1e-12, atol=1e-15)


def test_uniform_part_includes_the_label():
    """Other code spreads ε over the other classes alone: that is another ε, (K - 1)/K of which is this one's."""
    scores, labels = SMOOTH.inputs()
    others = 0.9 * one_hot(labels, 10) + 0.1 / 9 * (1 - one_hot(labels, 10))
    theirs, _ = run(SOFT, (scores, others))
    value, _ = run(SMOOTH, (scores, labels), hyper={"smoothing": 0.1})
    assert np.abs(value / theirs - 1).max() > 1e-3, "the difference shows"
    np.testing.assert_allclose(run(SMOOTH, (scores, labels), hyper={"smoothing": 0.1 * 10 / 9})[0], theirs, rtol=1e-12)


def test_the_smallest_smoothed_loss_is_an_entropy():
    q = np.array([[0.925, 0.025, 0.025, 0.025]])
    value, (gradient,) = run(SMOOTH, (np.log(q), np.array([0])))
    np.testing.assert_allclose(value, -(q * np.log(q)).sum(-1), rtol=1e-12)
    np.testing.assert_allclose(gradient, 0, atol=1e-15)


@pytest.mark.parametrize("smoothing", [-0.1, 1.1, np.nan])
def test_smoothing_outside_zero_to_one(smoothing):
    with pytest.raises(ValueError, match=rf"smoothing.*0 to 1.*{smoothing}"):
        losses.label_smoothing(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32), smoothing=smoothing)


# --- virtual_teacher_kl -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("hyper", [{}, {"correct": 0.9, "temperature": 4.0}, {"correct": 1.0}], ids=str)
def test_the_virtual_teacher_is_a_network_with_these_probabilities(hyper):
    """The logarithms of its probabilities are its logits, to be softened as those of any other."""
    scores, labels = VIRTUAL.inputs()
    correct = hyper.get("correct", 0.99)
    with np.errstate(divide="ignore"):
        teacher = np.log(np.where(one_hot(labels, 10) == 1, correct, (1 - correct) / 9))
    value, (gradient,) = run(VIRTUAL, (scores, labels), hyper=hyper)
    expected, (slope, _) = run(KL, (scores, teacher), hyper={"temperature": hyper.get("temperature", 20.0)})
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)


def test_the_virtual_teacher_at_temperature_one_is_label_smoothing():
    """Up to the entropy of the targets, which has no gradient; ε = (1 - a) K / (K - 1)."""
    scores, labels = VIRTUAL.inputs()
    value, (gradient,) = run(VIRTUAL, (scores, labels), hyper={"correct": 0.91, "temperature": 1.0})
    smoothed, (slope,) = run(SMOOTH, (scores, labels), hyper={"smoothing": 0.1})
    np.testing.assert_allclose(smoothed - value, -0.91 * np.log(0.91) - 0.09 * np.log(0.01), rtol=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-9, atol=1e-12)


def test_virtual_teacher_with_probability_one_is_the_cross_entropy():
    scores, labels = VIRTUAL.inputs()
    value, (gradient,) = run(VIRTUAL, (scores, labels), hyper={"correct": 1.0, "temperature": 1.0})
    expected, (slope,) = run(CROSS_ENTROPY, (scores, labels))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, slope, rtol=1e-12, atol=1e-15)


def test_softened_probabilities_would_be_another_teacher():
    """softmax(p/T), as in the authors' code: at T = 20 nearly uniform, whatever the label."""
    scores, labels = VIRTUAL.inputs()
    probabilities = np.where(one_hot(labels, 10) == 1, 0.99, 0.01 / 9)
    theirs = references.soft_target_kl(scores, probabilities, temperature=20.0)
    assert np.abs(run(VIRTUAL, (scores, labels))[0] / theirs - 1).min() > 0.1, "the difference shows"
    assert np.ptp(np.exp(references.log_softmax(probabilities / 20))) < 0.01


def test_two_classes():
    value, _ = run(VIRTUAL, (np.array([[np.log(99), 0.0]]), np.array([0])))
    np.testing.assert_allclose(value, 0, atol=1e-12)


@pytest.mark.parametrize("correct", [0, -0.5, 1.01, np.nan])
def test_correct_outside_zero_to_one(correct):
    with pytest.raises(ValueError, match=rf"correct.*above 0.*{correct}"):
        losses.virtual_teacher_kl(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32), correct=correct)


@pytest.mark.parametrize("temperature", [0, -1.0, np.nan])
def test_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=rf"temperature.*positive.*{temperature}"):
        losses.virtual_teacher_kl(jnp.zeros((4, 3)), jnp.zeros(4, jnp.int32), temperature=temperature)


def test_temperature_of_each_example():
    scores, labels = VIRTUAL.inputs()
    temperatures = np.array([0.5, 1.0, 4.0, 20.0, 1.0, 2.0])
    expected = [
        references.virtual_teacher_kl(scores[i : i + 1], labels[i : i + 1], temperature=temperature)[0]
        for i, temperature in enumerate(temperatures)
    ]
    with jax.enable_x64(True):
        value = losses.virtual_teacher_kl(jnp.asarray(scores), jnp.asarray(labels), temperature=temperatures)
    np.testing.assert_allclose(value, expected, rtol=1e-9)


# --- labels -----------------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("row", [SMOOTH, VIRTUAL], ids=str)
def test_a_label_outside_the_classes_is_nan_and_nothing_else_is(row, dtype):
    scores, labels = row.inputs()[0], np.array([0, -1, 10, 9, 2**31 - 1, -(2**31)])
    value, _ = run(row, (scores, labels), dtype=dtype)
    np.testing.assert_array_equal(np.isnan(value), [False, True, True, False, True, True])
    where = ~np.isnan(value)
    masked, (gradient,) = run(row, (scores, labels), where=where, dtype=dtype)
    np.testing.assert_array_equal(masked, np.where(where, value, 0))
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[~where], 0)


@pytest.mark.parametrize("row", [SMOOTH, VIRTUAL], ids=str)
@pytest.mark.parametrize(
    "dtype, labels",
    [(jnp.int8, [0, 5, 100, 127]), (jnp.uint8, [0, 5, 200, 255]), (jnp.uint32, [0, 5, 500, 999])],
    ids=["int8", "uint8", "uint32"],
)
def test_every_integer_type_is_a_label(row, dtype, labels):
    scores = np.random.default_rng(0).normal(size=(4, 1000))
    value = row.function(jnp.asarray(scores, jnp.float32), jnp.array(labels, dtype))
    np.testing.assert_allclose(value, row.reference(scores, np.array(labels)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("row", [SMOOTH, VIRTUAL], ids=str)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bool], ids=["float32", "bool"])
def test_labels_that_are_not_integers(row, dtype):
    with pytest.raises(ValueError, match=rf"labels.*integer.*{jnp.dtype(dtype).name}.*soft_cross_entropy"):
        row.function(jnp.zeros((4, 3)), jnp.zeros(4, dtype))
