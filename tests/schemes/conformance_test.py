"""Properties that hold for every scheme of the table in `cases`."""

from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh

import jaxkd
from jaxkd import parallel
from jaxkd.training import fit
from tests import tiny
from tests.schemes.cases import CASES, Case, loader

STEPS = 5
DROPPED = (4, 5)  # of eight examples; one of four devices then has no unmasked example


class Run(NamedTuple):
    """A case, with states and metrics of its first steps under ``jax.jit``."""

    case: Case
    traces: list
    states: list
    metrics: list


def kept(case, seed):
    """Returns the batch without the dropped examples."""
    return {name: np.delete(x, DROPPED, axis=0) for name, x in case.batch(8, seed).items()}


def masked(case, seed):
    """Returns the batch with the dropped examples masked and set to large values."""
    batch = case.batch(8, seed)
    for x in batch.values():
        if np.issubdtype(x.dtype, np.floating):
            x[list(DROPPED)] *= 50
    return {**batch, "mask": ~np.isin(np.arange(8), DROPPED)}


def row(name, *values, slow=False):
    """Returns a parameter set; one worker runs all tests of a scheme."""
    marks = [pytest.mark.xdist_group(name), *([pytest.mark.slow] if slow else [])]
    return pytest.param(name, *values, marks=marks, id="-".join([name, *values]))


@pytest.fixture(scope="module", params=[row(name) for name in CASES])
def run(request):
    case, traces = CASES[request.param](), []

    @jax.jit
    def step(state, batch):
        traces.append(None)
        return case.kd.step(state, batch)

    states, metrics = [case.kd.init(jax.random.key(1), kept(case, 0))], []
    for seed in range(STEPS):
        state, found = step(states[-1], kept(case, seed))
        states.append(state)
        metrics.append(tiny.numbers(found))
    return Run(case, traces, states, metrics)


def test_step_is_traced_once_and_keeps_its_structure(run):
    assert len(run.traces) == 1
    described = [jax.tree.map(jax.typeof, state) for state in run.states]
    assert described[0] == described[-1]
    assert int(run.states[-1].step) == STEPS
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), kept(run.case, 0))
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(lambda key: run.case.kd.init(key, shapes), jax.random.key(1)), run.states[0]
    )


@pytest.mark.parametrize("function", ["step", "evaluate"])
def test_an_unknown_axis_of_devices_is_refused(run, function):
    state, split = jax.tree.map(jax.typeof, run.states[0]), jax.sharding.PartitionSpec("batch")
    specs = {"in_specs": (jax.sharding.PartitionSpec(), split), "out_specs": jax.sharding.PartitionSpec()}
    mesh = Mesh(np.array(jax.devices()[:2]), ("batch",))
    with pytest.raises(ValueError, match="only axis that is mapped over devices"):
        jax.eval_shape(jax.shard_map(getattr(run.case.kd, function), mesh=mesh, **specs), state, run.case.batch(8, 0))


def test_student_changes_and_teacher_does_not(run):
    first, last = run.states[0], run.states[-1]
    tiny.assert_equal(run.case.fixed(last), run.case.fixed(first))
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), run.case.pick(first).params, run.case.pick(last).params)
    assert any(jax.tree.leaves(moved))
    assert all(np.isfinite(found["loss"]) for found in run.metrics if "loss" in found)


@pytest.mark.parametrize("name", [row(name) for name in CASES if CASES[name]().fixed is Case._field_defaults["fixed"]])
def test_no_gradient_reaches_the_teacher(name):
    case = CASES[name]()
    first = case.kd.init(jax.random.key(1), kept(case, 0))

    def after(teacher):
        state, _ = case.kd.step(first._replace(teacher=teacher), kept(case, 0))
        params = jax.tree.leaves((state.student.params, state.objective.params))
        return sum(jnp.sum(x) for x in params if jnp.issubdtype(x.dtype, jnp.floating))

    gradient = jax.jit(jax.grad(after))(case.fixed(first))
    chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))


@pytest.mark.parametrize(
    ("run", "placement"),
    [
        row(name, placement, slow=placement == "pmap" and name != "offline")
        for name in CASES
        for placement in ("pmap", "shard")
    ],
    indirect=["run"],
)
def test_placement_equals_jit(run, placement):
    devices = jax.devices()[:4]
    mesh = Mesh(np.array(devices), (jaxkd.DATA_AXIS,))
    kd = run.case.kd
    step = parallel.pmap(kd, devices, replicas=1) if placement == "pmap" else parallel.shard(kd, mesh, replicas=1)
    state = jax.tree.map(jnp.copy, run.states[0])
    for seed in range(STEPS):
        state, found = step(state, masked(run.case, seed))
        assert tiny.numbers(found) == pytest.approx(run.metrics[seed], rel=1e-3, abs=1e-5, nan_ok=True)
    tiny.assert_close(state, run.states[-1], rtol=1e-3, atol=2e-5)
    expected = tiny.numbers(jax.jit(kd.evaluate)(run.states[-1], run.case.to_evaluate(8, 77)))
    found = tiny.numbers(step.evaluate(state, run.case.to_evaluate(8, 77)))
    assert found == pytest.approx(expected, rel=1e-3, abs=1e-5, nan_ok=True)


class Killed(Exception):
    pass


@pytest.mark.parametrize("run", [row(name, slow=name != "offline") for name in CASES], indirect=True)
def test_killed_run_resumes_to_the_same_state(run, tmp_path):
    train = run.case.train() if run.case.train else loader(run.case.batch)
    settings = {
        "steps": 6,
        "key": jax.random.key(3),
        "eval_data": loader(run.case.to_evaluate, shuffle=False),
        "eval_every": 3,
        "progress": False,
    }
    whole = fit(run.case.kd, train, **settings)

    def die(step, metrics, state):
        raise Killed

    with pytest.raises(Killed):
        fit(run.case.kd, train, directory=tmp_path, on_eval=die, **settings)
    parts = fit(run.case.kd, train, directory=tmp_path, **settings)
    tiny.assert_equal(parts.state, whole.state)
    assert [row.keys() for row in parts.history] == [row.keys() for row in whole.history]


def test_exported_student_runs_in_the_plain_model(run):
    alone = run.case.pick(run.states[-1])
    batch = run.case.to_evaluate(8, 50)
    plain = jax.eval_shape(lambda key: run.case.model.init(key, batch), jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(alone, plain)
    outputs, _ = jax.jit(lambda v, b: run.case.model.apply(v, b, key=None, train=False))(alone, batch)
    assert outputs["logits"].shape == (8, tiny.CLASSES)
    assert np.isfinite(outputs["logits"]).all()
