"""What other distillation libraries were seen to get wrong, each with inputs on which the mistake shows.

A test computes the mistake too and asserts that it is far from the right value: otherwise it would prove nothing.
"""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import losses
from tests import references
from tests.loss_row import golden, golden_file
from tests.loss_runs import run
from tests.loss_table import BY_NAME

KL = BY_NAME["soft_target_kl"]


def softmax(logits):
    return np.exp(references.log_softmax(logits))


def divergence_of(target, prediction, floor=1e-7):
    """Σ y log(y/ŷ) of what is given, clipped to [1e-7, 1]: Keras' KLDivergence."""
    target, prediction = np.clip(target, floor, 1), np.clip(prediction, floor, 1)
    return (target * np.log(target / prediction)).sum(-1)


def test_keras_applies_no_softmax_and_no_squared_temperature():
    student, teacher = golden("kd_T4", "in").values()
    right = golden_file()["kd_T4/value"]
    assert abs(divergence_of(teacher / 4, student / 4).mean() / right - 1) > 0.5, "no softmax shows"
    assert abs(references.soft_target_kl(student, teacher).mean() / 16 / right - 1) > 0.5, "no T² shows"
    value, (gradient, _) = run(KL, (student, teacher), hyper={"temperature": 4.0})
    np.testing.assert_allclose(value.mean(), right, rtol=1e-9)
    assert (gradient != 0).all(), "clipping has made gradients zero"


def test_keras_clips_probabilities():
    """A confident student that is wrong: e⁻⁴⁰ is clipped to 1e-7, and the value to 16."""
    student, teacher = np.array([[0.0, 40.0]]), np.array([[40.0, 0.0]])
    assert divergence_of(softmax(teacher), softmax(student))[0] < 17
    for dtype in (np.float64, np.float32):
        value, (gradient, _) = run(KL, (student, teacher), hyper={"temperature": 1.0}, dtype=dtype)
        np.testing.assert_allclose(value, [40.0], rtol=1e-6)
        np.testing.assert_allclose(gradient, [[-1.0, 1.0]], rtol=1e-6)


def test_keras_ignores_the_weights_of_samples():
    student, teacher = KL.inputs()
    where = np.arange(6) != 0
    right = references.soft_target_kl(student, teacher)[where].mean()
    assert abs(references.soft_target_kl(student, teacher).mean() / right - 1) > 0.01, "ignoring the mask shows"
    np.testing.assert_allclose(run(KL, (student, teacher), where=where)[0].sum() / where.sum(), right, rtol=1e-10)


def test_easydel_kl_in_bfloat16_is_far_off():
    """Exponentials, logarithms and sums over a vocabulary in eight bits."""
    student, teacher = (jax.random.normal(key, (4, 4096), jnp.bfloat16) for key in jax.random.split(jax.random.key(0)))
    right = references.soft_target_kl(*(np.asarray(array, np.float64) for array in (student, teacher)), temperature=1.0)
    log_s, log_t = jax.nn.log_softmax(student), jax.nn.log_softmax(teacher)
    half = np.asarray((jnp.exp(log_t) * (log_t - log_s)).sum(-1), np.float64)
    assert np.abs(half / right - 1).max() > 1e-3, "half precision shows"
    value = losses.soft_target_kl(student, teacher, temperature=1.0)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, right, rtol=2e-5)


@pytest.mark.parametrize("name", ["logit_mse", "hint_mse"])
def test_easydel_scales_a_masked_mse_unlike_an_unmasked_one(name):
    row = BY_NAME[name]
    arrays = row.inputs()
    unmasked, gradients = run(row, arrays)
    for where in (np.ones(len(unmasked), bool), np.arange(len(unmasked)) % 2 == 0):
        masked, masked_gradients = run(row, arrays, where=where)
        np.testing.assert_allclose(masked[where], unmasked[where], rtol=1e-12)
        for gradient, expected in zip(masked_gradients, gradients, strict=True):
            np.testing.assert_allclose(gradient[where], expected[where], rtol=1e-12)


@pytest.mark.parametrize("name", ["attention_transfer", "distance_relation", "angle_relation"])
def test_maxtext_nan_of_a_padded_activation_of_norm_zero(name):
    """Padding is zeros, whose norm has no derivative; and no mask, or one, must keep it from the other examples."""
    row = BY_NAME[name]
    where = np.arange(len(row.inputs()[0])) < 3
    arrays = tuple(array * where.reshape(-1, *[1] * (array.ndim - 1)) for array in row.inputs())
    for dtype in (np.float64, np.float32):
        for options in ({}, {"where": where}):
            value, gradients = run(row, arrays, dtype=dtype, **options)
            assert np.isfinite(value).all()
            assert all(np.isfinite(gradient).all() for gradient in gradients)
        np.testing.assert_allclose(value, references.keep(where, row.reference, *arrays), rtol=1e-4, atol=1e-6)
        assert all(np.abs(gradient[where]).max() > 0 for gradient in gradients)


