"""Random keys of examples: distinct, and independent of padding and of the number of devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Context
from jaxkd._core.axes import example_keys, positions

KEEP = np.array([True, False, True, True, False, False, True, True])


def context(mask=None, axis_name=None):
    return Context({}, {}, {} if mask is None else {"mask": mask}, 0, axis_name)


def test_positions_skip_masked_examples():
    np.testing.assert_array_equal(positions(None, 4, None), np.arange(4))
    np.testing.assert_array_equal(positions(KEEP, 8, None)[KEEP], np.arange(5))


@pytest.mark.parametrize("devices", [2, 4, 8])
def test_positions_continue_over_devices(devices):
    sliced = KEEP.reshape(devices, -1)
    local = lambda mask: positions(mask, 8 // devices, "devices")  # noqa: E731
    for mapped in jax.pmap(local, "devices", devices=jax.devices()[:devices]), jax.vmap(local, axis_name="devices"):
        np.testing.assert_array_equal(mapped(sliced).ravel()[KEEP], np.arange(5))
        np.testing.assert_array_equal(mapped(np.ones_like(sliced)).ravel(), np.arange(8))


def test_example_keys_differ_and_ignore_padding():
    key = jax.random.key(0)
    drawn = jax.vmap(jax.random.bits)(example_keys(key, context(), 6))
    assert len(set(np.asarray(drawn).tolist())) == 6
    np.testing.assert_array_equal(drawn[:4], jax.vmap(jax.random.bits)(example_keys(key, context(), 4)))
    assert (drawn != jax.vmap(jax.random.bits)(example_keys(jax.random.key(1), context(), 6))).all()
    padded = jax.vmap(jax.random.bits)(example_keys(key, context(jnp.asarray(KEEP)), 8))
    np.testing.assert_array_equal(padded[KEEP], drawn[:5])
