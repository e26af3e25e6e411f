"""Generation and beam search: against a loop without a cache, probabilities and exhaustive search."""

import dataclasses
import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxkd
from jaxkd import adapters
from jaxkd.models import Decoder, beam_search, generate, generator
from jaxkd.models.language._generate import _inverted, truncate
from tests.models.language import tiny_models


@pytest.fixture(scope="module")
def model():
    return tiny_models.build(tiny_models.CONFIGS["llama"])


def prompts():
    """Returns ragged prompts, one padded on the left, one on the right."""
    tokens = tiny_models.tokens_of(3, 4)
    mask = np.array([[False, True, True, True], [True, True, False, False], [True] * 4])
    return tokens, mask


@functools.partial(nnx.jit, static_argnames=("length", "temperature", "end", "top_k", "top_p"))
def run(model, tokens, mask, keys=None, *, length, **options):
    return generate(model.next_logits, model.prefill(tokens, mask, length=length), length=length, keys=keys, **options)


def keys_of(batch, seed=0):
    return jax.vmap(lambda number: jax.random.fold_in(jax.random.key(seed), number))(jnp.arange(batch))


def log_probs_of(model, sequence):
    """Returns the log-probabilities of the token after each one of a sequence, padded to one length for all."""
    tokens = np.zeros((1, 8), np.int32)
    tokens[0, : len(sequence)] = sequence
    return jax.nn.log_softmax(tiny_models.call(model, tokens, np.arange(8)[None, :] < len(sequence))[0])


def test_greedy_tokens_are_those_of_a_loop_without_a_cache(model):
    tokens, mask = prompts()
    found = run(model, tokens, mask, length=4, temperature=0.0)
    for number in range(3):
        sequence = [int(token) for token in tokens[number][mask[number]]]
        for step in range(4):
            log_probs = log_probs_of(model, sequence)[len(sequence) - 1]
            assert int(found.tokens[number, step]) == int(jnp.argmax(log_probs))
            np.testing.assert_allclose(found.log_probs[number, step], jnp.max(log_probs), rtol=1e-3)
            sequence.append(int(jnp.argmax(log_probs)))


def test_the_sample_of_an_example_does_not_depend_on_the_batch(model):
    tokens, mask = prompts()
    keys = keys_of(3)
    whole = run(model, tokens, mask, keys, length=5, temperature=1.5)
    turned = run(model, tokens[::-1], mask[::-1], keys[::-1], length=5, temperature=1.5)
    np.testing.assert_array_equal(whole.tokens, turned.tokens[::-1])
    alone = run(model, tokens[1:2], mask[1:2], keys[1:2], length=5, temperature=1.5)
    np.testing.assert_array_equal(whole.tokens[1], alone.tokens[0])
    assert len({tuple(row) for row in whole.tokens.tolist()}) == 3


def table_model(table):
    """A bigram model, whose state counts the steps of each example."""
    return lambda state, tokens, mask: (table[tokens], state + mask)


def test_tokens_have_the_probabilities_of_the_model():
    """20,000 examples of two tokens; each frequency is within five standard deviations."""
    probabilities = np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7], [0.6, 0.2, 0.2]])
    table, count = jnp.log(jnp.asarray(probabilities, jnp.float32)), 20_000
    start = jnp.tile(table[:1], (count, 1)), jnp.zeros(count, int)
    temperature = 0.7
    found = jax.jit(lambda keys: generate(table_model(table), start, length=2, keys=keys, temperature=temperature))(
        jax.random.split(jax.random.key(3), count)
    )
    softened = probabilities ** (1 / temperature)
    softened /= softened.sum(1, keepdims=True)
    joint = softened[0][:, None] * softened
    frequencies = np.zeros((3, 3))
    np.add.at(frequencies, tuple(np.asarray(found.tokens).T), 1 / count)
    assert (abs(frequencies - joint) < 5 * np.sqrt(joint * (1 - joint) / count)).all()
    np.testing.assert_allclose(found.log_probs[:, 0], np.log(probabilities[0])[found.tokens[:, 0]], rtol=1e-5)


