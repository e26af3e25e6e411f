"""Parts of transformers: taps, embeddings, norms, MLPs, rotary positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from jaxkd.models._transformer_config import ACTIVATIONS, TransformerConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

Rotation = tuple[Any, Any]
"""Cosines and sines ``[batch, tokens, 1, features / 2]`` of rotary positions."""


class Tap(nnx.Module):
    """Identity, as a module, so that what passes through can be tapped."""

    def __call__(self, x: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Returns ``x``."""
        return x


class Scale(nnx.Module):
    """Scale and bias of each feature, in place of a norm."""

    def __init__(self, width: int, dtype: Any) -> None:
        """Makes the parameters: at first, the identity."""
        self.dtype = dtype
        self.scale, self.bias = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Returns ``scale · x + bias``."""
        scale, bias = self.scale[...], self.bias[...]
        dtype = jnp.result_type(x, scale) if self.dtype is None else self.dtype
        x, scale, bias = (part.astype(dtype) for part in (x, scale, bias))
        return x * scale[None, None, :] + bias[None, None, :]


class MLP(nnx.Module):
    """Two products with an activation between them, which a third product may gate."""

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the layers; see `TransformerConfig`."""
        width, inner, bias = config.width, config.mlp_features, config.mlp_bias
        self.activation = config.activation
        self.gate = linear(config, width, inner, bias=bias, rngs=rngs) if config.gated else None
        self.up = linear(config, width, inner, bias=bias, rngs=rngs)
        self.down = linear(config, inner, width, bias=bias, scale=config.residual_scale, rngs=rngs)

    def __call__(self, x: Float[Array, "batch tokens width"]) -> Float[Array, "batch tokens width"]:
        """Returns ``down(a(up(x)))``, or ``down(a(gate(x)) · up(x))`` with a gate."""
        activate = ACTIVATIONS[self.activation]
        inner = activate(self.up(x)) if self.gate is None else activate(self.gate(x)) * self.up(x)
        return self.down(inner)


def linear(
    config: TransformerConfig, inputs: int, outputs: int, *, bias: bool, scale: float = 1.0, rngs: nnx.Rngs
) -> nnx.Linear:
    """Builds a linear layer; ``scale`` is a factor of its initial kernel."""
    return nnx.Linear(
        inputs, outputs, use_bias=bias, dtype=config.dtype, kernel_init=config.kernel_init(scale), rngs=rngs
    )


def embedding(config: TransformerConfig, rows: int, width: int, *, rngs: nnx.Rngs) -> nnx.Embed:
    """Builds an embedding table."""
    table = nnx.Embed(rows, width, embedding_init=config.kernel_init(), rngs=rngs)
    # Without a dtype, nnx would return the dtype of the initial table, also when the parameters are cast later.
    table.dtype = config.dtype
    return table


def norm(config: TransformerConfig, width: int, *, rngs: nnx.Rngs) -> nnx.LayerNorm | nnx.RMSNorm | Scale:
    """Builds a LayerNorm, an RMSNorm or a `Scale`.

    The variance is a mean of squared differences.
    """
    if config.norm == "scale":
        return Scale(width, config.dtype)
    kind = nnx.LayerNorm if config.norm == "layer" else nnx.RMSNorm
    return kind(width, epsilon=config.norm_epsilon, dtype=config.dtype, use_fast_variance=False, rngs=rngs)


def dropout(config: Any, *, rngs: nnx.Rngs) -> nnx.Module:
    """Builds a dropout layer of ``config.dropout_rate``; an identity for a rate of 0.

    The identity has no random keys.
    """
    return nnx.Dropout(config.dropout_rate, rngs=rngs) if config.dropout_rate else Tap()


def rotation(positions: Int[Array, "batch tokens"], config: TransformerConfig) -> Rotation | None:
    """Returns cosines and sines of rotary positions; None for learned positions.

    Pair i of a head with d features turns by ``position / base^(2i/d)``. Su et al., "RoFormer: Enhanced Transformer
    with Rotary Position Embedding", 2021, equations 14 and 15.
    """
    if config.rope_base is None:
        return None
    half = config.head_features // 2
    frequencies = config.rope_base ** -(jnp.arange(half, dtype=jnp.float32) / half)
    angles = positions[:, :, None, None].astype(jnp.float32) * frequencies[None, None, None, :]
    return jnp.cos(angles), jnp.sin(angles)


def rotate(
    x: Float[Array, "batch tokens heads features"], turns: Rotation | None, *, interleaved: bool
) -> Float[Array, "batch tokens heads features"]:
    """Returns queries or keys turned by their positions."""
    if turns is None:
        return x
    cos, sin = turns
    half = x.shape[-1] // 2
    first, second = (x[..., 0::2], x[..., 1::2]) if interleaved else (x[..., :half], x[..., half:])
    turned = first * cos - second * sin, second * cos + first * sin
    joined = jnp.stack(turned, axis=-1).reshape(x.shape) if interleaved else jnp.concatenate(turned, axis=-1)
    return joined.astype(x.dtype)


def mean_over_tokens(
    hidden: Float[Array, "batch tokens width"], mask: Bool[Array, "batch tokens"] | None
) -> Float[Array, "batch width"]:
    """Returns the mean of the unmasked tokens; zeros where there is none.

    >>> mean_over_tokens(jnp.array([[[1.0], [3.0], [9.0]]]), jnp.array([[True, True, False]]))
    Array([[2.]], dtype=float32)
    """
    wide = hidden.astype(jnp.promote_types(hidden.dtype, jnp.float32))
    if mask is None:
        return jnp.mean(wide, axis=1).astype(hidden.dtype)
    count = jnp.maximum(jnp.sum(mask, axis=1, keepdims=True), 1)
    return (jnp.sum(jnp.where(mask[:, :, None], wide, 0), axis=1) / count).astype(hidden.dtype)
