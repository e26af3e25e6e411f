"""Objectives of poses, against formulas in NumPy; masks, batches, resolutions and dtypes."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import Context, adapters, objectives, teachers, wrappers
from jaxkd.objectives.discriminators import cnn
from tests import tiny

BATCH, FRAMES, SIDE, JOINTS = 3, 3, 4, 2
IMAGES, CLIPS = (BATCH, SIDE, SIDE, JOINTS), (BATCH, FRAMES, SIDE, SIDE, JOINTS)
PATHS, SEEN = ("student/heatmaps", "teacher/heatmaps"), "batch/point_mask"


def integral(**options):
    return objectives.integral_pose(*PATHS, student_feature="student/f", teacher_feature="teacher/f", **options)


OBJECTIVES = {
    "heatmaps": (objectives.pose_heatmaps(*PATHS, joint_path=SEEN, weight=2.0), False),
    "heatmaps of clips": (objectives.pose_heatmaps(*PATHS, joint_path=SEEN, weight=2.0), True),
    "integral": (integral(joint_path=SEEN), False),
    "integral of clips": (integral(joint_path=SEEN), True),
    "temporal": (objectives.temporal_adversarial(*PATHS, joint_path=SEEN, discriminator=cnn(3)), True),
}


def given(clips, size=BATCH, dtype=np.float32, teacher_side=SIDE, seed=0, **batch):
    rng = np.random.default_rng(seed)
    shape = (size, *(CLIPS if clips else IMAGES)[1:])
    theirs = (*shape[:-3], teacher_side, teacher_side, JOINTS)

    def draw(shape):
        return jnp.asarray(rng.normal(size=shape), dtype)

    mask = rng.uniform(size=(*shape[:-3], JOINTS)) < 0.7
    mask[0, ..., 0] = True
    return Context(
        {"heatmaps": draw(shape), "f": draw((*shape[:-1], 3))},
        {"heatmaps": draw(theirs), "f": draw((*shape[:-1], 5))},
        {"point_mask": jnp.asarray(mask), **batch},
        jnp.int32(0),
    )


@functools.cache
def compiled(name):
    objective = OBJECTIVES[name][0]

    def run(params, student, context):
        loss = lambda params, student: objective.apply(params, {}, context._replace(student=student), None)  # noqa: E731
        grads = jax.grad(lambda *x: loss(*x).value, argnums=(0, 1))(params, student)
        return loss(params, student), grads

    return jax.jit(run)


def run(name, context, seed=1):
    params = OBJECTIVES[name][0].init(jax.random.key(seed), jax.eval_shape(lambda: context)).params
    return compiled(name)(params, dict(context.student), context)


def measured(out, name=""):
    mean = out.metrics[name]
    return float(mean.sum / mean.count)


def numpy(context):
    cast = lambda tree: jax.tree.map(lambda x: np.asarray(x, np.float64), tree)  # noqa: E731
    return cast(context.student), cast(context.teacher), np.asarray(context.batch["point_mask"])


# --- values ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["heatmaps", "heatmaps of clips"])
def test_heatmaps_average_the_squares_of_visible_joints(name):
    context = given(OBJECTIVES[name][1])
    mine, theirs, seen = numpy(context)
    values = []
    for s, t, m in zip(mine["heatmaps"], theirs["heatmaps"], seen, strict=True):
        squares = np.moveaxis((s - t) ** 2, -1, -3)[m]
        values.append(squares.mean() if m.any() else 0)
    out, _ = run(name, context)
    np.testing.assert_allclose(measured(out), np.mean(values), rtol=1e-5)
    np.testing.assert_allclose(out.value, 2 * np.mean(values), rtol=1e-5)


def test_structure_of_a_clip_is_the_mean_over_its_frames():
    context = given(True)
    mine, theirs, seen = numpy(context)

    def cosines(heatmaps):
        rows = heatmaps.reshape(-1, JOINTS)
        return rows.T @ rows / np.outer(*2 * [np.linalg.norm(rows, axis=0)])

    values = []
    for s, t, m in zip(mine["heatmaps"], theirs["heatmaps"], seen, strict=True):
        frames = [
            np.mean((cosines(a)[k][:, k] - cosines(b)[k][:, k]) ** 2)
            for a, b, k in zip(s, t, m, strict=True)
            if k.any()
        ]
        values.append(np.mean(frames) if frames else 0)
    out, _ = run("integral of clips", context)
    np.testing.assert_allclose(measured(out, "structure"), np.mean(values), rtol=1e-4)


def test_the_integral_objective_is_the_sum_of_its_weighted_terms():
    context = given(False)
    objective = integral(heatmap_weight=2.0, feature_weight=0.5, structure_weight=3.0)
    params = objective.init(jax.random.key(0), context).params
    out = objective.apply(params, {}, context, None)
    weights = {"heatmap": 2.0, "feature": 0.5, "structure": 3.0}
    np.testing.assert_allclose(out.value, sum(w * measured(out, n) for n, w in weights.items()), rtol=1e-6)
    mine, theirs, _ = numpy(context)
    kernel, bias = (np.asarray(params["feature"][name], np.float64) for name in ("kernel", "bias"))
    regressed = mine["f"] @ kernel[0, 0] + bias
    np.testing.assert_allclose(measured(out, "feature"), np.mean((regressed - theirs["f"]) ** 2), rtol=1e-5)


def test_the_temporal_game_is_on_changes_of_joints_that_both_frames_have():
    context = given(True)
    mine, theirs, seen = numpy(context)
    both = (seen[:, 1:] & seen[:, :-1])[:, :, None, None]

    def changes(x):
        found = np.where(both, x["heatmaps"][:, 1:] - x["heatmaps"][:, :-1], 0)
        return np.concatenate(list(np.moveaxis(found, 1, 0)), axis=-1)

    objective = objectives.adversarial("student/c", "teacher/c", discriminator=cnn(3))
    plain = Context({"c": jnp.float32(changes(mine))}, {"c": jnp.float32(changes(theirs))}, {}, jnp.int32(0))
    params = objective.init(jax.random.key(1), plain).params
    expected = objective.apply(params, {}, plain, None)
    out, _ = run("temporal", context)
    np.testing.assert_allclose(out.value, expected.value, rtol=1e-5)
    assert measured(out, "discriminator") == pytest.approx(measured(expected, "discriminator"), rel=1e-5)


# --- masks, batches, sizes, dtypes -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", OBJECTIVES)
def test_without_a_visible_joint_gradients_are_finite(name):
    context = given(OBJECTIVES[name][1], seed=1)
    nothing = {"point_mask": jnp.zeros_like(context.batch["point_mask"])}
    out, (params, student) = run(name, context._replace(batch=nothing))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((out.value, params, student)))
    assert not np.any(student["heatmaps"])
    if name.startswith("heatmaps"):
        assert out.value == 0


@pytest.mark.parametrize("name", OBJECTIVES)
def test_invisible_joints_have_no_gradient(name):
    context = given(OBJECTIVES[name][1])
    _, (_, student) = run(name, context)
    grads = np.moveaxis(np.asarray(student["heatmaps"]), -1, -3)
    assert not np.any(grads[~np.asarray(context.batch["point_mask"])]) and np.any(grads)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_loss_of_an_example_does_not_depend_on_the_batch(name):
    """The mean over the batch is that of its examples, and a masked example with NaN counts as if it were absent."""
    whole = given(OBJECTIVES[name][1])
    params = OBJECTIVES[name][0].init(jax.random.key(1), whole).params
    value = lambda context: compiled(name)(params, dict(context.student), context)[0].value  # noqa: E731
    alone = [float(value(jax.tree.map(lambda x, i=i: x[i : i + 1] if x.ndim else x, whole))) for i in range(BATCH)]
    masked = whole._replace(
        student={n: x.at[1].set(jnp.nan) for n, x in whole.student.items()},
        batch={**whole.batch, "mask": jnp.array([True, False, True])},
    )
    if "temporal" in name:  # the game of the discriminator is part of the value
        assert float(value(masked)) == pytest.approx((alone[0] + alone[2]) / 2, rel=1e-4)
    np.testing.assert_allclose(value(whole), np.mean(alone), rtol=1e-5)
    np.testing.assert_allclose(value(masked), (alone[0] + alone[2]) / 2, rtol=1e-5)


def test_masked_frames_are_not_read():
    context = given(True)
    frames = jnp.ones((BATCH, FRAMES), bool).at[0, 1].set(False)
    blank = lambda x: jnp.where(frames[:, :, None, None, None], x, jnp.nan)  # noqa: E731
    masked = context._replace(
        student={"heatmaps": blank(context.student["heatmaps"])}, batch={**context.batch, "mask": frames}
    )
    seen = {"point_mask": context.batch["point_mask"] & frames[..., None]}
    objective = OBJECTIVES["heatmaps of clips"][0]
    expected = objective.apply({}, {}, context._replace(batch=seen), None).value
    np.testing.assert_allclose(objective.apply({}, {}, masked, None).value, expected, rtol=1e-6)


@pytest.mark.parametrize("name", ["heatmaps", "temporal"])
def test_a_teacher_of_another_resolution_is_resized(name):
    context = given(OBJECTIVES[name][1], teacher_side=2 * SIDE)
    theirs = context.teacher["heatmaps"]
    small = jax.image.resize(theirs, (*theirs.shape[:-3], SIDE, SIDE, JOINTS), "linear")
    same = context._replace(teacher={**context.teacher, "heatmaps": small})
    np.testing.assert_allclose(run(name, context)[0].value, run(name, same)[0].value, rtol=1e-5)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bfloat16_is_finite(name):
    out, grads = run(name, given(OBJECTIVES[name][1], dtype=jnp.bfloat16))
    assert out.value.dtype == jnp.float32
    assert all(np.isfinite(np.asarray(x, np.float32)).all() for x in jax.tree.leaves((out.value, grads)))


def test_what_is_refused():
    init = lambda objective, context: objective.init(jax.random.key(0), context)  # noqa: E731
    context = given(True)
    with pytest.raises(ValueError, match="joint_path: expected bool"):
        init(objectives.pose_heatmaps(*PATHS, joint_path="batch/mask2"), context._replace(batch={"mask2": jnp.ones(3)}))
    with pytest.raises(ValueError, match="clips of two frames or more"):
        init(objectives.temporal_adversarial(*PATHS), given(False))
    fewer = context._replace(teacher={"heatmaps": context.teacher["heatmaps"][..., :1]})
    with pytest.raises(ValueError, match="expected the joints and frames of student/heatmaps"):
        init(objectives.temporal_adversarial(*PATHS), fewer)


# --- a student alone -------------------------------------------------------------------------------------------------


def linear(width):
    def apply(params, image):
        hidden = jnp.tanh(image @ params["first"])
        return {"heatmaps": hidden @ params["second"], "f": hidden}

    def init(key, image):
        first, second = jax.random.split(key)
        return {
            "first": 0.5 * jax.random.normal(first, (image.shape[-1], width)),
            "second": 0.5 * jax.random.normal(second, (width, JOINTS)),
        }

    return adapters.plain(init, apply)


def test_weight_zero_is_the_student_alone():
    """Bit for bit, with parameters and moments of the optimizer."""
    rng = np.random.default_rng(0)
    batch = {
        "image": np.float32(rng.normal(size=(2, FRAMES, SIDE, SIDE, 3))),
        "heatmaps": np.float32(rng.uniform(size=(2, FRAMES, SIDE, SIDE, JOINTS))),
        "point_mask": np.ones((2, FRAMES, JOINTS), bool),
    }
    student, teacher = wrappers.by_frame(linear(3)), wrappers.by_frame(linear(4))
    frozen = teachers.frozen(teacher, teacher.init(jax.random.key(9), batch))
    alone = objectives.pose_heatmaps("student/heatmaps", "batch/heatmaps", joint_path=SEEN)
    taught = {
        "kd": integral(heatmap_weight=0.0, feature_weight=0.0, structure_weight=0.0),
        "temporal": objectives.temporal_adversarial(
            "student/heatmaps", "batch/heatmaps", joint_path=SEEN, discriminator=cnn(3), weight=0.0
        ),
    }
    found = []
    for terms in ({}, taught):
        kd = jaxkd.distill(student, frozen, jaxkd.combine(labels=alone, **terms), optimizer=optax.adam(0.1))
        state = kd.init(jax.random.key(0), batch)
        for _ in range(2):
            state, _ = jax.jit(kd.step)(state, batch)
        found.append((state.student, state.opt_state["student"]))
    tiny.assert_equal(*found)
