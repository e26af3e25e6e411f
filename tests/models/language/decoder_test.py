"""The decoder against its formulas, its masks, its cache and its taps."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import adapters, losses
from jaxkd.models import Decoder, DecoderConfig, layer_taps, token_inputs
from tests.models.language import reference, tiny_models


@pytest.fixture(scope="module", params=tiny_models.CONFIGS, ids=str)
def model(request):
    return tiny_models.build(tiny_models.CONFIGS[request.param])


def tapped(config, **options):
    """Returns a model with all taps and its variables."""
    config = dataclasses.replace(config, tap_attention=True, **options)
    module = tiny_models.build(config)
    model = adapters.nnx(module, taps=layer_taps(config), inputs=token_inputs)
    return model, model.init(jax.random.key(0), {})


def test_logits_equal_the_formulas(model):
    tokens = tiny_models.tokens_of(2, 5)
    found = tiny_models.call(model, tokens)
    params = tiny_models.params_of(model)
    wanted = [reference.decoder(params, row, model.config) for row in tokens]
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-5)


def test_parameters_have_the_documented_paths():
    config = tiny_models.CONFIGS["llama"]
    flat = adapters.variables(Decoder(config, rngs=nnx.Rngs(0))).params
    names = {"/".join(str(part.key) for part in path) for path, _ in jax.tree_util.tree_flatten_with_path(flat)[0]}
    layer = {f"attention/{name}/kernel" for name in ("query", "key", "value", "out")}
    layer |= {f"mlp/{name}/kernel" for name in ("gate", "up", "down")} | {"attention_norm/scale", "mlp_norm/scale"}
    wanted = {f"layers/{number}/{name}" for number in range(2) for name in layer}
    assert names == wanted | {"embed/embedding", "final_norm/scale", "lm_head/kernel"}
    assert flat["layers"][0]["attention"]["key"]["kernel"].shape == (8, 4)


@pytest.mark.parametrize("left", [True, False])
def test_padding_changes_no_logits(model, left):
    """Whatever masked tokens hold, numbers beyond the vocabulary included."""
    tokens = tiny_models.tokens_of(1, 4)
    padding = np.full((1, 3), 999, np.int32)
    padded = np.concatenate([padding, tokens] if left else [tokens, padding], axis=1)
    place = slice(3, None) if left else slice(0, 4)
    mask = np.zeros((1, 7), bool)
    mask[:, place] = True
    found, wanted = tiny_models.call(model, padded, mask), tiny_models.call(model, tokens)
    np.testing.assert_allclose(found[:, place], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{"tap_attention": True}, {"dtype": jnp.bfloat16}], ids=str)
def test_a_sequence_without_any_token_is_finite(options):
    model = Decoder(dataclasses.replace(tiny_models.CONFIGS["llama"], layers=1, **options), rngs=nnx.Rngs(0))
    mask = jnp.array([[False, False, False], [True, True, False]])

    @jax.jit
    def total(params):
        return jnp.sum(nnx.merge(nnx.graphdef(model), params)(jnp.zeros((2, 3), int), mask).astype(jnp.float32))

    found = jax.jit(jax.value_and_grad(total))(nnx.state(model))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))


def test_bfloat16_follows_float32():
    config = tiny_models.CONFIGS["llama"]
    model = tiny_models.build(config)
    narrow = tiny_models.build(dataclasses.replace(config, dtype=jnp.bfloat16))
    tokens, mask = tiny_models.tokens_of(2, 6), np.arange(6)[None, :] < np.array([[6], [4]])
    wide, found = tiny_models.call(model, tokens, mask), tiny_models.call(narrow, tokens, mask)
    assert found.dtype == jnp.bfloat16 and wide.dtype == jnp.float32
    assert nnx.state(narrow)["embed"]["embedding"].dtype == jnp.float32
    np.testing.assert_allclose(found.astype(jnp.float32)[mask], wide[mask], atol=0.1)


def test_cast_parameters_compute_in_their_dtype():
    """`wrappers.precision` casts parameters; no table or norm may widen what follows."""
    model = tiny_models.build(tiny_models.CONFIGS["gpt2"])
    state = jax.tree.map(lambda x: x.astype(jnp.bfloat16), nnx.state(model))
    assert tiny_models.call(nnx.merge(nnx.graphdef(model), state), tiny_models.tokens_of(1, 3)).dtype == jnp.bfloat16


# --- packing

LENGTHS = (3, 1, 4)


def packed():
    """Returns a batch of documents packed into one row, with two tokens of padding, and one batch for each document."""
    documents = [tiny_models.tokens_of(1, length, seed=length) for length in LENGTHS]
    tokens = np.concatenate([*documents, np.zeros((1, 2), np.int32)], axis=1)
    segments = np.repeat([1, 2, 3, 0], [*LENGTHS, 2])[None].astype(np.int32)
    return {"tokens": tokens, "segments": segments}, [{"tokens": document} for document in documents]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def packed_and_separate(request):
    """Outputs of two networks for the packed batch, and for each document."""
    config = tiny_models.CONFIGS[request.param]
    student, variables = tapped(config)
    scaled = jax.tree.map(lambda x: x * 1.25, variables)
    whole, parts = packed()
    run = jax.jit(lambda variables, batch: student.apply(variables, batch, key=None, train=False)[0])
    outputs = [[run(v, batch) for v in (variables, scaled)] for batch in (whole, *parts)]
    return outputs[0], outputs[1:], whole["segments"] > 0


@pytest.mark.parametrize("kind", ["logits", "embedding", "hidden", "hidden1", "queries1", "keys1", "values1"])
def test_packed_outputs_are_the_separate_ones(packed_and_separate, kind):
    (whole, _), parts, where = packed_and_separate
    separate = np.concatenate([part[0][kind] for part in parts], axis=1)
    np.testing.assert_allclose(whole[kind][where], separate[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", ["scores0", "probabilities1"])
def test_packed_attention_is_the_separate_one(packed_and_separate, kind):
    (whole, _), parts, _ = packed_and_separate
    begin = 0
    outside = np.array(whole[kind][0])
    for part, length in zip(parts, LENGTHS, strict=True):
        place = np.s_[:, begin : begin + length, begin : begin + length]
        np.testing.assert_allclose(whole[kind][0][place], part[0][kind][0], rtol=1e-4, atol=1e-5)
        outside[place] = -np.inf if kind == "scores0" else 0
        begin += length
    np.testing.assert_array_equal(outside[:, : sum(LENGTHS)], -np.inf if kind == "scores0" else 0)


# Every loss of attention, hidden states and values, and one of logits: (loss, tap).
PACKED_LOSSES = {
    "soft_target_kl": (losses.soft_target_kl, "logits"),
    "hidden_mse": (losses.hidden_mse, "hidden0"),
    "hidden_mse of embeddings": (losses.hidden_mse, "embedding"),
    "hidden_cosine": (losses.hidden_cosine, "hidden"),
    "attention_kl": (losses.attention_kl, "scores1"),
    "attention_mse": (losses.attention_mse, "scores0"),
    "value_relation_kl": (losses.value_relation_kl, "values1"),
    "value_relation_kl of queries": (losses.value_relation_kl, "queries0"),
    "value_relation_kl of keys": (losses.value_relation_kl, "keys0"),
}


@pytest.mark.parametrize("name", PACKED_LOSSES)
def test_packed_losses_are_the_separate_ones(packed_and_separate, name):
    (student, teacher), parts, where = packed_and_separate
    loss, tap = PACKED_LOSSES[name]
    options = {"segments": jnp.asarray(packed()[0]["segments"])} if loss is losses.value_relation_kl else {}
    found = loss(student[tap], teacher[tap], where=jnp.asarray(where), **options)
    separate = [loss(s[tap], t[tap]) for s, t in parts]
    np.testing.assert_allclose(found[where], np.concatenate(separate, axis=1)[0], rtol=1e-3, atol=1e-6)
    assert np.max(found) > 1e-4


# --- cache


def test_cached_logits_are_the_uncached_ones(model):
    """Ragged prompts, padded on either side, then tokens one by one, one of them masked."""
    tokens = tiny_models.tokens_of(2, 7)
    mask = np.ones((2, 7), bool)
    mask[0, :2] = mask[1, 3] = mask[1, 5] = False
    wanted = tiny_models.call(model, tokens, mask)
    logits, cache = tiny_models.prefill(model, tokens[:, :4], mask[:, :4], length=3)
    np.testing.assert_allclose(logits, np.stack([wanted[0, 3], wanted[1, 2]]), rtol=1e-4, atol=1e-5)
    for number in range(4, 7):
        logits, cache = tiny_models.next_logits(model, cache, tokens[:, number], mask[:, number])
        kept = mask[:, number]
        np.testing.assert_allclose(logits[kept], wanted[kept, number], rtol=1e-4, atol=1e-5)
    assert cache.keys[0].shape[:2] == (2, 7) and int(cache.size) == 7
    assert np.isnan(tiny_models.next_logits(model, cache, tokens[:, 0])[0]).all()  # there is no slot left


def test_several_tokens_extend_a_cache_at_once(model):
    tokens = tiny_models.tokens_of(2, 6)
    _, cache = tiny_models.prefill(model, tokens[:, :2], length=4)
    found, _ = tiny_models.call(model, tokens[:, 2:], cache=cache)
    np.testing.assert_allclose(found, tiny_models.call(model, tokens)[:, 2:], rtol=1e-4, atol=1e-5)


# --- taps and errors


def test_attention_that_is_tapped_is_the_same():
    config = tiny_models.CONFIGS["llama"]
    model, variables = tapped(config)
    batch = {"tokens": tiny_models.tokens_of(2, 5), "token_mask": np.arange(5)[None, :] < np.array([[5], [3]])}
    out, _ = jax.jit(lambda variables, batch: model.apply(variables, batch, key=None, train=False))(variables, batch)
    plain = tiny_models.call(tiny_models.build(config), batch["tokens"], batch["token_mask"])
    np.testing.assert_allclose(out["logits"][batch["token_mask"]], plain[batch["token_mask"]], rtol=1e-4, atol=1e-5)
    assert out["queries0"].shape == (2, 5, 4, 2) and out["keys0"].shape == out["values0"].shape == (2, 5, 2, 2)
    assert out["scores1"].shape == (2, 4, 5, 5)
    # Score by hand: the second query head of each pair shares the pair's key head.
    score = np.sum(out["queries1"][0, 4, 3] * out["keys1"][0, 2, 1]) / 2**0.5
    np.testing.assert_allclose(out["scores1"][0, 3, 4, 2], score, rtol=1e-5)
    np.testing.assert_allclose(out["probabilities0"], jax.nn.softmax(out["scores0"]), atol=1e-6)
    assert (out["scores0"][1, :, :, 3:] == -jnp.inf).all()
    np.testing.assert_allclose(out["hidden"] @ variables.params["lm_head"]["kernel"], out["logits"], rtol=1e-5)


def test_long_sequences_equal_the_formulas():
    """Their attention is computed in blocks of queries."""
    model = tiny_models.build(tiny_models.CONFIGS["llama"])
    tokens = tiny_models.tokens_of(1, 97)
    wanted = reference.decoder(tiny_models.params_of(model), tokens[0], model.config)
    np.testing.assert_allclose(tiny_models.call(model, tokens)[0], wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_gradients_of_long_packed_sequences_are_those_of_whole_scores():
    """Attention that is tapped is computed with the scores of all pairs."""
    config = dataclasses.replace(tiny_models.CONFIGS["llama"], layers=1)
    segments = np.repeat([[1, 2, 0]], (40, 25, 5), axis=1)
    tokens, mask = tiny_models.tokens_of(1, 70), segments > 0

    def gradients(tap):
        graph, params = nnx.split(tiny_models.build(dataclasses.replace(config, tap_attention=tap)))

        def loss(params):
            logits = nnx.merge(graph, params)(tokens, mask, segments)
            return jnp.sum(jnp.where(mask[..., None], jnp.sin(logits), 0))

        return nnx.to_pure_dict(jax.jit(jax.grad(loss))(params))

    blocks, whole = gradients(False), gradients(True)
    assert max(float(jnp.abs(x).max()) for x in jax.tree.leaves(whole)) > 1
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), blocks, whole)


def test_dropout_is_active_in_training_only():
    config = dataclasses.replace(tiny_models.CONFIGS["llama"], dropout_rate=0.5)
    model = adapters.nnx(lambda rngs: Decoder(config, rngs=rngs), inputs="tokens")
    batch = {"tokens": tiny_models.tokens_of(1, 4)}
    variables = model.init(jax.random.key(0), batch)
    run = jax.jit(
        lambda key, train: model.apply(variables, batch, key=jax.random.key(key), train=train)[0]["logits"],
        static_argnums=1,
    )
    assert (run(1, True) != run(2, True)).any() and (run(1, False) == run(2, False)).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 3}, "heads: expected a divisor of the width 8"),
        ({"key_value_heads": 3}, "key_value_heads: expected a divisor of the 4 heads"),
        ({"norm": "batch"}, "norm: expected one of"),
        ({"activation": "tanh"}, "activation: expected one of"),
        ({"head_dim": 3}, "head_dim: expected an even number"),
        ({"layers": 0}, "layers: expected at least 1"),
    ],
)
def test_configurations_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        DecoderConfig(**{**tiny_models.SIZES, **change})


def test_inputs_that_do_not_fit_are_refused():
    model = tiny_models.build(dataclasses.replace(tiny_models.CONFIGS["gpt2"], max_length=4))
    tokens = jnp.zeros((1, 3), int)
    with pytest.raises(ValueError, match=r"tokens: expected integers \[batch, tokens\]"):
        model(tokens[0])
    with pytest.raises(ValueError, match="mask: expected bool"):
        model(tokens, jnp.ones((1, 3)))
    with pytest.raises(ValueError, match="segments: expected integers"):
        model(tokens, segments=jnp.ones((1, 2), int))
    with pytest.raises(ValueError, match="at most max_length=4"):
        model(jnp.zeros((1, 5), int))
    with pytest.raises(ValueError, match="at most max_length=4"):
        model.prefill(tokens, length=2)
    with pytest.raises(ValueError, match="expected None with a cache"):
        model(tokens[:, :1], segments=tokens[:, :1], cache=model.prefill(tokens, length=1)[1])
