"""Beam search with any model that gives the next token's logits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.models.language._generate import NextLogits

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Beams(NamedTuple):
    """The best sequences that `beam_search` found, the best one first.

    Attributes:
      tokens: ``int32[batch, beams, length]``; after an end token, further ones.
      mask: ``bool[batch, beams, length]``, True up to the end token, which is included.
      scores: ``float32[batch, beams]``, sums of log-probabilities, divided by the length penalty.
    """

    tokens: Any
    mask: Any
    scores: Any


class _Search(NamedTuple):
    """Beams at one moment: states ``[batch beams, …]``, others ``[batch, beams, …]``."""

    state: Any
    tokens: Any
    mask: Any
    totals: Any


def beam_search(
    next_logits: NextLogits,
    prefilled: tuple[Float[Array, "batch vocabulary"], Any],
    *,
    length: int,
    beams: int,
    end: int | None = None,
    length_penalty: float = 0.0,
) -> Beams:
    """Searches for the most probable sequences of each example.

    A sequence y scores ``log p(y) / |y|^α``, with its end token. At each token the best ``beams`` of all continuations
    are kept; a sequence that has ended keeps its place as long as its score is among them. With as many beams as there
    are sequences the search is exact. Sutskever et al., "Sequence to Sequence Learning with Neural Networks", NeurIPS
    2014, section 3.2; a power of the length as in Wu et al., "Google's Neural Machine Translation System", 2016,
    section 7, without its offset of 5.

    Args:
      next_logits: as for `generate`. Every array of its state has the batch first, but scalars, which examples share.
      prefilled: logits of the first token, and the state after the prompt, such as from `Decoder.prefill`.
      length: largest number of tokens.
      beams: number of sequences that are kept, at most the vocabulary.
      end: the token that ends a sequence.
      length_penalty: α, 0 for the sum of log-probabilities, 1 for their mean.

    Returns:
      Tokens, mask and scores, the best sequence first.

    Raises:
      ValueError: a hyperparameter is out of its range.

    >>> table = jnp.log(jnp.array([[0.1, 0.6, 0.3], [0.1, 0.5, 0.4], [0.05, 0.9, 0.05]]))
    >>> def next_logits(state, tokens, mask):
    ...     return table[tokens], state
    >>> found = beam_search(next_logits, (table[:1], ()), length=2, beams=2)
    >>> found.tokens.tolist(), [f"{p:.2f}" for p in jnp.exp(found.scores[0])]
    ([[[1, 1], [2, 1]]], ['0.30', '0.27'])
    """
    logits, state = prefilled
    batch, vocabulary = logits.shape
    if length < 1:
        raise ValueError(f"length: expected at least 1 token, got {length}.")
    if not 1 <= beams <= vocabulary:
        raise ValueError(f"beams: expected a number from 1 to the vocabulary {vocabulary}, got {beams}.")

    def log_probs(logits: Array) -> Array:
        return jax.nn.log_softmax(logits.astype(jnp.promote_types(logits.dtype, jnp.float32)))

    def penalized(totals: Array, lengths: Array) -> Array:
        return totals / lengths.astype(totals.dtype) ** length_penalty

    def advance(search: _Search, number: Array) -> tuple[_Search, None]:
        last = jax.lax.dynamic_index_in_dim(search.tokens, number - 1, axis=2, keepdims=False)
        existed = jax.lax.dynamic_index_in_dim(search.mask, number - 1, axis=2, keepdims=False)
        logits, state = next_logits(search.state, last.reshape(-1), existed.reshape(-1))
        alive = existed if end is None else existed & (last != end)
        # An ended sequence has one continuation, which repeats its last token and adds nothing to its total.
        stay = jnp.where(jnp.arange(vocabulary)[None, None, :] == last[:, :, None], 0, -jnp.inf)
        new = jnp.where(alive[:, :, None], log_probs(logits).reshape(batch, beams, vocabulary), stay)
        totals = search.totals[:, :, None] + new
        mask = search.mask.at[:, :, number].set(alive)
        scores = penalized(totals, jnp.sum(mask, axis=-1, keepdims=True))
        _, best = jax.lax.top_k(scores.reshape(batch, -1), beams)
        parents, tokens = best // vocabulary, best % vocabulary

        def select(x: Array) -> Array:
            return jnp.take_along_axis(x, parents.reshape(*parents.shape, *[1] * (x.ndim - 2)), axis=1)

        def select_state(x: Array) -> Array:
            return select(x.reshape(batch, beams, *x.shape[1:])).reshape(x.shape) if x.ndim else x

        return _Search(
            jax.tree.map(select_state, state),
            select(search.tokens).at[:, :, number].set(tokens.astype(jnp.int32)),
            select(mask),
            jnp.take_along_axis(totals.reshape(batch, -1), best, axis=1),
        ), None

    totals, tokens = jax.lax.top_k(log_probs(logits), beams)
    at_start = (jnp.arange(length) == 0)[None, None, :]
    # All of them are computed from the tokens, so that they vary over the devices of shard_map like these.
    search = _Search(
        jax.tree.map(lambda x: jnp.repeat(x, beams, axis=0) if x.ndim else x, state),
        jnp.where(at_start, tokens[:, :, None].astype(jnp.int32), 0),
        at_start & (tokens == tokens)[:, :, None],
        totals,
    )
    search, _ = jax.lax.scan(advance, search, jnp.arange(1, length))
    scores, order = jax.lax.top_k(penalized(search.totals, jnp.sum(search.mask, axis=-1)), beams)
    tokens, mask = (jnp.take_along_axis(x, order[:, :, None], axis=1) for x in (search.tokens, search.mask))
    return Beams(tokens, mask, scores)
