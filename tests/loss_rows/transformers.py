"""Rows of `jaxkd.losses.transformers`."""

from collections.abc import Callable

import numpy as np

from tests.loss_changes import Arrays, permutation, permute_last, rotate, shift_both, shift_each
from tests.loss_row import Hand, Row, feature_extremes, normal
from tests.references import drop_tokens

INF = np.inf
SCORES = (5, 2, 3, 3)


def spoil_tokens(arrays: Arrays, where: np.ndarray, garbage: float) -> Arrays:
    """Returns arrays with garbage wherever a masked token is a query, a key, or a vector."""

    def spoil(array: np.ndarray) -> np.ndarray:
        scores = array.ndim == 4 and array.shape[2:] == where.shape[1:] * 2
        counts = (where[:, None, :, None] & where[:, None, None, :]) if scores else np.expand_dims(where, -1)
        counts = counts if scores or array.ndim == 3 else counts[..., None]
        return np.where(counts, array, garbage)

    return tuple(spoil(array) for array in arrays)


def permute_heads(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Permutes the heads of both networks' scores ``[batch, heads, ...]`` alike."""
    order = permutation(rng, arrays[0].shape[1])
    return tuple(array[:, order] for array in arrays)


def permute_value_heads(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    order = permutation(rng, arrays[0].shape[2])
    return tuple(array[:, :, order] for array in arrays)


def permute_tokens(rng: np.random.Generator, arrays: Arrays) -> tuple[Arrays, Callable]:
    """Permutes the tokens of both networks, and of the result."""
    scores = arrays[0].ndim == 4 and arrays[0].shape[2] == arrays[0].shape[3]
    order = permutation(rng, arrays[0].shape[2 if scores else 1])
    changed = (a[:, :, order][:, :, :, order] if scores else a[:, order] for a in arrays)
    return tuple(changed), lambda result: result[:, order]


def scale_vectors(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Scales every vector by its own positive factor."""
    return tuple(array * rng.uniform(0.1, 10, size=(*array.shape[:-1], 1)) for array in arrays)


def scores_of(usual: np.ndarray, *forbidden: str) -> np.ndarray:
    """Returns `usual` with ``-inf`` at keys: those after the query, the first, all of the first query."""
    scores = usual.copy()
    if "later" in forbidden:
        scores[:, :, *np.triu_indices(3, 1)] = -INF
    if "first" in forbidden:
        scores[:, :, :, 0] = -INF
    if "query" in forbidden:
        scores[:, :, 0] = -INF
    return scores


def score_extremes() -> dict[str, Arrays]:
    s, t = normal(np.random.default_rng(1), SCORES, SCORES)
    signs = 1e4 * np.where(np.arange(90).reshape(SCORES) % 4 < 2, 1.0, -1.0)
    return {
        "causal": (scores_of(s, "later"), scores_of(t, "later")),
        "causal, ±1e4": (scores_of(signs, "later"), scores_of(t, "later")),
        "opposite ±1e4": (signs, -signs),
        "equal ±1e4": (signs, signs),
        "zeros": (0 * s, 0 * t),
        "a query without a key": (scores_of(s, "query"), scores_of(t, "query")),
        "no query has a key": (s - INF, t - INF),
        "a query without a key, causal": (scores_of(s, "query", "later"), scores_of(t, "query", "later")),
        "without the first key: the first query has none left": (
            scores_of(s, "first", "later"),
            scores_of(t, "first", "later"),
        ),
        "the teacher allows more": (scores_of(s, "later"), t),
        "the teacher allows more, ±1e4": (scores_of(signs, "first"), signs),
        "the teacher allows other keys": (scores_of(s, "later"), scores_of(t, "first")),
        "the student allows more": (s, scores_of(t, "later")),
        "the student forbids all": (s - INF, t),
        "the teacher forbids all": (s, t - INF),
        "duplicates": (np.repeat(s[:1], 5, 0), np.repeat(t[:1], 5, 0)),
    }


SCORE_SHAPES = (((5, 2, 3, 3),) * 2, ((2, 3, 4, 4),) * 2, ((2, 1, 3, 5),) * 2, ((3, 2, 1, 1),) * 2)
SCORE_MISMATCHES = tuple(
    ("teacher", shapes)
    for shapes in [
        ((4, 2, 3, 3), (4, 1, 3, 3)),
        ((4, 2, 3, 3), (1, 2, 3, 3)),
        ((4, 2, 3, 3), (4, 2, 3, 1)),
        ((4, 2, 3, 3), (4, 2, 1, 3)),
        ((4, 2, 3, 3), (4, 3, 3)),
    ]
)
SCORE_RANKS = (("student", ((4, 3, 3), (4, 3, 3))), ("student", ((3,), (3,))))
HIDDEN_MISMATCHES = tuple(
    ("teacher", shapes)
    for shapes in [
        ((4, 3, 6), (4, 3, 1)),
        ((4, 3, 6), (4, 1, 6)),
        ((4, 3, 6), (1, 3, 6)),
        ((4, 3, 6), (4, 3, 8)),
        ((4, 3, 6), (4, 6)),
    ]
)
HIDDEN_RANKS = (("student", ((6,), (6,))),)
HIDDEN_SHAPES = (((5, 3, 4),) * 2, ((2, 4, 3),) * 2, ((3, 1, 2),) * 2, ((2, 3, 1),) * 2, ((4, 3),) * 2)


def queries(arrays: Arrays) -> tuple[int, ...]:
    return arrays[0].shape[0], arrays[0].shape[2]


def with_a_direction(arrays: Arrays) -> Arrays:
    """Replaces vectors of zeros, whose cosine with themselves is 0."""
    return tuple(np.where((array == 0).all(-1, keepdims=True), 1.0, array) for array in arrays)


ROWS = (
    Row(
        "attention_kl",
        "transformers",
        shapes=SCORE_SHAPES,
        result=queries,
        drop=drop_tokens,
        spoil=spoil_tokens,
        invariances={"shift": shift_each, "permuted keys": permute_last, "permuted heads": permute_heads},
        mapped={"permuted tokens": permute_tokens},
        extremes=score_extremes(),
        rounding=1e-6,
        hand=(
            # p_t = [3/4, 1/4] and [1, 0], p_s = [1/2, 1/2]; the gradient is (p_s - p_t) / heads
            Hand(
                ([[[[0.0, 0.0]], [[0.0, 0.0]]]], [[[[np.log(3), 0.0]], [[0.0, -INF]]]]),
                [[(0.75 * np.log(1.5) + 0.25 * np.log(0.5) + np.log(2)) / 2]],
                [[[[-0.125, 0.125]], [[-0.25, 0.25]]]],
            ),
        ),
        mismatches=SCORE_MISMATCHES,
        ranks=SCORE_RANKS,
        drawn=(((2, 2, 3, 3),) * 2, ((3, 1, 2, 2),) * 2),
    ),
    Row(
        "attention_mse",
        "transformers",
        shapes=SCORE_SHAPES,
        result=queries,
        drop=drop_tokens,
        spoil=spoil_tokens,
        invariances={"shift of both": shift_both, "permuted keys": permute_last, "permuted heads": permute_heads},
        mapped={"permuted tokens": permute_tokens},
        extremes=score_extremes(),
        hand=(
            # (4 + 9) / 2; and of another head, whose second key is none: 1
            Hand(
                ([[[[1.0, 2.0]], [[1.0, -INF]]]], [[[[3.0, -1.0]], [[0.0, -INF]]]]),
                [[(6.5 + 1) / 2]],
                [[[[-1.0, 1.5]], [[1.0, 0.0]]]],
            ),
        ),
        mismatches=SCORE_MISMATCHES,
        ranks=SCORE_RANKS,
        drawn=(((2, 2, 3, 3),) * 2, ((3, 1, 2, 2),) * 2),
    ),
    Row(
        "value_relation_kl",
        "transformers",
        shapes=(((5, 3, 2, 4),) * 2, ((2, 4, 3, 2), (2, 4, 3, 5)), ((2, 3, 1, 6), (2, 3, 1, 2)), ((3, 1, 2, 2),) * 2),
        leading=lambda rank: 2,
        drop=drop_tokens,
        spoil=spoil_tokens,
        invariances={"rotation": rotate, "permuted heads": permute_value_heads},
        mapped={"permuted tokens": permute_tokens},
        extremes=feature_extremes((5, 3, 2, 4)),
        rounding=1e-6,
        hand=(
            # R_t = [1/2, 1/2] of zeros; the student's tokens 2 and 0: [log 4, 0] without √d = 1 for the first
            Hand(
                (np.array([np.log(4) ** 0.5, 0.0]).reshape(1, 2, 1, 1), np.zeros((1, 2, 1, 3))),
                [[0.5 * np.log(0.5 / 0.8) + 0.5 * np.log(0.5 / 0.2), 0.0]],
                None,
            ),
        ),
        mismatches=tuple(
            ("teacher", shapes)
            for shapes in [
                ((4, 3, 2, 5), (4, 3, 1, 5)),
                ((4, 3, 2, 5), (4, 1, 2, 5)),
                ((4, 3, 2, 5), (1, 3, 2, 5)),
                ((4, 3, 2, 5), (3, 3, 2, 5)),
            ]
        ),
        ranks=(("student", ((4, 3), (4, 3))), ("heads", ((4, 3, 6), (4, 3, 6)))),
        drawn=(((2, 3, 2, 2), (2, 3, 2, 1)), ((2, 3, 1, 2),) * 2),
    ),
    Row(
        "hidden_cosine",
        "transformers",
        shapes=HIDDEN_SHAPES,
        leading=lambda rank: rank - 1,
        invariances={"scale": scale_vectors, "permuted features": permute_last},
        mapped={"permuted tokens": permute_tokens},
        extremes=feature_extremes((5, 3, 4)),
        hand=(
            # cos of (3, 4) and (4, 3) is 24/25; its gradient is (n_t - cos n_s) / ‖s‖
            Hand(
                ([[[3.0, 4.0], [0.0, 2.0]]], [[[4.0, 3.0], [1.0, 0.0]]]),
                [[1 / 25, 1.0]],
                [[[-(0.8 - 0.96 * 0.6) / 5, -(0.6 - 0.96 * 0.8) / 5], [-0.5, 0.0]]],
            ),
        ),
        mismatches=HIDDEN_MISMATCHES,
        ranks=HIDDEN_RANKS,
        drawn=(((2, 3, 3),) * 2, ((3, 2, 2),) * 2),
        valid=with_a_direction,
    ),
    Row(
        "hidden_mse",
        "transformers",
        shapes=HIDDEN_SHAPES,
        leading=lambda rank: rank - 1,
        invariances={"shift of both": shift_both, "permuted features": permute_last},
        mapped={"permuted tokens": permute_tokens},
        extremes=feature_extremes((5, 3, 4)),
        hand=(
            Hand(([[[1.0, 2.0], [0.0, 0.0]]], [[[3.0, -1.0], [2.0, 0.0]]]), [[6.5, 2.0]], [[[-2.0, 3.0], [-2.0, 0.0]]]),
        ),
        mismatches=HIDDEN_MISMATCHES,
        ranks=HIDDEN_RANKS,
        drawn=(((2, 3, 3),) * 2, ((3, 2, 2),) * 2),
    ),
)
