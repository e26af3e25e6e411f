"""Graphs of multi-head attention: the formula in NumPy, whose gradient goes where, masks, devices, that it learns."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd.objectives.attention_graph import attention_graph
from tests import objective_runs, tiny
from tests.objective_runs import PLACES, context, double, initialised, run

BATCH, HEADS, FEATURES, WEIGHT = 16, 2, 3, 0.7
PATHS = (("student/front", "student/back"), ("teacher/front", "teacher/back"))
OPTIONS: dict[str, Any] = {"heads": HEADS, "features": FEATURES, "weight": WEIGHT}
GRAPH = attention_graph(*PATHS, **OPTIONS)
KEEP = np.arange(BATCH) % 5 > 1

SHAPES = {  # the student's front and back, the teacher's
    "channels differ": ((3, 3, 4), (2, 2, 5), (4, 4, 3), (2, 2, 6)),
    "channels agree": ((3, 3, 3), (2, 2, 4), (4, 4, 3), (2, 2, 4)),
    "one differs": ((3, 3, 3), (2, 2, 5), (4, 4, 3), (2, 2, 4)),
    "vectors": ((3, 3, 4), (5,), (4, 4, 3), (6,)),
    "few positions": ((1, 2, 4), (1, 1, 5), (1, 1, 3), (1, 2, 6)),
}


@pytest.fixture(params=SHAPES)
def shapes(request):
    return SHAPES[request.param]


def arrays(shapes=SHAPES["channels differ"], size=BATCH, seed=0, mask=None):
    rng = np.random.default_rng(seed)
    a, b, c, d = (rng.normal(size=(size, *shape)).astype(np.float32) for shape in shapes)
    student, teacher = {"front": a, "back": b}, {"front": c, "back": d}
    return {"student": student, "teacher": teacher, "batch": {} if mask is None else {"mask": mask}}


def kept(given, keep):
    return {root: objective_runs.rows(given[root], keep) for root in ("student", "teacher")} | {"batch": {}}


# --- the formula -----------------------------------------------------------------------------------------------------


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def vectors(feature):
    """First right-singular vectors, the largest entry positive, of mean square 1."""
    feature = np.asarray(feature, np.float64)
    right = np.linalg.svd(feature.reshape(len(feature), -1, feature.shape[-1]))[2][:, 0]
    peak = np.take_along_axis(right, np.abs(right).argmax(axis=1)[:, None], axis=1)
    return np.sqrt(right.shape[1]) * np.sign(peak) * right


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def formula(params, given):
    """The divergence and L_A, one of each for every example."""
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), params)
    taught = [vectors(given["teacher"][end]) for end in ("front", "back")]
    learning = []
    for end, target in zip(("front", "back"), taught, strict=True):
        v = vectors(given["student"][end])
        if end in params.get("student", {}):
            v = np.sqrt(target.shape[1]) * unit(v @ params["student"][end]["kernel"])
        learning.append(np.where((v * target).sum(axis=1, keepdims=True) < 0, -v, v))

    def graph(h, front, back):
        part = slice(h * FEATURES, (h + 1) * FEATURES)
        queries, keys = (
            v @ params["attention"][name]["kernel"][:, part] for name, v in (("query", back), ("key", front))
        )
        return softmax(queries @ keys.T / np.sqrt(FEATURES))

    divergence, attended = 0.0, []
    value = params["estimator"]["value"]
    for h in range(HEADS):
        of_teacher, of_student = graph(h, *taught), graph(h, *learning)
        divergence += (of_teacher * np.log(of_teacher / of_student)).sum(axis=1) / HEADS
        part = slice(h * FEATURES, (h + 1) * FEATURES)
        attended.append(of_teacher @ (taught[0] @ value["kernel"][:, part] + value["bias"][part]))
    hidden = np.maximum(np.concatenate(attended, axis=1), 0)
    estimate = hidden @ params["estimator"]["out"]["kernel"] + params["estimator"]["out"]["bias"]
    return divergence, 1 - (unit(estimate) * unit(taught[1])).sum(axis=1)


def test_the_value_is_the_formula(shapes):
    given = arrays(shapes)
    variables = initialised(GRAPH, given)
    divergence, missed = formula(variables.params, given)
    found = run(GRAPH, variables, given)
    assert divergence.mean() > 1e-3
    np.testing.assert_allclose(found.metrics[""], divergence.mean(), rtol=1e-3)
    np.testing.assert_allclose(found.metrics["estimator"], missed.mean(), rtol=1e-4)
    np.testing.assert_allclose(found.value, WEIGHT * divergence.mean() + missed.mean(), rtol=1e-4)
    np.testing.assert_allclose(found.metrics["weight"], WEIGHT)


def test_what_is_owned(shapes):
    given = arrays(shapes)
    a, b, c, d = (shape[-1] for shape in shapes)
    width = HEADS * FEATURES
    owned = {
        "attention": {"query": {"kernel": (d, width)}, "key": {"kernel": (c, width)}},
        "estimator": {
            "value": {"kernel": (c, width), "bias": (width,)},
            "out": {"kernel": (width, d), "bias": (d,)},
        },
    }
    maps = {end: {"kernel": (s, t)} for end, s, t in (("front", a, c), ("back", b, d)) if s != t}
    variables = initialised(GRAPH, given)
    assert jax.tree.map(jnp.shape, variables.params) == (owned | {"student": maps} if maps else owned)
    assert variables.state == {}
    assert all((g != 0).any() for g in jax.tree.leaves(run(GRAPH, variables, given)[1:3]))


def along(value, tree, towards, step=1e-5):
    """The slope of a function of a tree in a direction."""
    moved = lambda h: value(jax.tree.map(lambda x, d: x + h * d, tree, towards))  # noqa: E731
    return (moved(step) - moved(-step)) / (2 * step)


@pytest.mark.parametrize("kind", ["channels differ", "channels agree"])
def test_gradients_are_those_of_the_formula(kind):
    """Of the student's features and its maps by the divergence, of the attention network by L_A, each alone."""
    with jax.enable_x64(True):
        given = double(arrays(SHAPES[kind], 6))
        variables = double(initialised(GRAPH, given))
        found, params = run(GRAPH, variables, given), jax.tree.map(np.asarray, variables.params)
        rng = np.random.default_rng(1)
        own = {name: tree for name, tree in params.items() if name != "student"}
        maps = {name: tree for name, tree in params.items() if name == "student"}
        student = jax.tree.map(np.asarray, given["student"])
        divergence = lambda params, student: WEIGHT * formula(params, {**given, "student": student})[0].mean()  # noqa: E731
        cases = (
            (lambda own: formula(maps | own, given)[1].mean(), own, {name: found.params[name] for name in own}),
            (lambda maps: divergence(own | maps, student), maps, {name: found.params[name] for name in maps}),
            (lambda student: divergence(params, student), student, found.student),
        )
        for value, at, gradient in cases:
            towards = jax.tree.map(lambda x: rng.normal(size=x.shape), at)
            inner = sum(jax.tree.leaves(jax.tree.map(lambda g, d: (g * d).sum(), gradient, towards)))
            np.testing.assert_allclose(inner, along(value, at, towards), rtol=1e-5, atol=1e-8)


