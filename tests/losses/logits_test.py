"""What is particular to the losses of logits: masked classes, labels, temperature, special cases, few classes."""

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
REVERSE, JSD, DKD, DIST = (BY_NAME[name] for name in ("reverse_kl", "generalized_jsd", "decoupled_kd", "dist"))
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
def test_a_share_of_the_mixture_that_is_none(beta):
    with pytest.raises(ValueError, match=rf"beta.*0 to 1.*{beta}"):
        logits.generalized_jsd(jnp.zeros((2, 3)), jnp.zeros((2, 3)), beta=beta)


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


# --- decoupled_kd -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_decoupled_kd_with_the_teacher_s_own_weight_is_the_kl(temperature):
    """Zhao et al. 2022, equation 6: what they decouple is KL = TCKD + (1 - p_t[target]) NCKD."""
    student, teacher, labels = DKD.inputs()
    expected, _ = run(KL, (student, teacher), hyper={"temperature": temperature})
    rest = 1 - np.exp(references.log_softmax(teacher / temperature))[np.arange(6), labels]
    for example in range(6):
        one = tuple(array[example : example + 1] for array in (student, teacher, labels))
        hyper = {"alpha": 1.0, "beta": float(rest[example]), "temperature": temperature}
        np.testing.assert_allclose(run(DKD, one, hyper=hyper)[0], expected[example : example + 1], rtol=1e-10)


@DTYPES
def test_two_classes_have_no_others_to_tell_apart(dtype):
    arrays = DKD.inputs(((6, 2), (6, 2), (6,)))
    value, gradients = run(DKD, arrays, dtype=dtype)
    without, expected = run(DKD, arrays, hyper={"beta": 0.0}, dtype=dtype)
    np.testing.assert_array_equal(value, without)
    np.testing.assert_allclose(value, run(KL, arrays[:2], dtype=dtype)[0], rtol=1e-4, atol=1e-5)
    for gradient, one in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(gradient, one)


@DTYPES
def test_a_certain_teacher_still_tells_the_other_classes_apart(dtype):
    """Its target has all the mass, to the last bit; among the others it knows what it knows."""
    student, teacher, labels = DKD.inputs()
    above = 2.0**14 * (np.arange(10) == labels[:, None])
    others = [np.delete(array.ravel(), np.arange(6) * 10 + labels).reshape(6, 9) for array in (student, teacher)]
    expected, slopes = run(KL, others)
    value, (of_student, of_teacher) = run(
        DKD, (student, teacher + above, labels), hyper={"alpha": 0.0, "beta": 1.0}, dtype=dtype
    )
    if dtype == np.float32:  # what is left of the teacher's logits next to the target's is their own rounding
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
    else:
        np.testing.assert_allclose(value, expected, rtol=1e-9)
        elsewhere = np.arange(10) != labels[:, None]
        np.testing.assert_allclose(of_student[elsewhere].reshape(6, 9), slopes[0], rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(of_teacher[elsewhere].reshape(6, 9), slopes[1], rtol=1e-9, atol=1e-12)
    assert np.isfinite(of_student).all() and np.isfinite(of_teacher).all()


@DTYPES
def test_a_label_that_is_no_class_is_nan_here_too(dtype):
    student, teacher, _ = DKD.inputs()
    labels = np.array([0, -1, 10, 9, 2**31 - 1, 3])
    value, _ = run(DKD, (student, teacher, labels), dtype=dtype)
    np.testing.assert_array_equal(np.isnan(value), [False, True, True, False, True, False])
    where = ~np.isnan(value)
    masked, gradients = run(DKD, (student, teacher, labels), where=where, dtype=dtype)
    np.testing.assert_array_equal(masked, np.where(where, value, 0))
    assert all(np.isfinite(gradient).all() and (gradient[~where] == 0).all() for gradient in gradients)
    for kind in (jnp.int8, jnp.uint8, jnp.uint32):
        small = logits.decoupled_kd(
            *(jnp.asarray(a, jnp.float32) for a in (student, teacher)), jnp.arange(6, dtype=kind)
        )
        np.testing.assert_allclose(small, references.decoupled_kd(student, teacher, np.arange(6)), rtol=1e-3)


@DTYPES
def test_a_target_without_others(dtype):
    """What the teacher excludes has no distribution to match; what only the student excludes is infinitely wrong."""
    usual, alone = np.array([[1.0, 0.0, 2.0]]), np.array([[1.0, -INF, -INF]])
    labels = np.array([0])
    value, gradients = run(DKD, (usual, alone, labels), hyper={"temperature": 1.0}, dtype=dtype)
    np.testing.assert_allclose(value, references.cross_entropy(usual, labels), rtol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    value, gradients = run(DKD, (alone, usual, labels), hyper={"temperature": 1.0}, dtype=dtype)
    assert value == INF
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_labels_of_decoupled_kd_that_are_no_integers():
    with pytest.raises(ValueError, match=r"labels: expected integer.*\[4\].*float32"):
        logits.decoupled_kd(jnp.zeros((4, 3)), jnp.zeros((4, 3)), jnp.zeros(4))


# --- dist -------------------------------------------------------------------------------------------------------------


def probabilities(seed, *shape):
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), size=shape[:-1])


