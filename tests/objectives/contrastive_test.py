"""Contrastive distillation with a bank: values, gradients, negatives, state, memory, errors and training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import ObjectiveVars
from jaxkd.objectives import crd
from jaxkd.objectives._contrastive import _crd_bank
from tests import references, tiny
from tests.losses.memory_test import largest
from tests.objective_runs import KEY, context, double, initialize, run
from tests.objectives.contrastive_toy import (
    BATCH,
    CLASSES,
    CRD,
    DATA,
    FEATURES,
    IN_BATCH,
    NEGATIVES,
    PATHS,
    QUEUE,
    after,
    arrays,
    embeddings,
    kept,
    unit,
)

# --- the formula -----------------------------------------------------------------------------------------------------


def drawn(given, key=KEY, objective_state=None):
    """Returns the negatives that the objective draws for each example."""
    places = jnp.asarray(given["batch"]["index"])
    state = objective_state or initialize(CRD, given).state
    return np.asarray(_crd_bank._negatives(key, context(given), places, state["classes"], NEGATIVES))


def formula(params, bank, log_z, given, negatives, *, temperature=0.07, momentum=0.5, weight=0.8):
    """Returns the value, and bank and log Z after the batch, computed example by example."""
    v, index = embeddings(params, given), given["batch"]["index"]
    bank = {side: np.float64(rows) for side, rows in bank.items()}
    total = np.zeros(len(index))
    new_log_z = []
    for i, (anchor, other) in enumerate((("student", "teacher"), ("teacher", "student"))):
        scores = np.array(
            [
                [np.exp(v[anchor][row] @ bank[other][j] / temperature) for j in (index[row], *negatives[row])]
                for row in range(len(index))
            ]
        )
        z = DATA * scores.mean() if log_z is None else np.exp(log_z[i])
        new_log_z.append(np.log(z))
        total += references.contrastive_nce(scores / z, num_data=DATA)
    bank = {side: rows.copy() for side, rows in bank.items()}
    before = {side: rows.copy() for side, rows in bank.items()}
    for row, place in enumerate(index):
        for side in bank:
            bank[side][place] = unit(momentum * before[side][place] + (1 - momentum) * v[side][row])
    return weight * total.mean(), bank, new_log_z


def test_value_and_state_equal_numpy_reference():
    """The second of two batches uses the first one's Z and the updated bank."""
    first, second = arrays(index=[3, 1, 4, 15, 9, 2]), arrays(seed=1, index=[15, 20, 3, 5, 4, 4])
    variables = initialize(CRD, first)
    bank, log_z = variables.state["bank"], None
    for given in first, second:
        negatives = drawn(given)
        value, bank, log_z_now = formula(variables.params, bank, log_z, given, negatives)
        log_z = log_z or log_z_now
        found = run(CRD, variables, given)
        np.testing.assert_allclose(found.value, value, rtol=1e-5)
        np.testing.assert_allclose(found.metrics[""], value / 0.8, rtol=1e-5)
        np.testing.assert_allclose(found.metrics["weight"], 0.8)
        tiny.assert_close(found.state["bank"], jax.tree.map(np.float32, bank), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(found.state["log_normalizer"], log_z, rtol=1e-5)
        variables = variables._replace(state=found.state)


def test_gradients_equal_finite_differences():
    """Gradients of parameters and features, with a known Z."""
    first, given = arrays(), arrays(6, seed=1)
    with jax.enable_x64(True):
        variables = double(after(CRD, initialize(CRD, first), first))
        given = double(given)
        found = run(CRD, variables, given)
        bank, log_z, negatives = variables.state["bank"], variables.state["log_normalizer"], drawn(given)

        def value(path, x):
            params, moved = jax.tree.map(np.asarray, variables.params), {**given, "student": dict(given["student"])}
            if path is None:
                moved["student"]["f"] = x
            else:
                params[path[0]] = {**params[path[0]], path[1]: x}
            return formula(params, bank, log_z, moved, negatives)[0]

        np.testing.assert_allclose(found.value, value(None, np.asarray(given["student"]["f"])), rtol=1e-10)
        for side in "student", "teacher":
            for name in "kernel", "bias":
                at = np.asarray(variables.params[side][name])
                want = references.finite_difference(lambda x, path=(side, name): value(path, x), at)
                np.testing.assert_allclose(found.params[side][name], want, rtol=1e-6, atol=1e-8)
        want = references.finite_difference(lambda x: value(None, x), np.asarray(given["student"]["f"]))
        np.testing.assert_allclose(found.student["f"], want, rtol=1e-6, atol=1e-8)


def test_first_normalizer_has_no_gradient():
    given = arrays()
    fresh = initialize(CRD, given)
    known = ObjectiveVars(
        fresh.params, {**fresh.state, "log_normalizer": run(CRD, fresh, given).state["log_normalizer"]}
    )
    tiny.assert_close(run(CRD, fresh, given)[:3], run(CRD, known, given)[:3], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_extreme_temperatures_are_finite(temperature):
    objective = crd(*PATHS, CLASSES, negatives=NEGATIVES, embedding_size=FEATURES, temperature=temperature)
    given = arrays()
    variables = initialize(objective, given)
    found = run(objective, variables, given)
    assert all((np.isfinite(x) & (x != 0)).any() for x in jax.tree.leaves((found.value, found.params, found.student)))
    options = {"temperature": temperature, "weight": 1.0}
    want = formula(variables.params, variables.state["bank"], None, given, drawn(given), **options)[0]
    np.testing.assert_allclose(found.value, want, rtol=1e-4)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_negatives_are_uniform_over_other_classes():
    given = arrays(index=np.arange(BATCH))
    state, many = initialize(CRD, given).state, 20_000
    found = np.asarray(
        _crd_bank._negatives(KEY, context(given), jnp.asarray(given["batch"]["index"]), state["classes"], many)
    )
    assert found.shape == (BATCH, many)
    for place, row in zip(given["batch"]["index"], found, strict=True):
        counts = np.bincount(row, minlength=DATA)
        others = CLASSES[place] != CLASSES
        assert (counts[~others] == 0).all()
        expected = many / others.sum()
        chi_square, freedom = ((counts[others] - expected) ** 2 / expected).sum(), others.sum() - 1
        assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)
    # Draws differ between examples and between steps.
    assert len({tuple(row) for row in found[:, :20]}) == BATCH
    assert (drawn(given, jax.random.key(6)) != drawn(given)).any()


def test_value_depends_on_own_row_and_rows_of_other_classes():
    """The gradient of the bank is nonzero at the example's own row and at rows of other classes only."""
    given = arrays(6, index=[0, 3, 6, 9, 12, 15])
    variables = initialize(CRD, given)

    @jax.jit
    def gradients(mask):
        def value(bank):
            alone = context({**given, "batch": {**given["batch"], "mask": mask}})
            return CRD.apply(variables.params, {**variables.state, "bank": bank}, alone, KEY).value

        return jax.grad(value)(variables.state["bank"])

    for i, place in enumerate(given["batch"]["index"]):
        for gradient in jax.tree.leaves(gradients(np.arange(6) == i)):
            used = set(np.flatnonzero(np.abs(gradient).max(axis=1)))
            negatives = used - {place}
            assert place in used
            assert 1 <= len(negatives) <= NEGATIVES
            assert (CLASSES[list(negatives)] != CLASSES[place]).all()


def test_index_out_of_range_yields_nan():
    for index in -1, DATA, 10_000:
        given = arrays(4, index=[0, 1, index, 3])
        assert np.isnan(run(CRD, initialize(CRD, given), given).value)
        spared = {**given, "batch": {**given["batch"], "mask": np.array([True, True, False, True])}}
        assert np.isfinite(run(CRD, initialize(CRD, given), spared).value)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.uint32])
