"""`schemes.on_policy`: what is replaced, by what, and how it is weighed; the same numbers everywhere."""

import functools
import math
from fractions import Fraction

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import jaxkd
from jaxkd import data, losses, parallel, schemes, term, wrappers
from jaxkd.schemes.sequences import _on_policy, teacher_mixed
from jaxkd.schemes.sequences._examples import Selection
from jaxkd.training import fit
from tests import tiny
from tests.references.base import log_softmax
from tests.schemes import bigram

LOSS = term(losses.reverse_kl, "student/logits", "teacher/logits")
ENTRIES = ("token", "label", "mask")


def offline(student=bigram.model, objective=LOSS):
    return jaxkd.distill(student, bigram.teacher(), objective, optimizer=optax.sgd(0.5))


def sampled(state, batch, fraction):
    """Returns the batch on which the step of an on-policy distiller trains."""

    def sample(student, teacher, batch, keys):
        return bigram.generate(student, batch, keys=keys)

    def run(state, batch):
        return _on_policy.generated("on_policy", state, batch, sample, Fraction(fraction).limit_denominator(100))[0]

    return jax.tree.map(np.asarray, jax.jit(run)(state, batch))


def reverse_kl(state, batch):
    """Returns the reverse KL of each token of a batch, in float64."""
    log_q, log_p = (log_softmax(np.asarray(x.params))[batch["token"]] for x in (state.student, state.teacher))
    return (np.exp(log_q) * (log_q - log_p)).sum(-1)


@pytest.mark.parametrize(("part", "whole"), [(1, 2), (1, 3), (2, 3), (3, 10), (1, 7), (1, 1)])
def test_every_example_has_the_probability_and_its_row(part, whole):
    places, share = jnp.arange(21), Fraction(part, whole)
    draw = jax.jit(lambda key: Selection.draw(key, places, None, share).chosen)
    chosen = np.array([draw(jax.random.key(seed)) for seed in range(60 * whole)])
    assert set(chosen.sum(1)) <= {math.floor(21 * share), math.ceil(21 * share)}
    # Each of `whole` shifts has the probability 1 / whole; six standard errors of the share.
    assert np.abs(chosen.mean(0) - part / whole).max() < 6 * 0.5 / math.sqrt(60 * whole)

    def there_and_back(chosen):
        selection = Selection(chosen, share)
        rows = selection.take({"place": places})
        return rows["place"], selection.put(rows)["place"]

    for size, low in [(21, 0), (5, 3), (9, 12), (1, 20)]:  # as on devices with unequal parts
        own = chosen[0][low : low + size]
        places = jnp.arange(low, low + size)
        rows, back = jax.jit(there_and_back)(own)
        assert len(rows) == math.ceil(size * share)
        np.testing.assert_array_equal(np.asarray(back)[own], np.arange(low, low + size)[own])


@pytest.mark.parametrize("fraction", [0.25, 2 / 3, 1.0])
def test_chosen_examples_are_the_students_and_others_the_datas(fraction):
    kd, batch = offline(), bigram.batch(12)
    state = kd.init(jax.random.key(0), batch)._replace(step=jnp.int32(3))
    found = sampled(state, batch, fraction)
    chosen = (found["label"] != batch["label"]).any(1)
    assert 0 < chosen.sum() <= 12 * fraction
    # The same examples, made without the others.
    key, generate = jax.random.fold_in(jax.random.fold_in(state.key, _on_policy._STREAM), 3), jax.jit(bigram.generate)
    for i in range(12):
        alone = {name: x[i : i + 1] for name, x in batch.items()}
        made = generate(state.student, alone, keys=jax.random.fold_in(key, i)[None])
        expected = made if chosen[i] else alone
        for name in ENTRIES:
            np.testing.assert_array_equal(found[name][i], expected[name][0])


def test_masked_examples_are_as_if_dropped():
    kd, batch = offline(), bigram.batch(8)
    state, dropped = kd.init(jax.random.key(0), batch), [2, 5]
    masked = {**batch, "mask": batch["mask"] & ~np.isin(np.arange(8), dropped)[:, None]}
    found = sampled(state, masked, 0.5)
    expected = sampled(state, {name: np.delete(x, dropped, axis=0) for name, x in batch.items()}, 0.5)
    for name in ENTRIES:
        np.testing.assert_array_equal(np.delete(found[name], dropped, axis=0), expected[name])
    assert not found["mask"][dropped].any()


