"""The KL divergence to a teacher of which k classes are known: bounds, tails and padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.losses import _top_k
from tests import references
from tests.loss_rows.kl import top
from tests.loss_runs import as_users_compile, run
from tests.loss_table import BY_NAME

INF = np.inf
KL, TOP_K = BY_NAME["soft_target_kl"], BY_NAME["top_k_kl"]
DTYPES = pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])


@DTYPES
def test_all_classes_are_the_whole_kl(dtype):
    for scale in (1.0, 10.0, 1e3):
        student, teacher = (scale * array for array in KL.inputs())
        value, (gradient, _) = run(TOP_K, (student, *top(teacher, 10)), dtype=dtype)
        expected, (slope, _) = run(KL, (student, teacher), hyper={"temperature": 1.0}, dtype=dtype)
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(gradient, slope, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
def test_more_classes_are_a_better_bound(scale):
    """Not one of them is above the KL, and each is at least the one before: a bucket that is split tells more."""
    student, teacher = scale * np.random.default_rng(0).normal(size=(2, 20, 12))
    whole = references.soft_target_kl(student, teacher, temperature=1.0)
    bounds = np.stack([run(TOP_K, (student, *top(teacher, k)))[0] for k in range(1, 13)])
    assert (bounds >= -1e-15).all()
    assert (np.diff(bounds, axis=0) >= -1e-12).all()
    assert (bounds <= whole + 1e-12).all()
    np.testing.assert_allclose(bounds[-1], whole, rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(bounds[-2], whole, rtol=1e-9, atol=1e-12)  # a tail of one class is that class


def test_the_top_classes_of_jax_are_those_of_the_cache():
    """As users make it: `jax.lax.top_k` of the teacher's log-probabilities, kept in half precision."""
    student, teacher = (jnp.asarray(array, jnp.float32) for array in KL.inputs())
    log_probs, indices = jax.lax.top_k(jax.nn.log_softmax(teacher), 4)
    value = losses.top_k_kl(student, log_probs, indices)
    np.testing.assert_allclose(value, TOP_K.reference(student, log_probs, indices), rtol=1e-5)
    halved = losses.top_k_kl(student, log_probs.astype(jnp.bfloat16), indices.astype(jnp.int16))
    assert halved.dtype == jnp.float32
    np.testing.assert_allclose(halved, value, rtol=0.1, atol=0.02)


def test_verl_clamps_a_sum_that_is_no_divergence():
    """Σ p_t log(p_t/p_s) over the kept classes alone is negative where the student has more of them than the teacher:
    clamped at 0 it is a loss of nothing. Without the clamp it is smallest where the student has nothing else."""
    student, teacher = np.array([[4.0, -1.0, 3.0, -3.0]]), np.array([[1.0, 0.0, 0.5, 0.4]])
    log_probs, indices = top(teacher, 2)

    def clamped(student):
        kept = jnp.take_along_axis(jax.nn.log_softmax(student), indices, axis=-1)
        return jnp.maximum((np.exp(log_probs) * (log_probs - kept)).sum(-1), 0)

    mistaken, slope = jax.value_and_grad(lambda s: clamped(s).sum())(jnp.asarray(student, jnp.float32))
    assert mistaken == 0 and not slope.any(), "the mistake shows"
    value, (gradient, _) = run(TOP_K, (student, log_probs, indices))
    assert value[0] > 0.3
    np.testing.assert_allclose(value, TOP_K.reference(student, log_probs, indices), rtol=1e-12)
    assert np.abs(gradient).max() > 0.1
    assert value <= references.soft_target_kl(student, teacher, temperature=1.0)


def test_renormalized_to_the_known_classes_the_rest_of_the_student_is_free():
    """The form of other JAX toolkits: 2.5e-7 where the KL is 1.77."""
    teacher = np.log([[0.6, 0.3, 0.04, 0.03, 0.02, 0.01]])
    student = np.log([[0.0667, 0.0333, *[0.225] * 4]])
    log_probs, indices = top(teacher, 2)
    renormalized = references.soft_target_kl(student[:, :2], teacher[:, :2], temperature=1.0)
    assert renormalized[0] < 3e-7, "the mistake shows"
    whole = references.soft_target_kl(student, teacher, temperature=1.0)
    np.testing.assert_allclose(whole, 1.77, atol=0.01)
    value, _ = run(TOP_K, (student, log_probs, indices))
    np.testing.assert_allclose(value, 1.76, atol=0.01)
    assert value[0] <= whole[0]


