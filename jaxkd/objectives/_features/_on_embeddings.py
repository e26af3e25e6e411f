"""A relation between examples, on learned embeddings of both features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax

from jaxkd._core import batches
from jaxkd.objectives._checks import sizes
from jaxkd.objectives._compose import replace, term
from jaxkd.objectives._embeddings import SIDES, embed, init_embeddings
from jaxkd.objectives._projection import with_projection
from jaxkd.types import Array, Context, Objective, ObjectiveVars, Schedule


def on_embeddings(
    loss: Callable[..., Array],
    student: str,
    teacher: str,
    *,
    embedding_size: int = 128,
    normalize: bool = False,
    weight: float | Array | Schedule = 1.0,
    **hyperparameters: Any,
) -> Objective:
    """Applies a loss to learned linear embeddings of both features.

    Also known as: CC (correlation congruence), with ``losses.consecutive_correlation``.

    ``loss(W_s vec(F_s) + b_s, W_t vec(F_t) + b_t)``. With ``losses.consecutive_correlation`` it is Peng et al.,
    "Correlation Congruence for Knowledge Distillation", ICCV 2019, as the common benchmark of Tian et al. 2020 runs it:
    128 features on both sides, not normalized, weight 0.02. Both embeddings are learned, so a loss that is small for
    small embeddings can be minimized by shrinking them: normalize the embeddings unless the loss does.

    Args:
      loss: function of two embeddings ``[batch, features]`` with one value per example: any of
        `jaxkd.losses.relations`, or `jaxkd.losses.hint_mse`, since the embeddings have one size.
      student: path of the student's feature ``[batch, ...]``, which is flattened.
      teacher: path of the teacher's feature ``[batch, ...]``; the shapes may differ.
      embedding_size: size of both embeddings.
      normalize: divides each embedding by its L2 norm; an embedding of zero stays zero.
      weight: a number, or an optax schedule of the step.
      **hyperparameters: keyword arguments of the loss, as for `jaxkd.term`.

    Returns:
      An `Objective` with the parameters ``{"student": {"kernel", "bias"}, "teacher": {"kernel", "bias"}}``.

    Raises:
      ValueError: from ``init``: a path does not exist, or the loss does not return one value per example.

    >>> import jax.numpy as jnp
    >>> from jaxkd import losses
    >>> objective = on_embeddings(losses.distance_relation, "student/f", "teacher/f", embedding_size=8)
    >>> feature = lambda *shape: {"f": jax.ShapeDtypeStruct(shape, jnp.float32)}
    >>> context = Context(feature(2, 4, 4, 3), feature(2, 5), {}, 0)
    >>> params = objective.init(jax.random.key(0), context).params
    >>> params["student"]["kernel"].shape, params["teacher"]["kernel"].shape
    ((48, 8), (5, 8))
    """
    sizes("on_embeddings", embedding_size=embedding_size)
    paths = (student, teacher)
    compare = term(loss, *(f"{side}/embedding" for side in SIDES), weight=weight, **hyperparameters)

    def init(key: Array, context: Context) -> ObjectiveVars:
        return ObjectiveVars(init_embeddings(jax.random.split(key), context, paths, embedding_size))

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        del key
        embeddings = embed(params, context, paths, normalize=normalize)
        values = {f"{side}/embedding": x for side, x in embeddings.items()}
        mask = batches.example_mask(context.batch)  # an embedding holds all tokens of its example
        return replace(context, values if mask is None else {**values, "batch/mask": mask}), state

    return with_projection(init, change, compare)
