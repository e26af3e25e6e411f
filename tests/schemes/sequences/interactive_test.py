"""`schemes.sequences.interactive`: rows continue where they were, in all placements and after a resumption."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import data, losses, term
from jaxkd.schemes.sequences import interactive, on_policy
from jaxkd.training import fit
from jaxkd.types import Mean
from tests import tiny
from tests.references.base import log_softmax

PLACES, STEPS = 6, 3

policy = jaxkd.adapters.plain(
    lambda key, place: jax.random.normal(key, (PLACES, 2)), lambda table, place: table[place], inputs="place"
)
TEACHER = jaxkd.teachers.frozen(policy, jaxkd.Variables(jnp.array([[1.0, -1.0]] * PLACES)))
LOSS = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0)


def offline(**options):
    return jaxkd.distill(policy, TEACHER, LOSS, optimizer=optax.sgd(0.5), **options)


def batch(size):
    return {"place": np.zeros((size, STEPS), np.int32), "index": np.arange(size, dtype=np.int32)}


def begin(keys):
    place = jax.vmap(lambda key: jax.random.randint(key, (), 0, PLACES))(keys)
    return {"place": place, "moves": jnp.zeros(len(keys), jnp.int32)}


def advance(student, teacher, carried, batch, *, keys):
    """Walks on a ring, and counts the moves to the right."""
    place, moves, places = carried["place"], carried["moves"], []
    for number in range(STEPS):
        places.append(place)
        own = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)  # noqa: B023
        right = jax.vmap(jax.random.categorical)(own, student.params[place])
        place, moves = (place + 2 * right - 1) % PLACES, moves + right
    return {"place": jnp.stack(places, axis=1)}, {"place": place, "moves": moves}


def test_rows_continue_where_they_were():
    kd = interactive(offline(train_metrics=lambda c: {"place": Mean(c.batch["place"], jnp.int32(1))}), begin, advance)
    state, step, found = kd.init(jax.random.key(0), batch(5)), jax.jit(kd.step), []
    for _ in range(3):
        before = jax.tree.map(np.asarray, state.opt_state["carried"])
        state, metrics = step(state, batch(5))
        after = jax.tree.map(np.asarray, state.opt_state["carried"])
        found.append(np.asarray(metrics["place"].sum))
        np.testing.assert_array_equal(found[-1][:, 0], before["place"])
        walk = np.concatenate([found[-1], after["place"][:, None]], axis=1)
        right = (np.diff(walk) % PLACES == 1).sum(axis=1)
        assert set(np.unique(np.diff(walk) % PLACES)) <= {1, PLACES - 1}
        np.testing.assert_array_equal(after["moves"] - before["moves"], right)
    assert len({row.tobytes() for one in found for row in one}) > 5


def test_the_student_learns_on_the_states_that_it_visits():
    kd = interactive(offline(), begin, advance)
    state = kd.init(jax.random.key(0), batch(5))
    step = jax.jit(kd.step)
    for _ in range(2):
        key = jax.random.fold_in(jax.random.fold_in(state.key, 0x17AC), state.step)
        keys = jax.vmap(lambda place: jax.random.fold_in(key, place))(jnp.arange(5))  # noqa: B023
        place = advance(state.student, None, state.opt_state["carried"], None, keys=keys)[0]["place"]
        value, gradient = _kl(np.asarray(state.student.params, np.float64), np.asarray(place))
        state, metrics = step(before := state, batch(5))
        np.testing.assert_allclose(metrics["loss"].sum / metrics["loss"].count, value, rtol=1e-5)
        np.testing.assert_allclose(state.student.params, before.student.params - 0.5 * gradient, rtol=1e-5, atol=1e-6)


def _kl(table, place):
    """Returns the mean KL from the teacher at the places, and its gradient by the table."""
    log_p, log_q = log_softmax(np.array([1.0, -1.0])), log_softmax(table)
    each = (np.exp(log_p) * (log_p - log_q)).sum(-1)
    share = np.bincount(place.ravel(), minlength=PLACES) / place.size
    return share @ each, share[:, None] * (np.exp(log_q) - np.exp(log_p))


def test_a_row_depends_neither_on_the_others_nor_on_masked_ones():
    kd = interactive(offline(), begin, advance)
    few = kd.init(jax.random.key(0), batch(4))
    many = kd.init(jax.random.key(0), batch(6))
    masked = {**batch(6), "mask": np.array([False, True, True, False, True, True])}
    state, step = few, jax.jit(kd.step)
    padded = many._replace(opt_state=few.opt_state)
    for _ in range(2):
        state, metrics = step(state, batch(4))
        padded, found = step(padded, masked)
        assert tiny.numbers(found) == pytest.approx(tiny.numbers(metrics), rel=1e-6)
    tiny.assert_close(padded, state, rtol=1e-6, atol=1e-7)
    tiny.assert_equal(padded.opt_state["carried"], state.opt_state["carried"])


def test_without_a_state_it_is_on_policy_distillation_of_all_examples():
    def generate(student, batch, *, keys):
        return advance(student, None, {"place": batch["index"] % PLACES, "moves": batch["index"]}, batch, keys=keys)[0]

    def alone(student, teacher, carried, batch, *, keys):
        # The keys are those that `on_policy` has.
        return generate(student, batch, keys=jax.random.wrap_key_data(carried["key"])), carried

    key = jax.random.key(0)
    other = on_policy(offline(), generate, fraction=1.0)
    state = other.init(key, batch(4))
    shared = jax.random.fold_in(jax.random.fold_in(state.key, 0x0F0C), 0)
    data_of = jax.vmap(lambda place: jax.random.key_data(jax.random.fold_in(shared, place)))(jnp.arange(4))
    kd = interactive(offline(), lambda keys: {"key": data_of}, alone)
    ours, _ = jax.jit(kd.step)(kd.init(key, batch(4)), batch(4))
    theirs, _ = jax.jit(other.step)(state, batch(4))
    tiny.assert_equal(ours.student, theirs.student)


def test_a_killed_run_resumes_in_the_middle_of_an_episode(tmp_path):
    kd = interactive(offline(), begin, advance)
    loader = data.Resident(batch(4), 4, shuffle=False)
    settings = {"steps": 6, "key": jax.random.key(3), "log_every": 3, "progress": False}
    whole = fit(kd, loader, **settings)

    class Killed(Exception):
        pass

    def die(row):
        raise Killed

    with pytest.raises(Killed):
        fit(kd, loader, directory=tmp_path, checkpoint_every=2, on_row=die, **settings)
    parts = fit(kd, loader, directory=tmp_path, checkpoint_every=2, **settings)
    tiny.assert_equal(parts.state, whole.state)
    assert int(whole.state.opt_state["carried"]["moves"].sum()) > 0


def test_what_does_not_fit_is_refused():
    key = jax.random.key(0)
    with pytest.raises(TypeError, match="interactive, begin: expected a function"):
        interactive(offline(), 3, advance)
    with pytest.raises(ValueError, match=r"a row for each of the 4 keys, got int32\[2\]"):
        interactive(offline(), lambda keys: jnp.zeros(2, jnp.int32), advance).init(key, batch(4))
    with pytest.raises(ValueError, match="holds no PRNG keys"):
        interactive(offline(), lambda keys: keys, advance).init(key, batch(4))

    def other(change):
        def run(student, teacher, carried, batch, *, keys):
            entries, after = advance(student, teacher, carried, batch, keys=keys)
            return entries, change(after)

        return interactive(offline(), begin, run).init(key, batch(4))

    with pytest.raises(ValueError, match=r"moves int32\[4\], got float32\[4\]"):
        other(lambda after: {**after, "moves": after["moves"] / 2})
    with pytest.raises(ValueError, match=r"moves int32\[4\], got nothing"):
        other(lambda after: {"place": after["place"]})
    with pytest.raises(ValueError, match=r"place int32\[4\], got int32\[4, 1\]"):
        other(lambda after: {**after, "place": after["place"][:, None]})
    kd = interactive(offline(), begin, advance)
    state = kd.init(key, batch(4))
    with pytest.raises(ValueError, match="at most the 4 rows"):
        kd.step(state, batch(5))
    with pytest.raises(ValueError, match="an entry like that of the batch"):
        kd.init(key, {**batch(4), "place": np.zeros((4, 2), np.int32)})
