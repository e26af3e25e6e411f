"""`schemes.sequences.replay`: when sequences are made, stored and replayed, and how φ adapts."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd.schemes.sequences import replay
from jaxkd.types import Mean, ObjectiveVars, TrainState, Variables

SIZE = 3
BATCH = {"token": np.zeros(SIZE, np.int32)}


def recorder(losses=(1.0,)):
    """Returns a distiller that keeps the batch it has seen; its validation losses are given by step."""

    def init(key, batch):
        seen = jnp.zeros(len(batch["token"]), jnp.int32)
        return TrainState(Variables({}, seen), {}, ObjectiveVars(), {}, jnp.int32(0), key)

    def step(state, batch):
        seen = jnp.asarray(batch["token"])
        return state._replace(student=Variables({}, seen), step=state.step + 1), {"loss": Mean(0.0, 1.0)}

    def evaluate(state, batch):
        return {"loss": Mean(2 * jnp.asarray(losses)[state.step % len(losses)], 2.0)}

    return jaxkd.Distiller(init, step, evaluate)


def fresh(student, batch, *, keys):
    """Returns a number that no other call returns."""
    return {"token": jax.vmap(lambda key: jax.random.randint(key, (), 1, 2**30))(keys)}


def run(kd, steps, batch=BATCH):
    """Returns the batches that were seen, the states and the metrics of all steps."""

    def body(state, _):
        state, metrics = kd.step(state, batch)
        return state, (state.student.state, state.opt_state["replay"], {k: m.sum for k, m in metrics.items()})

    return jax.tree.map(np.asarray, jax.lax.scan(body, kd.init(jax.random.key(3), batch), length=steps)[1])


def test_the_buffer_is_filled_then_replayed_in_part():
    kd = replay(recorder(), fresh, steps=1, validation=BATCH, eval_every=100, capacity=5, fraction=1.0)
    seen, states, metrics = run(kd, 6)
    assert metrics["generated"].tolist() == [3, 3, 0, 0, 0, 0]
    assert metrics["replayed"].tolist() == [0, 0, 3, 3, 3, 3]
    # The second batch continues after the first one, and replaces its oldest example.
    held = [seen[1][2], seen[0][1], seen[0][2], seen[1][0], seen[1][1]]
    np.testing.assert_array_equal(states["entries"]["token"][-1], held)
    assert states["count"].tolist() == [3, 5, 5, 5, 5, 5]
    for batch in seen[2:]:
        assert len(set(batch.tolist())) == SIZE  # without replacement
        assert set(batch.tolist()) <= set(held)
    assert len({tuple(batch) for batch in seen[2:]}) > 1


def test_the_share_of_new_sequences_falls_and_that_of_all_is_phi():
    steps = 400
    kd = replay(recorder(), fresh, steps=steps, validation=BATCH, eval_every=1000, capacity=3, fraction=0.5)
    seen, _, metrics = run(kd, steps)
    generated, replayed = metrics["generated"] > 0, metrics["replayed"] > 0
    np.testing.assert_array_equal(seen[~generated & ~replayed], 0)
    for found, share in [
        (generated, 0.5 * (1 - np.arange(steps) / steps)),
        (generated | replayed, np.full(steps, 0.5)),
    ]:
        deviation = np.sqrt((share * (1 - share)).sum())
        assert abs(found.sum() - share.sum()) < 4 * deviation


def test_phi_rises_where_the_validation_loss_does():
    losses = (1.0, 0.9, 1.05, 1.15, 1.2, 1.26)  # compared with 1.0, until 1.15 is 0.1 above, and then with that
    kd = replay(recorder(losses), fresh, steps=9, validation=BATCH, eval_every=1, capacity=3, rise=0.1)
    assert run(kd, 6)[2]["phi"] == pytest.approx([0, 0, 0, 0.1, 0.1, 0.2])
    kd = replay(recorder(losses), fresh, steps=9, validation=BATCH, eval_every=3, capacity=3, increment=0.9)
    assert run(kd, 9)[2]["phi"] == pytest.approx([0, 0, 0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.9])
    kd = replay(recorder(losses), fresh, steps=9, validation=BATCH, eval_every=1, capacity=3, increment=0.9, rise=0.0)
    assert run(kd, 5)[2]["phi"].max() == 1


def test_masked_examples_are_neither_stored_nor_replaced():
    batch = {"token": np.array([5, 6, 7], np.int32), "mask": np.array([True, False, True])}
    kd = replay(recorder(), fresh, steps=9, validation=BATCH, eval_every=9, capacity=3, fraction=1.0)
    seen, states, metrics = run(kd, 1, batch)
    assert seen[0][1] == 6
    assert states["count"].tolist() == metrics["generated"].tolist() == [2]
    np.testing.assert_array_equal(states["entries"]["token"][0], [seen[0][0], seen[0][2], 0])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 2}, "at least the 3 examples of a batch, got 2"),
        ({"capacity": 0}, "capacity: expected a positive number"),
        ({"eval_every": 0}, "eval_every: expected a positive number"),
        ({"fraction": 1.5}, "fraction: expected a number from 0 to 1"),
        ({"increment": -0.1}, "increment: expected a number from 0 to 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(options, message):
    options = {"steps": 9, "validation": BATCH, "eval_every": 9, **options}
    with pytest.raises(ValueError, match=message):
        replay(recorder(), fresh, **options).init(jax.random.key(0), BATCH)


def test_entries_that_the_batch_lacks_are_refused():
    def other(student, batch, *, keys):
        return {"other": jnp.zeros(len(keys))}

    kd = replay(recorder(), other, steps=9, validation=BATCH, eval_every=9)
    with pytest.raises(ValueError, match=r"'other'.*is not in"):
        kd.init(jax.random.key(0), BATCH)
