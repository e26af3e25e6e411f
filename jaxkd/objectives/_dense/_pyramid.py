"""Feature objectives on every level of a pyramid of maps."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from jaxkd.objectives._checks import sizes
from jaxkd.objectives._compose import combine, replace, term
from jaxkd.objectives._dense._resized import on_changed
from jaxkd.objectives._features._alignment import align, align_init
from jaxkd.objectives._projection import with_projection
from jaxkd.objectives.layers import maps, pool_to_match
from jaxkd.types import Array, Context, Objective, ObjectiveVars, Schedule


def pyramid(
    objective: Callable[[str, str], Objective], level_map: int | Mapping[int, int], *, level_names: str = "level{}"
) -> Objective:
    """Sums a feature objective over the levels of two pyramids.

    Each level has parameters and state of its own, as in the papers that distill the levels of a feature pyramid: MGD,
    DMKD, PKD, CWD, FGD, FGFI. The two networks may differ in strides, channels and number of levels: ``{0: 1, 1: 2}``
    compares the student's level 0 with the teacher's level 1, and the student's level 1 with the teacher's level 2.
    Where the sizes of two maps differ, the larger one is adaptive-average-pooled to the smaller one, on each axis,
    before the objective sees them.

    Args:
      objective: function of the paths of the student's and the teacher's map that returns the `Objective` of one level,
        such as ``functools.partial(objectives.masked_generation, weight=2e-5)``. Other channels than the teacher's need
        an objective that maps them, such as `aligned`.
      level_map: number of the teacher's level for that of each of the student's, or the number of levels that are
        compared in their order.
      level_names: name of a level among the outputs, with ``{}`` for its number.

    Returns:
      An `Objective` whose parts are named after the student's levels, ``level0``, ``level1``, ….

    Raises:
      ValueError: there is no level; or, from ``init``: a network has no such level, or it is not a map.

    >>> import functools
    >>> import jax, jax.numpy as jnp
    >>> from jaxkd import losses
    >>> pkd = pyramid(functools.partial(aligned, losses.pearson_features, weight=6.0), {0: 1, 1: 2})
    >>> shapes = lambda **maps: {name: jax.ShapeDtypeStruct((2, *s), jnp.float32) for name, s in maps.items()}
    >>> student, teacher = shapes(level0=(4, 4, 3), level1=(2, 2, 3)), shapes(level1=(8, 8, 5), level2=(4, 4, 5))
    >>> params = pkd.init(jax.random.key(0), Context(student, teacher, {}, 0)).params
    >>> params["level1"]["align"]["kernel"].shape
    (3, 5)
    """
    if isinstance(level_map, int):
        sizes("pyramid", level_map=level_map)
        level_map = {level: level for level in range(level_map)}
    if not level_map:
        raise ValueError("pyramid, level_map: expected at least one level of the student, got none.")
    parts = {}
    for own, other in level_map.items():
        paths = f"student/{level_names.format(own)}", f"teacher/{level_names.format(other)}"
        parts[level_names.format(own)] = _at_one_size(objective(*paths), paths)
    return combine(**parts)


def aligned(
    loss: Callable[..., Array],
    student: str,
    teacher: str,
    *,
    kernel_size: int | None = None,
    weight: float | Array | Schedule = 1.0,
    **hyperparameters: Any,
) -> Objective:
    """Compares two maps by a loss, behind a convolution of the student's map.

    ``loss(a(F_s), F_t)``. The alignment a is a 1×1 convolution where the channels differ, and nothing where they do
    not; with ``kernel_size`` it is always a convolution of that size, with a bias. The larger of two maps is pooled to
    the smaller one. On every level of a pyramid (see `pyramid`), with ``losses.pearson_features`` and weight 6 it is
    Cao et al., "PKD: General Distillation Framework for Object Detectors via Pearson Correlation Coefficient", NeurIPS
    2022; with ``losses.channel_kl``, T = 1 and weight 10 it is CWD (Shu et al., ICCV 2021) as in mmrazor's
    configurations of detectors; with ``losses.hint_mse`` and a kernel size of 1 the hint of Chen et al., NIPS 2017,
    whose adaptation is there for equal channels too.

    Args:
      loss: function of two maps ``[batch, height, width, channels]`` of one shape with one value per example.
      student: path of the student's map.
      teacher: path of the teacher's map.
      kernel_size: side of the convolution's kernel, or None for a 1×1 convolution only where the channels differ.
      weight: a number, or an optax schedule of the step.
      **hyperparameters: keyword arguments of the loss, as for `jaxkd.term`.

    Returns:
      An `Objective` with the parameters ``{"align": {"kernel", "bias"}}``, or none where nothing is aligned.

    Raises:
      ValueError: from ``init``: a path does not exist, or the features are no maps of one batch.

    >>> import jax, jax.numpy as jnp
    >>> from jaxkd import losses
    >>> objective = aligned(losses.channel_kl, "student/f", "teacher/f", temperature=1.0, weight=10.0)
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 8, 8, 6), feature(2, 4, 4, 5), {}, 0)
    >>> objective.init(jax.random.key(0), context).params["align"]["kernel"].shape
    (6, 5)
    """
    if kernel_size is not None:
        sizes("aligned", kernel_size=kernel_size)

    def init(key: Array, context: Context) -> ObjectiveVars:
        return ObjectiveVars(align_init("aligned", key, context, student, teacher, kernel_size=kernel_size)[0])

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        del key
        feature, target = align("aligned", params, context, student, teacher)
        return replace(context, {student: feature, teacher: target}), state

    return with_projection(init, change, term(loss, student, teacher, weight=weight, **hyperparameters))


def _at_one_size(objective: Objective, paths: tuple[str, str]) -> Objective:
    """Gives an objective the maps at the size of the smaller one."""

    def pooled(found: Mapping[str, Any]) -> dict[str, Any]:
        both = [found[path] for path in paths]
        maps("pyramid", both)
        if both[0].shape[1:3] == both[1].shape[1:3]:
            return dict(found)
        # A map that has the size keeps its dtype: the objective decides in which it computes.
        changed = zip(paths, both, pool_to_match("pyramid", *both), strict=True)
        return {path: x if x.shape == y.shape else y for path, x, y in changed}

    return on_changed(objective, paths, pooled)
