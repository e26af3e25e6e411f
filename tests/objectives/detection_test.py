"""The labels' objective of a detector, against a loop over images and anchors, and its invariances."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxkd
from jaxkd import Context, dense, objectives
from tests import references
from tests.dense import reference

SIZE = (12, 16)
ANCHORS = dense.anchors(SIZE, strides=[4], sizes=[5], ratios=[0.5, 2.0])
N, CLASSES = len(ANCHORS), 3
MADE = {form: objectives.detection(ANCHORS, form=form, box_weight=2.0) for form in ("softmax", "sigmoid")}


def outputs(form, batch, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(batch, N, CLASSES + (form == "softmax"))).astype(dtype)
    return {"logits": jnp.asarray(logits), "offsets": jnp.asarray(rng.normal(size=(batch, N, 4)).astype(dtype))}


def truths(batch, boxes=5, seed=0):
    """Whole pixels, some beyond the edge; the first image has no object."""
    rng = np.random.default_rng(seed)
    exists = rng.random((batch, boxes)) < 0.7
    exists[0] = False
    found = np.where(exists[..., None], reference.random_boxes(rng, batch, boxes) - 1, 0)
    label = np.where(exists, rng.integers(0, CLASSES, exists.shape), 0)
    return {"boxes": found.astype(np.float32), "box_label": label.astype(np.int32), "box_mask": exists}


@functools.cache
def run(form):
    def value(outputs, batch):
        out = MADE[form].apply({}, {}, Context(outputs, {}, batch, jnp.int32(0)), None)
        return out.value, out.metrics

    return jax.jit(jax.value_and_grad(value, has_aux=True))


def by_hand(form, outputs, batch, negatives=3):
    """(classes, boxes, matched) of each image."""
    anchors, results = np.asarray(ANCHORS, np.float64), []
    for image in range(len(batch["boxes"])):
        truth = {name: x[image] for name, x in batch.items()}
        found, ignored = reference.match(np.asarray(ANCHORS), truth["boxes"], truth["box_mask"], 0.5, 0.4)
        matched = np.flatnonzero(found >= 0)
        logits, offsets = (np.asarray(outputs[name][image], np.float64) for name in ("logits", "offsets"))
        background = [a for a in range(N) if found[a] < 0 and not ignored[a]]
        if form == "softmax":
            log_p = references.log_softmax(logits)
            costs = [-log_p[a, truth["box_label"][found[a]] + 1] for a in matched]
            hardest = sorted((-log_p[a, 0] for a in background), reverse=True)
            costs += hardest[: negatives * max(1, len(matched))]
        else:
            hot = np.zeros((N, CLASSES))
            hot[matched, truth["box_label"][found[matched]]] = 1
            values = references.sigmoid_focal(logits, hot)
            costs = [values[a] for a in [*matched, *background]]
        distances = 0.0
        for a in matched:
            box, anchor = truth["boxes"][found[a]], anchors[a]
            sides, anchor_sides = box[2:] - box[:2], anchor[2:] - anchor[:2]
            center = ((box[2:] + box[:2]) - (anchor[2:] + anchor[:2])) / 2 / anchor_sides
            goal = np.concatenate([center / 0.1, np.log(sides / anchor_sides) / 0.2])
            distances += references.smooth_l1(offsets[a], goal)
        results.append((sum(costs) / max(1, len(matched)), distances / max(1, len(matched)), len(matched)))
    return np.array(results)


@pytest.mark.parametrize("form", ["softmax", pytest.param("sigmoid", marks=pytest.mark.slow)])
def test_the_value_is_that_of_a_loop(form):
    given, batch = outputs(form, 6), truths(6)
    (value, metrics), _ = run(form)(given, batch)
    expected = by_hand(form, given, batch)
    assert expected[0, 0] > 0 and expected[0, 2] == 0  # an image without an object is background
    np.testing.assert_allclose(value, (expected[:, 0] + 2 * expected[:, 1]).mean(), rtol=1e-5)
    for column, name in enumerate(("classes", "boxes", "matched")):
        np.testing.assert_allclose(metrics[name].sum, expected[:, column].sum(), rtol=1e-5)
        assert metrics[name].count == 6


@pytest.mark.slow
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_neither_the_batch_nor_padding_changes_the_loss_of_an_image(form):
    given, batch = outputs(form, 8), truths(8)
    (_, metrics), gradients = run(form)(given, batch)
    singles = [run(form)(*jax.tree.map(lambda x, i=i: x[i : i + 1], (given, batch))) for i in range(8)]
    np.testing.assert_allclose(metrics[""].sum, sum(single[0][1][""].sum for single in singles), rtol=1e-6)
    for name, gradient in gradients.items():
        each = np.concatenate([single[1][name] for single in singles])
        np.testing.assert_allclose(8 * gradient, each, rtol=1e-5, atol=1e-7)
    results = []
    for rows in (32, 64):
        wide = {name: np.pad(x, [(0, 0), (0, rows - 5), (0, 0)][: x.ndim]) for name, x in batch.items()}
        results.append(run(form)(given, wide))
    jax.tree.map(np.testing.assert_array_equal, *results)
    np.testing.assert_allclose(results[0][0][0], metrics[""].sum / 8, rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_masked_is_dropped_and_masked_images_may_hold_anything(form):
    mask = np.array([True, False, True, True, False, True])
    given, batch = outputs(form, 6), truths(6)
    expected = run(form)(*jax.tree.map(lambda x: x[mask], (given, batch)))
    spoiled = {name: jnp.where(mask[:, None, None], x, jnp.nan) for name, x in given.items()}
    noisy = {
        "boxes": np.where(mask[:, None, None], batch["boxes"], np.nan),
        "box_label": np.where(mask[:, None], batch["box_label"], 99),
        "box_mask": batch["box_mask"] | ~mask[:, None],
    }
    (value, metrics), gradients = run(form)(spoiled, {**noisy, "mask": mask})
    np.testing.assert_allclose(value, expected[0][0], rtol=1e-6)
    assert metrics[""].count == 4
    for name, gradient in gradients.items():
        np.testing.assert_allclose(gradient[mask], expected[1][name], rtol=1e-5, atol=1e-8)
        assert not gradient[~mask].any()
    (value, _), gradients = run(form)(spoiled, {**noisy, "mask": mask & False})
    assert value == 0 and not any(gradient.any() for gradient in gradients.values())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_empty_images_extremes_and_bfloat16_are_finite(form):
    empty = {name: np.zeros_like(x) for name, x in truths(4).items()}
    for given in (outputs(form, 4), jax.tree.map(lambda x: 1e4 * x, outputs(form, 4))):
        (value, metrics), gradients = run(form)(given, empty)
        assert value > 0 and np.isfinite(value) and metrics["boxes"].sum == 0
        assert np.abs(gradients["logits"]).max() > 0 and not gradients["offsets"].any()
        assert all(np.isfinite(gradient).all() for gradient in gradients.values())
    (value, _), gradients = run(form)(outputs(form, 4, dtype=jnp.bfloat16), truths(4))
    assert value.dtype == jnp.float32 and np.isfinite(value)
    assert all(np.isfinite(gradient.astype(jnp.float32)).all() for gradient in gradients.values())


@pytest.mark.slow
@pytest.mark.parametrize("form", ["softmax", "sigmoid"])
def test_a_label_that_is_no_class_gives_nan(form):
    batch = truths(6)
    for wrong in (-1, CLASSES):
        label = np.where(batch["box_mask"], wrong, 0)
        assert np.isnan(run(form)(outputs(form, 6), {**batch, "box_label": label})[0][0])


@pytest.mark.slow
def test_all_anchors_of_the_background_and_a_schedule():
    given, batch = outputs("softmax", 6), truths(6)
    halves = optax.piecewise_constant_schedule(1.0, {1: 0.5})
    objective = objectives.detection(ANCHORS, negatives=None, weight=halves, box_weight=halves)
    out = jax.jit(lambda step: objective.apply({}, {}, Context(given, {}, batch, step), None))(jnp.int32(2))
    expected = by_hand("softmax", given, batch, negatives=N)
    np.testing.assert_allclose(out.value, 0.5 * (expected[:, 0] + 0.5 * expected[:, 1]).mean(), rtol=1e-5)


@pytest.mark.slow
def test_placements_agree():
    """jit, pmap, shard and a user's shard_map, with different numbers of objects on each device."""

    def init(key, image):
        return {"logits": jnp.zeros((image.shape[-1], N * 4)), "offsets": jnp.zeros((image.shape[-1], N * 4))}

    def apply(params, image):
        return {name: (image @ kernel).reshape(-1, N, 4) for name, kernel in params.items()}

    model = jaxkd.adapters.plain(init, apply)
    kd = jaxkd.distill(model, jaxkd.teachers.none(), MADE["softmax"], optimizer=optax.sgd(0.1))
    batch = {"image": np.random.default_rng(0).normal(size=(8, 5)).astype(np.float32), **truths(8)}
    batch["mask"] = np.arange(8) != 5
    state = kd.init(jax.random.key(0), batch)
    devices = jax.devices()[:4]
    mesh = Mesh(np.array(devices), (jaxkd.DATA_AXIS,))
    expected, metrics = jax.jit(kd.step)(state, batch)
    every, split = PartitionSpec(), PartitionSpec(jaxkd.DATA_AXIS)
    own = jax.jit(jax.shard_map(kd.step, mesh=mesh, in_specs=(every, split), out_specs=every))
    for step in (jaxkd.parallel.pmap(kd, devices), jaxkd.parallel.shard(kd, mesh), own):
        found, reported = step(jax.tree.map(jnp.copy, state), batch)
        jax.tree.map(
            functools.partial(np.testing.assert_allclose, rtol=1e-5, atol=1e-6),
            (found.student.params, jaxkd.metrics.compute(reported)),
            (expected.student.params, jaxkd.metrics.compute(metrics)),
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"logits": jnp.zeros((2, N + 1, 4))}, rf"student/logits: expected a row for each of the {N} anchors"),
        ({"boxes": jnp.zeros((3, 5, 4))}, r"batch/boxes: expected boxes \[2, n, 4\]"),
        ({"box_label": jnp.zeros((2, 5))}, r"batch/box_label: expected an integer class for each box \[2, 5\]"),
        ({"box_mask": jnp.zeros((2, 4), bool)}, r"batch/box_mask: expected bool\[2, 5\]"),
    ],
)
def test_invalid_shapes_raise(changes, message):
    given = {name: changes.get(name, x) for name, x in outputs("softmax", 2).items()}
    batch = {name: changes.get(name, x) for name, x in truths(2).items()}
    with pytest.raises(ValueError, match=message):
        MADE["softmax"].init(jax.random.key(0), Context(given, {}, batch, 0))


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match=r"detection, form: expected 'softmax' or 'sigmoid', got 'focal'"):
        objectives.detection(ANCHORS, form="focal")
    with pytest.raises(ValueError, match=r"detection, negatives: expected a number of at least 0, got -1"):
        objectives.detection(ANCHORS, negatives=-1)