def test_each_loss_has_its_own_gradient():
    given = arrays()
    found = {}
    for weight in 0.0, 1.0, 3.0:
        objective = attention_graph(*PATHS, **{**OPTIONS, "weight": weight})
        found[weight] = run(objective, initialised(objective, given), given)
    for name in "attention", "estimator":
        tiny.assert_close(found[3.0].params[name], found[0.0].params[name], rtol=1e-5)
    of_student = lambda weight: (found[weight].params["student"], found[weight].student)  # noqa: E731
    assert all((g == 0).all() for g in jax.tree.leaves(of_student(0.0)))
    tiny.assert_close(of_student(3.0), jax.tree.map(lambda g: 3 * g, of_student(1.0)), rtol=1e-4, atol=1e-6)


def test_a_student_like_its_teacher_has_nothing_to_learn():
    given = arrays(SHAPES["channels agree"])
    given["student"] = dict(given["teacher"])
    variables = initialised(GRAPH, given)
    for sign in 1, -1:
        given["student"] = {"front": sign * given["teacher"]["front"], "back": 2 * given["teacher"]["back"]}
        found = run(GRAPH, variables, given)
        np.testing.assert_allclose(found.metrics[""], 0, atol=1e-6)
        assert all(np.abs(g).max() < 1e-4 for g in jax.tree.leaves(found.student))


def test_the_sign_of_a_feature_is_that_of_its_singular_vector():
    given = arrays()
    variables = initialised(GRAPH, given)
    flipped = {**given, "student": {**given["student"], "back": -given["student"]["back"]}}
    np.testing.assert_allclose(run(GRAPH, variables, flipped).value, run(GRAPH, variables, given).value, rtol=1e-4)


