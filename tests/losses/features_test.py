"""What is particular to the losses of feature maps: pooling the larger map, channels, the power of the attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.losses import features
from tests import references
from tests.loss_runs import run
from tests.loss_table import BY_NAME

HINT, ATTENTION = BY_NAME["hint_mse"], BY_NAME["attention_transfer"]
SPATIAL = (HINT, ATTENTION)


def test_pooling_windows_by_hand():
    """Seven to three: 0-3, 2-5, 4-7; two to one, three to two: 0-2, 1-3."""
    ramp = np.arange(7.0).reshape(1, 7, 1, 1)
    np.testing.assert_allclose(references.adaptive_average_pool(ramp, 3, 1).ravel(), [1, 3, 5])
    np.testing.assert_allclose(references.adaptive_average_pool(ramp[:, :3], 2, 1).ravel(), [0.5, 1.5])
    np.testing.assert_allclose(references.adaptive_average_pool(ramp[:, :2], 1, 1).ravel(), [0.5])
    both = np.arange(12.0).reshape(1, 3, 4, 1)
    np.testing.assert_allclose(references.adaptive_average_pool(both, 2, 2).ravel(), [2.5, 4.5, 6.5, 8.5])


@pytest.mark.parametrize("row", SPATIAL, ids=str)
@pytest.mark.parametrize(
    "large, small",
    [((8, 6), (4, 2)), ((7, 5), (3, 4)), ((4, 6), (1, 1)), ((3, 8), (6, 5))],
    ids=str,
)
def test_the_larger_map_is_pooled(row, large, small):
    """Either network may have it, and where each is larger on one axis, each is pooled on that axis."""
    arrays = row.inputs(((3, *large, 2), (3, *small, 2)))
    for pair in (arrays, arrays[::-1]):
        value, gradients = run(row, pair)
        np.testing.assert_allclose(value, row.reference(*pair), rtol=1e-10)
        assert [gradient.shape for gradient in gradients] == [array.shape for array in pair]


@pytest.mark.parametrize("row", SPATIAL, ids=str)
def test_one_value_per_example_under_pooling_in_float32_and_half(row):
    student, teacher = row.inputs(((3, 7, 5, 2), (3, 4, 3, 2)))
    single = row.function(jnp.asarray(student, jnp.float32), jnp.asarray(teacher, jnp.float32))
    np.testing.assert_allclose(single, row.reference(student, teacher), rtol=1e-4)
    half = [jnp.asarray(array, jnp.bfloat16) for array in (student, teacher)]
    upcast = row.function(*(array.astype(jnp.float32) for array in half))
    np.testing.assert_allclose(row.function(*half), upcast, rtol=1e-6, err_msg="pooled in half precision")


def test_the_feature_is_pooled_before_the_power():
    """Otherwise 1 and -1 in one window would attend instead of cancelling."""
    student = np.array([1.0, -1.0, 1.0, 1.0]).reshape(1, 4, 1, 1)
    teacher = np.array([0.0, 1.0]).reshape(1, 2, 1, 1)
    np.testing.assert_allclose(run(ATTENTION, (student, teacher))[0], 0, atol=1e-12)


def test_attention_is_normalized_per_example():
    student, teacher = ATTENTION.inputs()
    factors = np.array([0.01, 0.1, 1.0, 10.0, 100.0]).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(run(ATTENTION, (student * factors, teacher))[0], run(ATTENTION, (student, teacher))[0])


def test_attention_of_no_student_is_the_mean_square_of_the_teacher_s():
    """Q of zeros is zero, and a unit vector over 12 positions has a mean square of 1/12."""
    student, teacher = ATTENTION.inputs()
    np.testing.assert_allclose(run(ATTENTION, (0 * student, teacher))[0], 1 / 12, rtol=1e-9)


@pytest.mark.parametrize("p", [1, 2, 3, 1.5, 4])
def test_powers(p):
    student, teacher = ATTENTION.inputs()
    for pair in ((student, teacher), (np.maximum(student, 0), np.maximum(teacher, 0)), (0 * student, 0 * teacher)):
        value, gradients = run(ATTENTION, pair, hyper={"p": p})
        np.testing.assert_allclose(value, ATTENTION.reference(*pair, p=p), rtol=1e-9, atol=1e-14)
        for array, gradient in zip(pair, gradients, strict=True):
            assert np.isfinite(gradient).all(), "a feature of exactly 0 is common behind a ReLU"
            np.testing.assert_array_equal(gradient[array == 0], 0)


def test_activations_in_float16_do_not_overflow():
    """300² is no float16, and no bf16 sum: squares are float32."""
    student, teacher = (jnp.full((1, 2, 2, 3), value, jnp.float16) for value in (300.0, 100.0))
    np.testing.assert_allclose(features.hint_mse(student, teacher), 4e4)
    np.testing.assert_allclose(features.attention_transfer(student, teacher), 0, atol=1e-12)


def test_the_hint_s_gradient_does_not_depend_on_other_examples_or_on_the_batch():
    student, teacher = HINT.inputs()
    _, (gradient, _) = run(HINT, (student, teacher))
    np.testing.assert_allclose(gradient, 2 * (student - teacher) / student[0].size, rtol=1e-9)


def test_pooling_compiles_to_no_loop():
    """A loop over windows in Python or in XLA would cost a step hundreds of operations."""
    shapes = (jax.ShapeDtypeStruct((2, 32, 32, 4), jnp.float32), jax.ShapeDtypeStruct((2, 12, 12, 4), jnp.float32))
    jaxpr = jax.make_jaxpr(features.hint_mse)(*shapes)
    assert str(jaxpr).count("\n") < 100
    assert "while" not in str(jaxpr)
