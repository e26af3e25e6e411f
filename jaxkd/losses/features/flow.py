"""Flow losses: how a network's features change from one layer to the next.

A loss takes the feature maps of several layers of each network. Student and teacher need the same channels layer by
layer; spatial sizes may differ.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp

from .. import _checks, _numerics

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float

__all__ = ["singular_directions", "singular_vectors", "solution_flow"]


_MAPS = "maps [batch, height, width, channels]"


def solution_flow(
    student_pair: Sequence[Float[Array, "batch _height _width _channels"]],
    teacher_pair: Sequence[Float[Array, "batch _height _width _channels"]],
    *,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Mean squared difference of the Gram matrices between two layers.

    Also known as: FSP (flow of the solution procedure).

    ``mean (G_s − G_t)²`` with ``G = mean_hw F_l ⊗ F_{l+1}``. Yim et al., "A Gift from Knowledge Distillation: Fast
    Optimization, Network Minimization and Transfer Learning", CVPR 2017, equations 1 and 2. G is the ``[channels_l,
    channels_{l+1}]`` matrix of inner products between the channels of two layers. Within a pair the larger map is
    adaptive-average-pooled to the smaller, where the paper has max pooling. The paper sums over the entries of G; the
    mean is that of the common benchmarks.

    Args:
      student_pair: the maps of two layers, ``[batch, height, width, channels]`` each.
      teacher_pair: maps of the same layers of the teacher, with the student's batch and, layer by layer, its channels.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``.

    Raises:
      ValueError: a pair is not two floating-point feature maps, or batch or channels differ.

    >>> ones, zeros = jnp.ones((1, 4, 4, 3)), jnp.zeros((1, 2, 2, 5))
    >>> solution_flow((ones, 2 * jnp.ones((1, 2, 2, 5))), (ones, zeros))
    Array([4.], dtype=float32)
    """
    if len(student_pair) != 2:
        raise ValueError(f"student_pair: expected the maps of two layers, got {len(student_pair)}.")
    students, teachers = _layers("student_pair", student_pair, "teacher_pair", teacher_pair)
    where = _checks.mask(where, students[0].shape[:1])
    maps = _numerics.mask_inputs(where, *students, *teachers)
    difference = _flow(maps[0], maps[1]) - _flow(maps[2], maps[3])
    return _numerics.mask_values(jnp.mean(difference**2, axis=(1, 2)), where)


def singular_vectors(
    student_maps: Sequence[Float[Array, "batch _height _width _channels"]],
    teacher_maps: Sequence[Float[Array, "batch _height _width _channels"]],
    *,
    rank: int = 1,
    where: Bool[Array, " batch"] | None = None,
) -> Float[Array, " batch"]:
    """Squared difference of Gaussian relations between layers' singular vectors.

    Also known as: KD-SVD (knowledge distillation with singular value decomposition).

    ``Σ_i Σ_{c,c',r} (R_s − R_t)²``, ``R[c, c', r] = exp(−(D_i[c, r] − D_{i−1}[c', r])²/8)``, i over consecutive layers.
    ``D_i = V · σ/‖σ‖``: the right-singular vectors V ``[channels, rank]`` of the map as a matrix ``[height · width,
    channels]`` for its `rank` largest singular values σ.

    Lee, Kim & Song, "Self-supervised Knowledge Distillation Using Singular Value Decomposition", ECCV 2018, section 3.
    Singular vectors have no sign. Here the teacher's have a positive entry of largest magnitude, and the student's have
    a positive inner product with the teacher's of their rank, as in the paper. Code that follows the authors' instead
    searches a few more of the student's vectors for the nearest, gives them the teacher's singular values, and leaves
    the teacher's sign to the decomposition, between layers too.

    The derivative of an eigenvector divides by the gaps between eigenvalues. This implementation damps 1/gap to
    gap/(gap² + ε), with eigenvalues that sum to 1 and ε the dtype's, 1e-7 or 2e-16: equal up to ε/gap² where singular
    values differ, and finite where they do not. A singular value that is 0 up to rounding has D = 0 and no gradient,
    and so does an all-zero map. The cost is one eigendecomposition per map, of a square matrix with the smaller of
    positions and channels.

    Args:
      student_maps: the maps of two or more layers, in order, ``[batch, height, width, channels]`` each.
      teacher_maps: maps of the same layers of the teacher, with the student's batch and, layer by layer, its channels.
      rank: number of singular vectors, at most the positions and the channels of every map.
      where: mask, True for the examples to include ``[batch]``.

    Returns:
      One value per example ``[batch]``. It does not change with the scale or the sign of a map.

    Raises:
      ValueError: fewer than two layers, inputs that are not floating-point feature maps, a batch or channels that
        differ, or a rank that a map does not have.

    >>> first, second = jnp.array([3.0, 4.0]).reshape(1, 1, 1, 2), jnp.array([1.0, 0.0]).reshape(1, 1, 1, 2)
    >>> singular_vectors((first, second), (second, second)).round(4)
    Array([0.0244], dtype=float32)
    """
    if len(student_maps) < 2:
        raise ValueError(f"student_maps: expected the maps of two or more layers, got {len(student_maps)}.")
    students, teachers = _layers("student_maps", student_maps, "teacher_maps", teacher_maps)
    for x in (*students, *teachers):
        _check_rank(rank, x)
    where = _checks.mask(where, students[0].shape[:1])
    maps = _numerics.mask_inputs(where, *students, *teachers)
    features = [singular_directions(x, rank) for x in maps]
    values = jnp.zeros(maps[0].shape[0], jnp.result_type(*maps))
    before = None
    for student, teacher in zip(features[: len(students)], features[len(students) :], strict=True):
        agreement = jnp.sum(student * teacher, axis=1, keepdims=True)
        student = jnp.where(agreement < 0, -student, student)
        if before is not None:
            difference = _relation(student, before[0]) - _relation(teacher, before[1])
            values += jnp.sum(difference**2, axis=(1, 2, 3))
        before = student, teacher
    return _numerics.mask_values(values, where)


