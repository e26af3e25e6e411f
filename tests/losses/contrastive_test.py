"""Properties of the contrastive losses: scores without bounds, labels, the size of a batch."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests import references
from tests.loss_runs import cast, run
from tests.loss_table import BY_NAME

NCE, INFO = BY_NAME["contrastive_nce"], BY_NAME["info_nce"]


def test_a_trailing_axis_of_one():
    """As the scores of popular code have it."""
    (scores,) = NCE.inputs()
    value, (gradient,) = run(NCE, (scores,))
    trailing, (trailing_gradient,) = run(NCE, (scores[:, :, None],))
    np.testing.assert_array_equal(trailing, value)
    np.testing.assert_array_equal(trailing_gradient[:, :, 0], gradient)


def test_positive_of_score_zero_is_infinite():
    """Its logarithm has no slope; the negatives of the same example keep theirs."""
    (scores,) = NCE.inputs()
    scores[2, 0] = 0
    naive = jax.grad(lambda p: -jnp.log(p[:, 0] / (p[:, 0] + 1)).sum())(jnp.asarray(scores, jnp.float32))
    assert not np.isfinite(naive).all(), "the mistake shows"
    for dtype in (np.float64, np.float32):
        value, (gradient,) = run(NCE, (scores,), dtype=dtype)
        assert value[2] == np.inf
        assert np.isfinite(np.delete(value, 2)).all()
        assert gradient[2, 0] == 0
        np.testing.assert_allclose(gradient[2, 1:], 1 / (scores[2, 1:] + 8 / 50 + 1e-7), rtol=1e-5)
        where = np.arange(6) != 2
        masked, (masked_gradient,) = run(NCE, (scores,), where=where, dtype=dtype)
        assert masked[2] == 0
        assert (masked_gradient[2] == 0).all()


@pytest.mark.parametrize("score", [1e-37, 1e-20, 1e-7, 1.0, 1e7, 1e20, 3e38])
def test_scores_of_any_size_in_float32(score):
    """Quotients and squares of them would leave the range of float32."""
    scores = np.full((3, 5), 0.3)
    scores[0, 0], scores[1, 2], scores[2] = score, score, score
    for num_data in (1, 50, 10**6):
        hyper = {"num_data": num_data}
        value, (gradient,) = run(NCE, (scores,), dtype=np.float32, hyper=hyper)
        exact, (exact_gradient,) = run(NCE, (scores,), hyper=hyper)
        np.testing.assert_allclose(value, references.contrastive_nce(scores, num_data=num_data), rtol=1e-5)
        np.testing.assert_allclose(value, exact, rtol=1e-5)
        np.testing.assert_allclose(gradient, exact_gradient, rtol=1e-4, atol=1e-30)


def test_without_negatives_the_value_is_zero():
    value, (gradient,) = run(NCE, (np.array([[0.5], [0.0], [np.inf]]),))
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("num_data", [0, -5, float("nan")])
def test_num_data_that_is_not_positive(num_data):
    with pytest.raises(ValueError, match=rf"num_data.*number of.*{num_data}"):
        losses.contrastive_nce(jnp.ones((2, 3)), num_data=num_data)


def test_without_labels_every_other_example_is_a_negative():
    student, teacher, _ = INFO.inputs()
    with jax.enable_x64(True):
        arrays = cast((student, teacher), np.float64)
        value = np.asarray(losses.info_nce(*arrays))
        masked = np.asarray(losses.info_nce(*arrays, where=jnp.arange(6) != 4))
    np.testing.assert_allclose(value, references.info_nce(student, teacher), rtol=1e-9)
    apart, _ = run(INFO, (student, teacher, np.arange(6)))
    np.testing.assert_allclose(value, apart, rtol=1e-12)
    kept = np.arange(6) != 4
    np.testing.assert_allclose(masked[kept], references.info_nce(student[kept], teacher[kept]), rtol=1e-9)
    assert masked[4] == 0


def test_equal_examples_give_the_log_of_their_number():
    same = np.tile([[1.0, 2.0, 3.0]], (7, 1))
    np.testing.assert_allclose(run(INFO, (same, same, np.arange(7)))[0], np.log(7), rtol=1e-9)
    np.testing.assert_allclose(run(INFO, (same, same, [0, 0, 0, 1, 2, 3, 4]))[0], np.log([5, 5, 5, 7, 7, 7, 7]))


def test_one_class_has_no_negatives():
    student, teacher, labels = INFO.inputs()
    value, gradients = run(INFO, (student, teacher, labels * 0))
    np.testing.assert_allclose(value, 0, atol=1e-12)
    for gradient in gradients:
        np.testing.assert_allclose(gradient, 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [jnp.uint8, jnp.int8, jnp.int32], ids=str)
def test_labels_of_any_integer_type(dtype):
    student, teacher, labels = INFO.inputs()
    single = cast((student, teacher), np.float32)
    value = losses.info_nce(*single, jnp.asarray(labels, dtype))
    np.testing.assert_allclose(value, references.info_nce(student, teacher, labels), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bool], ids=["float32", "bool"])
def test_labels_that_are_not_integers(dtype):
    with pytest.raises(ValueError, match=rf"labels.*integer.*{jnp.dtype(dtype).name}"):
        losses.info_nce(jnp.ones((4, 3)), jnp.ones((4, 3)), jnp.ones(4, dtype))


@pytest.mark.parametrize("temperature", [0, -0.07, float("nan")])
def test_a_temperature_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=rf"temperature.*positive.*{temperature}"):
        losses.info_nce(jnp.ones((4, 3)), jnp.ones((4, 3)), temperature=temperature)


def test_a_learned_temperature():
    """Its gradient, at the temperature of a traced array."""
    student, teacher, labels = INFO.inputs()
    with jax.enable_x64(True):
        arrays = (*cast((student, teacher), np.float64), jnp.asarray(labels))
        slope = jax.jit(jax.grad(lambda t: losses.info_nce(*arrays, temperature=t).sum()))(0.3)
    expected = references.finite_difference(
        lambda t: references.info_nce(student, teacher, labels, temperature=float(t)).sum(), np.array(0.3)
    )
    np.testing.assert_allclose(slope, expected, rtol=1e-6)
