"""One layer of a transformer, for encoders and decoders."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from flax import nnx

from jaxkd.models.language._attention import Attention, KeysValues
from jaxkd.models.language._config import TransformerConfig
from jaxkd.models.language._parts import MLP, Rotation, dropout, norm

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

Memory = Callable[[KeysValues], KeysValues]
"""Keeps the keys and values of the next layer, and returns those to attend to."""


class TransformerLayer(nnx.Module):
    """Self-attention, optional cross-attention and an MLP, with residual connections."""

    def __init__(
        self, config: TransformerConfig, *, source_width: int | None = None, causal: bool = False, rngs: nnx.Rngs
    ) -> None:
        """Makes the parts; ``source_width`` adds cross-attention to states of that width."""
        self.pre_norm = config.pre_norm
        self.attention_norm = norm(config, config.width, rngs=rngs)
        self.attention = Attention(config, causal=causal, rngs=rngs)
        if source_width is not None:
            self.cross_attention_norm = norm(config, config.width, rngs=rngs)
            self.cross_attention = Attention(config, source_width=source_width, rngs=rngs)
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
    ) -> Float[Array, "batch tokens width"]:
        """Returns the new hidden states.

        Args:
          x: hidden states.
          pairs: True for the pairs (query, key) of self-attention.
          turns: rotary positions.
          memory: keeps this layer's keys and values in a cache, and returns those to attend to.
          source: keys and values of cross-attention, and which of them exist.
        """

        def attend(x: Array) -> Array:
            own = self.attention.keys_values(x, turns)
            return self.attention_dropout(self.attention(x, memory(own) if memory else own, pairs, turns))

        def attend_to_source(x: Array) -> Array:
            assert source is not None
            return self.cross_attention(x, *source)

        x = self._residual(x, self.attention_norm, attend)
        if source is not None:
            x = self._residual(x, self.cross_attention_norm, attend_to_source)
        return self._residual(x, self.mlp_norm, lambda x: self.mlp_dropout(self.mlp(x)))

    def _residual(self, x: Array, norm: nnx.Module, part: Callable[[Array], Array]) -> Array:
        """Returns ``x + part(norm(x))``, or ``norm(x + part(x))`` for post-norm."""
        return x + part(norm(x)) if self.pre_norm else norm(x + part(x))
