"""KL divergences: masked classes, temperatures, limits, bounds and special cases."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests import references
from tests.loss_runs import run
from tests.loss_table import BY_NAME

INF = np.inf
KL, REVERSE, JSD = (BY_NAME[name] for name in ("soft_target_kl", "reverse_kl", "generalized_jsd"))
SKEW, SKEW_REVERSE, CROSS_ENTROPY = (BY_NAME[name] for name in ("skew_kl", "skew_reverse_kl", "cross_entropy"))
BOTH = pytest.mark.parametrize("row, whole", [(SKEW, KL), (SKEW_REVERSE, REVERSE)], ids=str)
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])


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
        return losses.soft_target_kl(jnp.asarray(student), jnp.asarray(teacher), temperature=temperature).sum()

    with jax.enable_x64(True):
        value, slope = jax.jit(jax.value_and_grad(total))(2.5)
    np.testing.assert_allclose(value, references.soft_target_kl(student, teacher, temperature=2.5).sum(), rtol=1e-9)
    expected = references.finite_difference(
        lambda t: references.soft_target_kl(student, teacher, temperature=t).sum(), np.array(2.5)
    )
    np.testing.assert_allclose(slope, expected, rtol=1e-6)


def test_temperature_of_each_example():
    student, teacher = np.random.default_rng(0).normal(size=(2, 4, 6))
    temperatures = np.array([0.5, 1.0, 4.0, 20.0])
    expected = [
        references.soft_target_kl(s, t, temperature=one)
        for s, t, one in zip(student, teacher, temperatures, strict=True)
    ]
    value = losses.soft_target_kl(*(jnp.asarray(a, jnp.float32) for a in (student, teacher)), temperature=temperatures)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-4)  # T² = 400 times a rounding
    with pytest.raises(ValueError, match=r"temperature.*\[4\].*\[4, 1\]"):
        losses.soft_target_kl(jnp.zeros((4, 6)), jnp.zeros((4, 6)), temperature=temperatures[:, None])


def test_high_temperatures_are_logit_matching():
    """Hinton et al. 2015, equation 4: T²·KL tends to half the variance of the logit difference over the classes."""
    student, teacher = np.random.default_rng(0).normal(size=(2, 4, 6))
    value, _ = run(KL, (student, teacher), hyper={"temperature": 1e4})
    centered = (student - teacher) - (student - teacher).mean(-1, keepdims=True)
    np.testing.assert_allclose(value, references.logit_mse(centered, 0 * centered) / 6, rtol=1e-3)


@pytest.mark.parametrize("row", [KL, REVERSE, JSD], ids=str)
@pytest.mark.parametrize("difference", [1.0, 1e-1, 1e-2, 1e-3])
def test_a_student_that_nearly_agrees_has_an_accurate_loss_in_float32(row, difference):
    """The divergence is of the order of the difference squared; rounded logarithms alone would be off by 1e-7 each."""
    rng = np.random.default_rng(0)
    teacher = rng.normal(size=(4, 1000)).astype(np.float32)
    student = (teacher + difference * rng.normal(size=(4, 1000))).astype(np.float32)
    for hyper in ({"temperature": 1.0}, {"temperature": 20.0}):
        expected = row.reference(student.astype(np.float64), teacher.astype(np.float64), **hyper)
        value, _ = run(row, (student, teacher), hyper=hyper, dtype=np.float32, optimized=True)
        # What float32 logits of order one resolve: their differences are known to 1e-7 each.
        np.testing.assert_allclose(value, expected, rtol=1e-4 + 1e-6 / difference)
        assert (value > 0).all()


def test_cross_entropy_is_the_kl_to_a_certain_teacher():
    """Label smoothing's other end: a one-hot teacher has no entropy."""
    scores, labels = CROSS_ENTROPY.inputs()
    certain = np.where(np.arange(scores.shape[-1]) == labels[:, None], 0.0, -INF)
    value, (gradient, _) = run(KL, (scores, certain), hyper={"temperature": 1.0})
    expected, (expected_gradient,) = run(CROSS_ENTROPY, (scores, labels))
    np.testing.assert_allclose(value, expected, rtol=1e-12)
    np.testing.assert_allclose(gradient, expected_gradient, rtol=1e-12, atol=1e-15)


# --- reverse_kl and generalized_jsd -----------------------------------------------------------------------------------


def test_the_reverse_is_the_kl_with_student_and_teacher_exchanged():
    arrays = KL.inputs()
    value, (of_student, of_teacher) = run(REVERSE, arrays, hyper={"temperature": 4.0})
    expected, (of_second, of_first) = run(KL, arrays[::-1])
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(of_student, of_first)
    np.testing.assert_array_equal(of_teacher, of_second)


