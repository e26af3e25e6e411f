"""Transformer losses: what a student's attention and hidden states should be, token by token.

Attention is taken as the scores before the softmax, ``[batch, heads, queries, keys]`` with ``-inf`` where a query may
not look at a key, so that everything stays in log-space; whoever has probabilities passes their logarithm. Features are
``[batch, tokens, features]``. Every function returns one value per token, ``[batch, tokens]``. A token that does not
count (``where``) is left out twice: its own value is 0, and it is nobody's key.

This file needs only jax and can be lifted out of the package as it stands.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["attention_kl", "attention_mse", "value_relation_kl", "hidden_cosine", "hidden_mse"]


def attention_kl(
    student: Float[Array, "batch heads queries keys"],
    teacher: Float[Array, "batch heads queries keys"],
    *,
    where: Bool[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch queries"]:
    """Attention distributions: ``mean over heads of KL(softmax(A_t) ‖ softmax(A_s))`` for each query.

    Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
    NeurIPS 2020, section 3.1, of the last layer. The paper averages over heads and queries; here the mean over the
    tokens that count is left to the caller. A mean over the keys too (PyTorch's ``reduction="mean"``) is smaller by
    their number.

    Args:
      student: attention scores before the softmax ``[batch, heads, queries, keys]``, already divided by √d; ``-inf``
        where a query may not look at a key.
      teacher: scores of the same shape. MiniLM's student has the teacher's number of heads; `value_relation_kl` makes
        any number of heads comparable.
      where: True for the tokens that count ``[batch, tokens]``, as queries and as keys. For self-attention only:
        padding in cross-attention is ``-inf`` in the scores.

    Returns:
      One value per query ``[batch, queries]``, in nats. A query without any key gives 0. The value is infinite, truly,
      where the teacher allows a key that the student forbids; the gradients are finite there too.

    Raises:
      ValueError: shapes differ, dtypes are not floating, or a mask is given and there are not as many queries as keys.

    >>> attention_kl(jnp.zeros((1, 1, 1, 2)), jnp.log(jnp.array([[[[0.75, 0.25]]]]))).round(4)
    Array([[0.1308]], dtype=float32)
    """
    student, teacher, where = _scores(student, teacher, where)
    return _drop(jnp.mean(_kl(student, teacher), axis=1), where)


def attention_mse(
    student: Float[Array, "batch heads queries keys"],
    teacher: Float[Array, "batch heads queries keys"],
    *,
    where: Bool[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch queries"]:
    """Attention scores: ``mean (A_s − A_t)²`` over the keys of each query, then over the heads.

    Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020, equation 7.
    The paper finds the scores before the softmax better than the probabilities; so does this take them. The authors'
    code sets scores below −100, those of padded keys, to 0 on both sides and divides by all keys; here a key that
    neither network sees is left out of the mean, so that padding does not make the loss smaller.

    Args:
      student: attention scores before the softmax ``[batch, heads, queries, keys]``; ``-inf`` where a query may not
        look at a key.
      teacher: scores of the same shape.
      where: True for the tokens that count ``[batch, tokens]``, as queries and as keys; for self-attention only.

    Returns:
      One value per query ``[batch, queries]``. A key that is ``-inf`` for both is left out of the mean of that query
      and head; a head without any key adds 0. A key that is ``-inf`` for one network alone gives infinity, with finite
      gradients.

    Raises:
      ValueError: shapes differ, dtypes are not floating, or a mask is given and there are not as many queries as keys.

    >>> attention_mse(jnp.array([[[[1.0, 2.0, -jnp.inf]]]]), jnp.array([[[[0.0, 0.0, -jnp.inf]]]]))
    Array([[2.5]], dtype=float32)
    """
    student, teacher, where = _scores(student, teacher, where)
    seen_s, seen_t = student != -jnp.inf, teacher != -jnp.inf
    difference = jnp.where(seen_s & seen_t, student - teacher, 0)
    count = jnp.maximum(jnp.sum(seen_s | seen_t, axis=-1), 1).astype(difference.dtype)
    # The infinity of a key that one network forbids is a constant: its slope would be infinite too.
    infinite = jnp.where(jnp.any(seen_s != seen_t, axis=-1), jnp.inf, 0)
    return _drop(jnp.mean(jnp.sum(difference**2, axis=-1) / count + infinite, axis=1), where)


def value_relation_kl(
    student: Float[Array, "batch tokens features"] | Float[Array, "batch tokens heads features"],
    teacher: Float[Array, "batch tokens features_t"] | Float[Array, "batch tokens heads features_t"],
    *,
    heads: int | None = None,
    where: Bool[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch tokens"]:
    """Value relations: ``mean over heads of KL(softmax(V_t V_tᵀ/√d_t) ‖ softmax(V_s V_sᵀ/√d_s))`` for each token.

    Wang et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
    NeurIPS 2020, section 3.2. With queries or keys in place of the values, and relation heads in place of attention
    heads, it is each of the three relations of MiniLMv2 (Findings of ACL 2021, section 3.1). A relation is ``[tokens,
    tokens]`` for each head, so the feature sizes, and with ``heads`` also the numbers of attention heads, may differ.

    Args:
      student: values, queries or keys, as ``[batch, tokens, heads, features]`` (flax, `jax.nn.dot_product_attention`)
        or, with ``heads``, as ``[batch, tokens, features]``, whose features are split into consecutive parts.
      teacher: the same of the teacher; its feature size d may differ.
      heads: the number of relation heads that ``[batch, tokens, features]`` is split into.
      where: True for the tokens that count ``[batch, tokens]``; the others are in no relation.

    Returns:
      One value per token ``[batch, tokens]``, in nats. Vectors of zeros relate evenly to all tokens.

    Raises:
      ValueError: batch, tokens or heads differ, the heads do not divide the features, or a dtype is not floating.

    >>> student, teacher = jnp.array([[[1.0], [0.0]]]), jnp.array([[[0.0, 0.0], [0.0, 0.0]]])
    >>> value_relation_kl(student, teacher, heads=1).round(4)
    Array([[0.1201, 0.    ]], dtype=float32)
    """
    student, teacher = _split("student", student, heads), _split("teacher", teacher, heads)
    if student.shape[:3] != teacher.shape[:3]:
        raise ValueError(
            f"teacher: expected the student's [batch, tokens, heads] {list(student.shape[:3])} with features of any "
            f"size, got {list(teacher.shape[:3])} of {list(teacher.shape)}. heads= splits the features of both alike."
        )
    (student, teacher), where = _keep(where, student.shape[:2], student, teacher)

    def relation(x: Array) -> Array:
        product = jnp.einsum("bqhd,bkhd->bhqk", x, x, precision=jax.lax.Precision.HIGHEST)
        return _forbid(product / max(x.shape[-1], 1) ** 0.5, where)

    return _drop(jnp.mean(_kl(relation(student), relation(teacher)), axis=1), where)


def hidden_cosine(
    student: Float[Array, "batch tokens features"],
    teacher: Float[Array, "batch tokens features"],
    *,
    where: Bool[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch tokens"]:
    """Direction of the hidden states: ``1 − cos(h_s, h_t)`` for each token.

    Sanh et al., "DistilBERT, a distilled version of BERT: smaller, faster, cheaper and lighter", 2019, section 2. As
    in the authors' code, only the tokens that are no padding belong in the mean. Liger's fused cosine loss ignores the
    mask and averages over the padding too.

    Computed as ``½ ‖n(h_s) − n(h_t)‖²``, the same number without the rounding that is left of 1 − 1.

    Args:
      student: hidden states ``[batch, tokens, features]``.
      teacher: hidden states of the same shape.
      where: True for the tokens that count ``[batch, tokens]``.

    Returns:
      One value per token ``[batch, tokens]``, from 0 to 2. A vector of zeros (of a norm up to 1e-12) has no direction:
      its cosine is 0, its value 1, and its gradient 0.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> hidden_cosine(jnp.array([[[3.0, 0.0], [0.0, 2.0]]]), jnp.array([[[1.0, 0.0], [0.0, -1.0]]]))
    Array([[0., 2.]], dtype=float32)
    """
    student, teacher, where = _hidden(student, teacher, where)
    (unit_s, none_s), (unit_t, none_t) = _unit(student), _unit(teacher)
    half = jnp.sum((unit_s - unit_t) ** 2, axis=-1) + none_s.astype(student.dtype) + none_t.astype(teacher.dtype)
    return _drop(half / 2, where)


def hidden_mse(
    student: Float[Array, "batch tokens features"],
    teacher: Float[Array, "batch tokens features"],
    *,
    where: Bool[Array, "batch tokens"] | None = None,
) -> Float[Array, "batch tokens"]:
    """Hidden states: ``mean (h_s − h_t)²`` over the features of each token.

    Jiao et al., "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020, equations 8
    and 9, of hidden states and of embeddings; a student of another size learns a projection first. Without one it is
    the feature map transfer of Sun et al., "MobileBERT: a Compact Task-Agnostic BERT for Resource-Limited Devices",
    ACL 2020.

    Args:
      student: hidden states or embeddings ``[batch, tokens, features]``.
      teacher: those of the teacher, of the same shape.
      where: True for the tokens that count ``[batch, tokens]``.

    Returns:
      One value per token ``[batch, tokens]``.

    Raises:
      ValueError: shapes differ, or a dtype is not floating point.

    >>> hidden_mse(jnp.array([[[1.0, 2.0]]]), jnp.array([[[3.0, -1.0]]]))
    Array([[6.5]], dtype=float32)
    """
    student, teacher, where = _hidden(student, teacher, where)
    return _drop(jnp.mean((student - teacher) ** 2, axis=-1), where)


def _kl(student: Array, teacher: Array) -> Array:
    """KL of the distributions over the last axis; infinite where it is, but for that of finite slope in both."""
    (log_student, seen_s), (log_teacher, seen_t) = _log_softmax(student), _log_softmax(teacher)
    target = jnp.where(seen_t, jnp.exp(log_teacher), 0)
    # Keys that one of them forbids have finite logarithms here. What is infinite is added as a constant: a product of
    # the infinity and the target would have no finite slope for the teacher.
    infinite = jnp.where(jnp.any((target > 0) & ~seen_s, axis=-1), jnp.inf, 0)
    return jnp.sum(target * (log_teacher - log_student), axis=-1) + infinite


def _log_softmax(scores: Array) -> tuple[Array, Array]:
    """Over what is not ``-inf``, and what that is; finite also at the rest, and where nothing is left."""
    known = scores != -jnp.inf
    top = jax.lax.stop_gradient(jnp.max(scores, axis=-1, keepdims=True, initial=-jnp.inf))
    shifted = jnp.where(known, scores - jnp.where(top == -jnp.inf, 0, top), 0)
    total = jnp.sum(jnp.where(known, jnp.exp(shifted), 0), axis=-1, keepdims=True)
    return shifted - jnp.log(jnp.where(total == 0, 1, total)), known


def _unit(x: Array) -> tuple[Array, Array]:
    """``x / ‖x‖`` over the last axis, and True where the norm is too small for a direction, which is 0 there."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    none = square <= 1e-24
    return jnp.where(none, 0, x / jnp.sqrt(jnp.where(none, 1, square))), none[..., 0]


def _scores(student: Array, teacher: Array, where: Array | None) -> tuple[Array, Array, Array | None]:
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    if student.ndim != 4:
        raise ValueError(
            f"student: expected attention scores [batch, heads, queries, keys], got {list(student.shape)}."
        )
    _same_shape(student, teacher)
    batch, _, queries, keys = student.shape
    if where is not None and queries != keys:
        raise ValueError(
            f"where: expected self-attention, as many queries as keys, got scores {list(student.shape)}. A token is "
            "dropped as a query and as a key; in cross-attention, set the scores of forbidden keys to -inf instead."
        )
    where = _check_where(where, (batch, queries))
    return _forbid(student, where), _forbid(teacher, where), where


def _forbid(scores: Array, where: Array | None) -> Array:
    """-inf at the pairs of which one token does not count."""
    if where is None:
        return scores
    return jnp.where(where[:, None, :, None] & where[:, None, None, :], scores, -jnp.inf)


def _hidden(student: Array, teacher: Array, where: Array | None) -> tuple[Array, Array, Array | None]:
    student, teacher = _upcast("student", student), _upcast("teacher", teacher)
    if student.ndim != 3:
        raise ValueError(f"student: expected hidden states [batch, tokens, features], got {list(student.shape)}.")
    _same_shape(student, teacher)
    (student, teacher), where = _keep(where, student.shape[:2], student, teacher)
    return student, teacher, where


def _split(name: str, values: Array, heads: int | None) -> Array:
    """``[batch, tokens, heads, features]`` of either form."""
    values = _upcast(name, values)
    if values.ndim == 4 and heads in (None, values.shape[2]):
        return values
    if values.ndim == 3 and heads is not None and heads > 0 and values.shape[2] % heads == 0:
        return values.reshape(*values.shape[:2], heads, values.shape[2] // heads)
    if values.ndim == 3:
        raise ValueError(
            f"heads: expected a number that divides the features of {name} {list(values.shape)}, got {heads}."
        )
    raise ValueError(
        f"{name}: expected values [batch, tokens, features], or [batch, tokens, heads, features] with no other heads= "
        f"than theirs, got {list(values.shape)} and heads={heads}."
    )


def _upcast(name: str, x: Array) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        raise ValueError(f"{name}: expected floating-point [batch, ...], got {x.dtype}{list(x.shape)}.")
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _same_shape(student: Array, teacher: Array) -> None:
    if student.shape != teacher.shape:
        raise ValueError(
            f"teacher: expected the student's shape {list(student.shape)}, got {list(teacher.shape)}. Nothing is "
            "broadcast; select the heads or layers to compare, or project the features."
        )


def _check_where(where: Array | None, shape: tuple[int, ...]) -> Array | None:
    if where is None:
        return None
    where = jnp.asarray(where)
    if where.dtype != jnp.bool_ or where.shape != shape:
        raise ValueError(
            f"where: expected bool{list(shape)}, True for what counts, got {where.dtype}{list(where.shape)}."
        )
    return where


def _keep(where: Array | None, shape: tuple[int, ...], *arrays: Array) -> tuple[tuple[Array, ...], Array | None]:
    """Zeros the tokens that do not count before anything nonlinear can see them."""
    where = _check_where(where, shape)
    if where is None:
        return arrays, None
    return tuple(jnp.where(jnp.expand_dims(where, tuple(range(2, x.ndim))), x, 0) for x in arrays), where


def _drop(values: Array, where: Array | None) -> Array:
    return values if where is None else jnp.where(where, values, 0)