def _flow(first: Array, second: Array) -> Array:
    """Returns the channels' mean products ``[batch, channels, channels]``."""
    first, second = _numerics.match_size(first, second)
    return _numerics.einsum("bhwc,bhwd->bcd", first, second) / (first.shape[1] * first.shape[2])


def _relation(after: Array, before: Array) -> Array:
    """Returns Gaussian relations of two layers, ``[batch, channels, channels, rank]``."""
    return jnp.exp(-((after[:, :, None] - before[:, None]) ** 2) / 8)


def singular_directions(features: Array, rank: int) -> Array:
    """Returns right-singular vectors of maps, times normalized singular values.

    Args:
      features: ``[batch, height, width, channels]``; the matrix of an example has its positions as rows.
      rank: number of vectors.

    Returns:
      ``[batch, channels, rank]``, the signs such that the largest entry of each vector is positive.

    Raises:
      ValueError: the features are not a floating-point map, or have fewer positions or channels than the rank.

    >>> singular_directions(jnp.ones((1, 2, 2, 1)), 1)
    Array([[[1.]]], dtype=float32)
    """
    features = _checks.floating("features", features, _MAPS, rank=4)
    _check_rank(rank, features)
    batch, height, width, channels = features.shape
    matrix = features.reshape(batch, height * width, channels)
    # A scale cancels. With this one the eigenvalues below sum to 1, and squares neither overflow nor underflow.
    largest = jnp.max(jnp.abs(matrix), axis=(1, 2), keepdims=True)
    alive = largest > jnp.finfo(matrix.dtype).tiny
    matrix = jnp.where(alive, matrix, 0) / jax.lax.stop_gradient(jnp.where(alive, largest, 1))
    energy = jnp.sum(matrix**2, axis=(1, 2), keepdims=True)
    matrix = matrix / jax.lax.stop_gradient(jnp.sqrt(jnp.where(alive, energy, 1)))
    if channels <= height * width:
        vectors = _eigh(_numerics.einsum("bpc,bpd->bcd", matrix, matrix))[1][:, :, :rank]
        images = _numerics.einsum("bpc,bcr->bpr", matrix, vectors)
    else:
        left = _eigh(_numerics.einsum("bpc,bqc->bpq", matrix, matrix))[1][:, :, :rank]
        images = _numerics.einsum("bpc,bpr->bcr", matrix, left)
    # The singular values are the norms of these images, which are more accurate than the eigenvalues' roots.
    squares = jnp.sum(images**2, axis=1, keepdims=True)
    rounding = max(height * width, channels) * jnp.finfo(matrix.dtype).eps
    present = squares > rounding**2
    total = jnp.sum(jnp.where(present, squares, 0), axis=2, keepdims=True)
    scale = 1 / jnp.sqrt(jnp.where(total > 0, total, 1))
    if channels <= height * width:
        values = jnp.where(present, vectors, 0) * jnp.sqrt(jnp.where(present, squares, 1)) * scale
    else:
        values = jnp.where(present, images, 0) * scale
    peak = jnp.take_along_axis(values, jnp.argmax(jnp.abs(values), axis=1)[:, None], axis=1)
    return jnp.where(peak < 0, -values, values)


def _check_rank(rank: int, features: Array) -> None:
    _, height, width, channels = features.shape
    expected = f"1 to the smaller of positions and channels of {list(features.shape)}"
    _checks.whole("rank", rank, most=min(height * width, channels), expected=expected)


@jax.custom_jvp
def _eigh(matrix: Array) -> tuple[Array, Array]:
    """Eigendecomposition of symmetric ``[batch, n, n]``, in descending order."""
    values, vectors = jnp.linalg.eigh(matrix)
    return values[:, ::-1], vectors[:, :, ::-1]


@_eigh.defjvp
def _eigh_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
    """Perturbation theory, with 1/gap damped to the finite gap/(gap² + ε)."""
    values, vectors = _eigh(*primals)
    rotated = _numerics.einsum("bij,bik->bjk", vectors, _numerics.einsum("bij,bjk->bik", tangents[0], vectors))
    gaps = values[:, None, :] - values[:, :, None]
    turn = gaps / (gaps**2 + jnp.finfo(gaps.dtype).eps) * rotated
    return (values, vectors), (jnp.diagonal(rotated, axis1=1, axis2=2), _numerics.einsum("bij,bjk->bik", vectors, turn))


def _layers(
    student_name: str, student_maps: Sequence[Array], teacher_name: str, teacher_maps: Sequence[Array]
) -> tuple[list[Array], list[Array]]:
    """Returns maps of one batch, with the same channels layer by layer, upcast."""
    if len(student_maps) != len(teacher_maps):
        raise ValueError(f"{teacher_name}: expected the student's {len(student_maps)} layers, got {len(teacher_maps)}.")
    students = [_checks.floating(student_name, x, _MAPS, rank=4) for x in student_maps]
    teachers = [_checks.floating(teacher_name, x, _MAPS, rank=4) for x in teacher_maps]
    for name, maps in ((student_name, students), (teacher_name, teachers)):
        for index, (x, student) in enumerate(zip(maps, students, strict=True)):
            if (x.shape[0], x.shape[3]) != (students[0].shape[0], student.shape[3]):
                raise ValueError(
                    f"{name}: expected a batch of {students[0].shape[0]} and {student.shape[3]} channels, the "
                    f"student's, in layer {index}, got {list(x.shape)}."
                )
    return students, teachers
