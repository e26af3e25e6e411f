"""`schemes.retrospection`: equal to separate runs of experts and students."""

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
from jaxkd.objectives import continual
from jaxkd.schemes import retrospection
from tests import tiny
from tests.schemes.task_sequences import SGD, STEPS, TASKS, batch, expert, jitted, log_softmax, run, student, task_of

ADAM = optax.adam(0.05)
WEIGHTS = {"label_weight": 0.3, "expert_weight": 1.5, "old_weight": 0.7}
give = functools.partial(batch, retained=2)


@functools.cache
def scheme(**options):
    options = {"tasks": TASKS, "steps": STEPS, "expert_steps": 1, "optimizer": SGD, "expert_optimizer": ADAM} | options
    return retrospection(student, expert, **WEIGHTS, expert_temperature=1.5, **options)


def is_expert(step):
    return step in (2, 5)


def cut(logits, group):
    return logits[:, jnp.array(group)]


def within(labels, group):
    return jnp.argmax(labels[:, None] == jnp.array([group]), axis=1)


def expert_alone(task):
    """Plain training on the new task's examples, with only the logits of its classes."""

    def ce(logits, labels):
        return losses.cross_entropy(cut(logits, TASKS[task]), within(labels, TASKS[task]))

    objective = jaxkd.combine(ce=term(ce, "student/logits", "batch/label"))
    return distill(expert, jaxkd.teachers.none(), objective, optimizer=ADAM)


def both(task, old, of_expert):
    """Student's phase with two frozen teachers, retained examples first in the batch."""

    def on_new(logits, others):
        kl = losses.soft_target_kl(cut(logits, TASKS[task])[2:], cut(others, TASKS[task])[2:], temperature=1.5)
        return kl / 1.5**2

    def on_all(logits, others):
        return sum(losses.soft_target_kl(cut(logits, g), cut(others, g), temperature=2.0) for g in TASKS[:task]) / 4

    def on_retained(logits, labels):
        def among(group):
            has = jnp.any(labels[:, None] == jnp.array([group]), axis=1)
            return jnp.where(has, losses.cross_entropy(cut(logits, group), within(labels, group)), 0)

        return sum(among(group) for group in TASKS[:task])[:2]

    teacher = jaxkd.teachers.ensemble(
        {"old": jaxkd.teachers.frozen(student, old), "expert": jaxkd.teachers.frozen(expert, of_expert)}
    )
    objective = jaxkd.combine(
        ce=term(on_retained, "student/logits", "batch/label", weight=0.3),
        expert=term(on_new, "student/logits", "teacher/expert/logits", weight=1.5),
        kd=term(on_all, "student/logits", "teacher/old/logits", weight=0.7),
    )
    return distill(student, teacher, objective, optimizer=SGD)


def test_sequence_equals_separate_runs():
    kd = scheme()
    state, found = run(kd, 9, give=give)
    plain = jaxkd.combine(
        ce=term(
            lambda logits, labels: losses.cross_entropy(cut(logits, TASKS[0]), within(labels, TASKS[0])),
            "student/logits",
            "batch/label",
            weight=0.3,
        )
    )
    first = distill(student, jaxkd.teachers.none(), plain, optimizer=SGD)
    part, expected = run(first, 2, state=first.init(jax.random.key(1), batch(0)), give=give)
    for task, (begin, end) in ((1, (2, 5)), (2, (5, 9))):
        states = [run(kd, step, give=give)[0] for step in (begin, begin + 1)]
        alone = expert_alone(task)
        fresh = alone.init(jax.random.fold_in(jax.random.fold_in(states[0].key, 1), task), batch(begin))
        rows = {name: x[2:] for name, x in give(begin).items()}
        studied, metrics = jax.jit(alone.step)(fresh, rows)
        tiny.assert_close(states[1].teacher["expert"], studied.student)
        tiny.assert_close(states[1].opt_state["expert"], studied.opt_state)
        tiny.assert_equal(states[1].teacher["old"], states[0].student)
        tiny.assert_equal(states[1].student, states[0].student)
        expected += [tiny.numbers(metrics)]
        old = part.student
        two = both(task, old, studied.student)
        part = two.init(jax.random.key(3), batch(begin))._replace(student=old, step=jnp.int32(begin + 1))
        part, metrics = run(two, end, state=part, give=give)
        expected += metrics
    tiny.assert_close(state.student, part.student, rtol=1e-4, atol=1e-5)
    for step, (one, other) in enumerate(zip(found, expected, strict=True)):
        assert one["task"] == task_of(step)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-4)
        if is_expert(step):
            assert one["expert/loss"] == one["loss"]
            assert np.isnan([one["ce"], one["kd"], one["expert"]]).all()
        else:
            assert np.isnan(one["expert/loss"])
            assert one["ce"] == pytest.approx(other["ce"], rel=1e-4)
            if step > 2:
                assert one["expert"] == pytest.approx(other["expert"], rel=1e-4)
                assert one["kd"] == pytest.approx(other["kd"], rel=1e-4, abs=1e-6)
    assert found[8]["kd"] > 1e-4


