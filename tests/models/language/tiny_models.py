"""Small language models of every form, and sequences for them."""

from typing import Any

import jax
import numpy as np
from flax import nnx

from jaxkd import adapters
from jaxkd.models import Decoder, DecoderConfig

SIZES: dict[str, Any] = {"vocabulary": 13, "width": 8, "layers": 2, "heads": 4, "mlp_width": 12}
CONFIGS = {
    "llama": DecoderConfig(**SIZES, key_value_heads=2),
    "llama, interleaved, heads of another size": DecoderConfig(**SIZES, rope_interleaved=True, head_dim=6, tied=True),
    "gpt2": DecoderConfig(
        **SIZES,
        max_length=32,
        norm="layer",
        activation="gelu_tanh",
        gated=False,
        rope_base=None,
        attention_bias=True,
        mlp_bias=True,
        tied=True,
    ),
    "post-norm": DecoderConfig(**SIZES, norm="layer", pre_norm=False, activation="gelu", gated=False, rope_base=None),
}


call = nnx.jit(lambda model, *inputs, **options: model(*inputs, **options))
prefill = nnx.jit(lambda model, *inputs, length: model.prefill(*inputs, length=length), static_argnames="length")
next_logits = nnx.jit(lambda model, *inputs: model.next_logits(*inputs))


def build(config, kind=Decoder):
    """Returns a model whose parameters are all random, norms and biases included."""
    model = kind(config, rngs=nnx.Rngs(0))
    randomize(model)
    return model


def randomize(model, scale=0.3):
    rng = np.random.default_rng(0)
    state = nnx.state(model, nnx.Param)
    nnx.update(model, jax.tree.map(lambda x: x + scale * rng.normal(size=x.shape).astype(x.dtype), state))


def params_of(model):
    """Returns the parameters in float64, as nested dicts."""
    return jax.tree.map(lambda x: np.asarray(x, np.float64), adapters.variables(model).params)


def tokens_of(*shape, seed=1):
    return np.random.default_rng(seed).integers(0, SIZES["vocabulary"], shape).astype(np.int32)
