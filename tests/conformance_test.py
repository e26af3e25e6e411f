"""Properties of every objective and distiller, tested on one table of objectives."""

from collections.abc import Mapping
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxkd
from jaxkd import combine, losses, objectives, term
from jaxkd._core.batch_norm import replicas
from jaxkd.objectives import (
    adversarial,
    attention_graph,
    boundary_connector,
    crd,
    crd_in_batch,
    crd_queue,
    curriculum_temperature,
    dino,
    dual_masked_generation,
    factor_translator,
    instance_temperature,
    masked_generation,
    on_embeddings,
    overhaul_connector,
    paraphraser,
    review,
    variational,
    wasserstein,
)
from jaxkd.objectives.discriminators import Discriminator, mlp
from tests import tiny
from tests.detection_rows import DETECTION
from tests.language_rows import LANGUAGE
from tests.pose_rows import POSES
from tests.segmentation_rows import SEGMENTATION

DEVICES = 4
FIELDS = LANGUAGE | DETECTION | SEGMENTATION | POSES
DROPPED = (4, 5)  # of eight examples: the share of one of four devices
STEPS = 2


class Row(NamedTuple):
    objective: jaxkd.Objective
    weights: Mapping[str, object]  # by the term's name in the metrics
    learns: bool = False
    extras: Mapping[str, float] = {}  # weights of additional metrics in the loss


def half_life(step):
    return 8.0 * 0.5**step


def cooling(step):
    return 4.0 - step


LOGITS = ("student/logits", "teacher/logits")
MAPS = ("student/map", "teacher/map")
VECTORS = ("student/vector", "teacher/vector")

CE = term(losses.cross_entropy, "student/logits", "batch/label", weight=0.5)
KD = term(losses.soft_target_kl, *LOGITS, weight=0.9, temperature=4.0)
DISTANCE = term(losses.distance_relation, *VECTORS, weight=25.0)
HINT = objectives.hint(*MAPS, weight=3.0)

CLASS_OF = np.arange(tiny.DATA) % tiny.CLASSES
# A critic without an output bias: its loss does not depend on one, so the bias would never change.
CRITIC = Discriminator(
    lambda key, shape, outputs: jax.random.normal(key, (shape[-1], outputs)), lambda kernel, x: jnp.tanh(x @ kernel)
)

