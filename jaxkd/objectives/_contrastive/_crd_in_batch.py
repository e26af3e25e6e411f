"""Contrastive distillation within the batch."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import batches
from jaxkd.objectives._checks import class_labels, positive, sizes
from jaxkd.objectives._compose import reduce_values
from jaxkd.objectives._embeddings import check_features, embed, init_embeddings
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars, Schedule


def crd_in_batch(
    student: str,
    teacher: str,
    *,
    embedding_size: int = 128,
    temperature: float | Array = 0.07,
    weight: float | Array | Schedule = 1.0,
    label_path: str | None = "batch/label",
) -> Objective:
    """InfoNCE between learned embeddings of the batch, in both directions.

    Also known as: CRD (contrastive representation distillation), within the batch.

    `jaxkd.losses.info_nce` of the student's embeddings against the teacher's, and the reverse. It is the objective of
    CRD (Tian, Krishnan & Isola, ICLR 2020) without a memory (`crd` and `crd_queue` have one): the negatives are the
    examples of other classes in the global batch. Van den Oord, Li & Vinyals, "Representation Learning with Contrastive
    Predictive Coding", 2018, equation 4.

    Args:
      student: path of the student's feature ``[batch, ...]``.
      teacher: path of the teacher's feature ``[batch, ...]``; the shapes may differ.
      embedding_size: size of the embeddings.
      temperature: T > 0.
      weight: a number, or an optax schedule of the step.
      label_path: path of integer classes ``[batch]``, which excludes negatives of the anchor's class; None keeps all.

    Returns:
      An `Objective` with both embeddings as parameters.

    Raises:
      ValueError: a number is not positive; and from ``init``: a path does not exist, or the labels are not integers
        ``[batch]``.

    >>> objective = crd_in_batch("student/f", "teacher/f", embedding_size=4, label_path=None)
    >>> features = {"f": jax.ShapeDtypeStruct((2, 3), jnp.float32)}
    >>> variables = objective.init(jax.random.key(0), Context(features, features, {}, 0))
    >>> jax.tree.map(jnp.shape, variables.params)["student"]
    {'bias': (4,), 'kernel': (3, 4)}
    """
    sizes("crd_in_batch", embedding_size=embedding_size)
    positive("crd_in_batch", temperature=temperature)
    paths = (student, teacher)

    def init(key: Array, context: Context) -> ObjectiveVars:
        check_features(context, paths)
        if label_path is not None:
            class_labels(context, label_path)
        return ObjectiveVars(init_embeddings(jax.random.split(key), context, paths, embedding_size))

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del key
        embedded = embed(params, context, paths)
        mask = batches.example_mask(context.batch)
        tags = () if label_path is None else (jnp.asarray(class_labels(context, label_path)),)
        options: dict[str, Any] = {"temperature": temperature, "where": mask, "axis_name": context.axis_name}
        s, t = embedded["student"], embedded["teacher"]
        values = losses.info_nce(s, t, *tags, **options) + losses.info_nce(t, s, *tags, **options)
        return reduce_values(values, mask, weight, context, state)

    return Objective(init, apply)
