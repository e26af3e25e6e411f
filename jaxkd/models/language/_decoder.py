"""A causal language model: Llama, GPT-2 and others by their configuration.

==============================  =====================================  ========================================
tap                             path                                   shape
==============================  =====================================  ========================================
``embedding``                   ``embedded``                           ``[batch, tokens, width]``
``hidden0``, ``hidden1``, …     ``layers/0``, …                        ``[batch, tokens, width]``
``hidden``                      ``hidden``, the input of the head      ``[batch, tokens, width]``
``queries0``, …                 ``layers/0/attention/queries``, …      ``[batch, tokens, heads, features]``
``keys0``, ``values0``, …       ``layers/0/attention/keys``, …         ``[batch, tokens, key_value_heads, features]``
``scores0``, …                  ``layers/0/attention/scores``, …       ``[batch, heads, queries, keys]``
``probabilities0``, …           ``layers/0/attention/probabilities``   ``[batch, heads, queries, keys]``
==============================  =====================================  ========================================

The last two exist with ``tap_attention``.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd._core import checks
from jaxkd.models._transformer_config import TransformerConfig
from jaxkd.models._transformer_parts import Tap, dropout, embedding, linear, norm, rotation
from jaxkd.models.language._cache import Extender, KVCache, Recorder, cache_of
from jaxkd.models.language._layer import Memory, TransformerLayer
from jaxkd.models.language._masks import check_tokens, token_positions, visible

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class DecoderConfig(TransformerConfig):
    """Sizes and choices of a `Decoder`; the defaults are Llama's.

    Llama: Touvron et al., "LLaMA: Open and Efficient Foundation Language Models", 2023. GPT-2: Radford et al.,
    "Language Models are Unsupervised Multitask Learners", 2019, with ``rope_base=None, norm="layer", gated=False,
    activation="gelu_tanh", attention_bias=True, mlp_bias=True, tied=True``.

    >>> DecoderConfig(vocabulary=512, width=64, layers=5, heads=8, key_value_heads=4, mlp_width=172).head_features
    8

    Attributes:
      tied: whether the head is the embedding table; further fields are those of `TransformerConfig`.
    """

    norm: str = "rms"
    activation: str = "silu"
    gated: bool = True
    rope_base: float | None = 10_000.0
    attention_bias: bool = False
    mlp_bias: bool = False
    tied: bool = False


class Source(NamedTuple):
    """Keys and values that cross-attention reads, from `Decoder.read`.

    Attributes:
      keys_values: keys and values of each layer ``[batch, keys, key_value_heads, features]``.
      mask: ``bool[batch, keys]``, True for those that exist; None for all.
    """

    keys_values: tuple[Any, ...]
    mask: Any


class Decoder(nnx.Module):
    """Causal transformer that gives the logits of each next token.

    The embeddings ``embed`` (and learned ``positions``), ``layers``, a ``final_norm`` for pre-norm, and ``lm_head``,
    unless the head is tied to the embeddings. `layer_taps` names what can be tapped.

    >>> config = DecoderConfig(vocabulary=11, width=8, layers=2, heads=4, key_value_heads=2)
    >>> model = Decoder(config, rngs=nnx.Rngs(0))
    >>> model(jnp.array([[1, 2, 3]])).shape
    (1, 3, 11)
    """

    def __init__(self, config: DecoderConfig, *, source_width: int | None = None, rngs: nnx.Rngs) -> None:
        """Makes the layers.

        Args:
          config: sizes and choices.
          source_width: width of the hidden states that cross-attention reads; None for no cross-attention.
          rngs: random streams of the initial parameters (and of dropout).
        """
        self.config, self.reads = config, source_width is not None
        self.embed = embedding(config, config.vocabulary, config.width, rngs=rngs)
        if config.rope_base is None:
            self.positions = embedding(config, config.max_length, config.width, rngs=rngs)
        self.embedded, self.hidden = Tap(), Tap()
        self.embedding_dropout = dropout(config, rngs=rngs)
        self.layers = nnx.List(
            [TransformerLayer(config, source_width=source_width, causal=True, rngs=rngs) for _ in range(config.layers)]
        )
        if config.pre_norm:
            self.final_norm = norm(config, config.width, rngs=rngs)
        if not config.tied:
            self.lm_head = linear(config, config.width, config.vocabulary, bias=False, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        mask: Bool[Array, "batch tokens"] | None = None,
        segments: Int[Array, "batch tokens"] | None = None,
        positions: Int[Array, "batch tokens"] | None = None,
        *,
        cache: KVCache | None = None,
        source: Source | None = None,
    ) -> Any:
        """Returns logits ``[batch, tokens, vocabulary]``; with a cache, also a new cache.

        Args:
          tokens: numbers of words.
          mask: True for tokens that exist. Padding may stand anywhere; no token sees it.
          segments: number of each token's document, for packed sequences: tokens of equal numbers are consecutive and
            see only each other.
          positions: position of each token; by default among the unmasked tokens of its segment.
          cache: keys and values of earlier tokens, from `prefill`. The tokens follow those.
          source: what cross-attention reads, from `read`.

        Raises:
          ValueError: shapes or dtypes do not fit, there are more tokens than learned positions, segments are given
            with a cache, or a source to a decoder without cross-attention, or none to one with it.
        """
        check_tokens(tokens, mask=mask, segments=segments, positions=positions)
        if cache is not None:
            if segments is not None:
                raise ValueError("segments: expected None with a cache, which holds one document of each example.")
            hidden, cache = self._extend(cache, tokens, mask, positions, source)
            return self._logits(hidden), cache
        self._check_length(tokens.shape[1])
        if positions is None:
            positions = token_positions(tokens, mask, segments)
        pairs = visible(tokens, mask, segments, causal=True)
        return self._logits(self._hidden(tokens, mask, positions, pairs, source=source))

    def prefill(
        self,
        tokens: Int[Array, "batch tokens"],
        mask: Bool[Array, "batch tokens"] | None = None,
        *,
        length: int,
        source: Source | None = None,
    ) -> tuple[Float[Array, "batch vocabulary"], KVCache]:
        """Returns the logits of the token after a prompt, and the cache of the prompt.

        Args:
          tokens: prompts.
          mask: True for tokens that exist. Prompts may be padded on either side.
          length: number of tokens that the cache has room for, after the prompt.
          source: what cross-attention reads.

        Raises:
          ValueError: as for a call, or the prompt and the new tokens exceed the learned positions.
        """
        check_tokens(tokens, mask=mask)
        slots = tokens.shape[1] + length
        self._check_length(slots)
        recorder = Recorder(slots)
        # The comparison makes a mask that varies over the devices of shard_map like the tokens.
        exists = tokens == tokens if mask is None else mask
        pairs = visible(tokens, mask, None, causal=True)
        hidden = self._hidden(tokens, mask, token_positions(tokens, mask), pairs, recorder, source)
        last = tokens.shape[1] - 1 - jnp.argmax(exists[:, ::-1], axis=1)
        logits = self._logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1))[:, 0]
        filled = jnp.pad(exists, ((0, 0), (0, length)))
        return logits, cache_of(recorder.kept, filled, jnp.int32(tokens.shape[1]))

    def next_logits(
        self,
        cache: KVCache,
        tokens: Int[Array, " batch"],
        mask: Bool[Array, " batch"] | None = None,
        *,
        source: Source | None = None,
    ) -> tuple[Float[Array, "batch vocabulary"], KVCache]:
        """Returns the logits after one more token of each example, and the new cache."""
        logits, cache = self(tokens[:, None], None if mask is None else mask[:, None], cache=cache, source=source)
        return logits[:, 0], cache

    def read(
        self, hidden: Float[Array, "batch keys source_width"], mask: Bool[Array, "batch keys"] | None = None
    ) -> Source:
        """Returns the keys and values of hidden states that cross-attention reads."""
        return Source(tuple(layer.cross_attention.keys_values(hidden) for layer in self.layers), mask)

    def _extend(
        self, cache: KVCache, tokens: Array, mask: Array | None, positions: Array | None, source: Source | None
    ) -> tuple[Any, Any]:
        """Returns the hidden states of tokens after those of a cache, and the new cache."""
        slots, size = cache.mask.shape[1], tokens.shape[1]
        exists = tokens == tokens if mask is None else mask
        if positions is None:
            earlier = jnp.sum(cache.mask, axis=1, keepdims=True, dtype=jnp.int32)
            positions = earlier + token_positions(tokens, mask)
        filled = jax.lax.dynamic_update_slice(cache.mask, exists, (0, cache.size))
        order = jnp.arange(slots)[None, :] <= cache.size + jnp.arange(size)[:, None]
        pairs = filled[:, None, None, :] & order[None, None]
        extender = Extender(cache)
        hidden = self._hidden(tokens, mask, positions, pairs, extender, source)
        # Past the last slot, XLA would overwrite the latest ones.
        hidden = jnp.where(cache.size + size <= slots, hidden, jnp.nan)
        return hidden, cache_of(extender.kept, filled, cache.size + size)

    def _hidden(
        self,
        tokens: Array,
        mask: Array | None,
        positions: Array,
        pairs: Array | None,
        memory: Memory | None = None,
        source: Source | None = None,
    ) -> Array:
        """Returns the inputs of the head."""
        if self.reads != (source is not None):
            raise ValueError(
                f"source: expected {'a Source, from Decoder.read' if self.reads else 'None'}, since this Decoder has "
                f"{'' if self.reads else 'no '}cross-attention, got {checks.kind(source)}."
            )
        # A masked token may have any number; one beyond the vocabulary would have an embedding of NaN.
        x = self.embed(tokens if mask is None else jnp.where(mask, tokens, 0))
        if self.config.rope_base is None:
            x = x + self.positions(positions)
        x = self.embedding_dropout(self.embedded(x))
        turns = rotation(positions, self.config)
        exists = source.mask[:, None, None, :] if source is not None and source.mask is not None else None
        for number, layer in enumerate(self.layers):
            x = layer(x, pairs, turns, memory, source and (source.keys_values[number], exists))
        return self.hidden(self.final_norm(x) if self.config.pre_norm else x)

    def _logits(self, hidden: Array) -> Array:
        return self.embed.attend(hidden) if self.config.tied else self.lm_head(hidden)

    def _check_length(self, length: int) -> None:
        if self.config.rope_base is None and length > self.config.max_length:
            raise ValueError(
                f"Decoder: expected at most max_length={self.config.max_length} tokens, for which it has learned "
                f"positions, got {length}."
            )