ROWS = {
    "cross_entropy": Row(combine(ce=CE), {"ce": 0.5}),
    "soft_target_kl": Row(combine(kd=KD), {"kd": 0.9}),
    "logit_mse": Row(combine(mse=term(losses.logit_mse, *LOGITS, weight=2)), {"mse": 2}),
    "hint": Row(combine(hint=HINT), {"hint": 3.0}, learns=True),
    "hint_without_a_regressor": Row(combine(hint=objectives.hint(*LOGITS, weight=3.0)), {"hint": 3.0}),
    "attention": Row(combine(at=term(losses.attention_transfer, *MAPS, weight=100.0)), {"at": 100.0}),
    "distance": Row(combine(distance=DISTANCE), {"distance": 25.0}),
    "angle": Row(combine(angle=term(losses.angle_relation, *VECTORS, weight=50.0)), {"angle": 50.0}),
    "variational": Row(combine(vid=variational(*MAPS, weight=2.0)), {"vid": 2.0}, learns=True),
    "paraphraser": Row(
        combine(ce=CE, factor=paraphraser("teacher/map", weight=2.0)),
        {"ce": 0.5, "factor": 2.0},
        learns=True,
    ),
    "factor_transfer": Row(combine(ft=factor_translator(*MAPS, weight=5.0)), {"ft": 5.0}, learns=True),
    "overhaul": Row(
        combine(ofd=overhaul_connector(*VECTORS, jnp.linspace(-1, 0, 5), weight=0.1)),
        {"ofd": 0.1},
        learns=True,
    ),
    "activation_boundary": Row(combine(ab=boundary_connector(*VECTORS, weight=0.1)), {"ab": 0.1}, learns=True),
    "review": Row(
        combine(
            review=review(
                ("student/map", "student/vector"), ("teacher/map", "teacher/vector"), hidden_size=3, weight=0.5
            )
        ),
        {"review": 0.5},
        learns=True,
    ),
    "embedded": Row(
        combine(cc=on_embeddings(losses.consecutive_correlation, *VECTORS, embedding_size=3, weight=0.1)),
        {"cc": 0.1},
        learns=True,
    ),
    "masked_generation": Row(
        combine(mgd=masked_generation(*MAPS, mask_ratio=0.5, weight=0.01)), {"mgd": 0.01}, learns=True
    ),
    "dual_masked_generation": Row(
        combine(dmkd=dual_masked_generation(*MAPS, weight=0.01)), {"dmkd": 0.01}, learns=True
    ),
    "foundation_features": Row(
        combine(
            maps=objectives.foundation_features(*MAPS),
            vectors=objectives.foundation_features(*VECTORS, cosine=1.0, smooth_l1=0.0, hidden_size=3),
        ),
        {"maps/cosine": 0.9, "maps/smooth_l1": 0.1, "vectors/cosine": 1.0},
        learns=True,
    ),
    "crd": Row(
        combine(crd=crd(*VECTORS, CLASS_OF, negatives=6, embedding_size=3, weight=0.1)), {"crd": 0.1}, learns=True
    ),
    "crd_queue": Row(
        combine(crd=crd_queue(*VECTORS, queue_size=12, embedding_size=3, weight=0.1)), {"crd": 0.1}, learns=True
    ),
    "crd_in_batch": Row(combine(crd=crd_in_batch(*VECTORS, embedding_size=3, weight=0.1)), {"crd": 0.1}, learns=True),
    "attention_graph": Row(
        combine(
            mhgd=attention_graph(
                ("student/map", "student/vector"), ("teacher/map", "teacher/vector"), heads=2, hidden_size=3, weight=2.0
            )
        ),
        {"mhgd": 2.0},
        learns=True,
        extras={"mhgd/estimator": 1.0},
    ),
    "adversarial": Row(
        combine(gan=adversarial(*LOGITS, discriminator=mlp(5), label_path="batch/label", weight=0.2)),
        {"gan": 0.2},
        learns=True,
        extras={"gan/discriminator": 1.0, "gan/accuracy": 0.0},
    ),
    "wasserstein": Row(
        combine(gan=wasserstein(*LOGITS, discriminator=CRITIC, penalty=0.5, weight=0.2)),
        {"gan": 0.2},
        learns=True,
        extras={"gan/discriminator": 1.0},
    ),
    "curriculum_temperature": Row(
        combine(kd=curriculum_temperature(difficulty=half_life, weight=0.9)),
        {"kd": 0.9},
        learns=True,
        extras={"kd/temperature": 0.0},
    ),
    "dino": Row(
        combine(dino=dino(("student/logits", "student/logits"), ("teacher/logits",), weight=0.3)),
        {"dino": 0.3},
        extras={"dino/kl": 0.0, "dino/teacher_entropy": 0.0, "dino/marginal_entropy": 0.0},
    ),
    "instance_temperature": Row(
        combine(kd=instance_temperature(hidden_size=4, weight=0.9)),
        {"kd": 0.9},
        learns=True,
        extras={"kd/temperature": 0.0},
    ),
    "nested": Row(
        combine(ce=CE, features=combine(hint=HINT, relations=combine(distance=DISTANCE))),
        {"ce": 0.5, "features/hint": 3.0, "features/relations/distance": 25.0},
        learns=True,
    ),
    "schedules": Row(
        combine(kd=term(losses.soft_target_kl, *LOGITS, weight=half_life, temperature=cooling)), {"kd": half_life}
    ),
    "user_defined_loss": Row(
        combine(own=term(lambda s, t: jnp.sum(jnp.abs(s - t), axis=-1), *LOGITS, weight=0.3)), {"own": 0.3}
    ),
    **{name: Row(*row) for name, row in FIELDS.items()},
}


class Case(NamedTuple):
    """A row, its distiller, and the states and metrics of the first steps under ``jax.jit``."""

    row: Row
    kd: jaxkd.Distiller
    traces: list
    states: list
    metrics: list


