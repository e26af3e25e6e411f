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
DECODERS = ("gpt2", "gpt2_untied", "llama_untied", "llama_tied")


def given(variable):
    """Returns the directory of a pretrained model, or skips the test."""
    if variable not in os.environ:
        pytest.skip(f"needs a pretrained model: set {variable} to the directory with its config.json")
    return pathlib.Path(os.environ[variable])


def decoder(config):
    """Returns a decoder with every tap, of the configuration that `load_hf` gives."""
    config = models.DecoderConfig(**config, tap_attention=True)
    return adapters.nnx(
        lambda rngs: models.Decoder(config, rngs=rngs), taps=models.layer_taps(config), inputs=models.token_inputs
    )


def outputs(model, variables, reference):
    batch = {"tokens": jnp.asarray(reference["tokens"])}
    for entry, name in (("token_mask", "mask"), ("types", "types")):
        if name in reference:
            batch[entry] = jnp.asarray(reference[name])
    apply = jax.jit(lambda variables, batch: model.apply(variables, batch, key=None, train=False)[0])
    return {name: np.asarray(value) for name, value in apply(variables, batch).items()}


def assert_close(found, wanted, tolerance, mask=None):
    """Compares outputs ``[batch, tokens, …]`` at the tokens that exist."""
    found, wanted = (x if mask is None else x[mask] for x in (found, wanted))
    np.testing.assert_allclose(found, wanted, rtol=0, atol=tolerance)


@pytest.mark.parametrize("case", DECODERS)
def test_decoders_compute_what_transformers_computes(case):
    config, variables = weights.load_hf(GOLDEN / case)
    reference = weights.load_safetensors(GOLDEN / case / "reference.safetensors")
    found, mask = outputs(decoder(config), variables, reference), reference["mask"]
    assert_close(found["logits"], reference["logits"], 1e-5, mask)
    # Transformers' last hidden state is the input of the head, after the final norm.
    for number, name in enumerate(("embedding", "hidden0", "hidden")):
        assert_close(found[name], reference[f"hidden{number}"], 1e-5, mask)
    for number in range(2):
        attention = [np.moveaxis(x, 1, 2) for x in (found[f"probabilities{number}"], reference[f"attention{number}"])]
        assert_close(*attention, 1e-6, mask)


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