# --- masks, devices, extremes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["channels differ", "channels agree"])
def test_masking_is_dropping(kind):
    given = arrays(SHAPES[kind], mask=KEEP)
    variables = initialised(GRAPH, given)
    want = run(GRAPH, variables, kept(given, KEEP))
    for garbage in np.nan, np.inf, 1e30:
        found = run(GRAPH, variables, {root: objective_runs.spoilt(x, KEEP, garbage) for root, x in given.items()})
        tiny.assert_close(found._replace(student={}), want._replace(student={}), rtol=1e-3, atol=1e-5)
        tiny.assert_close(objective_runs.rows(found.student, KEEP), want.student, rtol=1e-3, atol=1e-5)
        assert all((g[~KEEP] == 0).all() for g in jax.tree.leaves(found.student))


def test_nothing_that_counts_is_nothing_learned():
    given = arrays(mask=np.zeros(BATCH, bool))
    found = run(GRAPH, initialised(GRAPH, given), given)
    assert found.value == 0
    assert all((g == 0).all() for g in jax.tree.leaves((found.params, found.student)))


@pytest.mark.parametrize(("way", "count"), PLACES, ids=str)
def test_the_number_of_devices_makes_no_difference(way, count):
    variables = initialised(GRAPH, arrays())
    placed = objective_runs.on_devices(GRAPH, way, count)
    for mask in np.ones(BATCH, bool), KEEP, np.arange(BATCH) >= BATCH // 2, np.zeros(BATCH, bool):
        given = arrays(mask=mask)
        tiny.assert_close(placed(variables, given), run(GRAPH, variables, given), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_features_without_a_direction_are_finite(size):
    """Zeros, constants, repeated singular values, duplicated examples, and a batch of one."""
    for kind in "channels differ", "channels agree":
        given = arrays(SHAPES[kind], size)
        variables = initialised(GRAPH, given)
        features = {root: given[root] for root in ("student", "teacher")}
        for change in (
            lambda x: x,
            np.zeros_like,
            np.ones_like,
            lambda x: np.repeat(x[:1], len(x), axis=0),
            lambda x: 1e-30 * x,
            lambda x: 1e18 * x,
        ):
            found = run(GRAPH, variables, {**given, **jax.tree.map(change, features)})
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_bfloat16_is_the_upcast_input():
    given = arrays()
    low = {
        **given,
        **{s: jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), given[s]) for s in ("student", "teacher")},
    }
    high = {**low, **{s: jax.tree.map(lambda x: x.astype(jnp.float32), low[s]) for s in ("student", "teacher")}}
    variables = initialised(GRAPH, given)
    found, want = run(GRAPH, variables, low), run(GRAPH, variables, high)
    assert all(g.dtype == jnp.bfloat16 for g in jax.tree.leaves(found.student))
    tiny.assert_close(found._replace(student={}), want._replace(student={}), rtol=1e-5)


# --- training --------------------------------------------------------------------------------------------------------


def test_the_network_learns_and_the_student_follows():
    paths = (("student/map", "student/vector"), ("teacher/map", "teacher/vector"))
    schedule = lambda step: jnp.where(step < 50, 0.0, 20.0)  # noqa: E731
    objective = jaxkd.combine(mhgd=attention_graph(*paths, heads=4, features=8, weight=schedule))
    kd = jaxkd.distill(tiny.student, tiny.teacher(), objective, optimizer=optax.adam(0.02))
    given = tiny.batch(16)
    state = kd.init(jax.random.key(0), given)
    _, reported = jax.jit(lambda s: jax.lax.scan(lambda s, _: kd.step(s, given), s, length=250))(state)
    found = {name: np.asarray(m.sum / m.count) for name, m in reported.items()}
    assert found["mhgd/estimator"][-10:].mean() < 0.5 * found["mhgd/estimator"][:5].mean()
    assert found["mhgd"][-10:].mean() < 0.5 * found["mhgd"][50]


# --- errors ----------------------------------------------------------------------------------------------------------


def test_what_does_not_fit():
    for options in {"heads": 0}, {"features": 0}:
        with pytest.raises(ValueError, match="expected at least one head and one feature"):
            attention_graph(*PATHS, **options)
    given = arrays()
    given["student"]["front"] = np.ones((BATCH, 3, 4), np.float32)
    with pytest.raises(ValueError, match=r"attention_graph, student/front: expected .* map .* got float32\[16, 3, 4\]"):
        initialised(GRAPH, given)
    given["student"]["front"] = np.ones((BATCH, 3, 3, 4), np.int32)
    with pytest.raises(ValueError, match="floating-point"):
        GRAPH.init(jax.random.key(0), context(given))
    with pytest.raises(ValueError, match="teacher entry 'middle'"):
        initialised(attention_graph(PATHS[0], ("teacher/front", "teacher/middle")), given | arrays())
