"""`schemes.sequence_level`: each example is decoded once, and training is that on decoded data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import losses, schemes, term
from tests import tiny
from tests.schemes import bigram

EXAMPLES = 8
ORDER = ([0, 3, 5], [1, 2, 4], [6, 7, 0], [5, 1, 2], [7, 4, 3])
DATA = bigram.batch(EXAMPLES)
ENTRIES = ("token", "label", "mask")


def offline():
    objective = jaxkd.combine(ce=term(losses.cross_entropy, "student/logits", "batch/label"))
    return jaxkd.distill(bigram.model, bigram.teacher(), objective, optimizer=optax.sgd(0.5))


def of(rows, data=DATA):
    return {name: np.asarray(x)[rows] for name, x in data.items()}


def greedy(teacher, batch, *, keys):
    return bigram.generate(teacher._replace(params=1e4 * teacher.params), batch, keys=keys)


def filtered(teacher, batch, *, keys):
    """Sampled sequences; those that do not end in time are left out."""
    made = bigram.generate(teacher, batch, keys=keys)
    ends = made["label"][:, -1:] == 0
    return {**made, "mask": made["mask"] & ends}


@pytest.mark.parametrize("generate", [greedy, filtered])
def test_training_is_that_on_data_decoded_before(generate):
    kd = schemes.sequence_level(offline(), generate, examples=EXAMPLES)
    state = kd.init(jax.random.key(0), of(ORDER[0]))
    key = jax.random.fold_in(state.key, schemes.sequences._sequence_level._STREAM)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(EXAMPLES))
    decoded = {**DATA, **jax.jit(generate)(state.teacher, DATA, keys=keys)}
    assert (np.asarray(decoded["label"]) != DATA["label"]).any()
    plain = offline()
    other, plain_step, step = plain.init(jax.random.key(0), of(ORDER[0])), jax.jit(plain.step), jax.jit(kd.step)
    shares = []
    for rows in ORDER:
        state, metrics = step(state, of(rows))
        other, expected = plain_step(other, of(rows, decoded))
        found = tiny.numbers(metrics)
        shares.append(found.pop("decoded"))
        included = np.asarray(decoded["mask"])[rows].any(1).mean()
        assert found.pop("kept") == pytest.approx(included)
        assert found == pytest.approx(tiny.numbers(expected), nan_ok=True)
    tiny.assert_close(state.student, other.student)
    assert shares == pytest.approx([1, 1, 2 / 3, 0, 0])
    for name in ENTRIES:
        np.testing.assert_array_equal(state.opt_state["sequences"]["entries"][name], decoded[name])


def test_a_sequence_is_kept():
    kd = schemes.sequence_level(offline(), greedy, examples=EXAMPLES)
    step = jax.jit(kd.step)
    state, _ = step(kd.init(jax.random.key(0), of([0, 1])), of([0, 1]))
    first = state.opt_state["sequences"]["entries"]["label"]
    # Another teacher would decode other sequences; only example 2 is new to it.
    state, _ = step(state._replace(teacher=jaxkd.Variables(-state.teacher.params)), of([1, 2]))
    second = state.opt_state["sequences"]["entries"]["label"]
    assert (second[:2] == first[:2]).all()
    assert state.opt_state["sequences"]["made"].tolist() == [True] * 3 + [False] * 5


def test_an_example_beyond_the_set_is_decoded_in_every_step():
    beyond = {**of([0, 1]), "index": np.array([0, 9], np.int32)}
    kd = schemes.sequence_level(offline(), greedy, examples=EXAMPLES)
    step, state = jax.jit(kd.step), kd.init(jax.random.key(0), beyond)
    shares = []
    for _ in range(2):
        state, metrics = step(state, beyond)
        shares.append(tiny.numbers(metrics)["decoded"])
    assert shares == [1, 0.5]
    assert state.opt_state["sequences"]["made"].sum() == 1


def test_hypotheses_may_be_new_entries():
    def several(teacher, batch, *, keys):
        made = [bigram.generate(teacher, batch, keys=jax.vmap(jax.random.fold_in, (0, None))(keys, i)) for i in (0, 1)]
        label, where = (jnp.stack([x[name] for x in made], axis=1) for name in ("label", "mask"))
        return {"hypotheses": label, "label_mask": where, "log_posteriors": jnp.zeros((len(keys), 2))}

    kd = schemes.sequence_level(offline(), several, examples=EXAMPLES)
    batch = {name: of([0, 1])[name] for name in ("token", "label", "index")}
    state = kd.init(jax.random.key(0), batch)
    assert state.opt_state["sequences"]["entries"]["hypotheses"].shape == (EXAMPLES, 2, bigram.TOKENS)


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="examples: expected a positive number, got 0"):
        schemes.sequence_level(offline(), greedy, examples=0)
    batch = {name: DATA[name] for name in ENTRIES}
    with pytest.raises(ValueError, match="'index': there is no such name"):
        schemes.sequence_level(offline(), greedy, examples=EXAMPLES).init(jax.random.key(0), batch)

    def short(teacher, batch, *, keys):
        return {**greedy(teacher, batch, keys=keys), "label": jnp.zeros((len(keys), 2), int)}

    with pytest.raises(ValueError, match=r"'label' int32\[8, 5\], got int32\[8, 2\]"):
        schemes.sequence_level(offline(), short, examples=EXAMPLES).init(jax.random.key(0), DATA)
