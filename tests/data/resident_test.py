"""Resident mode: every example once per epoch, and exact resume."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data


def small(size, **options):
    image = np.arange(size * 4, dtype=np.uint8).reshape(size, 2, 2, 1)
    whole = data.from_arrays(image, np.arange(size) % 3, num_classes=3)
    return data.Resident(whole, **options)


@functools.cache
def jitted(resident):
    return jax.jit(resident.gather)


def epoch_of(resident, number, **options):
    steps = range(number * resident.steps_per_epoch, (number + 1) * resident.steps_per_epoch)
    gather = jitted(resident)
    return [jax.device_get(gather(resident.arrays, step, **options)) for step in steps]


@pytest.mark.parametrize("shuffle", [True, False])
@pytest.mark.parametrize("size,batch_size", [(10, 4), (12, 4), (3, 8), (1, 1)])
def test_epoch_has_every_example_once(size, batch_size, shuffle):
    resident = small(size, batch_size=batch_size, shuffle=shuffle)
    assert resident.steps_per_epoch == -(-size // batch_size)
    for number in (0, 3):
        batches = epoch_of(resident, number)
        ragged = size % batch_size != 0
        assert all(("mask" in batch) == ragged for batch in batches)
        counted = [batch["index"][batch["mask"]] if ragged else batch["index"] for batch in batches]
        together = np.concatenate(counted)
        np.testing.assert_array_equal(np.sort(together), np.arange(size))
        if not shuffle:
            np.testing.assert_array_equal(together, np.arange(size))
        for batch in batches:
            assert all(len(value) == batch_size for value in batch.values())
            np.testing.assert_array_equal(batch["epoch"], np.full(batch_size, number))
            np.testing.assert_array_equal(batch["label"], batch["index"] % 3)
            np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"] * 4)


def test_batch_dtypes():
    batch = next(iter(small(10, batch_size=4)))
    assert {key: value.dtype.name for key, value in batch.items()} == {
        "image": "uint8",
        "label": "int32",
        "index": "int32",
        "epoch": "int32",
        "mask": "bool",
    }


def test_drop_remainder_leaves_out_partial_batches():
    resident = small(10, batch_size=4, drop_remainder=True)
    assert resident.steps_per_epoch == 2
    batches = epoch_of(resident, 1)
    assert all("mask" not in batch for batch in batches)
    assert len(set(np.concatenate([batch["index"] for batch in batches]).tolist())) == 8


def test_epochs_and_seeds_differ():
    resident = small(50, batch_size=50)
    orders = {
        tuple(epoch_of(resident, number, seed=seed)[0]["index"].tolist()) for number in range(3) for seed in (0, 1)
    }
    assert len(orders) == 6


def test_scan_and_vmap_give_the_same_batches():
    resident = small(10, batch_size=4, seed=3)

    @jax.jit
    def run(arrays, seed):
        return jax.lax.scan(lambda _, step: (None, resident.gather(arrays, step, seed=seed)), None, jnp.arange(7))[1]

    gather = jitted(resident)
    mapped = jax.vmap(run, in_axes=(None, 0))(resident.arrays, jnp.array([3, 9]))
    for step in range(7):
        for row, seed in enumerate((3, 9)):
            alone = gather(resident.arrays, step, seed=seed)
            assert alone.keys() == mapped.keys()
            for key in alone:
                np.testing.assert_array_equal(mapped[key][row, step], alone[key])
    np.testing.assert_array_equal(mapped["index"][0, 5], gather(resident.arrays, 5)["index"])


def test_one_trace_for_every_step():
    resident = small(10, batch_size=4)
    traces = []

    @jax.jit
    def step(arrays, number):
        traces.append(1)
        return resident.gather(arrays, number)["index"]

    for number in range(6):
        step(resident.arrays, number)
    assert len(traces) == 1


def test_arrays_are_an_argument_rather_than_constants():
    resident = data.Resident(data.digits(), batch_size=64)
    text = jax.jit(resident.gather).lower(resident.arrays, 0).as_text()
    assert len(text) < 100_000


def test_iterator_resumes_from_a_state():
    resident = small(10, batch_size=4, epochs=3)
    assert isinstance(resident, data.Loader)
    batches = resident.batches()
    assert isinstance(batches, data.BatchIterator)
    first = [jax.device_get(batch) for batch in resident]
    assert len(first) == 9
    for _ in range(4):
        next(batches)
    state = batches.get_state()
    assert state == {"step": 4}
    rest = list(resident.batches(state))
    assert len(rest) == 5
    for batch, expected in zip(rest, first[4:], strict=True):
        for key in expected:
            np.testing.assert_array_equal(batch[key], expected[key])
    batches.set_state({"step": 1})
    np.testing.assert_array_equal(next(batches)["index"], first[1]["index"])


def test_iterator_does_not_end_by_default():
    batches = iter(small(4, batch_size=4))
    assert [next(batches)["epoch"][0].item() for _ in range(5)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("state", [{}, {"step": -1}, {"step": 1.5}, {"step": True}, 3])
def test_invalid_state_raises(state):
    with pytest.raises(ValueError, match="expected a state from get_state"):
        small(4, batch_size=2).batches(state)


@pytest.mark.parametrize("options", [{"batch_size": 0}, {"batch_size": 8, "drop_remainder": True}])
def test_invalid_sizes_raise(options):
    with pytest.raises(ValueError, match="batch_size"):
        small(4, **options)


def test_set_can_be_replicated_on_a_mesh():
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    resident = small(10, batch_size=4, device=sharding)
    assert resident.arrays["image"].sharding == sharding
    assert next(iter(resident))["image"].shape == (4, 2, 2, 1)
