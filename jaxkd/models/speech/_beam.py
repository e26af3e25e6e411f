"""Prefix beam search: the most probable labels over all of their alignments."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.models.speech._greedy import Transcripts, frame_log_probs

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class _Prefixes(NamedTuple):
    """Labels that the frames so far may have, of one example.

    Those that can occur differ from each other. Others, whose probabilities are 0, fill the beams.
    """

    labels: Any  # [beams, length], the blank where there is no label
    lengths: Any  # [beams]
    ended: Any  # [beams], log-probability of the alignments that end with a blank
    open: Any  # [beams], of those that end with the last label, which the next frame may repeat


def ctc_beam_search(
    logits: Float[Array, "batch frames classes"],
    *,
    beams: int,
    n_best: int = 1,
    length: int | None = None,
    blank: int = 0,
    where: Bool[Array, "batch frames"] | None = None,
) -> Transcripts:
    """Searches for the most probable labels, over all of their alignments.

    Also known as: prefix beam search.

    At each frame the most probable ``beams`` of all prefixes are kept, each with the sum over its alignments that end
    with a blank and the sum over those that do not (Graves et al., "Connectionist Temporal Classification", ICML 2006,
    section 3.2; the beam as of Hannun et al., "First-Pass Large Vocabulary Continuous Speech Recognition using
    Bi-Directional Recurrent DNNs", 2014, algorithm 1, without a language model). A prefix that is reached in two ways
    is one, so that the result has no duplicates. With as many beams as there are prefixes the search is exact, and the
    log-probabilities are ``-jaxkd.losses.ctc``; with fewer they are at most as large.

    It is one scan over the frames, vectorized over examples, beams and labels. A frame costs ``beams · classes``
    sums and the largest of them, and ``beams² · length`` comparisons of prefixes; the state has ``beams · length``
    integers. The time is that of the frames one after another, so that a small ``length`` and subsampled frames help.

    Args:
      logits: scores ``[batch, frames, classes]``, such as of an `AcousticLSTM`; ``-inf`` excludes a class.
      beams: number of prefixes that are kept.
      n_best: number of results, at most ``beams``.
      length: largest number of labels, by default that of frames. Longer labels are not searched.
      blank: class index of the blank, as for `jaxkd.losses.ctc`.
      where: mask, True for the frames to include ``[batch, frames]``; others are skipped.

    Returns:
      Labels and mask ``[batch, n_best, length]`` and log-probabilities ``[batch, n_best]``, the best first. Where there
      are fewer results, the rest has a log-probability of ``-inf`` and no labels. For `jaxkd.losses.ctc_n_best` these
      are ``hypotheses``, ``label_where`` and ``log_posteriors``.

    Raises:
      ValueError: a hyperparameter is out of its range, or as for `ctc_greedy`.

    >>> logits = jnp.log(jnp.array([[[0.6, 0.4], [0.6, 0.4]]]))  # no label: 0.36; "1": 0.4 * 0.6 * 2 + 0.16
    >>> search = jax.jit(ctc_beam_search, static_argnames=("beams", "n_best"))
    >>> found = search(logits, beams=4, n_best=2)
    >>> found.labels.tolist(), [f"{p:.2f}" for p in jnp.exp(found.log_probs[0])]
    ([[[1, 0], [0, 0]]], ['0.64', '0.36'])
    """
    log_probs, where = frame_log_probs(logits, blank, where)
    length = logits.shape[1] if length is None else length
    if beams < 1:
        raise ValueError(f"beams: expected at least 1, got {beams}.")
    if not 1 <= n_best <= beams:
        raise ValueError(f"n_best: expected a number from 1 to the {beams} beams, got {n_best}.")
    if length < 0:
        raise ValueError(f"length: expected a number of labels, got {length}.")

    def search(log_probs: Array, where: Array) -> Transcripts:
        def step(prefixes: _Prefixes, frame: tuple[Array, Array]) -> tuple[_Prefixes, None]:
            frame_probs, exists = frame
            after = _advance(prefixes, frame_probs, blank)
            return jax.tree.map(lambda new, old: jnp.where(exists, new, old), after, prefixes), None

        # Constants made from the inputs: under shard_map, the carry must vary over the same axes.
        zero = jnp.where(jnp.any(log_probs == 0), 0, 0)
        first = jnp.where(jnp.arange(beams) == zero, 0, -jnp.inf).astype(log_probs.dtype)
        start = _Prefixes(
            jnp.full((beams, length), blank, jnp.int32) + zero,
            jnp.zeros(beams, jnp.int32) + zero,
            first,
            jnp.full_like(first, -jnp.inf),
        )
        prefixes, _ = jax.lax.scan(step, start, (log_probs, where))
        totals, best = jax.lax.top_k(jnp.logaddexp(prefixes.ended, prefixes.open), n_best)
        mask = (jnp.arange(length)[None, :] < prefixes.lengths[best][:, None]) & (totals > -jnp.inf)[:, None]
        return Transcripts(jnp.where(mask, prefixes.labels[best], blank), mask, totals)

    return jax.vmap(search)(log_probs, where)


def _advance(prefixes: _Prefixes, frame: Array, blank: int) -> _Prefixes:
    """Returns the most probable prefixes after one more frame.

    Either a prefix stays, by a blank or the repetition of its last label, or it is extended by a label: the last one
    again after a blank only. Extensions of different prefixes differ; what an extension may equal is a prefix that is
    there already, which then takes its probability.
    """
    labels, lengths, ended, open_ = prefixes
    beams, length = labels.shape
    places = jnp.arange(length)[None, :]
    is_last = places == lengths[:, None] - 1
    last = jnp.sum(jnp.where(is_last, labels, 0), axis=1)
    last = jnp.where(lengths > 0, last, blank)  # which nothing repeats, since an empty prefix is never open
    total = jnp.logaddexp(ended, open_)

    classes = jnp.arange(len(frame))[None, :]
    extended = jnp.where(classes == last[:, None], ended[:, None], total[:, None]) + frame[None, :]
    extended = jnp.where((classes == blank) | (lengths[:, None] >= length), -jnp.inf, extended)

    # Prefix `child` without its last label is prefix `parent`. As the blank is no label, rows tell lengths too.
    shorter = jnp.where(is_last, blank, labels)
    alive = total > -jnp.inf
    is_parent = jnp.all(shorter[:, None] == labels[None], axis=-1) & (lengths > 0)[:, None]
    is_parent = is_parent & alive[:, None] & alive[None]  # [child, parent], at most one for each child
    taken = jnp.where(is_parent, extended.T[last], -jnp.inf)
    stay_open = jnp.logaddexp(open_ + frame[last], jnp.max(taken, axis=1))
    duplicate = jnp.any(is_parent[:, :, None] & (classes == last[:, None])[:, None], axis=0)  # [parent, class]
    extended = jnp.where(duplicate, -jnp.inf, extended)

    # Of class `blank`, an extended prefix is the one that stays.
    stay_ended = total + frame[blank]
    candidates = jnp.where(classes == blank, jnp.logaddexp(stay_ended, stay_open)[:, None], extended)
    found, best = jax.lax.top_k(candidates.reshape(-1), beams)
    source, chosen = best // len(frame), (best % len(frame)).astype(jnp.int32)
    stays = chosen == blank
    new = places == lengths[source][:, None]
    return _Prefixes(
        jnp.where(new & ~stays[:, None], chosen[:, None], labels[source]),
        lengths[source] + jnp.where(stays, 0, 1).astype(jnp.int32),
        jnp.where(stays, stay_ended[source], -jnp.inf),
        jnp.where(stays, stay_open[source], found),
    )
