"""Changes of the input that leave a loss unchanged: the invariances in the rows of the loss table."""

from collections.abc import Callable

import numpy as np

Arrays = tuple[np.ndarray, ...]


def permutation(rng: np.random.Generator, size: int) -> np.ndarray:
    """Returns a permutation that is not the identity."""
    while (order := rng.permutation(size)).tolist() == list(range(size)):
        pass
    return order


def shift_each(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Adds a constant per example and network, to which a softmax is invariant."""
    return tuple(a + rng.normal(size=(*a.shape[:-1], 1)) if a.dtype.kind == "f" else a for a in arrays)


def shift_both(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Adds one constant to student and teacher."""
    constant = rng.normal()
    return tuple(array + constant for array in arrays)


def permute_last(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Permutes the classes, or channels, of student and teacher in the same way."""
    order = permutation(rng, arrays[0].shape[-1])
    return tuple(array[..., order] for array in arrays)


def permute_labeled(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Renames the classes in logits and labels."""
    logits, labels = arrays
    order = permutation(rng, logits.shape[-1])
    return logits[..., order], np.argsort(order)[labels]


def permute_student_last(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    return (arrays[0][..., permutation(rng, arrays[0].shape[-1])], *arrays[1:])


def mirror(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Flips both maps from left to right."""
    return tuple(array[:, :, ::-1] for array in arrays)


def scale_each(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Scales student and teacher, each by its own positive factor."""
    return tuple(array * rng.uniform(0.1, 10) for array in arrays)


def flip_signs(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    return tuple(array * rng.choice([-1.0, 1.0], size=array.shape) for array in arrays)


def translate(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Shifts all embeddings of a network by one vector."""
    return tuple(array + 3 * rng.normal(size=array.shape[1:]) for array in arrays)


def rotate(rng: np.random.Generator, arrays: Arrays) -> Arrays:
    """Rotates all embeddings of a network by one orthogonal matrix."""
    return tuple(array @ np.linalg.qr(rng.normal(size=(array.shape[-1],) * 2))[0] for array in arrays)


def permuted_result(rng: np.random.Generator, arrays: Arrays) -> tuple[Arrays, Callable]:
    order = permutation(rng, arrays[0].shape[-1])
    return (arrays[0][..., order],), lambda result: result[..., order]
