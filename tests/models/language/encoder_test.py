"""Encoders and encoder–decoders against their formulas, their masks and their taps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import adapters, losses
from jaxkd.models import (
    DecoderConfig,
    Encoder,
    EncoderConfig,
    EncoderDecoder,
    EncoderDecoderConfig,
    beam_search,
    generate,
    generator,
    layer_taps,
    source_inputs,
    token_inputs,
)
from tests.models.language import reference, tiny_models

CONFIGS = {
    "bert": EncoderConfig(**tiny_models.SIZES, pooler=True, mlm=True, classes=3),
    "pre-norm": EncoderConfig(**tiny_models.SIZES, pre_norm=True, types=0, activation="relu"),
    "mobilebert": EncoderConfig(**tiny_models.SIZES, bottleneck_width=4, embedding_width=6, mlm=True),
}


@pytest.fixture(scope="module", params=CONFIGS, ids=str)
def model(request):
    return tiny_models.build(CONFIGS[request.param], Encoder)


def test_outputs_equal_the_formulas(model):
    config, params = model.config, tiny_models.params_of(model)
    tokens = tiny_models.tokens_of(2, 5)
    types = np.array([[0, 0, 1, 1, 1], [0, 1, 1, 1, 1]]) if config.types else None
    found = tiny_models.call(model, tokens, None, None, None, types)
    hidden = np.stack(
        [reference.encoder(params, row, config, None if types is None else types[i]) for i, row in enumerate(tokens)]
    )
    np.testing.assert_allclose(found["hidden"], hidden, rtol=1e-4, atol=1e-5)
    pooled = np.tanh(reference.linear(params["pooler"], hidden[:, 0])) if config.pooler else hidden.mean(1)
    np.testing.assert_allclose(found["pooled"], pooled, rtol=1e-4, atol=1e-5)
    wanted = {"hidden", "pooled"}
    if config.classes:
        wanted.add("logits")
        np.testing.assert_allclose(
            found["logits"], reference.linear(params["classifier"], pooled), rtol=1e-4, atol=1e-5
        )
    if config.mlm:
        wanted.add("mlm_logits")
        head = params["mlm"]
        inner = reference.ACTIVATIONS[config.activation](reference.linear(head["dense"], hidden))
        inner = reference.norm(head["norm"], inner, config.norm_epsilon)
        logits = inner @ params["embed"]["words"]["embedding"].T + head["bias"]
        np.testing.assert_allclose(found["mlm_logits"], logits, rtol=1e-4, atol=1e-5)
    assert set(found) == wanted


@pytest.mark.parametrize("left", [True, False])
def test_padding_changes_no_outputs(model, left):
    tokens = tiny_models.tokens_of(1, 4)
    padding = np.full((1, 3), 999, np.int32)
    padded = np.concatenate([padding, tokens] if left else [tokens, padding], axis=1)
    place = slice(3, None) if left else slice(0, 4)
    mask = np.zeros((1, 7), bool)
    mask[:, place] = True
    found, wanted = tiny_models.call(model, padded, mask), tiny_models.call(model, tokens)
    np.testing.assert_allclose(found["hidden"][:, place], wanted["hidden"], rtol=1e-4, atol=1e-5)
    if not (left and model.config.pooler):  # which reads the first token
        np.testing.assert_allclose(found["pooled"], wanted["pooled"], rtol=1e-4, atol=1e-5)


def test_neighbors_are_words_of_the_same_document():
    """Of MobileBERT's trigrams: neither padding nor the next document, also where queries have their own bottleneck."""
    config = EncoderConfig(
        **tiny_models.SIZES,
        bottleneck_width=4,
        embedding_width=6,
        trigram=True,
        shared_bottleneck=True,
        norm="scale",
        mlp_blocks=3,
    )
    model = tiny_models.build(config, Encoder)
    one, two = tiny_models.tokens_of(1, 3), tiny_models.tokens_of(1, 4, seed=1)
    tokens = np.concatenate([one, two, np.full((1, 2), 5, np.int32)], axis=1)
    segments = np.array([[1] * 3 + [2] * 4 + [0] * 2], np.int32)
    packed = tiny_models.call(model, tokens, segments > 0, segments)["hidden"]
    for places, words in ((slice(0, 3), one), (slice(3, 7), two)):
        alone = tiny_models.call(model, words)["hidden"]
        np.testing.assert_allclose(packed[:, places], alone, rtol=1e-4, atol=1e-5)
        other = words.copy()
        other[0, 1] = (words[0, 1] + 1) % config.vocabulary
        assert np.abs(tiny_models.call(model, other)["hidden"] - alone).max() > 1e-3


def test_a_bottleneck_of_queries_and_keys_lies_in_a_bottleneck():
    with pytest.raises(ValueError, match="shared_bottleneck: expected a bottleneck_width"):
        EncoderConfig(**tiny_models.SIZES, shared_bottleneck=True)


