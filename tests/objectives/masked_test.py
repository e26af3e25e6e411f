"""Masked generation: values, choice of the masked parts, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.objectives import dual_masked_generation, masked_generation
from tests.objectives import plain

PATHS = ("student/f", "teacher/f")
GIVEN = plain.context({"f": (3, 4, 4, 2)}, {"f": (3, 4, 4, 5)})


def generate(params, x):
    return plain.conv(params["second"], plain.relu(plain.conv(params["first"], x)))


def test_evaluation_masks_nothing():
    objective = masked_generation(*PATHS, weight=0.1)
    params = plain.made(objective, GIVEN).params
    own, (x, t) = plain.f64(params), (np.float64(side["f"]) for side in (GIVEN.student, GIVEN.teacher))
    want = ((generate(own["generator"], plain.dense(own["align"], x)) - t) ** 2).sum((1, 2, 3)).mean()
    np.testing.assert_allclose(objective.apply(params, {}, GIVEN, None).value, 0.1 * want, rtol=1e-5)


def hidden(ratio, key, batch=8):
    """Returns the positions that a training step masks, found with a generator that copies its input."""
    given = plain.context({"f": (batch, 6, 6, 1)}, {"f": (batch, 6, 6, 1)})
    given = given._replace(student={"f": jnp.ones((batch, 6, 6, 1))}, teacher={"f": jnp.zeros((batch, 6, 6, 1))})
    objective = masked_generation(*PATHS, mask_ratio=ratio)
    center = jnp.zeros((3, 3, 1, 1)).at[1, 1].set(1.0)
    copy = {"kernel": center, "bias": jnp.zeros(1)}
    assert objective.init(jax.random.key(0), given).params.keys() == {"generator"}
    params = {"generator": {"first": copy, "second": copy}}
    value = lambda t: objective.apply(params, {}, given._replace(teacher={"f": t}), key).value  # noqa: E731
    return np.asarray(jax.grad(value)(given.teacher["f"]) == 0)[..., 0]


def test_positions_are_masked_at_random_per_example():
    first = hidden(0.4, jax.random.key(0), batch=64)
    assert abs(first.mean() - 0.4) < 4 * np.sqrt(0.24 / first.size)
    assert len({row.tobytes() for row in first}) == 64
    assert (first != hidden(0.4, jax.random.key(1), batch=64)).any()
    # An example's draw does not depend on the batch size.
    np.testing.assert_array_equal(first[:8], hidden(0.4, jax.random.key(0)))
    assert not hidden(0.0, jax.random.key(0)).any()
    assert not hidden(0.4, None).any()


def test_maps_of_two_sizes_are_compared_at_the_smaller_size():
    objective = masked_generation(*PATHS)
    large = plain.context({"f": (3, 8, 4, 2)}, {"f": (3, 4, 4, 5)})
    params = plain.made(objective, large).params
    small = large._replace(student={"f": plain.pool(large.student["f"], 4, 4)})
    key = jax.random.key(2)
    found, want = (objective.apply(params, {}, c, key).value for c in (large, small))
    np.testing.assert_allclose(found, want, rtol=1e-5)


def softmax(x, axes):
    e = np.exp(x - x.max(axes, keepdims=True))
    return e / e.sum(axes, keepdims=True)


@pytest.mark.parametrize(("threshold", "temperature"), [(1.0, 0.5), (1.02, 2.0)])
def test_teacher_attention_selects_the_masks(threshold, temperature):
    objective = dual_masked_generation(*PATHS, threshold=threshold, temperature=temperature, weight=0.1)
    params = plain.made(objective, GIVEN).params
    own, (x, t) = plain.f64(params), (np.float64(side["f"]) for side in (GIVEN.student, GIVEN.teacher))
    aligned = plain.dense(own["align"], x)
    spatial = 16 * softmax(np.abs(t).mean(3, keepdims=True) / temperature, (1, 2))
    channel = 5 * softmax(np.abs(t).mean((1, 2), keepdims=True) / temperature, (3,))
    assert 0 < (spatial > threshold).mean() < 1
    assert 0 < (channel > threshold).mean() < 1
    weights = softmax(own["balance"], (0,))
    made = weights[0] * generate(own["spatial"], aligned * (spatial <= threshold)) + weights[1] * generate(
        own["channel"], aligned * (channel <= threshold)
    )
    want = ((made - t) ** 2).sum((1, 2, 3)).mean()
    for key in None, jax.random.key(0):
        np.testing.assert_allclose(objective.apply(params, {}, GIVEN, key).value, 0.1 * want, rtol=1e-5)


def test_branches_start_with_equal_weight():
    params = dual_masked_generation(*PATHS).init(jax.random.key(0), GIVEN).params
    np.testing.assert_array_equal(params["balance"], [0, 0])
    assert params.keys() == {"align", "spatial", "channel", "balance"}


def test_invalid_arguments_and_features_raise():
    for ratio in 1.0, -0.1:
        with pytest.raises(ValueError, match="masked_generation, mask_ratio: expected a"):
            masked_generation(*PATHS, mask_ratio=ratio)
    for options in {"threshold": 0}, {"temperature": -1.0}:
        with pytest.raises(ValueError, match=r"dual_masked_generation, .*: expected a positive number"):
            dual_masked_generation(*PATHS, **options)
    for make in masked_generation, dual_masked_generation:
        with pytest.raises(ValueError, match=rf"{make.__name__}: expected a map"):
            make(*PATHS).init(jax.random.key(0), plain.context({"f": (3, 4)}, {"f": (3, 4)}))
        with pytest.raises(ValueError, match=rf"{make.__name__}: expected two features"):
            make(*PATHS).init(jax.random.key(0), plain.context({"f": (3, 4, 4, 2)}, {"f": (2, 4, 4, 2)}))