def kept(seed):
    """The batch without the examples that `masked` masks."""
    return {name: np.delete(x, DROPPED, axis=0) for name, x in tiny.batch(8, seed).items()}


def masked(seed):
    """The batch under a mask, with large values in masked examples that any leak would reveal."""
    batch = tiny.batch(8, seed)
    batch["image"][list(DROPPED)] *= 50
    return {**batch, "mask": ~np.isin(np.arange(8), DROPPED)}


def distiller(objective):
    optimizer = optax.sgd(0.05, momentum=0.9)
    return jaxkd.distill(tiny.student, tiny.teacher(), objective, optimizer=optimizer)


@pytest.fixture(
    scope="module",
    params=[pytest.param(name, marks=[pytest.mark.slow] * (name in FIELDS)) for name in ROWS],
)
def case(request):
    row = ROWS[request.param]
    kd, traces = distiller(row.objective), []

    @jax.jit
    def step(state, batch):
        traces.append(None)
        return kd.step(state, batch)

    states, metrics = [kd.init(jax.random.key(1), kept(0))], []
    for seed in range(STEPS):
        state, reported = step(states[-1], kept(seed))
        states.append(state)
        metrics.append(reported)
    return Case(row, kd, traces, states, metrics)


def follow(case, step, batches):
    """Asserts that ``step`` on ``batches`` reproduces the states and metrics of ``jax.jit``."""
    state = jax.tree.map(jnp.copy, case.states[0])
    for seed in range(STEPS):
        state, metrics = step(state, batches(seed))
        chex.assert_trees_all_close(tiny.numbers(metrics), tiny.numbers(case.metrics[seed]), rtol=1e-4, atol=1e-6)
    tiny.assert_close(state, case.states[-1], rtol=1e-4, atol=1e-5)


def context_of(case, seed=0):
    state, batch = case.states[0], kept(seed)
    student, _ = tiny.student.apply(state.student, batch, key=None, train=True)
    teacher, _ = tiny.teacher_model.apply(state.teacher, batch, key=None, train=False)
    return jaxkd.Context(student, teacher, batch, jnp.int32(1))


def test_initializes_from_shapes_alone(case):
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), kept(0))
    context = jax.eval_shape(lambda: context_of(case))
    made = jax.eval_shape(lambda key: case.row.objective.init(key, context), jax.random.key(0))
    chex.assert_trees_all_equal_shapes_and_dtypes(made, case.states[0].objective)
    assert bool(jax.tree.leaves(made.params)) == case.row.learns
    chex.assert_trees_all_equal_shapes_and_dtypes(
        jax.eval_shape(lambda key: case.kd.init(key, shapes), jax.random.key(0)), case.states[0]
    )


def test_traces_once_and_keeps_types(case):
    assert len(case.traces) == 1
    described = [jax.tree.map(jax.typeof, state) for state in case.states]
    assert described[0] == described[-1]


def test_training_changes_student_and_objective_parameters(case):
    before, after = case.states[0], case.states[-1]
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), before.student.params, after.student.params)
    assert moved["first"]
    learned = jax.tree.map(lambda a, b: bool((a != b).any()), before.objective.params, after.objective.params)
    assert all(jax.tree.leaves(learned))


def test_the_teacher_is_unchanged_and_has_no_optimizer_slots(case):
    variables = tiny.teacher_variables()
    tiny.assert_equal(case.states[-1].teacher, variables)
    slots = {x.shape for x in jax.tree.leaves(case.states[-1].opt_state)}
    assert not slots & {x.shape for x in jax.tree.leaves(variables)} - {x.shape for x in jax.tree.leaves(trained(case))}
    # Momentum has one slot per trained parameter.
    assert len(jax.tree.leaves(case.states[-1].opt_state)) == len(jax.tree.leaves(trained(case)))


def trained(case):
    return case.states[-1].student.params, case.states[-1].objective.params