def test_a_temperature_is_that_of_both():
    """The teacher's log-probabilities at T make the whole KL at T, times T²."""
    student, teacher = KL.inputs()
    value, (gradient, _) = run(TOP_K, (student, *top(teacher / 3.0, 10)), hyper={"temperature": 3.0})
    expected, (slope, _) = run(KL, (student, teacher), hyper={"temperature": 3.0})
    np.testing.assert_allclose(value, expected, rtol=1e-9)
    np.testing.assert_allclose(gradient, slope, rtol=1e-7, atol=1e-12)
    part, _ = run(TOP_K, (student, *top(teacher / 3.0, 4)), hyper={"temperature": 3.0})
    assert (part <= expected).all()
    np.testing.assert_allclose(part, TOP_K.reference(student, *top(teacher / 3.0, 4), temperature=3.0), rtol=1e-9)


@pytest.mark.parametrize("classes", [31, 32, 33, 70])
def test_sets_of_classes_as_bits(classes):
    indices = jnp.array([[0, classes - 1, 30, 0, -1, 5], [1, 1, 1, 1, 2, classes]])
    known = (indices >= 0) & (indices < classes)
    mask = _top_k.in_set(_top_k.bit_set(indices, _top_k.first_of_each(indices, known), classes), classes)
    for row, listed in zip(mask, ({0, classes - 1, 30, 5}, {1, 2}), strict=True):
        assert set(np.flatnonzero(row).tolist()) == listed


def test_value_and_gradient_take_little_more_memory_than_the_logits():
    tokens, classes, k = 256, 8192, 16
    shapes = (
        jax.ShapeDtypeStruct((tokens, classes), jnp.float32),
        jax.ShapeDtypeStruct((tokens, k), jnp.float32),
        jax.ShapeDtypeStruct((tokens, k), jnp.int32),
    )
    step = jax.jit(
        jax.value_and_grad(lambda *arrays: losses.top_k_kl(*arrays, temperature=2.0).mean()),
        compiler_options=as_users_compile(),
    )
    temporary = step.lower(*shapes).compile().memory_analysis().temp_size_in_bytes
    assert temporary <= 1.2 * 4 * tokens * classes


@DTYPES
def test_a_tail_of_the_student_that_a_difference_from_one_would_lose(dtype):
    """e⁻⁵⁰ of the student is in the tail, where 1 - Σ p_s is 0 or a rounding, in one sign or the other."""
    student = np.array([[50.0, 50.0, 0.0, 0.0]])
    log_probs, indices = np.log([[0.4, 0.4]]), np.array([[0, 1]])
    naive = 1 - np.exp(references.log_softmax(student))[0, :2].sum()
    assert abs(naive) < 1e-15, "the mistake shows"
    value, (gradient, _) = run(TOP_K, (student, log_probs, indices), dtype=dtype)
    expected = 0.8 * np.log(0.8) + 0.2 * (np.log(0.2) + 50)
    np.testing.assert_allclose(value, [expected], rtol=1e-6)
    np.testing.assert_allclose(gradient, [[0.1, 0.1, -0.1, -0.1]], rtol=1e-5)


@DTYPES
def test_no_tail_is_left_by_rounding(dtype):
    """The k classes are all that either network allows: what their probabilities are short of 1 is no class."""
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 200, 30))
    student[:, 20:] = teacher[:, 20:] = -INF
    log_probs, indices = top(teacher, 20)
    log_probs = log_probs.astype(np.float32).astype(np.float64) if dtype == np.float32 else log_probs
    value, gradients = run(TOP_K, (student, log_probs, indices), dtype=dtype)
    np.testing.assert_allclose(value, references.soft_target_kl(student, teacher, temperature=1.0), rtol=1e-4)
    assert all(np.isfinite(gradient).all() for gradient in gradients)
    value, gradients = run(TOP_K, (student, log_probs - 0.1, indices), dtype=dtype)  # a true tail, truly excluded
    np.testing.assert_array_equal(value, INF)
    assert all(np.isfinite(gradient).all() for gradient in gradients)


