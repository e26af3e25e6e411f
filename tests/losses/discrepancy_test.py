"""Properties of the mean discrepancy: one value for all, its digits, masks that are alike on all devices."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxkd.losses import mean_discrepancy
from tests.loss_runs import run
from tests.loss_table import BY_NAME

ROW = BY_NAME["mean_discrepancy"]


def test_every_example_has_the_value_and_an_equal_share():
    """Whichever of the values a reduction weights: what does not count is in no mean, so that the others move."""
    arrays = ROW.inputs()
    where = np.arange(6) != 2
    for options, counts in (({}, np.ones(6, bool)), ({"where": where}, where)):
        cotangent = np.random.default_rng(0).normal(size=6)
        value, (of_s, of_t) = run(ROW, arrays, cotangent=cotangent, **options)
        assert (value[counts] == value[counts][0]).all()
        distance = np.subtract(*(array[counts].mean(0) for array in arrays))
        slope = 2 * distance * cotangent[counts].sum() / counts.sum()
        np.testing.assert_allclose(of_s, np.where(counts[:, None], slope, 0), rtol=1e-12)
        np.testing.assert_array_equal(of_t, -of_s)
    assert abs(run(ROW, arrays, where=where)[0][0] / run(ROW, arrays)[0][0] - 1) > 0.01


def test_nearly_equal_features_in_float32():
    """Far from the origin, the difference of two means would be their rounding."""
    student, teacher = (array.astype(np.float32).astype(float) for array in ROW.inputs(((64, 5),) * 2))
    teacher = (student + 1e-2 * teacher + 1000).astype(np.float32).astype(float)
    student = (student + 1000).astype(np.float32).astype(float)
    value, _ = run(ROW, (student, teacher), dtype=np.float32, optimized=True)
    exact = ROW.reference(student, teacher)
    np.testing.assert_allclose(value, exact, rtol=1e-5)
    means = np.subtract(*(array.astype(np.float32).mean(0) for array in (student, teacher)))
    assert abs((means**2).sum() / exact[0] - 1) > 1e-2, "the mistake shows"


@pytest.mark.parametrize("mask", ["none", "of its own", "one for all devices"])
def test_a_device_s_gradient_is_that_of_the_sum_over_devices(mask):
    """Checked `jax.shard_map` tells what is equal on all devices from what only has equal numbers."""
    student, teacher = (array.astype(np.float32) for array in ROW.inputs(((8, 5),) * 2))

    def local(student, teacher, where):
        options = {"none": {}, "of its own": {"where": where}, "one for all devices": {"where": jnp.ones(2, bool)}}[
            mask
        ]
        return jax.grad(lambda s: mean_discrepancy(s, teacher, axis_name="d", **options).sum())(student)

    spec = PartitionSpec("d")
    mapped = jax.shard_map(local, mesh=Mesh(np.array(jax.devices()[:4]), ("d",)), in_specs=spec, out_specs=spec)
    found = jax.jit(mapped)(student, teacher, np.ones(8, bool))
    np.testing.assert_allclose(found, run(ROW, (student, teacher), dtype=np.float32)[1][0], rtol=1e-5)
