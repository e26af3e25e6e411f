"""Contrastive distillation with a bank: the formula in NumPy, what is drawn, what is remembered, memory, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import LossVars
from jaxkd.objectives import crd, crd_bank
from tests import references, tiny
from tests.losses.memory_test import largest
from tests.objective_runs import KEY, context, double, initialised, run
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
    """The negatives of each example, as the objective draws them."""
    places = jnp.asarray(given["batch"]["index"])
    state = objective_state or initialised(CRD, given).state
    return np.asarray(crd_bank._negatives(key, context(given), places, state["classes"], NEGATIVES))


def formula(params, bank, log_z, given, negatives, *, temperature=0.07, momentum=0.5, weight=0.8):
    """The value, the bank and log Z after the batch, example by example."""
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


def test_the_whole_objective_is_the_formula():
    """Two batches: the second has the first's Z and the bank that it left; and gradients by finite differences."""
    first, second = arrays(index=[3, 1, 4, 15, 9, 2]), arrays(seed=1, index=[15, 20, 3, 5, 4, 4])
    variables = initialised(CRD, first)
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


def test_gradients_are_those_of_the_formula():
    """Of parameters and features, with Z already known: that of the first batch has no gradient."""
    first, given = arrays(), arrays(6, seed=1)
    with jax.enable_x64(True):
        variables = double(after(CRD, initialised(CRD, first), first))
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


