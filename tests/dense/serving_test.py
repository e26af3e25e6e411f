"""A trained detector as an exported program that contains the suppression."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import adapters, dense, models, objectives, teachers, weights

SIZE = (32, 40)
MODULE = models.Detector(num_classes=2, num_anchors=1, widths=(8, 16), channels=16)
ANCHORS = dense.anchors(SIZE, MODULE.strides, sizes=[8, 16], ratios=[1.0])


def scenes(seed, batch=8):
    """Images of noise with one or two squares, bright ones of class 0 and dark ones of class 1."""
    rng = np.random.default_rng(seed)
    image = rng.normal(128, 10, (batch, *SIZE, 3))
    exists = np.array([True, False]) | (rng.random((batch, 1)) < 0.5)
    label = np.where(exists, rng.integers(0, 2, (batch, 2)), 0).astype(np.int32)
    side = rng.integers(8, 17, (batch, 2))
    x, y = rng.integers(0, 21 - side) + np.array([0, 20]), rng.integers(0, 33 - side)
    boxes = np.where(exists[..., None], np.stack([x, y, x + side, y + side], -1), 0).astype(np.float32)
    for i, n in np.argwhere(exists):
        x0, y0, x1, y1 = boxes[i, n].astype(int)
        image[i, y0:y1, x0:x1] += (100, -100)[label[i, n]]
    image = np.clip(image, 0, 255).astype(np.uint8)
    return {"image": image, "boxes": boxes, "box_label": label, "box_mask": exists}


def normalize(batch):
    return {**batch, "image": batch["image"].astype(jnp.float32) / 64 - 2}


def objects(outputs):
    found = dense.detections(outputs["logits"], outputs["offsets"], ANCHORS, image_size=SIZE, least_score=0.3, most=5)
    return found._asdict()


@pytest.mark.slow
def test_a_served_detector_finds_what_the_trained_one_finds(tmp_path):
    objective = objectives.detection(ANCHORS)
    kd = jaxkd.distill(adapters.linen(MODULE), teachers.none(), objective, optimizer=optax.adam(5e-3))
    kd = jaxkd.distillers.preprocess(kd, train_transform=normalize, eval_transform=normalize)
    state = kd.init(jax.random.key(0), scenes(0))
    step = jax.jit(kd.step, donate_argnums=0)
    for seed in range(100):
        state, _ = step(state, scenes(seed))

    model, file = adapters.linen(MODULE, outputs=objects), tmp_path / "detector.jax"
    image = jax.ShapeDtypeStruct((1, *SIZE, 3), jnp.uint8)
    names = ("boxes", "scores", "labels", "mask")
    weights.save_program(file, model, state, {"image": image}, preprocess=normalize, output_names=names)
    program = jax.export.deserialize(bytearray(file.read_bytes()))
    batch = scenes(1000, 6)
    for size in (6, 1):
        served = program.call({"image": batch["image"][:size]})
        assert served["boxes"].shape == (size, 5, 4) and served["mask"].dtype == bool
        direct, _ = jax.jit(lambda variables, batch: model.apply(variables, batch, key=None, train=False))(
            state.student, normalize({"image": jnp.asarray(batch["image"][:size])})
        )
        for name in names:
            np.testing.assert_allclose(served[name], direct[name], rtol=1e-4, atol=1e-4, err_msg=name)
    served = program.call({"image": batch["image"]})
    overlaps = dense.box_iou(batch["boxes"], served["boxes"])
    same = (batch["box_label"][..., None] == served["labels"][:, None]) & served["mask"][:, None]
    hits = (np.where(same, overlaps, 0).max(-1) > 0.5)[batch["box_mask"]]
    assert hits.mean() > 0.7, hits
