"""Average precision against a reference in NumPy and cases by hand."""

import itertools
import sys

import numpy as np
import pytest

import jaxkd
from jaxkd import data, dense, metrics, training

OVERLAPS, RECALLS = np.linspace(0.5, 0.95, 10), np.linspace(0, 1, 101)


def overlap(a, b):
    low, high = np.maximum(a[:2], b[:2]), np.minimum(a[2:], b[2:])
    common = np.prod(np.maximum(high - low, 0))
    return common / (np.prod(a[2:] - a[:2]) + np.prod(b[2:] - b[:2]) - common)


def reference(found, true, label, most=100):
    """Returns the precision at each overlap of one class, ``[10]``, from the definition."""
    total = sum(
        int(mask and name == label) for row in zip(true["box_label"], true["box_mask"], strict=True)
        for name, mask in zip(*row, strict=True)
    )  # fmt: skip
    if not total:
        return np.full(10, np.nan)
    result = []
    for least in OVERLAPS:
        outcomes = []
        for i in range(len(true["boxes"])):
            left = [
                n for n in range(true["boxes"].shape[1]) if true["box_mask"][i, n] and true["box_label"][i, n] == label
            ]
            mine = [n for n in range(found["boxes"].shape[1]) if found["mask"][i, n] and found["labels"][i, n] == label]
            for n in sorted(mine, key=lambda n: -found["scores"][i, n])[:most]:
                scored = [(overlap(found["boxes"][i, n], true["boxes"][i, m]), m) for m in left]
                best = max(scored, default=(0, None))
                outcomes.append((found["scores"][i, n], best[0] >= least))
                if best[0] >= least:
                    left.remove(best[1])
        outcomes.sort(key=lambda pair: -pair[0])
        hits = np.cumsum([hit for _, hit in outcomes])
        precision = hits / np.arange(1, len(hits) + 1)
        recall = hits / total
        result.append(np.mean([max(precision[recall >= r], default=0) for r in RECALLS]))
    return np.array(result)


def made(images=12, found=9, true=6, classes=3, seed=0):
    rng = np.random.default_rng(seed)

    def boxes(n):
        corner = rng.uniform(0, 30, (images, n, 2))
        return np.concatenate([corner, corner + rng.uniform(4, 20, (images, n, 2))], -1)

    truth = {
        "boxes": boxes(true),
        "box_label": rng.integers(0, classes, (images, true)),
        "box_mask": rng.random((images, true)) < 0.7,
    }
    truth["box_mask"][3] = truth["box_mask"][7] = False  # images without objects
    # Detections near the true boxes, and others.
    near = truth["boxes"][:, rng.integers(0, true, found)] + rng.normal(0, 0.8, (images, found, 4))
    detections = {
        "boxes": near,
        "scores": rng.random((images, found)).astype(np.float32),
        "labels": rng.integers(0, classes, (images, found)),
        "mask": rng.random((images, found)) < 0.8,
    }
    detections["mask"][7] = False  # nothing at all
    return detections, truth


@pytest.mark.parametrize("seed", [0, 1])
def test_it_equals_the_reference(seed):
    detections, truth = made(seed=seed)
    computed = metrics.average_precision(detections, truth)
    by_class = np.stack([reference(detections, truth, label) for label in range(3)])
    assert [computed[f"ap/{label}"] for label in range(3)] == pytest.approx(by_class.mean(1), abs=1e-9)
    assert computed["ap"] == pytest.approx(by_class.mean(), abs=1e-9) and 0.02 < computed["ap"] < 0.9
    assert [computed["ap50"], computed["ap75"]] == pytest.approx(by_class[:, [0, 5]].mean(0), abs=1e-9)


def test_batches_padding_and_the_order_of_images_change_nothing():
    detections, truth = made()
    expected = metrics.average_precision(detections, truth)
    parts = [slice(0, 5), slice(5, 10), slice(10, 12)]
    # The last batch of the truth is filled up with other rows, which predict leaves out.
    filled = {name: np.concatenate([x[10:], x[:3]]) for name, x in truth.items()} | {"mask": np.arange(5) < 2}
    batches = [{name: x[part] for name, x in truth.items()} | {"mask": np.ones(5, bool)} for part in parts[:2]]
    outputs = ({"logits": 0, **{name: x[part] for name, x in detections.items()}} for part in parts)
    assert metrics.average_precision(outputs, [*batches, filled]) == expected
    order = np.random.default_rng(1).permutation(12)
    shuffled = ({name: x[order] for name, x in given.items()} for given in (detections, truth))
    assert metrics.average_precision(*shuffled) == pytest.approx(expected)

    def padded(given):
        return {name: np.concatenate([x, 7 * np.ones_like(x[:, :2]) if "mask" not in name else x[:, :2] < 0], 1)
                for name, x in given.items()}  # fmt: skip

    assert metrics.average_precision(padded(detections), padded(truth)) == expected


@pytest.mark.slow
def test_predictions_of_a_padded_loader_are_those_of_the_set():
    """The last batch is filled up with other images, which are evaluated once."""
    detections, truth = made(images=11)
    stored = {f"found/{name}": x.astype(np.float32) if x.dtype.kind == "f" else x for name, x in detections.items()}
    loader = data.Resident({**stored, **{f"true/{name}": x for name, x in truth.items()}}, batch_size=4, shuffle=False)
    assert loader.padded
    model = jaxkd.Model(
        lambda key, batch: jaxkd.Variables({}),
        lambda variables, batch, key, train: ({name: batch[f"found/{name}"] for name in detections}, {}),
    )
    outputs = training.predict(model, jaxkd.Variables({}), loader)
    expected = metrics.average_precision({name: stored[f"found/{name}"] for name in detections}, truth)
    assert metrics.average_precision(outputs, truth) == expected
    batches = ({name: batch[f"true/{name}"] for name in truth} | {"mask": batch["mask"]} for batch in loader.batches())
    truths = itertools.islice(batches, loader.steps_per_epoch)
    outputs = training.predict(model, jaxkd.Variables({}), loader)
    assert metrics.average_precision(outputs, truths) == pytest.approx(expected)


