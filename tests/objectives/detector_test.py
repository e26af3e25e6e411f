"""Distillation of a detector's outputs: values from the formulas, other anchors and heads, masks, and errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Context, dense
from jaxkd.objectives import detection, detector_kd, soft_detections
from tests import tiny
from tests.objectives import plain

SIZE = (16, 24)
ANCHORS = np.asarray(dense.anchors(SIZE, [8, 16], [[8, 9], [14, 15]], [1.0]))
FINE, COUNT = 12, 16  # anchors of the fine level, and of both
BOXES = np.array(
    [
        [[1, 1, 9, 9], [8, 0, 24, 16], [0, 0, 0, 0]],
        [[16, 8, 24, 16], [0, 0, 0, 0], [0, 0, 0, 0]],
        [[0, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]],  # an image without objects
    ],
    np.float32,
)
OBJECTS = 3


def outputs(anchors, classes, rng):
    shape = (3, anchors)
    logits = rng.normal(size=(*shape, classes)).astype(np.float32)
    return {"logits": 2 * logits, "offsets": rng.normal(size=(*shape, 4)).astype(np.float32)}


def given(anchors=COUNT, teacher_anchors=COUNT, classes=OBJECTS + 1, teacher_classes=OBJECTS + 1, **batch):
    rng = np.random.default_rng(5)
    own, other = outputs(anchors, classes, rng), outputs(teacher_anchors, teacher_classes, rng)
    return Context(own, other, {"boxes": BOXES, "box_mask": BOXES[..., 2] > BOXES[..., 0], **batch}, jnp.int32(0))


def terms(objective, context, params=None):
    return {name: float(x) for name, x in objective.apply(params or {}, {}, context, None).terms.items()}


# --- References -----------------------------------------------------------------------------------------------------


def softmax(x):
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def soft(student, teacher, background_weight):
    """The weighted cross-entropy of one image's anchors, over the number of objects' anchors."""
    student, teacher = np.float64(student), np.float64(teacher)
    target = softmax(teacher)
    weight = np.array([background_weight] + [1.0] * (teacher.shape[-1] - 1))
    return -(weight * target * np.log(softmax(student))).sum() / max((1 - target[:, 0]).sum(), 1)


def binary(student, teacher):
    student, teacher = sigmoid(np.float64(student)), sigmoid(np.float64(teacher))
    kl = teacher * np.log(teacher / student) + (1 - teacher) * np.log((1 - teacher) / (1 - student))
    return kl.sum() / max(teacher.max(-1).sum(), 1)


def iou(a, b):
    w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    common = max(w, 0) * max(h, 0)
    area = lambda x: (x[2] - x[0]) * (x[3] - x[1])  # noqa: E731
    return common / (area(a) + area(b) - common)


def encode(box, anchor):
    w, h = anchor[2] - anchor[0], anchor[3] - anchor[1]
    x, y = (box[0] + box[2] - anchor[0] - anchor[2]) / 2, (box[1] + box[3] - anchor[1] - anchor[3]) / 2
    return np.array(
        [x / w / 0.1, y / h / 0.1, np.log((box[2] - box[0]) / w) / 0.2, np.log((box[3] - box[1]) / h) / 0.2]
    )


def bounded(student, teacher, boxes, margin):
    """The bounded regression of one image, with the anchors that hold an object found by the rule of overlaps."""
    overlaps = np.array([[iou(box, anchor) for anchor in ANCHORS] for box in boxes]).reshape(len(boxes), len(ANCHORS))
    owner = {}
    for number in sorted(range(len(boxes)), key=lambda i: -overlaps[i].max()):
        free = [a for a in range(len(ANCHORS)) if a not in owner]
        owner[max(free, key=lambda a: overlaps[number, a])] = number
    for a in range(len(ANCHORS)):
        if a not in owner and len(boxes) and overlaps[:, a].max() >= 0.5:
            owner[a] = int(overlaps[:, a].argmax())
    total = 0.0
    for a, number in owner.items():
        target = encode(np.float64(boxes[number]), np.float64(ANCHORS[a]))
        own, other = (((np.float64(x[a]) - target) ** 2).sum() for x in (student, teacher))
        total += own if own + margin > other else 0.0
    return total / max(len(owner), 1), len(owner)


# --- Values ---------------------------------------------------------------------------------------------------------


def test_the_parts_equal_their_formulas():
    context = given()
    found = terms(detector_kd(ANCHORS, margin=0.3, background_weight=1.2), context)
    sides = [(context.student[n], context.teacher[n]) for n in ("logits", "offsets")]
    want = np.mean([soft(sides[0][0][i], sides[0][1][i], 1.2) for i in range(3)])
    np.testing.assert_allclose(found["classes"], 0.5 * want, rtol=1e-5)
    boxes = [BOXES[i][context.batch["box_mask"][i]] for i in range(3)]
    parts = [bounded(sides[1][0][i], sides[1][1][i], boxes[i], 0.3) for i in range(3)]
    assert [count for _, count in parts] == [3, 2, 0]
    np.testing.assert_allclose(found["boxes"], 0.5 * np.mean([value for value, _ in parts]), rtol=1e-5)


def test_sigmoids_are_compared_class_by_class():
    context = given(classes=OBJECTS, teacher_classes=OBJECTS)
    found = terms(soft_detections(ANCHORS, form="sigmoid", soft_weight=2.0), context)
    pairs = [(context.student["logits"][i], context.teacher["logits"][i]) for i in range(3)]
    np.testing.assert_allclose(found["classes"], 2 * np.mean([binary(*pair) for pair in pairs]), rtol=1e-5)


def test_the_teachers_boxes_have_its_probability_as_weight():
    context = given()
    found = terms(soft_detections(ANCHORS, box_weight=3.0), context)
    held = 1 - softmax(np.float64(context.teacher["logits"]))[..., 0]
    apart = np.abs(np.float64(context.student["offsets"]) - context.teacher["offsets"])
    smooth = np.where(apart < 1, apart**2 / 2, apart - 0.5).sum(-1)
    want = ((held * smooth).sum(1) / np.maximum(held.sum(1), 1)).mean()
    np.testing.assert_allclose(found["boxes"], 3 * want, rtol=1e-5)


def test_a_student_equal_to_its_teacher_has_no_gradient():
    context = given()

    def value(student):
        return sum(
            objective.apply({}, {}, context._replace(student=student), None).value
            for objective in (detector_kd(ANCHORS, background_weight=1.0), soft_detections(ANCHORS))
        )

    gradient = jax.jit(jax.grad(value))(context.teacher)
    assert all(float(jnp.abs(x).max()) < 1e-6 for x in jax.tree.leaves(gradient))


def test_hints_have_an_adaptation_each():
    context = given()
    maps = {"level0": np.ones((3, 4, 6, 2), np.float32), "level1": np.ones((3, 2, 3, 2), np.float32)}
    context = context._replace(student={**context.student, **maps}, teacher={**context.teacher, **maps})
    objective = detector_kd(ANCHORS, level_map=2, feature_weight=4.0)
    params = plain.made(objective, context).params
    assert jax.tree.map(jnp.shape, params["hints"]["level1"]) == {"align": {"kernel": (2, 2), "bias": (2,)}}
    found, own = terms(objective, context, params), plain.f64(params)["hints"]
    want = sum(((plain.dense(own[name]["align"], np.float64(x)) - x) ** 2).mean() for name, x in maps.items())
    np.testing.assert_allclose(sum(x for name, x in found.items() if "hints" in name), 4 * want, rtol=1e-5)


# --- Other anchors and other heads ----------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [detector_kd, soft_detections])
def test_the_order_of_the_teachers_anchors_does_not_matter(make):
    context = given()
    order = np.random.default_rng(0).permutation(len(ANCHORS))
    moved = context._replace(teacher=jax.tree.map(lambda x: x[:, order], context.teacher))
    found = terms(make(ANCHORS, teacher_anchors=ANCHORS[order]), moved)
    assert found == pytest.approx(terms(make(ANCHORS), context), rel=1e-4)


def test_a_box_of_another_anchor_is_the_same_box():
    """Offsets of the teacher's from its anchors, and the same boxes as offsets from the student's."""
    other = ANCHORS + np.float32([-0.1, 0, 0.1, 0.2])
    context = given()
    boxes = dense.decode_boxes(jnp.asarray(context.teacher["offsets"]), jnp.asarray(other))
    same = {**context.teacher, "offsets": dense.encode_boxes(boxes, jnp.asarray(ANCHORS))}
    want = terms(soft_detections(ANCHORS), context._replace(teacher=same))
    assert terms(soft_detections(ANCHORS, teacher_anchors=other), context) == pytest.approx(want, rel=1e-4)


@pytest.mark.slow
def test_anchors_that_none_of_the_teachers_overlaps_have_no_loss():
    """A teacher with the coarse level alone."""
    context = given(teacher_anchors=COUNT - FINE)
    for make in detector_kd, soft_detections:
        objective = make(ANCHORS, teacher_anchors=ANCHORS[FINE:])
        gradient = jax.grad(lambda s, o=objective: o.apply({}, {}, context._replace(student=s), None).value)(
            context.student
        )
        reached = np.asarray((gradient["logits"] != 0).any((0, 2)))
        np.testing.assert_array_equal(reached, [False] * FINE + [True] * (COUNT - FINE))
        assert not np.asarray(gradient["offsets"] != 0)[:, :FINE].any()


def test_a_head_of_another_form_teaches_by_its_probabilities():
    context = given(teacher_classes=OBJECTS)
    logits = context.teacher["logits"]
    with_background = np.concatenate([np.zeros_like(logits[..., :1]), logits], -1)
    want = terms(soft_detections(ANCHORS), context._replace(teacher={**context.teacher, "logits": with_background}))
    found = terms(soft_detections(ANCHORS, teacher_form="sigmoid"), context)
    assert found == pytest.approx(want, rel=1e-5)

    context = given(classes=OBJECTS)
    probability = softmax(np.float64(context.teacher["logits"]))[..., 1:]
    logits = np.float32(np.log(probability / (1 - probability)))
    want = terms(
        soft_detections(ANCHORS, form="sigmoid"), context._replace(teacher={**context.teacher, "logits": logits})
    )
    found = terms(soft_detections(ANCHORS, form="sigmoid", teacher_form="softmax"), context)
    assert found == pytest.approx(want, rel=1e-4)


# --- Batches --------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("make", [detector_kd, soft_detections])
def test_a_value_does_not_depend_on_the_rest_of_the_batch(make):
    context, objective = given(), make(ANCHORS)
    rows = [jax.tree.map(lambda x, i=i: x[i : i + 1] if np.ndim(x) else x, context) for i in range(3)]
    apart = [objective.apply({}, {}, row, None).value for row in rows]
    np.testing.assert_allclose(objective.apply({}, {}, context, None).value, np.mean(apart), rtol=1e-5)


@pytest.mark.slow
def test_padding_of_boxes_changes_nothing():
    context, objective = given(), detector_kd(ANCHORS)
    more = {
        "boxes": np.concatenate([BOXES, np.full((3, 5, 4), np.nan, np.float32)], axis=1),
        "box_mask": np.pad(context.batch["box_mask"], ((0, 0), (0, 5))),
    }
    assert terms(objective, context) == terms(objective, context._replace(batch=more))


@pytest.mark.slow
def test_images_without_known_boxes_have_classes_and_no_bound():
    labeled = np.array([True, False, False])
    context = given(labeled=labeled)
    found, every = (terms(detector_kd(ANCHORS, where=w), context) for w in ("batch/labeled", None))
    alone = jax.tree.map(lambda x: x[:1] if np.ndim(x) else x, context)
    assert found["classes"] == every["classes"]
    assert found["boxes"] == pytest.approx(terms(detector_kd(ANCHORS), alone)["boxes"], rel=1e-5)
    none = given(labeled=np.zeros(3, bool))
    assert terms(detector_kd(ANCHORS, where="batch/labeled"), none)["boxes"] == 0


@pytest.mark.slow
def test_the_labels_objective_excludes_images_without_known_boxes():
    label = np.random.default_rng(1).integers(0, OBJECTS, BOXES.shape[:2])
    context = given(labeled=np.array([True, False, True]), box_label=np.int32(label))
    found = detection(ANCHORS, where="batch/labeled").apply({}, {}, context, None).value
    known = jax.tree.map(lambda x: x[::2] if np.ndim(x) else x, context)
    np.testing.assert_allclose(found, detection(ANCHORS).apply({}, {}, known, None).value, rtol=1e-5)
    with pytest.raises(ValueError, match="batch/unknown"):
        detection(ANCHORS, where="batch/unknown").init(jax.random.key(0), context)


@pytest.mark.slow
@pytest.mark.parametrize("make", [detector_kd, soft_detections])
def test_gradients_are_finite(make):
    context, objective = given(), make(ANCHORS)
    nan = jax.tree.map(lambda x: np.where(np.arange(3).reshape(3, 1, 1) == 1, np.float32(np.nan), x), context.student)
    half = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), (context.student, context.teacher))
    cases = {
        "empty": context._replace(batch={**context.batch, "box_mask": np.zeros((3, 3), bool)}),
        "masked": context._replace(student=nan, batch={**context.batch, "mask": np.array([True, False, True])}),
        "all masked": context._replace(student=nan, batch={**context.batch, "mask": np.zeros(3, bool)}),
        "large": context._replace(student=jax.tree.map(lambda x: 1e4 * x, context.student)),
        "bfloat16": context._replace(student=half[0], teacher=half[1]),
    }
    gradient = jax.jit(jax.grad(lambda s, c: objective.apply({}, {}, c._replace(student=s), None).value))
    for case, other in cases.items():
        if case == "all masked":
            other = other._replace(student=context.student)
        found = gradient(other.student, other)
        assert all(bool(jnp.isfinite(x).all()) for x in jax.tree.leaves(found)), case
        if case == "masked":
            dropped = jax.tree.map(lambda x: x[np.array([0, 2])] if np.ndim(x) else x, context)
            want = gradient(dropped.student, dropped)
            tiny.assert_close(jax.tree.map(lambda x: x[np.array([0, 2])], found), want)
        if case == "all masked":
            assert not any(bool((x != 0).any()) for x in jax.tree.leaves(found))


# --- Errors ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("make", [detector_kd, soft_detections])
def test_arguments_and_outputs_that_do_not_fit_raise(make):
    for options, match in (
        ({"form": "focal"}, "form: expected 'softmax' or 'sigmoid'"),
        ({"teacher_form": "focal"}, "teacher_form: expected 'softmax' or 'sigmoid'"),
        ({"temperature": 0.0}, "temperature: expected a positive number"),
        ({"background_weight": -1.0}, "background_weight: expected a number of at least 0"),
        ({"least_overlap": 2.0}, "least_overlap: expected a number from 0 to 1"),
        ({"teacher_anchors": np.zeros((3, 2))}, r"teacher_anchors: expected boxes \[n, 4\]"),
        ({"teacher_anchors": ANCHORS / 100}, "teacher_anchors: expected some that overlap"),
    ):
        with pytest.raises(ValueError, match=match):
            make(ANCHORS, **options)
    key = jax.random.key(0)
    for context, match in (
        (given(anchors=5), r"student/logits: expected \[batch, 16, classes\]"),
        (given(teacher_anchors=5), r"teacher/logits: expected \[batch, 16, classes\].*teacher_anchors="),
        (given(teacher_classes=5), "expected as many classes of both detectors"),
    ):
        with pytest.raises(ValueError, match=match):
            make(ANCHORS).init(key, context)
