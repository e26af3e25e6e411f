"""Multi-head graph distillation: attention between the examples of a batch."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import losses
from jaxkd._core import batches, checks
from jaxkd._core.batches import lookup
from jaxkd.losses import singular_directions
from jaxkd.objectives._checks import sizes
from jaxkd.objectives._compose import add_loss, reduce_values
from jaxkd.objectives._tokens import mask_feature
from jaxkd.objectives.layers import dense, dense_init, unit
from jaxkd.types import Array, Context, Objective, ObjectiveOut, ObjectiveVars, Schedule

_ENDS = ("front", "back")


def attention_graph(
    student: tuple[str, str],
    teacher: tuple[str, str],
    *,
    heads: int = 8,
    hidden_size: int = 64,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """KL divergence between the teacher's and the student's attention graphs.

    Also known as: MHGD (multi-head graph distillation).

    ``mean_h KL(A^h_t[i] ‖ A^h_s[i])`` for each example i. Each map, as a matrix ``[height · width, channels]``, becomes
    one vector v: its first right-singular vector. The graph

        A^h[i, j] = softmax_j ⟨Q_h v_i^back, K_h v_j^front⟩ / √features

    of each head h relates an example's back vector to the front vectors of all examples of the batch, including its
    own. The attention network is learned on the teacher alone, by an estimator of its back vectors, ``L_A = 1 − cos(E
    relu(concat_h Σ_j A^h[i, j] V_h v_j^front), v_i^back)``. The student's graph is the output of the same network for
    the student's vectors.

    Lee & Song, "Graph-based Knowledge Distillation by Multi-head Attention Network", BMVC 2019. The paper trains the
    attention network first and distills with it fixed; here both happen in one step with separate gradients: L_A
    reaches only the attention network and the estimator, the divergence only the student. A weight schedule that starts
    at 0 trains the attention network first. Where the channels differ, a linear map without a bias, learned with the
    student, maps the student's vector to the teacher's channels. The paper leaves the following open, which is this
    library's choice: the form and the sizes of estimator and embeddings, with Q and K without biases; the division by
    √features, and vectors of mean square 1, so that graphs are neither flat nor sharp at the start; and the sign of a
    singular vector: the teacher's largest entry is positive, and so is the student's inner product with the teacher's.

    Args:
      student: paths of two maps ``[batch, height, width, channels]``, the front one first. Vectors ``[batch,
        channels]`` are treated as maps of one position.
      teacher: the corresponding two paths of the teacher; sizes and channels may differ.
      heads: number of graphs.
      hidden_size: size of a query and of a key in each head.
      weight: weight of the divergence, a number or an optax schedule of the step. L_A has the weight 1.

    Returns:
      An `Objective` with the parameters ``attention``, ``estimator`` and, where channels differ, ``student``. It also
      reports L_A as ``estimator``.

    Raises:
      ValueError: a number is not positive; or, from ``init``: a path does not exist, or a feature is no map or vector.

    >>> objective = attention_graph(("student/a", "student/b"), ("teacher/a", "teacher/b"), heads=2, hidden_size=4)
    >>> feature = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    >>> networks = ({"a": feature(2, 8, 8, 3), "b": feature(2, 4, 4, 6)} for _ in range(2))
    >>> params = objective.init(jax.random.key(0), Context(*networks, {}, 0)).params
    >>> sorted(params), params["attention"]["query"]["kernel"].shape, params["attention"]["key"]["kernel"].shape
    (['attention', 'estimator'], (6, 8), (3, 8))
    """
    sizes("attention_graph", heads=heads, hidden_size=hidden_size)
    paths = {"student": tuple(student), "teacher": tuple(teacher)}

    def init(key: Array, context: Context) -> ObjectiveVars:
        of_query, of_key, of_value, of_out, *of_ends = jax.random.split(key, 6)
        channels = {side: [_channels(context, path) for path in pair] for side, pair in paths.items()}
        front, back = channels["teacher"]
        width = heads * hidden_size
        queries, keys = dense_init(of_query, back, width, bias=False), dense_init(of_key, front, width, bias=False)
        estimator = {"value": dense_init(of_value, front, width), "out": dense_init(of_out, width, back)}
        maps = {
            end: dense_init(k, source, target, bias=False)
            for end, k, source, target in zip(_ENDS, of_ends, channels["student"], channels["teacher"], strict=True)
            if source != target
        }
        return ObjectiveVars(
            {
                "attention": {"query": queries, "key": keys},
                "estimator": estimator,
                **({"student": maps} if maps else {}),
            }
        )

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del key
        mask, axis_name = batches.example_mask(context.batch), context.axis_name
        teacher_vectors = [jax.lax.stop_gradient(_vector(context, path)) for path in paths["teacher"]]
        student_vectors = [
            _align(params.get("student", {}).get(end), _vector(context, path), target)
            for end, path, target in zip(_ENDS, paths["student"], teacher_vectors, strict=True)
        ]
        where = _all_gather(jnp.ones(teacher_vectors[0].shape[0], bool) if mask is None else mask, axis_name)
        # A softmax over no example is NaN, so a fully masked batch attends to all; its rows are masked below.
        attended = (where | ~jnp.any(where)).reshape(1, 1, -1)

        def scores(attention: Any, front: Array, back: Array) -> Array:
            """Attention logits ``[heads, batch, global batch]``; -inf for masked examples."""
            queries = dense(attention["query"], back).reshape(-1, heads, hidden_size)
            keys = _all_gather(dense(attention["key"], front), axis_name).reshape(-1, heads, hidden_size)
            products = jnp.einsum("ihf,jhf->hij", queries, keys, precision=jax.lax.Precision.HIGHEST)
            return jnp.where(attended, products / math.sqrt(hidden_size), -jnp.inf)

        graph = scores(params["attention"], *teacher_vectors)
        values = _all_gather(dense(params["estimator"]["value"], teacher_vectors[0]), axis_name)
        values, shares = values.reshape(-1, heads, hidden_size), jax.nn.softmax(graph, axis=-1)
        mixed = jnp.einsum("hij,jhf->ihf", shares, values, precision=jax.lax.Precision.HIGHEST)
        estimate = dense(params["estimator"]["out"], jax.nn.relu(mixed.reshape(-1, heads * hidden_size)))
        estimator_loss = 1 - jnp.sum(unit(estimate) * unit(teacher_vectors[1]), axis=-1)

        fixed = jax.lax.stop_gradient((params["attention"], graph))
        divergence = losses.attention_kl(scores(fixed[0], *student_vectors)[None], fixed[1][None])[0]
        divergence = divergence if mask is None else jnp.where(mask, divergence, 0)
        out = reduce_values(divergence, mask, weight, context, state, estimator=estimator_loss)
        return add_loss(out, estimator_loss, mask, context)

    return Objective(init, apply)


def _channels(context: Context, path: str) -> int:
    feature = lookup(context, path)
    if len(feature.shape) not in (2, 4) or not jnp.issubdtype(feature.dtype, jnp.floating):
        raise ValueError(
            f"attention_graph, {path}: expected a floating-point map [batch, height, width, channels] or a vector "
            f"[batch, channels], got {checks.shape(feature)}."
        )
    return int(feature.shape[-1])


def _vector(context: Context, path: str) -> Array:
    """First right-singular vector of a map ``[batch, channels]``; 0 where masked."""
    _channels(context, path)
    feature = mask_feature(context, jnp.asarray(lookup(context, path)))
    feature = feature.astype(jnp.promote_types(feature.dtype, jnp.float32))
    if feature.ndim == 2:
        feature = feature[:, None, None, :]
    return math.sqrt(feature.shape[-1]) * singular_directions(feature, 1)[:, :, 0]


def _align(params: Any, vector: Array, target: Array) -> Array:
    """Maps the student's vector to the teacher's channels, length and sign."""
    if params is not None:
        vector = math.sqrt(target.shape[-1]) * unit(dense(params, vector))
    return jnp.where(jnp.sum(vector * target, axis=-1, keepdims=True) < 0, -vector, vector)


def _all_gather(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)
