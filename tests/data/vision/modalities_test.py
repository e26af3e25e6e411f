"""Modalities of an image against NumPy, one image and one point at a time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.data.vision import _modalities as lib

TRANSFORMS = {
    "halves": lib.halves,
    "top": functools.partial(lib.halves, dimension=1, entries=("top", "bottom")),
    "spectrum": lib.spectrum,
    "rows": lib.rows,
    "columns": lib.columns,
    "strokes": functools.partial(lib.strokes, steps=7),
    "scan": functools.partial(lib.strokes, steps=7, scan_order=lib.by_scan),
}


def images(seed=0, shape=(4, 5, 6, 2)):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


def path(image, steps, threshold=0.25, nearest=True):
    """Path of the pen over one image, by hand."""
    ink = image.astype(np.float64).mean(axis=-1) / 255
    height, width = ink.shape
    points = sorted((y, x) for y in range(height) for x in range(width) if np.float32(ink[y, x]) > threshold)
    points = sorted(sorted(points, key=lambda p: -np.float32(ink[p]))[:steps])
    visited = []
    while points:
        at = visited[-1] if visited else points[0]
        chosen = min(points, key=lambda p: (p[0] - at[0]) ** 2 + (p[1] - at[1]) ** 2) if nearest else points[0]
        points.remove(chosen)
        visited.append(chosen)
    found, before = np.zeros((steps, 6)), None
    for i, (y, x) in enumerate(visited):
        dy, dx = (0, 0) if before is None else (y - before[0], x - before[1])
        scale = 2 / (height - 1), 2 / (width - 1)
        found[i] = (
            y * scale[0] - 1,
            x * scale[1] - 1,
            dy * scale[0],
            dx * scale[1],
            ink[y, x],
            max(abs(dy), abs(dx)) > 1,
        )
        before = y, x
    return found, np.arange(steps) < len(visited)


def test_halves_cover_the_image():
    image = images()
    found = lib.halves({"image": image, "label": 1})
    np.testing.assert_array_equal(np.concatenate([found["left"], found["right"]], axis=2), image)
    assert found["left"].dtype == np.uint8
    assert found["label"] == 1
    found = lib.halves({"image": image}, dimension=1, entries=("top", "bottom"))
    np.testing.assert_array_equal(found["top"], image[:, :3])
    np.testing.assert_array_equal(found["bottom"], image[:, 2:])


@pytest.mark.parametrize("shape", [(4, 5, 6, 2), (2, 8, 8, 1), (1, 1, 1, 1)])
def test_spectrum_equals_numpy(shape):
    image = images(shape=shape)
    found = lib.spectrum({"image": image})["spectrum"]
    assert found.dtype == jnp.float32
    expected = np.empty(shape)
    for n in range(shape[0]):
        for c in range(shape[3]):
            transformed = np.fft.fftshift(np.fft.fft2(image[n, :, :, c].astype(np.float64)))
            expected[n, :, :, c] = np.log(1 + np.abs(transformed) / np.sqrt(shape[1] * shape[2]))
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


def test_spectrum_is_invariant_to_cyclic_shifts():
    image = images().astype(np.float32)
    moved = np.roll(image, (2, 3), axis=(1, 2))
    one, other = (lib.spectrum({"image": x})["spectrum"] for x in (image, moved))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


def test_rows_and_columns_flatten_the_image():
    image = images()
    found = lib.columns(lib.rows({"image": image}))
    np.testing.assert_array_equal(found["rows"][:, 2], image[:, 2].reshape(4, 12))
    np.testing.assert_array_equal(found["columns"][:, 2], image[:, :, 2].reshape(4, 10))


@pytest.mark.parametrize("nearest", [True, False])
@pytest.mark.parametrize("steps", [1, 7, 30])
def test_strokes_equal_the_path_by_hand(steps, nearest):
    image = images(1)
    image[1] = 0  # no ink
    image[2, :, :, :] = np.where(image[2] > 220, 200, 0)  # equal amounts of ink
    order = lib.nearest_next if nearest else lib.by_scan
    found = lib.strokes({"image": image}, steps=steps, scan_order=order)
    for n in range(len(image)):
        expected, mask = path(image[n], steps, nearest=nearest)
        np.testing.assert_array_equal(found["strokes_mask"][n], mask)
        np.testing.assert_allclose(found["strokes"][n], expected, rtol=1e-5, atol=1e-6)
    assert not found["strokes_mask"][1].any()


def test_strokes_of_floats_equal_those_of_integers():
    image = images(2)
    one, other = (lib.strokes({"image": x}, steps=9) for x in (image, (image / 255).astype(np.float32)))
    np.testing.assert_allclose(one["strokes"], other["strokes"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_example_is_independent_of_its_batch(name):
    transform, image = TRANSFORMS[name], images(3)
    whole = jax.jit(transform)({"image": image})
    assert "image" in whole
    assert len(whole) > 1
    for n in range(len(image)):
        alone = transform({"image": image[n : n + 1]})
        for entry in whole:
            np.testing.assert_allclose(whole[entry][n], alone[entry][0], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_other_arrays_than_images_raise(name):
    with pytest.raises(ValueError, match=r"image: expected \[batch, height, width, channels\], got uint8\[4, 5, 6\]"):
        TRANSFORMS[name]({"image": images()[..., 0]})
    with pytest.raises(ValueError, match="entries \\['label'\\]"):
        TRANSFORMS[name]({"label": images()})


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="dimension: expected 1"):
        lib.halves({"image": images()}, dimension=3)
    for steps in (0, 31):
        with pytest.raises(ValueError, match="expected 1 to 30"):
            lib.strokes({"image": images()}, steps=steps)
