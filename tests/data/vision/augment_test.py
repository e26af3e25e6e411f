"""Augmentation: uniform draws that depend on the seed and the example only."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import data

# Jitted, so that each shape compiles one program rather than one per operation.
random_crop_flip = jax.jit(data.random_crop_flip, static_argnames=("padding", "flip"))
shift = jax.jit(data.shift, static_argnames=("pixels",))


@pytest.fixture
def batch():
    generator = np.random.default_rng(0)
    return {
        "image": jnp.asarray(generator.integers(1, 256, (16, 8, 6, 3)), jnp.uint8),
        "label": jnp.arange(16),
        "index": jnp.asarray(generator.permutation(1000)[:16], jnp.int32),
        "epoch": jnp.full(16, 2, jnp.int32),
    }


def rows(batch, order):
    return {key: value[jnp.asarray(order)] for key, value in batch.items()}


def test_every_result_is_a_crop_possibly_mirrored(batch):
    padding, found = 2, set()
    for seed in range(4):
        result = np.asarray(random_crop_flip(batch, seed=seed, padding=padding)["image"])
        original = np.asarray(batch["image"])
        padded = np.pad(original, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
        for row in range(16):
            choices = {
                (top, left, flip): padded[row, top : top + 8, left : left + 6][:, :: -1 if flip else 1]
                for top in range(5)
                for left in range(5)
                for flip in (0, 1)
            }
            (choice,) = [key for key, image in choices.items() if np.array_equal(image, result[row])]
            found.add(choice)
    assert {flip for *_, flip in found} == {0, 1}
    assert {top for top, *_ in found} == {left for _, left, _ in found} == set(range(5))


def test_draws_are_uniform():
    many = {"image": jnp.arange(1, 10, dtype=jnp.uint8).reshape(1, 3, 3, 1).repeat(9000, axis=0)}
    many |= {"index": jnp.arange(9000), "epoch": jnp.zeros(9000, jnp.int32)}
    result = np.asarray(random_crop_flip(many, seed=0, padding=1, flip=False)["image"])
    kinds, counts = np.unique(result.reshape(9000, -1), axis=0, return_counts=True)
    assert len(kinds) == 9
    np.testing.assert_allclose(counts, 1000, atol=150)


def test_other_entries_and_the_dtype_are_kept(batch):
    result = data.random_crop_flip(batch, seed=0)
    assert result["image"].dtype == jnp.uint8 and result["image"].shape == batch["image"].shape
    assert all(result[key] is batch[key] for key in batch if key != "image")


@pytest.mark.parametrize("transform", [random_crop_flip, shift])
def test_draw_is_independent_of_the_batch_and_the_position(batch, transform):
    whole = transform(batch, seed=5)["image"]
    order = np.random.default_rng(1).permutation(16)
    np.testing.assert_array_equal(transform(rows(batch, order), seed=5)["image"], whole[order])
    np.testing.assert_array_equal(transform(rows(batch, [7]), seed=5)["image"], whole[7:8])


def test_draw_is_independent_of_the_default_generator(batch):
    whole = data.random_crop_flip(batch, seed=5)["image"]
    with jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(data.random_crop_flip(batch, seed=5)["image"], whole)


@pytest.mark.slow
def test_draw_is_independent_of_the_number_of_devices(batch):
    expected = random_crop_flip(batch, seed=5)["image"]
    for devices in (2, 8):
        mesh = jax.sharding.Mesh(jax.devices()[:devices], ("data",))
        sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
        placed = jax.device_put(batch, sharding)
        np.testing.assert_array_equal(random_crop_flip(placed, seed=5)["image"], expected)
        local = jax.shard_map(
            partial(data.random_crop_flip, seed=5),
            mesh=mesh,
            in_specs=jax.sharding.PartitionSpec("data"),
            out_specs=jax.sharding.PartitionSpec("data"),
        )
        np.testing.assert_array_equal(jax.jit(local)(placed)["image"], expected)


def test_seed_epoch_index_and_view_each_change_the_draw(batch):
    draw = partial(random_crop_flip, padding=2)
    variants = [
        draw(batch, seed=0),
        draw(batch, seed=1),
        draw(batch, seed=0, view=1),
        draw({**batch, "epoch": batch["epoch"] + 1}, seed=0),
        draw({**batch, "index": batch["index"] + 1}, seed=0),
    ]
    assert len({np.asarray(variant["image"]).tobytes() for variant in variants}) == 5


def test_vmap_over_seeds(batch):
    mapped = jax.vmap(lambda seed: random_crop_flip(batch, seed=seed)["image"])(jnp.arange(3))
    for seed in range(3):
        np.testing.assert_array_equal(mapped[seed], random_crop_flip(batch, seed=seed)["image"])


def test_normalize_equals_numpy(batch):
    result = data.normalize(batch, mean=data.CIFAR100_MEAN, std=data.CIFAR100_STD)["image"]
    expected = (np.asarray(batch["image"], np.float64) / 255 - data.CIFAR100_MEAN) / data.CIFAR100_STD
    assert result.dtype == jnp.float32
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)


def test_compose_applies_from_left_to_right(batch):
    both = data.compose(partial(data.shift, seed=1), partial(data.normalize, mean=(0.5,) * 3, std=(0.5,) * 3))
    expected = data.normalize(data.shift(batch, seed=1), mean=(0.5,) * 3, std=(0.5,) * 3)
    np.testing.assert_array_equal(both(batch)["image"], expected["image"])


def test_invalid_arguments_raise(batch):
    with pytest.raises(ValueError, match=r"need \['epoch'\].*Resident and Stream give both"):
        data.shift({key: value for key, value in batch.items() if key != "epoch"}, seed=0)
    with pytest.raises(ValueError, match=r"expected \[batch, height, width, channels\], got uint8\[8, 6, 3\]"):
        data.shift({**batch, "image": batch["image"][0]}, seed=0)
    with pytest.raises(ValueError, match="Normalize once"):
        data.normalize({"image": jnp.zeros((1, 2, 2, 1))}, mean=(0.0,), std=(1.0,))
    with pytest.raises(ValueError, match="3 channels, got 1 and 1"):
        data.normalize(batch, mean=(0.0,), std=(1.0,))


def test_a_resized_crop_is_a_part_of_the_image():
    """The image holds its own coordinates, so that the result shows where it was cut."""
    height, width, size, count = 12, 20, 40, 400
    rows, columns = np.meshgrid(np.arange(height), np.arange(width), indexing="ij")
    image = np.stack([rows, columns], -1).astype(np.float32)[None].repeat(count, 0)
    many = {"image": image, "index": np.arange(count), "epoch": np.zeros(count, int)}
    crop = jax.jit(partial(data.random_resized_crop, seed=0, size=size, area=(0.1, 0.5), ratio=2.0))
    result = np.asarray(crop(many)["image"])
    assert result.shape == (count, size, size, 2)
    middle = size // 2  # there, the interpolation of a linear function is exact
    down = (result[:, middle + 4, 0, 0] - result[:, middle - 4, 0, 0]) / 8
    right = (result[:, 0, middle + 4, 1] - result[:, 0, middle - 4, 1]) / 8
    sides = size * down, size * np.abs(right)
    share = sides[0] * sides[1] / (height * width)
    assert 0.099 < share.min() < 0.12 and 0.48 < share.max() < 0.501
    aspect = sides[1] / sides[0]
    assert 0.49 < aspect.min() < 0.55 and 1.9 < aspect.max() < 2.01
    assert 150 < (right < 0).sum() < 250  # mirrored
    begin = result[:, middle, 0, 0] + 0.5 - (middle + 0.5) * down
    assert (begin > -1e-3).all() and (begin + sides[0] < height + 1e-3).all()


def test_a_resized_crop_of_the_whole_image_is_the_image(batch):
    square = {**batch, "image": batch["image"][:, :6]}
    whole = jax.jit(partial(data.random_resized_crop, seed=0, area=(1.0, 1.0), ratio=1.0, flip=False))(square)
    assert whole["image"].dtype == jnp.uint8
    np.testing.assert_array_equal(whole["image"], square["image"])


@pytest.mark.parametrize(
    ("options", "message"),
    [({"area": (0.5, 0.2)}, "area: expected shares"), ({"ratio": 0.5}, "ratio: expected at least 1")],
)
def test_crops_that_do_not_exist_are_refused(batch, options, message):
    with pytest.raises(ValueError, match=message):
        data.random_resized_crop(batch, seed=0, **options)