def test_the_loss_is_the_mean_over_the_tokens_of_the_whole_batch():
    batch = bigram.batch(6)
    kd = schemes.on_policy(offline(), bigram.generate)
    state = kd.init(jax.random.key(0), batch)
    whole = sampled(state, batch, 0.5)
    values = reverse_kl(state, whole)
    expected = values[whole["mask"]].mean()
    by_example = np.mean([row[mask].mean() for row, mask in zip(values, whole["mask"], strict=True) if mask.any()])
    assert abs(expected - by_example) > 0.01  # the mean of means is another number
    parts = schemes.on_policy(offline(wrappers.accumulate(bigram.model, 3)), bigram.generate)
    (one, first), (other, second) = (jax.jit(each.step)(state, batch) for each in (kd, parts))
    assert tiny.numbers(first)["loss"] == pytest.approx(expected, rel=1e-5)
    assert tiny.numbers(first) == pytest.approx(tiny.numbers(second), rel=1e-5)
    tiny.assert_close(one, other)


@pytest.mark.slow
@pytest.mark.parametrize("placement", ["pmap", "shard"])
def test_placement_equals_jit(placement):
    kd, devices = schemes.on_policy(offline(), bigram.generate, fraction=0.4), jax.devices()[:4]
    mesh = Mesh(np.array(devices), (jaxkd.DATA_AXIS,))
    placed = parallel.pmap(kd, devices) if placement == "pmap" else parallel.shard(kd, mesh)
    state = kd.init(jax.random.key(0), bigram.batch(10))
    other = jax.tree.map(jnp.copy, state)
    step = jax.jit(kd.step)
    for seed in range(4):
        state, expected = step(state, bigram.batch(10, seed))  # placed, it is padded
        other, found = placed(other, bigram.batch(10, seed))
        assert tiny.numbers(found) == pytest.approx(tiny.numbers(expected), rel=1e-5)
    tiny.assert_close(other, state, rtol=1e-5)


@pytest.mark.slow
def test_a_killed_run_resumes_on_the_same_generated_data(tmp_path):
    arrays = bigram.batch(16)
    train = data.Resident(data.Dataset(arrays, bigram.WORDS, "bigrams"), batch_size=4)
    kd = schemes.on_policy(offline(), bigram.generate)
    settings = {"steps": 9, "key": jax.random.key(2), "progress": False, "log_every": 1}
    whole = fit(kd, train, **settings)

    class Killed(Exception):
        pass

    def die(row):
        if row["step"] == 5:
            raise Killed

    with pytest.raises(Killed):
        fit(kd, train, directory=tmp_path, checkpoint_every=2, on_row=die, **settings)
    parts = fit(kd, train, directory=tmp_path, checkpoint_every=2, **settings)
    tiny.assert_equal(parts.state, whole.state)

    def greedy(student, batch, *, keys):
        return bigram.generate(student._replace(params=100 * student.params), batch, keys=keys)

    with pytest.raises(ValueError, match="step"):  # the run is what it computes, and this samples otherwise
        fit(schemes.on_policy(offline(), greedy), train, directory=tmp_path, **settings)


def test_a_sampler_of_the_batch_itself_is_offline():
    batch = bigram.batch(6)
    same = schemes.on_policy(offline(), lambda student, batch, *, keys: {n: batch[n] for n in ENTRIES}, fraction=0.7)
    state = offline().init(jax.random.key(0), batch)
    expected, found = (jax.jit(kd.step)(state, batch)[0] for kd in (offline(), same))
    tiny.assert_equal(found, expected)
    kd = offline()
    assert schemes.on_policy(kd, bigram.generate, fraction=0.0) is kd


def test_only_the_fraction_is_generated():
    seen = []

    def generate(student, batch, *, keys):
        seen.append((len(keys), len(batch["token"])))
        return bigram.generate(student, batch, keys=keys)

    for fraction, rows in [(0.5, 8), (0.3, 5), (1 / 16, 1), (1.0, 16)]:
        kd = schemes.on_policy(offline(), generate, fraction=fraction)
        kd.init(jax.random.key(0), bigram.batch(16))
        assert seen.pop() == (rows, rows)