def test_index_accepts_any_integer_dtype(dtype):
    given = arrays(4)
    variables = initialize(CRD, given)
    other = {**given, "batch": {**given["batch"], "index": given["batch"]["index"].astype(dtype)}}
    tiny.assert_equal(run(CRD, variables, other).state, run(CRD, variables, given).state)


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_bank_starts_uniform_with_unit_expected_norm():
    bank = initialize(crd(*PATHS, np.arange(4000) % 7, embedding_size=50), arrays()).state["bank"]
    for rows in bank.values():
        assert rows.shape == (4000, 50)
        limit = np.sqrt(3 / 50)  # the expected square norm of a row is 1
        assert np.abs(rows).max() <= limit
        np.testing.assert_allclose((rows**2).sum(axis=1).mean(), 1, rtol=0.01)
    assert (bank["student"] != bank["teacher"]).any()


def test_update_writes_unit_rows_of_the_batch_only():
    given = arrays()
    variables = initialize(CRD, given)
    state = run(CRD, variables, given).state
    touched = np.isin(np.arange(DATA), given["batch"]["index"])
    for side in "student", "teacher":
        old, new = variables.state["bank"][side], state["bank"][side]
        tiny.assert_equal(new[~touched], old[~touched])
        np.testing.assert_allclose(np.linalg.norm(new[touched], axis=1), 1, rtol=1e-6)
        assert (new[touched] != old[touched]).any(axis=1).all()


