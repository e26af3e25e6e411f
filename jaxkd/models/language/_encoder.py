"""A bidirectional encoder: BERT, its pre-norm form, and MobileBERT's bottleneck.

The taps are those of a `Decoder` without ``hidden``, which is an output, and ``embedding`` is after the norm.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from jaxkd.models._transformer_config import ACTIVATIONS, TransformerConfig
from jaxkd.models._transformer_parts import dropout, embedding, linear, mean_over_tokens, norm, rotation
from jaxkd.models.language._layer import TransformerLayer
from jaxkd.models.language._masks import check_tokens, token_positions, visible

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


@dataclasses.dataclass(frozen=True, kw_only=True)
class EncoderConfig(TransformerConfig):
    """Sizes and choices of an `Encoder`; the defaults are BERT's.

    BERT: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", NAACL 2019.
    Bottleneck: Sun et al., "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices", ACL 2020, figure 1:
    layers of ``bottleneck_width`` between hidden states of ``width``, which may be as wide as the teacher's. MobileBERT
    itself has ``trigram``, ``shared_bottleneck``, ``norm="scale"``, four ``mlp_blocks`` and ``activation="relu"``.

    >>> EncoderConfig(vocabulary=30522, width=384, layers=6, heads=12).mlp_features
    1536

    Attributes:
      types: number of token types, such as first and second sentence; 0 for none.
      embedding_width: width of the embeddings of words, which ``embed/projection`` maps to ``width``.
      trigram: whether it maps those of the next, the own and the previous word together. Of a neighbor that is
        padding, or of another segment, there are zeros.
      bottleneck_width: width inside of the layers; None for ``width``, without a bottleneck.
      shared_bottleneck: whether queries and keys have a map into the layer of their own (``bottleneck/shared``), and
        the values are made of the wide hidden states.
      pooler: whether ``pooled`` is ``tanh`` of a linear layer of the first token (BERT), instead of the mean.
      mlm: whether there is a masked-language-model head, tied to the words.
      classes: number of logits of a classifier of ``pooled``; None for no classifier. Further fields are those of
        `TransformerConfig`.
    """

    max_length: int = 512
    norm_epsilon: float = 1e-12
    pre_norm: bool = False
    types: int = 2
    embedding_width: int | None = None
    trigram: bool = False
    bottleneck_width: int | None = None
    shared_bottleneck: bool = False
    pooler: bool = False
    mlm: bool = False
    classes: int | None = None

    def __post_init__(self) -> None:
        """Raises a ValueError unless the fields fit each other."""
        super().__post_init__()
        if self.shared_bottleneck and (self.bottleneck_width is None or self.pre_norm):
            raise ValueError(
                "EncoderConfig, shared_bottleneck: expected a bottleneck_width, and pre_norm=False, got "
                f"{self.bottleneck_width} and {self.pre_norm}."
            )

    def kernel_init(self, scale: float = 1.0) -> Any:
        """Returns a normal initializer truncated at two deviations, as in BERT's code."""
        return nnx.initializers.truncated_normal(self.init_scale * scale)

    @property
    def inner(self) -> EncoderConfig:
        """Configuration of a layer inside of its bottleneck."""
        return self if self.bottleneck_width is None else dataclasses.replace(self, width=self.bottleneck_width)


