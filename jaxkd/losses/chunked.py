"""Losses of language models from hidden states, without all tokens' logits.

A language model's last layer multiplies with a vocabulary so large that its logits take more memory than the rest of
the step. These losses take the inputs and the kernel of that layer instead. Values and gradients are those of the same
loss of the logits ``hidden @ kernel + bias``.

How the kernel works: `_run` scans over chunks of tokens. A step computes the logits of one chunk for both networks,
their divergence and its derivatives (`_divergence`), and at once multiplies the derivatives with the hidden states and
kernels, so that the logits are computed once and then dropped. A `custom_vjp` therefore has the gradients after the
*forward* pass; it saves its inputs and these gradients, which are as large as the inputs, and the backward pass only
scales them by the cotangent (`_scale`). Sums over the vocabulary subtract the maximum first, products are summed in
float32 whatever the inputs' dtype, and excluded (``-inf``) words are selected away before they are multiplied.
"""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from . import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["linear_generalized_jsd", "linear_soft_target_kl"]


_ELEMENTS = 1 << 23  # logits of one network in a chunk, 32 MiB in float32: enough for efficient products
_TOKENS = 256  # least number of tokens in a chunk: each chunk reads and writes the kernel's whole gradient


def linear_soft_target_kl(
    student_hidden: Float[Array, "tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    teacher_hidden: Float[Array, "tokens hidden_t"],
    teacher_kernel: Float[Array, "hidden_t vocabulary"],
    *,
    student_bias: Float[Array, " vocabulary"] | None = None,
    teacher_bias: Float[Array, " vocabulary"] | None = None,
    temperature: float | Float[Array, "#tokens"] = 1.0,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    where: Bool[Array, " tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, " tokens"]:
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
      student_hidden: inputs of the last layer ``[tokens, hidden]``; flatten batch and sequence first.
      student_kernel: its kernel ``[hidden, vocabulary]``; transpose an embedding table ``[vocabulary, hidden]``.
      teacher_hidden: the teacher's hidden states ``[tokens, hidden_t]``.
      teacher_kernel: the teacher's kernel ``[hidden_t, vocabulary]``, with the same words in the same order.
      student_bias: added to the student's logits ``[vocabulary]``. ``-inf`` excludes a word; a word that both exclude
        adds nothing.
      teacher_bias: added to the teacher's logits ``[vocabulary]``.
      temperature: T > 0, a scalar or one for each token ``[tokens]``. It has no gradient.
      soft_cap: c > 0 caps the logits at ±c by ``c tanh(z / c)`` (Gemma 2, 2024), also those of an excluded word; a pair
        is for student and teacher, either of which may be None.
      where: mask, True for the tokens to include ``[tokens]``.
      vocabulary_axis: a mapped axis over which the vocabulary is split.
      chunk: largest number of tokens at once. By default one network's logits take 32 MiB, or 256 tokens if these take
        more. Memory is about four times a chunk's logits plus the kernels' gradients. Accelerators may be faster with
        more.

    Returns:
      One value per token ``[tokens]``, in nats times T², float32 or better also of half-precision inputs, whose
      products are summed in float32. It is infinite where the student excludes a word that the teacher does not;
      gradients stay finite there.

    Raises:
      ValueError: shapes do not fit, a dtype is not floating point, or a hyperparameter is out of its range.
      NotImplementedError: a second derivative, or one with respect to the temperature.

    >>> student, teacher = jnp.array([[1.0, 0.0]]), jnp.array([[0.0, 3.0]])
    >>> linear_soft_target_kl(student, jnp.eye(2), teacher, jnp.eye(2), temperature=2.0).round(4)
    Array([1.6313], dtype=float32)
    """
    student = _head("student", student_hidden, student_kernel, student_bias)
    teacher = _head("teacher", teacher_hidden, teacher_kernel, teacher_bias)
    return _chunked(
        None, student, teacher, temperature, soft_cap=soft_cap, where=where, axis=vocabulary_axis, chunk=chunk
    )


def linear_generalized_jsd(
    student_hidden: Float[Array, "tokens hidden"],
    student_kernel: Float[Array, "hidden vocabulary"],
    teacher_hidden: Float[Array, "tokens hidden_t"],
    teacher_kernel: Float[Array, "hidden_t vocabulary"],
    *,
    beta: float = 0.5,
    student_bias: Float[Array, " vocabulary"] | None = None,
    teacher_bias: Float[Array, " vocabulary"] | None = None,
    temperature: float | Float[Array, "#tokens"] = 1.0,
    soft_cap: float | tuple[float | None, float | None] | None = None,
    where: Bool[Array, " tokens"] | None = None,
    vocabulary_axis: str | None = None,
    chunk: int | None = None,
) -> Float[Array, " tokens"]:
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
      where: mask, True for the tokens to include ``[tokens]``.
      vocabulary_axis: a mapped axis over which the vocabulary is split.
      chunk: largest number of tokens at once.

    Returns:
      One value per token ``[tokens]``, in nats. For 0 < β < 1 it is at most the entropy of (β, 1−β), hence finite.

    Raises:
      ValueError: shapes do not fit, a dtype is not floating point, or a hyperparameter is out of its range.
      NotImplementedError: as for `linear_soft_target_kl`.

    >>> student, teacher = jnp.array([[40.0, 0.0]]), jnp.array([[0.0, 40.0]])
    >>> linear_generalized_jsd(student, jnp.eye(2), teacher, jnp.eye(2)).round(4)  # log 2
    Array([0.6931], dtype=float32)
    """
    student = _head("student", student_hidden, student_kernel, student_bias)
    teacher = _head("teacher", teacher_hidden, teacher_kernel, teacher_bias)
    beta = _checks.static("beta", _checks.fraction("beta", beta))
    return _chunked(
        beta, student, teacher, temperature, soft_cap=soft_cap, where=where, axis=vocabulary_axis, chunk=chunk
    )


class _Head(NamedTuple):
    """A last layer and its inputs, or their gradients, or which are requested."""

    hidden: Any
    kernel: Any
    bias: Any


_NOTHING = _Head(None, None, None)


class _Static(NamedTuple):
    """Static arguments of the kernel; ``beta`` is None for `linear_soft_target_kl`."""

    beta: float | None
    caps: tuple[Any, ...]
    axis: str | None
    size: int


def _chunked(
    beta: float | None,
    student: _Head,
    teacher: _Head,
    temperature: Any,
    *,
    soft_cap: Any,
    where: Any,
    axis: Any,
    chunk: Any,
) -> Array:
    """Checks the arguments, chooses the size of the chunks and calls the kernel."""
    (tokens, _), (_, vocabulary) = student.hidden.shape, student.kernel.shape
    if teacher.hidden.shape[0] != tokens:
        raise ValueError(f"teacher_hidden: expected the student's {tokens} tokens, got {list(teacher.hidden.shape)}.")
    if teacher.kernel.shape[1] != vocabulary:
        raise ValueError(
            f"teacher_kernel: expected the student's vocabulary of {vocabulary}, got {list(teacher.kernel.shape)}. "
            "Nothing is padded or cut: select the words both know, in one order, from both kernels and biases."
        )
    where = _checks.mask_or_ones(where, (tokens,))
    words = vocabulary if axis is None else vocabulary * jax.lax.axis_size(axis)
    _checks.several("student_kernel", student.kernel, words, "words")
    pair = soft_cap if isinstance(soft_cap, tuple | list) else (soft_cap, soft_cap)
    if len(pair) != 2:
        raise ValueError(f"soft_cap: expected a positive number, or a pair for student and teacher, got {soft_cap}.")
    expected = "a positive number, or a pair for student and teacher"
    checked = (cap if cap is None else _checks.positive("soft_cap", cap, expected=expected) for cap in pair)
    caps = tuple(cap if cap is None else _checks.static("soft_cap", cap) for cap in checked)
    chunk = None if chunk is None else _checks.whole("chunk", chunk, expected="at least one token at once")
    # Chunks of equal size need the least padding; by default a multiple of 8, so that eight devices can share one.
    most = chunk or max(_TOKENS, _ELEMENTS // max(vocabulary, 1))
    count = max(1, -(-tokens // most))
    size = max(1, -(-tokens // count))
    size = size if chunk or count == 1 else -(-size // 8) * 8
    dtype = jnp.result_type(*jax.tree.leaves((student, teacher)), jnp.float32)
    temperature = _checks.temperature(temperature, dtype, (tokens,))
    # Under shard_map, custom_vjp needs arguments that vary over the same axes. Where a replicated argument is cast to
    # varying, autodiff sums its gradient over the devices.
    leaves = jax.tree.leaves((student, teacher, temperature, where))
    axes: frozenset[str] = frozenset().union(*map(_numerics.varying_axes, leaves))

    def vary(x: Array, axes: frozenset[str]) -> Array:
        missing = axes - _numerics.varying_axes(x)
        return _numerics.mark_varying(x, missing) if missing else x

    heads = jax.tree.map(lambda x: vary(x, axes), (student, teacher))
    rows = (vary(x, axes - {axis}) for x in (temperature, where))  # the result does not vary over the vocabulary
    return _tokens(_Static(beta, caps, axis, size), *heads, *rows)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tokens(static: _Static, student: _Head, teacher: _Head, temperature: Array, where: Array) -> Array:
    """Returns the value of each token ``[tokens]``."""
    return _run(static, (_NOTHING, _NOTHING), (student, teacher, temperature, where), where)[0]


def _forward(static: _Static, *primals: Any) -> tuple[Array, Any]:
    """Computes the values and, in the same pass, the gradients for a cotangent of 1.

    ``symbolic_zeros`` tells which arguments are differentiated; the gradients of the others are not computed.
    """

    def select(part: str) -> Any:
        return jax.tree.map(lambda x: getattr(x, part), primals, is_leaf=lambda x: hasattr(x, "perturbed"))

    arrays, (*wanted, temperature, _) = select("value"), select("perturbed")
    if temperature:
        raise NotImplementedError(
            "temperature: its gradient is not computed; apply jax.lax.stop_gradient to it, or use the loss of logits."
        )
    value, gradients = _once(functools.partial(_run, static, tuple(wanted)), arrays, arrays[-1])
    return value, (arrays, gradients)


def _backward(static: _Static, residuals: Any, cotangent: Any) -> tuple[Any, ...]:
    """Scales the gradients that `_forward` has computed."""
    if isinstance(cotangent, jax.custom_derivatives.SymbolicZero):
        return _NOTHING, _NOTHING, None, None
    return *_once(functools.partial(_scale, static), *residuals, cotangent), None, None


_tokens.defvjp(_forward, _backward, symbolic_zeros=True)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _once(function: Any, *arrays: Any) -> Any:
    """Calls the function; a derivative of the call, the loss's second, is an error."""
    return function(*arrays)


@_once.defjvp
def _twice(function: Any, primals: Any, tangents: Any) -> Any:
    raise NotImplementedError(
        "a second derivative of a chunked loss is not implemented: use the loss of logits, which has it."
    )


@functools.partial(jax.jit, static_argnums=0)
def _scale(static: _Static, arrays: Any, gradients: tuple[_Head, ...], cotangent: Array) -> tuple[_Head, ...]:
    """Returns gradients for any cotangent, from those for a cotangent of 1.

    If all included tokens have one cotangent (a mean), the kernels' gradients are multiplied by it. If not, they cannot
    be recovered from sums over tokens and are computed again, with the cotangent as weights. Gradients of hidden states
    are one row per token and are multiplied by its cotangent in either case.
    """
    where = arrays[-1]
    cotangent = jnp.where(where, cotangent, 0)
    factor = jnp.max(cotangent, where=where, initial=-jnp.inf)
    same = jnp.all((cotangent == factor) | ~where)
    factor = jnp.where(factor > -jnp.inf, factor, 0)
    # Without varying-axes types (check_vma=False), autodiff does not know that the hidden states are replicated over
    # the vocabulary axis and does not sum their gradients, so it is done here.
    untyped = static.axis not in (None, *_numerics.varying_axes(arrays[0].kernel))
    if untyped:  # a branch with collectives must be taken by all devices
        same = jax.lax.pmin(same.astype(jnp.int32), static.axis) > 0

    def scaled(sums: tuple[_Head, ...]) -> tuple[_Head, ...]:
        return jax.tree.map(lambda x: x * factor, sums)

    def again(sums: tuple[_Head, ...]) -> tuple[_Head, ...]:
        return _run(static, jax.tree.map(lambda x: True, sums), arrays, cotangent)[1]

    sums = tuple(x._replace(hidden=None) for x in gradients)
    if jax.tree.leaves(sums):
        sums = jax.lax.cond(same, scaled, again, sums)
    rows = jax.tree.map(lambda x: x * cotangent[:, None], tuple(x.hidden for x in gradients))
    rows = jax.lax.psum(rows, static.axis) if untyped else rows
    gradients = tuple(x._replace(hidden=row) for x, row in zip(sums, rows, strict=True))
    return jax.tree.map(lambda like, x: None if x is None else x.astype(like.dtype), arrays[:2], gradients)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(static: _Static, wanted: Any, arrays: tuple[Any, ...], weight: Array) -> tuple[Array, tuple[_Head, ...]]:
    """Returns the tokens' values, and the requested gradients of their weighted sum.

    A scan over the chunks: its carry holds the sums of the kernels' and biases' gradients, its outputs are the values
    and the rows of the hidden states' gradients. The logits of a chunk live within one step only.
    """
    student, teacher, temperature, where = arrays
    heads, tokens, size = (student, teacher), where.shape[0], static.size
    count, dtype = max(1, -(-tokens // size)), temperature.dtype

    def split(x: Array) -> Array:
        """Returns chunks of distant tokens, so that devices share each chunk."""
        padded = jnp.pad(x, [(0, size * count - tokens)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(size, count, *x.shape[1:])

    def join(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(size * count, *x.shape[2:])[:tokens]

    chunks = jax.tree.map(split, (student.hidden, teacher.hidden, temperature, where, weight.astype(dtype)))
    wide = [
        head.kernel.astype(dtype) for head in heads
    ]  # gradients are rounded to the kernels' dtype only once, at the end

    def step(totals: tuple[_Head, ...], index: Array) -> tuple[tuple[_Head, ...], tuple[Array, list[Array | None]]]:
        *hidden, scale, included, weights = (jax.lax.dynamic_index_in_dim(x, index, 1, keepdims=False) for x in chunks)
        hidden = [jnp.where(included[:, None], x, 0) for x in hidden]
        scale = jnp.where(included, scale, 1)[:, None]
        logits, slopes = [], []
        for x, head, cap in zip(hidden, heads, static.caps, strict=True):
            z = jax.lax.dot_general(x, head.kernel, (((1,), (0,)), ((), ())), preferred_element_type=dtype)
            if head.bias is not None:
                z = z + head.bias.astype(dtype)[None, :]
            slope = weights[:, None] / scale
            if cap is not None:
                tanh = jnp.tanh(z / cap)
                z, slope = cap * tanh, slope * (1 - tanh**2)
            logits.append(z)
            slopes.append(slope)
        # Chain rule: from logits over T through the cap, then through the product, whose inputs are still at hand.
        values, derivatives = _divergence(static, scale, *logits)
        rows, sums = [], []
        # An excluded word has no derivative, as in the dense losses.
        known = [jnp.where(z > -jnp.inf, d, 0) for z, d in zip(logits, derivatives, strict=True)]
        for x, d, slope, matrix, total, want in zip(hidden, known, slopes, wide, totals, wanted, strict=True):
            d = d * slope
            d_kernel = total.kernel + x.astype(dtype).T @ d if want.kernel else None
            d_bias = total.bias + jnp.sum(d, axis=0) if want.bias else None
            rows.append(d @ matrix.T if want.hidden else None)
            sums.append(_Head(None, d_kernel, d_bias))
        return tuple(sums), (jnp.where(included, values, 0), rows)

    start = jax.tree.map(lambda x, want: jnp.zeros_like(x, dtype) if want else None, heads, wanted)
    totals, (values, rows) = jax.lax.scan(step, tuple(x._replace(hidden=None) for x in start), jnp.arange(count))
    rows = jax.tree.map(join, rows)
    return join(values), tuple(total._replace(hidden=row) for total, row in zip(totals, rows, strict=True))


def _divergence(static: _Static, scale: Array, student: Array, teacher: Array) -> tuple[Array, tuple[Array, Array]]:
    """Returns values ``[chunk]`` and derivatives with respect to both logits over T.

    Logits are shifted by their maximum, so that no exponential overflows and a mass is at least 1. Sums over the
    vocabulary are taken over all devices that share it. Both logarithms of a ratio share one subtraction of logits, and
    the terms of a divergence are those of `_numerics.kl_terms`, so that a small one is not lost by rounding.
    """

    def shifted(x: Array) -> Array:
        top = jnp.max(x, axis=1, keepdims=True)
        top = top if static.axis is None else jax.lax.pmax(top, static.axis)
        finite, least = x > -jnp.inf, _numerics.lowest(x.dtype)
        # Subtracted before the division by T, as in `_numerics.soften`, which says why.
        x = jnp.where(finite, x, 0) - jnp.where(top > -jnp.inf, top, 0)
        return jnp.where(finite, jnp.maximum(jnp.maximum(x, least) / scale, least), -jnp.inf)

    def totals(*terms: Array) -> tuple[Array, ...]:
        sums = tuple(jnp.sum(x, axis=1, keepdims=True) for x in terms)
        return sums if static.axis is None else jax.lax.psum(sums, static.axis)

    s, t = shifted(student), shifted(teacher)
    exp_s, exp_t = jnp.exp(s), jnp.exp(t)
    mass_s, mass_t = (jnp.where(mass == 0, 1, mass) for mass in totals(exp_s, exp_t))
    p_s, p_t = exp_s / mass_s, exp_t / mass_t
    # log(p_t / p_s), NaN at a word that both networks exclude, which is selected away
    ahead = (t - s) - (jnp.log(mass_t) - jnp.log(mass_s))
    beta = static.beta
    if beta is None or beta in (0, 1):  # KL(p ‖ q)
        p, q, gap = (p_s, p_t, -ahead) if beta == 1 else (p_t, p_s, ahead)
        factor = scale**2 if beta is None else jnp.ones_like(scale)
        # At a word that q excludes, p has an infinite derivative; it is set to 0, and the other words keep theirs.
        slope = p * jnp.where((p > 0) & (gap < jnp.inf), gap, 0)
        value, mean = totals(_numerics.kl_terms(gap, p, q), slope)
        d_p, d_q = factor * (slope - p * mean), factor * (q - p)
        return (factor * value)[:, 0], (d_p, d_q) if beta == 1 else (d_q, d_p)
    # log(p / m) with p the larger of the two probabilities, in a form that cannot overflow; that of the smaller follows
    # by `apart`.
    apart = -jnp.abs(ahead)
    mixed = jnp.log1p(jnp.where(ahead > 0, 1 - beta, beta) * jnp.expm1(apart))
    gap_s, gap_t = jnp.where(ahead > 0, apart, 0) - mixed, jnp.where(ahead > 0, 0, apart) - mixed
    mixture = beta * p_t + (1 - beta) * p_s
    part_s, part_t = (jnp.where(p > 0, p * gap, 0) for p, gap in ((p_s, gap_s), (p_t, gap_t)))
    terms = beta * _numerics.kl_terms(gap_t, p_t, mixture) + (1 - beta) * _numerics.kl_terms(gap_s, p_s, mixture)
    value, mean_s, mean_t = totals(terms, part_s, part_t)
    d_s, d_t = (1 - beta) * (part_s - p_s * mean_s), beta * (part_t - p_t * mean_t)
    return value[:, 0], (d_s, d_t)


def _head(name: str, hidden: Any, kernel: Any, bias: Any) -> _Head:
    """Returns a checked last layer with its inputs."""
    hidden, kernel, bias = (None if x is None else jnp.asarray(x) for x in (hidden, kernel, bias))
    if not jnp.issubdtype(hidden.dtype, jnp.floating) or hidden.ndim != 2:
        raise ValueError(
            f"{name}_hidden: expected floating-point hidden states [tokens, hidden], got "
            f"{hidden.dtype}{list(hidden.shape)}; flatten batch and sequence first."
        )
    if not jnp.issubdtype(kernel.dtype, jnp.floating) or kernel.ndim != 2 or kernel.shape[0] != hidden.shape[1]:
        raise ValueError(
            f"{name}_kernel: expected a floating-point kernel [hidden = {hidden.shape[1]}, vocabulary], got "
            f"{kernel.dtype}{list(kernel.shape)}; transpose an embedding table [vocabulary, hidden]."
        )
    if bias is not None and (not jnp.issubdtype(bias.dtype, jnp.floating) or bias.shape != kernel.shape[1:]):
        raise ValueError(
            f"{name}_bias: expected floating-point [{kernel.shape[1]}], as the kernel's words, got "
            f"{bias.dtype}{list(bias.shape)}."
        )
    return _Head(hidden, kernel, bias)
