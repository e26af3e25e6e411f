"""Attention graphs (MHGD): values, gradient routing, masks, devices, degenerate features and training."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd.objectives import attention_graph
from tests import objective_runs, tiny
from tests.objective_runs import PLACES, context, double, initialize, run

BATCH, HEADS, FEATURES, WEIGHT = 16, 2, 3, 0.7
PATHS = (("student/front", "student/back"), ("teacher/front", "teacher/back"))
OPTIONS: dict[str, Any] = {"heads": HEADS, "hidden_size": FEATURES, "weight": WEIGHT}
GRAPH = attention_graph(*PATHS, **OPTIONS)
KEEP = np.arange(BATCH) % 5 > 1

SHAPES = {  # student front and back, teacher front and back
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
    """First right-singular vectors with a positive largest entry and mean square 1."""
    feature = np.asarray(feature, np.float64)
    right = np.linalg.svd(feature.reshape(len(feature), -1, feature.shape[-1]))[2][:, 0]
    peak = np.take_along_axis(right, np.abs(right).argmax(axis=1)[:, None], axis=1)
    return np.sqrt(right.shape[1]) * np.sign(peak) * right


def softmax(x):
    x = np.exp(x - x.max(axis=-1, keepdims=True))
    return x / x.sum(axis=-1, keepdims=True)


def formula(params, given):
    """Returns the divergence and L_A of every example."""
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


def test_value_equals_numpy_reference(shapes):
    given = arrays(shapes)
    variables = initialize(GRAPH, given)
    divergence, missed = formula(variables.params, given)
    found = run(GRAPH, variables, given)
    assert divergence.mean() > 1e-3
    np.testing.assert_allclose(found.metrics[""], divergence.mean(), rtol=1e-3)
    np.testing.assert_allclose(found.metrics["estimator"], missed.mean(), rtol=1e-4)
    np.testing.assert_allclose(found.value, WEIGHT * divergence.mean() + missed.mean(), rtol=1e-4)
    np.testing.assert_allclose(found.metrics["weight"], WEIGHT)


def test_parameter_shapes(shapes):
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
    variables = initialize(GRAPH, given)
    assert jax.tree.map(jnp.shape, variables.params) == (owned | {"student": maps} if maps else owned)
    assert variables.state == {}
    assert all((g != 0).any() for g in jax.tree.leaves(run(GRAPH, variables, given)[1:3]))


def along(value, tree, towards, step=1e-5):
    """Directional derivative of a function of a tree, by central differences."""
    moved = lambda h: value(jax.tree.map(lambda x, d: x + h * d, tree, towards))  # noqa: E731
    return (moved(step) - moved(-step)) / (2 * step)


@pytest.mark.parametrize("kind", ["channels differ", "channels agree"])
def test_gradients_equal_finite_differences(kind):
    """The divergence gives the gradient of the student's features and maps, L_A that of the attention network."""
    with jax.enable_x64(True):
        given = double(arrays(SHAPES[kind], 6))
        variables = double(initialize(GRAPH, given))
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


@pytest.mark.slow
def test_weight_scales_only_the_student_gradient():
    given = arrays()
    found = {}
    for weight in 0.0, 1.0, 3.0:
        objective = attention_graph(*PATHS, **{**OPTIONS, "weight": weight})
        found[weight] = run(objective, initialize(objective, given), given)
    for name in "attention", "estimator":
        tiny.assert_close(found[3.0].params[name], found[0.0].params[name], rtol=1e-5)
    of_student = lambda weight: (found[weight].params["student"], found[weight].student)  # noqa: E731
    assert all((g == 0).all() for g in jax.tree.leaves(of_student(0.0)))
    tiny.assert_close(of_student(3.0), jax.tree.map(lambda g: 3 * g, of_student(1.0)), rtol=1e-4, atol=1e-6)


def test_student_equal_to_teacher_has_zero_loss_and_gradient():
    given = arrays(SHAPES["channels agree"])
    given["student"] = dict(given["teacher"])
    variables = initialize(GRAPH, given)
    for sign in 1, -1:
        given["student"] = {"front": sign * given["teacher"]["front"], "back": 2 * given["teacher"]["back"]}
        found = run(GRAPH, variables, given)
        np.testing.assert_allclose(found.metrics[""], 0, atol=1e-6)
        assert all(np.abs(g).max() < 1e-4 for g in jax.tree.leaves(found.student))


def test_value_is_invariant_to_feature_sign():
    given = arrays()
    variables = initialize(GRAPH, given)
    flipped = {**given, "student": {**given["student"], "back": -given["student"]["back"]}}
    np.testing.assert_allclose(run(GRAPH, variables, flipped).value, run(GRAPH, variables, given).value, rtol=1e-4)


