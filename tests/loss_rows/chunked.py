"""Rows of `jaxkd.losses.chunked`: hidden states, and the kernels and biases that all tokens share."""

import inspect
from collections.abc import Callable
from typing import Any

import numpy as np

from tests.loss_changes import Arrays, permutation
from tests.loss_row import Hand, Row, normal
from tests.loss_rows.kl import top
from tests.references import log_softmax

ARGUMENTS = ("student_hidden", "student_kernel", "teacher_hidden", "teacher_kernel", "student_bias", "teacher_bias")
SHARED = (1, 3, 4, 5)


def shapes(tokens, student, teacher, vocabulary):
    return (
        (tokens, student),
        (student, vocabulary),
        (tokens, teacher),
        (teacher, vocabulary),
        (vocabulary,),
        (vocabulary,),
    )


def with_batch(shapes, batch=2):
    """Hidden states [batch, tokens, hidden]."""
    return tuple((batch, *shape) if i in (0, 2) else shape for i, shape in enumerate(shapes))


SHAPES = (
    shapes(6, 3, 4, 7),
    shapes(5, 2, 2, 3),
    shapes(4, 1, 2, 2),
    shapes(3, 5, 1, 4),
    with_batch(shapes(3, 2, 3, 4)),
)


def heads(loss, *arrays, **options):
    """Calls a chunked loss with several chunks, the last one smaller if they do not divide the tokens."""
    if "chunk" in inspect.signature(loss).parameters:
        options.setdefault("chunk", 4)
    return loss(*arrays[:4], student_bias=arrays[4], teacher_bias=arrays[5], **options)


def make(rng: np.random.Generator, *shapes: tuple[int, ...]) -> Arrays:
    """Returns layers with logits of order one."""
    arrays = normal(rng, *shapes)
    return tuple(array / len(array) ** 0.5 if i in (1, 3) else array for i, array in enumerate(arrays))


def perfect(arrays: Arrays) -> Arrays:
    hidden, kernel, _, _, bias, _ = arrays
    return hidden, kernel, hidden, kernel, bias, bias