@DTYPES
def test_a_class_that_is_listed_twice_counts_once(dtype):
    """Half of the teacher is at class 0, and half of the student: 0, not the half that a second entry would add."""
    student, twice = np.log([[0.5, 0.25, 0.25]]), (np.log([[0.5, 0.5]]), np.array([[0, 0]]))
    value, (slope, _) = run(TOP_K, (student, *twice), dtype=dtype)
    np.testing.assert_allclose(value, 0, atol=1e-7)
    np.testing.assert_allclose(slope, 0, atol=1e-7)
    student, teacher = KL.inputs()
    log_probs, indices = top(teacher, 4)
    expected, (slope, _) = run(TOP_K, (student, log_probs, indices), dtype=dtype)
    again = np.concatenate([log_probs, log_probs[:, 1:3], np.full((6, 1), -INF)], -1)
    listed = np.concatenate([indices, indices[:, 1:3], indices[:, :1]], -1)
    value, (gradient, _) = run(TOP_K, (student, again, listed), dtype=dtype)
    np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(gradient, slope, rtol=1e-5, atol=1e-7)


@DTYPES
def test_a_class_with_two_probabilities_is_nan(dtype):
    student, _ = KL.inputs(((2, 3), (2, 3)))
    log_probs, indices = np.log([[0.5, 0.25], [0.5, 0.25]]), np.array([[1, 1], [1, 2]])
    value, _ = run(TOP_K, (student, log_probs, indices), dtype=dtype)
    np.testing.assert_array_equal(np.isnan(value), [True, False])


def test_fewer_classes_for_some_examples():
    """Padded with -inf and -1: the padding is in no bucket, not even of class 0."""
    student, teacher = KL.inputs()
    log_probs, indices = top(teacher, 4)
    padded, unknown = log_probs.copy(), indices.copy()
    for example in range(6):
        keep = 1 + example % 4
        padded[example, keep:], unknown[example, keep:] = -INF, -1
        one = (
            student[example : example + 1],
            log_probs[example : example + 1, :keep],
            indices[example : example + 1, :keep],
        )
        value, (gradient, _) = run(TOP_K, tuple(array[example : example + 1] for array in (student, padded, unknown)))
        expected, (slope, _) = run(TOP_K, one)
        np.testing.assert_allclose(value, expected, rtol=1e-12)
        np.testing.assert_allclose(gradient, slope, rtol=1e-12)


@DTYPES
def test_an_index_outside_the_classes_is_nan_and_nothing_else_is(dtype):
    student, log_probs, indices = TOP_K.inputs()
    indices = indices.copy()
    for example, index in ((1, -1), (2, 10), (4, 2**31 - 1), (5, -(2**31))):
        indices[example, example % 4] = index
    value, _ = run(TOP_K, (student, log_probs, indices), dtype=dtype)
    np.testing.assert_array_equal(np.isnan(value), [False, True, True, False, True, True])
    where = ~np.isnan(value)
    masked, gradients = run(TOP_K, (student, log_probs, indices), where=where, dtype=dtype)
    np.testing.assert_array_equal(masked, np.where(where, value, 0))
    assert all(np.isfinite(gradient).all() and (gradient[~where] == 0).all() for gradient in gradients)


@pytest.mark.parametrize(
    "dtype, indices",
    [(jnp.int8, [0, 5, 100, 127]), (jnp.uint8, [0, 5, 200, 255]), (jnp.uint32, [0, 5, 500, 999])],
    ids=["int8", "uint8", "uint32"],
)
def test_every_integer_type_is_an_index(dtype, indices):
    student = np.random.default_rng(0).normal(size=(1, 1000))
    log_probs, four = np.log([[0.4, 0.3, 0.1, 0.1]]), np.array([indices])
    value = losses.top_k_kl(*(jnp.asarray(a, jnp.float32) for a in (student, log_probs)), jnp.asarray(four, dtype))
    np.testing.assert_allclose(value, TOP_K.reference(student, log_probs, four), rtol=1e-5)


def test_indices_that_are_not_integers():
    with pytest.raises(ValueError, match=r"indices.*integer.*float32\[4, 2\]"):
        losses.top_k_kl(jnp.zeros((4, 3)), jnp.zeros((4, 2)), jnp.zeros((4, 2)))


def test_no_one_hot_of_the_vocabulary_exists():
    """[tokens, k, vocabulary] would be larger than the logits by k."""
    tokens, k, vocabulary = 8, 16, 512
    shapes = (
        jax.ShapeDtypeStruct((tokens, vocabulary), jnp.float32),
        jax.ShapeDtypeStruct((tokens, k), jnp.float32),
        jax.ShapeDtypeStruct((tokens, k), jnp.int32),
    )
    program = jax.make_jaxpr(jax.grad(lambda *arrays: losses.top_k_kl(*arrays).sum(), argnums=(0, 1)))(*shapes)
    sizes = [np.prod(v.aval.shape, dtype=int) for e in program.jaxpr.eqns for v in e.outvars]
    assert max(sizes) < 2 * tokens * vocabulary
