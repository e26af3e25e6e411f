"""Rules of key frames, the network of one of them, and the loss of a detector's raw outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.schemes import streams
from jaxkd.types import Context


def asked(rule, values, path="batch/x"):
    """Returns whether each frame is a key frame."""

    def context(value):
        return Context({}, {}, {path.partition("/")[2]: jnp.asarray(value)[None]}, 0)

    state, found = rule.init(jax.random.key(0), context(values[0])), []
    for number, value in enumerate(values):
        one, state = rule.ask(state, context(value), jax.random.key(number))
        found.append(bool(one))
    return found


def test_intervals_and_draws():
    values = np.zeros((200, 1), np.float32)
    assert asked(streams.at_intervals(3), values[:7]) == [True, False, False] * 2 + [True]
    assert all(asked(streams.at_intervals(1), values[:3])) and all(asked(streams.at_random(1.0), values[:3]))
    assert not any(asked(streams.at_random(0.0), values[:3]))
    assert 0.2 < np.mean(asked(streams.at_random(0.3), values)) < 0.4


def test_changes_are_those_since_the_last_key_frame():
    values = np.array([[3.0, 4.0], [3.0, 5.0], [3.0, 6.1], [3.0, 7.0], [0.0, 0.0], [0.0, 1e-3]], np.float32)
    last, expected = values[0], [True]
    for value in values[1:]:
        expected.append(np.linalg.norm(value - last) > 0.4 * np.linalg.norm(last))
        last = value if expected[-1] else last
    assert asked(streams.on_change("batch/x", threshold=0.4), values) == expected
    assert any(expected[1:]) and not all(expected)
    still = np.full((3, 2), 7.0, np.float32)
    assert asked(streams.on_change("batch/x", threshold=0.0), still) == [True, False, False]


def test_the_selector_is_an_lstm():
    rng = np.random.default_rng(0)
    params = {
        name: rng.normal(size=x.shape).astype(np.float32)
        for name, x in streams.init_selector(jax.random.key(0), 3, hidden_size=2).items()
    }
    features = rng.normal(size=(2, 5, 3)).astype(np.float32)
    expected = np.zeros((2, 5))
    p = {name: np.asarray(x, np.float64) for name, x in params.items()}
    for row in range(2):
        cell, hidden = np.zeros(2), np.zeros(2)
        for t in range(5):
            gates = features[row, t] @ p["input"] + hidden @ p["hidden"] + p["bias"]
            i, f, o = (1 / (1 + np.exp(-gates[part : part + 2])) for part in (0, 2, 6))
            cell = f * cell + i * np.tanh(gates[4:6])
            hidden = o * np.tanh(cell)
            expected[row, t] = hidden @ p["output"] + p["output_bias"]
    logits = np.asarray(streams.selector_logits(params, features))
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)
    # The rule reads the mean over the positions.
    maps = features[0][:, None, :] + np.array([-1.0, 1.0], np.float32)[None, :, None]
    middle = np.sort(expected[0])[1:3].mean()
    rule = streams.as_predicted(params, "batch/x", threshold=1 / (1 + np.exp(-middle)))
    assert asked(rule, maps) == (expected[0] > middle).tolist()
    assert asked(streams.as_predicted(params, "batch/x", threshold=0.0), maps) == [True] * 5


def reference(student, teacher, objectness, threshold, blend):
    """Returns the values and the gradient of their sum by the student, in float64."""
    s, t, o = (np.asarray(x, np.float64) for x in (student, teacher, objectness))
    share = np.where(1 / (1 + np.exp(-o)) >= threshold, 1.0, blend)[..., None]
    error = share * (s - t)
    return (error**2).mean((1, 2)), 2 * error / error[0].size


def test_the_loss_is_the_squared_error_to_the_blended_target():
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    objectness = np.array([-3.0, -1.2, 4.0, 0.0], np.float32) + np.zeros((3, 1), np.float32)
    for options in ({}, {"threshold": 0.5, "blend": 0.0}):
        value, gradient = reference(student, teacher, objectness, **{"threshold": 0.2, "blend": 0.4, **options})
        np.testing.assert_allclose(streams.confident_mse(student, teacher, objectness, **options), value, rtol=1e-5)
        found = jax.grad(lambda s: streams.confident_mse(s, teacher, objectness, **options).sum())(student)  # noqa: B023
        np.testing.assert_allclose(found, gradient, rtol=1e-5, atol=1e-7)
    assert not np.any(jax.grad(lambda t: streams.confident_mse(student, t, objectness).sum())(teacher))


def test_an_excluded_example_has_no_influence():
    student, teacher, objectness = (jnp.ones(shape) for shape in ((2, 3, 1), (2, 3, 1), (2, 3)))
    bad = student.at[1].set(jnp.nan)
    where = jnp.array([True, False])
    value, gradient = jax.value_and_grad(
        lambda s: streams.confident_mse(s, 2 * teacher, objectness, where=where).sum()
    )(bad)
    assert float(value) == 1.0 and jnp.isfinite(gradient).all() and not gradient[1].any()
    low = streams.confident_mse(*(x.astype(jnp.bfloat16) for x in (student, teacher, objectness)))
    assert low.dtype == jnp.float32 and jnp.isfinite(low).all()


def test_what_does_not_fit_is_refused():
    for make, message in (
        (lambda: streams.at_intervals(0), "interval: expected at least 1"),
        (lambda: streams.at_random(1.5), "probability: expected a number from 0 to 1"),
        (lambda: streams.on_change("batch/x", threshold=-1.0), "threshold: expected a number of at least 0"),
        (lambda: streams.init_selector(jax.random.key(0), 0), "expected positive sizes"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
    params = streams.init_selector(jax.random.key(0), 3)
    with pytest.raises(ValueError, match=r"expected \[batch, frames, 3\], got \[2, 5, 4\]"):
        streams.selector_logits(params, jnp.zeros((2, 5, 4)))
    with pytest.raises(ValueError, match="3 channels that the network reads"):
        asked(streams.as_predicted(params, "batch/x"), np.zeros((1, 4), np.float32))
    with pytest.raises(ValueError, match="there is no such name"):
        streams.on_change("student/level9", threshold=0.1).init(None, Context({}, {}, {}, 0))
    with pytest.raises(ValueError, match="expected one array"):
        streams.on_change("batch/x", threshold=0.1).init(None, Context({}, {}, {"x": jnp.zeros(1)}, 0))
    with pytest.raises(ValueError, match="need the same anchors"):
        streams.confident_mse(jnp.zeros((1, 2, 3)), jnp.zeros((1, 3, 3)), jnp.zeros((1, 2)))
