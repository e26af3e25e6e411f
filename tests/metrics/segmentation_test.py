"""Intersection over union by class: merged exactly, however a set is divided."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import metrics
from jaxkd.types import Context

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(8, 3, 5, 4)).astype(np.float32)
LOGITS[..., 3] = -9  # never predicted
LABEL = RNG.integers(0, 3, (8, 3, 5)).astype(np.uint8)
LABEL[RNG.random(LABEL.shape) < 0.2] = 255
MASK = np.array([True] * 5 + [False] + [True] * 2)
NAMES = ("sky", "road", "car", "bus")
PREDICTED, TRUE = (x[(LABEL != 255) & MASK[:, None, None]] for x in (LOGITS.argmax(-1), LABEL))
PAIRS = [(int((a & b).sum()), int((a | b).sum())) for a, b in ((c == PREDICTED, c == TRUE) for c in range(4))]


@jax.jit
def found(logits, label, mask):
    return metrics.segmentation(Context({"logits": logits}, {}, {"label": label, "mask": mask}, 0), class_names=NAMES)


def check(merged):
    pairs = [(float(merged[f"iou/{name}"].sum), float(merged[f"iou/{name}"].count)) for name in NAMES]
    assert pairs == PAIRS and PAIRS[3] == (0, 0)
    computed = metrics.compute(merged)
    assert computed["mean_iou"] == pytest.approx(np.mean([a / b for a, b in PAIRS[:3]]), rel=1e-6)
    assert np.isnan(computed["iou/bus"]) and computed["iou/sky"] == pytest.approx(PAIRS[0][0] / PAIRS[0][1])


@pytest.mark.parametrize(
    "parts",
    [pytest.param((8,), marks=pytest.mark.slow), (3, 8), pytest.param((1, 2, 7, 8), marks=pytest.mark.slow)],
    ids=str,
)
def test_ragged_batches_merge_exactly(parts):
    merged: dict = {}
    for first, last in zip((0, *parts), parts, strict=False):
        rows = slice(first, last)
        merged = metrics.merge(merged, found(*(jnp.asarray(x[rows]) for x in (LOGITS, LABEL, MASK))))
    check(merged)


@pytest.mark.slow
def test_devices_merge_exactly():
    @functools.partial(jax.pmap, axis_name=jaxkd.DATA_AXIS)
    def everywhere(logits, label, mask):
        return metrics.psum(found(logits, label, mask), jaxkd.DATA_AXIS)

    by_device = everywhere(*(x.reshape(4, 2, *x.shape[1:]) for x in (LOGITS, LABEL, MASK)))
    check(jax.tree.map(lambda x: x[0], by_device))


def test_names_are_one_for_each_class():
    context = Context({"logits": jnp.asarray(LOGITS)}, {}, {"label": jnp.asarray(LABEL)}, 0)
    assert {f"iou/{c}" for c in range(4)} <= jax.eval_shape(metrics.segmentation, context).keys()
    for names in (("a", "b"), ("a", "a", "b", "c")):
        with pytest.raises(ValueError, match="class_names: expected a different name for each of 4 classes"):
            metrics.segmentation(context, class_names=names)
