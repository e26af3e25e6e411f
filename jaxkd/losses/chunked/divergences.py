"""Divergences of two language models from their hidden states."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .. import _checks
from . import _kernel, _rules

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = [
    "linear_generalized_jsd",
    "linear_reverse_kl",
    "linear_skew_kl",
    "linear_skew_reverse_kl",
    "linear_soft_target_kl",
    "linear_total_variation",
]


def linear_soft_target_kl(
    student_hidden: Float[Array, "*tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    teacher_hidden: Float[Array, "*tokens hidden_t"],
    teacher_kernel: Float[Array, "hidden_t vocabulary"],
    *,
    student_bias: Float[Array, " vocabulary"] | None = None,
    teacher_bias: Float[Array, " vocabulary"] | None = None,
    temperature: float | Float[Array, "*#tokens"] = 1.0,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    transposed: bool | tuple[bool, bool] = False,
    where: Bool[Array, "*tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "*tokens"]:
    """KL divergence of two language models' softened probabilities, times T².

    Also known as: chunked (fused linear) KD loss, soft targets.

    ``T² KL(p_t ‖ p_s)`` with ``p = softmax((hidden @ kernel + bias) / T)``: `soft_target_kl` of the two networks'
    logits, without holding them. Hinton, Vinyals & Dean, "Distilling the Knowledge in a Neural Network", 2015.

    **Derivatives.** The gradients are computed together with the values, for a cotangent of 1, and scaled in the
    backward pass. That is exact for a mean or a weighted mean, over all tokens or over those of ``where``; with any
    other cotangent (one weight per token, say) the kernels' gradients are computed a second time. Only what is
    differentiated is computed: nothing for a teacher behind `jax.lax.stop_gradient`. First derivatives in reverse mode
    only.

    **Devices.** With ``vocabulary_axis``, kernels and biases hold this device's slice of the vocabulary, and hidden
    states and the result are the same on all devices of that axis. Differentiate inside the mapped function: every
    device then gets the gradients of the hidden states and of its slices for the one loss that all of them hold (not
    for the sum over the devices). Under `jax.shard_map` with ``check_vma=True`` differentiating outside is right too.
    Without the axis, arrays that `jax.jit` places with a `NamedSharding` may be split along the tokens, the vocabulary
    or both.

    Args:
      student_hidden: inputs of the last layer ``[tokens, hidden]`` or ``[batch, tokens, hidden]``.
      student_kernel: its kernel ``[hidden, vocabulary]``, or a table ``[vocabulary, hidden]`` with ``transposed``.
      teacher_hidden: the teacher's hidden states ``[tokens, hidden_t]``, of the same tokens.
      teacher_kernel: the teacher's kernel ``[hidden_t, vocabulary]``, with the same words in the same order.
      student_bias: added to the student's logits ``[vocabulary]``. ``-inf`` excludes a word; a word that both exclude
        adds nothing.
      teacher_bias: added to the teacher's logits ``[vocabulary]``.
      temperature: T > 0, a scalar or one for each token. It has no gradient. The default, 1, is that of the published
        losses of language models, all of `jaxkd.losses.chunked`; `soft_target_kl` has 4, that of image classification.
      soft_cap: c > 0 caps the logits at ±c by ``c tanh(z / c)`` (Gemma 2, 2024), also those of an excluded word; a pair
        is for student and teacher, either of which may be None.
      transposed: whether the kernels are embedding tables ``[vocabulary, hidden]``, or a pair for student and teacher.
        A table is taken as it is; a transposed array would be copied.
      where: mask, True for the tokens to include, in the shape of the tokens.
      vocabulary_axis: a mapped axis over which the vocabulary is split.
      chunk: largest number of tokens at once. By default one network's logits take 16 MiB, or as much as a quarter of
        the kernel's gradient (up to 256 tokens) if that is more. Memory is about four times a chunk's logits plus the
        kernels' gradients. Accelerators may be faster with more.

    Returns:
      One value per token ``[tokens]`` or ``[batch, tokens]``, in nats times T², float32 or better also of
      half-precision inputs, whose products are summed in float32. It is infinite where the student excludes a word that
      the teacher does not; gradients stay finite there.

    Raises:
      ValueError: shapes do not fit, a dtype is not floating point, or a hyperparameter is out of its range.
      NotImplementedError: a second derivative, or one with respect to the temperature.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]])
    >>> linear_soft_target_kl(student, jnp.eye(2), teacher, jnp.eye(2), temperature=2.0).round(4)
    Array([1.6313], dtype=float32)
    """
    return _pair(
        _rules.forward_kl,
        (student_hidden, student_kernel, student_bias),
        (teacher_hidden, teacher_kernel, teacher_bias),
        temperature=temperature,
        soft_cap=soft_cap,
        transposed=transposed,
        where=where,
        axis=vocabulary_axis,
        chunk=chunk,
    )


def linear_reverse_kl(
    student_hidden: Float[Array, "*tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    teacher_hidden: Float[Array, "*tokens hidden_t"],
    teacher_kernel: Float[Array, "hidden_t vocabulary"],
    *,
    student_bias: Float[Array, " vocabulary"] | None = None,
    teacher_bias: Float[Array, " vocabulary"] | None = None,
    temperature: float | Float[Array, "*#tokens"] = 1.0,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    transposed: bool | tuple[bool, bool] = False,
    where: Bool[Array, "*tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "*tokens"]:
    """Reverse KL divergence of two language models, times T².

    Also known as: chunked (fused linear) RKL, MiniLLM.

    ``T² KL(p_s ‖ p_t)`` with ``p = softmax((hidden @ kernel + bias) / T)``: `reverse_kl` of the two networks' logits,
    without holding them. Gu et al., "MiniLLM", ICLR 2024, equation 1, for one token.
    Derivatives, devices and memory are as for `linear_soft_target_kl`.

    Args:
      student_hidden: inputs of the student's last layer ``[tokens, hidden]``; all arguments are those of
        `linear_soft_target_kl`.
      student_kernel: its kernel ``[hidden, vocabulary]``.
      teacher_hidden: the teacher's hidden states ``[tokens, hidden_t]``.
      teacher_kernel: the teacher's kernel ``[hidden_t, vocabulary]``.
      student_bias: added to the student's logits ``[vocabulary]``.
      teacher_bias: added to the teacher's logits ``[vocabulary]``.
      temperature: T > 0, a scalar or one for each token.
      soft_cap: c > 0, the cap of the logits, or a pair for student and teacher.
      transposed: whether the kernels are embedding tables ``[vocabulary, hidden]``, or a pair for student and teacher.
      where: mask, True for the tokens to include, in the shape of the tokens.
      vocabulary_axis: a mapped axis over which the vocabulary is split.
      chunk: largest number of tokens at once.

    Returns:
      One value per token, in nats times T². It is infinite where the teacher excludes a word that the student does not;
      gradients stay finite there. A word that both exclude adds nothing.

    Raises:
      ValueError: shapes do not fit, a dtype is not floating point, or a hyperparameter is out of its range.
      NotImplementedError: as for `linear_soft_target_kl`.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0, 3.0]]), jnp.array([[1.0, 0.0]])
    >>> linear_reverse_kl(student, jnp.eye(2), teacher, jnp.eye(2), temperature=2.0).round(4)
    Array([1.6313], dtype=float32)
    """
    return _pair(
        _rules.reverse_kl,
        (student_hidden, student_kernel, student_bias),
        (teacher_hidden, teacher_kernel, teacher_bias),
        temperature=temperature,
        soft_cap=soft_cap,
        transposed=transposed,
        where=where,
        axis=vocabulary_axis,
        chunk=chunk,
    )


def linear_generalized_jsd(
    student_hidden: Float[Array, "*tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    teacher_hidden: Float[Array, "*tokens hidden_t"],
    teacher_kernel: Float[Array, "hidden_t vocabulary"],
    *,
    beta: float = 0.5,
    student_bias: Float[Array, " vocabulary"] | None = None,
    teacher_bias: Float[Array, " vocabulary"] | None = None,
    temperature: float | Float[Array, "*#tokens"] = 1.0,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    transposed: bool | tuple[bool, bool] = False,
    where: Bool[Array, "*tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "*tokens"]:
    """Generalized Jensen–Shannon divergence of two language models.

    Also known as: GKD (generalized knowledge distillation), chunked (fused linear) JSD.

    ``β KL(p_t ‖ m) + (1−β) KL(p_s ‖ m)`` with ``m = β p_t + (1−β) p_s`` and ``p = softmax((hidden @ kernel + bias) /
    T)``: `generalized_jsd` of the two networks' logits, without holding them. Agarwal et al., "On-Policy Distillation
    of Language Models", ICLR 2024, section 2; as there, without T². By convention β = 0 is ``KL(p_t ‖ p_s)`` and β = 1
    is ``KL(p_s ‖ p_t)``. Derivatives, devices and memory are as for `linear_soft_target_kl`.

    Args:
      student_hidden: inputs of the student's last layer ``[tokens, hidden]``; all arguments but ``beta`` are those of
        `linear_soft_target_kl`.
      student_kernel: its kernel ``[hidden, vocabulary]``.
      teacher_hidden: the teacher's hidden states ``[tokens, hidden_t]``.
      teacher_kernel: the teacher's kernel ``[hidden_t, vocabulary]``.
      beta: the teacher's share of the mixture, a number from 0 to 1.
      student_bias: added to the student's logits ``[vocabulary]``.
      teacher_bias: added to the teacher's logits ``[vocabulary]``.
      temperature: T > 0, a scalar or one for each token ``[tokens]``.
      soft_cap: c > 0, the cap of the logits, or a pair for student and teacher.
      transposed: whether the kernels are embedding tables ``[vocabulary, hidden]``, or a pair for student and teacher.
      where: mask, True for the tokens to include ``[tokens]``.
      vocabulary_axis: a mapped axis over which the vocabulary is split.
      chunk: largest number of tokens at once.

    Returns:
      One value per token ``[tokens]``, in nats. For 0 < β < 1 it is at most the entropy of (β, 1−β), hence finite.

    Raises:
      ValueError: shapes do not fit, a dtype is not floating point, or a hyperparameter is out of its range.
      NotImplementedError: as for `linear_soft_target_kl`.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[40.0, 0.0]]), jnp.array([[0.0, 40.0]])
    >>> linear_generalized_jsd(student, jnp.eye(2), teacher, jnp.eye(2)).round(4)  # log 2
    Array([0.6931], dtype=float32)
    """
    return _pair(
        _rules.jsd,
        (student_hidden, student_kernel, student_bias),
        (teacher_hidden, teacher_kernel, teacher_bias),
        number=_checks.static("beta", _checks.fraction("beta", beta)),
        temperature=temperature,
        soft_cap=soft_cap,
        transposed=transposed,
        where=where,
        axis=vocabulary_axis,
        chunk=chunk,
    )


def linear_skew_kl(
    student_hidden: Float[Array, "*tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    teacher_hidden: Float[Array, "*tokens hidden_t"],
    teacher_kernel: Float[Array, "hidden_t vocabulary"],
    *,
    alpha: float = 0.1,
    student_bias: Float[Array, " vocabulary"] | None = None,
    teacher_bias: Float[Array, " vocabulary"] | None = None,
    temperature: float | Float[Array, "*#tokens"] = 1.0,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    transposed: bool | tuple[bool, bool] = False,
    where: Bool[Array, "*tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "*tokens"]:
    """KL divergence of a teacher against its mixture with the student.

    Also known as: chunked (fused linear) SKL, DistiLLM.

    ``T² KL(p_t ‖ α p_t + (1−α) p_s)`` with ``p = softmax((hidden @ kernel + bias) / T)``: `skew_kl` of the two
    networks' logits, without holding them. Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language
    Models", ICML 2024, section 3.1.
    Derivatives, devices and memory are as for `linear_soft_target_kl`.

    Args:
      student_hidden: inputs of the student's last layer ``[tokens, hidden]``; all arguments but ``alpha`` are those of
        `linear_soft_target_kl`.
      student_kernel: its kernel ``[hidden, vocabulary]``.
      teacher_hidden: the teacher's hidden states ``[tokens, hidden_t]``.
      teacher_kernel: the teacher's kernel ``[hidden_t, vocabulary]``.
      alpha: the teacher's share of the mixture, a number from 0 to 1.
      student_bias: added to the student's logits ``[vocabulary]``.
      teacher_bias: added to the teacher's logits ``[vocabulary]``.
      temperature: T > 0, a scalar or one for each token.
      soft_cap: c > 0, the cap of the logits, or a pair for student and teacher.
      transposed: whether the kernels are embedding tables ``[vocabulary, hidden]``, or a pair for student and teacher.
      where: mask, True for the tokens to include, in the shape of the tokens.
      vocabulary_axis: a mapped axis over which the vocabulary is split.
      chunk: largest number of tokens at once.

    Returns:
      One value per token, in nats times T², at most ``-log α`` times T².

    Raises:
      ValueError: shapes do not fit, a dtype is not floating point, or a hyperparameter is out of its range.
      NotImplementedError: as for `linear_soft_target_kl`.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0, 100.0]]), jnp.array([[100.0, 0.0]])
    >>> linear_skew_kl(student, jnp.eye(2), teacher, jnp.eye(2)).round(4)  # log 10, in place of 100
    Array([2.3026], dtype=float32)
    """
    return _pair(
        _rules.skew_kl,
        (student_hidden, student_kernel, student_bias),
        (teacher_hidden, teacher_kernel, teacher_bias),
        number=_checks.static("alpha", _checks.fraction("alpha", alpha)),
        temperature=temperature,
        soft_cap=soft_cap,
        transposed=transposed,
        where=where,
        axis=vocabulary_axis,
        chunk=chunk,
    )


def linear_skew_reverse_kl(
    student_hidden: Float[Array, "*tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    teacher_hidden: Float[Array, "*tokens hidden_t"],
    teacher_kernel: Float[Array, "hidden_t vocabulary"],
    *,
    alpha: float = 0.1,
    student_bias: Float[Array, " vocabulary"] | None = None,
    teacher_bias: Float[Array, " vocabulary"] | None = None,
    temperature: float | Float[Array, "*#tokens"] = 1.0,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    transposed: bool | tuple[bool, bool] = False,
    where: Bool[Array, "*tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "*tokens"]:
    """KL divergence of a student against its mixture with the teacher.

    Also known as: chunked (fused linear) SRKL, DistiLLM.

    ``T² KL(p_s ‖ (1−α) p_t + α p_s)`` with ``p = softmax((hidden @ kernel + bias) / T)``: `skew_reverse_kl` of the two
    networks' logits, without holding them. Ko et al., "DistiLLM: Towards Streamlined Distillation for Large Language
    Models", ICML 2024, section 3.1.
    Derivatives, devices and memory are as for `linear_soft_target_kl`.

    Args:
      student_hidden: inputs of the student's last layer ``[tokens, hidden]``; all arguments but ``alpha`` are those of
        `linear_soft_target_kl`.
      student_kernel: its kernel ``[hidden, vocabulary]``.
      teacher_hidden: the teacher's hidden states ``[tokens, hidden_t]``.
      teacher_kernel: the teacher's kernel ``[hidden_t, vocabulary]``.
      alpha: the student's share of the mixture, a number from 0 to 1.
      student_bias: added to the student's logits ``[vocabulary]``.
      teacher_bias: added to the teacher's logits ``[vocabulary]``.
      temperature: T > 0, a scalar or one for each token.
      soft_cap: c > 0, the cap of the logits, or a pair for student and teacher.
      transposed: whether the kernels are embedding tables ``[vocabulary, hidden]``, or a pair for student and teacher.
      where: mask, True for the tokens to include, in the shape of the tokens.
      vocabulary_axis: a mapped axis over which the vocabulary is split.
      chunk: largest number of tokens at once.

    Returns:
      One value per token, in nats times T², at most ``-log α`` times T².

    Raises:
      ValueError: shapes do not fit, a dtype is not floating point, or a hyperparameter is out of its range.
      NotImplementedError: as for `linear_soft_target_kl`.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 2.0]])
    >>> linear_skew_reverse_kl(student, jnp.eye(2), teacher, jnp.eye(2)).round(4)
    Array([0.7233], dtype=float32)
    """
    return _pair(
        _rules.skew_reverse_kl,
        (student_hidden, student_kernel, student_bias),
        (teacher_hidden, teacher_kernel, teacher_bias),
        number=_checks.static("alpha", _checks.fraction("alpha", alpha)),
        temperature=temperature,
        soft_cap=soft_cap,
        transposed=transposed,
        where=where,
        axis=vocabulary_axis,
        chunk=chunk,
    )


def linear_total_variation(
    student_hidden: Float[Array, "*tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    teacher_hidden: Float[Array, "*tokens hidden_t"],
    teacher_kernel: Float[Array, "hidden_t vocabulary"],
    *,
    student_bias: Float[Array, " vocabulary"] | None = None,
    teacher_bias: Float[Array, " vocabulary"] | None = None,
    temperature: float | Float[Array, "*#tokens"] = 1.0,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    transposed: bool | tuple[bool, bool] = False,
    where: Bool[Array, "*tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, "*tokens"]:
    """Total variation distance of two language models.

    Also known as: chunked (fused linear) TV, TVD.

    ``½ Σ |p_t − p_s|`` with ``p = softmax((hidden @ kernel + bias) / T)``: `total_variation` of the two networks'
    logits, without holding them. Leviathan, Kalman & Matias, "Fast Inference from Transformers via Speculative
    Decoding", ICML 2023, section 3.2: one minus the probability that the teacher accepts a word that the student
    drafts.
    Derivatives, devices and memory are as for `linear_soft_target_kl`.

    Args:
      student_hidden: inputs of the student's last layer ``[tokens, hidden]``; all arguments are those of
        `linear_soft_target_kl`.
      student_kernel: its kernel ``[hidden, vocabulary]``.
      teacher_hidden: the teacher's hidden states ``[tokens, hidden_t]``.
      teacher_kernel: the teacher's kernel ``[hidden_t, vocabulary]``.
      student_bias: added to the student's logits ``[vocabulary]``.
      teacher_bias: added to the teacher's logits ``[vocabulary]``.
      temperature: T > 0, a scalar or one for each token.
      soft_cap: c > 0, the cap of the logits, or a pair for student and teacher.
      transposed: whether the kernels are embedding tables ``[vocabulary, hidden]``, or a pair for student and teacher.
      where: mask, True for the tokens to include, in the shape of the tokens.
      vocabulary_axis: a mapped axis over which the vocabulary is split.
      chunk: largest number of tokens at once.

    Returns:
      One value per token, from 0 to 1, without T².

    Raises:
      ValueError: shapes do not fit, a dtype is not floating point, or a hyperparameter is out of its range.
      NotImplementedError: as for `linear_soft_target_kl`.

    >>> import jax.numpy as jnp
    >>> student, teacher = jnp.array([[0.0, 0.0]]), jnp.log(jnp.array([[0.9, 0.1]]))
    >>> linear_total_variation(student, jnp.eye(2), teacher, jnp.eye(2)).round(4)
    Array([0.4], dtype=float32)
    """
    return _pair(
        _rules.total_variation,
        (student_hidden, student_kernel, student_bias),
        (teacher_hidden, teacher_kernel, teacher_bias),
        temperature=temperature,
        soft_cap=soft_cap,
        transposed=transposed,
        where=where,
        axis=vocabulary_axis,
        chunk=chunk,
    )


def _pair(
    rule: _kernel.Rule, student: tuple[Any, Any, Any], teacher: tuple[Any, Any, Any], *, transposed: Any, **options: Any
) -> Array:
    """Calls the kernel for a loss of two networks."""
    sides = _kernel.sides(transposed)
    heads = (
        _kernel.head("student", *student, transposed=sides[0]),
        _kernel.head("teacher", *teacher, transposed=sides[1]),
    )
    return _kernel.chunked(rule, *heads, transposed=sides, **options)[0]
