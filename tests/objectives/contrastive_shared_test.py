"""Properties of all contrastive objectives: masks, extremes, dtypes, devices, evaluation and a sharded bank."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import ObjectiveVars
from tests import objective_runs, tiny
from tests.objective_runs import KEY, PLACES, context, initialize, run
from tests.objectives.contrastive_toy import (
    BATCH,
    CRD,
    DATA,
    FEATURES,
    IN_BATCH,
    KEEP,
    MASKS,
    QUEUE,
    after,
    arrays,
    kept,
)

OBJECTIVES = {"bank": CRD, "queue": QUEUE, "in_batch": IN_BATCH}


@pytest.fixture(scope="module", params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]


@pytest.fixture(scope="module")
def variables(objective):
    """Variables after a first batch, with a normalizer and a queue."""
    first = arrays(seed=3)
    return after(objective, initialize(objective, first), first)


def test_masking_equals_dropping(objective, variables):
    given = arrays(mask=KEEP)
    for start in variables, initialize(objective, given):
        want = run(objective, start, kept(given, KEEP))
        for garbage in np.nan, np.inf, 1e30:
            other = {root: objective_runs.spoiled(tree, KEEP, garbage) for root, tree in given.items()}
            other["batch"]["index"] = np.where(KEEP, given["batch"]["index"], -7)
            other["batch"]["label"] = np.where(KEEP, given["batch"]["label"], 99)
            found = run(objective, start, other)
            expected = want._replace(student=found.student)
            tiny.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            tiny.assert_close(found.student["f"][KEEP], want.student["f"], rtol=1e-4, atol=1e-5)
            assert (found.student["f"][~KEEP] == 0).all()


def test_fully_masked_batch_changes_nothing(objective, variables):
    given = arrays(mask=np.zeros(BATCH, bool))
    for start in variables, initialize(objective, given):
        found = run(objective, start, given)
        assert found.value == 0
        assert all((g == 0).all() for g in jax.tree.leaves((found.params, found.student)))
        tiny.assert_equal(found.state, start.state)


def test_zero_and_tiny_features_are_finite(objective, variables):
    for size in 0.0, 1e-25, 1e-20, 1e-12, 1e18:
        given = arrays()
        given = {**given, **{side: {"f": size * given[side]["f"]} for side in ("student", "teacher")}}
        found = run(objective, variables, given)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found)), size


def test_bfloat16_equals_upcast_input(objective, variables):
    given = arrays()
    low = {**given, **{side: {"f": jnp.asarray(given[side]["f"], jnp.bfloat16)} for side in ("student", "teacher")}}
    high = {**low, **{side: {"f": low[side]["f"].astype(jnp.float32)} for side in ("student", "teacher")}}
    found, want = run(objective, variables, low), run(objective, variables, high)
    assert found.student["f"].dtype == jnp.bfloat16
    tiny.assert_close(found._replace(student={}), want._replace(student={}), rtol=1e-5)


@pytest.mark.parametrize(("way", "count"), PLACES, ids=str)
def test_result_is_independent_of_device_count(objective, variables, way, count):
    placed = objective_runs.on_devices(objective, way, count)
    fresh = initialize(objective, arrays())  # the normalizer is computed from this batch
    for start, masks in (variables, MASKS.values()), (fresh, [KEEP]):
        for mask in masks:
            given = arrays(mask=mask)
            given["batch"]["index"][[3, 9, 13]] = given["batch"]["index"][[14, 2, 12]]  # duplicates on two devices
            tiny.assert_close(placed(start, given), run(objective, start, given), rtol=1e-4, atol=1e-5)


def test_sharded_bank_equals_replicated_bank():
    """The second of two steps reads rows that the first has written on other devices."""
    picked = lambda path: any(getattr(part, "key", None) == "bank" for part in path)  # noqa: E731
    placed = objective_runs.on_devices(CRD, "jit", 8, split_state=picked)
    start = found = want = initialize(CRD, arrays())
    for seed in range(2):
        given = arrays(seed=seed, mask=KEEP)
        found, want = (
            placed(ObjectiveVars(start.params, found.state), given),
            run(CRD, ObjectiveVars(start.params, want.state), given),
        )
        tiny.assert_close(found, want, rtol=1e-4, atol=1e-5)
        for rows in found.state["bank"].values():
            shapes = [shard.data.shape for shard in rows.addressable_shards]
            assert shapes == [(DATA // 8, FEATURES)] * 8
            assert len({shard.index[0].start for shard in rows.addressable_shards}) == 8


@pytest.mark.parametrize("objective", [CRD, QUEUE], ids=["bank", "queue"])
def test_evaluation_is_deterministic_and_keeps_state(objective):
    first, given = arrays(), arrays(seed=1)
    fresh = initialize(objective, first)
    for variables in fresh, after(objective, fresh, first):
        found = run(objective, variables, given, None)
        tiny.assert_equal(found.state, variables.state)
        tiny.assert_equal(found, run(objective, variables, given, None))
        assert np.isfinite(found.value)


def test_written_state_has_no_gradient_and_both_embeddings_learn():
    given = arrays()
    for objective in CRD, QUEUE:
        variables = after(objective, initialize(objective, given), given)

        def past_probabilities(params, objective=objective, variables=variables):
            state = objective.apply(params, variables.state, context(given), KEY).state
            return sum(jnp.sum(x) for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact))

        assert all((g == 0).all() for g in jax.tree.leaves(jax.jit(jax.grad(past_probabilities))(variables.params)))
        learned = run(objective, variables, arrays(seed=1)).params
        assert all((g != 0).any() for g in jax.tree.leaves(learned))
