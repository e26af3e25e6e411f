"""Objectives of segmentation: values, sizes, void pixels, images without labels, and independence of the batch."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import losses, objectives
from jaxkd.objectives import inter_region, structured_segmentation, wasserstein, with_resized
from jaxkd.objectives._dense._resized import resize_map
from jaxkd.objectives.discriminators import Discriminator
from tests import references, tiny
from tests.objective_runs import initialize, run

BATCH, CLASSES, SIDE = 8, 3, 8
STUDENT, TEACHER = ("student/logits", "student/f"), ("teacher/logits", "teacher/f")

LINEAR = Discriminator(
    lambda key, shape, outputs: 0.3 * jax.random.normal(key, (*shape[1:], outputs)),
    lambda kernel, x: jnp.einsum("bhwc,hwco->bo", x, kernel),
)
"""A critic whose gradient is its kernel."""
SKD = structured_segmentation(STUDENT, TEACHER, where="batch/inside", discriminator=LINEAR)


def arrays(size=BATCH, seed=0):
    """Maps of three sizes, an image, labels with void pixels, of which the first half of the images has none."""
    rng = np.random.default_rng(seed)

    def draw(side, channels):
        return rng.normal(size=(size, side, side, channels)).astype(np.float32)

    label = rng.integers(0, CLASSES, (size, SIDE, SIDE)).astype(np.int32)
    void = rng.random(label.shape) < 0.2
    label[void] = 255
    unlabeled = np.arange(size) < size // 2
    label[unlabeled] = 255
    return {
        "student": {"logits": draw(4, CLASSES), "f": draw(4, 3), "g": draw(2, 2)},
        "teacher": {"logits": draw(4, CLASSES), "f": draw(4, 5), "g": draw(4, 3)},
        "batch": {"image": draw(SIDE, 2), "label": label, "inside": ~void | unlabeled[:, None, None]},
    }


def rows(tree, keep):
    return jax.tree.map(lambda x: x[keep], tree)


# --- resized maps -----------------------------------------------------------------------------------------------------


def test_interpolation_by_hand():
    row = jnp.array([0.0, 4.0, 8.0]).reshape(1, 1, 3, 1)
    np.testing.assert_allclose(resize_map(row, (1, 6)).ravel(), [0, 1, 3, 5, 7, 8])
    assert resize_map(row, (1, 3)) is row
    labels = jnp.arange(6, dtype=jnp.uint8).reshape(1, 2, 3)
    np.testing.assert_array_equal(resize_map(labels, (4, 2))[0], [[0, 2], [0, 2], [3, 5], [3, 5]])
    np.testing.assert_array_equal(resize_map(labels[..., None] > 2, (1, 1)).ravel(), [True])
    assert resize_map(row.astype(jnp.bfloat16), (2, 2)).dtype == jnp.bfloat16


@pytest.mark.slow
def test_logits_of_another_stride():
    given = arrays()
    kl = jaxkd.term(losses.pixel_kl, "student/g", "teacher/f", where="batch/inside")
    given["student"]["g"] = np.random.default_rng(1).normal(size=(BATCH, 2, 2, 5)).astype(np.float32)
    objective = with_resized(kl, {"student/g": "teacher/f", "batch/inside": "teacher/f"})
    found = run(objective, initialize(objective, given), given)
    inside = given["batch"]["inside"][:, 1::2, 1::2]
    large = np.asarray(resize_map(jnp.asarray(given["student"]["g"]), (4, 4)))
    expected = references.pixel_kl(large, given["teacher"]["f"])[inside].mean()
    np.testing.assert_allclose(found.value, expected, rtol=1e-5)
    assert found.student["g"].any()


def test_what_is_no_map():
    objective = with_resized(jaxkd.term(losses.logit_mse, "student/f", "teacher/f"), {"batch/index": "student/f"})
    given = arrays()
    given["batch"]["index"] = np.arange(BATCH)
    with pytest.raises(ValueError, match=r"with_resized, batch/index: expected a map .*, got int32\[8\]"):
        initialize(objective, given)
    with pytest.raises(ValueError, match="with_resized, like: expected paths such as"):
        with_resized(objective, {})
    with pytest.raises(TypeError, match="with_resized, objective"):
        with_resized(losses.pixel_kl, {"a": "b"})


# --- SKD --------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_terms_in_numpy():
    """Each term in float64 from its formula; the critic is linear, so that its gradient is the part of its kernel."""
    given = arrays()
    variables = initialize(SKD, given)
    found = run(SKD, variables, given, key=None)
    s, t = (np.asarray(given[side]["logits"], np.float64) for side in ("student", "teacher"))
    inside = given["batch"]["inside"][:, 1::2, 1::2]
    kl = references.pixel_kl(s, t)[inside].mean()
    image = np.asarray(given["batch"]["image"], np.float64).reshape(BATCH, 4, 2, 4, 2, 2)
    seen = np.asarray(jax.image.resize(jnp.asarray(given["batch"]["image"]), (BATCH, 4, 4, 2), "linear"), np.float64)
    assert not np.allclose(seen, image.mean((2, 4)))  # antialiased bilinear, not a mean of windows
    kernel = np.asarray(variables.params["holistic"]["discriminator"], np.float64)[..., 0]
    score = lambda x: np.einsum("bhwc,hwc->b", np.concatenate([x * inside[..., None], seen], -1), kernel)  # noqa: E731
    norm = np.sqrt((kernel[..., :CLASSES] ** 2).sum())  # of all positions: void ones have a gradient too
    game = (score(s) - score(t) + 10 * (norm - 1) ** 2).mean()
    np.testing.assert_allclose(found.metrics["pixel"], kl, rtol=1e-5)
    np.testing.assert_allclose(found.metrics["holistic"], -score(s).mean(), rtol=1e-4)
    np.testing.assert_allclose(found.metrics["holistic/discriminator"], game, rtol=1e-4)
    options = {"max_window": 0.5, "constant_norm": True}
    pair = losses.pair_affinity(given["student"]["f"], given["teacher"]["f"], where=inside, **options).mean()
    np.testing.assert_allclose(found.metrics["pair"], pair, rtol=1e-5)
    np.testing.assert_allclose(found.value, 80 * kl + pair - 0.1 * score(s).mean() + game, rtol=1e-4)


@pytest.mark.slow
def test_affinity_of_the_paper_and_of_the_code():
    given = arrays()
    maps = [given[side]["f"] for side in ("student", "teacher")]
    for options, expected in (
        ({}, references.pair_affinity(*maps, max_window=0.5)),
        ({"max_window": None, "constant_norm": False}, references.pair_affinity(*maps)),
    ):
        objective = structured_segmentation(STUDENT, TEACHER, pixel_weight=0, holistic_weight=0, **options)
        found = run(objective, initialize(objective, given), given)
        np.testing.assert_allclose(found.value, expected.mean(), rtol=1e-5)


@pytest.mark.slow
def test_the_critic_receives_the_image():
    given = arrays()
    with_image, without = (
        structured_segmentation(STUDENT, TEACHER, condition=path, discriminator=LINEAR)
        for path in ("batch/image", None)
    )
    shapes = [initialize(x, given).params["holistic"]["discriminator"].shape for x in (with_image, without)]
    assert shapes == [(4, 4, CLASSES + 2, 1), (4, 4, CLASSES, 1)]
    variables = initialize(with_image, given)
    other = {**given, "batch": {**given["batch"], "image": -given["batch"]["image"]}}
    found = [run(with_image, variables, x).metrics["holistic"] for x in (given, other)]
    assert found[0] != found[1]


@pytest.mark.slow
def test_void_pixels_change_nothing():
    """At the resolution of the logits; a pixel is void there if the nearest one of the image is."""
    given = arrays()
    variables = initialize(SKD, given)
    inside = given["batch"]["inside"][:, 1::2, 1::2, None]
    want = run(SKD, variables, given)
    other = {
        side: {name: np.where(inside, x, 7.0) if name in ("logits", "f") else x for name, x in given[side].items()}
        for side in ("student", "teacher")
    }
    found = run(SKD, variables, {**given, **other})
    tiny.assert_close(found, want, rtol=1e-5)
    for name in ("logits", "f"):
        assert not found.student[name][~np.broadcast_to(inside, found.student[name].shape)].any()


@pytest.mark.slow
def test_strides_may_differ():
    given = arrays()
    rng = np.random.default_rng(3)
    given["student"]["logits"] = rng.normal(size=(BATCH, 2, 2, CLASSES)).astype(np.float32)
    given["student"]["f"] = rng.normal(size=(BATCH, 7, 7, 4)).astype(np.float32)
    found = run(SKD, initialize(SKD, given), given)
    assert np.isfinite(found.value) and all(np.abs(found.student[name]).max() > 0 for name in ("logits", "f"))


def test_no_term_is_left():
    with pytest.raises(ValueError, match="structured_segmentation: expected a weight other than 0"):
        structured_segmentation(STUDENT, TEACHER, pixel_weight=0, pair_weight=0.0, holistic_weight=0)


def test_an_image_that_cannot_be_joined():
    objective = wasserstein("student/logits", "teacher/logits", condition="batch/vector")
    given = arrays()
    given["batch"]["vector"] = np.ones((BATCH, 5), np.float32)
    with pytest.raises(ValueError, match=r"wasserstein, batch/vector: expected \[8, 'height', 'width', 'channels'\]"):
        initialize(objective, given)


# --- IntRA-KD ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_regions_of_labels_and_of_predictions():
    given = arrays()
    objective = inter_region("student/f", "teacher/f", weight=2.0)
    found = run(objective, initialize(objective, given), given)
    label = given["batch"]["label"]
    large = resize_map(jnp.asarray(given["teacher"]["logits"]), (SIDE, SIDE))
    known = np.where((label < CLASSES).any((1, 2), keepdims=True), label, np.argmax(large, -1))
    regions = known[..., None] == np.arange(CLASSES)
    expected = references.region_affinity(given["student"]["f"], given["teacher"]["f"], regions)
    assert (label[: BATCH // 2] == 255).all() and (known[BATCH // 2 :] == 255).any()
    np.testing.assert_allclose(found.value, 2 * expected.mean(), rtol=1e-4)


@pytest.mark.slow
def test_levels_are_averaged():
    given = arrays()
    paths = [(f"student/{name}", f"teacher/{name}") for name in "fg"]
    values = []
    for students, teachers in (*paths, tuple(zip(*paths, strict=True))):
        objective = inter_region(students, teachers)
        values.append(run(objective, initialize(objective, given), given).value)
    np.testing.assert_allclose(values[2], (values[0] + values[1]) / 2, rtol=1e-5)
    with pytest.raises(ValueError, match="inter_region: expected as many levels of the teacher"):
        inter_region(("student/f", "student/g"), "teacher/f")


@pytest.mark.slow
def test_predictions_alone():
    given = arrays()
    objective = inter_region("student/f", "teacher/f", label_path=None)
    regions = np.eye(CLASSES, dtype=bool)[given["teacher"]["logits"].argmax(-1)]
    expected = references.region_affinity(given["student"]["f"], given["teacher"]["f"], regions)
    np.testing.assert_allclose(run(objective, initialize(objective, given), given).value, expected.mean(), rtol=1e-4)
    given["batch"]["label"] = given["batch"]["label"].astype(np.float32)
    with pytest.raises(ValueError, match=r"inter_region: expected logits .* integer labels .*float32"):
        initialize(inter_region("student/f", "teacher/f"), given)


# --- what users of segmentation trip over -----------------------------------------------------------------------------

EVERY = {
    "structured": SKD,
    "regions": inter_region(("student/f", "student/g"), ("teacher/f", "teacher/g")),
    "channels": with_resized(
        jaxkd.term(losses.channel_kl, "student/logits", "teacher/logits", where="batch/inside", weight=3.0),
        {"batch/inside": "student/logits"},
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_the_size_of_the_batch_changes_no_value_of_an_image(name):
    objective, given = EVERY[name], arrays()
    del given["batch"]["inside"]  # as many pixels in each image
    given["batch"]["inside"] = np.ones((BATCH, SIDE, SIDE), bool)
    variables = initialize(objective, given)
    whole = run(objective, variables, given, key=None)
    single = [run(objective, variables, rows(given, slice(i, i + 1)), key=None) for i in range(BATCH)]
    np.testing.assert_allclose(whole.value, np.mean([x.value for x in single]), rtol=1e-5)
    for output, gradient in whole.student.items():
        parts = np.concatenate([x.student[output] for x in single])
        np.testing.assert_allclose(gradient * BATCH, parts, rtol=1e-3, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_masked_images_and_a_batch_of_masked_ones(name):
    objective, given = EVERY[name], arrays()
    variables, keep = initialize(objective, given), np.arange(BATCH) % 3 > 0
    want = run(objective, variables, rows(given, keep), key=None)
    spoiled = {
        side: {
            n: np.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan if x.dtype == np.float32 else x)
            for n, x in given[side].items()
        }
        for side in given
    }
    spoiled["batch"]["mask"] = keep
    found = run(objective, variables, spoiled, key=None)
    tiny.assert_close((found.value, found.params), (want.value, want.params), rtol=1e-4, atol=1e-5)
    tiny.assert_close(rows(found.student, keep), want.student, rtol=1e-4, atol=1e-5)
    spoiled["batch"]["mask"] = np.zeros(BATCH, bool)
    found = run(objective, variables, spoiled, key=None)
    assert found.value == 0 and all(not g.any() for g in jax.tree.leaves((found.student, found.params)))


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_bfloat16_is_finite(name):
    given = arrays()
    half = {side: jax.tree.map(lambda x: x.astype(jnp.bfloat16), given[side]) for side in ("student", "teacher")}
    objective = EVERY[name]
    found = run(objective, initialize(objective, given), {**given, **half}, key=None)
    want = run(objective, initialize(objective, given), given, key=None)
    assert all(np.isfinite(np.float32(x)).all() for x in jax.tree.leaves((found.value, found.student, found.params)))
    np.testing.assert_allclose(found.value, want.value, rtol=0.05)


def _segmenter(channels):
    def init(key, image):
        first, second = jax.random.split(key)
        return {
            "first": jax.random.normal(first, (image.shape[-1], channels)),
            "second": jax.random.normal(second, (channels, CLASSES)),
        }

    def apply(params, image):
        features = jnp.tanh(image @ params["first"])
        return {"logits": features @ params["second"], "f": features, "g": features}

    return jaxkd.adapters.plain(init, apply)


@pytest.mark.slow
@pytest.mark.parametrize("name", EVERY)
def test_weight_zero_is_the_student_alone_bit_for_bit(name):
    """With a schedule of zeros, which no term can be left out for, and a critic that learns all the same."""
    none = lambda step: 0.0 * step  # noqa: E731
    pairs = {
        "structured": structured_segmentation(
            STUDENT, TEACHER, where="batch/inside", pixel_weight=none, pair_weight=none, holistic_weight=none
        ),
        "regions": inter_region("student/f", "teacher/f", weight=none),
        "channels": jaxkd.term(
            losses.channel_kl, "student/logits", "teacher/logits", where="batch/inside", weight=none
        ),
    }
    batch = arrays()["batch"]
    batch["labeled"] = batch["label"] < CLASSES
    student, teacher = _segmenter(4), _segmenter(6)
    ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled")
    found = []
    for objective in (jaxkd.combine(ce=ce), jaxkd.combine(ce=ce, kd=pairs[name])):
        taught = jaxkd.teachers.frozen(teacher, teacher.init(jax.random.key(1), batch))
        kd = jaxkd.distill(student, taught, objective, optimizer=optax.adam(0.1), metrics=lambda context: {})
        state = kd.init(jax.random.key(0), batch)
        for _ in range(3):
            state, _ = jax.jit(kd.step)(state, batch)
        found.append(state.student)
    tiny.assert_equal(*found)


@pytest.mark.slow
def test_with_resized_is_a_part_of_a_combination():
    """The metrics and parameters of the objective pass through."""
    given = arrays()
    hint = objectives.hint("student/g", "teacher/f")
    objective = jaxkd.combine(hint=with_resized(hint, {"student/g": "teacher/f"}))
    variables = initialize(objective, given)
    assert variables.params["hint"]["kernel"].shape == (1, 1, 2, 5)
    assert set(run(objective, variables, given).metrics) == {"hint", "hint/weight"}
