"""One layer of a transformer, for encoders and decoders."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from flax import nnx

from jaxkd.models._attention import Attention, KeysValues
from jaxkd.models._transformer_config import TransformerConfig
from jaxkd.models._transformer_parts import MLP, Rotation, dropout, norm

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

Memory = Callable[[KeysValues], KeysValues]
"""Keeps the keys and values of the next layer, and returns those to attend to."""


class Block(nnx.Module):
    """An MLP with its norm, of a layer that has several."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs) -> None:
        """Makes both."""
        self.mlp, self.norm = MLP(config, rngs=rngs), norm(config, config.width, rngs=rngs)


class TransformerLayer(nnx.Module):
    """Self-attention, optional cross-attention and MLPs, with residual connections."""

    def __init__(
        self,
        config: TransformerConfig,
        *,
        source_width: int | None = None,
        value_width: int | None = None,
        causal: bool = False,
        rngs: nnx.Rngs,
    ) -> None:
        """Makes the parts.

        Args:
          config: sizes and choices.
          source_width: adds cross-attention to states of that width.
          value_width: width of what the values are made of, where it is not that of the layer.
          causal: whether ``pairs`` never include a key behind its query, where there are as many of both.
          rngs: random streams of the initial parameters.
        """
        self.pre_norm = config.pre_norm
        self.attention_norm = norm(config, config.width, rngs=rngs)
        self.attention = Attention(config, value_width=value_width, causal=causal, rngs=rngs)
        if source_width is not None:
            self.cross_attention_norm = norm(config, config.width, rngs=rngs)
            self.cross_attention = Attention(config, source_width=source_width, rngs=rngs)
        first = [Block(config, rngs=rngs) for _ in range(config.mlp_blocks - 1)]
        self.first_mlps: Any = nnx.List(first) if first else None
        self.mlp_norm = norm(config, config.width, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.attention_dropout, self.mlp_dropout = dropout(config, rngs=rngs), dropout(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        pairs: Bool[Array, "#batch 1 #queries keys"] | None,
        turns: Rotation | None = None,
        memory: Memory | None = None,
        source: tuple[KeysValues, Bool[Array, "batch 1 1 keys"] | None] | None = None,
        read: tuple[Array, Array] | None = None,
    ) -> Float[Array, "batch tokens width"]:
        """Returns the new hidden states.

        Args:
          x: hidden states.
          pairs: True for the pairs (query, key) of self-attention.
          turns: rotary positions.
          memory: keeps this layer's keys and values in a cache, and returns those to attend to.
          source: keys and values of cross-attention, and which of them exist.
          read: what the queries and keys, and what the values of self-attention are made of, in place of ``x``.
        """

        def attend(x: Array) -> Array:
            x, valued = (x, None) if read is None else read
            own = self.attention.keys_values(x, turns, valued)
            return self.attention_dropout(self.attention(x, memory(own) if memory else own, pairs, turns))

        def attend_to_source(x: Array) -> Array:
            assert source is not None
            return self.cross_attention(x, *source)

        x = self._residual(x, self.attention_norm, attend)
        if source is not None:
            x = self._residual(x, self.cross_attention_norm, attend_to_source)
        for mlp, mlp_norm in [*((block.mlp, block.norm) for block in self.first_mlps or ()), (self.mlp, self.mlp_norm)]:
            x = self._residual(x, mlp_norm, functools.partial(self._mlp, mlp))
        return x

    def _mlp(self, mlp: MLP, x: Array) -> Array:
        dropped: Array = self.mlp_dropout(mlp(x))
        return dropped

    def _residual(self, x: Array, norm: nnx.Module, part: Callable[[Array], Array]) -> Array:
        """Returns ``x + part(norm(x))``, or ``norm(x + part(x))`` for post-norm."""
        return x + part(norm(x)) if self.pre_norm else norm(x + part(x))
