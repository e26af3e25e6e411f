"""Rows of `jaxkd.losses.sequence`."""

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.loss_changes import Arrays, permutation, shift_each
from tests.loss_row import SAME_LOGITS, Hand, Row, normal

INF = np.inf


def recognized(rng: np.random.Generator, logits: tuple[int, ...], labels: tuple[int, ...], *rest) -> Arrays:
    """Returns logits, labels that are not the blank, and further arrays."""
    return (*normal(rng, logits), rng.integers(1, logits[-1], size=labels), *normal(rng, *rest))


def without_blanks(arrays: Arrays) -> Arrays:
    logits, labels, *rest = arrays
    return (logits, np.maximum(labels, 1), *rest)


def rename_classes(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Permutes all classes but the blank."""
    logits, labels, *rest = arrays
    order = np.array([0, *(1 + permutation(rng, logits.shape[-1] - 1))])
    return (logits[..., order], np.argsort(order)[labels], *rest)


def shift_frames(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Adds a constant to every frame, and to the log-posteriors."""
    logits, labels, *rest = arrays
    return (
        logits + rng.normal(size=(*logits.shape[:-1], 1)),
        labels,
        *(a + rng.normal(size=(len(a), 1)) for a in rest),
    )


def shift_posteriors(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    log_probs, log_posteriors = arrays
    return log_probs, log_posteriors + rng.normal(size=(len(log_posteriors), 1))


def permute_hypotheses(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    *logits, listed, log_posteriors = arrays
    order = permutation(rng, log_posteriors.shape[1])
    return (*logits, listed[:, order], log_posteriors[:, order])


def permute_all_but_the_blank(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    order = np.array([0, *(1 + permutation(rng, arrays[0].shape[-1] - 1))])
    return tuple(array[..., order] for array in arrays)


def far(logits: np.ndarray) -> np.ndarray:
    return 1e4 * np.where(np.arange(logits.size).reshape(logits.shape) % 3 == 1, 1.0, -1.0)


def ctc_extremes() -> dict[str, Arrays]:
    rng = np.random.default_rng(1)
    logits, labels = rng.normal(size=(5, 4, 4)), rng.integers(1, 4, size=(5, 2))
    only = np.full((5, 4, 4), -INF)
    only[:, [0, 1, 2, 3], [0, 1, 0, 2]] = 1.0
    excluded = np.where(np.arange(4) == 3, -INF, logits)
    path = np.array([[1, 2]] * 5)
    return {
        "zeros": (0 * logits, labels),
        "±1e4": (far(logits), labels),
        "one path left": (only, path),
        "one path left, of other labels": (only, labels[:, ::-1]),
        "an excluded class": (excluded, np.minimum(labels, 2)),
        "an excluded label": (excluded, np.array([[1, 3]] * 5)),
        "a blank among the labels": (logits, path * np.array([1, 0])),
        "repeated labels": (logits, np.ones((5, 2), int)),
        "duplicates": (np.repeat(logits[:1], 5, 0), np.repeat(labels[:1], 5, 0)),
    }


def frame_extremes() -> dict[str, Arrays]:
    s, t = normal(np.random.default_rng(2), (5, 3, 4), (5, 3, 4))
    without = np.where(np.arange(4) == 2, -INF, 0)
    only = np.where(np.arange(4) == 1, 1.0, -INF) * np.ones((5, 3, 4))
    return {
        "opposite ±1e4": (far(s), -far(s)),
        "equal ±1e4": (far(s), far(s)),
        "student ±1e4": (far(s), t),
        "teacher ±1e4": (s, far(s)),
        "zeros": (0 * s, 0 * t),
        "constant": (0 * s + 0.1, 0 * t + 1e4),
        "-inf classes in both": (s + without, t + without),
        "-inf classes in the student": (s + without, t),
        "-inf classes in the teacher": (s, t + without),
        "one class left": (only, only),
        "one class left in the teacher": (s, only),
        "duplicates": (np.repeat(s[:1], 5, 0), np.repeat(t[:1], 5, 0)),
    }


def list_extremes() -> dict[str, Arrays]:
    log_probs, posteriors = (-np.abs(a) for a in normal(np.random.default_rng(3), (5, 3), (5, 3)))
    absent = np.where(np.arange(3) == 1, -INF, 0)
    return {
        "zeros": (0 * log_probs, 0 * posteriors),
        "±1e4": (1e4 * log_probs, 1e4 * posteriors),
        "one absent": (log_probs, posteriors + absent),
        "one absent, of no probability": (log_probs + absent, posteriors + absent),
        "one of no probability": (log_probs + absent, posteriors),
        "all of no probability": (log_probs - INF, posteriors),
        "all absent": (log_probs, posteriors - INF),
        "duplicates": (np.repeat(log_probs[:1], 5, 0), np.repeat(posteriors[:1], 5, 0)),
    }


def n_best_extremes() -> dict[str, Arrays]:
    rng = np.random.default_rng(4)
    absent = np.where(np.arange(3) == 1, -INF, 0)
    cases = {}
    for name, (logits, labels) in ctc_extremes().items():
        hypotheses = np.stack([labels, np.roll(labels, 1, axis=0), labels[:, ::-1]], axis=1)
        cases[name] = (logits, hypotheses, rng.normal(size=(5, 3)))
    logits, hypotheses, posteriors = cases["repeated labels"]
    unknown = hypotheses * np.array([1, -1, 1])[:, None]
    return cases | {
        "one absent": (logits, hypotheses, posteriors + absent),
        "one absent that is no labels": (logits, unknown, posteriors + absent),
        "one absent that has no alignment": (logits, np.maximum(unknown, 0), posteriors + absent),
        "all absent": (logits, hypotheses, posteriors - INF),
        "posteriors ±1e4": (logits, hypotheses, 1e4 * posteriors),
    }


# p of the blank and of "a" in two frames; "a" is -a, a-, or aa: 1 - 1/2 · 1/4
TWO_FRAMES = np.log([[[0.5, 0.5], [0.25, 0.75]]])


def padded_ctc(module: Any) -> Callable:
    """Returns the loss with both masks as arguments: of PyTorch's ``ctc_loss``, lengths."""
    return lambda logits, labels, frame_where, label_where, **options: module.ctc(
        logits, labels, frame_where=frame_where, label_where=label_where, **options
    )


ROWS = (
    Row(
        "ctc",
        "sequence",
        shapes=(
            ((5, 5, 4), (5, 2)),
            ((3, 6, 3), (3, 3)),
            ((4, 4, 3), (4, 1)),
            ((3, 3, 2), (3, 0)),
            ((2, 1, 3), (2, 1)),
        ),
        make=recognized,
        invariances={"shift": shift_frames, "renamed classes": rename_classes},
        extremes=ctc_extremes(),
        rounding=1e-6,
        golden={"ctc": padded_ctc},
        hand=(
            # the gradient is p minus the share of the alignments that are there: 7/8 of which 3/4 · 1/2 blank first
            Hand((TWO_FRAMES, [[1]]), [-np.log(7 / 8)], [[[0.5 - 3 / 7, 0.5 - 4 / 7], [0.25 - 1 / 7, 0.75 - 6 / 7]]]),
            Hand((TWO_FRAMES, np.zeros((1, 0), int)), [np.log(8)], None),
        ),
        identical_is_zero=False,
        mismatches=tuple(
            ("labels", shapes)
            for shapes in [
                ((4, 6, 5), (3, 2)),
                ((4, 6, 5), (1, 2)),
                ((4, 6, 5), (4,)),
                ((4, 6, 5), (4, 1, 2)),
                ((1, 6, 5), (4, 2)),
            ]
        ),
        ranks=(("logits", ((6, 5), (2,))),),
        drawn=(((2, 3, 3), (2, 2)), ((3, 3, 4), (3, 1))),
        valid=without_blanks,
    ),
    Row(
        "ctc_n_best",
        "sequence",
        shapes=(
            ((5, 5, 4), (5, 3, 2), (5, 3)),
            ((3, 5, 3), (3, 2, 3), (3, 2)),
            ((2, 3, 3), (2, 1, 2), (2, 1)),
        ),
        make=recognized,
        invariances={
            "shift": shift_frames,
            "renamed classes": rename_classes,
            "permuted hypotheses": permute_hypotheses,
        },
        extremes=n_best_extremes(),
        rounding=1e-6,
        # "a" at 3/4 and nothing at 1/4
        hand=(
            Hand((TWO_FRAMES, [[[1]]], [[5.0]]), [-np.log(7 / 8)], None),
            Hand(
                (TWO_FRAMES[:, :1], np.array([[[1]]]).repeat(2, 1), [[0.0, np.log(3)]]),
                [np.log(2)],
                [[[0.5, -0.5]]],
            ),
        ),
        identical_is_zero=False,
        mismatches=(
            *(
                ("hypotheses", shapes)
                for shapes in [
                    ((4, 6, 5), (3, 2, 2), (4, 2)),
                    ((4, 6, 5), (4, 1, 2), (4, 2)),
                    ((4, 6, 5), (4, 2), (4, 2)),
                    ((4, 6, 5), (4, 3, 2), (4, 2)),
                ]
            ),
            *(
                ("log_posteriors", shapes)
                for shapes in [
                    ((4, 6, 5), (4, 2, 2), (1, 2)),
                    ((4, 6, 5), (4, 2, 2), (2,)),
                    ((4, 6, 5), (4, 2, 2), (4, 2, 1)),
                ]
            ),
        ),
        ranks=(("logits", ((6, 5), (2, 2), (2,))),),
        drawn=(((2, 3, 3), (2, 2, 2), (2, 2)), ((3, 3, 4), (3, 3, 1), (3, 3))),
        valid=without_blanks,
    ),
    Row(
        "n_best_nll",
        "sequence",
        shapes=(((5, 3), (5, 3)), ((3, 4), (3, 4)), ((4, 1), (4, 1))),
        make=lambda rng, *shapes: tuple(-np.abs(array) for array in normal(rng, *shapes)),
        invariances={"shift of the posteriors": shift_posteriors, "permuted hypotheses": permute_hypotheses},
        extremes=list_extremes(),
        # 3/4 · 2 + 1/4 · 6
        hand=(Hand(([[-2.0, -6.0]], [[np.log(3), 0.0]]), [3.0], [[-0.75, -0.25]]),),
        identical_is_zero=False,
        mismatches=tuple(
            ("log_posteriors", shapes)
            for shapes in [((4, 3), (4, 1)), ((4, 3), (1, 3)), ((4, 3), (4, 5)), ((4, 3), (4,)), ((4, 1), (4, 3))]
        ),
        ranks=(("log_probs", ((4,), (4,))), ("log_probs", ((2, 4, 3), (2, 4, 3)))),
    ),
    Row(
        "frame_kl",
        "sequence",
        shapes=(((5, 3, 4),) * 2, ((2, 4, 3),) * 2, ((3, 2, 2),) * 2),
        hyper=({}, {"temperature": 2.0, "blank_weight": 1.0}, {"blank": 2, "blank_weight": 0.25}),
        leading=lambda rank: 2,
        rounding=1e-5,  # of logarithms, whose difference is the loss
        invariances={"shift": shift_each, "permuted classes": permute_all_but_the_blank},
        extremes=frame_extremes(),
        hand=(
            # the blank first: p_t = [1/4, 3/4] and [3/4, 1/4]
            Hand(
                (np.zeros((1, 2, 2)), np.log([[[0.25, 0.75], [0.75, 0.25]]])),
                [[0.75 * np.log(1.5) + 0.25 * np.log(0.5), 0.0]],
                [[[0.25, -0.25], [0.0, 0.0]]],
            ),
            Hand(
                (np.zeros((1, 2, 2)), np.log([[[0.25, 0.75], [0.75, 0.25]]])),
                [np.array([1, 0.5]) * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))],
                [[[0.25, -0.25], [-0.125, 0.125]]],
                {"blank_weight": 0.5},
            ),
        ),
        mismatches=(
            *((name, shapes) for name, shapes in SAME_LOGITS if len(shapes[0]) == 3),
            ("teacher", ((4, 3, 6), (4, 3, 1))),
            ("teacher", ((4, 3, 6), (1, 3, 6))),
        ),
        ranks=(("student", ((4, 6), (4, 6))),),
        drawn=(((2, 3, 3),) * 2, ((3, 2, 4),) * 2),
    ),
)
