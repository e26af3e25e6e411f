"""Properties of every objective with learned layers: devices, gradients, dtypes and evaluation (see masks_test)."""

import functools
import warnings
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, PartitionSpec

from jaxkd import Context, ObjectiveVars, losses
from jaxkd._core.batch_norm import replicas
from jaxkd.objectives import (
    boundary_connector,
    dual_masked_generation,
    factor_translator,
    masked_generation,
    on_embeddings,
    overhaul_connector,
    paraphraser,
    review,
    variational,
)
from tests import tiny

AXIS, BATCH = "devices", 16
KEY = jax.random.key(5)
MAPS, VECTORS = ("student/map", "teacher/map"), ("student/vector", "teacher/vector")
SHAPES = {
    "student": {"map": (4, 4, 4), "vector": (4,), "tokens": (3, 4), "same": (2, 2, 5)},
    "teacher": {"map": (2, 2, 5), "vector": (5,), "tokens": (3, 5), "same": (2, 2, 5)},
}
MARGIN = jnp.linspace(-1.0, 0.0, 5)


class Case(NamedTuple):
    objective: Any
    name: str = ""


CASES = {
    "variational": Case(variational(*MAPS, weight=2.0)),
    "variational_tokens": Case(variational("student/tokens", "teacher/tokens", hidden_size=3)),
    "paraphraser": Case(paraphraser("teacher/map", weight=3.0)),
    "factor_transfer": Case(factor_translator(*MAPS, weight=4.0)),
    "overhaul": Case(overhaul_connector(*VECTORS, MARGIN, weight=0.3)),
    "overhaul_maps": Case(overhaul_connector("student/same", "teacher/same", MARGIN)),
    "activation_boundary": Case(boundary_connector(*VECTORS, margin=0.5)),
    "review": Case(review(("student/map", "student/same"), ("teacher/map", "teacher/vector"), hidden_size=3)),
    "correlation": Case(on_embeddings(losses.consecutive_correlation, *VECTORS, embedding_size=3)),
    "distance_of_units": Case(on_embeddings(losses.distance_relation, *MAPS, embedding_size=3, normalize=True)),
    "masked_generation": Case(masked_generation(*MAPS, mask_ratio=0.5, weight=0.1)),
    "masked_generation_of_one_width": Case(masked_generation("student/same", "teacher/same", mask_ratio=0.5)),
    "dual_masked_generation": Case(dual_masked_generation(*MAPS, weight=0.1)),
}
RANDOM = {"masked_generation", "masked_generation_of_one_width"}


@pytest.fixture(params=CASES)
def case(request):
    return CASES[request.param]._replace(name=request.param)


def features(size, seed=0, dtype=np.float32):
    rng = np.random.default_rng(seed)
    return {root: {n: rng.normal(size=(size, *s)).astype(dtype) for n, s in SHAPES[root].items()} for root in SHAPES}


def context(arrays, mask=None, axis_name=None):
    batch = {} if mask is None else {"mask": mask}
    return Context(arrays["student"], arrays["teacher"], batch, jnp.int32(3), axis_name)


def made(case, seed=1):
    """Initial variables with random offsets, since initial zeros and ones would hide errors."""
    shapes = jax.eval_shape(lambda a: context(a)._replace(axis_name=None), features(2))
    variables = case.objective.init(jax.random.key(seed), shapes)
    leaves, structure = jax.tree.flatten(variables)
    rng = np.random.default_rng(seed)
    moved = [x + 0.1 * np.abs(rng.normal(size=x.shape)).astype(np.float32) for x in leaves]
    return jax.tree.unflatten(structure, moved)


def run(case, variables, arrays, mask=None, key=KEY, axis_name=None):
    """Returns value, gradients of parameters and features, and new state."""

    def value(params, arrays):
        out = case.objective.apply(params, variables.state, context(arrays, mask, axis_name), key)
        return out.value, out.state

    (found, state), gradients = jax.value_and_grad(value, (0, 1), has_aux=True)(variables.params, arrays)
    return found, gradients, state


@functools.cache
def compiled(name):
    """`run`, compiled once per shape; tests share batches of five where they can."""
    return jax.jit(lambda variables, arrays, mask=None: run(CASES[name], variables, arrays, mask))


def test_parameters_are_float32_and_all_receive_gradients(case):
    variables = made(case)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(variables))
    value, (gradients, _), state = compiled(case.name)(variables, features(5))
    assert value.dtype == jnp.float32
    assert np.isfinite(value)
    assert all(np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
    assert jax.tree.map(jax.typeof, state) == jax.tree.map(jax.typeof, variables.state)


def test_variables_can_be_donated(case):
    """Donation requires that no buffer occurs twice, and that none is shared with the objective."""
    shapes = jax.eval_shape(lambda a: context(a)._replace(axis_name=None), features(2))
    variables = case.objective.init(jax.random.key(0), shapes)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        jax.jit(lambda v: jax.tree.map(lambda x: x + 1, v), donate_argnums=0)(variables)
    assert all(x.is_deleted() for x in jax.tree.leaves(variables))
    again = case.objective.init(jax.random.key(0), shapes)
    assert not any(x.is_deleted() for x in jax.tree.leaves(again))


def test_fully_masked_batch_has_zero_gradients(case):
    variables = made(case)
    value, gradients, state = compiled(case.name)(variables, features(7), np.zeros(7, bool))
    assert value == 0
    assert all((g == 0).all() for g in jax.tree.leaves(gradients))
    tiny.assert_equal(state, variables.state)


def test_batch_of_one_and_zero_features_are_finite(case):
    variables, arrays = made(case), features(1)
    for given in arrays, jax.tree.map(np.zeros_like, arrays):
        found = compiled(case.name)(variables, given)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_bfloat16_equals_upcast_input(case):
    variables = made(case)
    arrays = jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), features(5))
    value, (of_params, of_features), state = compiled(case.name)(variables, arrays)
    want, (params, _), new = compiled(case.name)(variables, jax.tree.map(lambda x: x.astype(jnp.float32), arrays))
    np.testing.assert_allclose(value, want, rtol=1e-5)
    tiny.assert_close((of_params, state), (params, new), rtol=1e-4, atol=1e-5)
    assert all(g.dtype == jnp.bfloat16 for g in jax.tree.leaves(of_features))


