"""Two distortions: independent, replayable, and the first equals the transform's."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import two_views, with_pair

SHIFT = partial(data.random_crop_flip, seed=0, padding=3)
NORMALIZE = partial(data.normalize, mean=(0.5,), std=(0.25,))


@pytest.fixture(scope="module")
def batch():
    generator = np.random.default_rng(0)
    return {
        "image": jnp.asarray(generator.integers(1, 256, (16, 8, 6, 1)), jnp.uint8),
        "label": jnp.arange(16),
        "index": jnp.asarray(generator.permutation(1000)[:16], jnp.int32),
        "epoch": jnp.full(16, 2, jnp.int32),
    }


def equal(a, b):
    return np.all(np.asarray(a) == np.asarray(b), axis=(1, 2, 3))


def test_first_view_is_the_transform_and_second_another_draw(batch):
    found, alone = jax.jit(two_views(SHIFT))(batch), jax.jit(SHIFT)(batch)
    for name, x in alone.items():
        np.testing.assert_array_equal(found[name], x)
    # Two of 98 crops coincide by chance for one image in a hundred.
    assert equal(found["view"], found["image"]).sum() < 4
    assert found["view"].dtype == jnp.uint8


def test_draws_are_independent():
    many = {"image": jnp.arange(1, 10, dtype=jnp.uint8).reshape(1, 3, 3, 1).repeat(9000, axis=0)}
    many |= {"index": jnp.arange(9000), "epoch": jnp.zeros(9000, jnp.int32)}
    found = jax.jit(two_views(partial(data.shift, seed=0, pixels=1)))(many)
    both = np.concatenate([np.asarray(found[name]).reshape(9000, -1) for name in ("image", "view")], axis=1)
    counts = np.unique(both, axis=0, return_counts=True)[1]
    assert len(counts) == 81
    np.testing.assert_allclose(counts, 9000 / 81, atol=5 * np.sqrt(9000 / 81))


def test_draws_depend_on_example_and_epoch_only(batch):
    transform = jax.jit(two_views(SHIFT))
    found = transform(batch)
    order = np.random.default_rng(1).permutation(16)[:7]
    part = transform({name: x[order] for name, x in batch.items()})
    for name in "image", "view":
        np.testing.assert_array_equal(part[name], found[name][order])
    later = transform({**batch, "epoch": batch["epoch"] + 1})
    assert equal(later["view"], found["view"]).sum() < 4
    np.testing.assert_array_equal(later["epoch"], batch["epoch"] + 1)


def test_composed_transform_runs_twice(batch):
    found = two_views(data.compose(SHIFT, NORMALIZE))(batch)
    raw = two_views(SHIFT)(batch)
    np.testing.assert_array_equal(found["view"], NORMALIZE({"image": raw["view"]})["image"])
    assert found["image"].dtype == found["view"].dtype == jnp.float32


def test_partners_are_distorted_independently(batch):
    given = {**batch, "pair": batch["image"], "pair_index": batch["index"]}
    found = jax.jit(with_pair(SHIFT))(given)
    np.testing.assert_array_equal(found["image"], SHIFT(batch)["image"])
    assert equal(found["pair"], found["image"]).sum() < 4  # even though each example is its own partner
    shared = {**given, "pair": jnp.broadcast_to(batch["image"][:1], batch["image"].shape)}
    twice = with_pair(SHIFT)(shared)["pair"]
    assert equal(twice[1:], twice[:-1]).sum() < 4
    np.testing.assert_array_equal(found["pair_index"], batch["index"])


def test_deterministic_transform_needs_no_epoch():
    given = {"image": jnp.ones((2, 2, 2, 1), jnp.uint8)}
    found = two_views(NORMALIZE)(given)
    np.testing.assert_array_equal(found["image"], found["view"])


def test_invalid_batches_raise(batch):
    with pytest.raises(ValueError, match=r"need \['epoch'\]"):
        two_views(SHIFT)({name: x for name, x in batch.items() if name != "epoch"})
    with pytest.raises(ValueError, match=r"expected \['image', 'pair'\].*data.SameClass"):
        with_pair(SHIFT)(batch)
    with pytest.raises(ValueError, match="'label' exists already"):
        two_views(SHIFT, view="label")(batch)


# --- many views ------------------------------------------------------------------------------------------------------


def test_views_are_independent_draws(batch):
    small = partial(data.random_resized_crop, seed=0, size=4)
    found = jax.jit(data.multi_crop({"image": SHIFT, "again": SHIFT, "small": small}))(batch)
    assert sorted(found) == ["again", "epoch", "image", "index", "label", "small"]
    np.testing.assert_array_equal(found["image"], SHIFT(batch)["image"])
    assert equal(found["image"], found["again"]).sum() < 4
    np.testing.assert_array_equal(found["epoch"], batch["epoch"])
    assert found["small"].shape == (16, 4, 4, 1)


def test_wrong_views_are_errors(batch):
    with pytest.raises(ValueError, match="multi_crop, views: expected 1 to 64 views, got 0"):
        data.multi_crop({})
    with pytest.raises(ValueError, match="'label' exists already"):
        data.multi_crop({"label": SHIFT})(batch)
