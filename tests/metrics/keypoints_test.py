"""PCK against NumPy: radius, references, masks, ragged batches and predictions from heatmaps."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import dense, metrics
from jaxkd.types import Context

RNG = np.random.default_rng(0)
SIZE, JOINTS = 7, 4
TRUE = RNG.uniform(0, 20, (SIZE, JOINTS, 2)).astype(np.float32)
VISIBLE = RNG.random((SIZE, JOINTS)) < 0.7
VISIBLE[:, 3] = False  # a joint that no example has
VISIBLE[0], VISIBLE[1] = False, [True, False, False, False]  # no joints, and no extent
FOUND = TRUE + RNG.normal(0, 3, TRUE.shape).astype(np.float32)
THEIRS = TRUE + RNG.normal(0, 1, TRUE.shape).astype(np.float32)
MASK = np.arange(SIZE) != 4
LENGTH = RNG.uniform(2, 20, SIZE).astype(np.float32)


def context(rows=slice(None), mask=MASK, **student):
    batch = {"points": np.where(VISIBLE[..., None], TRUE, np.nan), "point_mask": VISIBLE, "mask": mask}
    batch |= {"image": np.zeros((SIZE, 24, 16, 3), np.uint8), "size": LENGTH}
    batch = {name: jnp.asarray(x[rows]) for name, x in batch.items()}
    return Context({"points": jnp.asarray(FOUND[rows])} | student, {"points": jnp.asarray(THEIRS[rows])}, batch, step=0)


def length(reference, i):
    if reference == "image":
        return 24.0
    if reference == "batch/size":
        return float(LENGTH[i])
    points = TRUE[i][VISIBLE[i]].astype(np.float64)
    if reference == "extent":
        return float((points.max(0) - points.min(0)).max()) if len(points) else 0.0
    a, b = reference
    return float(np.linalg.norm(TRUE[i, a] - TRUE[i, b])) if VISIBLE[i, a] and VISIBLE[i, b] else 0.0


def pck(points, reference, radius):
    right: list[list[bool]] = [[] for _ in range(JOINTS)]
    for i in range(SIZE):
        for j in range(JOINTS):
            if MASK[i] and VISIBLE[i, j] and length(reference, i) > 0:
                right[j].append(np.linalg.norm(points[i, j] - TRUE[i, j]) <= radius * length(reference, i))
    return [np.mean(x) if x else np.nan for x in right]


SLOWLY = (pytest.param(reference, marks=pytest.mark.slow) for reference in ("image", "batch/size", (0, 2)))


@pytest.mark.parametrize("reference", ["extent", *SLOWLY], ids=str)
def test_pck_equals_numpy_in_ragged_batches(reference):
    found: dict = {}
    for rows in (slice(0, 1), slice(1, 5), slice(5, 7)):  # the first one has no joint
        measured = jax.jit(functools.partial(metrics.keypoints, radius=0.2, reference=reference))(context(rows))
        found = metrics.merge(found, measured)
    expected, theirs = (pck(points, reference, 0.2) for points in (FOUND, THEIRS))
    computed = metrics.compute(found)
    assert [computed[f"pck/{j}"] for j in range(JOINTS)] == pytest.approx(expected, nan_ok=True)
    assert computed["pck"] == pytest.approx(np.nanmean(expected))
    assert computed["teacher_pck"] == pytest.approx(np.nanmean(theirs))


@pytest.mark.slow
def test_nothing_counts_where_all_is_masked():
    found = metrics.keypoints(context(mask=np.zeros(SIZE, bool)), radius=0.2, reference="image")
    assert all(np.isnan(value) for value in metrics.compute(found).values())


@pytest.mark.slow
def test_heatmaps_of_any_stride_are_read_by_their_peaks():
    true = np.float32([[[5.0, 9.0], [11.0, 3.0]]])
    batch = {"points": true, "point_mask": np.ones((1, 2), bool), "image": np.zeros((1, 24, 16, 3), np.uint8)}
    heatmaps = dense.draw_heatmaps(jnp.asarray(true) * jnp.array([0.5, 0.25])[None, None], (6, 8), stride=1.0)
    found = metrics.keypoints(Context({"heatmaps": heatmaps}, {}, batch, 0), radius=0.1, reference="image")
    assert metrics.compute(found)["pck"] == 1.0
    wrong = metrics.keypoints(Context({"heatmaps": heatmaps[..., ::-1]}, {}, batch, 0), radius=0.1, reference="image")
    assert metrics.compute(wrong)["pck"] == 0.0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"radius": 0.0}, "radius: expected a positive share of the reference length, got 0.0"),
        (
            {"reference": "torso"},
            "reference: expected 'extent', 'image', 'batch/NAME' or a pair of joints, got 'torso'",
        ),
        ({"reference": (0, 4)}, r"reference: expected two of 4 joints, got \(0, 4\)"),
        ({"reference": "batch/points"}, r"batch/points: expected a length \[batch\], \[7\], got float32\[7, 4, 2\]"),
        ({"joint_names": ("a", "b")}, "joint_names: expected a different name for each of 4 joints"),
    ],
)
def test_options_that_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        metrics.keypoints(context(), **{"radius": 0.2, "reference": "extent"} | options)


def test_other_outputs_are_refused():
    with pytest.raises(ValueError, match=r"expected points \[7, 4, 2\] of the model, got float32\[7, 3, 2\]"):
        metrics.keypoints(context(points=jnp.asarray(FOUND[:, :3])), radius=0.2, reference="extent")
    with pytest.raises(ValueError, match="keypoints, output 'heatmaps': there is no such name"):
        metrics.keypoints(context()._replace(student={"logits": jnp.zeros(7)}), radius=0.2, reference="extent")
    with pytest.raises(ValueError, match=r"point_mask bool\[batch, joints\], got .* and float32\[7, 4\]"):
        given = context()
        wrong = {**given.batch, "point_mask": jnp.ones((7, 4))}
        metrics.keypoints(given._replace(batch=wrong), radius=0.2, reference="extent")
