"""Hint regression: choice of the regressor, values, masks, errors and training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import Context, combine, losses, objectives, term
from tests import tiny

HINT = objectives.hint("student/f", "teacher/f", weight=2.0)


def context(student, teacher, mask=None):
    arrays = [jax.random.normal(jax.random.key(i), shape) for i, shape in enumerate((student, teacher))]
    return Context({"f": arrays[0]}, {"f": arrays[1]}, {} if mask is None else {"mask": mask}, 0)


PLANS = {
    "vectors": ((2, 4), (2, 3), (4, 3)),
    "tokens": ((2, 5, 4), (2, 5, 3), (4, 3)),
    "as_large": ((2, 4, 4, 3), (2, 4, 4, 5), (1, 1, 3, 5)),
    "twice_as_large": ((2, 8, 8, 3), (2, 4, 4, 5), (3, 3, 3, 5)),
    "four_times": ((2, 8, 8, 3), (2, 2, 2, 3), (7, 7, 3, 3)),
    "not_a_multiple": ((2, 7, 7, 3), (2, 4, 4, 5), (4, 4, 3, 5)),
    "on_one_axis": ((2, 8, 4, 3), (2, 4, 4, 3), (3, 1, 3, 3)),
    "each_axis_its_own": ((2, 8, 5, 3), (2, 4, 3, 3), (3, 3, 3, 3)),
    "half_as_large": ((2, 4, 4, 3), (2, 8, 8, 5), (3, 3, 3, 5)),
    "smaller_not_a_multiple": ((2, 4, 3, 3), (2, 7, 5, 5), (4, 3, 3, 5)),
    "to_one_pixel": ((2, 4, 4, 3), (2, 1, 1, 5), (4, 4, 3, 5)),
    "from_one_pixel": ((2, 1, 1, 3), (2, 4, 4, 5), (4, 4, 3, 5)),
}


@pytest.mark.parametrize(("student", "teacher", "kernel"), PLANS.values(), ids=PLANS)
def test_regressor_follows_from_the_shapes(student, teacher, kernel):
    given = context(student, teacher)
    made = HINT.init(jax.random.key(2), jax.eval_shape(lambda: given))
    assert jax.tree.map(jnp.shape, made.params) == {"kernel": kernel, "bias": kernel[-1:]}
    value, gradients = jax.value_and_grad(lambda p: HINT.apply(p, {}, given, None).value)(made.params)
    assert value > 0
    assert (gradients["bias"] != 0).all()
    # Every kernel entry has a gradient, except next to a map of one position, which padding surrounds.
    assert 1 in (*student[1:-1], *teacher[1:-1]) or (jnp.abs(gradients["kernel"]).max(axis=-1) > 0).all()


def test_linear_regressors_equal_matrix_product():
    for student, teacher in ((2, 4), (2, 3)), ((2, 5, 4), (2, 5, 3)), ((2, 3, 3, 4), (2, 3, 3, 3)):
        given = context(student, teacher)
        params = HINT.init(jax.random.key(2), jax.eval_shape(lambda given=given: given)).params
        params = {**params, "bias": jnp.arange(3.0)}
        mapped = np.asarray(given.student["f"]) @ np.asarray(params["kernel"]).reshape(4, 3) + np.arange(3.0).reshape(
            (1,) * (len(student) - 1) + (3,)
        )
        out = HINT.apply(params, {}, given, None)
        np.testing.assert_allclose(out.value, 2 * np.mean((mapped - given.teacher["f"]) ** 2), rtol=1e-5)
        np.testing.assert_allclose(out.metrics[""].sum / 2, out.value / 2, rtol=1e-6)


def test_transposed_convolution_is_the_transpose():
    small, large = (1, 2, 3, 1), (1, 4, 6, 1)
    kernel = jax.random.normal(jax.random.key(3), (3, 3, 1, 1))

    def matrix(source, target, kernel):
        """The regressor as a matrix, from ∂/∂t mean (r − t)² = −2 r / size at t = 0."""
        params = {"kernel": kernel, "bias": jnp.zeros(1)}

        def row(feature):
            value = lambda t: HINT.apply(params, {}, Context({"f": feature}, {"f": t}, {}, 0), None).value / 2  # noqa: E731
            return -jax.grad(value)(jnp.zeros(target)).ravel() * np.prod(target) / 2

        return jax.jit(jax.vmap(row))(jnp.eye(int(np.prod(source))).reshape(-1, *source))

    up, down = matrix(small, large, kernel), matrix(large, small, kernel[::-1, ::-1])
    np.testing.assert_allclose(up, down.T, atol=1e-6)


@pytest.mark.parametrize(
    ("student", "teacher", "message"),
    [
        pytest.param((2, 4), (2, 4, 4, 4), "two features that differ in channels", id="ranks"),
        pytest.param((2, 5, 4), (2, 6, 4), "two features that differ in channels", id="tokens"),
        pytest.param((2, 4, 8, 3), (2, 8, 4, 3), "larger on one axis and smaller on the other", id="mixed"),
        pytest.param((2, 4), (3, 4), "two features that differ in channels", id="batches"),
        pytest.param((2, 4, 4, 3), (3, 4, 4, 5), "expected", id="batches-of-maps"),
    ],
)
def test_shapes_without_a_regressor_raise(student, teacher, message):
    with pytest.raises(ValueError, match=message):
        HINT.init(jax.random.key(0), jax.eval_shape(lambda: context(student, teacher)))


def test_equal_shapes_have_no_parameters():
    given = context((2, 4, 4, 3), (2, 4, 4, 3))
    assert HINT.init(jax.random.key(0), jax.eval_shape(lambda: given)) == ({}, {})
    expected = 2 * losses.hint_mse(given.student["f"], given.teacher["f"]).mean()
    np.testing.assert_allclose(HINT.apply({}, {}, given, None).value, expected, rtol=1e-6)


def test_unknown_feature_raises_at_initialization():
    with pytest.raises(ValueError, match=r"path 'student/g', student entry 'g'.*'f' float32"):
        objectives.hint("student/g", "teacher/f").init(jax.random.key(0), context((2, 4), (2, 3)))


@pytest.mark.parametrize("shapes", [((4, 4), (4, 3)), ((4, 2, 2, 3), (4, 4, 4, 2)), ((4, 3), (4, 3))], ids=str)
def test_garbage_in_masked_examples_reaches_no_gradient(shapes):
    keep = np.array([True, False, True, False])
    whole, dropped = context(*shapes, mask=keep), context(*shapes)
    dropped = jax.tree.map(lambda x: x[keep], dropped._replace(step=None, axis_name=None))._replace(step=0)
    params = HINT.init(jax.random.key(0), jax.eval_shape(lambda: whole)).params

    def value(params, feature, given):
        return HINT.apply(params, {}, given._replace(student={"f": feature}), None).value

    rows = keep.reshape(-1, *(1,) * (len(shapes[0]) - 1))
    poisoned = jnp.where(rows, whole.student["f"], jnp.nan)
    taught = jnp.where(keep.reshape(-1, *(1,) * (len(shapes[1]) - 1)), whole.teacher["f"], jnp.inf)
    got = jax.value_and_grad(value, (0, 1))(params, poisoned, whole._replace(teacher={"f": taught}))
    want = jax.value_and_grad(value, (0, 1))(params, dropped.student["f"], dropped)
    np.testing.assert_allclose(got[0], want[0], rtol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-6), got[1][0], want[1][0])
    np.testing.assert_allclose(got[1][1][keep], want[1][1], rtol=1e-4, atol=1e-6)
    assert (got[1][1][~keep] == 0).all()


def test_regressor_has_its_own_optimizer():
    objective = combine(
        ce=term(losses.cross_entropy, "student/logits", "batch/label"),
        hint=objectives.hint("student/map", "teacher/map"),
    )
    states, before = {}, None
    for rate in (0.0, 0.05, 0.1):
        kd = jaxkd.distill(
            tiny.student, tiny.teacher(), objective, optimizer=optax.sgd(0.1), objective_optimizer=optax.sgd(rate)
        )
        before = before or kd.init(jax.random.key(0), tiny.batch(8))
        states[rate], _ = jax.jit(kd.step)(before, tiny.batch(8))
        tiny.assert_equal(states[rate].teacher, tiny.teacher_variables())
        tiny.assert_close(states[rate].student, states[0.0].student)
    kernels = {rate: state.objective.params["hint"]["kernel"] for rate, state in states.items()}
    moved = {rate: kernel - before.objective.params["hint"]["kernel"] for rate, kernel in kernels.items()}
    assert (moved[0.0] == 0).all()
    assert (moved[0.05] != 0).any()
    np.testing.assert_allclose(moved[0.1], 2 * moved[0.05], rtol=1e-4, atol=1e-6)
    assert states[0.1].opt_state.keys() == {"student", "objective"}
