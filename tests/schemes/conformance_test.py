"""Properties of all schemes: one table of cases, one list of tests."""

from collections.abc import Callable
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import jaxkd
from jaxkd import adapters, combine, data, losses, objectives, parallel, schemes, teachers, term
from jaxkd.training import fit
from tests import tiny
from tests.schemes import networks
from tests.schemes.peers_toy import CLIPPED, normed

STEPS = 5
DROPPED = (4, 5)  # of eight examples; one of four devices then has no unmasked example
SGD, ADAM = optax.sgd(0.05, momentum=0.9), optax.adam(1e-2)
CE = term(losses.cross_entropy, "student/logits", "batch/label")
KL = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0)
BOTH = combine(ce=CE, kd=KL)


class Case(NamedTuple):
    """A scheme and what its tests need.

    Attributes:
      kd: the distiller.
      model: the exported model.
      pick: function from the state to the exported variables.
      fixed: function from the state to what training must not change.
      batch: ``(size, seed) -> batch`` for training.
      seen: the same for evaluation, if it differs.
      train: training data of 32 examples, if not made of such batches.
    """

    kd: jaxkd.Distiller
    model: jaxkd.Model = tiny.student
    pick: Callable[[Any], jaxkd.Variables] = lambda state: state.student
    fixed: Callable[[Any], Any] = lambda state: state.teacher
    batch: Callable[[int, int], dict] = tiny.batch
    seen: Callable[[int, int], dict] | None = None
    train: Callable[[], Any] | None = None

    def to_evaluate(self, size, seed):
        return (self.seen or self.batch)(size, seed)


def distilled(objective=BOTH, student=tiny.student, teacher=None, **options):
    return jaxkd.distill(student, teacher or tiny.teacher(), objective, optimizer=SGD, **options)


def member(name):
    return lambda state: adapters.member(state.student, name)


def nothing(state):
    return ()


def with_views(size, seed=0):
    """Returns a batch with a partner, a distortion and the left half of each image."""
    batch = tiny.batch(size, seed)
    other = tiny.batch(size, seed + 1000)["image"]
    return {**batch, "pair": other, "view": batch["image"] + 0.1 * other, "left": batch["image"][:, :, :2]}


# --- the table -------------------------------------------------------------------------------------------------------


def loader(batch, **options):
    """Returns data of 32 examples, four batches."""
    parts = [batch(8, i) for i in range(4)]
    arrays = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    arrays["index"] = np.arange(32, dtype=np.int32)
    return data.Resident(data.Dataset(arrays, tiny.CLASSES, "tiny"), batch_size=8, **options)


def offline():
    return Case(distilled())


def staged():
    hint = combine(hint=objectives.hint("student/map", "teacher/map"))
    return Case(
        schemes.staged(
            tiny.student, tiny.teacher(), schemes.phases.Stage(hint, ADAM, 2), schemes.phases.Stage(BOTH, SGD)
        )
    )


def born_again():
    kd = schemes.born_again(tiny.student, BOTH, first=combine(ce=CE), generations=2, steps=2, optimizer=SGD)
    return Case(kd, pick=member("2"), fixed=nothing)


def assistants():
    chain = {"assistant": tiny.teacher_model}
    kd = schemes.assistants(tiny.student, tiny.teacher(), BOTH, assistants=chain, steps=2, optimizer=SGD)
    return Case(kd, pick=member("student"), fixed=lambda state: state.teacher["assistant"])


def mean_teacher_with_crd():
    objective = combine(ce=CE, crd=objectives.crd_in_batch("student/vector", "teacher/vector", features=3))
    return Case(distilled(objective, teacher=teachers.ema(tiny.student, decay=0.9)), fixed=nothing)


def several_teachers():
    other = tiny.student.init(jax.random.key(8), tiny.batch(1))
    members = {"a": tiny.teacher(), "b": teachers.frozen(tiny.student, other)}
    votes = term(losses.voted_dissimilarity, "student/vector", ("teacher/a/vector", "teacher/b/vector"))
    objective = combine(ce=CE, kd=objectives.learned_ensemble(), votes=votes)
    return Case(distilled(objective, teacher=teachers.ensemble(members)))