def test_an_example_without_any_token_is_finite():
    model = tiny_models.build(dataclasses.replace(CONFIGS["mobilebert"], layers=1, tap_attention=True), Encoder)
    mask = jnp.array([[False, False], [True, True]])

    @jax.jit
    def total(params):
        out = nnx.merge(nnx.graphdef(model), params)(jnp.zeros((2, 2), int), mask)
        return sum(jnp.sum(x) for x in out.values())

    found = jax.jit(jax.value_and_grad(total))(nnx.state(model))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


LENGTHS = (3, 1, 4)
PACKED_LOSSES = {
    "hidden_mse": (losses.hidden_mse, "hidden0"),
    "hidden_mse of embeddings": (losses.hidden_mse, "embedding"),
    "hidden_cosine": (losses.hidden_cosine, "hidden"),
    "attention_kl": (losses.attention_kl, "scores1"),
    "attention_mse": (losses.attention_mse, "scores0"),
    "value_relation_kl": (losses.value_relation_kl, "values1"),
    "soft_target_kl": (losses.soft_target_kl, "mlm_logits"),
}


@pytest.fixture(scope="module")
def packed_and_separate():
    """Outputs of two networks for a row of packed documents, and for each document."""
    config = dataclasses.replace(CONFIGS["bert"], tap_attention=True)
    model = adapters.nnx(tiny_models.build(config, Encoder), taps=layer_taps(config), inputs=token_inputs)
    variables = model.init(jax.random.key(0), {})
    documents = [tiny_models.tokens_of(1, length, seed=length) for length in LENGTHS]
    tokens = np.concatenate([*documents, np.zeros((1, 2), np.int32)], axis=1)
    whole = {"tokens": tokens, "segments": np.repeat([1, 2, 3, 0], [*LENGTHS, 2])[None].astype(np.int32)}
    run = jax.jit(lambda variables, batch: model.apply(variables, batch, key=None, train=False)[0])
    both = (variables, jax.tree.map(lambda x: x * 1.25, variables))
    outputs = [[run(v, batch) for v in both] for batch in (whole, *({"tokens": row} for row in documents))]
    return outputs[0], outputs[1:], jnp.asarray(whole["segments"])


@pytest.mark.parametrize("name", PACKED_LOSSES)
def test_packed_losses_are_the_separate_ones(packed_and_separate, name):
    (student, teacher), parts, segments = packed_and_separate
    loss, tap = PACKED_LOSSES[name]
    options, where = {"segments": segments} if loss is losses.value_relation_kl else {}, segments > 0
    found = loss(student[tap], teacher[tap], where=where, **options)
    separate = [loss(s[tap], t[tap]) for s, t in parts]
    np.testing.assert_allclose(found[where], np.concatenate(separate, axis=1)[0], rtol=1e-3, atol=1e-6)
    assert np.max(found) > 1e-4


def test_taps_of_a_bottleneck_are_narrow_inside():
    config = CONFIGS["mobilebert"]
    model = adapters.nnx(tiny_models.build(config, Encoder), taps=layer_taps(config), inputs=token_inputs)
    batch = {"tokens": tiny_models.tokens_of(2, 3), "token_mask": np.array([[True] * 3, [True, False, False]])}
    out = jax.eval_shape(lambda: model.apply(model.init(jax.random.key(0), batch), batch, key=None, train=False)[0])
    assert out["hidden0"].shape == out["hidden"].shape == (2, 3, 8)
    assert out["values1"].shape == (2, 3, 4, 1) and out["mlm_hidden"].shape == (2, 3, 6)


def test_inputs_are_named_entries():
    ones = np.ones((2, 3), bool)
    assert token_inputs({"tokens": 1, "token_mask": 2, "types": 4}) == (1, 2, None, None, 4)
    assert token_inputs({"tokens": 1, "mask": np.ones(2, bool)}) == (1, None, None, None)
    assert token_inputs({"tokens": 1, "mask": ones, "segments": 2, "positions": 3}) == (1, None, 2, 3)
    assert token_inputs({"tokens": 1, "mask": ones, "token_mask": 5}) == (1, 5, None, None)
    assert source_inputs({"source": 1, "source_mask": 2, "tokens": 3, "mask": ones}) == (1, 3, 2, None)


def test_a_mask_of_what_counts_is_not_read_as_padding():
    """A mask that excludes a prompt would hide it from the model, without a word."""
    with pytest.raises(ValueError, match="expected 'token_mask', True for the tokens that are read, or 'segments'"):
        token_inputs({"tokens": 1, "mask": np.ones((2, 3), bool)})


def test_types_of_an_encoder_without_types_are_refused():
    model = tiny_models.build(CONFIGS["pre-norm"], Encoder)
    tokens = tiny_models.tokens_of(1, 3)
    with pytest.raises(ValueError, match="types: expected None"):
        model(tokens, types=tokens)


