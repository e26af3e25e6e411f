"""Partners of the same class, as a function of the seed, the epoch and the example."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import SameClass, same_class

LABELS = np.array([2, 0, 1, 0, 3, 1, 1, 0, 2, 0, 4, 0])  # one example of class 3, one of 4, two of 2
ALONE = {4, 10}


def small(batch_size=5, labels=LABELS, index=None, **options):
    size = len(labels)
    image = (10 * np.arange(size * 4, dtype=np.uint16) % 251).astype(np.uint8).reshape(size, 2, 2, 1)
    index = np.arange(size, dtype=np.int32) if index is None else index
    return SameClass(data.Resident(data.from_arrays(image, labels, index=index), batch_size, **options))


def epochs(pairs, count, first=0, **options):
    """Partner of each unmasked example, for each epoch."""
    gather, found = jax.jit(lambda arrays, step: pairs.gather(arrays, step, **options)), []
    for epoch in range(first, first + count):
        partner = {}
        for step in range(epoch * pairs.steps_per_epoch, (epoch + 1) * pairs.steps_per_epoch):
            batch = jax.device_get(gather(pairs.arrays, step))
            keep = batch.get("mask", np.ones(pairs.batch_size, bool))
            partner |= dict(zip(batch["index"][keep].tolist(), batch["pair_index"][keep].tolist(), strict=True))
        found.append(partner)
    return found


def test_partner_is_another_example_of_the_class():
    for partner in epochs(small(), 4):
        assert partner.keys() == set(range(12))
        for one, other in partner.items():
            assert LABELS[one] == LABELS[other]
            assert (one == other) == (one in ALONE)


def test_pairs_are_rows_of_the_set():
    pairs = small()
    image = np.asarray(pairs.arrays["set"]["image"])
    for batch in [next(iter(pairs)), jax.device_get(pairs.gather(pairs.arrays, jnp.int32(7)))]:
        assert {name: x.dtype.name for name, x in batch.items()} == {
            "image": "uint8", "label": "int32", "index": "int32", "epoch": "int32", "mask": "bool",
            "pair": "uint8", "pair_index": "int32",
        }  # fmt: skip
        np.testing.assert_array_equal(batch["pair"], image[np.asarray(batch["pair_index"])])
        np.testing.assert_array_equal(batch["image"], image[np.asarray(batch["index"])])


def test_every_other_example_of_the_class_is_equally_likely():
    labels = np.repeat([0, 1], [5, 4])
    counts = np.zeros((9, 9), int)
    pairs = small(9, labels)
    batches = jax.jit(lambda arrays: jax.lax.map(lambda step: pairs.gather(arrays, step), jnp.arange(3000)))(
        pairs.arrays
    )
    np.add.at(counts, (np.asarray(batches["index"]).ravel(), np.asarray(batches["pair_index"]).ravel()), 1)
    for one in range(9):
        others = [other for other in range(9) if labels[other] == labels[one] and other != one]
        assert counts[one].sum() == counts[one, others].sum() == 3000
        # Five standard deviations of a binomial count.
        expected = 3000 / len(others)
        np.testing.assert_allclose(counts[one, others], expected, atol=5 * np.sqrt(expected))
    # The partners of two examples are independent, so that all pairs of partners of 0 and 1 occur.
    order = np.argsort(np.asarray(batches["index"]), axis=1)
    partner = np.take_along_axis(np.asarray(batches["pair_index"]), order, axis=1)
    together = np.unique(partner[:, :2], axis=0, return_counts=True)[1]
    assert len(together) == 16
    np.testing.assert_allclose(together, 3000 / 16, atol=5 * np.sqrt(3000 / 16))


@pytest.mark.slow
def test_partner_depends_on_seed_epoch_and_example_only():
    expected = epochs(small(), 3)
    assert epochs(small(), 3) == expected
    for other in small(12), small(1), small(4, shuffle=False), small(7):
        assert epochs(other, 3) == expected  # independent of the batches and their order
    assert expected[0] != expected[1] != expected[2]
    assert epochs(small(seed=1), 3) != expected
    assert epochs(small(), 3, seed=0) == expected
    assert epochs(small(), 3, seed=1) == epochs(small(seed=1), 3)


def test_part_of_a_set_keeps_its_indices():
    index = np.array([40, 7, 99, 3, 12, 55, 8, 61, 2, 30, 31, 77], np.int32)
    label_of = dict(zip(index.tolist(), LABELS.tolist(), strict=True))
    for partner in epochs(small(index=index), 2):
        assert partner.keys() == label_of.keys()
        assert all(
            label_of[one] == label_of[other] and (one == other) == (one in (12, 31)) for one, other in partner.items()
        )


def test_vmap_over_seeds_and_scan():
    pairs = small()

    @jax.jit
    def run(arrays, seed):
        return jax.lax.scan(lambda _, step: (None, pairs.gather(arrays, step, seed=seed)), None, jnp.arange(4))[1]

    mapped = jax.vmap(run, in_axes=(None, 0))(pairs.arrays, jnp.array([3, 9]))
    gather = jax.jit(pairs.gather)
    for row, seed in enumerate((3, 9)):
        for step in range(4):
            alone = gather(pairs.arrays, step, seed=seed)
            for name, x in alone.items():
                np.testing.assert_array_equal(mapped[name][row, step], x)


def test_same_class_is_a_loader():
    pairs = small(epochs=2)
    assert isinstance(pairs, data.Loader)
    assert (pairs.batch_size, pairs.steps_per_epoch, pairs.num_examples, pairs.padded) == (5, 3, 12, True)
    batches = pairs.batches()
    whole = [jax.device_get(batch) for batch in pairs]
    assert len(whole) == 6
    for _ in range(4):
        next(batches)
    rest = list(pairs.batches(batches.get_state()))
    assert len(rest) == 2
    np.testing.assert_array_equal(rest[0]["pair"], whole[4]["pair"])
    plain = data.Resident(data.from_arrays(np.zeros((4, 1, 1, 1), np.uint8), [0, 0, 1, 1]), 2)
    assert SameClass(plain).fingerprint() == {**plain.fingerprint(), "pairs": "same class"}


def test_arrays_are_an_argument_with_the_loaders_sharding():
    pairs = SameClass(data.Resident(data.digits(), batch_size=64))
    assert len(jax.jit(pairs.gather).lower(pairs.arrays, 0).as_text()) < 100_000
    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec())
    spread = small(device=sharding)
    assert {x.sharding for x in jax.tree.leaves(spread.arrays)} == {sharding}
    np.testing.assert_array_equal(next(iter(spread))["pair"], next(iter(small()))["pair"])


def examples(size=12):
    return [{"image": np.full((2, 2, 1), row, np.uint8), "label": LABELS[row]} for row in range(size)]


def test_stream_gives_the_same_pairs():
    index = np.array([40, 7, 99, 3, 12, 55, 8, 61, 2, 30, 31, 77], np.int32)
    image = np.arange(48, dtype=np.uint8).reshape(12, 2, 2, 1)
    for given in None, index:
        whole = data.from_arrays(image, LABELS, **({} if given is None else {"index": given}))
        resident = SameClass(data.Resident(whole, 4, seed=3, epochs=2))
        stream = same_class(data.Stream(whole, 4, seed=3, epochs=2), LABELS)
        for one, other in zip(stream, resident, strict=True):
            assert one.keys() == other.keys()
            for name, x in other.items():
                np.testing.assert_array_equal(one[name], x)
                assert one[name].dtype == x.dtype


def test_hosts_read_the_partners_of_their_parts():
    whole = list(same_class(data.Stream(examples(), 4, epochs=1), LABELS))
    parts = [list(same_class(data.Stream(examples(), 4, epochs=1, shard=(i, 2)), LABELS)) for i in range(2)]
    for batch, *shares in zip(whole, *parts, strict=True):
        for name in "pair", "pair_index", "index":
            np.testing.assert_array_equal(np.concatenate([share[name] for share in shares]), batch[name])
        np.testing.assert_array_equal(batch["pair"][:, 0, 0, 0], batch["pair_index"])


def test_invalid_arguments_raise():
    loader = data.Resident(data.from_arrays(np.zeros((4, 1, 1, 1), np.uint8), [0, 0, 1, 1]), 2)
    with pytest.raises(TypeError, match="SameClass: expected a Resident, got list"):
        SameClass([loader])
    with pytest.raises(ValueError, match=r"has no \['class'\], only \['image', 'index', 'label'\]"):
        SameClass(loader, label_entry="class")
    with pytest.raises(ValueError, match=r"'image': expected integers \[examples\], got uint8\[4, 1, 1, 1\]"):
        SameClass(loader, label_entry="image")
    with pytest.raises(ValueError, match=r"labels: expected integers \[12\].*got int64\[11\]"):
        same_class(data.Stream(examples(), 4), LABELS[1:])
    with pytest.raises(ValueError, match="this batch has other labels"):
        next(iter(same_class(data.Stream(examples(), 4), LABELS[::-1])))