def test_dist_sees_the_relation_alone():
    """Probabilities that are another scale and shift of the teacher's have its relations, where the KL is far off."""
    teacher = probabilities(0, 6, 5)
    arrays = np.log(0.4 * teacher + 0.6 / 5), np.log(teacher)
    value, (gradient, _) = run(DIST, arrays)
    np.testing.assert_allclose(value, 0, atol=1e-5)  # the 1e-8 next to the norms of the columns
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    assert run(KL, arrays, hyper={"temperature": 1.0})[0].min() > 0.05
    opposite = np.log(0.3 - 0.2 * teacher)
    np.testing.assert_allclose(run(DIST, (opposite, np.log(teacher)))[0], 4, atol=1e-5)


def test_a_perfect_student_of_dist_is_nearly_at_zero():
    """1 - ρ is 1e-8 / (‖·‖² + 1e-8) then, never quite 0, and never below it."""
    scores = DIST.inputs()[0]
    p = np.exp(references.log_softmax(scores))
    squares = [((p - p.mean(axis, keepdims=True)) ** 2).sum(axis) for axis in (0, 1)]
    columns, rows = (1e-8 / (square + 1e-8) for square in squares)
    np.testing.assert_allclose(run(DIST, (scores, scores))[0], rows + columns.mean(), rtol=1e-6)
    assert (run(DIST, (scores, scores), dtype=np.float32)[0] >= -1e-6).all()


@DTYPES
def test_what_is_constant_correlates_with_nothing(dtype):
    """A head that starts at zero; a batch of duplicates; a batch of one: ρ = 0 and no gradient, not one of 1e8."""
    teacher = np.random.default_rng(0).normal(size=(5, 7))
    for student in (np.zeros((5, 7)), np.full((5, 7), 0.1), np.full((5, 7), -1e4)):
        value, gradients = run(DIST, (student, teacher), dtype=dtype, optimized=True)
        np.testing.assert_array_equal(value, 2)
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)
    duplicates = np.repeat(teacher[:1], 5, 0)
    hyper = {"beta": 0.0, "gamma": 1.0}
    for arrays in ((duplicates, teacher), (teacher, duplicates), (teacher[:1], teacher[1:2])):
        value, gradients = run(DIST, arrays, dtype=dtype, hyper=hyper, optimized=True)
        np.testing.assert_array_equal(value, 1)
        for gradient in gradients:
            np.testing.assert_array_equal(gradient, 0)


def test_dist_is_the_sum_of_its_two_relations():
    arrays = DIST.inputs()
    rows, _ = run(DIST, arrays, hyper={"gamma": 0.0})
    columns, _ = run(DIST, arrays, hyper={"beta": 0.0})
    np.testing.assert_allclose(columns, columns[0], rtol=1e-12)
    np.testing.assert_allclose(run(DIST, arrays, hyper={"beta": 2.0, "gamma": 3.0})[0], 2 * rows + 3 * columns)
    alone = [run(DIST, tuple(a[i : i + 1] for a in arrays), hyper={"gamma": 0.0})[0][0] for i in range(6)]
    np.testing.assert_allclose(rows, alone, rtol=1e-10)


def test_dist_of_confident_networks_in_float32():
    """Probabilities next to 1, where a column's deviations are roundings of 1, and next to 0."""
    student, teacher = 12 * np.random.default_rng(0).normal(size=(2, 64, 10))
    arrays = tuple(array.astype(np.float32) for array in (student, teacher))
    value, gradients = run(DIST, arrays, dtype=np.float32, optimized=True)
    expected, expected_gradients = run(DIST, arrays)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-5)
    for gradient, one in zip(gradients, expected_gradients, strict=True):
        np.testing.assert_allclose(gradient, one, rtol=1e-3, atol=1e-4 * np.abs(one).max())


@pytest.mark.parametrize("name", ["reverse_kl", "generalized_jsd", "dist"])
def test_every_example_may_have_its_temperature_everywhere(name):
    student, teacher = (jnp.asarray(array, jnp.float32) for array in BY_NAME[name].inputs())
    loss = BY_NAME[name].function
    temperatures = jnp.array([0.5, 1.0, 2.0, 4.0, 8.0, 1.0])
    value = loss(student, teacher, temperature=temperatures)
    if name == "dist":  # the columns are of probabilities softened each by its own
        softened = loss(student / temperatures[:, None], teacher / temperatures[:, None])
        np.testing.assert_allclose(value, temperatures**2 * softened, rtol=1e-4)
        return
    for example, temperature in enumerate(temperatures):
        one = loss(student[example], teacher[example], temperature=temperature)
        np.testing.assert_allclose(value[example], one, rtol=1e-4, atol=1e-5)


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