@DTYPES
@pytest.mark.parametrize("row", [KL, REVERSE], ids=str)
def test_an_infinite_divergence_has_a_finite_gradient(row, dtype):
    """One bad class must not cost the whole run its parameters: the value says so, the gradient does not."""
    one, all_of_them = np.array([[0.0, 1.0, -INF]]), np.array([[1.0, 0.0, 2.0]])
    arrays = (one, all_of_them) if row is KL else (all_of_them, one)
    value, gradients = run(row, arrays, dtype=dtype)
    assert value == INF
    for gradient in gradients:
        assert np.isfinite(gradient).all()
    value, gradients = run(row, arrays[::-1], dtype=dtype)
    assert np.isfinite(value).all()
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@DTYPES
def test_the_ends_of_the_jsd_are_the_two_divergences(dtype):
    arrays = KL.inputs()
    for beta, row in ((0.0, KL), (1.0, REVERSE), (0, KL), (1, REVERSE)):
        value, gradients = run(JSD, arrays, hyper={"beta": beta}, dtype=dtype)
        expected, expected_gradients = run(row, arrays, hyper={"temperature": 1.0}, dtype=dtype)
        rounding = 16 * np.finfo(dtype).eps
        np.testing.assert_allclose(value, expected, rtol=rounding)
        for gradient, one in zip(gradients, expected_gradients, strict=True):
            np.testing.assert_allclose(gradient, one, rtol=rounding, atol=rounding)


@pytest.mark.parametrize("end, row", [(0.0, KL), (1.0, REVERSE)], ids=["0", "1"])
def test_the_jsd_over_its_distance_from_an_end_is_the_divergence_there(end, row):
    """Values and gradients, the nearer the closer; the JSD itself vanishes, so that its ends are a convention."""
    arrays = KL.inputs()
    expected, expected_gradients = run(row, arrays, hyper={"temperature": 1.0})
    last = INF
    for distance in (1e-2, 1e-4, 1e-6):
        value, gradients = run(JSD, arrays, hyper={"beta": abs(end - distance)})
        errors = [np.abs(value / distance - expected).max()]
        errors += [np.abs(g / distance - e).max() for g, e in zip(gradients, expected_gradients, strict=True)]
        assert max(errors) < last / 10
        assert value.max() < 10 * distance
        last = max(errors)
    assert last < 1e-3


def test_the_jsd_is_symmetric_and_bounded():
    student, teacher = (100 * array for array in KL.inputs())
    for beta in (0.1, 0.5, 0.75):
        value, (of_student, of_teacher) = run(JSD, (student, teacher), hyper={"beta": beta})
        mirrored, gradients = run(JSD, (teacher, student), hyper={"beta": 1 - beta})
        np.testing.assert_allclose(value, mirrored, rtol=1e-12, atol=1e-15)
        np.testing.assert_allclose(of_student, gradients[1], atol=1e-14)
        np.testing.assert_allclose(of_teacher, gradients[0], atol=1e-14)
        assert (value <= -beta * np.log(beta) - (1 - beta) * np.log(1 - beta) + 1e-12).all()


@DTYPES
def test_the_jsd_of_what_only_one_network_excludes(dtype):
    """p = [1, 0] and [1/2, 1/2], of which the mixture is [3/4, 1/4]: finite, where either divergence is infinite."""
    certain, even = np.array([[0.0, -INF]]), np.array([[0.0, 0.0]])
    expected = [0.5 * np.log(4 / 3) + 0.25 * np.log(2 / 3) + 0.25 * np.log(2)]
    for arrays in ((certain, even), (even, certain)):
        value, gradients = run(JSD, arrays, dtype=dtype)
        np.testing.assert_allclose(value, expected, rtol=1e-6)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("beta", [-0.1, 1.5, np.nan])
def test_beta_outside_zero_to_one(beta):
    with pytest.raises(ValueError, match=rf"beta.*0 to 1.*{beta}"):
        losses.generalized_jsd(jnp.zeros((2, 3)), jnp.zeros((2, 3)), beta=beta)


def test_easydel_has_the_reverse_beta():
    """m = β p_s + (1 - β) p_t, and the weights likewise: the other divergence, the farther the nearer an end."""
    arrays = KL.inputs()
    for beta in (0.0, 0.1, 0.9, 1.0):
        right = references.generalized_jsd(*arrays, beta=beta)
        assert np.abs(references.generalized_jsd(*arrays, beta=1 - beta) / right - 1).max() > 0.1, "the mistake shows"
        np.testing.assert_allclose(run(JSD, arrays, hyper={"beta": beta})[0], right, rtol=1e-9)
    np.testing.assert_allclose(
        run(JSD, arrays, hyper={"beta": 0.0})[0], references.soft_target_kl(*arrays, temperature=1.0), rtol=1e-9
    )


# --- skew_kl, skew_reverse_kl -----------------------------------------------------------------------------------------


