"""PS-KD: values, stored predictions, masks, devices, evaluation and exact resume."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import ObjectiveVars, data, losses, term
from jaxkd.objectives import past_probabilities, progressive_self_kd
from jaxkd.training import fit
from tests import objective_runs, tiny
from tests.objective_runs import KEY, PLACES, context, initialize, run
from tests.schemes import self_runs

DATA, BATCH, CLASSES = 24, 16, 3
KEEP = np.arange(BATCH) % 5 > 1
PSKD = progressive_self_kd(DATA, alpha=0.6, weight=0.8)


def arrays(size=BATCH, seed=0, *, mask=None, index=None):
    rng = np.random.default_rng(seed)
    index = rng.permutation(DATA)[:size] if index is None else np.asarray(index)
    batch = {"index": index.astype(np.int32), "label": (index % CLASSES).astype(np.int32)}
    logits = rng.normal(size=(len(index), CLASSES)).astype(np.float32)
    return {
        "student": {"logits": logits},
        "teacher": {},
        "batch": batch if mask is None else {**batch, "mask": mask},
    }


def kept(given, keep):
    found = {root: objective_runs.rows(tree, keep) for root, tree in given.items()}
    found["batch"].pop("mask", None)
    return found


def softmax(z):
    return np.exp(self_runs.log_softmax(np.float64(z)))


def reference(given, past, alpha):
    """Returns the mean over the batch and its gradient for the logits."""
    logits, label, index = given["student"]["logits"], given["batch"]["label"], given["batch"]["index"]
    hard = np.eye(CLASSES)[label]
    target = hard.copy()
    for row, place in enumerate(index):
        if place in past:
            target[row] = (1 - alpha) * hard[row] + alpha * past[place]
    value = -(target * self_runs.log_softmax(np.float64(logits))).sum(axis=1).mean()
    return value, (softmax(logits) - target) / len(label)


@pytest.fixture(scope="module")
def variables():
    """Variables after a first batch, of seed 3."""
    first = arrays(seed=3)
    made = initialize(PSKD, first)
    return made._replace(state=run(PSKD, made, first).state)


def test_two_visits_equal_hand_computation():
    """The same batch twice: the labels, then their average with the first predictions."""
    objective = progressive_self_kd(4, alpha=0.5)
    given = arrays(index=[2, 0])
    given["student"]["logits"] = np.log(np.array([[0.5, 0.25, 0.25], [0.8, 0.1, 0.1]], np.float32))
    given["batch"]["label"] = np.array([1, 0], np.int32)
    start = initialize(objective, given)
    first = run(objective, start, given)
    np.testing.assert_allclose(first.value, -(np.log(0.25) + np.log(0.8)) / 2, rtol=1e-6)
    expected = [[0.8, 0.1, 0.1], [0, 0, 0], [0.5, 0.25, 0.25], [0, 0, 0]]
    np.testing.assert_allclose(past_probabilities(first.state), expected, rtol=1e-6)
    second = run(objective, ObjectiveVars({}, first.state), given)
    one = -(0.25 * np.log(0.5) + 0.625 * np.log(0.25) + 0.125 * np.log(0.25))
    two = -(0.9 * np.log(0.8) + 0.1 * np.log(0.1))
    np.testing.assert_allclose(second.value, (one + two) / 2, rtol=1e-6)


def test_value_and_gradients_equal_numpy_reference(variables):
    first, given = arrays(seed=3), arrays(seed=4)
    past = dict(zip(first["batch"]["index"].tolist(), softmax(first["student"]["logits"]), strict=True))
    assert 0 < len(set(given["batch"]["index"].tolist()) - past.keys()) < BATCH
    found, (value, slope) = run(PSKD, variables, given), reference(given, past, 0.6)
    np.testing.assert_allclose(found.metrics[""], value, rtol=1e-5)
    np.testing.assert_allclose(found.value, 0.8 * value, rtol=1e-5)
    np.testing.assert_allclose(found.student["logits"], 0.8 * slope, rtol=1e-4, atol=1e-7)
    now = past_probabilities(found.state)
    past |= dict(zip(given["batch"]["index"].tolist(), softmax(given["student"]["logits"]), strict=True))
    for row in range(DATA):
        np.testing.assert_allclose(now[row], past.get(row, np.zeros(CLASSES)), rtol=1e-5, atol=1e-7)


def test_alpha_zero_and_first_visit_equal_cross_entropy(variables):
    plain = term(losses.cross_entropy, "student/logits", "batch/label", weight=0.8)
    given = arrays(seed=5)
    want = run(plain, ObjectiveVars(), given)
    for objective, start in (
        (progressive_self_kd(DATA, alpha=0.0, weight=0.8), variables),
        (PSKD, initialize(PSKD, given)),
    ):
        found = run(objective, start, given)
        np.testing.assert_allclose(found.value, want.value, rtol=1e-6)
        np.testing.assert_allclose(found.student["logits"], want.student["logits"], rtol=1e-5, atol=1e-7)


def test_alpha_one_equals_soft_targets_of_last_visit(variables):
    """With α = 1 the gradient is that of soft targets at temperature 1."""
    first = arrays(seed=3)
    given = {**first, "student": arrays(seed=6)["student"], "teacher": first["student"]}
    soft = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0)
    found, want = run(progressive_self_kd(DATA, alpha=1.0), variables, given), run(soft, ObjectiveVars(), given)
    np.testing.assert_allclose(found.student["logits"], want.student["logits"], rtol=1e-4, atol=1e-6)


def test_alpha_follows_its_schedule():
    given = arrays()
    published = lambda step: 0.8 * (step // 2 + 1) / 4  # noqa: E731
    rows = [
        (progressive_self_kd(DATA, steps=10), 0.8 * 3 / 10),  # the context is at step 3
        (progressive_self_kd(DATA, alpha=0.5, steps=2), 0.5),
        (progressive_self_kd(DATA, alpha=0.5), 0.5),
        (progressive_self_kd(DATA, alpha=published), 0.4),
    ]
    for objective, expected in rows:
        start = initialize(objective, given)
        assert run(objective, start, given).metrics["alpha"] == pytest.approx(expected)


def test_masking_equals_dropping(variables):
    given = arrays(mask=KEEP)
    for start in variables, initialize(PSKD, given):
        want = run(PSKD, start, kept(given, KEEP))
        for garbage in np.nan, np.inf, 1e30:
            other = {root: objective_runs.spoiled(tree, KEEP, garbage) for root, tree in given.items()}
            other["batch"]["index"] = np.where(KEEP, given["batch"]["index"], -7)
            other["batch"]["label"] = np.where(KEEP, given["batch"]["label"], 99)
            found = run(PSKD, start, other)
            tiny.assert_close(found._replace(student={}), want._replace(student={}))
            tiny.assert_close(found.student["logits"][KEEP], want.student["logits"])
            assert (found.student["logits"][~KEEP] == 0).all()


def test_fully_masked_batch_changes_nothing(variables):
    found = run(PSKD, variables, arrays(mask=np.zeros(BATCH, bool)))
    assert found.value == 0
    assert (found.student["logits"] == 0).all()
    tiny.assert_equal(found.state, variables.state)


def test_last_duplicate_of_an_example_is_written():
    given = arrays(index=[5, 2, 5, 2, 7], mask=np.array([True, True, True, False, True]))
    found = past_probabilities(run(PSKD, initialize(PSKD, given), given).state)
    expected = softmax(given["student"]["logits"])
    for place, row in (5, 2), (2, 1), (7, 4):
        np.testing.assert_allclose(found[place], expected[row], rtol=1e-5)


@pytest.mark.parametrize(("way", "count", "dtype"), [*((*p, jnp.float32) for p in PLACES), ("pmap", 2, jnp.bfloat16)])
def test_result_is_independent_of_device_count(way, count, dtype):
    objective = progressive_self_kd(DATA, alpha=0.6, dtype=dtype)
    first, given = arrays(seed=3), arrays(mask=KEEP)
    given["batch"]["index"][[3, 9, 13]] = given["batch"]["index"][[14, 2, 12]]  # duplicates on two devices
    placed = objective_runs.on_devices(objective, way, count)
    start = initialize(objective, first)
    found = placed(ObjectiveVars({}, placed(start, first).state), given)
    want = run(objective, ObjectiveVars({}, run(objective, start, first).state), given)
    tiny.assert_close(found._replace(state={}), want._replace(state={}), rtol=1e-4, atol=1e-5)
    # Stored predictions are bits, which devices do not average, so only the forward passes may round differently.
    tolerance = 1e-6 if dtype == jnp.float32 else 1e-2
    np.testing.assert_allclose(
        np.float32(past_probabilities(found.state)),
        np.float32(past_probabilities(want.state)),
        rtol=tolerance,
        atol=1e-7,
    )


def test_averaging_devices_keep_stored_predictions_exact():
    """The mean of three equal numbers may round to another, in bfloat16 by half a percent."""
    objective = progressive_self_kd(DATA, alpha=0.6, dtype=jnp.bfloat16)
    given = arrays(18)
    state = run(objective, initialize(objective, given), given).state
    later = arrays(18, seed=1, mask=np.zeros(18, bool))
    after = objective_runs.on_devices(objective, "pmap", 3)(ObjectiveVars({}, state), later).state
    tiny.assert_equal(after, state)


def test_sharded_table_equals_replicated_table(variables):
    placed = objective_runs.on_devices(PSKD, "jit", 8, split_state=lambda path: True)
    given = arrays(seed=4, mask=KEEP)
    found = placed(variables, given)
    tiny.assert_close(found, run(PSKD, variables, given), rtol=1e-4, atol=1e-5)
    shapes = [shard.data.shape for shard in found.state["past"].addressable_shards]
    assert shapes == [(DATA // 8, CLASSES)] * 8


def test_bfloat16_table_takes_half_of_the_memory():
    objective, given = progressive_self_kd(DATA, dtype=jnp.bfloat16), arrays()
    start = initialize(objective, given)
    assert start.state["past"].nbytes * 2 == initialize(PSKD, given).state["past"].nbytes
    found = past_probabilities(run(objective, start, given).state)
    assert found.dtype == jnp.bfloat16
    expected = softmax(given["student"]["logits"])
    np.testing.assert_allclose(np.float32(found[given["batch"]["index"]]), expected, rtol=2**-8)


def test_evaluation_is_cross_entropy_and_needs_no_index(variables):
    given = arrays(seed=5, mask=KEEP)
    want = run(term(losses.cross_entropy, "student/logits", "batch/label", weight=0.8), ObjectiveVars(), given)
    for index in given["batch"]["index"], np.full(BATCH, 10**6, np.int32), None:
        batch = {name: x for name, x in given["batch"].items() if name != "index"}
        one = {**given, "batch": batch if index is None else {**batch, "index": index}}
        found = run(PSKD, variables, one, None)
        np.testing.assert_array_equal(found.value, want.value)
        tiny.assert_equal(found.state, variables.state)


def test_written_predictions_have_no_gradient(variables):
    given = arrays(seed=4)

    def said(logits):
        state = PSKD.apply({}, variables.state, context({**given, "student": {"logits": logits}}), KEY).state
        return jnp.sum(past_probabilities(state))

    assert (jax.jit(jax.grad(said))(given["student"]["logits"]) == 0).all()


def test_extreme_logits_are_finite(variables):
    for size in 0.0, 1e4, 1e30:
        given = arrays(index=[3, 4], seed=2)
        given["student"]["logits"] = (size * np.array([[1, -1, 0], [-1, 1, 0]])).astype(np.float32)
        found = run(PSKD, variables, given)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(found)), size
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(run(PSKD, ObjectiveVars({}, found.state), given)))


@pytest.mark.parametrize(("entry", "value"), [("index", DATA), ("index", -1), ("label", CLASSES), ("label", -1)])
def test_value_out_of_range_yields_nan(variables, entry, value):
    given = arrays()
    given["batch"][entry][2] = value
    assert np.isnan(run(PSKD, variables, given).value)


def distiller(**options):
    objective = jaxkd.combine(ps_kd=progressive_self_kd(21, **{"steps": 10, **options}))
    return jaxkd.distill(tiny.student, jaxkd.teachers.none(), objective, optimizer=optax.sgd(0.1, momentum=0.9))


@pytest.mark.slow
def test_resumed_run_equals_uninterrupted_run(tmp_path):
    images = np.random.default_rng(0).normal(size=(21, 4, 4, 2)).astype(np.float32)
    train = data.Resident(data.from_arrays(images, np.arange(21) % 3), batch_size=8)  # the last batch is padded
    key, kd = jax.random.key(3), distiller(dtype=jnp.bfloat16)
    whole = fit(kd, train, steps=8, key=key, directory=tmp_path / "whole", progress=False)
    fit(kd, train, steps=5, key=key, directory=tmp_path / "parts", progress=False)
    parts = fit(kd, train, steps=8, key=key, directory=tmp_path / "parts", progress=False)
    tiny.assert_equal(parts.state, whole.state)
    assert (
        past_probabilities(whole.state.objective.state["ps_kd"]).sum(axis=1) > 0.9
    ).all()  # all examples were visited
    other = fit(distiller(alpha=0.0), train, steps=8, key=key, progress=False)
    assert (other.state.student.params["first"] != whole.state.student.params["first"]).any()


def test_result_is_independent_of_placement():
    batches = [
        {**tiny.batch(6, i), "index": np.random.default_rng(i).permutation(9)[:6].astype(np.int32)} for i in range(3)
    ]
    kd = distiller()
    expected, metrics = self_runs.run(kd, batches)
    table = past_probabilities(expected.objective.state["ps_kd"])
    for given in batches, [self_runs.masked(batch, 3) for batch in batches]:
        state, found = self_runs.run(kd, given, self_runs.placed(kd))
        tiny.assert_close(state.student, expected.student, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(past_probabilities(state.objective.state["ps_kd"]), table, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(
            [one["ps_kd"] for one in found], [one["ps_kd"] for one in metrics], rtol=1e-4, atol=1e-5
        )


def test_step_compiles_once_with_constant_structure():
    kd, traces = distiller(), []

    @jax.jit
    def step(state, batch):
        traces.append(None)
        return kd.step(state, batch)

    batches = [{**tiny.batch(4, i), "index": np.arange(i, i + 4, dtype=np.int32)} for i in range(3)]
    state = kd.init(jax.random.key(0), batches[0])
    described = jax.tree.map(jax.typeof, state)
    for batch in batches:
        state, _ = step(state, batch)
    assert jax.tree.map(jax.typeof, state) == described
    assert len(traces) == 1


def test_invalid_arguments_and_inputs_raise():
    with pytest.raises(ValueError, match="examples: expected a positive number, an integer, got 0"):
        progressive_self_kd(0)
    with pytest.raises(ValueError, match=r"alpha: expected a number from 0 to 1.*got 1.2"):
        progressive_self_kd(5, alpha=1.2)
    with pytest.raises(ValueError, match="steps: expected a positive number, an integer, got 0"):
        progressive_self_kd(5, steps=0)
    with pytest.raises(ValueError, match="steps: expected None beside a schedule"):
        progressive_self_kd(5, alpha=optax.constant_schedule(0.1), steps=3)
    with pytest.raises(ValueError, match="dtype: expected float32 or bfloat16, got float16"):
        progressive_self_kd(5, dtype=jnp.float16)
    given = arrays()
    without = {**given, "batch": {"label": given["batch"]["label"]}}
    with pytest.raises(ValueError, match="'batch/index'"):
        initialize(PSKD, without)
    soft = {**given, "batch": {**given["batch"], "label": np.ones((BATCH, CLASSES), np.float32)}}
    with pytest.raises(ValueError, match=r"batch/label: expected integers \[16\], got float32\[16, 3\]"):
        initialize(PSKD, soft)
    tokens = {**given, "student": {"logits": np.ones((BATCH, 2, CLASSES), np.float32)}}
    with pytest.raises(ValueError, match=r"expected logits \[batch, classes\], got float32\[16, 2, 3\]"):
        initialize(PSKD, tokens)