def knowledge_flow():
    module = networks.Convolutional(norm=True)
    mixes = {"first": adapters.Mix("Conv_0", ["map"])}
    student = adapters.flow(module, mixes, optax.linear_schedule(1.0, 0.0, 4))
    objective = combine(ce=CE, alone=schemes.transfer.dependence_loss(weight=0.1))
    kd = schemes.knowledge_flow(student, tiny.teacher(), objective, optimizer=SGD)
    return Case(kd, adapters.linen(module), lambda state: adapters.student_alone(state.student))


def be_your_own_teacher():
    head = adapters.plain(
        lambda key, f: 0.5 * jax.random.normal(key, (f.shape[-1], tiny.CLASSES)),
        lambda w, f: {"logits": f.mean(axis=(1, 2)) @ w, "feature": f.mean(axis=(1, 2))},
        inputs="feature",
    )
    exits = {"early": adapters.Exit("map", head)}
    kd = schemes.byot(tiny.student, exits, optimizer=SGD, feature="vector")
    return Case(kd, pick=member("model"), fixed=nothing)


def class_wise():
    return Case(schemes.class_wise(tiny.student, optimizer=SGD), fixed=nothing, batch=with_views)


def two_views():
    return Case(schemes.two_views(tiny.student, optimizer=SGD, feature="vector"), fixed=nothing, batch=with_views)


def past_predictions():
    objective = combine(ps=objectives.past_predictions(tiny.DATA, steps=10))
    return Case(distilled(objective, teacher=teachers.none()), fixed=nothing)


def virtual_teacher():
    virtual = term(losses.virtual_teacher_kl, "student/logits", "batch/label")
    return Case(distilled(combine(ce=CE, tf=virtual), teacher=teachers.none()), fixed=nothing)


def adversarial():
    gan = objectives.adversarial("student/logits", "teacher/logits", discriminator=objectives.mlp(5))
    return Case(distilled(combine(ce=CE, kd=KL, gan=gan)))


def cross_modal():
    student = adapters.reading(tiny.student, image="left")
    return Case(distilled(student=student), model=student, batch=with_views)


def quantised():
    student = adapters.quantised(tiny.student, bits=2, bucket=8, seed=5, include=lambda path, x: True)
    return Case(distilled(student=student), model=student)


def learned_points():
    trained = tiny.student.init(jax.random.key(4), tiny.batch(1))
    student = adapters.learned_points(tiny.student, trained, bits=2, bucket=8, include=lambda path, x: True)

    def dense(state):
        return jaxkd.Variables(adapters.quantise_to(trained.params, state.student.params, bucket=8))

    return Case(distilled(student=student), pick=dense)


def few_sample():
    model = adapters.linen(networks.Convolutional(), taps={"first": "Conv_0"})
    taught = model.init(jax.random.key(6), tiny.batch(1))
    layers = {"first": schemes.transfer.FewSampleLayer("first", "first", "Conv_0/kernel", affine=True)}
    kd = schemes.few_sample(model, teachers.frozen(model, taught), layers, steps=4, ridge=1e-3)
    return Case(kd, adapters.linen(networks.Convolutional()))


def online():
    kd = schemes.online(tiny.student, normed, BOTH, teacher_objective=combine(ce=CE), optimizer=SGD)
    return Case(kd, pick=member("student"), fixed=nothing)


RELATION = combine(kl=KL, rkd=term(losses.distance_relation, "student/vector", "teacher/vector"))


def mutual_with_relations():
    students = {"a": tiny.student, "b": tiny.teacher_model}
    kd = schemes.mutual(students, own=combine(ce=CE), mutual=RELATION, optimizer=SGD)
    return Case(kd, pick=member("a"), fixed=nothing)


def mutual_copies():
    kd = schemes.mutual(normed, peers=3, own=combine(ce=CE), mutual=combine(kl=KL), optimizer=CLIPPED)
    return Case(kd, normed, pick=member("1"), fixed=nothing)


def diverse_peers():
    kd = schemes.diverse_peers(normed, normed, peers=2, feature="vector", own=CE, optimizer=SGD)
    return Case(kd, normed, pick=member("leader"), fixed=nothing)


def branches():
    head = adapters.plain(
        lambda key, f: 0.5 * jax.random.normal(key, (f.shape[-1], tiny.CLASSES)),
        lambda w, f: f.mean(axis=(1, 2)) @ w,
        inputs="feature",
    )
    exits = {"one": adapters.Exit("map", head), "two": adapters.Exit("map", head)}
    kd = schemes.branches(tiny.student, exits, feature="map", own=CE, taught=KL, optimizer=SGD)
    return Case(kd, pick=member("model"), fixed=nothing)