def test_only_tokens_that_are_not_excluded_are_drawn():
    """Of a vocabulary that takes several blocks of cumulative sums, at whose ends these tokens stand."""
    kept, probabilities, count = np.array([1, 31, 32, 68]), np.array([0.1, 0.4, 0.3, 0.2]), 20_000
    logits = np.full(70, -np.inf, np.float32)
    logits[kept] = np.log(probabilities) + 3  # not normalized
    start = jnp.tile(jnp.asarray(logits)[None], (count, 1))
    keys = jax.random.split(jax.random.key(4), count)
    drawn = jax.jit(lambda start, keys: generate(lambda state, *_: (start, state), (start, ()), length=1, keys=keys))
    found = drawn(start, keys)
    frequencies = np.bincount(np.asarray(found.tokens)[:, 0], minlength=70) / count
    deviation = np.sqrt(probabilities * (1 - probabilities) / count)
    assert set(np.flatnonzero(frequencies)) == set(kept)
    assert (abs(frequencies[kept] - probabilities) < 5 * deviation).all()


def test_numbers_at_the_ends_of_cumulative_sums_choose_no_excluded_token():
    """Where rounding decides, also between blocks of sums and behind the last token that is left."""
    weights = np.random.default_rng(0).exponential(size=(200, 100)).astype(np.float32)
    weights[:, 5::7] = weights[:, 30:36] = weights[:, 90:] = 0
    ends = (np.cumsum(weights, axis=1) / weights.sum(axis=1, keepdims=True)).astype(np.float32)
    choose = jax.jit(_inverted)
    for near in (ends, np.nextafter(ends, np.float32(0)), np.nextafter(ends, np.float32(1))):
        for uniform in np.minimum(near, np.nextafter(np.float32(1), np.float32(0))).T:
            chosen = np.asarray(choose(weights, uniform))
            assert (np.take_along_axis(weights, chosen[:, None], axis=1) > 0).all()


@pytest.mark.parametrize(
    ("options", "kept"),
    [
        ({"top_k": 1}, [1]),
        ({"top_k": 3}, [0, 1, 3]),
        ({"top_p": 0.4}, [1]),
        ({"top_p": 0.41}, [1, 3]),
        ({"top_p": 0.71}, [0, 1, 3]),
        ({"top_p": 1.0}, [0, 1, 2, 3]),
        ({"top_k": 2, "top_p": 0.5}, [1]),  # 4/7 of the two that are left
    ],
    ids=str,
)
def test_truncation_keeps_the_most_probable_tokens(options, kept):
    logits = jnp.log(jnp.array([[0.2, 0.4, 0.1, 0.3]]))
    found = truncate(logits, **options)[0]
    np.testing.assert_array_equal(np.flatnonzero(found > -jnp.inf), kept)
    np.testing.assert_array_equal(found[jnp.array(kept)], logits[0, jnp.array(kept)])


def test_nothing_follows_an_end_token():
    table = jnp.log(jnp.array([[0.1, 0.8, 0.1], [0.1, 0.1, 0.8], [0.8, 0.1, 0.1]]))
    states = []

    def next_logits(state, tokens, mask):
        states.append(mask)
        return table[tokens], state + mask

    start = table[jnp.array([0, 1, 2])], jnp.zeros(3, int)
    found = generate(next_logits, start, length=4, temperature=0.0, end=2)
    assert found.tokens.tolist() == [[1, 2, 2, 2], [2, 2, 2, 2], [0, 1, 2, 2]]
    assert found.mask.sum(1).tolist() == [2, 1, 3] and found.mask[:, 0].all()
    assert (found.log_probs != 0).tolist() == found.mask.tolist()
    assert len(states) == 1  # one scan


