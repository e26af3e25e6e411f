"""Sets of boxes, masks and key points as arrays and one by one, and what is refused."""

import pickle

import jax
import numpy as np
import pytest

from jaxkd import data
from jaxkd.data import dense


def image(height=4, width=8, value=None):
    return np.full((height, width, 3), value or 0, np.uint8)


def objects(*boxes, **more):
    return {"bbox": np.float32(boxes).reshape(-1, 4), "label": np.arange(len(boxes)), **more}


ROWS = [
    {
        "image": image(value=n),
        "image/filename": b"x",
        "objects": objects(*[[0.0, 0.25 * i, 0.5, 0.25 * i + 0.5] for i in range(n)]),
        "segmentation_mask": np.full((4, 8, 1), n, np.uint8),
        "keypoints": np.array([[0, 0], [8, 4], [3, np.nan], [9, 1]], np.float32),
        "visible": np.array([True, True, True, True]),
        "frame": 10 + n,
        "camera": np.array([n, 0.5], np.float64),
        "labels": np.arange(n),
        "label": n,
    }
    for n in range(3)
]


def test_every_field_becomes_its_entries():
    found = dense.arrays(ROWS, max_boxes=3)
    assert {name: (x.dtype.name, x.shape) for name, x in found.items()} == {
        "index": ("int32", (3,)),
        "image": ("uint8", (3, 4, 8, 3)),
        "boxes": ("float32", (3, 3, 4)),
        "box_label": ("int32", (3, 3)),
        "box_mask": ("bool", (3, 3)),
        "label": ("uint8", (3, 4, 8)),
        "points": ("float32", (3, 4, 2)),
        "point_mask": ("bool", (3, 4)),
        "frame": ("int32", (3,)),
        "camera": ("float32", (3, 2)),
        "image_label": ("int32", (3,)),
    }
    assert found["boxes"][2].tolist() == [[0, 0, 4, 2], [2, 0, 6, 2], [0, 0, 0, 0]]
    assert found["box_label"].tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0]]
    assert found["box_mask"].sum(1).tolist() == [0, 1, 2]  # an image without objects is one of the set
    assert found["points"][0].tolist() == [[0, 0], [8, 4], [0, 0], [9, 1]]
    assert found["point_mask"][0].tolist() == [True, True, False, False]  # unknown, and outside of the image
    assert found["frame"].tolist() == [10, 11, 12] and found["label"][:, 0, 0].tolist() == [0, 1, 2]


@pytest.mark.parametrize("unlabeled", [("objects",), ("segmentation_mask", "keypoints", "visible", "objects")])
def test_annotations_may_be_absent(unlabeled):
    found = dense.arrays([{name: x for name, x in row.items() if name not in unlabeled} for row in ROWS])
    whole = dense.arrays(ROWS)
    made = {"objects": {"boxes", "box_label", "box_mask"}, "segmentation_mask": {"image_label"}}
    made["keypoints"] = {"points", "point_mask"}
    assert whole.keys() - found.keys() == set().union(*(made.get(name, set()) for name in unlabeled))
    np.testing.assert_array_equal(found["image"], whole["image"])


def test_too_many_objects_are_counted():
    message = r"max_boxes: 2 of 3 images have more than 0 objects; example 2 has the most, 2. Pass max_boxes=2"
    with pytest.raises(ValueError, match=message):
        dense.arrays(ROWS, max_boxes=0)
    lazy = dense.examples(ROWS, max_boxes=1)
    assert lazy[1]["box_mask"].tolist() == [True]
    with pytest.raises(ValueError, match="example 2 has 2 objects, more than 1"):
        lazy[2]
    assert dense.arrays(ROWS, max_boxes=2)["boxes"].shape == (3, 2, 4)