def test_no_gradient_reaches_the_teacher(case):
    def after_one_step(params):
        state = case.states[0]
        state, metrics = case.kd.step(state._replace(teacher=state.teacher._replace(params=params)), kept(0))
        return metrics["loss"].sum + sum(
            jnp.sum(x) for x in jax.tree.leaves((state.student.params, state.objective.params))
        )

    gradient = jax.jit(jax.grad(after_one_step))(case.states[0].teacher.params)
    chex.assert_trees_all_equal(gradient, jax.tree.map(jnp.zeros_like, gradient))


def test_metrics_are_unweighted(case):
    for step, reported in enumerate(case.metrics):
        found = tiny.numbers(reported)
        weights = {name: w(step) if callable(w) else w for name, w in case.row.weights.items()}
        assert found.keys() == {"loss", *weights, *(f"{name}/weight" for name in weights), *case.row.extras}
        for name, weight in weights.items():
            assert found[f"{name}/weight"] == pytest.approx(weight)
        # Had the metrics been weighted, this sum would apply the weights twice.
        total = sum(weight * found[name] for name, weight in (weights | case.row.extras).items())
        assert found["loss"] == pytest.approx(total, rel=1e-5)


def test_a_nested_objective_equals_the_flat_one(case):
    objective, (params, state) = case.row.objective, case.states[0].objective
    nested = combine(outer=combine(inner=objective))
    wrap = lambda tree: {"outer": {"inner": tree}} if jax.tree.leaves(tree) else {}  # noqa: E731

    @jax.jit
    def both(student, params):
        context = context_of(case)._replace(student=student)
        flat = objective.apply(params, state, context, None)
        deep = nested.apply(wrap(params), wrap(state), context, None)
        return flat, deep

    student = context_of(case).student
    flat, deep = both(student, params)
    tiny.assert_close(flat.value, deep.value, rtol=1e-6)
    assert list(deep.metrics) == [f"outer/inner/{name}" for name in flat.metrics]
    tiny.assert_close(list(flat.metrics.values()), list(deep.metrics.values()), rtol=1e-6)
    made = nested.init(jax.random.key(0), jax.eval_shape(lambda: context_of(case)))
    chex.assert_trees_all_equal_shapes(made.params, wrap(params))


def test_masked_examples_equal_dropped_examples(case):
    follow(case, jax.jit(case.kd.step), masked)


def test_pmap_equals_jit(case):
    follow(case, jaxkd.parallel.pmap(case.kd, jax.devices()[:DEVICES], replicas=1), masked)


def mesh():
    return Mesh(np.array(jax.devices()[:DEVICES]), (jaxkd.DATA_AXIS,))


def test_shard_equals_jit(case):
    follow(case, jaxkd.parallel.shard(case.kd, mesh(), replicas=1), masked)


def test_a_users_shard_map_equals_jit(case):
    specs = {"in_specs": (PartitionSpec(), PartitionSpec(jaxkd.DATA_AXIS)), "out_specs": PartitionSpec()}
    with replicas(1):
        follow(case, jax.jit(jax.shard_map(case.kd.step, mesh=mesh(), **specs)), masked)


# --- The Distiller --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def kd():
    return distiller(combine(ce=CE, kd=KD, hint=HINT))


@pytest.fixture(scope="module")
def step(kd):
    return jax.jit(kd.step)


@pytest.fixture(scope="module")
def state(kd):
    return kd.init(jax.random.key(1), tiny.batch(8))


def test_the_state_is_one_pytree_of_arrays(kd, state):
    assert state.opt_state.keys() == {"student", "objective"}
    slots = {label: [x.shape for x in jax.tree.leaves(slots)] for label, slots in state.opt_state.items()}
    assert slots["student"] == [x.shape for x in jax.tree.leaves(state.student.params)]
    assert slots["objective"] == [x.shape for x in jax.tree.leaves(state.objective.params)]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(state))
    tiny.assert_equal(state.teacher, tiny.teacher_variables())
    chex.assert_shape(state.step, ())
    assert state.step.dtype == jnp.int32


def test_init_depends_on_its_key_alone(kd, state):
    made = jax.jit(lambda key: kd.init(key, tiny.batch(8)))
    tiny.assert_equal(made(jax.random.key(1)), state)
    other = made(jax.random.key(2))
    assert (other.student.params["first"] != state.student.params["first"]).any()
    assert (other.objective.params["hint"]["kernel"] != state.objective.params["hint"]["kernel"]).any()


