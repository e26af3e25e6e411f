"""Kernel of the chunked losses: values and gradients without all logits.

How it works: `_run` scans over chunks of tokens. A step computes the logits of one chunk, gives them to a rule
(`_rules`), which returns the loss's values and their derivatives by the logits, and at once multiplies the derivatives
with the hidden states and kernels, so that the logits are computed once and then dropped. A `custom_vjp` therefore has
the gradients after the *forward* pass; it saves its inputs and these gradients, which are as large as the inputs, and
the backward pass only scales them by the cotangent (`_scale`). Products are summed in float32 whatever the inputs'
dtype, and excluded (``-inf``) words are selected away before they are multiplied.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from .. import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array


_ELEMENTS = 1 << 22  # logits of one network in a chunk, 16 MiB in float32: enough for efficient products
# A chunk has at least a quarter as many tokens as hidden units, up to this number, however large the vocabulary: it
# reads and writes the kernel's whole gradient, which is as large as the logits of as many tokens as hidden units.
_TOKENS = 256


class Head(NamedTuple):
    """A last layer and its inputs, or their gradients, or which are requested."""

    hidden: Any
    kernel: Any
    bias: Any


NOTHING = Head(None, None, None)


class Chunk(NamedTuple):
    """A chunk's capped logits and what else a rule reads, one row per token each."""

    student: Array
    teacher: Array | None
    rows: tuple[Array, ...]
    scale: Array  # the temperature [chunk, 1]
    axis: str | None  # mapped axis over which the vocabulary is split


class Value(NamedTuple):
    """One value per token of a chunk, and its derivatives by both networks' logits."""

    value: Array
    student: Array
    teacher: Array | None = None


#: ``(chunk, number) -> values``, the number being the loss's own hyperparameter
Rule = Callable[[Chunk, float], tuple[Value, ...]]


class _Static(NamedTuple):
    """Static arguments of the kernel."""

    rule: Rule
    number: float
    caps: tuple[Any, ...]
    transposed: tuple[bool, ...]
    axis: str | None
    size: int


def head(name: str, hidden: Any, kernel: Any, bias: Any, transposed: bool = False) -> Head:
    """Returns a checked last layer with its inputs."""
    hidden, kernel, bias = (None if x is None else jnp.asarray(x) for x in (hidden, kernel, bias))
    if not jnp.issubdtype(hidden.dtype, jnp.floating) or hidden.ndim < 2:
        raise ValueError(
            f"{name}_hidden: expected floating-point hidden states [tokens, hidden] or [batch, tokens, hidden], got "
            f"{hidden.dtype}{list(hidden.shape)}."
        )
    size, floating = hidden.shape[-1], jnp.issubdtype(kernel.dtype, jnp.floating)
    if not floating or kernel.ndim != 2 or kernel.shape[transposed] != size:
        form = f"table [vocabulary, hidden = {size}]" if transposed else f"kernel [hidden = {size}, vocabulary]"
        advice = "a kernel is transposed=False" if transposed else "an embedding table is transposed=True"
        raise ValueError(
            f"{name}_kernel: expected a floating-point {form}, got {kernel.dtype}{list(kernel.shape)}; {advice}."
        )
    words = (kernel.shape[not transposed],)
    if bias is not None and (not jnp.issubdtype(bias.dtype, jnp.floating) or bias.shape != words):
        raise ValueError(
            f"{name}_bias: expected floating-point {list(words)}, as the kernel's words, got "
            f"{bias.dtype}{list(bias.shape)}."
        )
    return Head(hidden, kernel, bias)


def sides(transposed: Any) -> tuple[bool, bool]:
    """Returns whether the kernels of student and teacher are tables."""
    pair = transposed if isinstance(transposed, tuple | list) else (transposed, transposed)
    if len(pair) != 2 or not all(isinstance(side, bool) for side in pair):
        raise ValueError(f"transposed: expected True or False, or a pair for student and teacher, got {transposed!r}.")
    return pair[0], pair[1]


def vocabulary(student: Head, transposed: bool, axis: str | None) -> int:
    """Returns the number of words on all devices of the axis."""
    local = int(student.kernel.shape[not transposed])
    return local if axis is None else local * int(jax.lax.axis_size(axis))