@pytest.mark.parametrize("shapes", [((4, 1, 10), (4, 10)), ((4, 10), (1, 10))], ids=str)
def test_optax_broadcasts_the_student_against_the_teacher(shapes):
    student, teacher = (jnp.zeros(shape) for shape in shapes)
    with jax.numpy_rank_promotion("allow"):
        silent = optax.losses.kl_divergence(jax.nn.log_softmax(student), jax.nn.softmax(teacher))
        assert silent.shape in ((4, 4), (4,)), "the mistake shows"
        for loss in (losses.soft_target_kl, losses.logit_mse):
            with pytest.raises(ValueError, match="teacher"):
                loss(student, teacher)


def test_optax_gradient_at_a_zero_target():
    """A teacher that is certain: p_t is exactly 0 for the other classes."""
    student, teacher = jnp.array([[0.0, 1.0, 2.0]]), jnp.array([[0.0, 0.0, 1e4]])
    naive = jax.grad(lambda t: (jax.nn.softmax(t) * (jnp.log(jax.nn.softmax(t)) - jax.nn.log_softmax(student))).sum())
    assert np.isnan(naive(teacher)).any(), "the mistake shows"
    gradients = jax.grad(lambda s, t: losses.soft_target_kl(s, t, temperature=1.0).sum(), argnums=(0, 1))(
        student, teacher
    )
    np.testing.assert_allclose(gradients[0], softmax(np.array([[0.0, 1.0, 2.0]])) - np.array([[0, 0, 1.0]]), atol=1e-6)
    np.testing.assert_array_equal(gradients[1], 0)


def test_optax_gradient_with_masked_classes():
    """Also in the form with logarithms as targets: 0 times the difference of two infinities."""
    student, teacher = np.array([[0.0, 1.0, -np.inf]]), np.array([[1.0, 0.0, -np.inf]])

    def naive(teacher):
        log_p = (jax.nn.log_softmax(jnp.asarray(logits)) for logits in (student, teacher))
        return optax.losses.kl_divergence_with_log_targets(*log_p).sum()

    assert all(np.isnan(result).any() for result in jax.value_and_grad(naive)(jnp.asarray(teacher))), (
        "the mistake shows"
    )
    value, gradients = run(KL, (student, teacher), dtype=np.float32)
    _, expected = run(KL, (student[:, :2], teacher[:, :2]), dtype=np.float32)
    assert np.isfinite(value).all()
    for gradient, two_classes in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient[:, :2], two_classes, rtol=1e-6)
        np.testing.assert_array_equal(gradient[:, 2], 0)


@pytest.mark.parametrize("name", ["distance_relation", "angle_relation"])
def test_mdistiller_relations_depend_on_the_number_of_gpus(name):
    """The mean of what each device finds among its own examples is not the loss of the batch."""
    row = BY_NAME[name]
    arrays = row.inputs(((8, 5), (8, 3)))
    right = row.reference(*arrays).mean()
    each = np.mean([row.reference(*(array[i : i + 2] for array in arrays)).mean() for i in range(0, 8, 2)])
    assert abs(each / right - 1) > 0.1, "the mistake shows"
    slices = [np.reshape(array, (4, 2, -1)).astype(np.float32) for array in arrays]
    value = jax.pmap(lambda s, t: row.function(s, t, axis_name="gpus"), axis_name="gpus", devices=jax.devices()[:4])(
        *slices
    )
    np.testing.assert_allclose(np.mean(value), right, rtol=1e-4)


def test_the_standard_deviation_is_torch_s():
    """ddof = 1; jnp.std has 0, which is 5% at ten classes."""
    scores = BY_NAME["standardize_logits"].inputs()[0]
    value, _ = run(BY_NAME["standardize_logits"], (scores,))
    np.testing.assert_allclose(value.std(-1, ddof=1), 1, rtol=1e-6)
    assert (np.abs(value.std(-1, ddof=0) - 1) > 0.05).all()


def test_liger_pads_the_vocabulary_of_the_student_with_zeros():
    """A logit of 0 is a class like any other: two vocabularies are an error."""
    for shapes in (((4, 10), (4, 12)), ((4, 12), (4, 10))):
        for loss in (losses.soft_target_kl, losses.logit_mse):
            with pytest.raises(ValueError, match=r"teacher.*1[02]"):
                loss(*(jnp.zeros(shape) for shape in shapes))
