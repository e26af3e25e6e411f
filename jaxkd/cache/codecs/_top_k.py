"""The k most likely classes and the mass of all others: `top_k`, `packed_top_k`."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd.cache.codecs._bits import LARGEST_UNIVERSE, pack_sorted, unpack_sorted
from jaxkd.cache.codecs._codec import Codec, float_dtype, kept_number, no_nan, rounded, row_size, some_class
from jaxkd.types import Array

_NEGLIGIBLE = 100.0
"""Distance from the largest logit beyond which a probability is 0 in float32."""


def top_k(k: int, dtype: str = "float16") -> Codec:
    """Stores the k largest logits with their classes, and the log mass of the tail.

    Stored are the logits ``z_1 ≥ … ≥ z_k``, their indices in the smallest unsigned type that holds every class, and
    ``r = log Σ_others exp(z)`` in float32. Decoding returns, with ``Z = logaddexp(logsumexp(z_1…z_k), r)``:

    - ``logits/log_probs``, ``z − Z``, and ``logits/indices``: the arguments of `jaxkd.losses.top_k_kl`. Their mass and
      the tail's, ``logits/log_tail = r − Z``, add up to 1.
    - ``logits``: all classes; those of the tail have ``r − log(classes − k)`` each, which spreads its mass evenly.

    At temperature 1 the probabilities of the k classes and the tail's mass are the teacher's, up to the rounding to
    ``dtype``. At another temperature the k classes keep their exact ratios, but the tail's mass is only that of the
    even spread: its true value depends on the logits that were dropped.

    Args:
      k: number of classes to store.
      dtype: dtype of the stored logits, ``"float16"``, ``"bfloat16"`` or ``"float32"``.

    Returns:
      A `Codec` for ``[..., classes]``. It rejects NaN and ``+inf``.

    Raises:
      ValueError: k is not positive, or the dtype is none of these; from ``encode``: there are fewer than k classes.

    >>> kept = top_k(2, "float32").encode(jnp.log(jnp.array([[0.1, 0.5, 0.1, 0.3]])))
    >>> kept["indices"], jnp.exp(kept["log_rest"]).round(4)
    (Array([[1, 3]], dtype=uint8), Array([0.2], dtype=float32))
    >>> jax.nn.softmax(top_k(2, "float32").decode(kept, (4,))[""]).tolist()
    [[0.1, 0.5, 0.1, 0.3]]
    """
    stored = float_dtype("top_k", dtype)
    kept_number("top_k", "k", k)

    def encode(x: Array, key: Array | None = None) -> dict[str, Array]:
        del key
        values, indices, rest = _largest("top_k", x, k)
        narrow = np.min_scalar_type(x.shape[-1] - 1)
        return {"values": rounded(values, stored), "indices": indices.astype(narrow), "log_rest": rest}

    def decode(fields: Mapping[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
        values, rest = fields["values"].astype(jnp.float32), fields["log_rest"].astype(jnp.float32)
        indices = fields["indices"].astype(jnp.int32)
        total = jnp.logaddexp(jax.nn.logsumexp(values, axis=-1), rest)
        return {
            "": _spread(values, indices, rest, shape[-1]),
            "/log_probs": values - total[..., None],
            "/indices": indices,
            "/log_tail": rest - total,
        }

    return Codec({"codec": "top_k", "k": k, "dtype": stored.name}, encode, decode, no_nan)


def packed_top_k(k: int, levels: int = 64) -> Codec:
    """Stores the k most likely classes of each token in few bits, with a stated error.

    For the large vocabularies of language models. The k log-probabilities are rounded to ``levels`` equal steps of the
    token's own range, from the largest to the k-th. Level and class together are one integer, ``level · classes +
    class``; the k integers are sorted and packed into about ``k (2 + log2(levels · classes / k))`` bits. The step
    (float16) and the log mass of the tail (float32) take 6 bytes more. Bytes of a token of 128,256 classes:

    =====  ========  =======  =====================================
    k      levels    bytes    step of a range of 10 nats
    =====  ========  =======  =====================================
    50     16        114      0.67
    50     64        126      0.16
    128    64        294      0.16
    128    256       326      0.04
    =====  ========  =======  =====================================

    Decoding returns what `top_k` returns, in descending order up to a step, and ``logits/error``, the step. With it:

    - the classes and the tail's mass are exact, and all masses add up to 1;
    - each log-probability is within one step of the teacher's;
    - the divergence ``KL(p ‖ p̂)`` of the stored distribution, k classes and tail, is at most step² / 8 (Hoeffding's
      lemma: errors before normalization lie within an interval of one step).

    Rounding of float32 comes on top. A class more than 100 nats below the largest, such as an excluded (``-inf``) one,
    is stored with probability 0, which it has in float32.

    Tokens that ``batch["mask"] [batch, tokens]`` excludes, such as padding, are not stored. They are read as the last
    token before them that is, so that whatever is computed there is finite.

    Args:
      k: number of classes to store.
      levels: number of values that a log-probability is rounded to, from 3 to 256.

    Returns:
      A `Codec` for ``[..., classes]``. It rejects NaN, ``+inf`` and rows that are ``-inf`` as a whole.

    Raises:
      ValueError: k or the levels are out of range; from ``encode``: there are fewer than k classes, or more than
        ``2³¹ / levels``.

    >>> codec = packed_top_k(2, levels=16)
    >>> kept = codec.encode(jnp.log(jnp.array([[0.1, 0.5, 0.1, 0.3]])))
    >>> kept["packed"].shape, jnp.exp(kept["log_tail"]).round(4), kept["step"].round(3)
    ((1, 2), Array([0.2], dtype=float32), Array([0.034], dtype=float16))
    >>> found = codec.decode(kept, (4,))
    >>> found["/indices"].tolist(), jnp.exp(found["/log_probs"])[0, 0].round(3), found["/error"].round(3)
    ([[1, 3]], Array(0.5, dtype=float32), Array([0.034], dtype=float32))
    """
    kept_number("packed_top_k", "k", k)
    if not 3 <= levels <= 256:
        raise ValueError(f"packed_top_k: expected 3 to 256 levels, got {levels}.")

    def encode(x: Array, key: Array | None = None) -> dict[str, Array]:
        del key
        values, indices, rest = _largest("packed_top_k", x, k)
        classes = x.shape[-1]
        if classes * levels > LARGEST_UNIVERSE:
            raise ValueError(f"packed_top_k: expected at most 2³¹ / levels = {2**31 // levels} classes, got {classes}.")
        below = values[..., :1] - values
        negligible = ~(below <= _NEGLIGIBLE)  # the lowest level then stands for probability 0
        some = jnp.any(negligible, axis=-1)
        width = jnp.max(jnp.where(negligible, 0, below), axis=-1)
        step = width / (levels - 1 - some.astype(jnp.float32))
        # Rounded up, so that the levels suffice, and to a normal number, so that its sign can carry `some`.
        step = jnp.maximum(step * (1 + 2**-10), 2**-14).astype(jnp.float16)
        level = jnp.round(below / step.astype(jnp.float32)[..., None])
        level = jnp.where(negligible, levels - 1, level).astype(jnp.int32)
        kept = jnp.sort(level * classes + indices, axis=-1)
        log_tail = jax.nn.log_sigmoid(rest - jax.nn.logsumexp(values, axis=-1))
        return {
            "packed": pack_sorted(kept, classes * levels),
            "step": jnp.where(some, -step, step),
            "log_tail": log_tail,
        }

    def decode(fields: Mapping[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
        step, tail = fields["step"].astype(jnp.float32), fields["log_tail"].astype(jnp.float32)
        level, indices = jnp.divmod(unpack_sorted(fields["packed"], k, shape[-1] * levels), shape[-1])
        error = jnp.abs(step)
        values = jnp.where((step < 0)[..., None] & (level == levels - 1), -jnp.inf, -error[..., None] * level)
        # The k classes share what the tail leaves.
        share = jnp.log(-jnp.expm1(tail)) - jax.nn.logsumexp(values, axis=-1)
        log_probs = values + share[..., None]
        return {
            "": _spread(log_probs, indices, tail, shape[-1]),
            "/log_probs": log_probs,
            "/indices": indices,
            "/log_tail": tail,
            "/error": error,
        }

    return Codec({"codec": "packed_top_k", "k": k, "levels": levels}, encode, decode, some_class, masked=True)


def _largest(codec: str, x: Array, k: int) -> tuple[Array, Array, Array]:
    """Returns the k largest logits, their classes, and the log mass of the others."""
    classes = row_size(codec, x)
    if classes < k:
        raise ValueError(f"{codec}: expected at least k = {k} classes, got {x.dtype}{list(x.shape)}. Use full().")
    x = x.astype(jnp.float32)
    values, indices = jax.lax.top_k(x, k)
    stored = jnp.put_along_axis(jnp.zeros(x.shape, bool), indices, True, axis=-1, inplace=False)
    # Summed over the tail itself: subtracting the mass of the k classes from the total would cancel a small tail.
    return values, indices, jax.nn.logsumexp(jnp.where(stored, -jnp.inf, x), axis=-1)


def _spread(values: Array, indices: Array, rest: Array, classes: int) -> Array:
    """Returns logits of all classes; those not listed share the mass of the tail."""
    even = rest - np.float32(np.log(max(classes - indices.shape[-1], 1)))
    logits = jnp.broadcast_to(even[..., None], (*rest.shape, classes))
    return jnp.put_along_axis(logits, indices, values, axis=-1, inplace=False)
