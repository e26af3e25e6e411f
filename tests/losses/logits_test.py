"""What is particular to the losses of logits: masked classes, labels, temperature, the deviation of few classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses import logits
from tests import references
from tests.loss_runs import run
from tests.loss_table import BY_NAME

INF = np.inf
KL, CROSS_ENTROPY = BY_NAME["soft_target_kl"], BY_NAME["cross_entropy"]
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])


# --- cross_entropy ----------------------------------------------------------------------------------------------------


@DTYPES
def test_a_label_outside_the_classes_is_nan_and_nothing_else_is(dtype):
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
def test_every_integer_type_is_a_label(dtype, labels):
    """Also where the number of classes is none: labels of 8 bits of 1000 classes."""
    scores = np.random.default_rng(0).normal(size=(4, 1000))
    value = logits.cross_entropy(jnp.asarray(scores, jnp.float32), jnp.array(labels, dtype))
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


# --- soft_target_kl ---------------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_the_gradient_is_t_times_the_difference_of_probabilities(dtype, temperature):
    rng = np.random.default_rng(0)
    for scale in (1.0, 100.0, 1e4):
        student, teacher = scale * rng.normal(size=(2, 6, 10))
        _, (gradient, _) = run(KL, (student, teacher), dtype=dtype, hyper={"temperature": temperature})
        student, teacher = student.astype(dtype), teacher.astype(dtype)
        expected = references.soft_target_kl_gradient(student, teacher, temperature=temperature)
        np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-6 if dtype == np.float32 else 1e-12)


@DTYPES
def test_masked_classes(dtype):
    """-inf in both is no class; in the student alone it is infinitely wrong, unless the teacher excludes it too."""
    student = np.array([[0.0, 1.0, -INF], [0.0, 1.0, -INF], [0.0, 1.0, -INF], [0.0, 1.0, 2.0]])
    teacher = np.array([[1.0, 0.0, -INF], [1.0, 0.0, 0.0], [1.0, 0.0, -1e4], [1.0, 0.0, -INF]])
    hyper = {"temperature": 1.0}
    value, gradients = run(KL, (student, teacher), dtype=dtype, hyper=hyper)
    expected = references.soft_target_kl(student, teacher, temperature=1.0)
    assert list(np.isinf(expected)) == [False, True, False, False]
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    two, (slope, _) = run(KL, (student[:1, :2], teacher[:1, :2]), dtype=dtype, hyper=hyper)
    np.testing.assert_allclose(value[0], two[0], rtol=1e-6)
    np.testing.assert_allclose(gradients[0][0], [*slope[0], 0.0], rtol=1e-6)
    for gradient in gradients:
        assert np.isfinite(gradient[[0, 2, 3]]).all()


@DTYPES
def test_an_infinite_example_can_be_masked(dtype):
    student, teacher = np.array([[0.0, -INF], [0.0, 1.0]]), np.array([[0.0, 0.0], [1.0, 0.0]])
    value, gradients = run(KL, (student, teacher), where=np.array([False, True]), dtype=dtype)
    assert value[0] == 0
    assert value[1] > 0
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[0], 0)
        assert np.isfinite(gradient).all()


def test_the_temperature_may_be_learned():
    """A traced temperature, with its gradient."""
    student, teacher = np.random.default_rng(0).normal(size=(2, 4, 6))

    def total(temperature):
        return logits.soft_target_kl(jnp.asarray(student), jnp.asarray(teacher), temperature=temperature).sum()

    with jax.enable_x64(True):
        value, slope = jax.jit(jax.value_and_grad(total))(2.5)
    np.testing.assert_allclose(value, references.soft_target_kl(student, teacher, temperature=2.5).sum(), rtol=1e-9)
    expected = references.finite_difference(
        lambda t: references.soft_target_kl(student, teacher, temperature=t).sum(), np.array(2.5)
    )
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_every_example_may_have_its_temperature():
    student, teacher = np.random.default_rng(0).normal(size=(2, 4, 6))
    temperatures = np.array([0.5, 1.0, 4.0, 20.0])
    expected = [
        references.soft_target_kl(s, t, temperature=one)
        for s, t, one in zip(student, teacher, temperatures, strict=True)
    ]
    value = logits.soft_target_kl(*(jnp.asarray(a, jnp.float32) for a in (student, teacher)), temperature=temperatures)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)  # T² = 400 times a rounding
    with pytest.raises(ValueError, match=r"temperature.*\[4\].*\[4, 1\]"):
        logits.soft_target_kl(jnp.zeros((4, 6)), jnp.zeros((4, 6)), temperature=temperatures[:, None])


def test_high_temperatures_are_logit_matching():
    """Hinton et al. 2015, equation 4: T²·KL tends to half the variance of the logit difference over the classes."""
    student, teacher = np.random.default_rng(0).normal(size=(2, 4, 6))
    value, _ = run(KL, (student, teacher), hyper={"temperature": 1e4})
    centred = (student - teacher) - (student - teacher).mean(-1, keepdims=True)
    np.testing.assert_allclose(value, references.logit_mse(centred, 0 * centred) / 6, rtol=1e-3)


def test_cross_entropy_is_the_kl_to_a_certain_teacher():
    """Label smoothing's other end: a one-hot teacher has no entropy."""
    scores, labels = CROSS_ENTROPY.inputs()
    certain = np.where(np.arange(scores.shape[-1]) == labels[:, None], 0.0, -INF)
    value, (gradient, _) = run(KL, (scores, certain), hyper={"temperature": 1.0})
    expected, (expected_gradient,) = run(CROSS_ENTROPY, (scores, labels))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-15)


