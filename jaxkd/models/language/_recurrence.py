"""A language model of gated linear recurrences, whose state has a fixed size.

The taps are ``embedding``, ``hidden0``, ``hidden1``, … and ``hidden``, as of a `Decoder`, and each layer's states,
``states0``, …, ``[batch, tokens, state]``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.models._transformer_config import TransformerConfig
from jaxkd.models._transformer_parts import MLP, Tap, dropout, embedding, linear, norm
from jaxkd.models.language._masks import check_tokens, segment_starts

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

_SHARPNESS = 8.0  # the paper's c


@dataclasses.dataclass(frozen=True, kw_only=True)
class RecurrenceConfig(TransformerConfig):
    """Sizes and choices of a `GatedRecurrence`.

    Attributes:
      state_width: features of a layer's state; by default ``width``.
      tied: whether the head is the embedding table; further fields are those of `TransformerConfig`, of which those of
        attention and of positions have no effect.
    """

    heads: int = 1
    norm: str = "rms"
    gated: bool = True
    mlp_bias: bool = False
    state_width: int | None = None
    tied: bool = False


class GatedRecurrence(nnx.Module):
    """Causal language model whose layers are gated linear recurrences and MLPs.

    Also known as: RG-LRU (real-gated linear recurrent unit), Hawk.

    ``h_t = a_t ⊙ h_{t−1} + √(1 − a_t²) ⊙ (i_t ⊙ x_t)`` with ``a_t = σ(Λ)^(c r_t)``, ``r_t = σ(W_r x_t)``, ``i_t = σ(W_i
    x_t)`` and c = 8. De et al., "Griffin: Mixing Gated Linear Recurrences with Local Attention for Efficient Language
    Models", 2024, equations 1 to 4; here without the short convolution before the recurrence.

    >>> config = RecurrenceConfig(vocabulary=11, width=8, layers=2)
    >>> GatedRecurrence(config, rngs=nnx.Rngs(0))(jnp.array([[1, 2, 3]])).shape
    (1, 3, 11)
    """

    def __init__(self, config: RecurrenceConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the layers.

        Args:
          config: sizes and choices.
          rngs: random streams of the initial parameters (and of dropout).
        """
        self.config = config
        self.embed = embedding(config, config.vocabulary, config.width, rngs=rngs)
        self.embedded, self.hidden = Tap(), Tap()
        self.embedding_dropout = dropout(config, rngs=rngs)
        self.layers = nnx.List([RecurrentLayer(config, rngs=rngs) for _ in range(config.layers)])
        self.final_norm = norm(config, config.width, rngs=rngs)
        if not config.tied:
            self.lm_head = linear(config, config.width, config.vocabulary, bias=False, rngs=rngs)

    def __call__(
        self,
        tokens: Int[Array, "batch tokens"],
        mask: Bool[Array, "batch tokens"] | None = None,
        segments: Int[Array, "batch tokens"] | None = None,
        positions: Int[Array, "batch tokens"] | None = None,
    ) -> Float[Array, "batch tokens vocabulary"]:
        """Returns logits ``[batch, tokens, vocabulary]``.

        Args:
          tokens: numbers of words.
          mask: True for tokens that exist. Padding may stand anywhere; it leaves the state unchanged.
          segments: number of each token's document; the state is reset where it changes.
          positions: not used, since the state knows the order; accepted so that `token_inputs` fits every model.

        Raises:
          ValueError: shapes or dtypes do not fit.
        """
        del positions
        check_tokens(tokens, mask=mask, segments=segments)
        return self._logits(self._hidden(tokens, mask, segments)[0])

    def prefill(
        self, tokens: Int[Array, "batch tokens"], mask: Bool[Array, "batch tokens"] | None = None, *, length: int
    ) -> tuple[Float[Array, "batch vocabulary"], tuple[Any, ...]]:
        """Returns the logits after a prompt, and each layer's state ``[batch, state]``.

        Args:
          tokens: prompts.
          mask: True for tokens that exist. Prompts may be padded on either side.
          length: not used, since a state has one size; accepted as by `Decoder.prefill`.

        Raises:
          ValueError: as for a call.
        """
        del length
        check_tokens(tokens, mask=mask)
        hidden, states = self._hidden(tokens, mask, None)
        exists = jnp.ones(tokens.shape, bool) if mask is None else mask
        last = tokens.shape[1] - 1 - jnp.argmax(exists[:, ::-1], axis=1)
        return self._logits(jnp.take_along_axis(hidden, last[:, None, None], axis=1))[:, 0], states

    def next_logits(
        self, states: tuple[Any, ...], tokens: Int[Array, " batch"], mask: Bool[Array, " batch"] | None = None
    ) -> tuple[Float[Array, "batch vocabulary"], tuple[Any, ...]]:
        """Returns the logits after one more token of each example, and the new states."""
        hidden, states = self._hidden(tokens[:, None], None if mask is None else mask[:, None], None, states)
        return self._logits(hidden)[:, 0], states

    def _hidden(
        self, tokens: Array, mask: Array | None, segments: Array | None, states: tuple[Any, ...] | None = None
    ) -> tuple[Array, tuple[Any, ...]]:
        """Returns the inputs of the head, and the last states of the layers."""
        x = self.embed(tokens if mask is None else jnp.where(mask, tokens, 0))
        x = self.embedding_dropout(self.embedded(x))
        starts = None if segments is None else segment_starts(segments)
        last: list[Array] = []
        for number, layer in enumerate(self.layers):
            x = layer(x, mask, starts, None if states is None else states[number], last.append)
        return self.hidden(self.final_norm(x)), tuple(last)

    def _logits(self, hidden: Array) -> Array:
        return self.embed.attend(hidden) if self.config.tied else self.lm_head(hidden)


