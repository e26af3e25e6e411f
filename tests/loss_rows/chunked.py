"""Rows of `jaxkd.losses.chunked`: hidden states, and the kernels and biases that all tokens share."""

import inspect
from typing import Any

import numpy as np

from tests.loss_changes import Arrays, permutation
from tests.loss_row import Hand, Row, normal

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


SHAPES = (shapes(6, 3, 4, 7), shapes(5, 2, 2, 3), shapes(4, 1, 2, 2), shapes(3, 5, 1, 4))


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
)  # fmt: skip
RANKS = (
    ("student_hidden", ((3,), (3, 7), (5, 4), (4, 7), (7,), (7,))),
    ("student_hidden", ((2, 5, 3), (3, 7), (2, 5, 4), (4, 7), (7,), (7,))),
    ("teacher_hidden", ((5, 3), (3, 7), (4,), (4, 7), (7,), (7,))),
    ("student_kernel", ((5, 3), (3,), (5, 4), (4, 7), (7,), (7,))),
)

COMMON: dict[str, Any] = {
    "module": "chunked",
    "execution": ("vocabulary_axis", "chunk"),
    "shapes": SHAPES,
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
)