def shift_biases(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    return *arrays[:4], arrays[4] + rng.normal(), arrays[5] + rng.normal()


def permute_words(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    order = permutation(rng, arrays[1].shape[-1])
    return tuple(array[..., order] if i in SHARED else array for i, array in enumerate(arrays))


def shared_basis(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Rotates hidden states and kernel of each network, which leaves the logits unchanged."""
    changed = list(arrays)
    for hidden, kernel in ((0, 1), (2, 3)):
        rotation, _ = np.linalg.qr(rng.normal(size=2 * arrays[hidden].shape[-1:]))
        changed[hidden], changed[kernel] = arrays[hidden] @ rotation, rotation.T @ arrays[kernel]
    return tuple(changed)


def extremes() -> dict[str, Arrays]:
    usual = make(np.random.default_rng(5), *SHAPES[0])
    words = np.arange(7)

    def with_biases(student, teacher, arrays=usual):
        return *arrays[:4], np.where(student, -np.inf, arrays[4]), np.where(teacher, -np.inf, arrays[5])

    def scaled(student, teacher):
        factors = student, 1, teacher, 1, 1, 1
        return tuple(array * factor for array, factor in zip(usual, factors, strict=True))

    steep = np.where(words % 3 == 0, 1e4, -1e4)
    some, other = np.isin(words, (0, 4)), words == 5
    return {
        "student ±1e4": scaled(1e4, 1),
        "teacher ±1e4": scaled(1, 1e4),
        "both ±1e4": scaled(1e4, 1e4),
        "equal ±1e4": perfect(scaled(1e4, 1)),
        "opposite biases ±1e4": (*usual[:4], steep, -steep),
        "zeros": tuple(np.zeros_like(array) for array in usual),
        "hidden states of zeros": scaled(0, 0),
        "duplicates": tuple(a if i in SHARED else np.repeat(a[:1], 6, 0) for i, a in enumerate(usual)),
        "words that neither knows": with_biases(some, some),
        "words that neither knows, ±1e4": with_biases(some, some, scaled(1e4, 1)),
        "words that the teacher does not know": with_biases(False, some),
        "words that the student does not know": with_biases(some, False),
        "words that one of them knows": with_biases(some, other),
        "one word left": with_biases(words != 2, words != 2),
    }


def usual_head() -> Arrays:
    return make(np.random.default_rng(5), *SHAPES[0])[:2]


MISMATCHES = (
    *(
        ("teacher_hidden", shapes(5, 3, 4, 7)[:2] + shapes(tokens, 3, 4, 7)[2:]) for tokens in (1, 4, 6)
    ),
    *(
        ("teacher_kernel", (*shapes(5, 3, 4, 7)[:3], (4, words), (7,), (words,))) for words in (1, 6, 8)
    ),
    ("student_kernel", ((5, 3), (7, 3), (5, 4), (4, 7), (7,), (7,))),  # an embedding table
    ("teacher_kernel", ((5, 3), (3, 7), (5, 4), (3, 7), (7,), (7,))),
    ("student_kernel", ((5, 3), (1, 7), (5, 4), (4, 7), (7,), (7,))),
    ("student_bias", ((5, 3), (3, 7), (5, 4), (4, 7), (1,), (7,))),
    ("student_bias", ((5, 3), (3, 7), (5, 4), (4, 7), (5, 7), (7,))),
    ("teacher_bias", ((5, 3), (3, 7), (5, 4), (4, 7), (7,), ())),
    ("teacher_hidden", ((2, 5, 3), (3, 7), (10, 4), (4, 7), (7,), (7,))),
)  # fmt: skip
RANKS = (
    ("student_hidden", ((3,), (3, 7), (5, 4), (4, 7), (7,), (7,))),
    ("teacher_hidden", ((5, 3), (3, 7), (4,), (4, 7), (7,), (7,))),
    ("student_kernel", ((5, 3), (3,), (5, 4), (4, 7), (7,), (7,))),
)

COMMON: dict[str, Any] = {
    "module": "chunked.divergences",
    "execution": ("vocabulary_axis", "chunk", "transposed"),
    "shapes": SHAPES,
    "leading": lambda rank: rank - 1,
    "make": make,
    "call": heads,
    "arguments": ARGUMENTS,
    "shared": SHARED,
    "invariances": {
        "shift of a bias": shift_biases,
        "permuted vocabulary": permute_words,
        "rotated hidden states": shared_basis,
    },
    "extremes": extremes(),
    "perfect": perfect,
    "forward_mode": False,
    "rounding": 1e-5,  # a kernel's gradient is the rounding of probabilities times hidden states, which may be large
    "mismatches": MISMATCHES,
    "ranks": RANKS,
}

# --- losses of one network --------------------------------------------------------------------------------------------


def one_head(loss, *arrays, **options):
    """Calls a chunked loss of known words, whose last array is the bias."""
    if "chunk" in inspect.signature(loss).parameters:
        options.setdefault("chunk", 4)
    return loss(*arrays[:-1], student_bias=arrays[-1], **options)


def rotated(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    hidden, kernel, *rest = arrays
    rotation, _ = np.linalg.qr(rng.normal(size=2 * hidden.shape[-1:]))
    return hidden @ rotation, rotation.T @ kernel, *rest


def shift_bias(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    return *arrays[:-1], arrays[-1] + rng.normal()


def rename_words(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Permutes the vocabulary; labels or indices come last but one."""
    hidden, kernel, *rest, words, bias = arrays
    order = permutation(rng, len(bias))
    return hidden, kernel[:, order], *rest, np.argsort(order)[words], bias[order]


def make_labels(rng: np.random.Generator, *shapes: tuple[int, ...]) -> Arrays:
    hidden, kernel, labels, bias = shapes
    first = normal(rng, hidden, kernel, bias)
    return first[0], first[1] / kernel[0] ** 0.5, rng.integers(0, kernel[1], size=labels), first[2]


def make_top(rng: np.random.Generator, *shapes: tuple[int, ...]) -> Arrays:
    hidden, kernel, known, _, bias = shapes
    first = normal(rng, hidden, kernel, bias)
    teacher = rng.normal(size=(*hidden[:-1], kernel[1]))
    return first[0], first[1] / kernel[0] ** 0.5, *top(teacher, known[-1]), first[2]


def draws(rng: np.random.Generator, shape: tuple[int, ...], words: int) -> Arrays:
    """Returns weights that sum to 1, and words with repetitions."""
    return rng.dirichlet(np.ones(shape[-1]), size=shape[:-1]), rng.integers(0, words, size=shape)


def make_draws(rng: np.random.Generator, *shapes: tuple[int, ...]) -> Arrays:
    hidden, kernel, drawn, _, bias = shapes
    first = normal(rng, hidden, kernel, bias)
    return first[0], first[1] / kernel[0] ** 0.5, *draws(rng, drawn, kernel[1]), first[2]


def words_only(arrays: Arrays) -> Arrays:
    hidden, kernel, weights, indices, bias = arrays
    return hidden, kernel, np.abs(weights), (np.abs(indices) % kernel.shape[1]).astype(np.int32), bias


def own_top(arrays: Arrays) -> Arrays:
    """Makes the student its own teacher, with a tail well above 0."""
    hidden, kernel, _, indices, bias = arrays
    kernel, bias = kernel / max(1, np.abs(hidden).max(initial=0)), bias / max(1, np.abs(bias).max())
    kernel = kernel / max(1, np.abs(kernel).max())
    return hidden, kernel, np.take_along_axis(log_softmax(hidden @ kernel + bias), indices, axis=-1), indices, bias


def distinct_words(arrays: Arrays) -> Arrays:
    hidden, kernel, log_probs, indices, bias = arrays
    following = indices[..., :1] + np.arange(indices.shape[-1])
    return hidden, kernel, -np.abs(log_probs), (following % kernel.shape[1]).astype(np.int32), bias


def label_shapes(tokens, hidden, vocabulary):
    return (*tokens, hidden), (hidden, vocabulary), tokens, (vocabulary,)


def top_shapes(tokens, hidden, vocabulary, k):
    return (*tokens, hidden), (hidden, vocabulary), (*tokens, k), (*tokens, k), (vocabulary,)


def head_extremes(known: Callable[[Arrays], Arrays]) -> dict[str, Arrays]:
    """Returns the extremes of the student's head with the known words that are made for it."""
    found = {}
    for name, (hidden, kernel, _, _, bias, _) in extremes().items():
        if "teacher" not in name and "one of them" not in name:
            found[name] = (hidden, kernel, *known((hidden, kernel, bias)), bias)
    return found


ONE: dict[str, Any] = {
    "module": "chunked.known",
    "execution": ("vocabulary_axis", "chunk", "transposed"),
    "leading": lambda rank: rank - 1,
    "call": one_head,
    "forward_mode": False,
    "rounding": 1e-5,
    "invariances": {
        "shift of the bias": shift_bias,
        "renamed words": rename_words,
        "rotated hidden states": rotated,
    },
}
HEAD_MISMATCHES = (
    ("student_kernel", (5, 3), (7, 3), (7,)),
    ("student_bias", (5, 3), (3, 7), (1,)),
    ("student_hidden", (3,), (3, 7), (7,)),
)
LABELS: dict[str, Any] = ONE | {
    "arguments": ("student_hidden", "student_kernel", "labels", "student_bias"),
    "shared": (1, 3),
    "shapes": (
        label_shapes((6,), 3, 7),
        label_shapes((5,), 2, 3),
        label_shapes((4,), 1, 2),
        label_shapes((2, 3), 2, 4),
    ),
    "make": make_labels,
    "identical_is_zero": False,
    "extremes": head_extremes(lambda head: (np.array([5, 1, 2, 3, 6, 5]),)),
    "mismatches": (
        *((name, (hidden, kernel, (5,), bias)) for name, hidden, kernel, bias in HEAD_MISMATCHES[:2]),
        ("labels", (*label_shapes((5,), 3, 7)[:2], (4,), (7,))),
        ("labels", (*label_shapes((5,), 3, 7)[:2], (5, 1), (7,))),
        ("labels", (*label_shapes((2, 5), 3, 7)[:2], (10,), (7,))),
    ),
    "ranks": (("student_hidden", ((3,), (3, 7), (), (7,))),),
}
TOP_K: dict[str, Any] = ONE | {
    "arguments": ("student_hidden", "student_kernel", "log_probs", "indices", "student_bias"),
    "shared": (1, 4),
    "constant": (2,),
    "shapes": (
        top_shapes((6,), 3, 7, 4),
        top_shapes((5,), 2, 3, 2),
        top_shapes((4,), 1, 2, 1),
        top_shapes((2, 3), 2, 4, 4),
    ),
    "make": make_top,
    "perfect": own_top,
    "valid": distinct_words,
    "extremes": head_extremes(lambda head: top(np.random.default_rng(4).normal(size=(6, 7)), 3))
    | {
        "none of the words": (*usual_head(), np.full((6, 3), -np.inf), np.array([[3, 1, 0]] * 6), np.zeros(7)),
        "a word twice": (
            *usual_head(),
            np.array([[np.log(0.5), -np.inf, np.log(0.5)]] * 6),
            np.array([[3] * 3] * 6),
            np.zeros(7),
        ),
    },
    "mismatches": (
        *((name, (hidden, kernel, (5, 2), (5, 2), bias)) for name, hidden, kernel, bias in HEAD_MISMATCHES[:2]),
        ("log_probs", ((5, 3), (3, 7), (4, 2), (4, 2), (7,))),
        ("log_probs", ((5, 3), (3, 7), (5, 8), (5, 8), (7,))),
        ("log_probs", ((5, 3), (3, 7), (5, 0), (5, 0), (7,))),
        ("indices", ((5, 3), (3, 7), (5, 2), (5, 1), (7,))),
    ),
    "ranks": (("student_hidden", ((3,), (3, 7), (2,), (2,), (7,))),),
}
SPARSE: dict[str, Any] = (
    {name: value for name, value in TOP_K.items() if name not in ("perfect", "valid")}
    | {
        "arguments": ("student_hidden", "student_kernel", "weights", "indices", "student_bias"),
        "shapes": (
            top_shapes((6,), 3, 7, 4),
            top_shapes((5,), 2, 3, 5),  # more draws than words
            top_shapes((4,), 1, 2, 1),
            top_shapes((2, 3), 2, 4, 3),
        ),
        "make": make_draws,
        "valid": words_only,
        "identical_is_zero": False,
        "extremes": head_extremes(lambda head: draws(np.random.default_rng(4), (6, 3), 7))
        | {
            "weights of 0": (*usual_head(), np.zeros((6, 3)), np.array([[3, 1, 0]] * 6), np.zeros(7)),
            "padding": (*usual_head(), np.array([[0.5, 0.5, 0.0]] * 6), np.array([[3, 3, -1]] * 6), np.zeros(7)),
        },
        "mismatches": (
            *((name, (hidden, kernel, (5, 2), (5, 2), bias)) for name, hidden, kernel, bias in HEAD_MISMATCHES[:2]),
            ("weights", ((5, 3), (3, 7), (4, 2), (4, 2), (7,))),
            ("weights", ((5, 3), (3, 7), (5, 0), (5, 0), (7,))),
            ("weights", ((5, 3), (3, 7), (1, 2), (5, 2), (7,))),
            ("indices", ((5, 3), (3, 7), (5, 2), (5, 1), (7,))),
        ),
    }
)

# Kernels of the identity: the logits of the rows below are the hidden states.
EYE, NONE = np.eye(2), np.zeros(2)


def logits(student, teacher):
    return [student], EYE, [teacher], EYE, NONE, NONE


ROWS = (
    Row(
        "linear_soft_target_kl",
        hyper=({}, {"temperature": 2.5}, {"soft_cap": 1.5}, {"soft_cap": (2.0, 2.0)}),
        hand=(
            # p_t = [3/4, 1/4], p_s = [1/2, 1/2]; the gradient of the logits is T (p_s - p_t)
            Hand(
                logits([0.0, 0.0], [2 * np.log(3), 0.0]),
                [4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))],
                [[-0.5, 0.5]],
                {"temperature": 2.0},
            ),
            Hand(([[1.0]], [[0.0, np.log(3)]], [[0.0]], [[0.0, 0.0]], NONE, NONE), [0.5 * np.log(4 / 3)], None),
        ),
        **COMMON,
    ),
    Row(
        "linear_generalized_jsd",
        hyper=(
            {},
            {"beta": 0.1, "temperature": 2.5},
            {"beta": 0.0, "soft_cap": 1.5, "temperature": 2.0},
            {"beta": 1.0, "temperature": 0.5},
            {"beta": 0.9, "soft_cap": (2.0, 2.0)},
        ),
        hand=(
            # p_t = [3/4, 1/4], p_s = [1/2, 1/2], m = [5/8, 3/8]
            Hand(
                logits([0.0, 0.0], [np.log(3), 0.0]),
                [0.5 * (0.75 * np.log(1.2) + 0.25 * np.log(2 / 3)) + 0.25 * (np.log(0.8) + np.log(4 / 3))],
                # (p_s log(p_s / m) - p_s KL(p_s ‖ m)) / 2
                [[0.125 * (np.log(0.8) - np.log(4 / 3)), 0.125 * (np.log(4 / 3) - np.log(0.8))]],
            ),
            Hand(logits([0.0, 0.0], [np.log(3), 0.0]), [0.75 * np.log(1.5) + 0.25 * np.log(0.5)], None, {"beta": 0.0}),
            Hand(logits([np.log(3), 0.0], [0.0, 0.0]), [0.75 * np.log(1.5) + 0.25 * np.log(0.5)], None, {"beta": 1.0}),
        ),
        **COMMON,
    ),
    Row(
        "linear_reverse_kl",
        hyper=({}, {"temperature": 2.5}, {"soft_cap": (2.0, 1.5)}),
        perfect_hyper=({}, {"temperature": 2.5}, {"soft_cap": 1.5}),
        hand=(
            # p_s = [3/4, 1/4], p_t = [1/2, 1/2]; the gradient is T p_s (log p_s/p_t - KL)
            Hand(
                logits([2 * np.log(3), 0.0], [0.0, 0.0]),
                [4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))],
                [[3 / 8 * np.log(3), -3 / 8 * np.log(3)]],
                {"temperature": 2.0},
            ),
        ),
        **COMMON,
    ),
    Row(
        "linear_skew_kl",
        hyper=({}, {"alpha": 0.0}, {"alpha": 0.5, "temperature": 2.5}, {"alpha": 1.0}),
        hand=(
            # p_t = [3/4, 1/4], p_s = [1/2, 1/2], half of each = [5/8, 3/8]: slopes -p_t/2m = [-3/5, -1/3] of p_s
            Hand(
                logits([0.0, 0.0], [np.log(3), 0.0]),
                [0.75 * np.log(6 / 5) + 0.25 * np.log(2 / 3)],
                [[-1 / 15, 1 / 15]],
                {"alpha": 0.5},
            ),
            Hand(logits([2e3, 0.0], [0.0, 2e3]), [np.log(10)], [[0.0, 0.0]]),
        ),
        **COMMON,
    ),
    Row(
        "linear_skew_reverse_kl",
        hyper=({}, {"alpha": 0.0}, {"alpha": 0.5, "temperature": 2.5}, {"alpha": 1.0}),
        hand=(
            # as above; slopes log(p_s/m) + 1 - p_s/2m = [log 4/5 + 3/5, log 4/3 + 1/3] of p_s
            Hand(
                logits([0.0, 0.0], [np.log(3), 0.0]),
                [0.5 * np.log(4 / 5) + 0.5 * np.log(4 / 3)],
                [[(np.log(3 / 5) + 4 / 15) / 4, -(np.log(3 / 5) + 4 / 15) / 4]],
                {"alpha": 0.5},
            ),
            Hand(logits([2e3, 0.0], [0.0, 2e3]), [np.log(10)], [[0.0, 0.0]]),
        ),
        **COMMON,
    ),
    Row(
        "linear_total_variation",
        hyper=({}, {"temperature": 2.5, "soft_cap": 1.5}),
        hand=(
            # p_t = [3/4, 1/4], p_s = [1/2, 1/2]: slopes [-1, 1]/2 of p_s
            Hand(logits([0.0, 0.0], [np.log(3), 0.0]), [0.25], [[-0.25, 0.25]]),
        ),
        **COMMON,
    ),
    Row(
        "linear_cross_entropy",
        hyper=({}, {"soft_cap": 1.5}),
        hand=(
            # p = [3/4, 1/4]; the gradient is p minus the label
            Hand(([[np.log(3), 0.0]], EYE, [1], NONE), [np.log(4)], [[0.75, -0.75]]),
            Hand(([[1.0]], [[0.0, np.log(3)]], [0], NONE), [np.log(4)], [[0.75 * np.log(3)]]),
        ),
        **LABELS,
    ),
    Row(
        "linear_sparse_cross_entropy",
        hyper=({}, {"soft_cap": 1.5}),
        hand=(
            # p = [1/4, 3/4], q = [1/2, 1/2] of three entries; the gradient is p - q
            Hand(
                ([[0.0, np.log(3)]], EYE, np.array([[0.25, 0.5, 0.25]]), np.array([[0, 1, 0]]), NONE),
                [np.log(4) / 2 + np.log(4 / 3) / 2],
                [[-0.25, 0.25]],
            ),
        ),
        **SPARSE,
    ),
    Row(
        "linear_top_k_kl",
        hyper=({}, {"temperature": 2.5}, {"soft_cap": 1.5, "temperature": 0.5}),
        perfect_hyper=({},),  # the targets are those of T = 1
        hand=(
            # p_t = [5, 3]/10 and 2/10 in the tail, p_s = [2, 2, 3, 3]/10; the slope is T (p_s - p_t), the tail's p_t
            # being shared as p_s is
            Hand(
                (2 * np.log([[0.2, 0.2, 0.3, 0.3]]), np.eye(4), np.log([[0.5, 0.3]]), np.array([[0, 1]]), np.zeros(4)),
                [4 * (0.5 * np.log(5 / 2) + 0.3 * np.log(3 / 2) + 0.2 * np.log(1 / 3))],
                [[-0.6, -0.2, 0.4, 0.4]],
                {"temperature": 2.0},
            ),
        ),
        **TOP_K,
    ),
)