# --- logit_mse --------------------------------------------------------------------------------------------------------


@DTYPES
def test_logit_mse_of_masked_classes(dtype):
    student = np.array([[1.0, -INF, 2.0], [1.0, -INF, 2.0], [1.0, 0.0, 2.0]])
    teacher = np.array([[3.0, -INF, -1.0], [3.0, 0.0, -1.0], [3.0, -INF, -1.0]])
    value, gradients = run(BY_NAME["logit_mse"], (student, teacher), dtype=dtype)
    np.testing.assert_allclose(value, [6.5, INF, INF])
    np.testing.assert_allclose(gradients[0][0], [-2.0, 0.0, 3.0])
    np.testing.assert_allclose(gradients[1][0], [2.0, 0.0, -3.0])


# --- standardize_logits -----------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("constant", [0.0, 0.1, -0.3, 1e4 + 0.1, 1e-30])
def test_constant_logits_standardize_to_zero(dtype, constant):
    """The mean of equal numbers is not always that number; divided by 1e-7 the difference would be visible."""
    for classes in (1, 7, 1000):
        value, (gradient,) = run(BY_NAME["standardize_logits"], (np.full((2, classes), constant),), dtype=dtype)
        np.testing.assert_allclose(value, 0, atol=1e-6)
        assert np.isfinite(gradient).all()


@DTYPES
def test_masked_classes_are_not_standardized(dtype):
    row = BY_NAME["standardize_logits"]
    scores = np.array([[1.0, -INF, 3.0, 5.0], [-INF, -INF, 2.0, -INF], [4.0, -INF, 4.0, 4.0]])
    weights = np.where(np.isinf(scores), 0.0, np.random.default_rng(0).normal(size=scores.shape))
    value, (gradient,) = run(row, (scores,), cotangent=weights, dtype=dtype)
    np.testing.assert_allclose(value, [[-1, -INF, 0, 1], [-INF, -INF, 0, -INF], [0, -INF, 0, 0]], rtol=1e-6, atol=1e-7)
    _, (three,) = run(row, (scores[:1, [0, 2, 3]],), cotangent=weights[:1, [0, 2, 3]], dtype=dtype)
    np.testing.assert_allclose(gradient[0, [0, 2, 3]], three[0], rtol=1e-5, atol=1e-7)
    np.testing.assert_array_equal(gradient[np.isinf(scores)], 0)
    assert np.isfinite(gradient).all()


def test_standardized_kd_of_masked_classes():
    """The composition that users write, with classes masked in both networks."""
    scores = np.random.default_rng(0).normal(size=(2, 4, 6))
    scores[..., 2] = -INF

    def loss(student, teacher):
        standardized = logits.standardize_logits(student), logits.standardize_logits(teacher)
        return logits.soft_target_kl(*standardized, temperature=2.0).sum()

    with jax.enable_x64(True):
        value, gradient = jax.jit(jax.value_and_grad(loss))(*jnp.asarray(scores))
        fewer = np.delete(scores, 2, -1)
        expected, slope = jax.jit(jax.value_and_grad(loss))(*jnp.asarray(fewer))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(np.delete(gradient, 2, -1), slope, rtol=1e-9, atol=1e-12)
    np.testing.assert_array_equal(gradient[:, 2], 0)


def test_standardizing_twice_changes_little():
    scores = BY_NAME["standardize_logits"].inputs()[0]
    once, _ = run(BY_NAME["standardize_logits"], (scores,))
    twice, _ = run(BY_NAME["standardize_logits"], (once,))
    np.testing.assert_allclose(twice, once, rtol=1e-6)
    np.testing.assert_allclose(once.mean(-1), 0, atol=1e-12)
    np.testing.assert_allclose(once.std(-1, ddof=1), 1, rtol=1e-6)