def one(boxes, scores, labels, true, classes):
    detections = {"boxes": np.float32([boxes]).reshape(1, -1, 4), "scores": np.float32([scores])}
    detections |= {"labels": np.int32([labels]), "mask": np.ones((1, len(scores)), bool)}
    truth = {"boxes": np.float32([true]).reshape(1, -1, 4), "box_label": np.int32([classes])}
    return detections, truth | {"box_mask": np.ones((1, len(classes)), bool)}


BOX, OTHER = [0, 0, 10, 10], [20, 20, 30, 30]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (one([BOX], [0.5], [0], [BOX], [0]), 1.0),
        (one([BOX, OTHER], [0.5, 0.9], [0, 0], [BOX], [0]), 0.5),  # a wrong one before the right one
        (one([BOX, OTHER], [0.9, 0.5], [0, 0], [BOX], [0]), 1.0),  # ... and after it
        (one([BOX, BOX], [0.9, 0.5], [0, 0], [BOX, OTHER], [0, 0]), 51 / 101),  # a second one is wrong; recall 1/2
        (one([[0, 0, 10, 8]], [0.5], [0], [BOX], [0]), 0.7),  # an overlap of 0.8 is enough seven times
        (one([BOX], [0.5], [1], [BOX], [0]), 0.0),  # another class; class 1 has no box and is left out
        (one([], [], [], [BOX], [0]), 0.0),
        (one([BOX], [0.5], [0], [], []), float("nan")),  # no truth at all
    ],
)
def test_cases_by_hand(given, expected):
    assert metrics.average_precision(*given)["ap"] == pytest.approx(expected, nan_ok=True, abs=1e-6)


def test_detections_in_images_without_objects_are_wrong_ones():
    detections, truth = one([BOX], [0.5], [0], [BOX], [0])
    two = {name: np.concatenate([x, x]) for name, x in truth.items()}
    two["box_mask"][1] = False
    found = {name: np.concatenate([x, x]) for name, x in detections.items()}
    found["scores"][1] = 0.9
    assert metrics.average_precision(found, two)["ap"] == pytest.approx(0.5)


def test_names_and_the_largest_number_of_detections():
    detections, truth = one([OTHER, BOX], [0.9, 0.5], [0, 0], [BOX], [0])
    found = metrics.average_precision(detections, truth, class_names=("cell", "other"), max_detections=1)
    assert found == pytest.approx(
        {"ap": 0.0, "ap50": 0.0, "ap75": 0.0, "ap/cell": 0.0, "ap/other": np.nan}, nan_ok=True
    )


def test_detections_may_be_those_of_a_detector():
    detections, truth = one([BOX], [0.5], [0], [BOX], [0])
    detected = dense.Detections(**detections)
    assert metrics.average_precision(detected, truth) == metrics.average_precision(detections, truth)


def test_nothing_is_printed(capsys):
    metrics.average_precision(*one([BOX], [0.5], [0], [BOX], [0]))
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"scores": None},
            r"detections: expected \['boxes', 'labels', 'mask', 'scores'\], got .* without \['scores'\]",
        ),
        ({"scores": np.array([[np.nan]], np.float32)}, "detections: 1 of 1 boxes or scores are not finite"),
        (
            {"labels": np.array([[-1]], np.int32)},
            "detections: expected integer classes from 0 on, got int32 from -1 on",
        ),
        ({"labels": np.array([[1]], np.float32)}, "detections: expected integer classes from 0 on, got float32"),
        (
            {"labels": np.array([[0, 1]], np.int32)},
            r"expected boxes \[images, n, 4\] and the others \[images, n\], got",
        ),
        (
            {"labels": np.array([[2]], np.int32)},
            r"class_names: expected a name for each of 3 classes, got \('a', 'b'\)",
        ),
    ],
)
def test_what_is_refused(changed, message):
    detections, truth = one([BOX], [0.5], [0], [BOX], [0])
    detections = {name: x for name, x in (detections | changed).items() if x is not None}
    with pytest.raises(ValueError, match=message):
        metrics.average_precision(detections, truth, class_names=("a", "b"))


def test_sets_of_unlike_sizes_are_refused():
    detections, truth = one([BOX], [0.5], [0], [BOX], [0])
    with pytest.raises(ValueError, match="detections for each of the 1 images of the truth, got 2"):
        metrics.average_precision([detections, detections], truth)
    with pytest.raises(ValueError, match="truth: expected at least one image, got none"):
        metrics.average_precision(detections, [])
    with pytest.raises(ValueError, match="max_detections: expected at least 1, got 0"):
        metrics.average_precision(detections, truth, max_detections=0)


def test_the_extra_is_named(monkeypatch):
    for module in ("pycocotools.coco", "pycocotools.cocoeval", "pycocotools"):
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=r'average_precision needs .*pip install "jaxkd-toolkit\[dense\]"'):
        metrics.average_precision(*one([BOX], [0.5], [0], [BOX], [0]))
