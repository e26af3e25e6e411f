"""Attention of one layer, all of whose parts can be tapped."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.models._transformer_config import TransformerConfig
from jaxkd.models._transformer_parts import Rotation, Tap, linear, rotate

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

KeysValues = tuple[Any, Any]
"""Keys and values ``[batch, keys, key_value_heads, features]``."""

_LEAST_ROWS, _MOST_BLOCKS = 32, 8  # queries of a block of causal attention, and number of blocks


class Attention(nnx.Module):
    """Scaled dot-product attention with grouped keys and values.

    ``softmax(q kᵀ / √d) v`` for each head. Vaswani et al., "Attention Is All You Need", NeurIPS 2017, equation 1;
    grouped queries: Ainslie et al., "GQA", EMNLP 2023. The submodules ``queries``, ``keys`` and ``values`` ``[batch,
    tokens, heads, features]`` (after rotary positions) and, with ``tap_attention``, ``scores`` and ``probabilities``
    ``[batch, heads, queries, keys]`` are identities.
    """

    def __init__(
        self,
        config: TransformerConfig,
        *,
        source_width: int | None = None,
        value_width: int | None = None,
        causal: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes the layers.

        Args:
          config: sizes and choices.
          source_width: width of what cross-attention attends to.
          value_width: width of what the values are made of, where it is not that of the keys.
          causal: whether ``pairs`` never include a key behind its query, where there are as many of both.
          rngs: random streams of the initial parameters.
        """
        size, source = config.head_features, config.width if source_width is None else source_width
        bias = config.attention_bias
        self.size, self.interleaved, self.causal = size, config.rope_interleaved, causal
        self.query = linear(config, config.width, config.heads * size, bias=bias, rngs=rngs)
        self.key = linear(config, source, config.kv_heads * size, bias=bias, rngs=rngs)
        self.value = linear(config, value_width or source, config.kv_heads * size, bias=bias, rngs=rngs)
        self.out = linear(
            config,
            config.heads * size,
            config.width,
            bias=bias if config.out_bias is None else config.out_bias,
            scale=config.residual_scale,
            rngs=rngs,
        )
        self.queries, self.keys, self.values = Tap(), Tap(), Tap()
        self.scores = Tap() if config.tap_attention else None
        self.probabilities = Tap() if config.tap_attention else None

    def keys_values(
        self,
        x: Float[Array, "batch keys width"],
        turns: Rotation | None = None,
        valued: Float[Array, "batch keys value_width"] | None = None,
    ) -> KeysValues:
        """Returns the keys, turned by their positions, and the values.

        Both are those of the hidden states ``x``; with ``valued``, the values are those of these states.
        """
        keys = rotate(self._split(self.key(x)), turns, interleaved=self.interleaved)
        return self.keys(keys), self.values(self._split(self.value(x if valued is None else valued)))

    def __call__(
        self,
        x: Float[Array, "batch queries width"],
        keys_values: KeysValues,
        pairs: Bool[Array, "#batch 1 #queries keys"] | None,
        turns: Rotation | None = None,
    ) -> Float[Array, "batch queries width"]:
        """Returns what each token reads from the keys that it sees.

        Args:
          x: hidden states of the queries.
          keys_values: those of `keys_values`, or of a cache.
          pairs: True for the pairs to include; None for all. The result is finite, and has no meaning, for a query
            without any key.
          turns: rotary positions of the queries.
        """
        queries = self.queries(rotate(self._split(self.query(x)), turns, interleaved=self.interleaved))
        keys, values = keys_values
        if self.scores is None or self.probabilities is None:
            if self.causal and pairs is not None and queries.shape[1] == keys.shape[1]:
                read = _attend_causal(queries, keys, values, pairs)
            else:
                read = _attend(queries, keys, values, pairs)
        else:
            groups = queries.shape[2] // keys.shape[2]
            keys, values = jnp.repeat(keys, groups, axis=2), jnp.repeat(values, groups, axis=2)
            wide = jnp.promote_types(queries.dtype, jnp.float32)
            scores = jnp.einsum("bqhd,bkhd->bhqk", queries, keys, preferred_element_type=wide) * self.size**-0.5
            scores = self.scores(scores if pairs is None else jnp.where(pairs, scores, -jnp.inf))
            probabilities = self.probabilities(_softmax(scores))
            read = jnp.einsum("bhqk,bkhd->bqhd", probabilities.astype(values.dtype), values)
        return self.out(read.reshape(*x.shape[:2], -1))

    def _split(self, x: Any) -> Any:
        return x.reshape(*x.shape[:2], -1, self.size)