def test_a_step_is_pure(step, state):
    before = jax.tree.map(jnp.copy, state)
    first, second = step(state, tiny.batch(8)), step(state, tiny.batch(8))
    tiny.assert_equal(first, second)
    tiny.assert_equal(state, before)
    assert int(first[0].step) == 1
    tiny.assert_equal(first[0].key, state.key)


def test_scan_equals_a_loop(kd, step, state):
    batches = [tiny.batch(8, seed) for seed in range(3)]
    stacked = jax.tree.map(lambda *x: np.stack(x), *batches)
    scanned, metrics = jax.jit(lambda s, b: jax.lax.scan(kd.step, s, b))(state, stacked)
    looped, sums = state, {}
    for batch in batches:
        looped, reported = step(looped, batch)
        sums = jaxkd.metrics.merge(sums, reported)
    tiny.assert_close(scanned, looped)
    totals = tiny.numbers(jaxkd.metrics.total(metrics))
    assert totals == pytest.approx(tiny.numbers(sums), rel=1e-5)


def test_vmap_over_seeds_equals_single_runs(kd, step):
    keys = jax.random.split(jax.random.key(3), 2)
    many = jax.jit(jax.vmap(lambda key: kd.init(key, tiny.batch(8))))(keys)
    many, metrics = jax.jit(jax.vmap(kd.step, in_axes=(0, None)))(many, tiny.batch(8))
    for i, key in enumerate(keys):
        one, reported = step(kd.init(key, tiny.batch(8)), tiny.batch(8))
        tiny.assert_close(jax.tree.map(lambda x, i=i: x[i], many), one)
        tiny.assert_close(jax.tree.map(lambda x, i=i: x[i], metrics), reported)


def test_donation_keeps_the_callers_teacher():
    variables = tiny.teacher_variables()
    expected = jax.tree.map(np.array, variables)
    teacher = jaxkd.teachers.frozen(tiny.teacher_model, variables)
    kd = jaxkd.distill(tiny.student, teacher, combine(kd=KD), optimizer=optax.sgd(0.1))
    state = kd.init(jax.random.key(0), tiny.batch(8))
    donated = state.student.params["first"]
    step = jax.jit(kd.step, donate_argnums=0)
    state, _ = step(*step(state, tiny.batch(8))[:1], tiny.batch(8))
    assert donated.is_deleted()
    tiny.assert_equal(variables, expected)
    tiny.assert_equal(state.teacher, expected)
    tiny.assert_equal(kd.init(jax.random.key(0), tiny.batch(8)).teacher, expected)


def test_evaluation_leaves_the_state_unchanged(kd, state):
    before = jax.tree.map(jnp.copy, state)
    evaluate = jax.jit(kd.evaluate)
    found = tiny.numbers(evaluate(state, tiny.batch(8)))
    tiny.assert_equal(state, before)
    assert found == tiny.numbers(evaluate(state, tiny.batch(8)))
    assert {"loss", "ce", "kd", "hint", "kd/weight", "accuracy", "nll", "agreement"} <= found.keys()
    assert found["nll"] == pytest.approx(found["ce"], rel=1e-5)


def test_metrics_of_masked_and_split_batches_merge(kd, state):
    whole = tiny.numbers(jax.jit(kd.evaluate)(state, kept(0)))
    assert tiny.numbers(jax.jit(kd.evaluate)(state, masked(0))) == pytest.approx(whole, rel=1e-4)
    parts = [{name: x[part] for name, x in kept(0).items()} for part in (slice(0, 4), slice(4, 6))]
    merged = jaxkd.metrics.merge(*(jax.jit(kd.evaluate)(state, part) for part in parts))
    assert tiny.numbers(merged) == pytest.approx(whole, rel=1e-4)
    placed = jaxkd.parallel.pmap(kd, jax.devices()[:DEVICES])
    assert tiny.numbers(placed.evaluate(state, masked(0))) == pytest.approx(whole, rel=1e-4)
