"""Objects from the outputs of a detector, against a brute force."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxkd import dense
from tests.dense import reference

SIZE = (12, 16)
ANCHORS = dense.anchors(SIZE, strides=[4], sizes=[5], ratios=[0.5, 2.0])
SETTINGS = {"image_size": SIZE, "considered": 20, "most": 8, "least_score": 0.1}


def outputs(seed, classes, batch=3):
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(batch, len(ANCHORS), classes))
    return jnp.asarray(logits, jnp.float32), jnp.asarray(2 * rng.normal(size=(batch, len(ANCHORS), 4)), jnp.float32)


@pytest.mark.parametrize(
    ("form", "soft"),
    [
        ("softmax", False),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in [("sigmoid", False), ("softmax", True), ("sigmoid", True)]
        ),
    ],
)
def test_detections_are_those_of_the_brute_force(form, soft):
    logits, offsets = outputs(0, 4 if form == "softmax" else 3)
    suppress = dense.soft_non_maximum_suppression if soft else dense.non_maximum_suppression
    found = jax.jit(functools.partial(dense.detections, form=form, suppress=suppress, **SETTINGS))(
        logits, offsets, ANCHORS
    )
    factor = (lambda iou: np.exp(-(iou**2) / 0.5)) if soft else (lambda iou: 0.0 if iou > 0.5 else 1.0)
    for image in range(len(logits)):
        scores = np.asarray(
            jax.nn.softmax(logits[image])[:, 1:] if form == "softmax" else jax.nn.sigmoid(logits[image])
        )
        boxes = np.asarray(dense.clip_boxes(dense.decode_boxes(offsets[image], ANCHORS), SIZE))
        candidates = [(anchor, label) for anchor in range(len(ANCHORS)) for label in range(3)]
        candidates = sorted(candidates, key=lambda c: -scores[c])[:20]
        values = np.array([scores[c] for c in candidates])
        kept = reference.suppress(
            [boxes[a] for a, _ in candidates], values, [k for _, k in candidates], values >= 0.1, 8, factor,
            0.001 if soft else -np.inf,
        )  # fmt: skip
        count = int(found.mask[image].sum())
        assert count == len(kept) > 2 and found.mask[image, :count].all()
        assert found.labels[image, :count].tolist() == [candidates[n][1] for n, _ in kept]
        np.testing.assert_array_equal(found.boxes[image, :count], [boxes[candidates[n][0]] for n, _ in kept])
        np.testing.assert_allclose(found.scores[image, :count], [score for _, score in kept], rtol=1e-5)
        for rest in (found.boxes, found.scores, found.labels):
            assert not rest[image, count:].any()
        assert (found.boxes[image] >= 0).all() and (found.boxes[image, :, 2] <= 16).all()


@pytest.mark.slow
def test_devices_each_find_the_objects_of_their_images():
    logits, offsets = outputs(2, 4, batch=4)
    run = functools.partial(dense.detections, **SETTINGS)
    mesh, split = Mesh(np.array(jax.devices()[:2]), ("data",)), PartitionSpec("data")
    specs = {"in_specs": (split, split, PartitionSpec()), "out_specs": split}
    found = jax.jit(jax.shard_map(run, mesh=mesh, **specs))(logits, offsets, ANCHORS)
    expected = jax.jit(run)(logits, offsets, ANCHORS)
    for name, x in expected._asdict().items():
        np.testing.assert_allclose(getattr(found, name), x, rtol=1e-6, err_msg=name)


@pytest.mark.slow
def test_bfloat16_and_a_background_without_objects():
    logits, offsets = outputs(1, 4)
    found = dense.detections(logits.astype(jnp.bfloat16), offsets.astype(jnp.bfloat16), ANCHORS, **SETTINGS)
    assert found.scores.dtype == jnp.float32 and np.isfinite(found.boxes).all() and found.mask.any()
    nothing = dense.detections(logits.at[..., 0].set(100.0), offsets, ANCHORS, **SETTINGS)
    assert not nothing.mask.any() and not nothing.scores.any()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"form": "focal"}, r"form: expected 'softmax' or 'sigmoid', got 'focal'"),
        ({"logits": jnp.zeros((len(ANCHORS), 1))}, r"logits: expected a class of objects in the form 'softmax'"),
        ({"anchors": ANCHORS[:3]}, r"logits, offsets, anchors: expected one of each for every anchor"),
        ({"considered": 0}, r"considered: expected at least 1"),
    ],
)
def test_invalid_arguments_raise(arguments, message):
    zeros = {"logits": jnp.zeros((len(ANCHORS), 4)), "offsets": jnp.zeros((len(ANCHORS), 4)), "anchors": ANCHORS}
    with pytest.raises(ValueError, match=message):
        dense.detections(**{**zeros, **arguments})
