"""Properties of the losses of gradients: real Jacobians, and a gradient that is turned around."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from jaxkd import losses
from tests.loss_runs import run
from tests.loss_table import BY_NAME

MATCHING = BY_NAME["jacobian_matching"]


# --- jacobian_matching ------------------------------------------------------------------------------------------------


def test_linear_networks_give_the_angle_of_their_weights():
    """2 - 2 cos, whatever the input: through the gradient of a logit with respect to the input."""
    rng = np.random.default_rng(0)
    student, teacher, inputs = (jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in ((6,), (6,), (5, 6)))

    def loss(student):
        slope = jax.vmap(jax.grad(lambda x, w: x @ w), in_axes=(0, None))
        return losses.jacobian_matching(slope(inputs, student), slope(inputs, teacher)).mean()

    value, gradient = jax.jit(jax.value_and_grad(loss))(student)
    cosine = student @ teacher / jnp.linalg.norm(student) / jnp.linalg.norm(teacher)
    np.testing.assert_allclose(value, 2 - 2 * cosine, rtol=1e-5)
    np.testing.assert_allclose(gradient @ student, 0, atol=1e-6, err_msg="the size of the weights does not matter")
    assert float(loss(student - 0.1 * gradient)) < float(value)


def test_a_second_derivative_of_a_network_with_relu_is_finite():
    """A dead student has an input gradient of exactly 0."""
    inputs = jnp.ones((3, 4))
    teacher = jnp.ones((3, 4))

    def loss(weights):
        slope = jax.vmap(jax.grad(lambda x: jax.nn.relu(x @ weights).sum()))(inputs)
        return losses.jacobian_matching(slope, teacher).sum()

    value, gradient = jax.value_and_grad(loss)(-jnp.ones((4, 2)))
    np.testing.assert_allclose(value, 3.0)
    assert jnp.isfinite(gradient).all()


def test_the_gradient_is_normalized_over_the_whole_input():
    """Not channel by channel or row by row."""
    student, teacher = MATCHING.inputs(((4, 3, 3, 2), (4, 3, 3, 2)))
    value, _ = run(MATCHING, (student, teacher))
    flat = run(MATCHING, (student.reshape(4, -1), teacher.reshape(4, -1)))[0]
    np.testing.assert_allclose(value, flat, rtol=1e-12)


def test_opposite_gradients_have_distance_two():
    student, _ = MATCHING.inputs()
    np.testing.assert_allclose(run(MATCHING, (student, -3 * student))[0], 4.0)


# --- reverse_gradient -------------------------------------------------------------------------------------------------

REVERSED = functools.partial(losses.reverse_gradient, scale=0.25)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16])
def test_reversal_is_the_identity_forward(dtype):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 4)), dtype)
    value, pullback = jax.vjp(REVERSED, x)
    assert value.dtype == dtype
    np.testing.assert_array_equal(value, x)
    (gradient,) = pullback(x)
    assert gradient.dtype == dtype
    np.testing.assert_array_equal(gradient, -x / 4)


def test_default_scale_is_one():
    np.testing.assert_array_equal(jax.grad(lambda x: losses.reverse_gradient(x).sum())(jnp.ones(3)), -jnp.ones(3))


def test_a_small_scale_is_not_rounded_to_half_precision_first():
    _, pullback = jax.vjp(lambda x: losses.reverse_gradient(x, 1.001), jnp.zeros(1, jnp.bfloat16))
    (gradient,) = pullback(jnp.full(1, 1e3, jnp.bfloat16))
    np.testing.assert_array_equal(gradient, jnp.asarray([-1001.0], jnp.bfloat16))


def test_reversed_gradient_of_float16_stays_finite_and_not_more():
    _, pullback = jax.vjp(lambda x: losses.reverse_gradient(x, 100.0), jnp.zeros(4, jnp.float16))
    (gradient,) = pullback(jnp.asarray([1e3, -1e3, 2.0, jnp.inf], jnp.float16))
    assert gradient.dtype == jnp.float16
    np.testing.assert_array_equal(gradient, np.array([-65504, 65504, -200, -np.inf], np.float16))


def test_traced_scale_has_no_gradient():
    """A curriculum: one compilation for all steps."""
    traces = []

    @jax.jit
    def slopes(x, scale):
        traces.append(1)
        return jax.grad(lambda x, scale: (losses.reverse_gradient(x, scale) ** 2).sum(), argnums=(0, 1))(x, scale)

    x = jnp.array([1.0, -2.0])
    for step in range(3):
        scale = jnp.sin(step * 0.5)
        gradient, none = slopes(x, scale)
        np.testing.assert_allclose(gradient, -2 * scale * x, rtol=1e-6)
        np.testing.assert_array_equal(none, 0)
    assert len(traces) == 1


def test_jit_vmap_scan_and_remat():
    x, scales = jnp.arange(6.0).reshape(3, 2), jnp.array([0.0, 1.0, 2.0])

    def total(x, scale):
        return (losses.reverse_gradient(x, scale) ** 3).sum()

    expected = -scales[:, None] * 3 * x**2
    np.testing.assert_allclose(jax.jit(jax.vmap(jax.grad(total)))(x, scales), expected, rtol=1e-6)
    np.testing.assert_allclose(jax.vmap(jax.grad(jax.checkpoint(total)))(x, scales), expected, rtol=1e-6)
    _, scanned = jax.lax.scan(lambda carry, row: (carry, jax.grad(total)(*row)), 0, (x, scales))
    np.testing.assert_allclose(scanned, expected, rtol=1e-6)


def test_forward_mode_sees_the_same_derivative():
    x, tangent = jnp.array([1.0, 2.0]), jnp.array([3.0, -4.0])
    value, slope = jax.jvp(lambda x: REVERSED(x) ** 2, (x,), (tangent,))
    np.testing.assert_allclose(value, x**2)
    np.testing.assert_allclose(slope, -0.25 * 2 * x * tangent)


def test_two_reversals_cancel():
    np.testing.assert_allclose(jax.grad(lambda x: REVERSED(REVERSED(x)) * 3)(1.0), 3 / 16)


def test_second_derivative():
    """As a gradient penalty does."""

    def penalty(x):
        return jax.grad(lambda x: losses.reverse_gradient(x) ** 3)(x) ** 2

    assert np.isfinite(jax.grad(penalty)(2.0))


def test_a_game_of_two_players_in_one_backward_pass():
    """What stands before ascends, what stands behind descends."""

    def loss(ascending, descending):
        return (losses.reverse_gradient(ascending) - descending) ** 2

    gradients = jax.grad(loss, argnums=(0, 1))(3.0, 1.0)
    np.testing.assert_allclose(gradients, (-4.0, -4.0))


@pytest.mark.parametrize("check_vma", [True, False])
def test_under_shard_map(check_vma):
    """With a scale that all devices share."""
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    x = jnp.arange(4.0)

    def slopes(x, scale):
        return jax.grad(lambda x: (losses.reverse_gradient(x, scale) ** 2).sum())(x)

    mapped = jax.shard_map(
        slopes,
        mesh=mesh,
        in_specs=(PartitionSpec("devices"), PartitionSpec()),
        out_specs=PartitionSpec("devices"),
        check_vma=check_vma,
    )
    np.testing.assert_allclose(jax.jit(mapped)(x, jnp.float32(0.5)), -x)


@pytest.mark.parametrize("bad", [jnp.arange(3), jnp.zeros(2, bool)], ids=["int32", "bool"])
def test_integers_cannot_be_reversed(bad):
    with pytest.raises(ValueError, match=rf"\bx\b.*float.*{bad.dtype}"):
        losses.reverse_gradient(bad)


def test_a_scale_is_a_scalar():
    with pytest.raises(ValueError, match=r"scale.*scalar.*\[3\]"):
        losses.reverse_gradient(jnp.ones(3), jnp.ones(3))