def test_last_duplicate_of_an_example_is_written():
    """A later duplicate that is masked writes nothing."""
    index = np.array([3, 5, 3, 7, 5, 3, 11, 7])
    mask = np.array([True, True, True, True, True, False, True, True])
    last = [2, 4, 6, 7]
    given = arrays(8, mask=mask, index=index)
    variables = initialize(CRD, given)
    want = run(CRD, variables, kept(given, last)).state["bank"]
    tiny.assert_close(run(CRD, variables, given).state["bank"], want, rtol=1e-6)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_memory_holds_no_array_of_drawn_rows():
    """At the published size, where the array would take 0.5 GiB; the step is compiled but not run."""
    data, size, negatives, features = 50_000, 64, 16_384, 128
    objective = crd(*PATHS, np.arange(data) % 100, negatives=negatives, embedding_size=features)
    shape = lambda *sizes, dtype=jnp.float32: jax.ShapeDtypeStruct(sizes, dtype)  # noqa: E731
    shapes = {
        "student": {"f": shape(size, 64)},
        "teacher": {"f": shape(size, 256)},
        "batch": {"index": shape(size, dtype=jnp.int32)},
    }
    variables = jax.eval_shape(lambda: objective.init(jax.random.key(0), context(shapes)))
    step = lambda variables, given: run(objective, variables, given)  # noqa: E731
    count, operation = largest(step, variables, shapes)
    assert count <= data * features, f"{operation} returns {count} elements"  # the bank itself
    assert count < size * negatives * features / 10
    compiled_step = jax.jit(step, donate_argnums=0).lower(variables, shapes).compile()
    assert compiled_step.memory_analysis().temp_size_in_bytes < 4 * size * negatives * features / 4


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("labels", "options", "message"),
    [
        pytest.param(
            CLASSES.astype(np.float32), {}, r"crd, labels: expected the integer class .* float32\[24\]", id="f"
        ),
        pytest.param(CLASSES[None], {}, r"got int64\[1, 24\]", id="rank"),
        pytest.param(np.zeros(0, int), {}, r"got int64\[0\]", id="none"),
        pytest.param(np.ones(5, int), {}, "at least two classes", id="one-class"),
        pytest.param(CLASSES, {"temperature": 0.0}, "crd, temperature: expected a positive number", id="temperature"),
        pytest.param(CLASSES, {"negatives": 0}, "crd, negatives: expected a positive number", id="negatives"),
    ],
)
def test_invalid_labels_and_numbers_raise(labels, options, message):
    with pytest.raises(ValueError, match=message):
        crd(*PATHS, labels, **options)


def test_invalid_inputs_raise():
    given = arrays(4)
    without = {**given, "batch": {}}
    with pytest.raises(ValueError, match="'index'"):
        initialize(CRD, without)
    wrong = {**given, "batch": {"index": np.zeros((4, 1), np.int32), "label": np.zeros(4, np.float32)}}
    with pytest.raises(ValueError, match=r"crd, batch/index: expected integers \[batch\], got int32\[4, 1\]"):
        initialize(CRD, wrong)
    for objective in QUEUE, IN_BATCH:
        with pytest.raises(ValueError, match=r"batch/label: expected integer classes \[batch\], got float32\[4\]"):
            initialize(objective, wrong)
    integers = {**given, "student": {"f": np.zeros((4, 3), np.int32)}}
    for objective in CRD, QUEUE, IN_BATCH:
        with pytest.raises(ValueError, match=r"student/f: expected a floating-point feature \[batch, ...\], got int32"):
            initialize(objective, integers)


# --- training --------------------------------------------------------------------------------------------------------


def test_distillation_with_crd_trains():
    """The loss decreases over the steps of a distillation."""
    labels = np.arange(64) % tiny.CLASSES
    objective = jaxkd.combine(crd=crd("student/vector", "teacher/vector", labels, negatives=16, embedding_size=4))
    kd = jaxkd.distill(tiny.student, tiny.teacher(), objective, optimizer=optax.adam(0.02))
    given = {**tiny.batch(16), "index": np.arange(16, dtype=np.int32)}
    state = kd.init(jax.random.key(0), given)
    state, reported = jax.jit(lambda s: jax.lax.scan(lambda s, _: kd.step(s, given), s, length=60))(state)
    values = np.asarray(reported["crd"].sum / reported["crd"].count)
    assert values[-5:].mean() < 0.7 * values[:5].mean()
