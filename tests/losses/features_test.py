"""Properties of the losses of feature maps: pooling the larger map, levels, margins, numbers per channel."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from jaxkd import losses
from tests import references
from tests.loss_runs import run
from tests.loss_table import BY_NAME

HINT, ATTENTION = BY_NAME["hint_mse"], BY_NAME["attention_transfer"]
SPATIAL = tuple(
    BY_NAME[name] for name in ("hint_mse", "attention_transfer", "factor_transfer", "neuron_selectivity", "channel_kl")
)


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
    [((8, 6), (4, 2)), ((7, 5), (3, 4)), ((4, 6), (1, 2)), ((3, 8), (6, 5))],
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
    np.testing.assert_allclose(row.function(*half), upcast, rtol=1e-6, atol=1e-7, err_msg="pooled in half precision")


def test_the_feature_is_pooled_before_the_power():
    """Otherwise 1 and -1 in one window would attend instead of canceling."""
    student = np.array([1.0, -1.0, 1.0, 1.0]).reshape(1, 4, 1, 1)
    teacher = np.array([0.0, 1.0]).reshape(1, 2, 1, 1)
    np.testing.assert_allclose(run(ATTENTION, (student, teacher))[0], 0, atol=1e-12)


def test_attention_is_normalized_per_example():
    student, teacher = ATTENTION.inputs()
    factors = np.array([0.01, 0.1, 1.0, 10.0, 100.0]).reshape(-1, 1, 1, 1)
    np.testing.assert_allclose(run(ATTENTION, (student * factors, teacher))[0], run(ATTENTION, (student, teacher))[0])


def test_attention_of_a_zero_student():
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
    np.testing.assert_allclose(losses.hint_mse(student, teacher), 4e4)
    np.testing.assert_allclose(losses.attention_transfer(student, teacher), 0, atol=1e-12)


def test_the_hint_s_gradient_does_not_depend_on_other_examples_or_on_the_batch():
    student, teacher = HINT.inputs()
    _, (gradient, _) = run(HINT, (student, teacher))
    np.testing.assert_allclose(gradient, 2 * (student - teacher) / student[0].size, rtol=1e-9)


def test_pooling_compiles_to_no_loop():
    """A loop over windows in Python or in XLA would cost a step hundreds of operations."""
    shapes = (jax.ShapeDtypeStruct((2, 32, 32, 4), jnp.float32), jax.ShapeDtypeStruct((2, 12, 12, 4), jnp.float32))
    jaxpr = jax.make_jaxpr(losses.hint_mse)(*shapes)
    assert str(jaxpr).count("\n") < 100
    assert "while" not in str(jaxpr)


# --- hierarchical context ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "size, weights",
    [
        ((8, 8), {8: 1, 4: 1 / 2, 2: 1 / 4, 1: 1 / 8}),
        ((5, 5), {5: 1, 4: 1 / 2, 2: 1 / 4, 1: 1 / 8}),
        ((4, 4), {4: 1, 2: 1 / 2, 1: 1 / 4}),
        ((3, 3), {3: 1, 2: 1 / 2, 1: 1 / 4}),
        ((2, 2), {2: 1, 1: 1 / 2}),
        ((1, 1), {1: 1}),
        ((1, 6), {1: 1}),
    ],
    ids=str,
)
def test_only_levels_below_the_height_have_a_weight(size, weights):
    student, teacher = np.random.default_rng(0).normal(size=(2, 3, *size, 2))
    expected = np.mean((student - teacher) ** 2, axis=(1, 2, 3)) * weights[size[0]]
    for level in list(weights)[1:]:
        pooled = references.adaptive_average_pool(student - teacher, level, level)
        expected += weights[level] * np.mean(pooled**2, axis=(1, 2, 3))
    value, _ = run(BY_NAME["hierarchical_context"], (student, teacher))
    np.testing.assert_allclose(value, expected / sum(weights.values()), rtol=1e-12)


def test_levels_of_a_map_that_is_narrower_than_they_are():
    """The height alone decides on the levels; four windows over three columns overlap as any others do."""
    student = np.random.default_rng(0).normal(size=(1, 5, 3, 1))
    columns = student[:, :, [0, 0, 1, 2]] / 2 + student[:, :, [0, 1, 2, 2]] / 2
    rows = (columns[:, :-1] + columns[:, 1:]) / 2
    halves = references.adaptive_average_pool(student, 2, 2)
    parts = np.mean(student**2), np.mean(rows**2) / 2, np.mean(halves**2) / 4, student.mean() ** 2 / 8
    value, _ = run(BY_NAME["hierarchical_context"], (student, 0 * student))
    np.testing.assert_allclose(value, [sum(parts) / 1.875], rtol=1e-12)


def test_checkerboard_vanishes_on_coarse_levels():
    """A checkerboard vanishes in every window of an even size."""
    board = (-1.0) ** np.add.outer(np.arange(8), np.arange(8)).reshape(1, 8, 8, 1)
    np.testing.assert_allclose(run(BY_NAME["hierarchical_context"], (board, 0 * board))[0], [1 / 1.875])


# --- activation boundaries and margins --------------------------------------------------------------------------------


def test_student_beyond_the_boundary_has_no_gradient():
    student, teacher = BY_NAME["activation_boundary"].inputs()
    beyond = np.where(teacher > 0, 1 + np.abs(student), -1 - np.abs(student))
    value, (gradient, of_teacher) = run(BY_NAME["activation_boundary"], (beyond, teacher))
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(gradient, 0)
    np.testing.assert_array_equal(of_teacher, 0)


def test_negative_margin():
    for margin in (-1.0, np.nan):
        with pytest.raises(ValueError, match=rf"margin: expected at least 0, got {margin}"):
            losses.activation_boundary(jnp.zeros((1, 2)), jnp.zeros((1, 2)), margin=margin)


def test_margin_is_the_mean_of_the_negative_part_of_a_gaussian():
    mean, std = (x.ravel() for x in np.meshgrid(np.linspace(-5, 3, 17), [0.1, 0.5, 1.0, 2.0, 7.0]))
    below = scipy.stats.norm.cdf(0, loc=mean, scale=std)
    often = below > 0.001
    assert 0 < often.sum() < len(often)
    truncated = scipy.stats.truncnorm(-np.inf, -mean[often] / std[often], loc=mean[often], scale=std[often])
    with jax.enable_x64(True):
        margin = np.asarray(losses.overhaul_margin(jnp.array(mean), jnp.array(std)))
    np.testing.assert_allclose(margin[often], truncated.mean(), rtol=1e-9)
    np.testing.assert_allclose(margin[~often], -3 * std[~often])
    single = losses.overhaul_margin(jnp.asarray(mean, jnp.float32), jnp.asarray(std, jnp.float32))
    np.testing.assert_allclose(single, margin, rtol=1e-4, atol=1e-6)
    assert (margin < 0).all()


def test_the_margin_bounds_the_student_from_above_only():
    """Where the teacher is below the margin, the student may be anywhere below it."""
    teacher = np.full((1, 3), -5.0)
    student = np.array([[-9.0, -1.0, 0.5]])
    value, (gradient, *_) = run(BY_NAME["overhaul"], (student, teacher, np.full(3, -1.0)))
    np.testing.assert_allclose(value, [1.5**2])
    np.testing.assert_allclose(gradient, [[0, 0, 3.0]])


# --- one number for each channel --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["overhaul", "gaussian_nll", "channel_weighted_mse"])
def test_numbers_of_channels_in_two_shapes(name):
    row = BY_NAME[name]
    *maps, numbers = row.inputs()
    value, gradients = run(row, (*maps, numbers))
    expanded, expanded_gradients = run(row, (*maps, numbers.reshape(1, 1, 1, -1)))
    np.testing.assert_array_equal(expanded, value)
    np.testing.assert_array_equal(expanded_gradients[-1].ravel(), gradients[-1])


def test_the_variance_that_fits_is_that_of_the_error():
    """Its gradient vanishes there, and a larger and a smaller one are both worse."""
    mean, target, _ = BY_NAME["gaussian_nll"].inputs()
    variance = ((mean - target) ** 2).mean(axis=(0, 1, 2))
    value, gradients = run(BY_NAME["gaussian_nll"], (mean, target, variance))
    np.testing.assert_allclose(gradients[2], 0, atol=1e-12)
    for factor in (0.9, 1.1):
        assert run(BY_NAME["gaussian_nll"], (mean, target, factor * variance))[0].mean() > value.mean()


def test_weights_of_one_are_a_sum_of_squares():
    student, teacher, weights = BY_NAME["channel_weighted_mse"].inputs()
    value, _ = run(BY_NAME["channel_weighted_mse"], (student, teacher, np.ones_like(weights)))
    np.testing.assert_allclose(value, student[0].size * run(HINT, (student, teacher))[0])


def test_importance_of_channels():
    """exp of the rises, log 1, log 2 and log 5, over their sum."""
    without = 0.3 + np.log([1.0, 2.0, 5.0])
    importance = losses.channel_importance(jnp.asarray(without), jnp.asarray(0.3))
    np.testing.assert_allclose(importance, [1 / 8, 2 / 8, 5 / 8], rtol=1e-6)
    np.testing.assert_allclose(importance, references.channel_importance(without, np.array(0.3)), rtol=1e-6)
    np.testing.assert_allclose(losses.channel_importance(jnp.array([1e4, 0.0, -1e4]), 0.5), [1, 0, 0])
    assert losses.channel_importance(jnp.ones(3, jnp.bfloat16), jnp.ones((), jnp.bfloat16)).dtype == jnp.float32


@pytest.mark.parametrize(
    "without, loss, name",
    [
        (jnp.ones((2, 3)), 0.0, "losses_without"),
        (jnp.ones(()), 0.0, "losses_without"),
        (jnp.ones(3, jnp.int32), 0.0, "losses_without"),
        (jnp.ones(3), jnp.ones(3), "loss"),
        (jnp.ones(3), jnp.ones(1), "loss"),
    ],
)
def test_importance_needs_one_loss_per_channel(without, loss, name):
    with pytest.raises(ValueError, match=rf"^{name}: expected .* got .*\["):
        losses.channel_importance(without, loss)


# --- attention --------------------------------------------------------------------------------------------------------


def test_selectivity_has_matrices_of_the_smaller_of_positions_and_channels():
    def shapes(size, channels):
        map_ = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
        return str(jax.make_jaxpr(jax.grad(lambda s, t: losses.neuron_selectivity(s, t).sum()))(map_, map_))

    assert "f32[2,256,256]" not in shapes(16, 8) and "f32[2,8,8]" in shapes(16, 8)
    assert "f32[2,256,256]" not in shapes(4, 256) and "f32[2,16,16]" in shapes(4, 256)


def test_channel_of_zeros_has_no_gradient():
    student, teacher = BY_NAME["neuron_selectivity"].inputs()
    student[..., 0] = 0
    value, (gradient, _) = run(BY_NAME["neuron_selectivity"], (student, teacher))
    np.testing.assert_allclose(value, references.neuron_selectivity(student, teacher), rtol=1e-10)
    np.testing.assert_array_equal(gradient[..., 0], 0)
    assert (gradient[..., 1] != 0).any()


def test_equal_factor_has_no_gradient():
    """|x| has no slope at 0; compiled, neither does its rounding error."""
    student = jnp.asarray(BY_NAME["factor_transfer"].inputs()[0], jnp.float32)
    gradient = jax.jit(jax.grad(lambda s, t: losses.factor_transfer(s, t).sum()))(student, student)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("temperature", [0, -1.0, np.nan, np.float32(-4), np.array(-2.0)], ids=repr)
def test_a_temperature_of_channels_that_is_not_positive(temperature):
    with pytest.raises(ValueError, match=r"temperature: expected a positive number, got"):
        losses.channel_kl(jnp.zeros((1, 2, 2, 1)), jnp.zeros((1, 2, 2, 1)), temperature=temperature)


def test_traced_hyperparameters():
    """A schedule of the temperature, or of the margin, is one program."""
    student, teacher = (jnp.asarray(array, jnp.float32) for array in HINT.inputs())
    for loss, name in ((losses.channel_kl, "temperature"), (losses.activation_boundary, "margin")):
        traced = jax.jit(lambda x, loss=loss, name=name: loss(student, teacher, **{name: x}))
        np.testing.assert_allclose(traced(2.0), loss(student, teacher, **{name: 2.0}), rtol=1e-5)


# --- flow -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "students, teachers, text",
    [
        (1, 1, "student_pair: expected the maps of two layers, got 1"),
        (3, 3, "student_pair: expected the maps of two layers, got 3"),
        (2, 3, "teacher_pair: expected the student's 2 layers, got 3"),
    ],
)
def test_a_pair_is_two_layers(students, teachers, text):
    layer = jnp.ones((2, 4, 4, 3))
    with pytest.raises(ValueError, match=text):
        losses.solution_flow([layer] * students, [layer] * teachers)