def all_sequences(table, start, length, end):
    """Returns (tokens, log-probability) of every sequence that ends, or has the whole length."""
    found = []
    for tokens in itertools.product(range(len(table)), repeat=length):
        cut = tokens.index(end) + 1 if end in tokens else length
        if tokens[cut:] == (tokens[cut - 1],) * (length - cut):  # one of each
            steps = [start, *[table[token] for token in tokens]]
            found.append((tokens, cut, sum(steps[t][tokens[t]] for t in range(cut))))
    return found


@pytest.mark.parametrize("penalty", [0.0, 1.0])
def test_a_wide_beam_search_is_exhaustive(penalty):
    rng = np.random.default_rng(2)
    table = np.log(rng.dirichlet(np.ones(5), size=(2, 5)))  # a model of each example
    start = np.log(rng.dirichlet(np.ones(5), size=2))

    def next_logits(state, tokens, mask):
        return jnp.asarray(table, jnp.float32)[state, tokens], state

    found = jax.jit(
        lambda start: beam_search(next_logits, (start, jnp.arange(2)), length=2, beams=5, end=4, length_penalty=penalty)
    )(jnp.asarray(start, jnp.float32))
    for number in range(2):
        scored = [
            (total / cut**penalty, tokens) for tokens, cut, total in all_sequences(table[number], start[number], 2, 4)
        ]
        best = sorted(scored, reverse=True)[:5]
        np.testing.assert_allclose(found.scores[number], [score for score, _ in best], rtol=1e-4)
        assert found.tokens[number].tolist() == [list(tokens) for _, tokens in best]
        assert found.mask[number, :, 1].tolist() == [tokens[0] != 4 for _, tokens in best]


@pytest.mark.slow
def test_beams_of_a_decoder_score_what_it_scores(model):
    """The cache of each beam follows its parent."""
    tokens, mask = prompts()
    found = nnx.jit(
        lambda model: beam_search(model.next_logits, model.prefill(tokens, mask, length=4), length=4, beams=3)
    )(model)
    greedy = run(model, tokens, mask, length=4, temperature=0.0)
    assert (found.scores[:, 0] >= greedy.log_probs.sum(1) - 1e-4).all()
    for number, beam in itertools.product(range(3), range(3)):
        prompt = tokens[number][mask[number]]
        log_probs = log_probs_of(model, [*prompt, *found.tokens[number, beam].tolist()])[len(prompt) - 1 :]
        total = sum(float(log_probs[step, found.tokens[number, beam, step]]) for step in range(4))
        np.testing.assert_allclose(found.scores[number, beam], total, rtol=1e-3)


# --- sequences as entries of a batch


def build(rngs):
    return Decoder(tiny_models.CONFIGS["llama"], rngs=rngs)


def test_generated_entries_follow_the_prompts(model):
    tokens, mask = prompts()
    variables = adapters.variables(model)
    make = generator(build, prompt=lambda batch: (batch["tokens"], batch["exists"]), length=3, temperature=0.0)
    made = jax.jit(make)(variables, {"tokens": tokens, "exists": mask}, keys=keys_of(3))
    new = run(model, tokens, mask, length=3, temperature=0.0).tokens
    for number in range(3):
        prompt = tokens[number][mask[number]]
        real = np.asarray(made["segments"][number]) == 1
        np.testing.assert_array_equal(made["tokens"][number][real], [*prompt, *new[number]])
        np.testing.assert_array_equal(made["positions"][number][real], np.arange(len(prompt) + 3))
        np.testing.assert_array_equal(made["label"][number][made["mask"][number]], new[number])
    # What a model reads of these entries predicts what was generated.
    logits = tiny_models.call(model, made["tokens"], None, made["segments"], made["positions"])
    np.testing.assert_array_equal(jnp.argmax(logits, axis=-1)[made["mask"]], new.reshape(-1))


