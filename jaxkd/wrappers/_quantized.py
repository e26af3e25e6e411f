"""Quantized models: weights of few bits in the forward pass, trained as usual.

Polino, Pascanu & Alistarh, "Model compression via distillation and quantization", ICLR 2018, propose two methods, and
both are a function `Model → Model`: `quantized` keeps full-precision weights and passes gradients straight through to
them; `learned_codebook` keeps the weights and learns the values that they are rounded to.
`jaxkd.weights.save_quantized` packs the result.

A tensor is cut into buckets of consecutive weights. Each bucket is scaled to [0, 1] by its minimum β and its width α.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import traverse_util

from jaxkd import adapters
from jaxkd._core import checks
from jaxkd._core.arrays.shardings import automatic
from jaxkd._core.quantization import Include, check, chosen_tensors, decode, encode, encode_to, scaled, shaped
from jaxkd._core.tree_paths import by_path
from jaxkd.types import STEP, Array, Batch, Model, Outputs, PyTree, Variables


def quantized(
    model: Model, *, bits: int = 4, bucket: int | None = 256, include: Include = None, seed: int | None = None
) -> Model:
    """Quantizes a model's weights, with straight-through gradients.

    ``Q(w) = β + (α/s)·round((w − β)·s/α)`` with ``s = 2^bits − 1``, bucket by bucket, and ``∂Q/∂w := 1``. Polino,
    Pascanu & Alistarh, ICLR 2018, section 3 (quantized distillation): the forward and the backward pass use the
    quantized weights, and the gradient updates the full-precision ones, which `TrainState` holds. The optimizer, its
    weight decay and moving averages therefore need no change, and `jaxkd.weights.save_quantized` accepts the
    full-precision weights. The authors' code adds a backward pass through β and α; this function has the
    straight-through gradient alone.

    Args:
      model: model from an adapter.
      bits: bits per weight, 1 to 8.
      bucket: the number of weights that share β and α, 256 in the paper; None for one bucket per tensor.
      include: the tensors to quantize: a regular expression to find in the path, such as ``"Conv_|Dense_1"``; a
        predicate of path and array; or None for all of two or more axes that are not called ``bias`` or ``scale``.
      seed: rounds at random in training, up with the probability that makes the rounding unbiased (section 2), from
        this seed and the step, so that all devices round alike. With None, and in evaluation, weights round to the
        nearest value.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: bits or bucket are out of range; ``init`` and ``apply`` raise it if ``include`` selects no tensor.

    >>> linear = adapters.plain(lambda key, x: jnp.linspace(0.0, 1.5, 6).reshape(2, 3), lambda w, x: x @ w, inputs="x")
    >>> model, batch = quantized(linear, bits=1), {"x": jnp.eye(2)}
    >>> variables = model.init(jax.random.key(0), batch)
    >>> logits = lambda w: model.apply(Variables(w), batch, key=None, train=True)[0]["logits"]
    >>> logits(variables.params)
    Array([[0. , 0. , 0. ],
           [1.5, 1.5, 1.5]], dtype=float32)
    >>> jax.grad(lambda w: logits(w).sum())(variables.params)
    Array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)
    """
    checks.contract("quantized, model", model, Model)
    check("quantized", bits, bucket)

    def init(key: Array, batch: Batch) -> Variables:
        variables = model.init(key, batch)
        chosen_tensors("quantized", variables.params, include)
        return variables

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        draws = None
        if seed is not None and train:
            draws = jax.random.fold_in(jax.random.key(seed), batch.get(STEP, 0))
        params = quantize(variables.params, bits=bits, bucket=bucket, include=include, key=draws)
        return model.apply(variables._replace(params=params), batch, key=key, train=train)

    return Model(init, apply)


def quantize(
    params: PyTree, *, bits: int = 4, bucket: int | None = 256, include: Include = None, key: Array | None = None
) -> PyTree:
    """Quantizes parameters as `quantized` does, bit for bit and straight through.

    Args:
      params: any pytree of arrays.
      bits: bits per weight, 1 to 8.
      bucket: the number of weights that share their scaling; None for one bucket per tensor.
      include: the tensors to quantize, as for `quantized`.
      key: key for random rounding; None rounds to the nearest value, ties to even.

    Returns:
      The pytree, with its dtypes; a bucket has at most ``2^bits`` distinct values.

    Raises:
      ValueError: bits or bucket are out of range, or ``include`` selects no tensor.

    >>> quantize(jnp.array([[0.0, 0.2, 0.9], [1.0, 7.0, 7.0]]), bits=1, bucket=4)
    Array([[0., 0., 1.],
           [1., 7., 7.]], dtype=float32)
    """
    check("quantize", bits, bucket)
    chosen = chosen_tensors("quantize", params, include)

    def quantized(name: str, weight: Array) -> Array:
        own = None if key is None else jax.random.fold_in(key, chosen.index(name))
        codes, offset, step = encode(jax.lax.stop_gradient(weight), bits, bucket, own)
        return _through(weight, decode(codes, offset, step, weight))

    return _map_chosen(quantized, params, chosen)


def learned_codebook(
    model: Model, variables: Any, *, bits: int = 4, bucket: int | None = 256, include: Include = None
) -> Model:
    """Quantizes a trained model to learned values, and keeps its weights.

    ``Q(w) = β + α·p_k`` with k the point nearest to ``(w − β)/α``, and ``2^bits`` points per tensor. Polino, Pascanu &
    Alistarh, ICLR 2018, section 4 (differentiable quantization): the gradient of a point is the sum, over the weights
    assigned to it, of α times the gradient of the weight; each step assigns the weights again. The points start as the
    quantiles of the scaled weights. They may change their order (the authors' code then searches a list that is no
    longer sorted). Tensors that are not included, such as biases, stay fixed as well; BatchNorm statistics move as in
    the model.

    The state holds the weights as integers of the same bits. Averages of state, over devices or in time, change
    floating-point leaves and leave integers unchanged, so the weights stay exact after any number of steps.

    Args:
      model: model from an adapter.
      variables: its trained weights, in any form that `jaxkd.adapters.variables` accepts.
      bits: bits per weight, 1 to 8, for ``2^bits`` points per tensor.
      bucket: the number of weights that share their scaling; None for one bucket per tensor.
      include: the tensors to quantize, as for `quantized`.

    Returns:
      A `Model` with ``Variables(points, {"weights": ..., "model": ...})``, with the points ``[2^bits]`` under the path
      of their tensor. `quantize_with` computes the original model's weights from them.

    Raises:
      TypeError: the weights have no known form.
      ValueError: bits or bucket are out of range, or ``include`` selects no tensor.

    >>> linear = adapters.plain(lambda key, x: jnp.zeros((1, 4)), lambda w, x: x @ w, inputs="x")
    >>> weights = jnp.array([[0.0, 1.0, 3.0, 4.0]])
    >>> model, batch = learned_codebook(linear, Variables(weights), bits=1), {"x": jnp.ones((1, 1))}
    >>> points, state = model.init(jax.random.key(0), batch)
    >>> loss = lambda p: model.apply(Variables(p, state), batch, key=None, train=True)[0]["logits"] @ jnp.arange(4.0)
    >>> points, jax.grad(lambda p: loss(p)[0])(points)
    (Array([0., 1.], dtype=float32), Array([ 4., 20.], dtype=float32))
    """
    checks.contract("learned_codebook, model", model, Model)
    check("learned_codebook", bits, bucket)
    trained = automatic(adapters.variables(variables))
    chosen_tensors("learned_codebook", trained.params, include)
    types = jax.tree.map(lambda x: jnp.asarray(x).dtype, trained.params)

    def init(key: Array, batch: Batch) -> Variables:
        del key, batch
        points = init_codebook(trained.params, bits=bits, bucket=bucket, include=include)
        kept = {"weights": jax.tree.map(_bits, trained.params), "model": trained.state}
        # Copies: a donated training state must not delete the caller's weights.
        return Variables(points, jax.tree.map(lambda x: jnp.array(x, copy=True), kept))

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        weights = jax.tree.map(_from_bits, variables.state["weights"], types)
        params = quantize_with(weights, variables.params, bucket=bucket)
        inner = Variables(params, variables.state["model"])
        outputs, state = model.apply(inner, batch, key=key, train=train)
        return outputs, {**variables.state, "model": state}

    return Model(init, apply)


def quantize_with(params: PyTree, codebook: PyTree, *, bucket: int | None = 256) -> PyTree:
    """Quantizes parameters to points as `learned_codebook` does, bit for bit.

    It is differentiable with respect to the points alone.

    Args:
      params: the trained weights, any pytree of arrays.
      codebook: nested dicts with the points ``[number]`` of a tensor under its path, as from `init_codebook`.
      bucket: as for `learned_codebook`.

    Returns:
      The pytree, with its dtypes. A weight midway between two points gets the larger one.

    Raises:
      ValueError: points have a path without a tensor, or are not a vector of 2 to 256.

    >>> quantize_with({"w": jnp.array([[0.0, 3.0, 6.0, 10.0]])}, {"w": jnp.array([0.9, 0.25])})["w"]
    Array([[2.5, 2.5, 9. , 9. ]], dtype=float32)
    """
    check("quantize_with", 8, bucket)
    points_of = by_path(codebook)
    for name, p in points_of.items():
        checks.known(name, checks.shapes(by_path(params)), "quantize_with, tensor")
        if jnp.ndim(p) != 1 or not 2 <= p.shape[0] <= 256:
            raise ValueError(f"quantize_with, points of {name!r}: expected [2 to 256], got {checks.shape(p)}.")

    def quantized(name: str, weight: Array) -> Array:
        p = jnp.sort(jnp.asarray(points_of[name], jnp.float32))
        codes, offset, width = jax.lax.stop_gradient(encode_to(weight, p, bucket))
        # The gradient is that of the plain expression, and the value that of `decode`, the same in every program.
        smooth = shaped(offset + width * p[codes], weight)
        return _through(smooth, jax.lax.stop_gradient(decode(p[codes], offset, width, weight)))

    return _map_chosen(quantized, params, list(points_of))


def init_codebook(
    params: PyTree, *, bits: int = 4, bucket: int | None = 256, include: Include = None
) -> dict[str, Any] | Array:
    """Returns initial points: quantiles of each tensor's scaled weights.

    The first and the last are the minimum and the maximum.

    Args:
      params: any pytree of arrays.
      bits: bits per weight, 1 to 8, for ``2^bits`` points per tensor.
      bucket: the number of weights that share their scaling; None for one bucket per tensor.
      include: the tensors to quantize, as for `quantized`.

    Returns:
      float32 ``[2^bits]`` under the path of each tensor, in nested dicts.

    Raises:
      ValueError: bits or bucket are out of range, or ``include`` selects no tensor.

    >>> init_codebook({"w": jnp.array([[1.0, 2.0, 2.0, 5.0]]), "b": jnp.zeros(2)}, bits=1)
    {'w': Array([0., 1.], dtype=float32)}
    """
    check("init_codebook", bits, bucket)
    chosen, named = chosen_tensors("init_codebook", params, include), by_path(params)

    def quantiles(weight: Array) -> Array:
        u = scaled(weight, bucket)[0].reshape(-1)[: weight.size]
        return jnp.quantile(u, jnp.linspace(0, 1, 2**bits, dtype=jnp.float32))

    points = {name: quantiles(jnp.asarray(named[name])) for name in chosen}
    return points[""] if "" in points else traverse_util.unflatten_dict(points, sep="/")  # "": a tree of one array


@jax.custom_jvp
def _through(differentiated: Array, value: Array) -> Array:
    """Returns ``value`` with the derivative of ``differentiated``.

    ``x + stop_gradient(value − x)`` has the same derivative, but its sum does not round to ``value`` exactly.
    """
    del differentiated
    return value


_through.defjvps(lambda tangent, out, differentiated, value: tangent, None)


def _bits(x: Any) -> Array:
    x = jnp.asarray(x)
    if not jnp.issubdtype(x.dtype, jnp.floating):
        return x
    bits: Array = jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
    return bits


def _from_bits(bits: Array, dtype: Any) -> Array:
    values: Array = jax.lax.bitcast_convert_type(bits, dtype) if jnp.issubdtype(dtype, jnp.floating) else bits
    return values


def _map_chosen(function: Callable[[str, Array], Array], tree: PyTree, chosen: list[str]) -> PyTree:
    leaves = [function(name, jnp.asarray(x)) if name in chosen else x for name, x in by_path(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)
