"""Transformer objectives over pairs of layers: MiniLM, TinyBERT, MobileBERT.

Layers are compared by the outputs that the models tap, under names with the number of the layer, such as ``hidden3``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from jaxkd import losses
from jaxkd.objectives._checks import sizes
from jaxkd.objectives._compose import at_step, combine, term
from jaxkd.objectives._language._projected import Pair, projected
from jaxkd.types import Array, Objective, Schedule


def minilm(
    student_layer: int,
    teacher_layer: int,
    *,
    score_names: str = "scores{}",
    value_names: str = "values{}",
    heads: int | None = None,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Attention distributions and value relations of one layer, usually the last.

    Also known as: MiniLM.

    ``KL(A_t ‖ A_s) + KL(softmax(V_t V_tᵀ/√d_t) ‖ softmax(V_s V_sᵀ/√d_s))``, each averaged over heads and tokens. Wang
    et al., "MiniLM: Deep Self-Attention Distillation for Task-Agnostic Compression of Pre-Trained Transformers",
    NeurIPS 2020, section 3. Both networks have the same number of attention heads; their widths may differ.

    Args:
      student_layer: number of the student's layer.
      teacher_layer: number of the teacher's layer.
      score_names: name of a layer's attention scores ``[batch, heads, queries, keys]``, with ``{}`` for its number.
      value_names: name of a layer's values, ``[batch, tokens, heads, features]``, or ``[batch, tokens, features]`` with
        ``heads``.
      heads: number of heads that values without an axis of heads are split into.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` that sums the terms ``attention`` and ``values``.

    Raises:
      ValueError: from ``init``: an output does not exist, or shapes do not fit.

    >>> outputs = {"scores5": jnp.zeros((1, 2, 3, 3)), "values5": jnp.ones((1, 3, 2, 4))}
    >>> from jaxkd import Context
    >>> minilm(5, 5).apply({}, {}, Context(outputs, outputs, {}, 0), None).value
    Array(0., dtype=float32)
    """
    pair = (student_layer, teacher_layer)
    return combine(
        attention=term(losses.attention_kl, *_paths(score_names, *pair), weight=weight),
        values=term(losses.value_relation_kl, *_paths(value_names, *pair), weight=weight, heads=heads),
    )


def minilm_v2(
    student_layer: int,
    teacher_layer: int,
    *,
    heads: int,
    query_names: str = "queries{}",
    key_names: str = "keys{}",
    value_names: str = "values{}",
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Relations between queries, between keys and between values of one layer.

    Also known as: MiniLMv2.

    ``Σ over Q, K, V of KL(softmax(X_t X_tᵀ/√d_t) ‖ softmax(X_s X_sᵀ/√d_s))``, averaged over relation heads and tokens.
    Wang et al., "MiniLMv2: Multi-Head Self-Attention Relation Distillation for Compressing Pretrained Transformers",
    Findings of ACL 2021, section 3.1. The attention heads are joined and split into ``heads`` relation heads, so that
    numbers of attention heads and widths may differ. The authors take the teacher's last layer, or one a few layers
    before it for large teachers, with weights of 1.

    Args:
      student_layer: number of the student's layer.
      teacher_layer: number of the teacher's layer.
      heads: number of relation heads; it divides the joined features of both networks. The authors have 48, and 64 for
        large teachers.
      query_names: name of a layer's queries, with ``{}`` for its number: ``[batch, tokens, features]`` or ``[batch,
        tokens, heads, features]``.
      key_names: name of a layer's keys.
      value_names: name of a layer's values.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` that sums the terms ``queries``, ``keys`` and ``values``.

    Raises:
      ValueError: the heads are not positive; from ``init``: an output does not exist, or the heads do not divide it.

    >>> outputs = {f"{name}5": jnp.ones((1, 3, 2, 4)) for name in ("queries", "keys", "values")}
    >>> from jaxkd import Context
    >>> minilm_v2(5, 5, heads=4).apply({}, {}, Context(outputs, outputs, {}, 0), None).value
    Array(0., dtype=float32)
    """
    sizes("minilm_v2", heads=heads)
    names = {"queries": query_names, "keys": key_names, "values": value_names}
    return combine(
        **{
            part: term(_joined_relation, *_paths(name, student_layer, teacher_layer), weight=weight, heads=heads)
            for part, name in names.items()
        }
    )


def tinybert(
    layer_map: Mapping[int, int],
    *,
    embedding_name: str | None = "embedding",
    hidden_names: str = "hidden{}",
    score_names: str = "scores{}",
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Attention scores, hidden states and embeddings by a map of layers.

    Also known as: TinyBERT.

    ``Σ_i MSE(A_s^i, A_t^g(i)) + MSE(H_s^i W_h, H_t^g(i))``, and ``MSE(E_s W_e, E_t)`` of the embeddings. Jiao et al.,
    "TinyBERT: Distilling BERT for Natural Language Understanding", Findings of EMNLP 2020, equations 7 to 9 and 11 with
    λ = 1; a term for the logits, of its second stage, is `jaxkd.losses.soft_target_kl`. One learned linear map W_h
    serves all layers, as in the paper; the authors' code has one map for the embeddings as well. No map is learned
    where the sizes agree.

    Args:
      layer_map: the teacher's layer g(i) for each layer i of the student, such as ``{0: 2, 1: 5}``.
      embedding_name: name of the embeddings, the input of the first layer; None for none.
      hidden_names: name of a layer's hidden states ``[batch, tokens, features]``, with ``{}`` for its number.
      score_names: name of a layer's attention scores ``[batch, heads, queries, keys]``.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` whose terms are ``attention{i}``, ``hidden{i}`` and ``embedding``, with the parameters
      ``{"hidden": {"kernel", "bias"}, "embedding": {"kernel", "bias"}}`` or those of them that sizes ask for.

    Raises:
      ValueError: the map is empty; from ``init``: an output does not exist, or shapes do not fit.

    >>> outputs = lambda width: {"hidden0": jnp.ones((1, 3, width)), "scores0": jnp.zeros((1, 2, 3, 3))}
    >>> from jaxkd import Context
    >>> import jax
    >>> objective = tinybert({0: 0}, embedding_name=None)
    >>> jax.tree.map(jnp.shape, objective.init(jax.random.key(0), Context(outputs(4), outputs(6), {}, 0)).params)
    {'hidden': {'bias': (6,), 'kernel': (4, 6)}}
    """
    hidden = [_paths(hidden_names, *pair) for pair in _pairs("tinybert", layer_map)]
    groups = {"hidden": [Pair(*paths, paths[0]) for paths in hidden]}
    terms = {}
    if embedding_name is not None:
        paths = _paths(embedding_name, 0, 0)
        groups["embedding"] = [Pair(*paths, paths[0])]
        terms["embedding"] = term(losses.hidden_mse, *paths, weight=weight)
    for i, j in layer_map.items():
        terms[f"attention{i}"] = term(losses.attention_mse, *_paths(score_names, i, j), weight=weight)
        terms[f"hidden{i}"] = term(losses.hidden_mse, *_paths(hidden_names, i, j), weight=weight)
    return projected(groups, combine(**terms))