def test_taught_new_matches_float64_values():
    rng = np.random.default_rng(0)
    logits, others = rng.normal(size=(2, 6, 6)) * 3
    label, mask = np.array([4, 0, 5, 5, 1, 0]), np.array([True, True, True, False, True, True])
    objective = continual.new_class_kd(TASKS, STEPS, temperature=1.5, teacher="teacher/expert/logits")
    with jax.enable_x64(True):
        given = jaxkd.Context(
            {"logits": jnp.asarray(logits)},
            {"expert/logits": jnp.asarray(others)},
            {"label": jnp.asarray(label), "mask": jnp.asarray(mask)},
            2,
        )
        found = objective.apply({}, {}, given, jax.random.key(0))
    p, q = (log_softmax(x[:, TASKS[1]] / 1.5) for x in (others, logits))
    values = (np.exp(p) * (p - q)).sum(axis=1)
    assert float(found.value) == pytest.approx(values[[1, 2, 5]].mean(), rel=1e-6)
    assert float(found.metrics[""].count) == 3


def test_network_that_does_not_train_is_unchanged():
    states = [run(scheme(), steps, give=give)[0] for steps in range(10)]
    for step in range(9):
        before, after = states[step], states[step + 1]
        if is_expert(step):
            tiny.assert_equal(after.student, before.student)
            assert (after.teacher["expert"].params["first"] != before.teacher["expert"].params["first"]).any()
        else:
            tiny.assert_equal(after.teacher, before.teacher)
            tiny.assert_equal(after.opt_state["expert"], before.opt_state["expert"])
            assert (after.student.params["first"] != before.student.params["first"]).any()
        assert int(after.step) == step + 1
    assert [int(state.opt_state["expert"]["student"][0].count) for state in states] == [0, 0, 0, 1, 1, 1, 1, 1, 1, 1]
    experts = [states[step].teacher["expert"].params["first"] for step in (3, 6)]
    assert (experts[0] != experts[1]).any()


def test_expert_trains_on_examples_with_any_unmasked_token():
    kd, mask = scheme(), np.arange(4) % 2 == 0
    state, _ = run(kd, 2, give=give)  # an expert's step is next
    given = give(2)
    examples = np.arange(len(given["label"])) % 3 > 0
    want, _ = jitted(kd.step)(state, {**given, "mask": examples})
    found, _ = jitted(kd.step)(state, {**given, "mask": examples[:, None] & mask})
    tiny.assert_equal(found.teacher, want.teacher)


def test_one_task_equals_plain_training():
    kd = retrospection(
        student, expert, tasks=[range(6)], steps=[4], expert_steps=1, optimizer=SGD, softmax=continual.joint_softmax
    )
    ce = jaxkd.combine(ce=term(losses.cross_entropy, "student/logits", "batch/label"))
    plain, expected = run(distill(student, jaxkd.teachers.none(), ce, optimizer=SGD), 4)
    state, found = run(kd, 4)
    tiny.assert_equal(state.student, plain.student)
    assert [one["loss"] for one in found] == pytest.approx([one["loss"] for one in expected], rel=1e-6)


