"""Losses of hidden states and known words: labels, a teacher's top k, or draws."""

from __future__ import annotations

from typing import TYPE_CHECKING

from .. import _checks, _top_k
from . import _kernel, _rules

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int

__all__ = [
    "linear_cross_entropy",
    "linear_cross_entropy_and_kl",
    "linear_sparse_cross_entropy",
    "linear_top_k_kl",
]


def linear_cross_entropy(
    student_hidden: Float[Array, "*tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    labels: Int[Array, "*tokens"],
    *,
    student_bias: Float[Array, " vocabulary"] | None = None,
    soft_cap: float | None = None,
    transposed: bool = False,
    where: Bool[Array, "*tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "*tokens"]:
    """Cross-entropy of a language model with integer labels.

    Also known as: chunked (fused linear, cut) cross-entropy.

    ``−log softmax(hidden @ kernel + bias)[label]``: `cross_entropy` of the logits, without holding them. Derivatives,
    devices and memory are as for `linear_soft_target_kl`.

    Args:
      student_hidden: inputs of the last layer ``[tokens, hidden]`` or ``[batch, tokens, hidden]``.
      student_kernel: its kernel ``[hidden, vocabulary]``, or a table ``[vocabulary, hidden]`` with ``transposed``.
      labels: the word that follows, for each token ``[tokens]`` or ``[batch, tokens]``.
      student_bias: added to the logits ``[vocabulary]``. ``-inf`` excludes a word.
      soft_cap: c > 0 caps the logits at ±c by ``c tanh(z / c)``.
      transposed: whether the kernel is an embedding table ``[vocabulary, hidden]``.
      where: mask, True for the tokens to include, in the shape of the labels.
      vocabulary_axis: a mapped axis over which the vocabulary is split; labels count words of the whole vocabulary.
      chunk: largest number of tokens at once.

    Returns:
      One value per token, in nats, float32 or better. An included label that is no word yields NaN. An excluded one is
      infinite, with a finite gradient.

    Raises:
      ValueError: shapes do not fit, a dtype is not floating point (of the labels, integer), or a hyperparameter is out
        of its range.
      NotImplementedError: a second derivative.

    >>> import jax.numpy as jnp
    >>> linear_cross_entropy(jnp.array([[2.0, 0.0], [0.0, 0.0]]), jnp.eye(2), jnp.array([0, 1])).round(4)
    Array([0.1269, 0.6931], dtype=float32)
    """
    sides = _kernel.sides(transposed)
    student = _kernel.head("student", student_hidden, student_kernel, student_bias, sides[0])
    rows = (_checks.token_labels(labels, student.hidden.shape[:-1]),)
    soft_cap = soft_cap if soft_cap is None else _checks.positive("soft_cap", soft_cap)
    return _kernel.chunked(
        _rules.cross_entropy,
        student,
        rows=rows,
        soft_cap=soft_cap,
        transposed=sides,
        where=where,
        axis=vocabulary_axis,
        chunk=chunk,
    )[0]


def linear_cross_entropy_and_kl(
    student_hidden: Float[Array, "*tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    teacher_hidden: Float[Array, "*tokens hidden_t"],
    teacher_kernel: Float[Array, "hidden_t vocabulary"],
    labels: Int[Array, "*tokens"],
    *,
    weights: tuple[float | Float[Array, ""], float | Float[Array, ""]] = (1.0, 1.0),
    student_bias: Float[Array, " vocabulary"] | None = None,
    teacher_bias: Float[Array, " vocabulary"] | None = None,
    temperature: float | Float[Array, "*#tokens"] = 1.0,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    transposed: bool | tuple[bool, bool] = False,
    where: Bool[Array, "*tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> tuple[Float[Array, "*tokens"], Float[Array, "*tokens"]]:
    """Cross-entropy and KL of a language model in one pass over the vocabulary.

    Also known as: chunked (fused linear) distillation loss.

    `linear_cross_entropy` and `linear_soft_target_kl`, whose logits are computed once, and whose gradients have one
    array for the kernel instead of one for each. Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural
    Network", 2015, section 2. `jaxkd.objectives.linear_kd` is the objective.

    **Derivatives.** The gradients are computed together with the values, for ``weights[0]`` times the mean of the first
    plus ``weights[1]`` times the mean of the second, or any multiple of that. They are exact for any other total too,
    by a second pass.

    Args:
      student_hidden: inputs of the last layer ``[tokens, hidden]`` or ``[batch, tokens, hidden]``.
      student_kernel: its kernel ``[hidden, vocabulary]``.
      teacher_hidden: the teacher's hidden states ``[tokens, hidden_t]``, of the same tokens.
      teacher_kernel: the teacher's kernel ``[hidden_t, vocabulary]``.
      labels: the word that follows, for each token ``[tokens]`` or ``[batch, tokens]``.
      weights: the weights that the caller gives the two values in the total, which they do not contain. Numbers or
        scalars, such as a schedule's; announced wrongly, they cost time and change nothing.
      student_bias: added to the student's logits ``[vocabulary]``.
      teacher_bias: added to the teacher's logits ``[vocabulary]``.
      temperature: T > 0 of the KL, a scalar or one for each token. The cross-entropy is at temperature 1.
      soft_cap: c > 0, the cap of the logits, or a pair for student and teacher.
      transposed: whether the kernels are embedding tables ``[vocabulary, hidden]``, or a pair for student and teacher.
      where: mask, True for the tokens to include, in the shape of the labels.
      vocabulary_axis: a mapped axis over which the vocabulary is split; labels count words of the whole vocabulary.
      chunk: largest number of tokens at once.

    Returns:
      The cross-entropies and the divergences, one value per token each.

    Raises:
      ValueError: as of the two losses, or the weights are not two numbers.
      NotImplementedError: as of the two losses.

    >>> import jax.numpy as jnp
    >>> student, teacher, labels = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]]), jnp.array([0])
    >>> ce, kl = linear_cross_entropy_and_kl(student, jnp.eye(2), teacher, jnp.eye(2), labels, temperature=2.0)
    >>> ce.round(4), kl.round(4)
    (Array([0.3133], dtype=float32), Array([1.6313], dtype=float32))
    """
    sides = _kernel.sides(transposed)
    student = _kernel.head("student", student_hidden, student_kernel, student_bias, sides[0])
    teacher = _kernel.head("teacher", teacher_hidden, teacher_kernel, teacher_bias, sides[1])
    if not isinstance(weights, tuple | list) or len(weights) != 2:
        raise ValueError(f"weights: expected two numbers, of the cross-entropy and of the KL, got {weights}.")
    values = _kernel.chunked(
        _rules.cross_entropy_and_kl,
        student,
        teacher,
        (_checks.token_labels(labels, student.hidden.shape[:-1]),),
        temperature=temperature,
        weights=tuple(_checks.finite("weights", weight) for weight in weights),
        soft_cap=soft_cap,
        transposed=sides,
        where=where,
        axis=vocabulary_axis,
        chunk=chunk,
    )
    return values[0], values[1]


def linear_sparse_cross_entropy(
    student_hidden: Float[Array, "*tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    weights: Float[Array, "*tokens k"],
    indices: Int[Array, "*tokens k"],
    *,
    student_bias: Float[Array, " vocabulary"] | None = None,
    soft_cap: float | None = None,
    transposed: bool = False,
    where: Bool[Array, "*tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "*tokens"]:
    """Cross-entropy of a language model with a target that lists words and weights.

    Also known as: chunked (fused linear) RS-KD (random sampling KD).

    ``−Σ_j w_j log softmax(hidden @ kernel + bias)_{i_j}``: `sparse_cross_entropy` of the logits, without holding them,
    for words that `jaxkd.cache.codecs.sampled` has drawn from the teacher. Anshumann et al., "Sparse Logit Sampling:
    Accelerating Knowledge Distillation in LLMs", ACL 2025. Derivatives, devices and memory are as for
    `linear_soft_target_kl`.

    Args:
      student_hidden: inputs of the last layer ``[tokens, hidden]`` or ``[batch, tokens, hidden]``.
      student_kernel: its kernel ``[hidden, vocabulary]``, or a table ``[vocabulary, hidden]`` with ``transposed``.
      weights: the weights w, not normalized ``[tokens, k]``. A weight of 0 adds nothing. They have no gradient.
      indices: the words of these ``[tokens, k]``. A word may be listed several times: its weights are added.
      student_bias: added to the logits ``[vocabulary]``. ``-inf`` excludes a word.
      soft_cap: c > 0 caps the logits at ±c by ``c tanh(z / c)``.
      transposed: whether the kernel is an embedding table ``[vocabulary, hidden]``.
      where: mask, True for the tokens to include, in the shape of the tokens.
      vocabulary_axis: a mapped axis over which the vocabulary is split; indices count words of the whole vocabulary.
      chunk: largest number of tokens at once.

    Returns:
      One value per token, in nats; its minimum is the entropy of the target, not 0. An included index that is no word
      and has a weight gives NaN. A positive weight of an excluded word makes the value infinite; the gradient is
      finite.

    Raises:
      ValueError: shapes do not fit, a dtype is not floating point, indices are not integers, or the cap is not
        positive.
      NotImplementedError: a second derivative, or one with respect to the weights.

    >>> import jax.numpy as jnp
    >>> weights, indices = jnp.array([[0.5, 0.25, 0.25]]), jnp.array([[2, 0, 2]])
    >>> linear_sparse_cross_entropy(jnp.zeros((1, 3)), jnp.ones((3, 4)), weights, indices).round(4)
    Array([1.3863], dtype=float32)
    """
    sides = _kernel.sides(transposed)
    student = _kernel.head("student", student_hidden, student_kernel, student_bias, sides[0])
    of = f"the hidden states {list(student.hidden.shape)}"
    rows = _checks.listed(weights, indices, student.hidden.shape[:-1], of)
    soft_cap = soft_cap if soft_cap is None else _checks.positive("soft_cap", soft_cap)
    return _kernel.chunked(
        _rules.sparse,
        student,
        rows=rows,
        soft_cap=soft_cap,
        transposed=sides,
        where=where,
        axis=vocabulary_axis,
        chunk=chunk,
    )[0]


def linear_top_k_kl(
    student_hidden: Float[Array, "*tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    log_probs: Float[Array, "*tokens k"],
    indices: Int[Array, "*tokens k"],
    *,
    student_bias: Float[Array, " vocabulary"] | None = None,
    temperature: float | Float[Array, "*#tokens"] = 1.0,
    soft_cap: float | None = None,
    transposed: bool = False,
    where: Bool[Array, "*tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "*tokens"]:
    """KL divergence of a language model to k known words of a teacher and their tail.

    Also known as: chunked (fused linear) top-k distillation, sparse logits with a tail bucket.

    `top_k_kl` of the logits ``hidden @ kernel + bias``, without holding them: a lower bound of
    ``T² KL(p_t ‖ p_s)``, never negative. Derivatives, devices and memory are as for `linear_soft_target_kl`.

    Args:
      student_hidden: inputs of the last layer ``[tokens, hidden]`` or ``[batch, tokens, hidden]``.
      student_kernel: its kernel ``[hidden, vocabulary]``, or a table ``[vocabulary, hidden]`` with ``transposed``.
      log_probs: the teacher's log-probabilities ``[tokens, k]``, normalized over the whole vocabulary, at the same
        temperature. They have no gradient.
      indices: the words of these ``[tokens, k]``. A word that is listed twice, with one log-probability, counts once.
        To keep fewer for some tokens, pad with a log-probability of ``-inf`` and the index -1.
      student_bias: added to the logits ``[vocabulary]``. ``-inf`` excludes a word.
      temperature: T > 0 of the student, a scalar or one for each token.
      soft_cap: c > 0 caps the logits at ±c by ``c tanh(z / c)``.
      transposed: whether the kernel is an embedding table ``[vocabulary, hidden]``.
      where: mask, True for the tokens to include, in the shape of the tokens.
      vocabulary_axis: a mapped axis over which the vocabulary is split; indices count words of the whole vocabulary.
      chunk: largest number of tokens at once.

    Returns:
      One value per token, in nats times T². An included index that is no word, padding apart, gives NaN, and so does a
      word that is listed with two log-probabilities. It is infinite where the student excludes a word that the teacher
      does not; gradients stay finite there.

    Raises:
      ValueError: shapes do not fit, a dtype is not floating point, indices are not integers, or a hyperparameter is out
        of its range.
      NotImplementedError: a second derivative, or one with respect to the temperature or the log-probabilities.

    >>> import jax
    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.log(jnp.array([[0.2, 0.2, 0.3, 0.3]])), jnp.log(jnp.array([[0.5, 0.3, 0.1, 0.1]]))
    >>> log_probs, indices = jax.lax.top_k(teacher, 2)
    >>> linear_top_k_kl(student, jnp.eye(4), log_probs, indices).round(4)
    Array([0.3601], dtype=float32)
    """
    sides = _kernel.sides(transposed)
    student = _kernel.head("student", student_hidden, student_kernel, student_bias, sides[0])
    words = _kernel.vocabulary(student, sides[0], vocabulary_axis)
    of = f"the kernel {list(student.kernel.shape)}"
    rows = _top_k.checked(log_probs, indices, student.hidden.shape[:-1], words, of)
    soft_cap = soft_cap if soft_cap is None else _checks.positive("soft_cap", soft_cap)
    return _kernel.chunked(
        _rules.top_k,
        student,
        rows=rows,
        temperature=temperature,
        soft_cap=soft_cap,
        transposed=sides,
        where=where,
        axis=vocabulary_axis,
        chunk=chunk,
    )[0]