class RecurrentLayer(nnx.Module):
    """A gated linear recurrence and an MLP, with norms and residual connections."""

    def __init__(self, config: RecurrenceConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the parts."""
        self.recurrence_norm = norm(config, config.width, rngs=rngs)
        self.recurrence = Recurrence(config, rngs=rngs)
        self.mlp_norm = norm(config, config.width, rngs=rngs)
        self.mlp = MLP(config, rngs=rngs)
        self.recurrence_dropout, self.mlp_dropout = dropout(config, rngs=rngs), dropout(config, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        mask: Bool[Array, "batch tokens"] | None,
        starts: Bool[Array, "batch tokens"] | None,
        state: Float[Array, "batch state"] | None,
        keep: Callable[[Any], None],
    ) -> Float[Array, "batch tokens width"]:
        """Returns the new hidden states; the arguments are those of `Recurrence`."""
        x = x + self.recurrence_dropout(self.recurrence(self.recurrence_norm(x), mask, starts, state, keep))
        return x + self.mlp_dropout(self.mlp(self.mlp_norm(x)))


class Recurrence(nnx.Module):
    """Gated linear recurrence, multiplied by a gate of its input."""

    def __init__(self, config: RecurrenceConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the layers; ``decay`` is Λ."""
        width, size = config.width, config.state_width or config.width
        self.input = linear(config, width, size, bias=False, rngs=rngs)
        self.gate = linear(config, width, size, bias=False, rngs=rngs)
        self.input_gate = linear(config, size, size, bias=True, rngs=rngs)
        self.recurrence_gate = linear(config, size, size, bias=True, rngs=rngs)
        self.out = linear(config, size, width, bias=False, scale=config.residual_scale, rngs=rngs)
        # The paper draws a^c uniformly between 0.9 and 0.999, section 2.4.
        power = jax.random.uniform(rngs.params(), (size,), minval=0.9, maxval=0.999)
        kept = power ** (1 / _SHARPNESS)
        self.decay = nnx.Param(jnp.log(kept / (1 - kept)))
        self.states = Tap()

    def __call__(
        self,
        x: Float[Array, "batch tokens width"],
        mask: Bool[Array, "batch tokens"] | None,
        starts: Bool[Array, "batch tokens"] | None,
        state: Float[Array, "batch state"] | None,
        keep: Callable[[Any], None],
    ) -> Float[Array, "batch tokens width"]:
        """Returns what the layer adds.

        Args:
          x: hidden states.
          mask: True for tokens that exist; others leave the state unchanged.
          starts: True for tokens at which the state is reset.
          state: state before the first token, zeros by default.
          keep: receives the state after the last token.
        """
        inputs = self.input(x)
        wide = inputs.astype(jnp.promote_types(inputs.dtype, jnp.float32))
        gate = jax.nn.sigmoid(self.recurrence_gate(inputs).astype(wide.dtype))
        decay = jax.nn.log_sigmoid(self.decay[...].astype(wide.dtype))[None, None, :]
        log_kept = _SHARPNESS * gate * decay
        if mask is not None:
            log_kept = jnp.where(mask[:, :, None], log_kept, 0)
        kept = jnp.exp(log_kept)
        # 1 − a², accurate also where a is nearly 1; its root has an infinite derivative at 0, where the mask put it.
        rest = -jnp.expm1(2 * log_kept)
        new = jnp.sqrt(jnp.where(rest > 0, rest, 1)) * jax.nn.sigmoid(self.input_gate(inputs)).astype(wide.dtype) * wide
        new = jnp.where(rest > 0, new, 0)
        if starts is not None:
            kept = jnp.where(starts[:, :, None], 0, kept)
        states = linear_scan(kept, new, state)
        keep(states[:, -1])
        return self.out(self.states(states).astype(inputs.dtype) * jax.nn.gelu(self.gate(x)))


def linear_scan(
    kept: Float[Array, "batch tokens state"],
    new: Float[Array, "batch tokens state"],
    state: Float[Array, "batch state"] | None = None,
) -> Float[Array, "batch tokens state"]:
    """Returns the states ``h_t = kept_t h_{t−1} + new_t``, in logarithmic depth.

    >>> linear_scan(jnp.full((1, 3, 1), 0.5), jnp.ones((1, 3, 1)), jnp.full((1, 1), 2.0))[0, :, 0]
    Array([2., 2., 2.], dtype=float32)
    """

    def compose(first: Any, second: Any) -> Any:
        return first[0] * second[0], second[0] * first[1] + second[1]

    product, states = jax.lax.associative_scan(compose, (kept, new), axis=1)
    return states if state is None else states + product * state[:, None, :]
