"""Multi-head graph distillation (MHGD): who attends to whom in a batch, between two layers of either network."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import checks, losses
from jaxkd.losses.features.flow import _directions
from jaxkd.objectives.compose import Schedule, counted, lookup, mean, weighted
from jaxkd.objectives.layers import dense, dense_init
from jaxkd.types import Array, Context, LossOut, LossVars, Objective

__all__ = ["attention_graph"]

_ENDS = ("front", "back")


def attention_graph(
    student: tuple[str, str],
    teacher: tuple[str, str],
    *,
    heads: int = 8,
    features: int = 64,
    weight: float | Array | Schedule = 1.0,
) -> Objective:
    """Graphs of the batch by an attention network, ``mean_h KL(A^h_t[i] ‖ A^h_s[i])`` for each example i.

    Each map, as a matrix ``[height · width, channels]``, is one vector v: its first right-singular vector. The graph

        A^h[i, j] = softmax_j ⟨Q_h v_i^back, K_h v_j^front⟩ / √features

    says, for each head h, by which examples' front vectors an example's back vector is explained, over all examples of
    the batch, itself among them. The attention network is learned on the teacher alone, by an estimator of its back
    vectors, ``L_A = 1 − cos(E relu(concat_h Σ_j A^h[i, j] V_h v_j^front), v_i^back)``. The student's graph is what the
    same network makes of the student's vectors.

    Lee & Song, "Graph-based Knowledge Distillation by Multi-head Attention Network", BMVC 2019. From the paper: the
    singular vectors, the multi-head attention from back to front, its learning by estimating the teacher's back
    vectors, and the Kullback-Leibler divergence of the graphs. It trains the attention network first and distils with
    it fixed; here both happen in one step, gradients apart: L_A reaches only the attention network and the estimator,
    the divergence only the student. A weight that begins at 0 gives the network its head start. The paper's networks
    have the same channels; where these have not, a linear map without a bias takes the student's vector to the
    teacher's channels and is learned with the student. What the paper leaves open, or its code alone decides, is
    decided here: the form and the sizes of estimator and embeddings, Q and K without biases; the division by √features,
    and vectors of mean square 1, so that graphs are neither flat nor sharp at the start; and the sign of a singular
    vector, with its largest entry positive for the teacher, and a positive inner product with the teacher's for the
    student.

    Args:
      student: paths of two maps ``[batch, height, width, channels]``, the one in front first. Vectors ``[batch,
        channels]`` are maps of one position.
      teacher: the same of the teacher; sizes and channels may differ.
      heads: the number of graphs.
      features: of a query and of a key, in each head.
      weight: a number, or an optax schedule of the step; of the divergence. That of L_A is 1, since its parameters see
        nothing else.

    Returns:
      An `Objective` that owns ``"attention"``, ``"estimator"`` and, where channels differ, ``"student"``. Its metrics
      are the divergence, its weight, and L_A as ``"estimator"``.

    Raises:
      ValueError: heads or features are not positive; or, when it is initialised or applied: a path does not exist, or
        a feature is neither a map nor a vector.

    >>> objective = attention_graph(("student/a", "student/b"), ("teacher/a", "teacher/b"), heads=2, features=4)
    >>> feature = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
    >>> networks = ({"a": feature(2, 8, 8, 3), "b": feature(2, 4, 4, 6)} for _ in range(2))
    >>> params = objective.init(jax.random.key(0), Context(*networks, {}, 0)).params
    >>> sorted(params), params["attention"]["query"]["kernel"].shape, params["attention"]["key"]["kernel"].shape
    (['attention', 'estimator'], (6, 8), (3, 8))
    """
    if heads < 1 or features < 1:
        raise ValueError(f"attention_graph: expected at least one head and one feature, got {heads} and {features}.")
    paths = {"student": tuple(student), "teacher": tuple(teacher)}

    def init(key: Array, context: Context) -> LossVars:
        query, key_key, value, out, *own = jax.random.split(key, 6)
        channels = {side: [_channels(context, path) for path in pair] for side, pair in paths.items()}
        front, back = channels["teacher"]
        width = heads * features
        attention = {
            "query": dense_init(query, back, width, bias=False),
            "key": dense_init(key_key, front, width, bias=False),
        }
        estimator = {"value": dense_init(value, front, width), "out": dense_init(out, width, back)}
        maps = {
            end: dense_init(k, source, target, bias=False)
            for end, k, source, target in zip(_ENDS, own, channels["student"], channels["teacher"], strict=True)
            if source != target
        }
        return LossVars({"attention": attention, "estimator": estimator, **({"student": maps} if maps else {})})

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        del key
        mask, axis_name = checks.example_mask(context.batch), context.axis_name
        taught = [jax.lax.stop_gradient(_vector(context, path)) for path in paths["teacher"]]
        learning = [
            _like(params.get("student", {}).get(end), _vector(context, path), target)
            for end, path, target in zip(_ENDS, paths["student"], taught, strict=True)
        ]
        count = jnp.ones(taught[0].shape[0], bool) if mask is None else mask
        every = _gather(count, axis_name)
        seen = (every | ~jnp.any(every)).reshape(1, 1, -1)  # a softmax needs something, and with nothing no row counts

        def scores(attention: Any, front: Array, back: Array) -> Array:
            """``[heads, batch, examples on all devices]``, −∞ for those that do not count."""
            queries = dense(attention["query"], back).reshape(-1, heads, features)
            keys = _gather(dense(attention["key"], front), axis_name).reshape(-1, heads, features)
            products = jnp.einsum("ihf,jhf->hij", queries, keys, precision=jax.lax.Precision.HIGHEST)
            return jnp.where(seen, products / math.sqrt(features), -jnp.inf)

        graph = scores(params["attention"], *taught)
        values = _gather(dense(params["estimator"]["value"], taught[0]), axis_name).reshape(-1, heads, features)
        share = jax.nn.softmax(graph, axis=-1)
        gathered = jnp.einsum("hij,jhf->ihf", share, values, precision=jax.lax.Precision.HIGHEST)
        estimate = dense(params["estimator"]["out"], jax.nn.relu(gathered.reshape(-1, heads * features)))
        missed = 1 - jnp.sum(_unit(estimate) * _unit(taught[1]), axis=-1)

        fixed = jax.lax.stop_gradient((params["attention"], graph))
        divergence = losses.attention_kl(scores(fixed[0], *learning)[None], fixed[1][None])[0]
        divergence = divergence if mask is None else jnp.where(mask, divergence, 0)
        out = weighted(divergence, mask, weight, context, state, estimator=missed)
        return out._replace(value=out.value + mean(missed, mask, axis_name)[0])

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
    """The first right-singular vector of a map, ``[batch, channels]``; 0 for an example that does not count."""
    _channels(context, path)
    feature = counted(context, jnp.asarray(lookup(context, path)))
    feature = feature.astype(jnp.promote_types(feature.dtype, jnp.float32))
    if feature.ndim == 2:
        feature = feature[:, None, None, :]
    return math.sqrt(feature.shape[-1]) * _directions(feature, 1)[:, :, 0]


def _like(params: Any, vector: Array, target: Array) -> Array:
    """The student's vector in the teacher's channels, of the teacher's length and on its side."""
    if params is not None:
        vector = math.sqrt(target.shape[-1]) * _unit(dense(params, vector))
    return jnp.where(jnp.sum(vector * target, axis=-1, keepdims=True) < 0, -vector, vector)


def _unit(x: Array) -> Array:
    """Rows over their norm; one too small for a direction is 0, and has no slope."""
    square = jnp.sum(x**2, axis=-1, keepdims=True)
    present = square > 1e-24
    return jnp.where(present, x * jax.lax.rsqrt(jnp.where(present, square, 1)), 0)


def _gather(x: Array, axis_name: str | None) -> Array:
    return x if axis_name is None else jax.lax.all_gather(x, axis_name, tiled=True)
