"""Hugging Face models in `jaxkd.models`: outputs of tiny random ones, and of two pretrained ones where they are given.

The values come from ``make_hf_golden.py``.
"""

import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters, models, weights

GOLDEN = pathlib.Path(__file__).parents[1] / "golden" / "huggingface"
ENCODERS = ("bert", "bert_masked_lm", "bert_classifier")
DECODERS = ("gpt2", "gpt2_untied", "llama_untied", "llama_tied")


def given(variable):
    """Returns the directory of a pretrained model, or skips the test."""
    if variable not in os.environ:
        pytest.skip(f"needs a pretrained model: set {variable} to the directory with its config.json")
    return pathlib.Path(os.environ[variable])


def decoder(config):
    """Returns a decoder with every tap, of the configuration that `load_hf` gives."""
    return tapped(models.Decoder, models.DecoderConfig(**config, tap_attention=True))


def encoder(config):
    return tapped(models.Encoder, models.EncoderConfig(**config, tap_attention=True))


def tapped(kind, config):
    return adapters.nnx(
        lambda rngs: kind(config, rngs=rngs), taps=models.layer_taps(config), inputs=models.token_inputs
    )


def outputs(model, variables, reference):
    entries = {"tokens": "tokens", "mask": "token_mask", "types": "types"}
    batch = {entry: jnp.asarray(reference[name]) for name, entry in entries.items() if name in reference}
    apply = jax.jit(lambda variables, batch: model.apply(variables, batch, key=None, train=False)[0])
    return {name: np.asarray(value) for name, value in apply(variables, batch).items()}


def in_float64(variables):
    return jax.tree.map(
        lambda x: jnp.asarray(x, jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x, variables
    )


def assert_close(found, wanted, tolerance, mask=None):
    """Compares outputs ``[batch, tokens, …]`` at the tokens that exist."""
    found, wanted = (x if mask is None else x[mask] for x in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


def assert_layers_close(found, reference, tolerance=1e-6):
    """Compares the hidden states and attentions of two layers with those of Transformers."""
    # The last hidden state of a decoder is the input of the head, after the final norm.
    for number, name in enumerate(("embedding", "hidden0", "hidden")):
        assert_close(found[name], reference[f"hidden{number}"], 1e-5, reference["mask"])
    for number in range(2):
        attention = [np.moveaxis(x, 1, 2) for x in (found[f"probabilities{number}"], reference[f"attention{number}"])]
        assert_close(*attention, tolerance, reference["mask"])


@pytest.mark.parametrize("case", DECODERS)
def test_decoders_compute_what_transformers_computes(case):
    config, variables = weights.load_hf(GOLDEN / case)
    reference = weights.load_safetensors(GOLDEN / case / "reference.safetensors")
    found = outputs(decoder(config), variables, reference)
    assert_close(found["logits"], reference["logits"], 1e-5, reference["mask"])
    assert_layers_close(found, reference)


@pytest.mark.parametrize("case", ENCODERS)
def test_encoders_compute_what_transformers_computes(case):
    config, variables = weights.load_hf(GOLDEN / case)
    reference = weights.load_safetensors(GOLDEN / case / "reference.safetensors")
    found = outputs(encoder(config), variables, reference)
    assert_layers_close(found, reference)
    if case == "bert_masked_lm":
        assert_close(found["mlm_logits"], reference["logits"], 1e-5, reference["mask"])
    else:
        name = "pooled" if case == "bert" else "logits"
        assert_close(found[name], reference[name], 1e-6)


def test_mobilebert_computes_what_transformers_computes():
    """Trigrams, stacked MLPs, scales in place of norms, and queries and keys behind a bottleneck of their own."""
    config, variables = weights.load_hf(GOLDEN / "mobilebert")
    assert (config["trigram"], config["mlp_blocks"], config["norm"]) == (True, 3, "scale")
    reference = weights.load_safetensors(GOLDEN / "mobilebert" / "reference.safetensors")
    # Without norms the states grow to 17, where float32 differs by more than the tolerance between processors.
    with jax.enable_x64(True):
        found = outputs(encoder(config), in_float64(variables), reference)
    assert_layers_close(found, reference)
    assert_close(found["hidden"][:, 0], reference["pooled"], 1e-5)


def test_a_mobilebert_is_written_under_the_same_names(tmp_path):
    _, variables = weights.load_hf(GOLDEN / "mobilebert")
    weights.save_hf(tmp_path / "copy", variables, weights.load_hf_config(GOLDEN / "mobilebert"))
    written, given = (
        weights.load_safetensors(d / "model.safetensors") for d in (tmp_path / "copy", GOLDEN / "mobilebert")
    )
    assert written.keys() == given.keys()
    for name, array in given.items():
        np.testing.assert_array_equal(written[name], array, err_msg=name)


def test_a_mobilebert_of_another_kind_is_refused():
    hf_config = weights.load_hf_config(GOLDEN / "mobilebert")
    for entry, value in (("use_bottleneck_attention", True), ("normalization_type", "layer_norm")):
        with pytest.raises(ValueError, match=f"config.json, {entry}: expected"):
            weights.hf_mobilebert({**hf_config, entry: value})


def test_a_transposed_square_kernel_would_change_the_logits():
    """The values above would show it; no shape does."""
    config, variables = weights.load_hf(GOLDEN / "gpt2")
    reference = weights.load_safetensors(GOLDEN / "gpt2" / "reference.safetensors")
    out = variables.params["layers"][0]["attention"]["out"]
    out["kernel"] = out["kernel"].T
    found = outputs(decoder(config), variables, reference)["logits"]
    assert np.abs(found - reference["logits"])[reference["mask"]].max() > 0.1


def test_stories_logits_and_greedy_continuation():
    directory = given("JAXKD_STORIES")
    config, variables = weights.load_hf(directory)
    reference = weights.load_safetensors(GOLDEN / "stories.safetensors")
    found = outputs(decoder(config), variables, reference)
    assert_close(found["logits"][..., ::8], reference["logits"], 1e-4)
    tokens = reference["tokens"]
    write = models.generator(
        lambda rngs: models.Decoder(models.DecoderConfig(**config), rngs=rngs),
        prompt=1,
        length=tokens.shape[1] - 1,
        temperature=0.0,
    )
    keys = jax.random.split(jax.random.key(0), 1)
    written = jax.jit(lambda variables, batch: write(variables, batch, keys=keys)["tokens"])
    np.testing.assert_array_equal(written(variables, {"tokens": jnp.asarray(tokens)}), tokens)


def test_minilm_layers_and_sentence_embeddings():
    config, variables = weights.load_hf(given("JAXKD_MINILM"))
    reference = weights.load_safetensors(GOLDEN / "minilm.safetensors")
    found, mask = outputs(encoder(config), variables, reference), reference["mask"]
    for number in range(config["layers"] + 1):
        hidden = found["embedding" if number == 0 else f"hidden{number - 1}"]
        assert_close(hidden[..., ::48], reference["hidden"][number], 1e-5, mask)
    for number in range(config["layers"]):
        attention = found[f"probabilities{number}"][:, ::6], reference["attention"][number]
        assert_close(*(np.moveaxis(x, 1, 2) for x in attention), 1e-5, mask)
    mean = (found["hidden"] * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    assert_close(mean / np.linalg.norm(mean, axis=-1, keepdims=True), reference["embeddings"], 1e-6)