class Encoder(nnx.Module):
    """Bidirectional transformer, with optional pooler, classifier and MLM head.

    The parameters are in ``embed``, ``layers``, for pre-norm ``final_norm``, and the optional ``pooler``, ``mlm`` and
    ``classifier``. `layer_taps` names what can be tapped.

    >>> config = EncoderConfig(vocabulary=11, width=8, layers=2, heads=4, classes=3)
    >>> out = Encoder(config, rngs=nnx.Rngs(0))(jnp.array([[1, 2, 3]]))
    >>> {name: value.shape for name, value in out.items()}
    {'hidden': (1, 3, 8), 'pooled': (1, 8), 'logits': (1, 3)}
    """

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the layers.

        Args:
          config: sizes and choices.
          rngs: random streams of the initial parameters (and of dropout).
        """
        self.config = config
        self.embed = EncoderEmbedding(config, rngs=rngs)
        kind = TransformerLayer if config.bottleneck_width is None else BottleneckLayer
        self.layers = nnx.List([kind(config, rngs=rngs) for _ in range(config.layers)])
        if config.pre_norm:
            self.final_norm = norm(config, config.width, rngs=rngs)
        if config.pooler:
            self.pooler = linear(config, config.width, config.width, bias=True, rngs=rngs)
        if config.mlm:
            self.mlm = MaskedLanguageHead(config, rngs=rngs)
        if config.classes is not None:
            self.classifier_dropout = dropout(config, rngs=rngs)
            self.classifier = linear(config, config.width, config.classes, bias=True, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        mask: Bool[Array, "batch tokens"] | None = None,
        segments: Int[Array, "batch tokens"] | None = None,
        positions: Int[Array, "batch tokens"] | None = None,
        types: Int[Array, "batch tokens"] | None = None,
    ) -> dict[str, Any]:
        """Returns the outputs by name.

        Args:
          tokens: numbers of words.
          mask: True for tokens that exist. Padding may stand anywhere; no token sees it.
          segments: number of each token's document, for packed sequences: tokens of equal numbers are consecutive and
            see only each other.
          positions: position of each token; by default among the unmasked tokens of its segment.
          types: type of each token, by default 0.

        Returns:
          ``hidden`` ``[batch, tokens, width]``; ``pooled`` ``[batch, width]``, of the first token with a pooler, else
          the mean over the unmasked tokens; ``logits`` ``[batch, classes]`` with a classifier; and ``mlm_logits``
          ``[batch, tokens, vocabulary]`` with that head.

        Raises:
          ValueError: shapes or dtypes do not fit, or there are more tokens than learned positions.
        """
        config = self.config
        check_tokens(tokens, mask=mask, segments=segments, positions=positions, types=types)
        if config.rope_base is None and tokens.shape[1] > config.max_length:
            raise ValueError(
                f"Encoder: expected at most max_length={config.max_length} tokens, for which it has learned positions, "
                f"got {tokens.shape[1]}."
            )
        if types is not None and not config.types:
            raise ValueError("types: expected None for an Encoder without types (types=0).")
        if positions is None:
            positions = token_positions(tokens, mask, segments)
        near = adjacent(tokens, mask, segments) if config.trigram else None
        x = self.embed(tokens if mask is None else jnp.where(mask, tokens, 0), positions, types, near)
        pairs, turns = visible(tokens, mask, segments, causal=False), rotation(positions, config.inner)
        for layer in self.layers:
            x = layer(x, pairs, turns)
        hidden = self.final_norm(x) if config.pre_norm else x
        pooled = jnp.tanh(self.pooler(hidden[:, 0])) if config.pooler else mean_over_tokens(hidden, mask)
        out = {"hidden": hidden, "pooled": pooled}
        if config.classes is not None:
            out["logits"] = self.classifier(self.classifier_dropout(pooled))
        if config.mlm:
            out["mlm_logits"] = self.mlm(hidden, self.embed.words)
        return out


class EncoderEmbedding(nnx.Module):
    """Sum of the embeddings of words, positions and types, normalized."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the tables."""
        words = config.width if config.embedding_width is None else config.embedding_width
        self.words = embedding(config, config.vocabulary, words, rngs=rngs)
        wide, learned = words == config.width and not config.trigram, config.rope_base is None
        inputs = 3 * words if config.trigram else words
        self.projection = None if wide else linear(config, inputs, config.width, bias=True, rngs=rngs)
        self.positions = embedding(config, config.max_length, config.width, rngs=rngs) if learned else None
        self.types = embedding(config, config.types, config.width, rngs=rngs) if config.types else None
        self.norm = norm(config, config.width, rngs=rngs)
        self.dropout = dropout(config, rngs=rngs)

    def __call__(
        self, tokens: Int[Array, "batch tokens"], positions: Int[Array, "batch tokens"], types: Any, near: Any = None
    ) -> Float[Array, "batch tokens width"]:
        """Returns the inputs of the first layer.

        ``near`` is True where a token and the next are neighbors, whose words are read together; None for single words.
        """
        x = self.words(tokens)
        if near is not None:
            following, previous = (jnp.where(near[..., None], part, 0) for part in (x[:, 1:], x[:, :-1]))
            following, previous = (
                jnp.pad(part, ((0, 0), ends, (0, 0))) for part, ends in ((following, (0, 1)), (previous, (1, 0)))
            )
            x = jnp.concatenate([following, x, previous], axis=-1)
        if self.projection is not None:
            x = self.projection(x)
        if self.positions is not None:
            x = x + self.positions(positions)
        if self.types is not None:
            x = x + self.types(jnp.zeros_like(tokens) if types is None else types)
        return self.dropout(self.norm(x))