@DTYPES
@BOTH
def test_no_skew_is_the_divergence(row, whole, dtype):
    arrays = row.inputs()
    value, gradients = run(row, arrays, hyper={"alpha": 0.0, "temperature": 2.0}, dtype=dtype)
    expected, expected_gradients = run(whole, arrays, hyper={"temperature": 2.0}, dtype=dtype)
    rounding = 16 * np.finfo(dtype).eps
    np.testing.assert_allclose(value, expected, rtol=rounding)
    for gradient, one in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, one, rtol=rounding, atol=rounding)


@BOTH
def test_the_limits_of_the_skew(row, whole):
    """Values and gradients: a little skew changes little, and a mixture of one network alone has nothing to tell."""
    arrays = row.inputs()
    expected, expected_gradients = run(whole, arrays, hyper={"temperature": 1.0})
    last = INF
    for alpha in (1e-2, 1e-4, 1e-6):
        value, gradients = run(row, arrays, hyper={"alpha": alpha})
        errors = [np.abs(value - expected).max()]
        errors += [np.abs(g - e).max() for g, e in zip(gradients, expected_gradients, strict=True)]
        assert max(errors) < last / 10
        assert (value < expected).all()
        last = max(errors)
    assert last < 1e-4
    value, gradients = run(row, arrays, hyper={"alpha": 1.0})
    assert all((array == 0).all() for array in (value, *gradients))


def test_the_reverse_is_the_skew_kl_with_student_and_teacher_exchanged():
    arrays = SKEW.inputs()
    value, (of_student, of_teacher) = run(SKEW_REVERSE, arrays, hyper={"alpha": 0.3})
    expected, (of_second, of_first) = run(SKEW, arrays[::-1], hyper={"alpha": 0.3})
    np.testing.assert_array_equal(value, expected)
    np.testing.assert_array_equal(of_student, of_first)
    np.testing.assert_array_equal(of_teacher, of_second)


def test_the_jsd_is_made_of_skewed_divergences():
    arrays = SKEW.inputs()
    for beta in (0.1, 0.5, 0.9):
        skewed, _ = run(SKEW, arrays, hyper={"alpha": beta})
        reverse, _ = run(SKEW_REVERSE, arrays, hyper={"alpha": 1 - beta})
        expected, _ = run(JSD, arrays, hyper={"beta": beta})
        np.testing.assert_allclose(beta * skewed + (1 - beta) * reverse, expected, rtol=1e-9, atol=1e-15)


@DTYPES
@BOTH
def test_a_skewed_divergence_is_bounded(row, whole, dtype):
    """By -log α, where the divergence is infinite: what either network excludes, and what underflows."""
    excluding, including = np.array([[0.0, -INF], [0.0, -1e4]]), np.array([[-1e4, 0.0], [0.0, 0.0]])
    arrays = (excluding, including) if row is SKEW else (including, excluding)
    assert run(whole, arrays, dtype=dtype)[0][0] == INF
    for alpha in (1e-6, 0.1, 0.5):
        for ordered in (arrays, arrays[::-1]):
            value, gradients = run(row, ordered, hyper={"alpha": alpha}, dtype=dtype)
            assert (value <= -np.log(alpha) * (1 + 1e-6)).all()
            assert all(np.isfinite(gradient).all() for gradient in gradients)
        np.testing.assert_allclose(
            run(row, arrays, hyper={"alpha": alpha}, dtype=dtype)[0][0], -np.log(alpha), rtol=1e-6
        )


def test_mixed_probabilities_would_be_rounded_away():
    """e⁻¹²⁰ is 0 in float32, and so is the mixture of two of them, the logarithm of which the code of others takes."""
    student, teacher = np.array([[-120.0, 0.0, 1.0]]), np.array([[-121.0, 1.0, 0.0]])
    naive = jnp.log(0.1 * jax.nn.softmax(jnp.asarray(teacher, jnp.float32)))
    assert np.isinf(naive).any(), "the mistake shows"
    for row in (SKEW, SKEW_REVERSE):
        value, gradients = run(row, (student, teacher), dtype=np.float32)
        np.testing.assert_allclose(value, row.reference(student, teacher), rtol=1e-5)
        assert all(np.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize("alpha", [-0.1, 1.5, np.nan])
@BOTH
def test_alpha_outside_zero_to_one(row, whole, alpha):
    with pytest.raises(ValueError, match=rf"alpha.*0 to 1.*{alpha}"):
        row.function(jnp.zeros((2, 3)), jnp.zeros((2, 3)), alpha=alpha)


@pytest.mark.parametrize("temperature", [0, -1.0, np.nan])
@BOTH
def test_a_temperature_that_is_not_positive(row, whole, temperature):
    with pytest.raises(ValueError, match=rf"temperature.*positive.*{temperature}"):
        row.function(jnp.zeros((2, 3)), jnp.zeros((2, 3)), temperature=temperature)