def test_boxes_are_cut_and_crowds_left_out():
    boxes = [[-0.25, 0.5, 0.5, 1.25], [0.5, 0.5, 0.5, 0.75], [0.0, 0.0, 1.0, 1.0], [0.0, 0.0, 1.0, 0.5]]
    row = {"image": image(), "objects": objects(*boxes, is_crowd=[False, False, True, False])}
    found = dense.arrays([row], max_boxes=4)
    assert found["boxes"][0].tolist() == [[4, 0, 8, 2], [0, 0, 4, 4], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert found["box_label"][0].tolist() == [0, 3, 0, 0]
    no_classes = {"image": image(), "objects": {"bbox": boxes[3:]}}
    assert dense.arrays([no_classes])["box_label"][0].tolist() == [0] * 32


def test_visibility_may_be_a_third_column():
    row = {"image": image(), "keypoints": np.float32([[1, 2, 0], [3, 1, 1], [2, 2, 2], [9, 1, 2]])}
    found = dense.arrays([row])
    assert found["points"][0].tolist() == [[1, 2], [3, 1], [2, 2], [9, 1]]
    assert found["point_mask"][0].tolist() == [False, True, True, False]  # the last one is outside of the image
    with pytest.raises(ValueError, match=r"expected a visibility of 0, 1 or 2, got \[0.5"):
        dense.arrays([{**row, "keypoints": np.float32([[1, 2, 0.5]])}])


def test_images_of_several_sizes_get_one():
    rows = [
        {
            "image": np.repeat(np.arange(width, dtype=np.uint8)[None, :, None], height, 0).repeat(3, 2),
            "segmentation_mask": np.arange(width)[None].repeat(height, 0),
            "objects": objects([0.0, 0.5, 1.0, 1.0]),
            "keypoints": np.float32([[width, height], [0, height / 2]]),
        }
        for height, width in ((4, 8), (2, 2), (3, 16))
    ]
    with pytest.raises(ValueError, match=r"arrays, image: 3 shapes in one set, such as \[2, 2, 3\] and \[4, 8, 3\]"):
        dense.arrays(rows)
    found = dense.arrays(rows, size=(2, 4), max_boxes=1)
    assert found["boxes"].tolist() == [[[2, 0, 4, 2]]] * 3
    assert found["points"].tolist() == [[[4, 2], [0, 1]]] * 3
    assert found["label"].dtype == np.int32 and found["label"][:, 0].tolist() == [
        [1, 3, 5, 7],
        [0, 0, 1, 1],
        [2, 6, 10, 14],
    ]
    # Halved: a triangle over four pixels, of weights 1/8, 3/8, 3/8, 1/8; at the edge those of the image, of sum 1.
    edge = (0 * 3 + 1 * 3 + 2 * 1) / 7
    np.testing.assert_allclose(found["image"][0, 0, :, 0], [edge, 2.5, 4.5, 7 - edge], atol=0.5)
    assert found["image"][1, 0, :, 0].tolist() == [0, 0, 1, 1]  # 0, 1/4, 3/4, 1
    np.testing.assert_array_equal(dense.arrays(ROWS, size=(4, 8))["image"], dense.arrays(ROWS)["image"])


@pytest.mark.slow
def test_resized_floats_equal_the_filter_of_jax():
    rng = np.random.default_rng(0)
    for old, new in (((7, 5), (3, 9)), ((4, 6), (8, 4)), ((9, 9), (2, 5))):
        values = rng.random((*old, 2)).astype(np.float32)
        expected = jax.image.resize(values, (*new, 2), "linear")
        np.testing.assert_allclose(dense.arrays([{"image": values}], size=new)["image"][0], expected, atol=1e-6)


def test_examples_are_those_of_the_arrays_one_by_one():
    whole = dense.arrays(ROWS, max_boxes=3)
    lazy = pickle.loads(pickle.dumps(dense.examples(ROWS, max_boxes=3)))
    assert len(lazy) == 3 and "max_boxes=3" in repr(lazy)
    together = lazy.__getitems__([2, 0])
    for n, example in ((2, together[0]), (0, together[1]), (1, lazy[1])):
        assert example.keys() == whole.keys() - {"index"}
        for name, x in example.items():
            np.testing.assert_array_equal(x, whole[name][n])
            assert x.dtype == whole[name].dtype


def test_a_stream_has_the_batches_of_resident_mode():
    options = {"batch_size": 2, "seed": 3, "epochs": 2}
    resident = data.Resident(dense.arrays(ROWS, max_boxes=3, size=(2, 4)), **options)
    stream = data.Stream(dense.examples(ROWS, max_boxes=3, size=(2, 4)), **options)
    batches = list(zip(stream, resident, strict=True))
    assert len(batches) == 4
    for one, other in batches:
        assert one.keys() == other.keys()
        for name, x in one.items():
            np.testing.assert_array_equal(x, other[name])
            assert x.dtype == other[name].dtype


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"image": np.zeros((4, 8))}, r"image: expected \[height, width, channels\], got \[4, 8\]"),
        ({"objects": [1]}, r"expected a dict of 'bbox' \[n, 4\] and 'label' \[n\].* got list"),
        ({"objects": {"bbox": [[0, 0, 1, 1]], "label": [0, 1]}}, "a label for each of 1 boxes, got 2"),
        ({"objects": objects([0, 0, 64, 64])}, r"shares of the image from 0 to 1, got values from 0.0 to 64.0"),
        ({"objects": {"bbox": [[0, 0, 1, 1]], "label": [-1]}}, "classes of at least 0, got -1"),
        ({"segmentation_mask": np.zeros((2, 4), int)}, r"expected integers \[4, 8\] or \[4, 8, 1\], the size of the"),
        ({"segmentation_mask": np.zeros((4, 8))}, r"the size of the image, got float64\[4, 8\]"),
        ({"keypoints": np.zeros((4, 4))}, r"or \(x, y, visibility\) \[joints, 3\], got \[4, 4\]"),
        ({"keypoints": np.zeros((4, 3))}, "expected one visibility, got a third column of keypoints and visible"),
        ({"visible": np.ones(3, bool)}, r"visible: expected \[4\], got \[3\]"),
        ({"boxes": 3}, r"no entry named \['boxes'\]"),
    ],
)
def test_what_is_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        dense.arrays([row | changed for row in ROWS])


def test_sets_of_unlike_examples_are_refused():
    with pytest.raises(ValueError, match="at least one example, got none"):
        dense.arrays([])
    with pytest.raises(ValueError, match="at least one example, got none"):
        dense.examples([])
    with pytest.raises(ValueError, match=r"expected an 'image', got entries \['picture'\]"):
        dense.arrays([{"picture": image()}])
    with pytest.raises(ValueError, match=r"example 1 has .* Read labeled and unlabeled examples as two sets"):
        dense.arrays([ROWS[0], {"image": image()}])