def collaborative():
    students = {"a": tiny.student, "b": adapters.reading(normed, image="view")}
    kd = schemes.collaborative(students, own=CE, taught=KL, optimizer=SGD)
    return Case(kd, pick=member("a"), fixed=nothing, batch=with_views)


def noise(size, seed=0):
    """Returns a batch without images."""
    rng = np.random.default_rng(seed)
    return {
        "noise": rng.normal(size=(size, 4)).astype(np.float32),
        "label": rng.integers(0, tiny.CLASSES, size).astype(np.int32),
        "index": rng.permutation(tiny.DATA)[:size].astype(np.int32),
    }


def _data_free(synthesis):
    model = adapters.with_batch_statistics(adapters.linen(networks.Convolutional(norm=True), taps={"last": "Conv_1"}))
    taught = model.init(jax.random.key(6), tiny.batch(1))
    teacher = teachers.frozen(model, taught)
    generator = adapters.plain(
        lambda key, z: jax.random.normal(key, (4, 32)),
        lambda w, z: {"image": jnp.tanh(z @ w).reshape(-1, 4, 4, 2)},
        inputs="noise",
    )
    kd = schemes.data_free(distilled(combine(kd=KL), teacher=teacher), synthesis(teacher, generator))
    return Case(kd, batch=noise, seen=tiny.batch)


def data_free_generator():
    return _data_free(lambda t, g: schemes.synthesis.dafl(t, g, optax.sgd(0.01), feature="last", statistics=1.0))


def data_free_inversion():
    options = {"iterations": 2, "slots": 2, "jitter": 1, "student": tiny.student, "competition": 1.0}
    return _data_free(lambda t, g: schemes.synthesis.inversion(t, (4, 4, 2), optax.sgd(0.01), **options))


def data_free_contrastive():
    options = {"features": ["last"], "iterations": 2, "slots": 2, "memory": 16, "embedding": 4}
    return _data_free(lambda t, g: schemes.synthesis.cmi(t, g, optax.sgd(0.01), **options))


TASKS = ([0, 1], [2])


def task_after_task(steps):
    """Returns a function of batches; the seed selects the task."""

    def batch(size, seed=0):
        made = tiny.batch(size, seed)
        task = 0 if seed < steps[0] else 1
        return {**made, "label": np.asarray(TASKS[task], np.int32)[made["label"] % len(TASKS[task])]}

    return batch


def in_turn(steps):
    return data.Tasks([loader(task_after_task((4 * i, 0))) for i in (1, 0)], steps)


def learning_without_forgetting():
    kd = schemes.learning_without_forgetting(tiny.student, tasks=TASKS, steps=(3, 9), optimizer=SGD)
    return Case(kd, fixed=nothing, batch=task_after_task((3, 9)), train=lambda: in_turn((3, 9)))


def retrospection():
    kd = schemes.retrospection(
        tiny.student, tiny.teacher_model, tasks=TASKS, steps=(2, 9), expert_steps=2, optimizer=SGD
    )
    return Case(kd, fixed=nothing, batch=task_after_task((2, 9)), train=lambda: in_turn((2, 9)))


CASES = {
    case.__name__: case
    for case in (
        offline,
        online,
        mutual_with_relations,
        mutual_copies,
        diverse_peers,
        branches,
        collaborative,
        staged,
        born_again,
        assistants,
        mean_teacher_with_crd,
        several_teachers,
        knowledge_flow,
        be_your_own_teacher,
        class_wise,
        two_views,
        past_predictions,
        virtual_teacher,
        adversarial,
        cross_modal,
        quantised,
        learned_points,
        few_sample,
        data_free_generator,
        data_free_inversion,
        data_free_contrastive,
        learning_without_forgetting,
        retrospection,
    )
}


# --- the properties --------------------------------------------------------------------------------------------------


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
    """Returns the whole batch with the dropped examples masked, and large values in them."""
    batch = case.batch(8, seed)
    for x in batch.values():
        if np.issubdtype(x.dtype, np.floating):
            x[list(DROPPED)] *= 50
    return {**batch, "mask": ~np.isin(np.arange(8), DROPPED)}


def row(name, *values, slow=False):
    """A parameter set for one scheme: its tests run in one worker, which compiles the shared programs once."""
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
        params = jax.tree.leaves((state.student.params, state.loss.params))
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
        "evaluate": loader(run.case.to_evaluate, shuffle=False),
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
