"""Streaming mode: the batches of resident mode, on any number of hosts, with exact resume."""

import itertools
import json
import sys

import jax
import numpy as np
import pytest

from jaxkd import data


def take(batches, count=None):
    return [jax.device_get(batch) for batch in itertools.islice(batches, count)]


def same(first, second):
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        assert one.keys() == other.keys()
        for key in one:
            np.testing.assert_array_equal(one[key], other[key])
            assert one[key].dtype == other[key].dtype


@pytest.fixture(scope="module")
def digits():
    (part,) = data.split(data.digits(), [150], seed=0)
    return part


@pytest.mark.parametrize("options", [{}, {"shuffle": False}, {"drop_remainder": True}, {"seed": 2**32 - 1}])
def test_batches_equal_those_of_resident_mode(digits, options):
    stream = data.Stream(digits, batch_size=32, epochs=2, **options)
    resident = data.Resident(digits, batch_size=32, epochs=2, **options)
    assert isinstance(stream, data.Loader) and isinstance(stream.batches(), data.BatchIterator)
    assert stream.steps_per_epoch == resident.steps_per_epoch
    same(take(stream), take(resident))


def test_prepared_set_has_every_example_once_per_epoch(tiny_dir, tiny):
    stream = data.Stream(data.source("tiny", "train", tiny_dir), batch_size=8, seed=1, epochs=2)
    batches = take(stream)
    assert stream.steps_per_epoch == 5 and len(batches) == 10
    for epoch in (0, 1):
        part = batches[5 * epoch : 5 * epoch + 5]
        counted = np.concatenate([batch["index"][batch["mask"]] for batch in part])
        np.testing.assert_array_equal(np.sort(counted), np.arange(37))
        for batch in part:
            assert {key: value.dtype.name for key, value in batch.items()} == {
                "image": "uint8",
                "label": "int32",
                "index": "int32",
                "epoch": "int32",
                "mask": "bool",
            }
            np.testing.assert_array_equal(batch["epoch"], np.full(8, epoch))
            for image, label, index in zip(batch["image"], batch["label"], batch["index"], strict=True):
                expected = tiny("train", int(index))
                np.testing.assert_array_equal(image, expected[0])
                assert label == expected[1]
    assert [*batches[0]["index"]] != [*batches[5]["index"]]


def test_batches_are_placed_on_the_device(digits):
    batches = data.Stream(digits, batch_size=32, device=jax.devices()[1]).batches()
    assert all(value.devices() == {jax.devices()[1]} for value in next(batches).values())
    batches.close()
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4])
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    sharded = data.Stream(digits, batch_size=32, device=sharding).batches()
    assert next(sharded)["image"].sharding.is_equivalent_to(sharding, 4)
    sharded.close()


@pytest.mark.parametrize("stop", [0, 1, 4, 7])
def test_resumes_exactly(digits, stop):
    stream = data.Stream(digits, batch_size=32, seed=3, epochs=2)
    uninterrupted = take(stream)
    batches = stream.batches()
    before = take(batches, stop)
    state = json.loads(json.dumps(batches.get_state()))
    assert state == {"step": stop}  # more was read ahead
    # Both the interrupted iterator and a new one resume.
    same(before + take(batches), uninterrupted)
    same(take(data.Stream(digits, batch_size=32, seed=3, epochs=2).batches(state)), uninterrupted[stop:])


def test_set_state_moves_backward_and_forward(digits):
    stream = data.Stream(digits, batch_size=32, epochs=2)
    uninterrupted = take(stream)
    batches = stream.batches()
    for step in (0, 3, 1, 9):
        batches.set_state({"step": step})
        same([jax.device_get(next(batches))], uninterrupted[step : step + 1])
    with pytest.raises(StopIteration):
        next(batches)
    with pytest.raises(StopIteration):
        next(batches)
    batches.set_state({"step": 9})
    same(take(batches), uninterrupted[9:])


