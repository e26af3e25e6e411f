"""`schemes.sequential`, `born_again`, `assistants`: separate runs, resume, errors."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, data, losses, teachers, term, wrappers
from jaxkd.schemes import assistants, born_again, sequential
from jaxkd.schemes.phases import Phase, best_chain, chains, inherit
from jaxkd.training import fit
from tests import tiny

CE = combine(ce=term(losses.cross_entropy, "student/logits", "batch/label"))
KD = combine(
    kd=term(
        losses.soft_target_kl,
        "student/logits",
        "teacher/logits",
        weight=optax.linear_schedule(1.0, 0.0, 4),
        temperature=2.0,
    )
)
SGD, ADAM = optax.sgd(0.1, momentum=0.9), optax.adam(1e-2)


@functools.cache
def first(optimizer=SGD):
    return jaxkd.distill(tiny.teacher_model, teachers.none(), CE, optimizer=optimizer)


@functools.cache
def second():
    return jaxkd.distill(tiny.student, teachers.placeholder(tiny.teacher_model), KD, optimizer=ADAM)


@functools.cache
def two():
    return sequential(teacher=Phase(first(), 3), student=Phase(second(), begin=inherit(teacher="teacher")))


def run(kd, steps, *, step=None, state=None, seed=1):
    state = kd.init(jax.random.key(seed), tiny.batch(8)) if state is None else state
    step, found = step or jax.jit(kd.step), []
    for i in range(int(state.step), steps):
        state, metrics = step(state, tiny.batch(8, i))
        found.append(tiny.numbers(metrics))
    return state, found


def test_relay_of_one_phase_equals_its_distiller():
    plain, expected = run(first(), 3)
    state, found = run(sequential(only=Phase(first())), 3)
    tiny.assert_equal(wrappers.get_member(state.student, "only"), plain.student)
    tiny.assert_equal(state.opt_state["only"], plain.opt_state)
    assert [{k: v for k, v in one.items() if k != "phase"} for one in found] == expected


def test_relay_of_two_phases_equals_two_runs():
    taught, _ = run(first(), 3)
    state, found = run(two(), 6)
    tiny.assert_equal(wrappers.get_member(state.student, "teacher"), taught.student)

    kd = second()
    start = two().init(jax.random.key(1), tiny.batch(8))
    alone = kd.init(jax.random.key(9), tiny.batch(8))._replace(
        student=wrappers.get_member(start.student, "student"), teacher=taught.student
    )
    step, expected = jax.jit(kd.step), []
    for i in range(3, 6):
        alone, metrics = step(alone, tiny.batch(8, i))
        expected.append(tiny.numbers(metrics))
    tiny.assert_close(wrappers.get_member(state.student, "student"), alone.student)
    tiny.assert_close(state.opt_state["student"], alone.opt_state)
    tiny.assert_equal(state.teacher["student"], taught.student)
    assert [one["phase"] for one in found] == [0, 0, 0, 1, 1, 1]
    # Schedules count the phase's steps, and metrics of the other phase have no count.
    assert [one["kd/weight"] for one in found[3:]] == [1.0, 0.75, 0.5]
    assert [one["kd"] for one in found[3:]] == pytest.approx([one["kd"] for one in expected])
    assert all(np.isnan(one["kd"]) for one in found[:3])


def test_phase_continues_an_earlier_student():
    kd = sequential(a=Phase(first(), 2), b=Phase(first(optax.sgd(0.0)), begin=inherit(student="a")))
    state, _ = run(kd, 4)
    tiny.assert_equal(wrappers.get_member(state.student, "b"), wrappers.get_member(state.student, "a"))


def test_handed_replaces_one_member_of_an_ensemble():
    trained = {"old": tiny.teacher(), "new": teachers.placeholder(tiny.teacher_model)}
    kd = jaxkd.distill(tiny.student, teachers.ensemble(trained), KD, optimizer=SGD)
    both = sequential(expert=Phase(first(), 2), student=Phase(kd, begin=inherit(teacher="expert", within="new")))
    state, _ = run(both, 3)
    tiny.assert_equal(state.teacher["student"]["new"], wrappers.get_member(state.student, "expert"))
    tiny.assert_equal(state.teacher["student"]["old"], tiny.teacher_variables())


def test_inactive_phases_do_not_change():
    start, _ = run(two(), 0)
    early, _ = run(two(), 3)
    late, _ = run(two(), 5)
    tiny.assert_equal(wrappers.get_member(early.student, "student"), wrappers.get_member(start.student, "student"))
    tiny.assert_equal(early.opt_state["student"], start.opt_state["student"])
    tiny.assert_equal(wrappers.get_member(late.student, "teacher"), wrappers.get_member(early.student, "teacher"))


def test_evaluation_uses_the_phase_of_the_last_step():
    kd = two()
    for steps, phase in ((0, 0), (3, 0), (4, 1)):
        state, _ = run(kd, steps)
        found = tiny.numbers(jax.jit(kd.evaluate)(state, tiny.batch(8)))
        assert found["phase"] == phase
        assert np.isnan(found["kd"]) == (phase == 0)
        plain = (first(), second())[phase]
        name = ("teacher", "student")[phase]
        own = run(plain, 0)[0]._replace(
            student=wrappers.get_member(state.student, name), teacher=state.teacher[name], step=state.step - 3 * phase
        )
        expected = tiny.numbers(jax.jit(plain.evaluate)(own, tiny.batch(8)))
        assert {k: found[k] for k in expected} == pytest.approx(expected)


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="phases: expected at least one"):
        sequential()
    with pytest.raises(ValueError, match="phase 0, steps: expected a number, got None"):
        sequential(a=Phase(first()), b=Phase(first()))
    with pytest.raises(ValueError, match="names without a slash"):
        sequential(**{"a/b": Phase(first())})
    with pytest.raises(ValueError, match=r"phase 'a', begin: expected None"):
        sequential(a=Phase(first(), begin=inherit())).init(jax.random.key(0), tiny.batch(8))
    other = sequential(a=Phase(first(), 1), b=Phase(second(), begin=inherit(student="a")))
    with pytest.raises(ValueError, match=r"phase 'b', begin: expected a state.*first.*architecture of this phase's"):
        other.init(jax.random.key(0), tiny.batch(8))
    missing = sequential(a=Phase(first(), 1), b=Phase(second(), begin=inherit(teacher="c")))
    with pytest.raises(ValueError, match="inherit, phase"):
        missing.init(jax.random.key(0), tiny.batch(8))


# --- born again ------------------------------------------------------------------------------------------------------


@functools.cache
def generations(count=2, **options):
    return born_again(tiny.student, KD, first=CE, generations=count, steps=3, optimizer=SGD, **options)


def test_generation_is_taught_by_the_one_before():
    state, found = run(generations(), 8)
    assert sorted(state.student.params) == ["0", "1", "2"]
    tiny.assert_equal(state.teacher["1"], wrappers.get_member(state.student, "0"))
    tiny.assert_equal(state.teacher["2"], wrappers.get_member(state.student, "1"))
    assert [one["phase"] for one in found] == [0, 0, 0, 1, 1, 1, 2, 2]
    starts = run(generations(), 0)[0].student.params
    assert (starts["0"]["first"] != starts["1"]["first"]).any()
    assert (starts["1"]["first"] != starts["2"]["first"]).any()


@pytest.mark.parametrize(("steps", "members"), [(3, []), (4, ["1"]), (6, ["1"]), (7, ["1", "2"]), (40, ["1", "2"])])
def test_ensemble_averages_the_generations_that_have_begun(steps, members):
    kd, batch = generations(), tiny.batch(16, 99)
    state, _ = run(kd, min(steps, 9))
    state = state._replace(step=jnp.int32(steps))
    found = tiny.numbers(jax.jit(kd.evaluate)(state, batch))
    if not members:
        assert np.isnan(found["ensemble/accuracy"])
        return
    logits = [
        tiny.student.apply(wrappers.get_member(state.student, name), batch, key=None, train=False)[0]["logits"]
        for name in members
    ]
    right = np.mean(np.argmax(np.mean(logits, axis=0), -1) == batch["label"])
    assert found["ensemble/accuracy"] == pytest.approx(right)


def test_born_again_invalid_arguments_raise():
    with pytest.raises(ValueError, match="generations: expected at least 1"):
        generations(0)
    with pytest.raises(ValueError, match="steps: expected at least 1, got 0"):
        born_again(tiny.student, KD, first=CE, generations=1, steps=0, optimizer=SGD)


# --- assistants ------------------------------------------------------------------------------------------------------

CHAIN = {"assistant": tiny.teacher_model}


def chain(between=CHAIN, **options):
    options = {"steps": 3, "optimizer": SGD, **options}
    return assistants(tiny.student, tiny.teacher(), KD, assistants=between, **options)


def test_link_is_taught_by_the_one_before():
    state, _ = run(chain(), 5)
    tiny.assert_equal(state.teacher["assistant"], tiny.teacher_variables())
    tiny.assert_equal(state.teacher["student"], wrappers.get_member(state.student, "assistant"))


def test_links_take_their_own_objective_and_optimizer():
    made = []

    def objective(name):
        made.append(name)
        return KD

    optimizers = {"assistant": ADAM, "student": SGD}
    optimizer, steps = optimizers.__getitem__, {"assistant": 2}
    kd = assistants(tiny.student, tiny.teacher(), objective, assistants=CHAIN, steps=steps, optimizer=optimizer)
    state, found = run(kd, 3)
    assert made == ["assistant", "student"]
    assert [one["phase"] for one in found] == [0, 0, 1]
    assert len(jax.tree.leaves(state.opt_state["assistant"])) > len(jax.tree.leaves(state.opt_state["student"]))


def test_assistants_invalid_arguments_raise():
    with pytest.raises(ValueError, match="the name 'student' is reserved"):
        chain({"student": tiny.student})
    with pytest.raises(ValueError, match=r"got none for \['assistant'\]"):
        chain(steps={})
    with pytest.raises(ValueError, match=r"numbers for \['assistant'\] only, got one for \['asistant'\]"):
        chain(steps={"assistant": 3, "asistant": 4})


def test_best_chain_equals_exhaustive_search():
    """On scores in which a better teacher makes a better student."""
    rng = np.random.default_rng(0)
    names = ["a", "b", "c", "d"]
    for _ in range(20):
        kept = {(before, model): rng.uniform(0.5, 1) for model in names for before in (None, *names)}

        def along(path, kept=kept):
            quality = 1.0
            for before, model in zip((None, *path), path, strict=False):
                quality *= kept[before, model]
            return quality

        asked, best = [], {None: 1.0}

        def score(before, model, kept=kept, asked=asked, best=best):
            asked.append((before, model))
            found = best[before] * kept[before, model]
            best[model] = max(best.get(model, 0), found)
            return found

        found, scores = best_chain(names, score)
        assert along(found) == max(map(along, chains(names[:-1], "d")))
        assert scores["d"] == pytest.approx(along(found))
        assert len(asked) == len(set(asked)) == 10
    with pytest.raises(ValueError, match="different names"):
        best_chain(["a", "a"], score)


# --- resume ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_resume_at_a_phase_boundary_is_exact(tmp_path):
    """Resumes at the end of a phase, and after the first step of the next one."""
    arrays = {**tiny.batch(32), "index": np.arange(32, dtype=np.int32)}
    train = data.Resident(data.Dataset(arrays, tiny.CLASSES, "tiny"), batch_size=8)
    settings = {"key": jax.random.key(3), "progress": False, "chunk": 1}
    whole = fit(two(), train, steps=6, **settings)
    for steps in (3, 4, 6):
        parts = fit(two(), train, steps=steps, directory=tmp_path, **settings)
    tiny.assert_equal(parts.state, whole.state)