def test_cross_entropy_has_no_count_without_retained_examples():
    _, found = run(scheme(), 5)
    assert np.isnan(found[4]["ce"])
    assert found[4]["expert"] > 0
    assert np.isfinite(found[4]["loss"])


@functools.cache
def normalized():
    """Models with BatchNorm, whose statistics must not include masked examples."""
    import flax.linen as nn

    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x, train):
            x = nn.Dense(self.width)(x.reshape(x.shape[0], -1))
            return nn.Dense(6)(nn.tanh(nn.BatchNorm(use_running_average=not train)(x)))

    models = (jaxkd.adapters.linen(Net(width)) for width in (5, 4))
    return retrospection(*models, tasks=TASKS, steps=STEPS, expert_steps=1, optimizer=SGD)


@pytest.mark.parametrize("placement", [pytest.param("pmap", marks=pytest.mark.slow), "shard_map"])
def test_placement_equals_jit(placement):
    """Six examples are padded on four devices; one device has all retained examples."""
    if placement == "pmap":
        kd = normalized()
        step = jaxkd.parallel.pmap(kd, jax.devices()[:4], replicas=1)
    else:
        kd, mesh = scheme(), Mesh(np.array(jax.devices()[:3]), (jaxkd.DATA_AXIS,))
        everywhere, split = PartitionSpec(), PartitionSpec(jaxkd.DATA_AXIS)
        step = jax.jit(jax.shard_map(kd.step, mesh=mesh, in_specs=(everywhere, split), out_specs=everywhere))
    expected, metrics = run(kd, 7, give=give)
    state, found = run(kd, 7, step=step, give=give)
    tiny.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(found, metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6, nan_ok=True)


def test_masked_examples_equal_dropped_examples():
    def padded(step):
        given = give(step)
        more = {"image": np.full((3, 2, 2, 2), 1e4, np.float32), "label": np.array([99, -1, 3], np.int32)}
        return {k: np.concatenate([x, more[k]]) for k, x in given.items()} | {"mask": np.arange(9) < 6}

    (state, _), (expected, _) = run(scheme(), 7, give=padded), run(scheme(), 7, give=give)
    tiny.assert_close(state, expected)


def test_evaluation_uses_the_student():
    state, _ = run(scheme(), 3, give=give)  # in the expert's phase
    found = tiny.numbers(jitted(scheme().evaluate)(state, give(2)))
    logits = student.apply(state.student, give(2), key=None, train=False)[0]["logits"]
    assert found["accuracy"] == pytest.approx(float(jnp.mean(jnp.argmax(logits, axis=1) == give(2)["label"])))
    assert found["task"] == 1
    assert tiny.numbers(jitted(scheme().evaluate)(run(scheme(), 2, give=give)[0], give(1)))["task"] == 0


def test_invalid_arguments_raise():
    make = scheme.__wrapped__
    for wrong in (0, 3, 4):
        with pytest.raises(ValueError, match=r"fewer than each task after the first has, \[3, 4\]"):
            make(expert_steps=wrong)
    with pytest.raises(ValueError, match="class numbers of each task"):
        make(tasks=[[0], [0]])
    with pytest.raises(ValueError, match="one for each of the 3 tasks"):
        make(steps=[1, 2])
    with pytest.raises(ValueError, match="at least 8 classes"):
        make(tasks=[[0, 1], [7]], steps=[2, 3]).init(jax.random.key(0), batch(0))


def test_optimizer_with_a_tree_of_the_student_is_refused_for_the_expert():
    by_tree = optax.masked(SGD, jax.tree.map(lambda x: True, student.init(jax.random.key(0), give(0)).params))
    other = jaxkd.adapters.plain(
        lambda key, image: {"other": jnp.zeros((8, 6))}, lambda w, x: x.reshape(-1, 8) @ w["other"]
    )
    options = {"tasks": TASKS, "steps": STEPS, "expert_steps": 1, "optimizer": by_tree}
    with pytest.raises(ValueError, match=r"also the expert's.*its init raised.*expert_optimizer=optax.adam"):
        retrospection(student, other, **options).init(jax.random.key(0), give(0))
    retrospection(student, other, **options, expert_optimizer=ADAM).init(jax.random.key(0), give(0))