# --- masks, devices, extremes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["channels differ", "channels agree"])
def test_masking_equals_dropping(kind):
    given = arrays(SHAPES[kind], mask=KEEP)
    variables = initialize(GRAPH, given)
    want = run(GRAPH, variables, kept(given, KEEP))
    for garbage in np.nan, np.inf, 1e30:
        found = run(GRAPH, variables, {root: objective_runs.spoiled(x, KEEP, garbage) for root, x in given.items()})
        tiny.assert_close(found._replace(student={}), want._replace(student={}), rtol=1e-3, atol=1e-5)
        tiny.assert_close(objective_runs.rows(found.student, KEEP), want.student, rtol=1e-3, atol=1e-5)
        assert all((g[~KEEP] == 0).all() for g in jax.tree.leaves(found.student))


def test_fully_masked_batch_has_zero_gradients():
    given = arrays(mask=np.zeros(BATCH, bool))
    found = run(GRAPH, initialize(GRAPH, given), given)
    assert found.value == 0
    assert all((g == 0).all() for g in jax.tree.leaves((found.params, found.student)))


@pytest.mark.parametrize(("way", "count"), PLACES, ids=str)
def test_result_is_independent_of_device_count(way, count):
    variables = initialize(GRAPH, arrays())
    placed = objective_runs.on_devices(GRAPH, way, count)
    for mask in np.ones(BATCH, bool), KEEP, np.arange(BATCH) >= BATCH // 2, np.zeros(BATCH, bool):
        given = arrays(mask=mask)
        tiny.assert_close(placed(variables, given), run(GRAPH, variables, given), rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("size", [1, 3])
def test_degenerate_features_are_finite(size):
    """Zeros, constants, repeated singular values, duplicated examples, and a batch of one."""
    for kind in "channels differ", "channels agree":
        given = arrays(SHAPES[kind], size)
        variables = initialize(GRAPH, given)
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


def test_bfloat16_equals_upcast_input():
    given = arrays()
    low = {
        **given,
        **{s: jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), given[s]) for s in ("student", "teacher")},
    }
    high = {**low, **{s: jax.tree.map(lambda x: x.astype(jnp.float32), low[s]) for s in ("student", "teacher")}}
    variables = initialize(GRAPH, given)
    found, want = run(GRAPH, variables, low), run(GRAPH, variables, high)
    assert all(g.dtype == jnp.bfloat16 for g in jax.tree.leaves(found.student))
    tiny.assert_close(found._replace(student={}), want._replace(student={}), rtol=1e-5)


# --- training --------------------------------------------------------------------------------------------------------


def test_attention_network_and_student_learn():
    paths = (("student/map", "student/vector"), ("teacher/map", "teacher/vector"))
    schedule = lambda step: jnp.where(step < 50, 0.0, 20.0)  # noqa: E731
    objective = jaxkd.combine(mhgd=attention_graph(*paths, heads=4, hidden_size=8, weight=schedule))
    kd = jaxkd.distill(tiny.student, tiny.teacher(), objective, optimizer=optax.adam(0.02))
    given = tiny.batch(16)
    state = kd.init(jax.random.key(0), given)
    _, reported = jax.jit(lambda s: jax.lax.scan(lambda s, _: kd.step(s, given), s, length=250))(state)
    found = {name: np.asarray(m.sum / m.count) for name, m in reported.items()}
    assert found["mhgd/estimator"][-10:].mean() < 0.5 * found["mhgd/estimator"][:5].mean()
    assert found["mhgd"][-10:].mean() < 0.5 * found["mhgd"][50]


# --- errors ----------------------------------------------------------------------------------------------------------


def test_invalid_arguments_and_features_raise():
    for options in {"heads": 0}, {"hidden_size": 0}:
        with pytest.raises(ValueError, match=r"attention_graph, .*: expected a positive number"):
            attention_graph(*PATHS, **options)
    given = arrays()
    given["student"]["front"] = np.ones((BATCH, 3, 4), np.float32)
    with pytest.raises(ValueError, match=r"attention_graph, student/front: expected .* map .* got float32\[16, 3, 4\]"):
        initialize(GRAPH, given)
    given["student"]["front"] = np.ones((BATCH, 3, 3, 4), np.int32)
    with pytest.raises(ValueError, match="floating-point"):
        GRAPH.init(jax.random.key(0), context(given))
    with pytest.raises(ValueError, match="teacher entry 'middle'"):
        initialize(attention_graph(PATHS[0], ("teacher/front", "teacher/middle")), given | arrays())
