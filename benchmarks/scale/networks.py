"""The two networks as shapes, and the FLOPs of their products."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

import jaxkd
from jaxkd import models

TOKENS, WORDS, SEQUENCE = 10**11, 128_256, 4096


class Size(NamedTuple):
    """Sizes of a Llama."""

    width: int
    layers: int
    heads: int
    key_value_heads: int
    mlp_width: int
    tied: bool

    def config(self, layers: int | None = None) -> models.DecoderConfig:
        return models.DecoderConfig(
            **(self._asdict() | {"layers": layers or self.layers}), vocabulary=WORDS, dtype=jnp.bfloat16
        )


TEACHER = Size(4096, 32, 32, 8, 11_008, False)
STUDENT = Size(2048, 16, 32, 8, 8_192, True)


def model(config: models.DecoderConfig) -> jaxkd.Model:
    return jaxkd.adapters.nnx(
        lambda rngs: models.Decoder(config, rngs=rngs), taps={"hidden": "hidden"}, inputs=models.token_inputs
    )


def variables(config: models.DecoderConfig, dtype: Any = None) -> Any:
    """Returns the shapes of a network's variables."""
    short = {"tokens": jax.ShapeDtypeStruct((1, 8), jnp.int32)}
    shapes = jax.eval_shape(model(config).init, jax.random.key(0), short)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype or x.dtype), shapes)


def size(tree: Any) -> int:
    return sum(math.prod(x.shape) for x in jax.tree.leaves(tree))


def parameters(size_of: Size) -> int:
    """Returns the number of a network's parameters, from networks of one and two layers."""
    one, two = (size(variables(size_of.config(layers)).params) for layers in (1, 2))
    return one + (size_of.layers - 1) * (two - one)


def forward_flops(size: Size, sequence: int) -> dict[str, float]:
    """Returns the FLOPs of the products of a forward pass for one token, head and layers apart.

    A product of n parameters has 2n. Causal attention reads half of the sequence on average, in two products.
    """
    head = size.width // size.heads
    kernels = size.width * (2 * size.heads + 2 * size.key_value_heads) * head + 3 * size.width * size.mlp_width
    attention = 2 * 2 * size.heads * head * sequence / 2
    return {"layers": size.layers * (2.0 * kernels + attention), "head": 2.0 * size.width * WORDS}


def networks() -> dict[str, Any]:
    """Returns parameters and FLOPs of a token."""
    rows = {}
    for name, each in (("teacher", TEACHER), ("student", STUDENT)):
        flops = forward_flops(each, SEQUENCE)
        rows[name] = {**each._asdict(), "parameters": parameters(each), "forward_flops": flops}
    return rows
