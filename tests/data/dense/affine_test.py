"""Random affine maps: image, mask, boxes and points move together, as functions of the example alone."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.data import dense

SIZE, HEIGHT, WIDTH, BOXES, JOINTS = 8, 10, 14, 3, 4
RANGES = {"scale": (0.6, 1.6), "rotation": 40.0, "shift": 0.2}
SWAP = ((0, 3),)
FILL = 7


def made(size=SIZE, seed=0):
    rng = np.random.default_rng(seed)
    # An image that is smooth but for its noise; three points of every example are the image's corners.
    corner = rng.uniform([0, 0], [WIDTH / 2, HEIGHT / 2], (size, BOXES, 2))
    sides = rng.uniform(2, 5, (size, BOXES, 2))
    points = rng.uniform([0, 0], [WIDTH, HEIGHT], (size, JOINTS, 2))
    points[:, :3] = [[0, 0], [WIDTH, 0], [0, HEIGHT]]
    return {
        "image": rng.integers(0, 256, (size, HEIGHT, WIDTH, 3), np.uint8),
        "label": rng.integers(0, 5, (size, HEIGHT, WIDTH), np.uint8),
        "boxes": np.concatenate([corner, corner + sides], -1).astype(np.float32) * [[[1], [1], [0]]],
        "box_label": rng.integers(0, 3, (size, BOXES)).astype(np.int32),
        "box_mask": np.tile([True, True, False], (size, 1)),
        "points": points.astype(np.float32),
        "point_mask": rng.random((size, JOINTS)) < 0.8,
        "index": np.arange(size, dtype=np.int32) + 40,
        "epoch": np.full(size, 2, np.int32),
    }


BATCH = {name: x.astype(np.float32) if x.dtype == np.float64 else x for name, x in made().items()}


@functools.cache
def jitted(**options):
    return jax.jit(functools.partial(dense.random_affine, **options))


def moved(batch=BATCH, **options):
    return jax.device_get(jitted(**{"seed": 0, "swap": SWAP, "fill": FILL, **RANGES, **options})(batch))


def maps(found):
    """Solves for the matrix and the offset of each example, float64, from where the corners of its image went."""
    results = []
    for points in found["points"].astype(np.float64):
        # Joints 0 and 3 are exchanged in a mirrored image, whose map has a negative determinant.
        for first, sign in ((0, 1), (3, -1)):
            origin = points[first]
            matrix = np.stack([(points[1] - origin) / WIDTH, (points[2] - origin) / HEIGHT], -1)
            if np.linalg.det(matrix) * sign > 0 and abs(matrix[:, 0] @ matrix[:, 1]) < 1e-3:
                results.append((matrix, origin))
                break
    assert len(results) == SIZE
    return results


def pixel(image, row, column, fill):
    inside = 0 <= row < HEIGHT and 0 <= column < WIDTH
    return image[row, column].astype(np.float64) if inside else np.full(image.shape[-1], float(fill))


def test_all_entries_move_by_one_map():
    """The map, solved from the points, gives the image, the mask and the boxes in NumPy."""
    found = moved()
    mirrored = 0
    for i, (matrix, offset) in enumerate(maps(found)):
        scale = np.sqrt(abs(np.linalg.det(matrix)))
        flip = np.diag([np.sign(np.linalg.det(matrix)), 1.0])
        turn = matrix @ flip / scale
        mirrored += flip[0, 0] < 0
        assert 0.6 - 1e-3 <= scale <= 1.6 + 1e-3 and np.allclose(turn @ turn.T, np.eye(2), atol=1e-3)
        assert abs(np.degrees(np.arctan2(turn[1, 0], turn[0, 0]))) <= 40 + 0.1
        center = np.array([WIDTH, HEIGHT]) / 2
        assert (abs(matrix @ center + offset - center) <= 0.2 * 2 * center + 0.1).all()
        order = [3, 1, 2, 0] if flip[0, 0] < 0 else [0, 1, 2, 3]
        points = (BATCH["points"][i] @ matrix.T + offset)[order]
        np.testing.assert_allclose(found["points"][i], points, atol=2e-4)
        inside = (points >= -1e-2).all(-1) & (points <= np.array([WIDTH, HEIGHT]) + 1e-2).all(-1)
        np.testing.assert_array_equal(found["point_mask"][i], BATCH["point_mask"][i][order] & inside)
        inverse = np.linalg.inv(matrix)
        for row in range(HEIGHT):
            for column in range(WIDTH):
                x, y = inverse @ (np.array([column + 0.5, row + 0.5]) - offset)
                left, top = int(np.floor(x - 0.5)), int(np.floor(y - 0.5))
                u, v = x - 0.5 - left, y - 0.5 - top
                expected = sum(
                    weight * pixel(BATCH["image"][i], top + down, left + right, FILL)
                    for down, right, weight in (
                        (0, 0, (1 - u) * (1 - v)), (0, 1, u * (1 - v)), (1, 0, (1 - u) * v), (1, 1, u * v)
                    )
                )  # fmt: skip
                assert np.abs(found["image"][i, row, column] - expected).max() <= 2.5  # of 255
                if min(abs(x - round(x)), abs(y - round(y))) > 1e-2:  # not at the edge of a pixel
                    inside = 0 < x < WIDTH and 0 < y < HEIGHT
                    label = BATCH["label"][i, int(np.floor(y)), int(np.floor(x))] if inside else 255
                    assert found["label"][i, row, column] == label
        for n in range(BOXES):
            x0, y0, x1, y1 = BATCH["boxes"][i, n]
            corners = np.array([[x0, y0], [x1, y0], [x0, y1], [x1, y1]]) @ matrix.T + offset
            box = np.concatenate([corners.min(0), corners.max(0)])
            cut = np.clip(box, 0, [WIDTH, HEIGHT, WIDTH, HEIGHT])
            there = BATCH["box_mask"][i, n] and (cut[2:] > cut[:2] + 1e-2).all()
            assert found["box_mask"][i, n] == there
            np.testing.assert_allclose(found["boxes"][i, n], cut if there else np.zeros(4), atol=2e-3)
            assert found["box_label"][i, n] == (BATCH["box_label"][i, n] if there else 0)
    assert 0 < mirrored < SIZE
    assert {name: x.dtype for name, x in found.items()} == {name: x.dtype for name, x in BATCH.items()}


def test_mirrored_images_are_exact():
    found = jax.device_get(jitted(seed=0, swap=SWAP)(BATCH))
    mirrored = [not np.array_equal(a, b) for a, b in zip(found["image"], BATCH["image"], strict=True)]
    assert 0 < sum(mirrored) < SIZE
    for i, flip in enumerate(mirrored):
        step, order = (-1, [3, 1, 2, 0]) if flip else (1, [0, 1, 2, 3])
        for name in ("image", "label"):
            np.testing.assert_array_equal(found[name][i], BATCH[name][i][:, ::step])
        points, boxes = BATCH["points"][i][order], BATCH["boxes"][i]
        if flip:
            points = np.stack([np.float32(WIDTH) - points[:, 0], points[:, 1]], -1)
            boxes = np.stack([WIDTH - boxes[:, 2], boxes[:, 1], WIDTH - boxes[:, 0], boxes[:, 3]], -1)
        np.testing.assert_array_equal(found["points"][i], points)
        np.testing.assert_array_equal(found["point_mask"][i], BATCH["point_mask"][i][order])  # corners stay inside
        np.testing.assert_array_equal(found["boxes"][i], np.where(BATCH["box_mask"][i][:, None], boxes, 0))
        np.testing.assert_array_equal(found["box_mask"][i], BATCH["box_mask"][i])


@pytest.mark.slow
def test_twice_the_size_by_hand():
    """The middle of the image remains; a pixel lies at 1/4 and 3/4 between old ones."""
    image = np.tile(np.float32([0, 4, 8, 12]), (1, 4, 1))[..., None]
    boxes = np.float32([[[0, 0, 4, 4], [1, 1, 2, 2], [0, 0, 1, 4], [0, 1, 1.5, 3]]])
    batch = {"image": image, "boxes": boxes, "index": np.zeros(1, int), "epoch": np.zeros(1, int)}
    batch |= {"points": np.float32([[[2, 2], [1, 1], [0.5, 2]]])}
    found = jitted(seed=0, flip=False, scale=(2.0, 2.0))(batch)
    assert found["image"][0, 0, :, 0].tolist() == [3, 5, 7, 9]
    assert found["boxes"][0].tolist() == [[0, 0, 4, 4], [0, 0, 2, 2], [0, 0, 0, 0], [0, 0, 1, 4]]
    assert found["box_mask"][0].tolist() == [True, True, False, True]  # one touches the edge, one remains at it
    assert found["points"][0].tolist() == [[2, 2], [0, 0], [-1, 2]]
    assert found["point_mask"][0].tolist() == [True, True, False]


@pytest.mark.slow
def test_pixels_from_outside_are_filled():
    batch = {"image": np.full((6, 8, 8, 2), 200, np.uint8), "label": np.ones((6, 8, 8), np.int32)}
    batch |= {"index": np.arange(6), "epoch": np.zeros(6, int)}
    found = jitted(seed=0, flip=False, scale=(0.5, 0.5), fill=(10, 0))(batch)
    np.testing.assert_array_equal(found["image"][:, 2:6, 2:6], batch["image"][:, 2:6, 2:6])
    np.testing.assert_array_equal(found["image"][:, :2], np.broadcast_to(np.uint8([10, 0]), (6, 2, 8, 2)))
    assert found["label"].dtype == np.int32 and (np.asarray(found["label"]) == 255).sum() == 6 * 48


def rows(batch, order):
    return {name: x[np.asarray(order)] for name, x in batch.items()}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, x in found.items():
        if x.dtype.kind == "f":
            np.testing.assert_allclose(x, expected[name], atol=1e-4)
        else:
            np.testing.assert_array_equal(x, expected[name])


def test_a_draw_is_the_examples_own():
    """The order of the batch does not change an example; the epoch does."""
    found = moved()
    order = np.random.default_rng(1).permutation(SIZE)
    same(moved(rows(BATCH, order)), rows(found, order))
    assert not np.array_equal(moved(BATCH | {"epoch": BATCH["epoch"] + 1})["image"], found["image"])


@pytest.mark.slow
def test_a_draw_depends_on_seed_and_view_but_not_on_the_size_of_a_batch():
    found = moved()
    same(moved(rows(BATCH, [5, 2])), rows(found, [5, 2]))
    for others in (moved(seed=1), moved(view=1)):
        assert not np.array_equal(others["image"], found["image"])


@pytest.mark.slow
def test_programs_of_one_and_several_devices_are_equal():
    """Pixels and masks are the same bits in an optimized program, without one, by pmap and on a mesh."""
    options = {"seed": 0, "swap": SWAP, "fill": FILL, **RANGES}
    found = moved()
    same(jax.device_get(dense.random_affine(BATCH, **options)), found)  # operation by operation
    transform = functools.partial(dense.random_affine, **options)
    split = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), BATCH)
    by_pmap = jax.pmap(transform)(split)
    same({name: np.asarray(x).reshape(SIZE, *x.shape[2:]) for name, x in by_pmap.items()}, found)
    for kind in (jax.sharding.AxisType.Auto, jax.sharding.AxisType.Explicit):
        mesh = jax.make_mesh((4,), ("data",), axis_types=(kind,))
        placed = jax.device_put(BATCH, jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data")))
        with jax.set_mesh(mesh):
            same(jax.device_get(jax.jit(transform)(placed)), found)
        by_map = jax.shard_map(
            transform, mesh=mesh, in_specs=jax.sharding.PartitionSpec("data"),
            out_specs=jax.sharding.PartitionSpec("data"),
        )  # fmt: skip
        same(jax.device_get(jax.jit(by_map)(placed)), found)


@pytest.mark.slow
def test_frames_of_a_clip_have_one_map():
    clips = {name: x for name, x in BATCH.items() if name not in ("index", "epoch")}
    clips = {name: x.reshape(2, 4, *x.shape[1:]) for name, x in clips.items()}
    clips |= {"index": np.int32([41, 47]), "epoch": np.full(2, 2, np.int32), "clip": np.int32([3, 4])}
    found = moved(clips)
    frames = moved(BATCH | {"index": np.repeat(clips["index"], 4), "epoch": np.repeat(clips["epoch"], 4)})
    assert found.keys() == clips.keys() and found["clip"].tolist() == [3, 4]
    for name in frames.keys() - {"index", "epoch"}:
        np.testing.assert_array_equal(found[name], frames[name].reshape(clips[name].shape))


@pytest.mark.slow
def test_float_images_are_not_rounded_and_keep_their_type():
    found = moved()
    batch = BATCH | {"image": BATCH["image"].astype(np.float32)}
    floats = moved(batch)["image"]
    assert floats.dtype == np.float32
    np.testing.assert_allclose(floats, found["image"], atol=0.5001)
    assert moved(batch | {"image": jnp.asarray(batch["image"], jnp.bfloat16)})["image"].dtype == jnp.bfloat16


@pytest.mark.slow
def test_images_alone_suffice():
    alone = {name: BATCH[name] for name in ("image", "index", "epoch")}
    found = moved(alone)
    assert found.keys() == alone.keys()
    np.testing.assert_array_equal(found["image"], moved()["image"])
    assert moved(alone | {"label": np.arange(SIZE)})["label"].tolist() == list(range(SIZE))  # a class of the image


@pytest.mark.parametrize(
    ("batch", "options", "message"),
    [
        ({}, {"scale": (0.0, 1.0)}, r"scale: expected 0 < smallest <= largest, got \(0.0, 1.0\)"),
        ({}, {"rotation": 200.0}, "rotation: expected 0 to 180 degrees, got 200.0"),
        ({}, {"shift": -0.1}, "shift: expected a share of the image from 0 to 1, got -0.1"),
        ({}, {"swap": ((0, 1), (1, 2))}, "swap: expected disjoint pairs of joints from 0 to 3"),
        ({}, {"swap": ((0, 4),)}, "swap: expected disjoint pairs of joints from 0 to 3"),
        ({}, {"fill": 0.5}, "fill: expected values of the image's uint8, got 0.5"),
        ({}, {"fill": (1, 2)}, "fill: expected one number or 3"),
        ({"image": BATCH["image"].astype(np.int32)}, {}, "image: expected uint8, uint16 or floating point, got int32"),
        ({"label": BATCH["label"][:, 1:]}, {}, r"label: expected integers \[8, 10, 14\], got uint8\[8, 9, 14\]"),
        ({"boxes": BATCH["points"]}, {}, r"boxes: expected \[8, 4, 4\], got float32\[8, 4, 2\]"),
        ({"box_mask": BATCH["box_mask"][:, 1:]}, {}, r"box_mask: expected bool\[8, 3\], got bool\[8, 2\]"),
        ({"points": BATCH["boxes"]}, {}, r"points: expected \[8, 3, 2\], got float32\[8, 3, 4\]"),
        ({"point_mask": BATCH["box_mask"]}, {}, r"point_mask: expected bool\[8, 4\], got bool\[8, 3\]"),
        ({"image": np.zeros((8, 2, 4, 14, 3))}, {}, r"label: expected \[batch, frames, ...\] beside clips, \[8, 2\]"),
    ],
)  # fmt: skip
def test_what_is_refused(batch, options, message):
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(functools.partial(dense.random_affine, seed=0, **options), BATCH | batch)


def test_images_beyond_the_arithmetic_are_refused():
    large = {"image": jax.ShapeDtypeStruct((1, 60_000, 60_000, 1), np.uint8)}
    large |= {name: jax.ShapeDtypeStruct((1,), np.int32) for name in ("index", "epoch")}
    with pytest.raises(ValueError, match=r"60000x60000 pixels, scaled by 0\.1 and shifted by 0\.0, exceed its"):
        jax.eval_shape(functools.partial(dense.random_affine, seed=0, scale=(0.1, 1.0)), large)
