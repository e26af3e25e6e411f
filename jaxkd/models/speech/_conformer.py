"""The Conformer: attention and convolution between two halves of an MLP."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.models._attention import Attention
from jaxkd.models._transformer_parts import MLP, Rotation, dropout, linear, norm, rotation
from jaxkd.models.speech._config import SpeechConfig, check_context, check_kernel
from jaxkd.models.speech._model import SpeechModel
from jaxkd.models.speech._parts import (
    DepthwiseConvolution,
    LayerConfig,
    frames_ahead,
    layer_config,
    zero_where_masked,
)

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConformerConfig(SpeechConfig):
    """Sizes and choices of a `Conformer`.

    Attributes:
      heads: number of attention heads, whose size is even.
      kernel: subsampled frames of a convolution, an odd number.
      left_context: frames before that attention reads in a layer; None for all.
      right_context: frames ahead that attention reads in a layer, and its convolution at most; None for all, and for
        half of the kernel.
      mlp_width: features between the two products of an MLP; by default ``4 width``.
      rope_base: base θ of rotary positions.
      tap_attention: whether attention's scores and probabilities are computed as a whole, so that they can be tapped.
        Further fields are those of `SpeechConfig`.
    """

    heads: int = 4
    kernel: int = 15
    left_context: int | None = None
    right_context: int | None = None
    mlp_width: int | None = None
    rope_base: float = 10_000.0
    tap_attention: bool = False

    def __post_init__(self) -> None:
        """Raises a ValueError unless the fields fit each other."""
        super().__post_init__()
        check_kernel(self, self.kernel)
        check_context(self, "left_context", "right_context")
        _ = self.parts

    @property
    def parts(self) -> LayerConfig:
        """Configuration of attention and MLPs."""
        return layer_config(
            self,
            heads=self.heads,
            mlp_width=self.mlp_width,
            rope_base=self.rope_base,
            tap_attention=self.tap_attention,
        )

    @property
    def context(self) -> int | None:
        """Subsampled frames ahead that the layers together read; None for all."""
        if self.right_context is None:
            return None
        return self.layers * (self.right_context + frames_ahead(self.kernel, self.right_context))


class Conformer(SpeechModel):
    """Layers of attention and convolution over subsampled frames.

    Gulati et al., "Conformer: Convolution-augmented Transformer for Speech Recognition", Interspeech 2020, section 2:
    ``x + MLP/2``, ``+ attention``, ``+ convolution``, ``+ MLP/2`` and a norm. Here positions are rotary, the
    convolution has a LayerNorm in place of a BatchNorm, so that an utterance does not depend on the others of its
    batch, and frames are subsampled by convolutions of one dimension. With ``right_context`` it can be used while
    someone speaks: `ConformerConfig.look_ahead` is finite.

    >>> config = ConformerConfig(bands=8, labels=10, width=12, layers=2, heads=2, kernel=3, right_context=1)
    >>> out = nnx.eval_shape(lambda: Conformer(config, rngs=nnx.Rngs(0))(jnp.zeros((1, 9, 8))))
    >>> out["logits"].shape, config.look_ahead
    ((1, 3, 11), 19)
    """

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the layers.

        Args:
          config: sizes and choices.
          rngs: random streams of the initial parameters (and of dropout).
        """
        super().__init__(config, rngs=rngs)
        self.layers = nnx.List([ConformerLayer(config, rngs=rngs) for _ in range(config.layers)])

    def encode(
        self, x: Float[Array, "batch frames width"], mask: Bool[Array, "batch frames"]
    ) -> Float[Array, "batch frames width"]:
        """Returns the output of the last layer, which is normalized."""
        config = self.config
        assert isinstance(config, ConformerConfig)
        turns = rotation(jnp.arange(x.shape[1], dtype=jnp.int32)[None, :], config.parts)
        pairs = mask[:, None, None, :] & near(x.shape[1], config.left_context, config.right_context)
        for layer in self.layers:
            x = layer(x, mask, pairs, turns)
        return x


class ConformerLayer(nnx.Module):
    """Half an MLP, attention, a convolution and half an MLP, each added to its input."""

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the parts."""
        parts, width = config.parts, config.width
        self.first_mlp_norm, self.first_mlp = norm(parts, width, rngs=rngs), MLP(parts, rngs=rngs)
        self.attention_norm, self.attention = norm(parts, width, rngs=rngs), Attention(parts, rngs=rngs)
        self.convolution = ConvolutionModule(config, rngs=rngs)
        self.mlp_norm, self.mlp = norm(parts, width, rngs=rngs), MLP(parts, rngs=rngs)
        self.final_norm = norm(parts, width, rngs=rngs)
        self.dropouts = nnx.List([dropout(parts, rngs=rngs) for _ in range(4)])

    def __call__(
        self,
        x: Float[Array, "batch frames width"],
        mask: Bool[Array, "batch frames"],
        pairs: Bool[Array, "batch 1 queries keys"],
        turns: Rotation | None,
    ) -> Float[Array, "batch frames width"]:
        """Returns the new hidden states.

        Args:
          x: hidden states.
          mask: True for frames that exist.
          pairs: True for the pairs (query, key) of attention.
          turns: rotary positions.
        """
        x = x + 0.5 * self.dropouts[0](self.first_mlp(self.first_mlp_norm(x)))
        read = self.attention_norm(x)
        x = x + self.dropouts[1](self.attention(read, self.attention.keys_values(read, turns), pairs, turns))
        x = x + self.dropouts[2](self.convolution(x, mask))
        x = x + 0.5 * self.dropouts[3](self.mlp(self.mlp_norm(x)))
        return self.final_norm(x)


class ConvolutionModule(nnx.Module):
    """A gated product, a depthwise convolution and a product, each after the other.

    ``out(silu(norm(depthwise(glu(gated(norm(x)))))))`` with ``glu(a, b) = a · σ(b)``; figure 2 of the paper.
    """

    def __init__(self, config: ConformerConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the parts."""
        parts, width = config.parts, config.width
        self.norm = norm(parts, width, rngs=rngs)
        self.gated = linear(parts, width, 2 * width, bias=True, rngs=rngs)
        self.depthwise = DepthwiseConvolution(width, config.kernel, config.right_context, config.dtype, rngs=rngs)
        self.depthwise_norm = norm(parts, width, rngs=rngs)
        self.out = linear(parts, width, width, bias=True, scale=parts.residual_scale, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch frames width"], mask: Bool[Array, "batch frames"]
    ) -> Float[Array, "batch frames width"]:
        """Returns what the module adds; ``mask`` is True for frames that exist."""
        gated = zero_where_masked(jax.nn.glu(self.gated(self.norm(x))), mask)
        return self.out(jax.nn.silu(self.depthwise_norm(self.depthwise(gated))))


def near(frames: int, left: int | None, right: int | None) -> Bool[Array, "1 1 frames frames"]:
    """Returns True for the pairs (query, key) within a context; None is no limit.

    >>> near(3, 1, 0)[0, 0]
    Array([[ True, False, False],
           [ True,  True, False],
           [False,  True,  True]], dtype=bool)
    """
    ahead = jnp.arange(frames)[None, :] - jnp.arange(frames)[:, None]
    pairs = jnp.ones((frames, frames), bool)
    pairs = pairs if left is None else pairs & (ahead >= -left)
    return (pairs if right is None else pairs & (ahead <= right))[None, None]
