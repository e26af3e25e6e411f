"""Losses of logits: few classes, invalid labels, constant columns, masked classes."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests import references
from tests.loss_runs import run
from tests.loss_table import BY_NAME

INF = np.inf
KL, DKD, DIST = (BY_NAME[name] for name in ("soft_target_kl", "decoupled_kd", "dist"))
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])


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
def test_two_classes_have_no_term_of_the_rest(dtype):
    arrays = DKD.inputs(((6, 2), (6, 2), (6,)))
    value, gradients = run(DKD, arrays, dtype=dtype)
    without, expected = run(DKD, arrays, hyper={"beta": 0.0}, dtype=dtype)
    np.testing.assert_array_equal(value, without)
    np.testing.assert_allclose(value, run(KL, arrays[:2], dtype=dtype)[0], rtol=1e-4, atol=1e-5)
    for gradient, one in zip(gradients, expected, strict=True):
        np.testing.assert_array_equal(gradient, one)


@DTYPES
def test_certain_teacher_still_distinguishes_the_other_classes(dtype):
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
def test_decoupled_kd_of_an_invalid_label_is_nan(dtype):
    student, teacher, _ = DKD.inputs()
    labels = np.array([0, -1, 10, 9, 2**31 - 1, 3])
    value, _ = run(DKD, (student, teacher, labels), dtype=dtype)
    np.testing.assert_array_equal(np.isnan(value), [False, True, True, False, True, False])
    where = ~np.isnan(value)
    masked, gradients = run(DKD, (student, teacher, labels), where=where, dtype=dtype)
    np.testing.assert_array_equal(masked, np.where(where, value, 0))
    assert all(np.isfinite(gradient).all() and (gradient[~where] == 0).all() for gradient in gradients)
    for kind in (jnp.int8, jnp.uint8, jnp.uint32):
        small = losses.decoupled_kd(
            *(jnp.asarray(a, jnp.float32) for a in (student, teacher)), jnp.arange(6, dtype=kind)
        )
        np.testing.assert_allclose(small, references.decoupled_kd(student, teacher, np.arange(6)), rtol=1e-3)


@DTYPES
def test_target_that_is_the_only_possible_class(dtype):
    """What the teacher excludes has no distribution to match; what only the student excludes is infinitely wrong."""
    usual, alone = np.array([[1.0, 0.0, 2.0]]), np.array([[1.0, -INF, -INF]])
    labels = np.array([0])
    value, gradients = run(DKD, (usual, alone, labels), hyper={"temperature": 1.0}, dtype=dtype)
    np.testing.assert_allclose(value, references.cross_entropy(usual, labels), rtol=1e-6)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    value, gradients = run(DKD, (alone, usual, labels), hyper={"temperature": 1.0}, dtype=dtype)
    assert value == INF
    assert all(np.isfinite(gradient).all() for gradient in gradients)


def test_labels_of_decoupled_kd_that_are_not_integers():
    with pytest.raises(ValueError, match=r"labels: expected a probability.*\[4, 3\], got float32\[4\].*integer"):
        losses.decoupled_kd(jnp.zeros((4, 3)), jnp.zeros((4, 3)), jnp.zeros(4))


@DTYPES
def test_mixed_labels_of_decoupled_kd(dtype):
    """Weights of the classes are the weighted sum over the labels: of mixup, λ DKD(a) + (1 − λ) DKD(b)."""
    student, teacher, labels = DKD.inputs()
    other = (labels + 3) % 10
    mixed = 0.7 * np.eye(10)[labels] + 0.3 * np.eye(10)[other]
    hyper = {"alpha": 2.0, "beta": 0.5, "temperature": 1.0}
    value, (slope, *_) = run(DKD, (student, teacher, mixed), hyper=hyper, dtype=dtype)
    (a, (slope_a, _)), (b, (slope_b, _)) = (
        run(DKD, (student, teacher, one), hyper=hyper, dtype=dtype) for one in (labels, other)
    )
    np.testing.assert_allclose(value, 0.7 * a + 0.3 * b, rtol=1e-5)
    np.testing.assert_allclose(slope, 0.7 * slope_a + 0.3 * slope_b, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(value, references.decoupled_kd(student, teacher, mixed, **hyper), rtol=1e-4)
    excluded = teacher.copy()
    excluded[:, 0] = -INF
    soft = np.random.default_rng(0).dirichlet(np.ones(10), size=6) * (np.arange(10) != 0)
    where = np.arange(6) != 2
    soft[2] = np.nan
    value, slopes = run(DKD, (excluded, excluded, soft), where=where, dtype=dtype)
    np.testing.assert_allclose(value, 0, atol=1e-5)
    assert all(np.isfinite(gradient).all() for gradient in slopes)


def test_mixed_labels_of_another_shape():
    with pytest.raises(ValueError, match=r"labels: expected a probability.*\[4, 3\].*got float32\[4, 2\]"):
        losses.decoupled_kd(jnp.zeros((4, 3)), jnp.zeros((4, 3)), jnp.zeros((4, 2)))


# --- dist -------------------------------------------------------------------------------------------------------------


def probabilities(seed, *shape):
    return np.random.default_rng(seed).dirichlet(np.ones(shape[-1]), size=shape[:-1])


def test_dist_is_invariant_to_scale_and_shift_of_probabilities():
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
def test_constant_rows_and_columns_have_correlation_zero(dtype):
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
def test_temperature_per_example(name):
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
    for gradient in gradients:
        np.testing.assert_allclose(np.abs(gradient[1:]), [[2.0, 0.0, 3.0]] * 2)


# --- standardize_logits -----------------------------------------------------------------------------------------------


@DTYPES
@pytest.mark.parametrize("constant", [0.0, 0.1, -0.3, 1e4 + 0.1, 1e-30])
def test_constant_logits_standardize_to_zero(dtype, constant):
    """The mean of equal numbers is not always that number; divided by 1e-7 the difference would be visible."""
    for classes in (1, 7, 1000):
        cotangent = np.random.default_rng(0).normal(size=(2, classes))
        arrays = (np.full((2, classes), constant),)
        value, (gradient,) = run(BY_NAME["standardize_logits"], arrays, cotangent=cotangent, dtype=dtype)
        np.testing.assert_array_equal(value, 0)
        np.testing.assert_array_equal(gradient, 0)


def test_a_head_that_starts_at_zero_survives_a_step():
    """The cross-entropy of standardized logits had a gradient of 4e6 there, and one step ended the training."""
    features, labels = np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32), np.arange(8) % 4

    def loss(kernel):
        teacher = losses.standardize_logits(features @ np.ones((5, 4), np.float32) * np.arange(4, dtype=np.float32))
        logits = features @ kernel
        kd = losses.soft_target_kl(losses.standardize_logits(logits), teacher).mean()
        return losses.cross_entropy(logits, labels).mean() + kd

    start = jnp.zeros((5, 4))
    slope = jax.jit(jax.grad(loss))(start)
    assert 0 < np.abs(slope).max() < 1  # of the cross-entropy alone
    assert jax.jit(loss)(start - 0.1 * slope) < 20


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
        standardized = losses.standardize_logits(student), losses.standardize_logits(teacher)
        return losses.soft_target_kl(*standardized, temperature=2.0).sum()

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
