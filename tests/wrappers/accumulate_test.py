"""Accumulation: losses and gradients of the whole batch, placement, memory, composition, errors."""

import functools
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxkd
from jaxkd import Variables, adapters, combine, losses, objectives, parallel, term, wrappers
from jaxkd._core.batch_norm import replicas
from tests import tiny
from tests.adapters import models
from tests.adapters.jaxprs import products

KEY = jax.random.key(0)
LABELS = np.arange(tiny.DATA) % tiny.CLASSES
KD = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0)
CRD = objectives.crd("student/vector", "teacher/vector", LABELS, negatives=4, embedding_size=3)
RELATIONS = {
    "distance": term(losses.distance_relation, "student/logits", "teacher/logits", weight=25.0),
    "angle": term(losses.angle_relation, "student/logits", "teacher/logits", weight=50.0),
}
OBJECTIVE = combine(kd=KD, crd=CRD, **RELATIONS)


def distiller(student, objective=OBJECTIVE):
    return jaxkd.distill(student, tiny.teacher(), objective, optimizer=optax.sgd(0.05))


def ragged(size, seed=0):
    batch = tiny.batch(size, seed)
    return {**batch, "label": LABELS[batch["index"]].astype(np.int32), "mask": np.arange(size) % 5 != 2}


def steps(step, state, batches):
    found = []
    for batch in batches:
        state, metrics = step(state, batch)
        found.append(tiny.numbers(metrics))
    return state, found


# --- equality with the whole batch ----------------------------------------------------------------------------------


@functools.cache
def whole_batch(size):
    kd = distiller(tiny.student)
    start = kd.init(KEY, ragged(size))
    batches = [ragged(size, seed) for seed in range(2)]
    return start, batches, steps(jax.jit(kd.step), start, batches)