def test_a_sampler_may_get_the_teacher():
    batch = bigram.batch(6)

    def generate(student, teacher, batch, *, keys):
        return bigram.generate(teacher, batch, keys=keys)

    kd = teacher_mixed(offline(), generate)
    state = kd.init(jax.random.key(0), batch)
    found = jax.jit(kd.step)(state, batch)[1]
    swapped = state._replace(student=state.teacher)
    whole = sampled(swapped, batch, 1.0)
    values = reverse_kl(state, whole)
    assert tiny.numbers(found)["loss"] == pytest.approx(values[whole["mask"]].mean(), rel=1e-5)


def test_no_gradient_passes_through_the_sampling():
    batch = bigram.batch(4)

    def generate(student, batch, *, keys):
        return {"weight": jnp.sum(student.params) * jnp.ones(len(keys)), "mask": batch["mask"]}

    objective = term(losses.reverse_kl, "student/logits", "teacher/logits", weights="batch/weight")
    fixed = offline(objective=objective)
    kd = schemes.on_policy(fixed, generate)
    batch = {**batch, "weight": np.ones(4, np.float32)}
    state = kd.init(jax.random.key(0), batch)

    def sample(student, teacher, batch, keys):
        return generate(student, batch, keys=keys)

    def loss(kd, batch, params):
        return kd.step(state._replace(student=jaxkd.Variables(params)), batch)[1]["loss"].sum

    whole = _on_policy.generated("on_policy", state, batch, sample, Fraction(1, 2))[0]
    assert set(whole["weight"].tolist()) == {1.0, float(jnp.sum(state.student.params))}
    params = state.student.params
    gradient, expected = (
        jax.jit(jax.grad(functools.partial(loss, *arguments)))(params) for arguments in ((kd, batch), (fixed, whole))
    )
    np.testing.assert_allclose(gradient, expected, rtol=1e-5)


@pytest.mark.parametrize(
    ("fraction", "error", "message"),
    [(1.5, ValueError, "from 0 to 1, got 1.5"), (-0.1, ValueError, "from 0 to 1"), (None, TypeError, "Python number")],
)
def test_a_fraction_that_is_none_is_refused(fraction, error, message):
    with pytest.raises(error, match=message):
        schemes.on_policy(offline(), bigram.generate, fraction=fraction)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda size: {"other": np.zeros(size), "mask": np.ones((size, bigram.TOKENS), bool)}, "'other'.*is not in"),
        (lambda size: {"token": np.zeros((size, 7), np.int32)}, r"'token' int32\[8, 5\], got int32\[8, 7\]"),
        (lambda size: {"token": np.zeros((size, bigram.TOKENS), np.float32)}, r"got float32"),
        (lambda size: {"token": np.zeros((size + 1, bigram.TOKENS), np.int32)}, "a row for each of the 4 examples"),
        (lambda size: {"token": np.zeros((size, bigram.TOKENS), np.int32)}, "'mask' among the entries that are made"),
        (lambda size: {"mask": np.ones(size, bool)}, "'mask' like that of the batch"),
        (lambda size: {"mask": np.ones((size, bigram.TOKENS))}, "bool"),
        (lambda size: {"step": np.zeros(size)}, "reserved"),
    ],
)
def test_entries_that_do_not_fit_are_refused_by_init(made, message):
    kd = schemes.on_policy(offline(), lambda student, batch, *, keys: jax.tree.map(jnp.asarray, made(len(keys))))
    with pytest.raises(ValueError, match=message):
        kd.init(jax.random.key(0), bigram.batch(8))


def test_every_example_may_get_new_entries():
    batch = bigram.batch(6)
    prompts = {"token": batch["token"], "mask": np.arange(6) < 5}
    kd = schemes.on_policy(offline(), bigram.generate, fraction=1.0)
    _, metrics = jax.jit(kd.step)(kd.init(jax.random.key(0), prompts), prompts)
    whole = sampled(kd.init(jax.random.key(0), prompts), prompts, 1.0)
    assert whole["label"].shape == (6, bigram.TOKENS)
    assert not whole["mask"][5].any()
    assert whole["mask"].sum() == metrics["loss"].count
