"""A relation does not depend on the number of devices, in values and gradients, whatever the devices' masks.

Every device differentiates its own sum, and the gather returns the gradients of its anchors to the examples of other
devices. The slices of a gradient are therefore those of the sum over all devices.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from tests import references
from tests.loss_row import discrete
from tests.loss_runs import run
from tests.loss_table import RELATIONAL, each

AXIS, BATCH = "devices", 16

MASKS = {
    "all": np.ones(BATCH, bool),
    "uneven": np.arange(BATCH) % 5 > 1,
    "first half": np.arange(BATCH) < BATCH // 2,  # half of the devices have an empty mask
    "three": np.isin(np.arange(BATCH), (1, 6, 11)),  # fewer pairs than devices
    "one": np.arange(BATCH) == 11,
    "none": np.zeros(BATCH, bool),
}


def placed(local, way, devices):
    """Returns a function of whole batches that runs `local` on every device's slice."""
    mesh = Mesh(np.array(jax.devices()[:devices]), (AXIS,))
    if way.startswith("shard_map"):
        spec = PartitionSpec(AXIS)
        sharded = jax.shard_map(local, mesh=mesh, in_specs=spec, out_specs=spec, check_vma="unchecked" not in way)
        return jax.jit(sharded)
    if way == "pmap":
        mapped = jax.pmap(local, axis_name=AXIS, devices=jax.devices()[:devices])
    else:
        mapped = jax.jit(jax.vmap(local, axis_name=AXIS))

    def whole(*arrays):
        slices = [np.reshape(array, (devices, BATCH // devices, *array.shape[1:])) for array in arrays]
        return [np.reshape(result, (BATCH, *result.shape[2:])) for result in mapped(*slices)]

    return whole


def value_and_gradients(row, masked):
    def local(where, cotangent, *arrays):
        options = {"where": where} if masked else {}
        positions = row.floating(arrays)

        def loss(*floats):
            full = list(arrays)
            for position, array in zip(positions, floats, strict=True):
                full[position] = array
            return row.function(*full, axis_name=AXIS, **options)

        value, pullback = jax.vjp(loss, *(arrays[position] for position in positions))
        return value, *pullback(cotangent)

    return local


def inputs(row):
    return row.inputs(row.relation_shapes(BATCH, 5), seed=1)


def nan_where_masked(arrays, where):
    return [np.where(where.reshape(-1, *[1] * (a.ndim - 1)), a, -1 if discrete(a) else np.nan) for a in arrays]


PLACES = [
    pytest.param("pmap", 1, marks=pytest.mark.slow),
    pytest.param("pmap", 2, marks=pytest.mark.slow),
    pytest.param("pmap", 8, marks=pytest.mark.slow),
    pytest.param("shard_map", 4, marks=pytest.mark.slow),
    pytest.param("shard_map", 8, marks=pytest.mark.slow),
    pytest.param("shard_map, unchecked", 8, marks=pytest.mark.slow),
    ("shard_map", 2),
    ("vmap", 4),
]


@pytest.mark.parametrize("way, devices", PLACES)
@each(RELATIONAL)
def test_several_devices_are_one_device(row, way, devices):
    assert len(jax.devices()) >= 8, "tests run with eight simulated devices"
    arrays = inputs(row)
    cotangent = np.random.default_rng(0).normal(size=BATCH)
    with jax.enable_x64(True):
        step = placed(value_and_gradients(row, masked=True), way, devices)
        for name, where in MASKS.items():
            spoiled = nan_where_masked(arrays, where)
            value, *gradients = (np.asarray(result) for result in step(where, cotangent, *spoiled))
            expected, expected_gradients = run(row, arrays, where=where, cotangent=cotangent)
            np.testing.assert_allclose(value, expected, rtol=1e-10, atol=1e-15, err_msg=name)
            by_formula = row.keep(where, arrays)
            np.testing.assert_allclose(value, by_formula, rtol=1e-8, atol=1e-13, err_msg=name)
            for gradient, one_device in zip(gradients, expected_gradients, strict=True):
                np.testing.assert_allclose(gradient, one_device, rtol=1e-8, atol=1e-13, err_msg=name)


@pytest.mark.parametrize("way", [pytest.param("pmap", marks=pytest.mark.slow), "shard_map"])
@each(RELATIONAL)
def test_without_a_mask_in_float32(row, way):
    """As in a training step without padding."""
    arrays = tuple(array if discrete(array) else array.astype(np.float32) for array in inputs(row))
    ones = np.ones(BATCH, np.float32)
    results = placed(value_and_gradients(row, masked=False), way, 4)(ones > 0, ones, *arrays)
    value, gradients = run(row, arrays, dtype=np.float32)
    for result, expected in zip(results, (value, *gradients), strict=True):
        assert result.dtype == np.float32
        np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@each(RELATIONAL)
def test_data_parallel_step_has_the_gradient_of_the_whole_batch(row):
    """Local sums over the global count, with gradients of replicated parameters summed over the devices."""
    student, *rest = inputs(row)
    where = MASKS["uneven"]
    kernel = np.random.default_rng(0).normal(size=(5, 5))

    def local(where, student, *rest):
        def loss(kernel):
            shares = row.function(student @ kernel, *rest, where=where, axis_name=AXIS)
            return shares.sum() / jax.lax.psum(where.sum(), AXIS)

        return jax.lax.psum(jax.grad(loss)(jnp.asarray(kernel)), AXIS)[None]

    def whole(kernel):
        return row.keep(where, (student @ kernel, *rest)).sum() / where.sum()

    with jax.enable_x64(True):
        slices = [np.reshape(array, (8, 2, *array.shape[1:])) for array in (where, student, *rest)]
        gradients = jax.pmap(local, axis_name=AXIS, devices=jax.devices()[:8])(*slices)
    expected = references.finite_difference(whole, kernel)
    for gradient in gradients[:, 0]:
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


@each(RELATIONAL)
def test_local_batches_give_another_loss(row):
    """The inputs of these tests distinguish the loss of the batch from the mean of the devices' own losses."""
    arrays = inputs(row)
    alone = np.concatenate([row.reference(*(array[i : i + 4] for array in arrays)) for i in range(0, BATCH, 4)])
    assert np.abs(alone.mean() / row.reference(*arrays).mean() - 1) > 0.01