@pytest.mark.parametrize(("size", "parts"), [(16, 16), (13, 4)])
def test_equals_the_whole_batch(size, parts):
    """Covers a KL divergence, relations of pairs and triples, and a contrastive objective with a memory bank."""
    start, batches, (expected, metrics) = whole_batch(size)
    state, found = steps(jax.jit(distiller(wrappers.accumulate(tiny.student, parts)).step), start, batches)
    for one, other in zip(found, metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    tiny.assert_close(state, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_mask_over_tokens_reaches_the_model():
    """Also where the last part is filled up: a model may read the mask, as for its attention."""
    apply = lambda v, batch, *, key, train: ({"sum": jnp.sum(batch["x"] * batch["mask"], axis=1)}, {})  # noqa: E731
    model = jaxkd.Model(lambda key, batch: Variables({}), apply)
    batch = {"x": jnp.arange(15.0).reshape(5, 3), "mask": np.arange(3) < np.array([1, 2, 3, 0, 2])[:, None]}
    found, _ = wrappers.accumulate(model, 2).apply(Variables({}), batch, key=None, train=False)
    np.testing.assert_array_equal(found["sum"], [0, 3 + 4, 6 + 7 + 8, 0, 12 + 13])


def test_averaged_micro_batch_gradients_differ_visibly():
    """The tolerance of the test above would reveal gradients that are averaged over micro-batches."""
    kd = distiller(tiny.student, combine(**RELATIONS))
    batch = tiny.batch(16)
    state = kd.init(KEY, batch)
    whole, _ = jax.jit(kd.step)(state, batch)
    parts = [jax.jit(kd.step)(state, {k: x[i::4] for k, x in batch.items()})[0] for i in range(4)]
    mean = jax.tree.map(lambda *xs: sum(xs) / 4, *(part.student.params for part in parts))
    difference = jax.tree.map(lambda a, b: a - b, mean, whole.student.params)
    assert optax.tree.norm(difference) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("place", ["pmap", "shard", "teacher"])
def test_equals_the_whole_batch_under_each_placement(place):
    start, batches, (expected, metrics) = whole_batch(16)
    student = wrappers.accumulate(tiny.student, 2)
    kd, devices = distiller(student), jax.devices()[:4]
    if place == "teacher":
        teacher = jaxkd.teachers.frozen(wrappers.accumulate(tiny.teacher_model, 4), tiny.teacher_variables())
        kd = jaxkd.distill(student, teacher, OBJECTIVE, optimizer=optax.sgd(0.05))
        placed = jax.jit(kd.step)
    elif place == "pmap":
        placed = parallel.pmap(kd, devices)
    else:
        placed = parallel.shard(kd, Mesh(np.array(devices), ("data",)))
    state, found = steps(placed, jax.tree.map(jnp.copy, start), batches)
    for one, other in zip(found, metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)
    tiny.assert_close(state, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("train", [True, False])
@pytest.mark.parametrize("size", [6, 7, 2])
def test_nested_and_scalar_entries_reach_every_part(size, train):
    """The step is a scalar and the teacher's outputs are a dict whose rows stay with their examples."""

    def apply(variables, batch, *, key, train):
        own = batch["teacher"]["logits"] + batch["index"].astype(jnp.float32)[:, None] + batch["step"]
        return {"logits": own, "rows": jnp.full(own.shape[0], own.shape[0])}, variables.state

    model = wrappers.accumulate(jaxkd.Model(lambda key, batch: Variables({}), apply), 3)
    logits = np.random.default_rng(0).normal(size=(size, 2)).astype(np.float32)
    batch = {"index": np.arange(size), "step": jnp.int32(5), "teacher": {"logits": logits}}
    outputs, _ = model.apply(Variables({}), batch, key=None, train=train)
    np.testing.assert_allclose(outputs["logits"], logits + np.arange(size)[:, None] + 5, rtol=1e-6)
    np.testing.assert_array_equal(outputs["rows"], np.full(size, -(-size // 3)))


# --- keys, statistics and counters ----------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("model", [adapters.linen(models.Net()), adapters.nnx(models.NnxNet)], ids=["linen", "nnx"])
def test_batch_norm_normalizes_each_part_and_averages_the_statistics(model, count):
    image = np.random.default_rng(0).normal(1, 2, size=(8, 2, 2, 2)).astype(np.float32)
    mask = np.array([1, 1, 0, 1, 1, 1, 1, 1], bool)
    variables = model.init(KEY, {"image": image})
    with replicas(count):
        apply = functools.partial(wrappers.accumulate(model, 2).apply, key=None, train=True)
        found, state = jax.jit(apply)(variables, {"image": image, "mask": mask})
    parts = [rows[i::2] for rows in np.split(np.arange(8), count) for i in range(2)]
    parts = [rows[mask[rows]] for rows in parts]
    alone = {tuple(rows): model.apply(variables, {"image": image[rows]}, key=None, train=True) for rows in parts}
    for rows, (outputs, _) in alone.items():
        np.testing.assert_allclose(found["logits"][np.array(rows)], outputs["logits"], rtol=1e-4, atol=1e-5)
    mean = jax.tree.map(lambda *xs: sum(xs) / len(xs), *(state for _, state in alone.values()))
    chex.assert_trees_all_close(state, mean, rtol=1e-5, atol=1e-6)


def test_counters_stay_integers_and_keys_stay_keys():
    def apply(variables, batch, *, key, train):
        state = {"calls": variables.state["calls"] + 1, "key": variables.state["key"]}
        return {"logits": batch["x"]}, state

    state = {"calls": jnp.int32(4), "key": jax.random.key(3)}
    model = wrappers.accumulate(jaxkd.Model(lambda key, batch: Variables({}, state), apply), 2)
    _, after = model.apply(Variables({}, state), {"x": jnp.ones((4, 1))}, key=None, train=True)
    assert after["calls"] == 5
    assert after["calls"].dtype == jnp.int32
    assert jax.random.key_data(after["key"]).tolist() == [0, 3]


def test_dropout_differs_between_parts_and_is_off_in_inference():
    model = wrappers.accumulate(adapters.linen(models.Dropped()), 2)
    batch = {"image": jnp.ones((4, 64))}
    variables = model.init(KEY, batch)
    logits = model.apply(variables, batch, key=KEY, train=True)[0]["logits"]
    assert set(np.unique(logits)) == {0, 2}
    assert all((logits[0] != logits[i]).any() for i in (1, 2, 3))
    again = model.apply(variables, batch, key=KEY, train=True)[0]["logits"]
    np.testing.assert_array_equal(logits, again)
    assert (model.apply(variables, batch, key=jax.random.key(1), train=True)[0]["logits"] != logits).any()
    np.testing.assert_array_equal(model.apply(variables, batch, key=None, train=False)[0]["logits"], 1)


def test_inference_equals_that_of_the_model():
    model = adapters.linen(models.Net())
    batch = {"image": np.random.default_rng(0).normal(size=(7, 2, 2, 2)).astype(np.float32)}
    variables = model.init(KEY, batch)
    expected, _ = model.apply(variables, batch, key=None, train=False)
    found, state = wrappers.accumulate(model, 3).apply(variables, batch, key=None, train=False)
    chex.assert_trees_all_close(found, expected, rtol=1e-6, atol=1e-6)
    chex.assert_trees_all_equal(state, variables.state)


# --- memory and operations--------------------------------------------------------------------------------------------

WIDTH, ROWS, LAYERS = 64, 512, 8


def wide():
    def init(key, x):
        return [jax.random.normal(k, (WIDTH, WIDTH)) / 8 for k in jax.random.split(key, LAYERS)]

    def forward(params, x):
        for w in params:
            x = x + jax.nn.gelu(x @ w)
        return x[:, :8]

    return adapters.plain(init, forward, inputs="x")


def relation(logits, x):
    return losses.distance_relation(logits, x[:, :4]).mean()


def gradient(model, objective):
    def loss(params, x):
        outputs, _ = model.apply(Variables(params), {"x": x}, key=None, train=True)
        return objective(outputs["logits"], x)

    return jax.grad(loss), (model.init(KEY, {"x": jnp.ones((ROWS, WIDTH))}).params, jnp.ones((ROWS, WIDTH)))


def test_peak_memory_is_that_of_one_part():
    def temporary(model):
        function, arguments = gradient(model, lambda logits, x: jnp.mean(logits**2))
        return jax.jit(function).lower(*arguments).compile().memory_analysis().temp_size_in_bytes

    plain, half, eighth = (temporary(wrappers.accumulate(wide(), parts)) for parts in (1, 2, 8))
    assert half < 0.7 * plain
    assert eighth < 0.3 * plain


def test_the_objective_is_computed_once_and_on_the_whole_batch():
    """The loops over parts hold the model with a part's rows; outside of them is exactly the objective."""
    own = products(jax.make_jaxpr(jax.grad(relation))(jnp.ones((ROWS, 8)), jnp.ones((ROWS, WIDTH))), loops=False)
    function, arguments = gradient(wrappers.accumulate(wide(), 4), relation)
    jaxpr = jax.make_jaxpr(function)(*arguments)
    assert own
    assert products(jaxpr, loops=False) == own
    inside = list(products(jaxpr))
    for product in own:
        inside.remove(product)
    rows = ROWS // 4
    # Forward, recomputation, and the gradients of each layer by its weights and (except the first) by its input.
    assert len([1 for *_, shape in inside if shape == (rows, WIDTH)]) == LAYERS + LAYERS + LAYERS - 1
    assert len([1 for *_, shape in inside if shape == (WIDTH, WIDTH)]) == LAYERS


def test_a_sharded_batch_needs_no_communication():
    mesh = Mesh(np.array(jax.devices()[:4]), ("data",))
    rows, whole = NamedSharding(mesh, PartitionSpec("data")), NamedSharding(mesh, PartitionSpec())
    model = wrappers.accumulate(wide(), 4)
    forward = lambda params, x: model.apply(Variables(params), {"x": x}, key=None, train=True)[0]["logits"]  # noqa: E731
    params = model.init(KEY, {"x": jnp.ones((ROWS, WIDTH))}).params
    program = jax.jit(forward, in_shardings=(whole, rows), out_shardings=rows).lower(params, jnp.ones((ROWS, WIDTH)))
    text = program.compile().as_text()
    assert f"f32[{ROWS // 16},{WIDTH}]" in text  # the rows of one part on one device
    assert not re.search(r"all-gather|all-to-all|collective-permute|all-reduce", text)


# --- with other wrappers --------------------------------------------------------------------------------------------


def test_composes_with_precision_and_remat():
    model = adapters.linen(models.Net(), taps={"stem": "stem"})
    inner = wrappers.precision(wrappers.remat(model))
    batch = {"image": np.random.default_rng(0).normal(size=(8, 2, 2, 2)).astype(np.float32)}
    variables = model.init(KEY, batch)

    def run(model, batch):
        def loss(params):
            outputs, state = model.apply(variables._replace(params=params), batch, key=KEY, train=True)
            return jnp.sum(jnp.sin(outputs["logits"].astype(jnp.float32))), (outputs, state)

        return jax.jit(jax.grad(loss, has_aux=True))(variables.params)

    gradients, (outputs, state) = run(wrappers.accumulate(inner, 2), batch)
    halves = [run(inner, {"image": batch["image"][i::2]}) for i in range(2)]
    assert {name: x.dtype for name, x in outputs.items()} == {"logits": jnp.bfloat16, "stem": jnp.bfloat16}
    chex.assert_trees_all_equal_shapes_and_dtypes((gradients, state), (variables.params, variables.state))
    for i, (_, (expected, _)) in enumerate(halves):
        for name, x in outputs.items():
            np.testing.assert_allclose(np.float32(x[i::2]), np.float32(expected[name]), rtol=2e-2, atol=2e-2)
    total = jax.tree.map(lambda a, b: a + b, halves[0][0], halves[1][0])
    chex.assert_trees_all_close(gradients, total, rtol=5e-2, atol=5e-2)


@pytest.mark.parametrize("order", ["inside", "outside"])
def test_projected_input_gradients_use_the_directions_of_the_whole_batch(order):
    """An example's direction depends on its position in the whole batch, not on its part, its mask or padding."""
    wrap, split = wrappers.with_projected_input_gradient, functools.partial(wrappers.accumulate, micro_batches=3)
    model = split(wrap(tiny.student)) if order == "inside" else wrap(split(tiny.student))
    batch = ragged(8)
    variables = tiny.student.init(KEY, batch)

    def run(model):
        def loss(params):
            outputs, _ = model.apply(variables._replace(params=params), batch, key=None, train=True)
            return jnp.sum(outputs["input_gradient"][batch["mask"]] ** 2), outputs["input_gradient"]

        return jax.jit(jax.grad(loss, has_aux=True))(variables.params)

    (gradients, found), (expected_gradients, expected) = run(model), run(wrap(tiny.student))
    np.testing.assert_allclose(found[batch["mask"]], expected[batch["mask"]], rtol=1e-4, atol=1e-6)
    chex.assert_trees_all_close(gradients, expected_gradients, rtol=1e-4, atol=1e-5)


# --- errors ---------------------------------------------------------------------------------------------------------


def test_one_part_returns_the_model_itself():
    assert wrappers.accumulate(tiny.student, 1) is tiny.student


@pytest.mark.parametrize("parts", [0, -2])
def test_a_non_positive_number_of_parts_is_refused(parts):
    with pytest.raises(ValueError, match=f"micro_batches: expected a positive number, got {parts}"):
        wrappers.accumulate(tiny.student, parts)


@pytest.mark.parametrize(
    "batch", [{"image": np.ones((4, 2)), "other": np.ones((3, 2))}, {"image": np.float32(1)}, {}], ids=str
)
def test_a_batch_without_one_leading_dimension_is_refused(batch):
    with pytest.raises(ValueError, match=r"expected arrays \[batch, \.\.\.\] with one leading dimension, and scalars"):
        wrappers.accumulate(tiny.student, 2).apply(Variables({}), batch, key=None, train=True)


@pytest.mark.parametrize("value", [lambda x: x.mean(), lambda x: x.T], ids=["scalar", "transposed"])
def test_an_output_without_a_row_per_example_is_refused(value):
    model = adapters.plain(lambda key, x: (), lambda w, x: {"logits": x, "odd": value(x)})
    with pytest.raises(ValueError, match=r"one row for each of a part's 3 examples, got float32\[.*'odd'"):
        wrappers.accumulate(model, 2).apply(Variables(()), {"image": np.ones((6, 2), np.float32)}, key=None, train=True)