def test_evaluation_is_deterministic_and_keeps_state(case):
    variables, arrays = made(case), features(5)
    evaluate = jax.jit(lambda v, a: case.objective.apply(*v, context(a), None))
    out = evaluate(variables, arrays)
    tiny.assert_equal(out.state, variables.state)
    assert out.value == evaluate(variables, arrays).value
    train = jax.jit(lambda v, a, k: case.objective.apply(*v, context(a), k))
    values = {float(train(variables, arrays, jax.random.key(i)).value) for i in range(3)}
    assert (len(values) > 1) == (case.name in RANDOM)


def test_gradients_equal_finite_differences(case):
    """Along random directions of parameters and student features, in training and float64."""
    with jax.enable_x64(True):
        double = lambda tree: jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), tree)  # noqa: E731
        variables, arrays = double(made(case)), double(features(5, seed=100))
        rng = np.random.default_rng(7)
        towards = jax.tree.map(lambda x: jnp.asarray(rng.normal(size=x.shape)), (variables.params, arrays["student"]))

        @jax.jit
        def value(step):
            params, student = jax.tree.map(lambda x, d: x + step * d, (variables.params, arrays["student"]), towards)
            given = context({**arrays, "student": student})
            return case.objective.apply(params, variables.state, given, KEY).value

        found = jax.jit(jax.grad(value))(0.0)
        steps = 1e-6 * np.array([1.0, 2.0])
        first, second = ((value(h) - value(-h)) / (2 * h) for h in steps)
        np.testing.assert_allclose(found, (4 * first - second) / 3, rtol=1e-5, atol=1e-8)


# --- devices ---------------------------------------------------------------------------------------------------------

MASKS = {
    "all": np.ones(BATCH, bool),
    "uneven": np.arange(BATCH) % 5 > 1,
    "half": np.arange(BATCH) >= BATCH // 2,  # all examples of the first devices are masked
}
PLACES = [("pmap", 8), ("shard_map", 2), ("shard_map, unchecked", 4), ("vmap", 8)]
# One of each kind of dependence between devices: the mean, batch statistics, a relation, random numbers.
SHARED = ("variational", "overhaul", "review", "correlation", "masked_generation")


def on_devices(case, way, count):
    """Like a train step: each device differentiates its share, then gradients and state are averaged."""

    def local(variables, arrays, mask):
        params = variables.params
        if way == "shard_map":
            params = jax.lax.pcast(params, AXIS, to="varying")
        out = run(case, ObjectiveVars(params, variables.state), arrays, mask, axis_name=AXIS)
        value, (of_params, of_features), state = out
        # The value is a mean over devices, so each share's gradient of its features is `count` times too large.
        of_features = jax.tree.map(lambda g: g / count, of_features)
        return jax.lax.pmean((value, of_params, state), AXIS), of_features

    whole, split = PartitionSpec(), PartitionSpec(AXIS)
    if way.startswith("shard_map"):
        mesh = Mesh(np.array(jax.devices()[:count]), (AXIS,))
        specs = {"in_specs": (whole, split, split), "out_specs": (whole, split)}
        return jax.jit(jax.shard_map(local, mesh=mesh, check_vma="unchecked" not in way, **specs))
    if way == "pmap":
        placed = jax.pmap(local, axis_name=AXIS, in_axes=(None, 0, 0), devices=jax.devices()[:count])
    else:
        placed = jax.jit(jax.vmap(local, axis_name=AXIS, in_axes=(None, 0, 0)))

    def sliced(variables, arrays, mask):
        slices = jax.tree.map(lambda x: x.reshape(count, BATCH // count, *x.shape[1:]), (arrays, mask))
        shared, own = placed(variables, *slices)
        return jax.tree.map(lambda x: x[0], shared), jax.tree.map(lambda x: x.reshape(BATCH, *x.shape[2:]), own)

    return sliced


@pytest.mark.slow
@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize(("way", "count"), PLACES, ids=str)
def test_result_is_independent_of_device_count(name, way, count):
    case, arrays = CASES[name], features(BATCH)
    variables, placed = made(case), on_devices(case, way, count)
    for mask in MASKS.values():
        value, (of_params, of_features), state = compiled(name)(variables, arrays, mask)
        with replicas(1):  # by default, a connector's BatchNorm has statistics per device
            shared, own = placed(variables, arrays, mask)
        tiny.assert_close(shared, (value, of_params, state), rtol=1e-4, atol=1e-5)
        tiny.assert_close(own, of_features, rtol=1e-4, atol=1e-5)
