"""Classes drawn from the teacher's distribution: `sampled`."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxkd.cache.codecs._bits import LARGEST_UNIVERSE, pack_sorted, unpack_sorted
from jaxkd.cache.codecs._codec import Codec, kept_number, row_size, some_class
from jaxkd.types import Array

_PARTS = 2.0**31


def sampled(draws: int, power: float = 1.0, seed: int = 0) -> Codec:
    """Stores classes drawn from the teacher, unbiased targets of few bytes.

    Also known as: RS-KD (random sampling KD).

    Each token has ``draws`` independent classes, drawn with replacement with probabilities ``q ∝ p^power``, where ``p =
    softmax(z)``. A draw of class i has the weight ``p_i / (draws · q_i)``, so that the weights of class i sum to p_i in
    expectation, for every class, and the expected gradient of a cross-entropy with them is that of the whole
    distribution. The k largest probabilities alone, renormalized, are biased to confidence. Anshumann et al., "Sparse
    Logit Sampling: Accelerating Knowledge Distillation in LLMs", ACL 2025; the authors normalize the weights of each
    token to 1, which is biased unless ``power`` is 1.

    Decoding returns ``logits/indices`` and ``logits/weights`` ``[..., draws]``, the arguments of
    `jaxkd.losses.sparse_cross_entropy`, a class that was drawn twice being listed twice, and ``logits/probs``, their
    sums for all classes, for `jaxkd.losses.soft_cross_entropy`. The logits themselves cannot be restored.

    The draws depend on the seed, the example's index, the view and the position of the row in the example alone,
    neither on the batch nor on the length to which a sequence is padded. They are packed into about ``draws (2 +
    log2(classes / draws))`` bits: 83 bytes for 50 draws of 128,256 classes. Weights are equal with ``power=1``;
    otherwise they take 4 bytes a draw. Tokens that ``batch["mask"]`` excludes are not stored, as with `packed_top_k`.

    Args:
      draws: number of draws for each token.
      power: exponent of the proposal. Below 1 it draws unlikely classes more often, with smaller weights.
      seed: seed of the draws.

    Returns:
      A `Codec` for ``[..., classes]``. It rejects NaN, ``+inf`` and rows that are ``-inf`` as a whole. Probabilities of
      the proposal are multiples of ``2⁻³¹``; a class of fewer than half of that is never drawn.

    Raises:
      ValueError: the draws or the power are not positive, or there are too many; from ``encode``: there is no key.

    >>> codec = sampled(4)
    >>> kept = jax.jit(codec.encode)(jnp.log(jnp.array([[0.5, 0.0, 0.5]])), jax.random.split(jax.random.key(0), 1))
    >>> found = codec.decode(kept, (3,))
    >>> found["/indices"].shape, found["/probs"][0, 1], found["/probs"].sum()
    ((1, 4), Array(0., dtype=float32), Array(1., dtype=float32))
    """
    kept_number("sampled", "draws", draws)
    if not 0 < power < float("inf"):
        raise ValueError(f"sampled: expected a positive power, got {power}.")

    def encode(x: Array, key: Array | None = None) -> dict[str, Array]:
        classes = row_size("sampled", x)
        if classes > LARGEST_UNIVERSE:
            raise ValueError(f"sampled: expected at most 2³¹ classes, got {classes}.")
        if key is None or key.shape != x.shape[:1]:
            got = "none" if key is None else list(key.shape)
            raise ValueError(f"sampled: expected a key for each of {x.shape[0]} examples, got {got}.")
        rows = x.reshape(x.shape[0], -1, classes)

        def row(key: Array, position: Array, row: Array) -> tuple[Array, Array]:
            return _draw(jax.random.fold_in(jax.random.fold_in(key, seed), position), row, draws, power)

        over_rows = jax.vmap(row, in_axes=(None, 0, 0))
        indices, weights = jax.vmap(over_rows, in_axes=(0, None, 0))(key, jnp.arange(rows.shape[1]), rows)
        fields = {"packed": pack_sorted(indices, classes)}
        if power != 1:
            fields["weights"] = weights
        return {name: value.reshape(*x.shape[:-1], value.shape[-1]) for name, value in fields.items()}

    def decode(fields: Mapping[str, Array], shape: tuple[int, ...]) -> dict[str, Array]:
        indices = unpack_sorted(fields["packed"], draws, shape[-1])
        weights = jnp.full(indices.shape, 1 / draws, jnp.float32) if power == 1 else fields["weights"]
        flat = jax.vmap(lambda i, w: jnp.zeros(shape[-1]).at[i].add(w))
        probs = flat(indices.reshape(-1, draws), weights.reshape(-1, draws))
        return {"/indices": indices, "/weights": weights, "/probs": probs.reshape(*indices.shape[:-1], shape[-1])}

    settings = {"codec": "sampled", "draws": draws, "power": power, "seed": seed}
    return Codec(settings, encode, decode, some_class, masked=True)


def _draw(key: Array, logits: Array, draws: int, power: float) -> tuple[Array, Array]:
    """Returns sorted classes drawn from a row of logits, and their weights.

    The proposal is rounded to whole parts of 2⁻³¹, whose sums are exact: sums of floats would draw a class of
    probability 0 where two roundings differ. The weights are those of the rounded proposal.
    """
    log_probs = jax.nn.log_softmax(logits.astype(jnp.float32))
    proposal = jax.nn.softmax(power * log_probs)
    parts = jnp.round(proposal * _PARTS).astype(jnp.uint32)
    ends = jnp.cumsum(parts, dtype=jnp.uint32)
    total = ends[-1]
    drawn = jax.random.randint(key, (draws,), 0, total, dtype=jnp.uint32)
    indices = jnp.sort(jnp.searchsorted(ends, drawn, side="right")).astype(jnp.int32)
    share = parts[indices].astype(jnp.float32) / total.astype(jnp.float32)
    return indices, jnp.exp(log_probs[indices]) / (draws * share)
