"""Generation with any model that gives the next token's logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float, Key

NextLogits = Callable[[Any, Any, Any], tuple[Any, Any]]
"""``(state, tokens [batch], mask [batch]) -> (logits [batch, vocabulary], state)``."""

_BLOCK = 32  # tokens whose cumulative sums are one product


class Generated(NamedTuple):
    """Tokens that `generate` chose.

    Attributes:
      tokens: ``int32[batch, length]``; after an end token, further ones.
      mask: ``bool[batch, length]``, True up to the end token, which is included.
      log_probs: ``float32[batch, length]``, the tokens' log-probabilities by the model, without temperature and
        truncation; 0 after the end token.
    """

    tokens: Any
    mask: Any
    log_probs: Any


def generate(
    next_logits: NextLogits,
    prefilled: tuple[Float[Array, "batch vocabulary"], Any],
    *,
    length: int,
    keys: Key[Array, " batch"] | None = None,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end: int | None = None,
) -> Generated:
    """Generates tokens, each from the logits that follow from the ones before.

    Token t of an example is drawn with the example's key and t alone, so that it depends neither on the other examples
    nor on the number of devices. It is a pure function, to be jitted or called in a step.

    Args:
      next_logits: ``(state, tokens [batch], mask [batch]) -> (logits [batch, vocabulary], state)``: the next token's
        logits after one more token of each example, such as `Decoder.next_logits`. The mask is False for examples that
        have ended.
      prefilled: logits of the first token, and the state after the prompt, such as from `Decoder.prefill`.
      length: number of tokens to generate.
      keys: a PRNG key for each example; not needed for a temperature of 0.
      temperature: T > 0, which divides the logits; 0 takes the most probable token.
      top_k: number of the most probable tokens that are drawn from.
      top_p: from the most probable tokens whose probabilities sum to at least this one is drawn (Holtzman et al., "The
        Curious Case of Neural Text Degeneration", ICLR 2020, section 3.1), after ``top_k``. Tokens as probable as the
        last of them are included as well.
      end: the token that ends an example.

    Returns:
      Tokens, mask and log-probabilities ``[batch, length]``.

    Raises:
      ValueError: a hyperparameter is out of its range, or keys are missing.

    >>> table = jnp.array([[0.0, 9.0, 0.0], [0.0, 0.0, 9.0], [9.0, 0.0, 0.0]])  # logits after each token
    >>> def next_logits(state, tokens, mask):
    ...     return table[tokens], state
    >>> found = generate(next_logits, (table[jnp.array([0, 1])], ()), length=3, temperature=0.0, end=2)
    >>> found.tokens.tolist(), found.mask.tolist()
    ([[1, 2, 2], [2, 2, 2]], [[True, True, False], [True, False, False]])
    """
    logits, state = prefilled
    _check(logits, length, keys, temperature, top_k, top_p)

    def choose(logits: Array, number: Any, alive: Array, last: Array | None) -> tuple[Array, Array]:
        log_probs = jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))
        if temperature == 0 or keys is None:
            chosen = jnp.argmax(log_probs, axis=-1)
        else:
            cut = truncate(log_probs / temperature, top_k=top_k, top_p=top_p)
            own = jax.vmap(jax.random.fold_in, (0, None))(keys, number)
            chosen = _draw(own, cut)
        found = jnp.take_along_axis(log_probs, chosen[:, None], axis=1)[:, 0]
        chosen = chosen.astype(jnp.int32)
        return (chosen if last is None else jnp.where(alive, chosen, last)), jnp.where(alive, found, 0)

    def advance(carry: Any, number: Array) -> tuple[Any, Any]:
        state, tokens, alive = carry
        logits, state = next_logits(state, tokens, alive)
        alive = alive if end is None else alive & (tokens != end)
        tokens, log_probs = choose(logits, number, alive, tokens)
        return (state, tokens, alive), Generated(tokens, alive, log_probs)

    alive = logits[:, 0] == logits[:, 0]  # varies over the devices of shard_map like the logits
    alive = alive | ~alive
    tokens, log_probs = choose(logits, 0, alive, None)
    first = Generated(tokens, alive, log_probs)
    _, rest = jax.lax.scan(advance, (state, tokens, alive), jnp.arange(1, length))
    joined = jax.tree.map(lambda one, more: jnp.concatenate([one[:, None], more.T], axis=1), first, rest)
    return Generated(*joined)


def _draw(keys: Array, logits: Array) -> Array:
    """Returns tokens drawn from logits, each with one random number of its key.

    `jax.random.categorical` needs a random number for each word, which costs more than a small model's step.
    """
    uniform = jax.vmap(lambda key: jax.random.uniform(key, (), logits.dtype))(keys)
    return _inverted(jnp.exp(logits - jnp.max(logits, axis=-1, keepdims=True)), uniform)


def _inverted(weights: Array, uniform: Array) -> Array:
    """Returns the first positive entries whose cumulative share exceeds `uniform`.

    `uniform` holds a number in [0, 1) for each row.

    The sums of a row are rounded and need not rise, so that an entry of 0 may have a larger one than that before it;
    such entries are left out. The largest sum is that of an entry which is left, and exceeds every part of itself.
    """
    totals = jnp.where(weights > 0, _cumulative(weights), 0)
    above = totals > uniform[:, None] * jnp.max(totals, axis=-1, keepdims=True)
    size = weights.shape[-1]
    return jnp.min(jnp.where(above, jnp.arange(size), size - 1), axis=-1)


def _cumulative(x: Array) -> Array:
    """Returns the cumulative sums of rows, as products of blocks, fast on CPUs."""
    batch, size = x.shape
    blocks = jnp.pad(x, ((0, 0), (0, -size % _BLOCK))).reshape(batch, -1, _BLOCK)
    upper = jnp.triu(jnp.ones((_BLOCK, _BLOCK), x.dtype))
    within = jnp.einsum("bnj,jk->bnk", blocks, upper, precision=jax.lax.Precision.HIGHEST)
    ends = jnp.cumsum(within[:, :, -1], axis=1)
    before = jnp.pad(ends[:, :-1], ((0, 0), (1, 0)))
    return (within + before[:, :, None]).reshape(batch, -1)[:, :size]


def truncate(
    logits: Float[Array, "batch vocabulary"], *, top_k: int | None = None, top_p: float | None = None
) -> Float[Array, "batch vocabulary"]:
    """Returns logits that are ``-inf`` outside of the most probable tokens.

    >>> truncate(jnp.array([[3.0, 2.0, 1.0]]), top_k=2)
    Array([[  3.,   2., -inf]], dtype=float32)
    """
    if top_k is not None:
        least = jax.lax.top_k(logits, top_k)[0][:, -1:]
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    if top_p is not None and top_p < 1:
        ordered = -jnp.sort(-logits, axis=-1)
        probabilities = jax.nn.softmax(ordered)
        kept = jnp.cumsum(probabilities, axis=-1) - probabilities < top_p
        least = jnp.min(jnp.where(kept, ordered, jnp.inf), axis=-1, keepdims=True)
        logits = jnp.where(logits >= least, logits, -jnp.inf)
    return logits


def _check(logits: Any, length: int, keys: Any, temperature: float, top_k: Any, top_p: Any) -> None:
    """Raises unless logits and hyperparameters of `generate` are valid."""
    if logits.ndim != 2:
        raise ValueError(
            f"prefilled: expected logits [batch, vocabulary] first, got {logits.dtype}{list(logits.shape)}."
        )
    if length < 1:
        raise ValueError(f"length: expected at least 1 token, got {length}.")
    if not temperature >= 0:
        raise ValueError(f"temperature: expected a number of at least 0, got {temperature}.")
    if temperature > 0 and keys is None:
        raise ValueError(
            "keys: expected a PRNG key for each example [batch], such as jax.random.split(key, batch), got None. "
            "Without keys, temperature=0 takes the most probable tokens."
        )
    if temperature > 0 and keys.shape[0] != logits.shape[0]:
        raise ValueError(f"keys: expected a key for each of {logits.shape[0]} examples, got {list(keys.shape)}.")
    if top_k is not None and not 1 <= top_k <= logits.shape[1]:
        raise ValueError(f"top_k: expected a number from 1 to {logits.shape[1]}, got {top_k}.")
    if top_p is not None and not 0 < top_p <= 1:
        raise ValueError(f"top_p: expected a number above 0 and at most 1, got {top_p}.")
