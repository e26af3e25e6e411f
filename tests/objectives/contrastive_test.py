"""Contrastive distillation: the formula in NumPy, what is drawn and what is remembered, devices, memory."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import LossVars
from jaxkd.objectives import contrastive, crd, crd_in_batch, crd_queue
from tests import objective_runs, references, tiny
from tests.losses.memory_test import largest
from tests.objective_runs import KEY, PLACES, context, double, initialised, run
from tests.tiny import compile_quickly  # noqa: F401

pytestmark = pytest.mark.usefixtures("compile_quickly")

DATA, BATCH, NEGATIVES, FEATURES = 24, 16, 7, 5
CLASSES = np.array([2, 0, 1, 0, 3, 1, 1, 0, 2, 3, 0, 1, 2, 0, 1, 0, 3, 1, 0, 2, 0, 0, 1, 0])
PATHS = ("student/f", "teacher/f")
CRD = crd(*PATHS, CLASSES, negatives=NEGATIVES, features=FEATURES, weight=0.8)
QUEUE = crd_queue(*PATHS, size=20, features=FEATURES, weight=0.8)
IN_BATCH = crd_in_batch(*PATHS, features=FEATURES, weight=0.8)
KEEP = np.arange(BATCH) % 5 > 1
MASKS = {"all": np.ones(BATCH, bool), "uneven": KEEP, "half": np.arange(BATCH) >= BATCH // 2}


def arrays(size=BATCH, seed=0, *, mask=None, index=None):
    rng = np.random.default_rng(seed)
    index = rng.permutation(DATA)[:size] if index is None else np.asarray(index)
    size = len(index)
    batch = {"index": index.astype(np.int32), "label": CLASSES[index % DATA].astype(np.int32)}
    return {
        "student": {"f": rng.normal(size=(size, 2, 3)).astype(np.float32)},
        "teacher": {"f": rng.normal(size=(size, 4)).astype(np.float32)},
        "batch": batch if mask is None else {**batch, "mask": mask},
    }


def kept(given, keep):
    found = {root: objective_runs.rows(tree, keep) for root, tree in given.items()}
    found["batch"].pop("mask", None)
    return found


def after(objective, variables, *batches):
    """The variables once these batches have been seen."""
    for given in batches:
        variables = variables._replace(state=run(objective, variables, given).state)
    return variables


# --- the formula -----------------------------------------------------------------------------------------------------


def unit(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def embeddings(params, given):
    found = {}
    for side in ("student", "teacher"):
        x = np.asarray(given[side]["f"], np.float64).reshape(len(given[side]["f"]), -1)
        found[side] = unit(x @ np.float64(params[side]["kernel"]) + np.float64(params[side]["bias"]))
    return found


def drawn(given, key=KEY, objective_state=None):
    """The negatives of each example, as the objective draws them."""
    places = jnp.asarray(given["batch"]["index"])
    state = objective_state or initialised(CRD, given).state
    return np.asarray(contrastive._negatives(key, context(given), places, state["classes"], NEGATIVES))


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
        contrastive._negatives(KEY, context(given), jnp.asarray(given["batch"]["index"]), state["classes"], many)
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


@pytest.mark.parametrize("objective", [CRD, QUEUE], ids=["bank", "queue"])
def test_evaluation_is_deterministic_and_changes_nothing(objective):
    first, given = arrays(), arrays(seed=1)
    fresh = initialised(objective, first)
    for variables in fresh, after(objective, fresh, first):
        found = run(objective, variables, given, None)
        tiny.assert_equal(found.state, variables.state)
        tiny.assert_equal(found, run(objective, variables, given, None))
        assert np.isfinite(found.value)


def test_what_is_written_has_no_gradient_and_the_teachers_feature_has_one():
    given = arrays()
    for objective in CRD, QUEUE:
        variables = after(objective, initialised(objective, given), given)

        def remembered(params, objective=objective, variables=variables):
            state = objective.apply(params, variables.state, context(given), KEY).state
            return sum(jnp.sum(x) for x in jax.tree.leaves(state) if jnp.issubdtype(x.dtype, jnp.inexact))

        assert all((g == 0).all() for g in jax.tree.leaves(jax.grad(remembered)(variables.params)))
        learned = run(objective, variables, arrays(seed=1)).params
        assert all((g != 0).any() for g in jax.tree.leaves(learned))


# --- the queue -------------------------------------------------------------------------------------------------------


def queued(batches, size=6):
    objective = crd_queue(*PATHS, size=size, features=FEATURES)
    return objective, after(objective, initialised(objective, batches[0]), *batches)


def test_the_queue_is_first_in_first_out_and_wraps():
    batches = [
        arrays(4, seed, mask=mask) for seed, mask in enumerate((None, np.array([True, False, True, True]), None))
    ]
    _, variables = queued(batches)
    ring, seen = [None] * 6, []
    for given in batches:
        v = embeddings(variables.params, given)
        keep = given["batch"].get("mask", np.ones(4, bool))
        seen += [(v["student"][i], v["teacher"][i], given["batch"]["label"][i]) for i in np.flatnonzero(keep)]
    for i, entry in enumerate(seen):
        ring[i % 6] = entry
    assert len(seen) == 11
    for column, name in enumerate(("student", "teacher")):
        np.testing.assert_allclose(variables.state["queue"][name], [entry[column] for entry in ring], rtol=1e-5)
    np.testing.assert_array_equal(variables.state["label"], [entry[2] for entry in ring])


def test_the_queues_loss_is_the_formula():
    """While it is filling, and full; with the classes and without."""
    batches = [arrays(4, seed) for seed in range(4)]
    for labels in "batch/label", None:
        objective = crd_queue(*PATHS, size=6, features=FEATURES, labels=labels)
        variables = initialised(objective, batches[0])
        entries = []
        for given in batches:
            found = run(objective, variables, given)
            v, label = embeddings(variables.params, given), given["batch"]["label"]
            total = 0.0
            for anchor, other in ("student", "teacher"), ("teacher", "student"):
                for i in range(4):
                    own = np.exp(v[anchor][i] @ v[other][i] / 0.07)
                    rest = [e for e in entries[-6:] if labels is None or e["label"] != label[i]]
                    total -= np.log(own / (own + sum(np.exp(v[anchor][i] @ e[other] / 0.07) for e in rest)))
            np.testing.assert_allclose(found.value, total / 4, rtol=1e-4, atol=1e-6)
            entries += [{"student": v["student"][i], "teacher": v["teacher"][i], "label": label[i]} for i in range(4)]
            variables = variables._replace(state=found.state)


def test_the_queues_count_never_overflows():
    given = arrays(4)
    objective, variables = queued([given])
    places = []
    for _ in range(30):
        variables = variables._replace(state=run(objective, variables, given).state)
        places.append(int(variables.state["written"]))
    assert max(places) < 12
    assert [place % 6 for place in places] == [(4 * (i + 2)) % 6 for i in range(30)]
    assert min(places[1:]) >= 6  # it stays full


def test_a_queue_smaller_than_the_batch_is_refused():
    objective, given = crd_queue(*PATHS, size=6, features=FEATURES), arrays(8)
    with pytest.raises(ValueError, match="crd_queue, size: expected at least the batch of 8, got 6"):
        initialised(objective, given)
    with pytest.raises(ValueError, match="crd_queue, size: expected at least the global batch of 8, got 6"):
        objective_runs.on_devices(objective, "pmap", 2)(initialised(objective, arrays(4)), given)


# --- within the batch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["batch/label", None])
def test_within_the_batch_it_is_info_nce_of_the_embeddings(labels):
    given = arrays(mask=KEEP)
    objective = crd_in_batch(*PATHS, features=FEATURES, temperature=0.2, weight=3.0, labels=labels)
    variables = initialised(objective, given)
    v, tags = embeddings(variables.params, given), None if labels is None else given["batch"]["label"][KEEP]
    s, t = v["student"][KEEP], v["teacher"][KEEP]
    want = references.info_nce(s, t, tags, temperature=0.2) + references.info_nce(t, s, tags, temperature=0.2)
    np.testing.assert_allclose(run(objective, variables, given).value, 3 * want.mean(), rtol=1e-5)


# --- masks and devices -----------------------------------------------------------------------------------------------

OBJECTIVES = {"bank": CRD, "queue": QUEUE, "in_batch": IN_BATCH}


@pytest.fixture(scope="module", params=OBJECTIVES)
def objective(request):
    return OBJECTIVES[request.param]


@pytest.fixture(scope="module")
def variables(objective):
    """After a first batch, so that there is a normaliser and a queue."""
    first = arrays(seed=3)
    return after(objective, initialised(objective, first), first)


def test_masking_is_dropping(objective, variables):
    given = arrays(mask=KEEP)
    for start in variables, initialised(objective, given):
        want = run(objective, start, kept(given, KEEP))
        for garbage in np.nan, np.inf, 1e30:
            other = {root: objective_runs.spoilt(tree, KEEP, garbage) for root, tree in given.items()}
            other["batch"]["index"] = np.where(KEEP, given["batch"]["index"], -7)
            other["batch"]["label"] = np.where(KEEP, given["batch"]["label"], 99)
            found = run(objective, start, other)
            expected = want._replace(student=found.student)
            tiny.assert_close(found, expected, rtol=1e-4, atol=1e-5)
            tiny.assert_close(found.student["f"][KEEP], want.student["f"], rtol=1e-4, atol=1e-5)
            assert (found.student["f"][~KEEP] == 0).all()


def test_nothing_that_counts_changes_nothing(objective, variables):
    given = arrays(mask=np.zeros(BATCH, bool))
    for start in variables, initialised(objective, given):
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


def test_bfloat16_is_the_upcast_input(objective, variables):
    given = arrays()
    low = {**given, **{side: {"f": jnp.asarray(given[side]["f"], jnp.bfloat16)} for side in ("student", "teacher")}}
    high = {**low, **{side: {"f": low[side]["f"].astype(jnp.float32)} for side in ("student", "teacher")}}
    found, want = run(objective, variables, low), run(objective, variables, high)
    assert found.student["f"].dtype == jnp.bfloat16
    tiny.assert_close(found._replace(student={}), want._replace(student={}), rtol=1e-5)


@pytest.mark.parametrize(("way", "count"), PLACES, ids=str)
def test_the_number_of_devices_makes_no_difference(objective, variables, way, count):
    placed = objective_runs.on_devices(objective, way, count)
    fresh = initialised(objective, arrays())  # ... so that the normaliser is that of this batch
    for start, masks in (variables, MASKS.values()), (fresh, [KEEP]):
        for mask in masks:
            given = arrays(mask=mask)
            given["batch"]["index"][[3, 9, 13]] = given["batch"]["index"][[14, 2, 12]]  # twice, on two devices
            tiny.assert_close(placed(start, given), run(objective, start, given), rtol=1e-4, atol=1e-5)


def test_a_bank_split_over_the_devices_by_rows():
    """Two steps, so that the second reads what the first has written to other devices' rows."""
    picked = lambda path: any(getattr(part, "key", None) == "bank" for part in path)  # noqa: E731
    placed = objective_runs.on_devices(CRD, "jit", 8, split_state=picked)
    start = found = want = initialised(CRD, arrays())
    for seed in range(2):
        given = arrays(seed=seed, mask=KEEP)
        found, want = (
            placed(LossVars(start.params, found.state), given),
            run(CRD, LossVars(start.params, want.state), given),
        )
        tiny.assert_close(found, want, rtol=1e-4, atol=1e-5)
        for rows in found.state["bank"].values():
            shapes = [shard.data.shape for shard in rows.addressable_shards]
            assert shapes == [(DATA // 8, FEATURES)] * 8
            assert len({shard.index[0].start for shard in rows.addressable_shards}) == 8


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