def test_dropout_is_inactive_in_generation():
    """A constructor leaves abstract random streams, which inference never reads."""
    config = dataclasses.replace(tiny_models.CONFIGS["llama"], layers=1, dropout_rate=0.5)
    variables = adapters.variables(Decoder(config, rngs=nnx.Rngs(0)))
    batch = {"tokens": tiny_models.tokens_of(2, 3)}
    made = [
        jax.jit(generator(lambda rngs, config=config: Decoder(config, rngs=rngs), prompt=2, length=2, temperature=0.0))(
            variables, batch, keys=keys_of(2)
        )["tokens"]
        for config in (config, dataclasses.replace(config, dropout_rate=0.0))
    ]
    np.testing.assert_array_equal(*made)


def test_a_prompt_is_the_last_document_of_the_first_tokens():
    batch = {"tokens": tiny_models.tokens_of(2, 5), "segments": jnp.array([[1, 1, 2, 2, 2], [1, 1, 0, 0, 0]])}
    variables = adapters.variables(build(nnx.Rngs(0)))
    made = generator(build, prompt=3, length=2, end=0, entries=("segments", "tokens"))(
        variables, batch, keys=keys_of(2)
    )
    assert sorted(made) == ["segments", "tokens"]
    assert made["segments"][:, :4].tolist() == [[0, 0, 1, 1], [0, 1, 1, 1]]
    np.testing.assert_array_equal(made["tokens"][1, 1:3], batch["tokens"][1, :2])


@pytest.mark.slow
def test_generation_is_the_same_on_several_devices(model):
    tokens, mask = (np.concatenate([x, x[:1]]) for x in prompts())
    keys, variables = keys_of(4), adapters.variables(model)
    make = generator(build, prompt=lambda batch: (batch["tokens"], batch["exists"]), length=3, end=3)
    batch = {"tokens": tokens, "exists": mask}
    mesh = jax.make_mesh((2,), (jaxkd.DATA_AXIS,), axis_types=(jax.sharding.AxisType.Auto,))
    spec = jax.sharding.PartitionSpec(jaxkd.DATA_AXIS)
    split = jax.shard_map(
        lambda variables, batch, keys: make(variables, batch, keys=keys),
        mesh=mesh,
        in_specs=(jax.sharding.PartitionSpec(), spec, spec),
        out_specs=spec,
    )
    found, wanted = jax.jit(split)(variables, batch, keys), jax.jit(make)(variables, batch, keys=keys)
    jax.tree.map(np.testing.assert_array_equal, dict(found), wanted)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"length": 0}, "length: expected at least 1"),
        ({"keys": None}, "keys: expected a PRNG key for each example"),
        ({"keys": keys_of(3)}, "keys: expected a key for each of 2 examples"),
        ({"temperature": -1.0}, "temperature: expected a number of at least 0"),
        ({"top_k": 4}, "top_k: expected a number from 1 to 3"),
        ({"top_p": 0.0}, "top_p: expected a number above 0"),
    ],
)
def test_hyperparameters_that_have_no_meaning_are_refused(options, message):
    table = jnp.zeros((3, 3))
    with pytest.raises(ValueError, match=message):
        generate(table_model(table), (table[:2], jnp.zeros(2, int)), **{"length": 2, "keys": keys_of(2), **options})


def test_prompts_and_entries_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="entries: expected names among"):
        generator(build, prompt=2, length=2, entries=("token",))
    make = generator(build, prompt=6, length=2)
    with pytest.raises(ValueError, match="prompt: expected a number of tokens from 1 to 5"):
        make(adapters.variables(build(nnx.Rngs(0))), {"tokens": tiny_models.tokens_of(1, 5)}, keys=keys_of(1))
    with pytest.raises(ValueError, match="beams: expected a number from 1 to the vocabulary 3"):
        beam_search(table_model(None), (jnp.zeros((1, 3)), ()), length=2, beams=4)
