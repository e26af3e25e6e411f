"""`schemes.lifelong` and LwF: equal to separate runs, each taught by the last."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxkd
from jaxkd import losses, term
from jaxkd.distillers import distill
from jaxkd.metrics import _forgetting
from jaxkd.objectives import continual
from jaxkd.schemes import learning_without_forgetting, lifelong
from jaxkd.training import fit
from jaxkd.types import Context
from tests import tiny
from tests.schemes import task_sequences as sequences
from tests.schemes.task_sequences import SGD, STEPS, TASKS, batch, jitted, log_softmax, run, student, task_of

HEADS = {
    "per_task_softmax": continual.per_task_softmax,
    "split_softmax": continual.split_softmax,
    "joint_softmax": continual.joint_softmax,
}
PER_TASK = _forgetting.per_task(TASKS, steps=STEPS)


@functools.cache
def lwf(heads="per_task_softmax", **options):
    options = {"tasks": TASKS, "steps": STEPS, "optimizer": SGD, "old_weight": 0.7} | options
    return learning_without_forgetting(student, softmax=HEADS[heads], **options)


def rivals(heads, task):
    """Returns the classes with which a new label competes, and those of each old head."""
    seen = [number for group in TASKS[: task + 1] for number in group]
    old = [number for group in TASKS[:task] for number in group]
    together = [old] if old else []
    return {
        "per_task_softmax": (list(TASKS[task]), [list(group) for group in TASKS[:task]]),
        "split_softmax": (list(TASKS[task]), together),
        "joint_softmax": (seen, together),
    }[heads]


def by_hand(heads, task, teacher):
    """One task as a separate distillation, on slices of the logits."""
    new, old = rivals(heads, task)

    def ce(logits, labels):
        return losses.cross_entropy(logits[:, jnp.array(new)], jnp.argmax(labels[:, None] == jnp.array([new]), axis=1))

    def kd(logits, others):
        parts = [losses.soft_target_kl(logits[:, jnp.array(g)], others[:, jnp.array(g)], temperature=2.0) for g in old]
        return sum(parts) / 4

    terms = {"ce": term(ce, "student/logits", "batch/label")}
    if old:
        terms["kd"] = term(kd, "student/logits", "teacher/logits", weight=0.7)
    return distill(student, teacher, jaxkd.combine(**terms), optimizer=SGD)


@pytest.mark.parametrize("heads", ["per_task_softmax", "split_softmax"])
def test_sequence_equals_separate_runs(heads):
    state, found = run(lwf(heads), 7)
    variables, expected = lwf().init(jax.random.key(1), batch(0)).student, []
    for task, (first, last) in enumerate([(0, 2), (2, 5), (5, 7)]):
        kd = by_hand(heads, task, jaxkd.teachers.frozen(student, variables))
        part = kd.init(jax.random.key(5), batch(first))._replace(student=variables, step=jnp.int32(first))
        part, metrics = run(kd, last, state=part)
        variables, expected = part.student, expected + metrics
    tiny.assert_close(state.student, variables, rtol=1e-5, atol=1e-6)
    tiny.assert_close(state.opt_state["student"], part.opt_state["student"], rtol=1e-5, atol=1e-6)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one["task"] == task_of(step)
        for name in ("loss", "ce", "kd"):
            assert one[name] == pytest.approx(other.get(name, 0), rel=1e-4, abs=1e-6)
    assert found[2]["kd"] == pytest.approx(0, abs=1e-6)  # the student still equals its teacher
    assert found[4]["kd"] > 1e-4


def reference(heads, task, logits, others, label, temperature):
    """Both losses of each example, in float64."""
    _, old = rivals(heads, task)
    ce, kd = np.empty(len(label)), np.zeros(len(label))
    for n, y in enumerate(label):
        among = next(list(g) for g in TASKS if y in g) if heads == "per_task_softmax" else rivals(heads, task)[0]
        if y not in among:  # the old one of two heads
            among = old[0]
        ce[n] = -log_softmax(logits[n, among])[among.index(y)]
        for group in old:
            p, q = (log_softmax(x[n, group] / temperature) for x in (others, logits))
            kd[n] += (np.exp(p) * (p - q)).sum()
    return ce, kd


@pytest.mark.parametrize("heads", HEADS)
@pytest.mark.parametrize("task", [0, 1, 2])
def test_objectives_match_float64_values_and_gradients(heads, task):
    """With retained examples, whose labels compete in the head of their class."""
    rng = np.random.default_rng(task)
    logits, others = rng.normal(size=(2, 9, 6)) * 3
    label = rng.choice([number for group in TASKS[: task + 1] for number in group], 9)
    step = (0, 2, 5)[task]
    with jax.enable_x64(True):
        terms = [
            continual.task_cross_entropy(TASKS, STEPS, softmax=HEADS[heads]),
            continual.old_class_kd(TASKS, STEPS, softmax=HEADS[heads], temperature=1.5),
        ]

        def value(objective, x):
            given = Context({"logits": x}, {"logits": jnp.asarray(others)}, {"label": jnp.asarray(label)}, step)
            return objective.apply({}, {}, given, jax.random.key(0)).value

        for objective, expected in zip(terms, reference(heads, task, logits, others, label, 1.5), strict=True):
            of = jax.jit(jax.value_and_grad(functools.partial(value, objective)))
            found, slope = of(jnp.asarray(logits))
            assert found == pytest.approx(expected.mean(), rel=1e-9, abs=1e-12)
            for n, c in ((0, 0), (3, 4), (5, 2), (8, 1)):
                bump = np.zeros_like(logits)
                bump[n, c] = 1e-5
                measured = (of(jnp.asarray(logits + bump))[0] - of(jnp.asarray(logits - bump))[0]) / 2e-5
                assert float(slope[n, c]) == pytest.approx(float(measured), abs=1e-7)


@pytest.mark.parametrize("heads", HEADS)
def test_extreme_logits_give_finite_values(heads):
    rng = np.random.default_rng(0)
    logits, others = (jnp.asarray(1e4 * rng.choice([-1.0, 1.0], (5, 6)), jnp.float32) for _ in range(2))
    objective = jaxkd.combine(
        ce=continual.task_cross_entropy(TASKS, STEPS, softmax=HEADS[heads]),
        kd=continual.old_class_kd(TASKS, STEPS, softmax=HEADS[heads]),
    )

    @jax.jit
    @jax.value_and_grad
    def value(x, mask, step, label):
        given = Context({"logits": x}, {"logits": others}, {"label": label, "mask": mask}, step)
        return objective.apply({}, {}, given, jax.random.key(0)).value

    for step in (0, 2, 5):
        label = jnp.asarray(rng.choice(TASKS[task_of(step)], 5))
        for mask in (np.ones(5, bool), np.zeros(5, bool)):
            found, slope = value(logits, jnp.asarray(mask), step, label)
            assert jnp.isfinite(found)
            assert jnp.isfinite(slope).all()
            assert mask.any() or (found == 0 and not slope.any())


def test_student_becomes_the_teacher_at_a_new_task():
    kd = lwf()
    start, _ = run(kd, 0)
    before, _ = run(kd, 2)
    tiny.assert_equal(before.teacher, start.student)
    first, _ = run(kd, 3)
    tiny.assert_equal(first.teacher, before.student)
    last, _ = run(kd, 5)
    tiny.assert_equal(last.teacher, before.student)
    after, _ = run(kd, 6)
    tiny.assert_equal(after.teacher, last.student)
    later, _ = run(kd, 20, give=lambda i: batch(i, tasks=2 if i > 4 else None))
    tiny.assert_equal(later.teacher, last.student)


def test_optimizer_state_is_reset_at_a_new_task():
    kd = lwf(optimizer=optax.adam(optax.linear_schedule(0.1, 0.0, 3)))
    counts = [int(run(kd, steps)[0].opt_state["student"][0].count) for steps in range(1, 8)]
    assert counts == [1, 2, 1, 2, 3, 1, 2]
    assert int(run(kd, 7)[0].opt_state["objective"][0].count) == 2


def test_objective_parameters_continue_with_a_new_optimizer_state():
    objective = jaxkd.combine(
        ce=continual.task_cross_entropy(TASKS, STEPS), hint=jaxkd.objectives.hint("student/vector", "teacher/logits")
    )
    adam = optax.adam(0.1)
    kd = lifelong(student, objective, steps=STEPS, optimizer=SGD, objective_optimizer=adam)
    before, (after, _) = run(kd, 2)[0], run(kd, 3)
    assert int(after.opt_state["objective"][0].count) == 1
    moved = jax.tree.map(lambda x, y: float(jnp.max(jnp.abs(x - y))), after.objective.params, before.objective.params)
    assert 0 < max(jax.tree.leaves(moved)) < 0.11  # one step of Adam from the parameters of the task before


def test_first_task_of_zero_steps_uses_the_initial_student():
    kd = lwf(steps=(0, 3, 4))
    known = jax.tree.map(lambda x: x + 0.1, kd.init(jax.random.key(1), batch(2)).student)
    state = kd.init(jax.random.key(1), batch(2))._replace(student=known)
    state, metrics = jax.jit(kd.step)(state, batch(2))
    tiny.assert_equal(state.teacher, known)
    assert tiny.numbers(metrics)["task"] == 1


@pytest.mark.slow
def test_teacher_includes_batch_statistics():
    import flax.linen as nn

    class Net(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(4)(x.reshape(x.shape[0], -1))
            return nn.Dense(6)(nn.tanh(nn.BatchNorm(use_running_average=not train)(x)))

    kd = learning_without_forgetting(jaxkd.adapters.linen(Net()), tasks=TASKS, steps=STEPS, optimizer=SGD)
    before, (after, _) = run(kd, 2)[0], run(kd, 4)
    tiny.assert_equal(after.teacher, before.student)
    assert (after.teacher.state["batch_stats"]["BatchNorm_0"]["mean"] != 0).all()
    placed, _ = run(kd, 4, step=jaxkd.parallel.pmap(kd, jax.devices()[:4], replicas=1))
    tiny.assert_close(placed, after, rtol=1e-4, atol=1e-5)


def test_shard_map_equals_jit():
    """With retained examples, all on the first device."""
    kd, give = lwf("split_softmax"), functools.partial(batch, retained=2)
    expected, metrics = run(kd, 7, give=give)
    mesh = Mesh(np.array(jax.devices()[:3]), (jaxkd.DATA_AXIS,))
    whole, split = PartitionSpec(), PartitionSpec(jaxkd.DATA_AXIS)
    step = jax.jit(jax.shard_map(kd.step, mesh=mesh, in_specs=(whole, split), out_specs=whole))
    state, found = run(kd, 7, step=step, give=give)
    tiny.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(found, metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


def test_masked_examples_equal_dropped_examples():
    def padded(step):
        given = batch(step)
        more = {"image": np.full((3, 2, 2, 2), 1e4, np.float32), "label": np.array([99, -1, 3], np.int32)}
        return {k: np.concatenate([x, more[k]]) for k, x in given.items()} | {"mask": np.arange(9) < 6}

    kd = lwf("split_softmax")
    (state, found), (expected, metrics) = run(kd, 7, give=padded), run(kd, 7)
    tiny.assert_close(state, expected)
    for one, other in zip(found, metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("label", [2, 6, -1])
def test_label_of_a_later_task_gives_nan_in_training(label):
    kd = lwf()
    state, _ = run(kd, 2)
    wrong = {**batch(2), "label": np.array([0, 5, 0, label, 5, 5], np.int32)}
    assert np.isnan(tiny.numbers(jitted(kd.step)(state, wrong)[1])["ce"])
    found = jitted(kd.evaluate)(run(kd, 3)[0], wrong)
    if label == 2:
        assert float(found["ce"].count) == 5
        assert np.isfinite(tiny.numbers(found)["loss"])
    else:  # a class of no task
        assert np.isnan(tiny.numbers(found)["ce"])


def test_evaluation_between_tasks_uses_the_task_of_the_last_step():
    kd = lwf(metrics=PER_TASK)
    state, _ = run(kd, 5)
    found = tiny.numbers(jitted(kd.evaluate)(state, batch(4)))
    assert found["task"] == 1
    _, kept = reference("per_task_softmax", 1, *_logits(state, batch(4)), batch(4)["label"], 2.0)
    assert found["kd"] == pytest.approx(kept.mean(), rel=1e-4)
    assert found["kd"] > 1e-4
    assert {"accuracy/0", "accuracy/2", "accuracy_within/1"} <= found.keys()
    assert tiny.numbers(jitted(kd.evaluate)(run(kd, 0)[0], batch(0)))["task"] == 0


def _logits(state, given):
    outputs = [student.apply(v, given, key=None, train=False)[0]["logits"] for v in (state.student, state.teacher)]
    return [np.asarray(x) for x in outputs]


@pytest.mark.slow
def test_resume_in_the_second_task_is_exact(tmp_path):
    train, key = sequences.sequence(more=3), jax.random.key(3)
    kd = lwf("split_softmax", metrics=PER_TASK)
    options = {"key": key, "progress": False, "chunk": 1, "eval_data": sequences.everything(), "eval_every": 1}
    whole = fit(kd, train, steps=9, **options)
    fit(kd, train, steps=4, directory=tmp_path, **options)
    parts = fit(kd, train, steps=9, directory=tmp_path, **options)
    tiny.assert_equal(parts.state, whole.state)
    matrix = _forgetting.task_accuracies(whole.history, STEPS)
    assert matrix.shape == (3, 3)
    assert (matrix[0, 1:] == 0).all()
    assert np.isfinite([_forgetting.forgetting(matrix), _forgetting.average_accuracy(matrix)]).all()


@pytest.mark.slow
def test_old_weight_reduces_forgetting():
    """On constant images, the second task changes the predictions for the first less."""

    def drift(weight):
        kd = lwf(old_weight=weight, steps=(10, 20, 4), optimizer=optax.sgd(0.2))
        return run(kd, 30, give=lambda i: batch(0) if i < 10 else batch(2))[1][-1]["kd"]

    assert drift(5.0) < 0.5 * drift(0.0)


def test_invalid_arguments_raise():
    for wrong in ([], [[]], [[0, 1], [1]], [[-1, 0]]):
        with pytest.raises(ValueError, match="class numbers of each task"):
            lwf.__wrapped__(tasks=wrong)
    for wrong in (0, [1, 2], [1, 0, 2], [0, 0, 2]):
        with pytest.raises(ValueError, match="one for each of the 3 tasks"):
            lwf.__wrapped__(steps=wrong)
    with pytest.raises(ValueError, match="at least 8 classes"):
        lwf(tasks=((0, 1), (7,)), steps=2).init(jax.random.key(0), batch(0))
    with pytest.raises(ValueError, match="no such name"):
        lwf().init(jax.random.key(0), {"image": batch(0)["image"]})
    for wrong in (3, []):
        with pytest.raises(ValueError, match="steps: expected a number of steps for each task"):
            lifelong(student, continual.task_cross_entropy(TASKS, STEPS), steps=wrong, optimizer=SGD)
    other = continual.old_class_kd(TASKS, STEPS, teacher="teacher/vector")
    with pytest.raises(ValueError, match=r"student's shape \[6, 6\], got \[6, 5\]"):
        lifelong(student, other, steps=STEPS, optimizer=SGD).init(jax.random.key(0), batch(0))
