"""`schemes.knowledge_flow`: without flow, at the end of its schedule, errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import adapters, combine, losses, teachers, term
from jaxkd.schemes import knowledge_flow
from jaxkd.schemes.transfer import dependence_loss, report_dependence
from jaxkd.wrappers import FlowEdge, extract_student, with_flow
from tests import tiny


class Student(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (1, 1), name="stem")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(x))
        return nn.Dense(tiny.CLASSES, name="head")(x.mean(axis=(1, 2)))


TAPS = {"stem": "stem"}
PLAIN = adapters.linen(Student(), taps=TAPS)
MIXES = {"stem": FlowEdge("stem", ["map"]), "head": FlowEdge("head", ["logits", "vector"])}
TASK = {
    "ce": term(losses.cross_entropy, "student/logits", "batch/label"),
    "kd": term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.5),
}
WITH_LOSS = combine(**TASK, alone=dependence_loss(weight=optax.linear_schedule(0.0, 0.2, 4)))
SGD = optax.sgd(0.1, momentum=0.9)
KEY = jax.random.key(1)
OFFLINE = jaxkd.distill(PLAIN, tiny.teacher(), combine(**TASK), optimizer=SGD)


def flowing(schedule, objective=WITH_LOSS, teacher=None, mixes=MIXES, **options):
    student = with_flow(Student(), mixes, schedule, taps=TAPS)
    return knowledge_flow(student, teacher or tiny.teacher(), objective, optimizer=SGD, **options)


def run(kd, steps, step=None, state=None, size=8):
    state, found = kd.init(KEY, tiny.batch(8)) if state is None else state, []
    step = step or jax.jit(kd.step)
    for i in range(steps):
        state, metrics = step(state, tiny.batch(size, i))
        found.append(tiny.numbers(metrics))
    return state, found


@pytest.mark.slow
def test_flow_of_zero_equals_plain_distillation():
    """With λ = 0 from the start, losses and parameters are bit-identical."""
    expected, metrics = run(OFFLINE, 4)
    kd = flowing(0.0)
    start = kd.init(KEY, tiny.batch(8))
    state, found = run(kd, 4)
    tiny.assert_equal(extract_student(state.student), expected.student)
    tiny.assert_equal(state.student.params["flow"], start.student.params["flow"])
    assert [{k: one[k] for k in metrics[0]} for one in found] == metrics
    assert all(one["alone"] == one["dependence"] == 0 for one in found)


@pytest.mark.slow
def test_student_is_independent_when_the_schedule_ends():
    """Dependence falls to 0, and the exported student evaluates the same."""
    kd = flowing(optax.linear_schedule(1.0, 0.0, 4))
    start = kd.init(KEY, tiny.batch(8))
    before, found = run(kd, 4)
    shares = [one["dependence"] for one in found]
    assert shares == sorted(shares, reverse=True) and shares[-1] > 0
    assert [one["alone"] > 0 for one in found] == [True] * 4
    for old, new in zip(*(jax.tree.leaves(s.student.params["flow"]) for s in (start, before)), strict=True):
        assert (old != new).any()
    # Momentum still changes them once gradients are exactly 0, with a decaying trace.
    after, found = run(kd, 1, state=before)
    assert found[0]["dependence"] == found[0]["alone"] == 0
    trace, decayed = (s.opt_state["student"][0].trace["flow"] for s in (before, after))
    tiny.assert_close(decayed, jax.tree.map(lambda x: 0.9 * x, trace), rtol=1e-6, atol=0)
    alone = OFFLINE.init(KEY, tiny.batch(8))._replace(student=extract_student(after.student), step=after.step)
    expected = tiny.numbers(jax.jit(OFFLINE.evaluate)(alone, tiny.batch(8, 9)))
    evaluated = tiny.numbers(jax.jit(kd.evaluate)(after, tiny.batch(8, 9)))
    assert {name: evaluated[name] for name in expected} == expected
    assert tiny.numbers(jax.jit(kd.evaluate)(before._replace(step=jnp.int32(0)), tiny.batch(8, 9)))["dependence"] > 0


@pytest.mark.slow
def test_dependence_loss_alone_reduces_dependence():
    """As in the paper, without a schedule of the flow."""
    objective = combine(**TASK, alone=dependence_loss(weight=5.0))
    _, found = run(flowing(1.0, objective), 30)
    assert found[-1]["dependence"] < 0.2 * found[0]["dependence"]


def test_layers_of_several_teachers():
    def member(seed):
        return teachers.frozen(tiny.teacher_model, tiny.teacher_model.init(jax.random.key(seed), tiny.batch(1)))

    both = teachers.ensemble({"a": member(7), "b": member(8)})
    mixes = {"stem": FlowEdge("stem", ["a/map", "b/map"], student_weight=0.5)}
    state, found = run(flowing(1.0, teacher=both, mixes=mixes), 3)
    assert state.student.params["flow"]["stem"]["weights"].shape == (3,)
    assert all(np.isfinite(list(one.values())).all() for one in found)
    np.testing.assert_allclose(found[0]["dependence/stem"], 0.5, rtol=1e-6)


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match=r"mix 'a', teacher output 'mop'.*did you mean 'map'"):
        flowing(1.0, mixes={"a": FlowEdge("stem", ["mop"])}).init(KEY, tiny.batch(8))
    with pytest.raises(ValueError, match=r"jaxkd\.schemes\.knowledge_flow"):
        jaxkd.distill(with_flow(Student(), MIXES, 1.0), tiny.teacher(), WITH_LOSS, optimizer=SGD).init(
            KEY, tiny.batch(8)
        )
    averaged = teachers.ema(PLAIN)
    with pytest.raises(Exception) as error:
        flowing(1.0, teacher=averaged).init(KEY, tiny.batch(8))
    assert "outputs that do not depend on the student" in "".join(error.value.__notes__)


def test_report_includes_examples_with_any_unmasked_token():
    mask = np.array([[True, False], [False, False], [True, True]])
    given = jaxkd.Context({"dependence": jnp.array([1.0, np.nan, 2.0])}, {}, {"mask": mask}, 0)
    assert tiny.numbers(report_dependence(given)) == {"dependence": 1.5}
