"""Resized crops against a crop and a resize; their distribution; several views."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data
from jaxkd.data.vision import multi_crop, random_resized_crop

crop = jax.jit(random_resized_crop, static_argnames=("size", "areas", "ratios", "view"))


def batch(count=16, height=8, width=6, channels=2, dtype=np.float32):
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (count, height, width, channels)).astype(dtype)
    return {
        "image": jnp.asarray(image),
        "index": jnp.asarray(generator.permutation(1000)[:count], jnp.int32),
        "epoch": jnp.full(count, 2, jnp.int32),
    }


def rectangles(height, width):
    """Returns every rectangle of an image."""
    sides = [[(a, b) for a in range(n) for b in range(a + 1, n + 1)] for n in (height, width)]
    return {(top, bottom, left, right) for top, bottom in sides[0] for left, right in sides[1]}


def test_each_result_is_a_resized_rectangle_of_its_image():
    """One of all rectangles, resized by `jax.image.resize`, equals the result."""
    given = batch(count=6, height=5, width=4)
    result = np.asarray(crop(given, seed=0, size=3, areas=(0.2, 0.9))["image"])
    assert result.shape == (6, 3, 3, 2)
    for image, found in zip(np.asarray(given["image"]), result, strict=True):
        matches = []
        for top, bottom, left, right in rectangles(5, 4):
            part = image[top:bottom, left:right]
            resized = linear(bottom - top, 3) @ part.reshape(bottom - top, -1)
            resized = linear(right - left, 3) @ resized.reshape(3, right - left, 2).transpose(1, 0, 2).reshape(
                right - left, -1
            )
            resized = resized.reshape(3, 3, 2).transpose(1, 0, 2)
            if np.allclose(resized, found, atol=1e-2):
                matches.append((bottom - top) * (right - left) / 20)
        assert len(matches) == 1 and 0.1 <= matches[0] <= 1.0


def linear(old, new):
    """Returns the matrix of an antialiased linear resize in float64."""
    scale = old / new
    distance = np.abs((np.arange(new)[:, None] + 0.5) * scale - np.arange(old) - 0.5) / max(scale, 1)
    weights = np.maximum(1 - distance, 0)
    return weights / weights.sum(1, keepdims=True)


def test_the_reference_is_the_resize_of_jax():
    want = jax.image.resize(jnp.eye(5), (3, 5), "linear", antialias=True)
    np.testing.assert_allclose(linear(5, 3), want, atol=1e-6)


def test_sides_follow_the_areas_and_ratios():
    """Of an image whose pixels are their row and column, the range of values tells the crop."""
    side, count = 40, 2000
    grid = np.stack(np.meshgrid(np.arange(side), np.arange(side), indexing="ij"), -1).astype(np.float32)
    given = {"image": jnp.tile(grid, (count, 1, 1, 1)), "index": jnp.arange(count), "epoch": jnp.zeros(count, int)}
    found = np.asarray(crop(given, seed=3, size=80, areas=(0.1, 0.4))["image"])
    tall, wide = (found[..., i].max((1, 2)) - found[..., i].min((1, 2)) + 1 for i in (0, 1))
    areas, ratios = tall * wide / side**2, np.log(wide / tall)
    assert 0.085 < areas.min() < 0.12 and 0.38 < areas.max() < 0.42
    np.testing.assert_allclose(areas.mean(), 0.25, atol=0.01)
    np.testing.assert_allclose(ratios.mean(), 0, atol=0.02)
    np.testing.assert_allclose(ratios.std(), np.log(16 / 9) / np.sqrt(12), atol=0.02)
    tops = found[..., 0].min((1, 2))
    np.testing.assert_allclose(np.mean(tops / (side - tall)), 0.5, atol=0.02)
    assert tops.min() == 0 and (tops + tall).max() == side


def test_a_crop_that_never_fits_is_the_whole_image():
    given = batch(height=8, width=8)
    found = crop(given, seed=0, areas=(1.0, 1.0), ratios=(2.0, 2.0))["image"]
    np.testing.assert_allclose(found, given["image"], rtol=1e-6)


def test_draws_depend_on_seed_view_epoch_and_example_alone():
    given = batch()
    found = crop(given, seed=0)["image"]
    np.testing.assert_array_equal(crop(given, seed=0)["image"], found)
    some = {name: x[5:9] for name, x in given.items()}
    np.testing.assert_allclose(crop(some, seed=0)["image"], found[5:9], rtol=1e-6)
    for other in (
        crop(given, seed=1),
        crop(given, seed=0, view=1),
        crop({**given, "epoch": given["epoch"] + 1}, seed=0),
    ):
        assert not np.allclose(other["image"], found)


def test_whole_numbers_stay_whole():
    given = batch(dtype=np.uint8)
    found = crop(given, seed=0)["image"]
    assert found.dtype == jnp.uint8 and found.shape == given["image"].shape
    floats = crop({**given, "image": given["image"].astype(jnp.float32)}, seed=0)["image"]
    np.testing.assert_array_equal(found, np.round(floats))


def test_wrong_ranges_are_errors():
    for options in ({"areas": (0.5, 1.1)}, {"areas": (0.6, 0.5)}, {"ratios": (0.0, 1.0)}):
        with pytest.raises(ValueError, match=f"random_resized_crop, {next(iter(options))}: expected two positive"):
            random_resized_crop(batch(), seed=0, **options)
    with pytest.raises(ValueError, match="random_resized_crop, size"):
        random_resized_crop(batch(), seed=0, size=0)


# --- several views ---------------------------------------------------------------------------------------------------


def test_views_are_independent_draws():
    given = batch(height=8, width=8)
    large = partial(data.shift, seed=0, pixels=3)
    views = multi_crop({"image": large, "again": large, "small": partial(random_resized_crop, seed=0, size=4)})
    found = jax.jit(views)(given)
    assert sorted(found) == ["again", "epoch", "image", "index", "small"]
    np.testing.assert_array_equal(found["image"], large(given)["image"])
    assert not np.array_equal(found["image"], found["again"])
    np.testing.assert_array_equal(found["epoch"], given["epoch"])
    assert found["small"].shape == (16, 4, 4, 2)


def test_wrong_views_are_errors():
    with pytest.raises(ValueError, match="multi_crop, views: expected 1 to 64 views, got 0"):
        multi_crop({})
    views = multi_crop({"index": partial(data.shift, seed=0)})
    with pytest.raises(ValueError, match="'index' exists already"):
        views(batch())