def attention_taps(config: Any, attention: str = "attention", prefix: str = "") -> dict[str, str]:
    """Returns the paths of the taps of each layer's attention.

    Args:
      config: a configuration with ``layers`` and ``tap_attention``.
      attention: name of the attention in its layer.
      prefix: first part of the names.
    """
    names = ("queries", "keys", "values") + (("scores", "probabilities") if config.tap_attention else ())
    return {
        f"{prefix}{name}{number}": f"layers/{number}/{attention}/{name}"
        for number in range(config.layers)
        for name in names
    }


def _attend_causal(queries: Array, keys: Array, values: Array, pairs: Array) -> Array:
    """Returns `_attend` of causal pairs, on a CPU in blocks of queries.

    A block does not compute the scores of the keys behind it, and takes less memory, which a CPU has to map anew in
    each step where it is large.
    """
    tokens = queries.shape[1]
    blocks = min(tokens // _LEAST_ROWS, _MOST_BLOCKS) if jax.default_backend() == "cpu" else 1
    if blocks < 2:
        return _attend(queries, keys, values, pairs)
    ends = [number * tokens // blocks for number in range(blocks + 1)]
    read = [
        _attend(queries[:, start:end], keys[:, :end], values[:, :end], pairs[:, :, start:end, :end])
        for start, end in itertools.pairwise(ends)
    ]
    return jnp.concatenate(read, axis=1)


def _attend(queries: Array, keys: Array, values: Array, pairs: Array | None) -> Array:
    """Returns what `jax.nn.dot_product_attention` does, faster on CPUs.

    On one core it takes a quarter of the time, and with gradients half (32 × 128 tokens, 6 heads of 8 features). The
    axes of both products are in the order in which a CPU multiplies matrices, heads that share their keys are rows of
    one matrix, and the results are divided by the sums of the exponentials, not the exponentials themselves.
    """
    batch, tokens, heads, size = queries.shape
    groups = keys.shape[2]
    wide = jnp.promote_types(queries.dtype, jnp.float32)
    rows = queries.reshape(batch, tokens, groups, -1, size).transpose(0, 2, 3, 1, 4)
    rows = (rows * size**-0.5).reshape(batch, groups, -1, size)
    keys, values = keys.transpose(0, 2, 1, 3), values.transpose(0, 2, 1, 3)
    scores = jnp.einsum("bgqd,bgkd->bgqk", rows, keys, preferred_element_type=wide)
    scores = scores.reshape(batch, groups, -1, tokens, keys.shape[2])
    if pairs is not None:
        scores = jnp.where(pairs[:, :, None], scores, jnp.finfo(wide).min)
    powers = jnp.exp(scores - jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True)))
    total = jnp.sum(powers, axis=-1, keepdims=True)
    flat = powers.astype(values.dtype).reshape(batch, groups, -1, keys.shape[2])
    read = jnp.einsum("bgqk,bgkd->bgqd", flat, values, preferred_element_type=wide)
    read = (read.reshape(batch, groups, -1, tokens, size) / total).astype(values.dtype)
    return read.transpose(0, 3, 1, 2, 4).reshape(batch, tokens, heads, size)


def _softmax(scores: Array) -> Array:
    """Returns the softmax of scores; zeros where all of them are ``-inf``."""
    largest = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True))
    powers = jnp.exp(scores - jnp.where(jnp.isfinite(largest), largest, 0))
    total = jnp.sum(powers, axis=-1, keepdims=True)
    return powers / jnp.where(total > 0, total, 1)
