"""An encoder and a decoder that reads it, for sequences to sequences."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

from flax import nnx

from jaxkd.models.language._decoder import Decoder, DecoderConfig
from jaxkd.models.language._encoder import Encoder, EncoderConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderDecoderConfig:
    """Sizes and choices of an `EncoderDecoder`.

    Attributes:
      encoder: those of the encoder.
      decoder: those of the decoder, which has a vocabulary of its own.
    """

    encoder: EncoderConfig
    decoder: DecoderConfig


class EncoderDecoder(nnx.Module):
    """Transformer from sequences to sequences: ``encoder`` and ``decoder``.

    Vaswani et al., "Attention Is All You Need", NeurIPS 2017. `generate` and `beam_search` use it as they use a
    `Decoder`.

    >>> import jax.numpy as jnp
    >>> from jaxkd.models import generate
    >>> sizes = {"width": 8, "layers": 1, "heads": 2}
    >>> encoder, decoder = EncoderConfig(vocabulary=7, **sizes), DecoderConfig(vocabulary=9, **sizes)
    >>> model = EncoderDecoder(EncoderDecoderConfig(encoder=encoder, decoder=decoder), rngs=nnx.Rngs(0))
    >>> source, start = jnp.array([[1, 2, 3]]), jnp.array([[0]])
    >>> generate(model.next_logits, model.prefill(source, start, length=4), length=4, temperature=0.0).tokens.shape
    (1, 4)
    """

    def __init__(self, config: EncoderDecoderConfig, *, rngs: nnx.Rngs) -> None:
        """Makes both.

        Args:
          config: sizes and choices.
          rngs: random streams of the initial parameters (and of dropout).
        """
        self.config = config
        self.encoder = Encoder(config.encoder, rngs=rngs)
        self.decoder = Decoder(config.decoder, source_width=config.encoder.width, rngs=rngs)

    def __call__(
        self,
        source: Int[Array, "batch source"],
        tokens: Int[Array, "batch tokens"],
        source_mask: Bool[Array, "batch source"] | None = None,
        mask: Bool[Array, "batch tokens"] | None = None,
    ) -> Any:
        """Returns logits ``[batch, tokens, vocabulary]`` of each next token.

        Args:
          source: numbers of the words that are read.
          tokens: numbers of the words that are written, after a start token.
          source_mask: True for words of the source that exist.
          mask: True for tokens that exist.

        Raises:
          ValueError: as for an `Encoder` and a `Decoder`.
        """
        return self.decoder(tokens, mask, source=self._read(source, source_mask))

    def prefill(
        self,
        source: Int[Array, "batch source"],
        tokens: Int[Array, "batch tokens"],
        source_mask: Bool[Array, "batch source"] | None = None,
        mask: Bool[Array, "batch tokens"] | None = None,
        *,
        length: int,
    ) -> tuple[Any, Any]:
        """Returns the logits after the first tokens, and the state: cache and source.

        Args:
          source: numbers of the words that are read.
          tokens: the first tokens, such as one start token.
          source_mask: True for words of the source that exist.
          mask: True for first tokens that exist.
          length: number of tokens to generate.

        Raises:
          ValueError: as for a call.
        """
        read = self._read(source, source_mask)
        logits, cache = self.decoder.prefill(tokens, mask, length=length, source=read)
        return logits, (cache, read)

    def next_logits(
        self, state: Any, tokens: Int[Array, " batch"], mask: Bool[Array, " batch"] | None = None
    ) -> tuple[Any, Any]:
        """Returns the logits after one more token of each example, and the new state."""
        cache, read = state
        logits, cache = self.decoder.next_logits(cache, tokens, mask, source=read)
        return logits, (cache, read)

    def _read(self, source: Any, source_mask: Any) -> Any:
        return self.decoder.read(self.encoder(source, source_mask)["hidden"], source_mask)