@pytest.mark.slow
def test_resumes_exactly_with_worker_processes(digits):
    uninterrupted = take(data.Stream(digits, batch_size=32, seed=3, epochs=2))
    stream = data.Stream(digits, batch_size=32, seed=3, epochs=2, workers=2)
    batches = stream.batches({"step": 2})
    same(take(batches, 3), uninterrupted[2:5])
    state = batches.get_state()
    assert state == {"step": 5}  # the processes have read further
    same(take(batches), uninterrupted[5:])
    batches.close()
    same(take(data.Stream(digits, batch_size=32, seed=3, epochs=2).batches(state)), uninterrupted[5:])


@pytest.mark.parametrize("options", [{}, {"drop_remainder": True}])
@pytest.mark.parametrize("hosts", [2, 4])
def test_hosts_divide_each_batch(digits, options, hosts):
    alone = take(data.Stream(digits, batch_size=32, seed=1, epochs=1, shard=(0, 1), **options))
    parts = [
        take(data.Stream(digits, batch_size=32, seed=1, epochs=1, shard=(host, hosts), **options))
        for host in range(hosts)
    ]
    assert {len(part) for part in parts} == {len(alone)}
    together = [
        {key: np.concatenate([batch[key] for batch in step]) for key in step[0]} for step in zip(*parts, strict=True)
    ]
    same(together, alone)
    read = [
        set(np.concatenate([batch["index"][batch.get("mask", slice(None))] for batch in part]).tolist())
        for part in parts
    ]
    assert sum(len(part) for part in read) == len(set.union(*read)) == (128 if options else 150)


def test_transform_can_give_equal_shapes():
    examples = [
        {"image": np.full((2 + row % 2, 2, 1), row, np.uint8), "label": row, "name": f"row {row}"} for row in range(6)
    ]
    with pytest.raises(ValueError, match=r"'image' differs in shape .* Give the Stream a transform"):
        next(data.Stream(examples, batch_size=6).batches())
    stream = data.Stream(
        examples, batch_size=6, epochs=1, transform=lambda example: {**example, "image": example["image"][:2]}
    )
    (batch,) = take(stream)
    assert batch.keys() == {"image", "label", "index", "epoch"}
    np.testing.assert_array_equal(batch["image"][:, 0, 0, 0], batch["index"])
    assert batch["label"].dtype == np.int32


def test_64_bit_numbers_are_converted_or_raise():
    (batch,) = take(data.Stream([{"label": 2**31 - 1, "weight": 0.5}], batch_size=1, epochs=1))
    assert batch["label"].tolist() == [2**31 - 1] and batch["weight"].dtype == np.float32
    with pytest.raises(ValueError, match="'label' holds integers that exceed 32 bits"):
        next(data.Stream([{"label": 2**31}], batch_size=1).batches())


@pytest.mark.parametrize(
    "options,match",
    [
        ({"batch_size": 33, "shard": (0, 2)}, "does not divide among 2 hosts. Use 32 or 34"),
        ({"batch_size": 32, "shard": (2, 2)}, "expected \\(process_index, process_count\\)"),
        ({"batch_size": 0}, "batch_size: expected at least 1"),
        ({"batch_size": 200, "drop_remainder": True}, "do not fill one batch"),
    ],
)
def test_invalid_arguments_raise(digits, options, match):
    with pytest.raises(ValueError, match=match):
        data.Stream(digits, **options)


def test_missing_library_raises_with_the_package_to_install(digits, monkeypatch):
    monkeypatch.setitem(sys.modules, "grain", None)
    with pytest.raises(ImportError, match=r'Streaming needs .*pip install "jaxkd-toolkit\[data\]"'):
        data.Stream(digits, batch_size=32)


def test_cifar100_batches_equal_the_source(data_dir):
    source = data.source("cifar100", "test", data_dir)
    batches = data.Stream(source, batch_size=64, seed=0).batches()
    (batch,) = take(batches, 1)
    batches.close()
    assert batch["image"].shape == (64, 32, 32, 3)
    for row in (0, 63):
        example = source[int(batch["index"][row])]
        np.testing.assert_array_equal(batch["image"][row], example["image"])
        assert batch["label"][row] == example["label"] and batch["coarse_label"][row] == example["coarse_label"]