class Bottleneck(nnx.Module):
    """Linear maps into a narrow layer and out of it, each with a norm."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the maps."""
        wide, narrow = config.width, config.inner.width
        self.input = linear(config, wide, narrow, bias=True, rngs=rngs)
        self.input_norm = norm(config, narrow, rngs=rngs)
        shared = config.shared_bottleneck
        self.shared = linear(config, wide, narrow, bias=True, rngs=rngs) if shared else None
        self.shared_norm = norm(config, narrow, rngs=rngs) if shared else None
        self.output = linear(config, narrow, wide, bias=True, scale=config.residual_scale, rngs=rngs)
        self.output_norm = norm(config, wide, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch tokens width"], part: Callable[[Any], Any]
    ) -> Float[Array, "batch tokens width"]:
        """Returns ``norm(x + output(part(norm(input(x)))))``."""
        return self.output_norm(x + self.output(part(self.input_norm(self.input(x)))))

    def read(self, x: Float[Array, "batch tokens width"]) -> tuple[Array, Array] | None:
        """Returns the inputs of queries and keys, and of values.

        None stands for the narrow states, which all of them are made of without a shared bottleneck.
        """
        return None if self.shared is None or self.shared_norm is None else (self.shared_norm(self.shared(x)), x)


class BottleneckLayer(TransformerLayer):
    """Layer of a transformer inside of a bottleneck."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the narrow layer and its bottleneck."""
        super().__init__(config.inner, value_width=config.width if config.shared_bottleneck else None, rngs=rngs)
        self.bottleneck = Bottleneck(config, rngs=rngs)

    def __call__(
        self, x: Any, pairs: Any, turns: Any = None, memory: Any = None, source: Any = None, read: Any = None
    ) -> Any:
        """Returns the new hidden states; the arguments are those of `TransformerLayer`."""
        inner = super().__call__
        read = self.bottleneck.read(x) if read is None else read
        return self.bottleneck(x, lambda x: inner(x, pairs, turns, memory, source, read))


class MaskedLanguageHead(nnx.Module):
    """Logits ``norm(activation(dense(hidden))) @ words.T + bias`` of each token."""

    def __init__(self, config: EncoderConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the layers; the words are those of the embedding."""
        words = config.width if config.embedding_width is None else config.embedding_width
        self.activation = config.activation
        self.dense = linear(config, config.width, words, bias=True, rngs=rngs)
        self.norm = norm(config, words, rngs=rngs)
        self.bias = nnx.Param(jnp.zeros(config.vocabulary))

    def __call__(self, hidden: Float[Array, "batch tokens width"], words: nnx.Embed) -> Array:
        """Returns the logits ``[batch, tokens, vocabulary]``."""
        logits = words.attend(self.norm(ACTIVATIONS[self.activation](self.dense(hidden))))
        return logits + self.bias[None, None, :].astype(logits.dtype)


def adjacent(tokens: Int[Array, "batch tokens"], mask: Any, segments: Any) -> Bool[Array, "batch tokens_minus_1"]:
    """Returns True where a token and the next exist and belong to one segment.

    >>> adjacent(jnp.zeros((1, 4), int), jnp.array([[True, True, True, False]]), jnp.array([[0, 0, 1, 1]]))
    Array([[ True, False, False]], dtype=bool)
    """
    near = jnp.ones((tokens.shape[0], tokens.shape[1] - 1), bool)
    if mask is not None:
        near &= mask[:, 1:] & mask[:, :-1]
    return near if segments is None else near & (segments[:, 1:] == segments[:, :-1])