def mobilebert(
    layer_map: Mapping[int, int],
    *,
    steps_per_layer: int,
    hidden_names: str = "hidden{}",
    score_names: str = "scores{}",
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Feature maps and attention of one layer after the other.

    Also known as: MobileBERT.

    ``MSE(H_s^i, H_t^g(i)) + KL(A_t^g(i) ‖ A_s^i)`` for the layer whose turn it is: the lowest of the map in the first
    ``steps_per_layer`` steps, then the next. After the last the objective is 0. Sun et al., "MobileBERT: a Compact
    Task-Agnostic BERT for Resource-Limited Devices", ACL 2020, section 3.3 (progressive knowledge transfer) and
    equations 1 and 2. The paper freezes the layers below the one that learns, or lowers their learning rate: use
    `jaxkd.wrappers.freeze` in `jaxkd.schemes.staged`. Add the language model's losses with a schedule of their weight.

    Args:
      layer_map: the teacher's layer g(i) for each layer i of the student; the paper's networks have as many layers.
      steps_per_layer: number of steps that each layer learns.
      hidden_names: name of a layer's hidden states ``[batch, tokens, features]``, with ``{}`` for its number. Both
        networks have one width.
      score_names: name of a layer's attention scores ``[batch, heads, queries, keys]``.
      weight: a number, or an optax schedule of the step.

    Returns:
      An `Objective` without parameters, whose terms are ``hidden{i}`` and ``attention{i}``.

    Raises:
      ValueError: the map is empty, or the steps are not positive; from ``init``: an output does not exist, or shapes
        differ.

    >>> outputs = {"hidden0": jnp.ones((1, 3, 4)), "scores0": jnp.zeros((1, 2, 3, 3))}
    >>> from jaxkd import Context
    >>> context = Context(outputs, {**outputs, "hidden0": jnp.zeros((1, 3, 4))}, {}, 0)
    >>> objective = mobilebert({0: 0}, steps_per_layer=10)
    >>> [float(objective.apply({}, {}, context._replace(step=step), None).value) for step in (9, 10)]
    [1.0, 0.0]
    """
    sizes("mobilebert", steps_per_layer=steps_per_layer)
    terms = {}
    for turn, (i, j) in enumerate(sorted(_pairs("mobilebert", layer_map))):
        now = _turn(turn, steps_per_layer, weight)
        terms[f"hidden{i}"] = term(losses.hidden_mse, *_paths(hidden_names, i, j), weight=now)
        terms[f"attention{i}"] = term(losses.attention_kl, *_paths(score_names, i, j), weight=now)
    return combine(**terms)


def _turn(number: int, steps: int, weight: float | Array | Schedule) -> Callable[[Any], Array]:
    """Returns a schedule that is the weight in one stage of the steps, otherwise 0."""
    return lambda step: jnp.where(jnp.asarray(step) // steps == number, at_step(weight, step), 0.0)


def _paths(name: str, student: int, teacher: int) -> tuple[str, str]:
    return f"student/{name.format(student)}", f"teacher/{name.format(teacher)}"


def _pairs(what: str, layer_map: Mapping[int, int]) -> list[tuple[int, int]]:
    if not isinstance(layer_map, Mapping) or not layer_map:
        raise ValueError(
            f"{what}, layer_map: expected a layer of the teacher for each of the student, got {layer_map}."
        )
    return list(layer_map.items())


def _joined_relation(student: Array, teacher: Array, *, heads: int, where: Array | None = None) -> Array:
    """Returns the relation loss of features whose attention heads are joined."""
    joined = (x.reshape(*x.shape[:2], -1) for x in (jnp.asarray(student), jnp.asarray(teacher)))
    return losses.value_relation_kl(*joined, heads=heads, where=where)