def chunked(
    rule: Rule,
    student: Head,
    teacher: Head = NOTHING,
    rows: tuple[Any, ...] = (),
    *,
    number: float = 0.0,
    temperature: Any = 1.0,
    weights: tuple[Any, ...] = (1.0,),
    soft_cap: Any,
    transposed: tuple[bool, bool],
    where: Any,
    axis: Any,
    chunk: Any,
) -> tuple[Array, ...]:
    """Checks the arguments, chooses the size of the chunks and calls the kernel.

    Args:
      rule: the loss.
      student: the student's last layer and its inputs.
      teacher: the teacher's, or `NOTHING`.
      rows: arrays with one row for each token, which have no gradient.
      number: the rule's own hyperparameter.
      temperature: T, a scalar or one for each token.
      weights: expected weight of each value of the rule in the total. Other weights take a second pass.
      soft_cap: cap of the logits, or a pair.
      transposed: whether the kernels of student and teacher are tables ``[vocabulary, hidden]``.
      where: mask of the tokens.
      axis: mapped axis over which the vocabulary is split.
      chunk: largest number of tokens at once.

    Returns:
      The values of the rule, each in the shape of the tokens.
    """
    shape, words = student.hidden.shape[:-1], student.kernel.shape[not transposed[0]]
    if teacher is not NOTHING:
        if teacher.hidden.shape[:-1] != shape:
            raise ValueError(
                f"teacher_hidden: expected the student's tokens {list(shape)}, got {list(teacher.hidden.shape)}."
            )
        if teacher.kernel.shape[not transposed[1]] != words:
            raise ValueError(
                f"teacher_kernel: expected the student's vocabulary of {words}, got {list(teacher.kernel.shape)}. "
                "Nothing is padded or cut: select the words both know, in one order, from both kernels and biases."
            )
    where = _checks.mask_or_ones(where, shape)
    _checks.several("student_kernel", student.kernel, vocabulary(student, transposed[0], axis), "words")
    caps = _caps(soft_cap)
    chunk = None if chunk is None else _checks.whole("chunk", chunk, expected="at least one token at once")
    tokens = math.prod(shape)
    # Chunks of equal size need the least padding; by default a multiple of 8, so that eight devices can share one.
    least = min(_TOKENS, student.hidden.shape[-1] // 4)
    most = chunk or max(64, least, _ELEMENTS // max(words, 1))
    count = max(1, -(-tokens // most))
    size = max(1, -(-tokens // count))
    size = size if chunk or count == 1 else -(-size // 8) * 8
    dtype = jnp.result_type(*jax.tree.leaves((student, teacher)), jnp.float32)
    temperature = _checks.temperature(temperature, dtype, shape)

    def flat(x: Array) -> Array:
        return x.reshape(tokens, *x.shape[len(shape) :])

    student, teacher = (x if x is NOTHING else x._replace(hidden=flat(x.hidden)) for x in (student, teacher))
    each = jax.tree.map(flat, (rows, temperature, where))
    guess = jax.lax.stop_gradient(jnp.stack([jnp.asarray(weight, dtype) for weight in weights]))
    # Under shard_map, custom_vjp needs arguments that vary over the same axes. Where a replicated argument is cast to
    # varying, autodiff sums its gradient over the devices.
    leaves = jax.tree.leaves((student, teacher, each, guess))
    axes: frozenset[str] = frozenset().union(*map(_numerics.varying_axes, leaves))

    def vary(x: Array, axes: frozenset[str]) -> Array:
        missing = axes - _numerics.varying_axes(x)
        return _numerics.mark_varying(x, missing) if missing else x

    heads = jax.tree.map(lambda x: vary(x, axes), (student, teacher))
    # What has one row per token does not vary over the vocabulary, and the result does not either.
    each, guess = jax.tree.map(lambda x: vary(x, axes - {axis}), (each, guess))
    values = _tokens(_Static(rule, number, caps, transposed, axis, size), *heads, each, guess)
    return tuple(value.reshape(shape) for value in values)


def _caps(soft_cap: Any) -> tuple[float | None, ...]:
    """Returns the checked caps of student and teacher."""
    expected = "a positive number, or a pair for student and teacher"
    pair = soft_cap if isinstance(soft_cap, tuple | list) else (soft_cap, soft_cap)
    if len(pair) != 2:
        raise ValueError(f"soft_cap: expected {expected}, got {soft_cap}.")
    checked = (cap if cap is None else _checks.positive("soft_cap", cap, expected=expected) for cap in pair)
    return tuple(cap if cap is None else _checks.static("soft_cap", cap) for cap in checked)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _tokens(
    static: _Static, student: Head, teacher: Head, each: tuple[tuple[Array, ...], Array, Array], guess: Array
) -> tuple[Array, ...]:
    """Returns the values of the tokens, ``[tokens]`` each.

    Args:
      static: the loss and its static arguments.
      student: the student's last layer.
      teacher: the teacher's, or `NOTHING`.
      each: what has one row per token: the rows of the rule, the temperature and the mask.
      guess: expected weight of each value.
    """
    nothing = jax.tree.map(lambda x: False, (student, teacher))
    return _run(static, nothing, (student, teacher, *each), _expected(each[2], guess))[0]


def _expected(where: Array, guess: Array) -> Array:
    """Returns the expected cotangents ``[tokens, values]``, up to a common factor."""
    return jnp.where(where[:, None], guess[None, :], 0)


def _forward(static: _Static, *primals: Any) -> tuple[tuple[Array, ...], Any]:
    """Computes the values and, in one pass, the gradients for expected cotangents.

    ``symbolic_zeros`` tells which arguments are differentiated; the gradients of the others are not computed.
    """

    def select(part: str) -> Any:
        return jax.tree.map(lambda x: getattr(x, part), primals, is_leaf=lambda x: hasattr(x, "perturbed"))

    (*heads, each, guess), (student, teacher, (rows, temperature, _), _) = select("value"), select("perturbed")
    if temperature or any(rows):
        name = "temperature" if temperature else "log_probs, or weights"
        raise NotImplementedError(
            f"{name}: its gradient is not computed; apply jax.lax.stop_gradient to it, or use the loss of logits."
        )
    run = functools.partial(_run, static, (student, teacher))
    arrays = *heads, *each
    values, gradients = _once(run, arrays, _expected(arrays[-1], guess))
    return values, (arrays, guess, gradients)


def _backward(static: _Static, residuals: Any, cotangents: Any) -> tuple[Any, ...]:
    """Scales the gradients that `_forward` has computed."""
    (_, _, rows, _, where), guess, _ = residuals
    unused = [isinstance(cotangent, jax.custom_derivatives.SymbolicZero) for cotangent in cotangents]
    nothing = (tuple(None for _ in rows), None, None), None
    if all(unused):
        return NOTHING, NOTHING, *nothing
    zeros = jnp.zeros(where.shape, guess.dtype)
    given = [zeros if none else cotangent for none, cotangent in zip(unused, cotangents, strict=True)]
    return *_once(functools.partial(_scale, static), *residuals, jnp.stack(given, axis=1)), *nothing


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
def _scale(
    static: _Static, arrays: Any, guess: Array, gradients: tuple[Head, Head], cotangents: Array
) -> tuple[Head, Head]:
    """Returns gradients for any cotangents, from those for the expected ones.

    If the cotangents of all included tokens are one multiple of the expected ones (the mean of a loss, or the sum of
    the means with the announced weights), the gradients are multiplied by it. If not, the kernels' cannot be recovered
    from sums over tokens and are computed again, with the cotangents as weights. Gradients of hidden states are one row
    per token; with one value per token, they are multiplied by its cotangent in either case.
    """
    where, one = arrays[-1], guess.shape == (1,)
    cotangents = jnp.where(where[:, None], cotangents, 0)
    square = jnp.sum(guess**2)
    along = jnp.sum(cotangents * guess[None, :], axis=1)
    multiples = cotangents[:, 0] if one else along / jnp.where(square > 0, square, 1)
    factor = jnp.max(multiples, where=where, initial=-jnp.inf)
    same = jnp.all((multiples == factor) | ~where)
    factor = jnp.where(factor > -jnp.inf, factor, 0)
    if not one:  # a weight times 1/N is rounded before it gets here
        error = jnp.abs(cotangents - factor * guess[None, :])
        same &= jnp.all((error <= 8 * jnp.finfo(guess.dtype).eps * jnp.abs(cotangents)) | ~where[:, None])
    # Without varying-axes types (check_vma=False), autodiff does not know that the hidden states are replicated over
    # the vocabulary axis and does not sum their gradients, so it is done here.
    untyped = static.axis not in (None, *_numerics.varying_axes(arrays[0].kernel))
    if untyped:  # a branch with collectives must be taken by all devices
        same = jax.lax.pmin(same.astype(jnp.int32), static.axis) > 0

    def scaled(given: tuple[Head, ...]) -> tuple[Head, ...]:
        return jax.tree.map(lambda x: x * factor, given)

    def again(given: tuple[Head, ...]) -> tuple[Head, ...]:
        return _run(static, jax.tree.map(lambda x: True, given), arrays, cotangents)[1]

    rows = tuple(x.hidden for x in gradients)
    sums = tuple(x._replace(hidden=None) if one else x for x in gradients)
    if jax.tree.leaves(sums):
        sums = jax.lax.cond(same, scaled, again, sums)
    rows = jax.tree.map(lambda x: x * multiples[:, None], rows) if one else tuple(x.hidden for x in sums)
    rows = jax.lax.psum(rows, static.axis) if untyped else rows
    found = tuple(x._replace(hidden=row) for x, row in zip(sums, rows, strict=True))
    student, teacher = jax.tree.map(lambda like, x: None if x is None else x.astype(like.dtype), arrays[:2], found)
    return student, teacher


@functools.partial(jax.jit, static_argnums=(0, 1))
def _run(
    static: _Static, wanted: Any, arrays: tuple[Any, ...], weights: Array
) -> tuple[tuple[Array, ...], tuple[Head, ...]]:
    """Returns the tokens' values, and the requested gradients of their weighted sum.

    A scan over the chunks: its carry holds the sums of the kernels' and biases' gradients, its outputs are the values
    and the rows of the hidden states' gradients. The logits of a chunk live within one step only.
    """
    student, teacher, rows, temperature, where = arrays
    heads = (student,) if teacher.hidden is None else (student, teacher)
    tokens, size = where.shape[0], static.size
    count, dtype = max(1, -(-tokens // size)), temperature.dtype

    def split(x: Array) -> Array:
        """Returns chunks of distant tokens, so that devices share each chunk."""
        padded = jnp.pad(x, [(0, size * count - tokens)] + [(0, 0)] * (x.ndim - 1))
        return padded.reshape(size, count, *x.shape[1:])

    def join(x: Array) -> Array:
        return x.swapaxes(0, 1).reshape(size * count, *x.shape[2:])[:tokens]

    per_token = ([x.hidden for x in heads], rows, temperature, where, weights.astype(dtype))
    chunks = jax.tree.map(split, per_token)
    # gradients are rounded to the kernels' dtype only once, at the end
    wide = [x.kernel.astype(dtype) for x in heads]

    def step(totals: tuple[Head, ...], index: Array) -> tuple[tuple[Head, ...], Any]:
        hidden, given, scale, included, weight = jax.tree.map(
            lambda x: jax.lax.dynamic_index_in_dim(x, index, 1, keepdims=False), chunks
        )
        hidden, given = jax.tree.map(lambda x: _numerics.mask_inputs(included, x)[0], (hidden, given))
        logits, slopes = [], []
        for x, layer, cap, tied in zip(hidden, heads, static.caps, static.transposed, strict=False):
            # A table is never transposed as a whole: the compiler would keep a copy of it for the loop.
            contract = (((1,), (int(tied),)), ((), ()))
            z = jax.lax.dot_general(x, layer.kernel, contract, preferred_element_type=dtype)
            if layer.bias is not None:
                z = z + layer.bias.astype(dtype)[None, :]
            slope = None
            if cap is not None:
                tanh = jnp.tanh(z / cap)
                z, slope = cap * tanh, 1 - tanh**2
            logits.append(z)
            slopes.append(slope)
        scale = jnp.where(included, scale, 1)[:, None]
        other = logits[1] if len(logits) > 1 else None
        values = static.rule(Chunk(logits[0], other, given, scale, static.axis), static.number)
        # Chain rule: from the logits through the cap, then through the product, whose inputs are still at hand.
        gradients, sums = [], []
        for network, (x, z, slope, matrix) in enumerate(zip(hidden, logits, slopes, wide, strict=True)):
            parts = [
                weight[:, i, None] * value[1 + network]
                for i, value in enumerate(values)
                if value[1 + network] is not None
            ]
            d = functools.reduce(jnp.add, parts)
            # An excluded word has no derivative, as in the dense losses.
            d = jnp.where(z > -jnp.inf, d if slope is None else d * slope, 0)
            total, want = totals[network], wanted[network]
            tied, x = static.transposed[network], x.astype(dtype)
            d_kernel = total.kernel + (d.T @ x if tied else x.T @ d) if want.kernel else None
            d_bias = total.bias + jnp.sum(d, axis=0) if want.bias else None
            gradients.append(d @ (matrix if tied else matrix.T) if want.hidden else None)
            sums.append(Head(None, d_kernel, d_bias))
        sums += [NOTHING] * (2 - len(heads))
        gradients += [None] * (2 - len(heads))
        return tuple(sums), ([jnp.where(included, value.value, 0) for value in values], gradients)

    start = jax.tree.map(lambda x, want: jnp.zeros_like(x, dtype) if want else None, (student, teacher), wanted)
    totals, (values, found) = jax.lax.scan(step, tuple(x._replace(hidden=None) for x in start), jnp.arange(count))
    found = jax.tree.map(join, found)
    gradients = tuple(total._replace(hidden=row) for total, row in zip(totals, found, strict=True))
    return tuple(map(join, values)), gradients