# --- encoder–decoder

SEQUENCES = EncoderDecoderConfig(
    encoder=EncoderConfig(**{**tiny_models.SIZES, "vocabulary": 7, "width": 12}, pre_norm=True, types=0),
    decoder=DecoderConfig(**tiny_models.SIZES, key_value_heads=2),
)


@pytest.fixture(scope="module")
def sequences():
    return tiny_models.build(SEQUENCES, EncoderDecoder)


def pairs():
    """Returns sources, of which one is padded, and tokens."""
    source = tiny_models.tokens_of(2, 4) % 7
    return source, np.array([[True] * 4, [True, True, False, False]]), tiny_models.tokens_of(2, 3, seed=4)


def test_an_encoder_decoder_equals_the_formulas(sequences):
    source, source_mask, tokens = pairs()
    params = tiny_models.params_of(sequences)
    found = tiny_models.call(sequences, source, tokens, source_mask)
    for number in range(2):
        read = reference.encoder(params["encoder"], source[number][source_mask[number]], SEQUENCES.encoder)
        wanted = reference.decoder(params["decoder"], tokens[number], SEQUENCES.decoder, source=read)
        np.testing.assert_allclose(found[number], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_an_encoder_decoder_generates_with_its_cache(sequences):
    source, source_mask, _ = pairs()
    start = np.zeros((2, 1), np.int32)

    @nnx.jit
    def search(model):
        prefilled = model.prefill(source, start, source_mask, length=3)
        greedy = generate(model.next_logits, prefilled, length=3, temperature=0.0)
        return greedy, beam_search(model.next_logits, prefilled, length=3, beams=2)

    greedy, beams = search(sequences)

    def log_probs_of(tokens):
        logits = tiny_models.call(sequences, source, np.concatenate([start, tokens], axis=1)[:, :3], source_mask)
        return jax.nn.log_softmax(logits)

    log_probs = log_probs_of(greedy.tokens)
    np.testing.assert_array_equal(jnp.argmax(log_probs, axis=-1), greedy.tokens)
    for beam in range(2):
        tokens = beams.tokens[:, beam]
        total = jnp.take_along_axis(log_probs_of(tokens), tokens[:, :, None], axis=2).sum((1, 2))
        np.testing.assert_allclose(beams.scores[:, beam], total, rtol=1e-3)


def test_what_an_encoder_decoder_writes_replaces_a_batch(sequences):
    """As for sequence-level distillation: the teacher's tokens have the batch's shape."""
    source, source_mask, tokens = pairs()
    batch = {"source": source, "source_mask": source_mask, "tokens": tokens}
    build = lambda rngs: EncoderDecoder(SEQUENCES, rngs=rngs)  # noqa: E731
    write = generator(build, prompt=1, length=2, temperature=0.0, entries=("tokens", "label", "mask"))
    made = jax.jit(write)(adapters.variables(sequences), batch, keys=jax.random.split(jax.random.key(0), 2))
    logits = tiny_models.call(sequences, source, made["tokens"], source_mask)
    assert made["mask"].tolist() == [[True, True, False]] * 2
    np.testing.assert_array_equal(made["tokens"][:, 0], tokens[:, 0])
    np.testing.assert_array_equal(jnp.argmax(logits, axis=-1)[made["mask"]], made["label"][made["mask"]])


@pytest.mark.slow
def test_cross_attention_can_be_tapped():
    config = EncoderDecoderConfig(
        encoder=dataclasses.replace(SEQUENCES.encoder, layers=1, tap_attention=True),
        decoder=dataclasses.replace(SEQUENCES.decoder, layers=1, tap_attention=True),
    )
    model = adapters.nnx(tiny_models.build(config, EncoderDecoder), taps=layer_taps(config), inputs=source_inputs)
    source, source_mask, tokens = pairs()
    batch = {"source": source, "source_mask": source_mask, "tokens": tokens}
    variables = model.init(jax.random.key(0), batch)
    out = jax.jit(lambda variables: model.apply(variables, batch, key=None, train=False)[0])(variables)
    assert out["cross_scores0"].shape == (2, 4, 3, 4) and (out["cross_scores0"][1, :, :, 2:] == -jnp.inf).all()
    assert out["encoder_scores0"].shape == (2, 4, 4, 4) and out["encoder_hidden"].shape == (2, 4, 12)
    np.testing.assert_allclose(out["cross_probabilities0"].sum(-1), 1, rtol=1e-5)


def test_a_decoder_and_its_source_belong_together(sequences):
    source, _, tokens = pairs()
    with pytest.raises(ValueError, match="source: expected a Source, from"):
        sequences.decoder(tokens)
    read = sequences.decoder.read(sequences.encoder(source)["hidden"])
    with pytest.raises(ValueError, match="source: expected None"):
        tiny_models.build(SEQUENCES.decoder)(tokens, source=read)
