"""Positions of tokens, and the pairs of tokens that see each other.

A mask is True for tokens that exist. Segments number the documents of a packed sequence: tokens of equal numbers are
consecutive, and see only each other.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int


def check_tokens(tokens: Any, **others: Any) -> None:
    """Raises unless tokens are integers ``[batch, tokens]`` and others fit them.

    >>> check_tokens(jnp.zeros((2, 3), int), mask=jnp.ones((2, 3)))
    Traceback (most recent call last):
    ValueError: mask: expected bool[2, 3], as tokens, got float32[2, 3].
    """
    if tokens.ndim != 2 or not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise ValueError(f"tokens: expected integers [batch, tokens], got {tokens.dtype}{list(tokens.shape)}.")
    for name, x in others.items():
        if x is not None:
            kind = jnp.bool_ if name.endswith("mask") else jnp.integer
            if x.shape != tokens.shape or not jnp.issubdtype(x.dtype, kind):
                expected = "bool" if kind is jnp.bool_ else "integers "
                raise ValueError(
                    f"{name}: expected {expected}{list(tokens.shape)}, as tokens, got {x.dtype}{list(x.shape)}."
                )


def segment_starts(segments: Int[Array, "batch tokens"]) -> Bool[Array, "batch tokens"]:
    """Returns True for the first token of each segment.

    >>> segment_starts(jnp.array([[1, 1, 2, 2]]))
    Array([[ True, False,  True, False]], dtype=bool)
    """
    return jnp.pad(segments[:, 1:] != segments[:, :-1], ((0, 0), (1, 0)), constant_values=True)


def token_positions(
    tokens: Int[Array, "batch tokens"],
    mask: Bool[Array, "batch tokens"] | None = None,
    segments: Int[Array, "batch tokens"] | None = None,
) -> Int[Array, "batch tokens"]:
    """Returns the position of each token among the unmasked tokens of its segment.

    Padding may therefore stand anywhere. Masked tokens get their index in the segment.

    >>> token_positions(jnp.zeros((1, 4), int), jnp.array([[False, True, True, False]]))
    Array([[0, 0, 1, 3]], dtype=int32)
    >>> token_positions(jnp.zeros((1, 4), int), segments=jnp.array([[1, 2, 2, 2]]))
    Array([[0, 0, 1, 2]], dtype=int32)
    """
    index = jnp.broadcast_to(jnp.arange(tokens.shape[1], dtype=jnp.int32)[None, :], tokens.shape)

    def within_segment(x: Array) -> Array:
        # x never decreases, so that the largest x at a start until here is that of the own segment's start.
        return x if segments is None else x - jax.lax.cummax(jnp.where(segment_starts(segments), x, 0), axis=1)

    if mask is None:
        return within_segment(index)
    before = jnp.cumsum(mask, axis=1, dtype=jnp.int32) - mask.astype(jnp.int32)
    return jnp.where(mask, within_segment(before), within_segment(index))


def visible(
    tokens: Int[Array, "batch tokens"],
    mask: Bool[Array, "batch tokens"] | None,
    segments: Int[Array, "batch tokens"] | None,
    *,
    causal: bool,
) -> Bool[Array, "#batch 1 #queries tokens"] | None:
    """Returns True for the pairs (query, key) that attention includes, None for all.

    >>> visible(jnp.zeros((1, 3), int), None, None, causal=True)[0, 0]
    Array([[ True, False, False],
           [ True,  True, False],
           [ True,  True,  True]], dtype=bool)
    """
    size = tokens.shape[1]
    parts = [jnp.tril(jnp.ones((size, size), bool))[None, None]] if causal else []
    if mask is not None:
        parts.append(mask[:, None, None, :])
    if segments is not None:
        parts.append((segments[:, :, None] == segments[:, None, :])[:, None])
    if not parts:
        return None
    found = parts[0]
    for part in parts[1:]:
        found = found & part
    return found
