"""Objectives over the outputs of language models: DistilBERT, sentence embeddings."""

from __future__ import annotations

from jaxkd import losses
from jaxkd.objectives._compose import combine, is_zero, term
from jaxkd.objectives._language._projected import Pair, projected
from jaxkd.types import Array, Objective, Schedule


def distilbert(
    student: str = "student/hidden",
    teacher: str = "teacher/hidden",
    *,
    label_path: str = "batch/label",
    selected_path: str = "batch/selected",
    temperature: float | Array | Schedule = 2.0,
    soft_weight: float | Array | Schedule = 5.0,
    label_weight: float | Array | Schedule = 2.0,
    feature_weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Soft targets, masked language modeling, and the cosine of hidden states.

    Also known as: DistilBERT.

    ``5 T² KL(p_t ‖ p_s) + 2 CE_mlm + 1 (1 − cos(h_s, h_t))`` with T = 2. Sanh et al., "DistilBERT, a distilled version
    of BERT: smaller, faster, cheaper and lighter", 2019, section 2; weights and temperature are those of the authors'
    published command. As there, the soft targets and the cosine are over all tokens of the batch's mask, and the
    cross-entropy is over the selected ones. The student begins with every second layer of the teacher.

    Args:
      student: path of the student's last hidden states ``[batch, tokens, features]``.
      teacher: path of the teacher's, of the same size.
      label_path: path of the original tokens ``[batch, tokens]``.
      selected_path: path of the mask of the tokens to predict, bool ``[batch, tokens]``.
      temperature: T of the soft targets.
      soft_weight: weight of the soft targets.
      label_weight: weight of the masked language modeling.
      feature_weight: weight of the cosine.

    Returns:
      An `Objective` without parameters, with the terms ``kd``, ``mlm`` and ``cosine``.

    Raises:
      ValueError: from ``init``: a path does not exist, or shapes differ.

    >>> import jax.numpy as jnp
    >>> from jaxkd import Context
    >>> outputs = {"logits": jnp.zeros((1, 2, 8)), "hidden": jnp.ones((1, 2, 4))}
    >>> batch = {"label": jnp.array([[3, -100]]), "selected": jnp.array([[True, False]])}
    >>> distilbert().apply({}, {}, Context(outputs, outputs, batch, 0), None).value.round(3)  # 2 log 8
    Array(4.159, dtype=float32)
    """
    return combine(
        kd=term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=soft_weight, temperature=temperature),
        mlm=term(losses.cross_entropy, "student/logits", label_path, where=selected_path, weight=label_weight),
        cosine=term(losses.hidden_cosine, student, teacher, weight=feature_weight),
    )


def embedding_transfer(
    student: str = "student/embedding",
    teacher: str = "teacher/embedding",
    *,
    mse: float | Array | Schedule = 1.0,
    cosine: float | Array | Schedule = 0.0,
    contrastive: float | Array | Schedule = 0.0,
    relational: float | Array | Schedule = 0.0,
) -> Objective:
    """Sentence embeddings by their values, directions, identity and distances.

    ``mse · MSE(W e_s, e_t) + cosine · (1 − cos(W e_s, e_t)) + contrastive · InfoNCE(W e_s, e_t) + relational ·
    RKD(e_s, e_t)``. The first is Reimers & Gurevych, "Making Monolingual Sentence Embeddings Multilingual using
    Knowledge Distillation", EMNLP 2020, equation 1; `jaxkd.losses.info_nce` and `jaxkd.losses.distance_relation` are
    the last two. W is one learned linear map with a bias, and none where the sizes agree. Distances need no map: they
    are those of the student's own embeddings. A term of weight 0 is left out.

    Args:
      student: path of the student's embeddings ``[batch, features]``.
      teacher: path of the teacher's.
      mse: weight of the mean squared error.
      cosine: weight of the cosine distance.
      contrastive: weight of the contrastive term, among the examples of the batch.
      relational: weight of the distances between examples.

    Returns:
      An `Objective` with the parameters ``{"embedding": {"kernel", "bias"}}`` where the sizes differ.

    Raises:
      ValueError: every weight is 0; from ``init``: a path does not exist.

    >>> import jax.numpy as jnp
    >>> from jaxkd import Context
    >>> context = Context({"embedding": jnp.ones((2, 3))}, {"embedding": jnp.zeros((2, 3))}, {}, 0)
    >>> embedding_transfer().apply({}, {}, context, None).value
    Array(1., dtype=float32)
    """
    mapped = "student/mapped_embedding"
    terms = {
        "mse": (losses.hint_mse, mapped, mse),
        "cosine": (_cosine, mapped, cosine),
        "contrastive": (losses.info_nce, mapped, contrastive),
        "relational": (losses.distance_relation, student, relational),
    }
    used = {
        name: term(loss, path, teacher, weight=weight)
        for name, (loss, path, weight) in terms.items()
        if not is_zero(weight)
    }
    if not used:
        raise ValueError("embedding_transfer: expected a weight other than 0, got 0 for every term.")
    return projected({"embedding": [Pair(student, teacher, mapped)]}, combine(**used))


def _cosine(student: Array, teacher: Array, *, where: Array | None = None) -> Array:
    """Returns the cosine distance of embeddings, one for each example."""
    mask = None if where is None else where[:, None]
    return losses.hidden_cosine(student[:, None], teacher[:, None], where=mask)[:, 0]