def test_the_first_batchs_normaliser_has_no_gradient():
    given = arrays()
    fresh = initialised(CRD, given)
    known = LossVars(fresh.params, {**fresh.state, "log_normalizer": run(CRD, fresh, given).state["log_normalizer"]})
    tiny.assert_close(run(CRD, fresh, given)[:3], run(CRD, known, given)[:3], rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_no_temperature_overflows(temperature):
    objective = crd(*PATHS, CLASSES, negatives=NEGATIVES, features=FEATURES, temperature=temperature)
    given = arrays()
    variables = initialised(objective, given)
    found = run(objective, variables, given)
    assert all((np.isfinite(x) & (x != 0)).any() for x in jax.tree.leaves((found.value, found.params, found.student)))
    options = {"temperature": temperature, "weight": 1.0}
    want = formula(variables.params, variables.state["bank"], None, given, drawn(given), **options)[0]
    np.testing.assert_allclose(found.value, want, rtol=1e-4)


# --- what is drawn ---------------------------------------------------------------------------------------------------


def test_negatives_are_of_other_classes_and_equally_likely():
    given = arrays(index=np.arange(BATCH))
    state, many = initialised(CRD, given).state, 20_000
    found = np.asarray(
        crd_bank._negatives(KEY, context(given), jnp.asarray(given["batch"]["index"]), state["classes"], many)
    )
    assert found.shape == (BATCH, many)
    for place, row in zip(given["batch"]["index"], found, strict=True):
        counts = np.bincount(row, minlength=DATA)
        others = CLASSES[place] != CLASSES
        assert (counts[~others] == 0).all()
        expected = many / others.sum()
        chi_square, freedom = ((counts[others] - expected) ** 2 / expected).sum(), others.sum() - 1
        assert abs(chi_square - freedom) < 4 * np.sqrt(2 * freedom)
    # ... and each example has draws of its own, each step as well.
    assert len({tuple(row) for row in found[:, :20]}) == BATCH
    assert (drawn(given, jax.random.key(6)) != drawn(given)).any()


def test_the_value_depends_on_the_rows_of_other_classes_alone():
    """By the gradient for the bank, which only this test takes: the example's own row, and rows of other classes."""
    given = arrays(6, index=[0, 3, 6, 9, 12, 15])
    variables = initialised(CRD, given)

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


def test_an_index_outside_of_the_data_shows():
    for index in -1, DATA, 10_000:
        given = arrays(4, index=[0, 1, index, 3])
        assert np.isnan(run(CRD, initialised(CRD, given), given).value)
        spared = {**given, "batch": {**given["batch"], "mask": np.array([True, True, False, True])}}
        assert np.isfinite(run(CRD, initialised(CRD, given), spared).value)


@pytest.mark.parametrize("dtype", [np.int64, np.int8, np.uint8, np.uint32])
def test_any_integer_is_an_index(dtype):
    given = arrays(4)
    variables = initialised(CRD, given)
    other = {**given, "batch": {**given["batch"], "index": given["batch"]["index"].astype(dtype)}}
    tiny.assert_equal(run(CRD, variables, other).state, run(CRD, variables, given).state)


# --- what is remembered ----------------------------------------------------------------------------------------------


def test_the_bank_begins_as_uniform_numbers_of_the_right_size():
    bank = initialised(crd(*PATHS, np.arange(4000) % 7, features=50), arrays()).state["bank"]
    for rows in bank.values():
        assert rows.shape == (4000, 50)
        limit = np.sqrt(3 / 50)  # so that the expected square of a row's norm is 1
        assert np.abs(rows).max() <= limit
        np.testing.assert_allclose((rows**2).sum(axis=1).mean(), 1, rtol=0.01)
    assert (bank["student"] != bank["teacher"]).any()


def test_only_the_batchs_rows_are_written_with_unit_norm():
    given = arrays()
    variables = initialised(CRD, given)
    state = run(CRD, variables, given).state
    touched = np.isin(np.arange(DATA), given["batch"]["index"])
    for side in "student", "teacher":
        old, new = variables.state["bank"][side], state["bank"][side]
        tiny.assert_equal(new[~touched], old[~touched])
        np.testing.assert_allclose(np.linalg.norm(new[touched], axis=1), 1, rtol=1e-6)
        assert (new[touched] != old[touched]).any(axis=1).all()


def test_the_last_of_an_example_that_comes_twice_is_written():
    """Also where a later one is masked. (That the number of devices makes no difference is tested below.)"""
    index = np.array([3, 5, 3, 7, 5, 3, 11, 7])
    mask = np.array([True, True, True, True, True, False, True, True])
    last = [2, 4, 6, 7]
    given = arrays(8, mask=mask, index=index)
    variables = initialised(CRD, given)
    want = run(CRD, variables, kept(given, last)).state["bank"]
    tiny.assert_close(run(CRD, variables, given).state["bank"], want, rtol=1e-6)


# --- memory ----------------------------------------------------------------------------------------------------------


def test_no_array_of_every_negatives_features():
    """At the published size, where it would take half a gibibyte: only compiled."""
    data, size, negatives, features = 50_000, 64, 16_384, 128
    objective = crd(*PATHS, np.arange(data) % 100, negatives=negatives, features=features)
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
def test_labels_and_numbers_that_do_not_fit(labels, options, message):
    with pytest.raises(ValueError, match=message):
        crd(*PATHS, labels, **options)


def test_inputs_that_do_not_fit():
    given = arrays(4)
    without = {**given, "batch": {}}
    with pytest.raises(ValueError, match="'index'"):
        initialised(CRD, without)
    wrong = {**given, "batch": {"index": np.zeros((4, 1), np.int32), "label": np.zeros(4, np.float32)}}
    with pytest.raises(ValueError, match=r"crd, batch/index: expected integers \[batch\], got int32\[4, 1\]"):
        initialised(CRD, wrong)
    for objective in QUEUE, IN_BATCH:
        with pytest.raises(ValueError, match=r"batch/label: expected integer classes \[batch\], got float32\[4\]"):
            initialised(objective, wrong)
    integers = {**given, "student": {"f": np.zeros((4, 3), np.int32)}}
    for objective in CRD, QUEUE, IN_BATCH:
        with pytest.raises(ValueError, match=r"student/f: expected a floating-point feature \[batch, ...\], got int32"):
            initialised(objective, integers)


# --- training --------------------------------------------------------------------------------------------------------


def test_a_distillation_with_it_trains():
    """The student's vector comes to tell what the teacher's tells; the bank is a pure function of the steps."""
    labels = np.arange(64) % tiny.CLASSES
    objective = jaxkd.combine(crd=crd("student/vector", "teacher/vector", labels, negatives=16, features=4))
    kd = jaxkd.distill(tiny.student, tiny.teacher(), objective, optimizer=optax.adam(0.02))
    given = {**tiny.batch(16), "index": np.arange(16, dtype=np.int32)}
    state = kd.init(jax.random.key(0), given)
    state, reported = jax.jit(lambda s: jax.lax.scan(lambda s, _: kd.step(s, given), s, length=60))(state)
    values = np.asarray(reported["crd"].sum / reported["crd"].count)
    assert values[-5:].mean() < 0.7 * values[:5].mean()
