"""Transformer losses: attention, relations between values, and hidden states.

Attention is given as the scores before the softmax, ``[batch, heads, queries, keys]``, with ``-inf`` where a query must
not attend to a key, so that everything stays in log-space; the logarithm of probabilities is as good. Features are
``[batch, tokens, features]``. Every function returns one value per token ``[batch, tokens]``. A masked token is
excluded twice: its own value is 0, and it is no other token's key.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax.numpy as jnp

from . import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = ["attention_kl", "attention_mse", "value_relation_kl", "hidden_cosine", "hidden_mse"]


_ADVICE = "select the heads or layers to compare, or project the features"


def attention_kl(
    student: Float[Array, "batch heads queries keys"],
    teacher: Float[Array, "batch heads queries keys"],
    *,
    where: Bool[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch queries"]:
    """KL divergence between attention distributions, averaged over the heads.

    Also known as: MiniLM (its attention transfer), attention-distribution transfer.

    ``mean over heads of KL(softmax(A_t) ‖ softmax(A_s))`` for each query. Wang et al., "MiniLM: Deep Self-Attention
    Distillation for Task-Agnostic Compression of Pre-Trained Transformers", NeurIPS 2020, section 3.1, for the last
    layer. The paper averages over heads and queries; here the mean over the tokens is left to the caller. A mean over
    the keys too (PyTorch's ``reduction="mean"``) divides by their number.

    Args:
      student: attention scores before the softmax ``[batch, heads, queries, keys]``, already divided by √d; ``-inf``
        where a query must not attend to a key.
      teacher: scores of the same shape. MiniLM's student has the teacher's number of heads; `value_relation_kl` makes
        any number of heads comparable.
      where: mask, True for the tokens to include ``[batch, tokens]``, as queries and as keys. For self-attention only;
        for cross-attention, set the scores of padded keys to ``-inf``.

    Returns:
      One value per query ``[batch, queries]``, in nats. A query without any key gives 0. The value is infinite where
      the teacher allows a key that the student forbids; the gradients are finite.

    Raises:
      ValueError: shapes differ, a dtype is not floating point, or a mask is given for cross-attention (queries ≠ keys).

    >>> attention_kl(jnp.zeros((1, 1, 1, 2)), jnp.log(jnp.array([[[[0.75, 0.25]]]]))).round(4)
    Array([[0.1308]], dtype=float32)
    """
    student, teacher, where = _scores(student, teacher, where)
    return _numerics.mask_values(jnp.mean(_numerics.softmax_kl_finite(teacher, student), axis=1), where)


def attention_mse(
    student: Float[Array, "batch heads queries keys"],
    teacher: Float[Array, "batch heads queries keys"],
    *,
    where: Bool[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch queries"]:
    """Mean squared difference of attention scores, over keys and heads.

    Also known as: TinyBERT (its attention transfer).

    ``mean (A_s − A_t)²`` over the keys of each query, then over the heads. Jiao et al., "TinyBERT: Distilling BERT for
    Natural Language Understanding", Findings of EMNLP 2020, equation 7, on the scores before the softmax, which the
    paper finds better than the probabilities. The authors' code sets scores below −100, those of padded keys, to 0 on
    both sides and divides by all keys; here a key that both networks exclude is excluded from the mean, so that padding
    does not shrink the loss. TextBrewer's form gives an example of L tokens the weight of L² pairs in the batch's mean;
    a mean over the included queries gives it that of L queries.

    Args:
      student: attention scores before the softmax ``[batch, heads, queries, keys]``; ``-inf`` where a query must not
        attend to a key.
      teacher: scores of the same shape.
      where: mask, True for the tokens to include ``[batch, tokens]``, as queries and as keys; for self-attention only.

    Returns:
      One value per query ``[batch, queries]``. A key that is ``-inf`` (or below -6e30, as with ``finfo.min``) for both
      is excluded from the mean of that query and head; a head without any key adds 0. A key that is excluded by one
      network alone gives infinity, with finite gradients.

    Raises:
      ValueError: shapes differ, a dtype is not floating point, or a mask is given for cross-attention (queries ≠ keys).

    >>> attention_mse(jnp.array([[[[1.0, 2.0, -jnp.inf]]]]), jnp.array([[[[0.0, 0.0, -jnp.inf]]]]))
    Array([[2.5]], dtype=float32)
    """
    student, teacher, where = _scores(student, teacher, where)
    # An additive mask of `finfo.min` excludes a key as -inf does; its square would overflow. NaN excludes none.
    seen_s, seen_t = (~(scores <= _numerics.lowest(scores.dtype)) for scores in (student, teacher))
    difference = jnp.where(seen_s & seen_t, student - teacher, 0)
    count = _numerics.count(seen_s | seen_t, axis=-1, dtype=difference.dtype)
    # A key that one network forbids adds an infinite constant, since its derivative would be infinite too.
    squares = jnp.where(seen_s == seen_t, difference**2, jnp.inf)
    return _numerics.mask_values(jnp.mean(jnp.sum(squares, axis=-1) / count, axis=1), where)


def value_relation_kl(
    student: Float[Array, "batch tokens features"] | Float[Array, "batch tokens heads features"],
    teacher: Float[Array, "batch tokens features_t"] | Float[Array, "batch tokens heads features_t"],
    *,
    heads: int | None = None,
    segments: Int[Array, "batch tokens"] | None = None,
    where: Bool[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch tokens"]:
    """KL divergence between the tokens' relations by scaled dot products.

    Also known as: MiniLM (its value-relation transfer), MiniLMv2 (self-attention relations).

    ``mean over heads of KL(softmax(V_t V_tᵀ/√d_t) ‖ softmax(V_s V_sᵀ/√d_s))`` for each token. Wang et al., "MiniLM:
    Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers", NeurIPS 2020, section
    3.2. With queries or keys in place of the values, and relation heads in place of attention heads, it is each of the
    three relations of MiniLMv2 (Findings of ACL 2021, section 3.1). A relation is ``[tokens, tokens]`` for each head,
    so the feature sizes, and with ``heads`` also the numbers of attention heads, may differ.

    Args:
      student: values, queries or keys, as ``[batch, tokens, heads, features]`` (flax, `jax.nn.dot_product_attention`)
        or, with ``heads``, as ``[batch, tokens, features]``, whose features are split into consecutive parts; heads
        of another number are joined first.
      teacher: the teacher's values, queries or keys; its feature size d may differ.
      heads: number of relation heads, which may differ from the attention heads (MiniLMv2 has 48 for 12 heads).
      segments: number of each token's document in a packed sequence; tokens of different documents have no relation.
      where: mask, True for the tokens to include ``[batch, tokens]``; masked tokens are in no relation.

    Returns:
      One value per token ``[batch, tokens]``, in nats. A vector of zeros has the uniform distribution over all tokens.

    Raises:
      ValueError: batch, tokens or heads differ, the heads do not divide the features, segments do not fit, or a dtype
        is not floating.

    >>> student, teacher = jnp.array([[[1.0], [0.0]]]), jnp.array([[[0.0, 0.0], [0.0, 0.0]]])
    >>> value_relation_kl(student, teacher, heads=1).round(4)
    Array([[0.1201, 0.    ]], dtype=float32)
    """
    heads = (
        heads
        if heads is None
        else _checks.whole("heads", heads, expected=f"a number that divides the features of {list(jnp.shape(student))}")
    )
    student, teacher = _split("student", student, heads), _split("teacher", teacher, heads)
    if student.shape[:3] != teacher.shape[:3]:
        raise ValueError(
            f"teacher: expected the student's [batch, tokens, heads] {list(student.shape[:3])} with features of any "
            f"size, got {list(teacher.shape[:3])} of {list(teacher.shape)}. heads= splits both."
        )
    where = _checks.mask(where, student.shape[:2])
    if segments is not None and (
        segments.shape != student.shape[:2] or not jnp.issubdtype(segments.dtype, jnp.integer)
    ):
        raise ValueError(
            f"segments: expected integers {list(student.shape[:2])}, got {segments.dtype}{list(segments.shape)}."
        )
    student, teacher = _numerics.mask_inputs(where, student, teacher)

    def relation(x: Array) -> Array:
        product = _forbid(_numerics.einsum("bqhd,bkhd->bhqk", x, x), where)
        if segments is not None:
            same = segments[:, None, :, None] == segments[:, None, None, :]
            product = jnp.where(same, product, -jnp.inf)
        return _numerics.soften(product, max(x.shape[-1], 1) ** 0.5)

    return _numerics.mask_values(
        jnp.mean(_numerics.softmax_kl_finite(relation(teacher), relation(student)), axis=1), where
    )


def hidden_cosine(
    student: Float[Array, "*batch features"],
    teacher: Float[Array, "*batch features"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Cosine distance of hidden states or of embeddings.

    Also known as: DistilBERT (its cosine loss), cosine-embedding loss.

    ``1 − cos(h_s, h_t)`` for each token. Sanh et al., "DistilBERT, a distilled version of BERT: smaller, faster,
    cheaper and lighter", 2019, section 2. As in the authors' code, only the tokens that are not padding belong in the
    mean. Liger's fused cosine loss sums over all tokens, padding included, and divides by the number of those that are
    not padding. It is computed as ``½ ‖n(h_s) − n(h_t)‖²``, an equal value without the rounding error of 1 − 1.

    Args:
      student: hidden states ``[batch, tokens, features]``, or embeddings ``[batch, features]``.
      teacher: hidden states of the same shape.
      where: mask, True for the tokens (or examples) to include ``[batch, tokens]``.

    Returns:
      One value per token ``[batch, tokens]``, or per example ``[batch]``, from 0 to 2. A vector of norm up to 1e-12 has
      no direction: its cosine is 0, its value 1, and its gradient 0.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> hidden_cosine(jnp.array([[[3.0, 0.0], [0.0, 2.0]]]), jnp.array([[[1.0, 0.0], [0.0, -1.0]]]))
    Array([[0., 2.]], dtype=float32)
    """
    student, teacher, where = _hidden(student, teacher, where)
    (unit_s, none_s), (unit_t, none_t) = _numerics.direction(student), _numerics.direction(teacher)
    square = jnp.sum((unit_s - unit_t) ** 2, axis=-1) + jnp.squeeze(none_s.astype(student.dtype) + none_t, axis=-1)
    return _numerics.mask_values(square / 2, where)


def hidden_mse(
    student: Float[Array, "*batch features"],
    teacher: Float[Array, "*batch features"],
    *,
    where: Bool[Array, "*batch"] | None = None,
) -> Float[Array, "*batch"]:
    """Mean squared difference of hidden states or of embeddings, over the features.

    Also known as: TinyBERT (its hidden and embedding transfer), MobileBERT (its feature-map transfer).

    ``mean (h_s − h_t)²`` over the features of each token. Jiao et al., "TinyBERT: Distilling BERT for Natural Language
    Understanding", Findings of EMNLP 2020, equations 8 and 9, on hidden states and on embeddings; a student of another
    size learns a projection first. Without a projection it is the feature map transfer of Sun et al., "MobileBERT: a
    Compact Task-Agnostic BERT for Resource-Limited Devices", ACL 2020.

    Args:
      student: hidden states ``[batch, tokens, features]``, or embeddings ``[batch, features]``.
      teacher: the teacher's, of the same shape.
      where: mask, True for the tokens (or examples) to include ``[batch, tokens]``.

    Returns:
      One value per token ``[batch, tokens]``, or per example ``[batch]``.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> hidden_mse(jnp.array([[[1.0, 2.0]]]), jnp.array([[[3.0, -1.0]]]))
    Array([[6.5]], dtype=float32)
    """
    student, teacher, where = _hidden(student, teacher, where)
    return _numerics.mask_values(jnp.mean((student - teacher) ** 2, axis=-1), where)


def _scores(student: Array, teacher: Array, where: Array | None) -> tuple[Array, Array, Array | None]:
    """Returns attention scores, ``-inf`` at masked pairs, and the mask."""
    student = _checks.floating("student", student, "attention scores [batch, heads, queries, keys]", rank=4)
    teacher = _checks.floating("teacher", teacher, "attention scores [batch, heads, queries, keys]")
    _checks.same_shape(student, teacher, _ADVICE)
    batch, _, queries, keys = student.shape
    if where is not None and queries != keys:
        raise ValueError(
            f"where: expected self-attention, as many queries as keys, got scores {list(student.shape)}. The mask "
            "excludes a token as a query and as a key; in cross-attention, set the scores of padded keys to -inf."
        )
    where = _checks.mask(where, (batch, queries))
    return _forbid(student, where), _forbid(teacher, where), where


def _forbid(scores: Array, where: Array | None) -> Array:
    """Returns scores that are ``-inf`` at the pairs of which one token is masked."""
    if where is None:
        return scores
    return jnp.where(where[:, None, :, None] & where[:, None, None, :], scores, -jnp.inf)


def _hidden(student: Array, teacher: Array, where: Array | None) -> tuple[Array, Array, Array | None]:
    """Returns hidden states, 0 for masked tokens, and the mask."""
    student = _checks.floating("student", student, "hidden states [..., features]", least_rank=2)
    teacher = _checks.floating("teacher", teacher, "hidden states [..., features]")
    _checks.same_shape(student, teacher, _ADVICE)
    where = _checks.mask(where, student.shape[:-1])
    student, teacher = _numerics.mask_inputs(where, student, teacher)
    return student, teacher, where


def _split(name: str, values: Array, heads: int | None) -> Array:
    """Returns ``[batch, tokens, heads, features]`` from either shape of values."""
    values = _checks.floating(name, values, "values [batch, tokens, features]")
    if values.ndim == 4 and heads in (None, values.shape[2]):
        return values
    if values.ndim == 4:  # attention heads are joined before they are split into relation heads
        values = values.reshape(*values.shape[:2], -1)
    if values.ndim == 3 and heads is not None and values.shape[2] % heads == 0:
        return values.reshape(*values.shape[:2], heads, values.shape[2] // heads)
    if values.ndim == 3:
        raise ValueError(
            f"heads: expected a number that divides the features of {name} {list(values.shape)}, got {heads}."
        )
    raise ValueError(
        f"{name}: expected values [batch, tokens, features] and heads=, or [batch, tokens, heads, features], got "
        f"{list(values.shape)} and heads={heads}."
    )
