"""Quantised models: weights of a few bits in the forward pass, trained by what the student is trained by.

Polino, Pascanu & Alistarh, "Model compression via distillation and quantization", ICLR 2018, has two ways there, and
both are a function `Model → Model`: `quantised` keeps full-precision weights and lets gradients through to them;
`learned_points` keeps the weights and learns what they are rounded to. `jaxkd.weights.save_quantised` packs the result.

How a tensor is cut, scaled and rounded is in `jaxkd.adapters.buckets`, with β and α as they are called there.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import adapters, checks
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables

__all__ = ["initial_points", "learned_points", "quantise", "quantise_to", "quantised"]

Include = str | Callable[[str, Any], bool] | None
"""Which tensors: a regular expression found in the path, such as ``"Conv_|Dense_1"``; a function of path and array; or
None for all with two or more axes that are not called ``bias`` or ``scale``. Only floating point is ever quantised."""


def quantised(
    model: Model, *, bits: int = 4, bucket: int | None = 256, include: Include = None, seed: int | None = None
) -> Model:
    """The same model with quantised weights, and gradients that go straight through to the full-precision ones.

    ``Q(w) = β + (α/s)·round((w − β)·s/α)`` with ``s = 2^bits − 1``, bucket by bucket, and ``∂Q/∂w := 1``. Polino,
    Pascanu & Alistarh, ICLR 2018, section 3 (quantized distillation): the forward and the backward pass are at the
    quantised weights, the gradient updates the full-precision ones, which are what `TrainState` holds. So the
    optimizer, its weight decay and a moving average know nothing of it, and `jaxkd.weights.save_quantised` takes them
    as they are. The authors' code has a second backward pass, through β and α as well; this is the straight one.

    Args:
      model: from an adapter.
      bits: of a weight, 1 to 8.
      bucket: the number of weights that share β and α; None for one bucket a tensor. The paper's is 256.
      include: which tensors; see `Include`.
      seed: rounds at random in training, up with the probability that makes the mean right (section 2), from this
        seed and the step, so all devices round alike; None, and all evaluation, rounds to the nearest.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: bits or bucket are out of range; and when it is initialised or applied: no tensor is included.

    >>> linear = adapters.plain(lambda key, x: jnp.linspace(0.0, 1.5, 6).reshape(2, 3), lambda w, x: x @ w, inputs="x")
    >>> model, batch = quantised(linear, bits=1), {"x": jnp.eye(2)}
    >>> variables = model.init(jax.random.key(0), batch)
    >>> logits = lambda w: model.apply(Variables(w), batch, key=None, train=True)[0]["logits"]
    >>> logits(variables.params)
    Array([[0. , 0. , 0. ],
           [1.5, 1.5, 1.5]], dtype=float32)
    >>> jax.grad(lambda w: logits(w).sum())(variables.params)
    Array([[1., 1., 1.],
           [1., 1., 1.]], dtype=float32)
    """
    check("quantised", bits, bucket)

    def init(key: Array, batch: Batch) -> Variables:
        variables = model.init(key, batch)
        chosen_tensors("quantised", variables.params, include)
        return variables

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        draws = None
        if seed is not None and train:
            draws = jax.random.fold_in(jax.random.key(seed), batch.get("step", 0))
        params = quantise(variables.params, bits=bits, bucket=bucket, include=include, key=draws)
        return model.apply(variables._replace(params=params), batch, key=key, train=train)

    return Model(init, apply)


def quantise(
    params: PyTree, *, bits: int = 4, bucket: int | None = 256, include: Include = None, key: Array | None = None
) -> PyTree:
    """What the weights are in the forward pass of `quantised`, bit for bit; its gradient goes straight through.

    Args:
      params: any pytree of arrays.
      bits: of a weight, 1 to 8.
      bucket: the number of weights that share their scaling; None for one bucket a tensor.
      include: which tensors; see `Include`.
      key: rounds at random; None to the nearest, and ties to even.

    Returns:
      The pytree, with its dtypes; in each bucket there are ``2^bits`` values at most.

    Raises:
      ValueError: bits or bucket are out of range, or no tensor is included.

    >>> quantise(jnp.array([[0.0, 0.2, 0.9], [1.0, 7.0, 7.0]]), bits=1, bucket=4)
    Array([[0., 0., 1.],
           [1., 7., 7.]], dtype=float32)
    """
    check("quantise", bits, bucket)
    chosen = chosen_tensors("quantise", params, include)

    def of(name: str, weight: Array) -> Array:
        own = None if key is None else jax.random.fold_in(key, chosen.index(name))
        codes, offset, step = encode(jax.lax.stop_gradient(weight), bits, bucket, own)
        return _through(weight, decode(codes, offset, step, weight))

    return _mapped(params, of, chosen)


def learned_points(
    model: Model, variables: Any, *, bits: int = 4, bucket: int | None = 256, include: Include = None
) -> Model:
    """A trained model whose weights stay, and whose ``2^bits`` quantisation points of each tensor are what is learned.

    ``Q(w) = β + α·p_k`` with k the point nearest to ``(w − β)/α``. Polino, Pascanu & Alistarh, ICLR 2018, section 4
    (differentiable quantization): the gradient of a point is the sum of α times the gradient over the weights that it
    stands for, and each step assigns the weights anew. The points begin as the quantiles of the scaled weights. They
    may change places; the authors' code then searches a list that is no longer in order. What is not included, biases
    and the like, stays as well; BatchNorm statistics move as in the model.

    The weights are kept as integers of the same bits: what averages floating-point state, over devices or in time,
    leaves integers as they are, and so they are the same after any number of steps.

    Args:
      model: from an adapter.
      variables: its trained weights, in any form that `jaxkd.adapters.variables` takes.
      bits: 2^bits points, 1 to 8 bits.
      bucket: the number of weights that share their scaling; None for one bucket a tensor.
      include: which tensors; see `Include`.

    Returns:
      A `Model` with ``Variables(points, {"weights": ..., "model": ...})``, the points ``[2^bits]`` by the path of their
      tensor. `quantise_to` makes weights for the model itself of them.

    Raises:
      TypeError: the weights are of no known form.
      ValueError: bits or bucket are out of range, or no tensor is included.

    >>> linear = adapters.plain(lambda key, x: jnp.zeros((1, 4)), lambda w, x: x @ w, inputs="x")
    >>> weights = jnp.array([[0.0, 1.0, 3.0, 4.0]])
    >>> model, batch = learned_points(linear, Variables(weights), bits=1), {"x": jnp.ones((1, 1))}
    >>> points, state = model.init(jax.random.key(0), batch)
    >>> loss = lambda p: model.apply(Variables(p, state), batch, key=None, train=True)[0]["logits"] @ jnp.arange(4.0)
    >>> points, jax.grad(lambda p: loss(p)[0])(points)
    (Array([0., 1.], dtype=float32), Array([ 4., 20.], dtype=float32))
    """
    check("learned_points", bits, bucket)
    given = adapters.variables(variables)
    chosen_tensors("learned_points", given.params, include)
    types = jax.tree.map(lambda x: jnp.asarray(x).dtype, given.params)

    def init(key: Array, batch: Batch) -> Variables:
        del key, batch
        points = initial_points(given.params, bits=bits, bucket=bucket, include=include)
        kept = {"weights": jax.tree.map(_bits, given.params), "model": given.state}
        return Variables(points, jax.tree.map(lambda x: jnp.array(x, copy=True), kept))

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        weights = jax.tree.map(_from_bits, variables.state["weights"], types)
        params = quantise_to(weights, variables.params, bucket=bucket)
        inner = Variables(params, variables.state["model"])
        outputs, state = model.apply(inner, batch, key=key, train=train)
        return outputs, {**variables.state, "model": state}

    return Model(init, apply)


def quantise_to(params: PyTree, points: PyTree, *, bucket: int | None = 256) -> PyTree:
    """What the weights are in the forward pass of `learned_points`, bit for bit; differentiable in the points alone.

    Args:
      params: the trained weights, any pytree of arrays.
      points: nested dicts with the points ``[number]`` of a tensor under its path, as from `initial_points`.
      bucket: as given to `learned_points`.

    Returns:
      The pytree, with its dtypes. A weight in the middle of two points has the larger one.

    Raises:
      ValueError: there is no tensor for some points, or they are not a vector of 2 to 256.

    >>> quantise_to({"w": jnp.array([[0.0, 3.0, 6.0, 10.0]])}, {"w": jnp.array([0.9, 0.25])})["w"]
    Array([[2.5, 2.5, 9. , 9. ]], dtype=float32)
    """
    check("quantise_to", 8, bucket)
    available = {name: checks.shape(leaf) for name, leaf in by_path(params).items()}
    of_tensor = by_path(points)
    for name, p in of_tensor.items():
        checks.known(name, available, "quantise_to, tensor")
        if jnp.ndim(p) != 1 or not 2 <= p.shape[0] <= 256:
            raise ValueError(f"quantise_to, points of {name!r}: expected [2 to 256], got {checks.shape(p)}.")

    def of(name: str, weight: Array) -> Array:
        p = jnp.sort(jnp.asarray(of_tensor[name], jnp.float32))
        codes, offset, width = jax.lax.stop_gradient(encode_to(weight, p, bucket))
        smooth = shaped(offset + width * p[codes], weight)
        return _through(smooth, jax.lax.stop_gradient(decode(p[codes], offset, width, weight)))

    return _mapped(params, of, list(of_tensor))


def initial_points(
    params: PyTree, *, bits: int = 4, bucket: int | None = 256, include: Include = None
) -> dict[str, Any] | Array:
    """The quantiles of each tensor's scaled weights, from the minimum to the maximum: where `learned_points` begins.

    Args:
      params: any pytree of arrays.
      bits: 2^bits points, 1 to 8 bits.
      bucket: the number of weights that share their scaling; None for one bucket a tensor.
      include: which tensors; see `Include`.

    Returns:
      float32 ``[2^bits]`` by the path of the tensor, in nested dicts.

    Raises:
      ValueError: bits or bucket are out of range, or no tensor is included.

    >>> initial_points({"w": jnp.array([[1.0, 2.0, 2.0, 5.0]]), "b": jnp.zeros(2)}, bits=1)
    {'w': Array([0., 1.], dtype=float32)}
    """
    check("initial_points", bits, bucket)
    chosen, named = chosen_tensors("initial_points", params, include), by_path(params)

    def of(weight: Array) -> Array:
        u = scaled(weight, bucket)[0].reshape(-1)[: weight.size]
        return jnp.quantile(u, jnp.linspace(0, 1, 2**bits, dtype=jnp.float32))

    return _nested({name: of(jnp.asarray(named[name])) for name in chosen})


@jax.custom_jvp
def _through(differentiated: Array, value: Array) -> Array:
    """One array's value with another's derivative: ``x + stop_gradient(value − x)`` without what that rounds away."""
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


# --- tensors by path --------------------------------------------------------------------------------------------------


def by_path(tree: PyTree) -> dict[str, Any]:
    """The leaves of a tree by the path to each.

    >>> by_path({"Dense_0": {"kernel": 1}, "list": [2]})
    {'Dense_0/kernel': 1, 'list/0': 2}
    """
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def _nested(named: dict[str, Any]) -> Any:
    if "" in named:  # the tree is one array
        return named[""]
    nested: dict[str, Any] = {}
    for name, leaf in named.items():
        *parents, last = name.split("/")
        level = nested
        for parent in parents:
            level = level.setdefault(parent, {})
        level[last] = leaf
    return nested


def _mapped(tree: PyTree, of: Callable[[str, Array], Array], chosen: list[str]) -> PyTree:
    leaves = [of(name, jnp.asarray(x)) if name in chosen else x for name, x in by_path(tree).items()]
    return jax.tree.unflatten(jax.tree.structure(tree), leaves)


def chosen_tensors(what: str, params: PyTree, include: Include) -> list[str]:
    """The paths of the tensors that are quantised.

    Raises:
      ValueError: there are none.

    >>> chosen_tensors("quantise", {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}, None)
    ['kernel']
    """

    def wanted(name: str, leaf: Any) -> bool:
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.size):
            return False
        if include is None:
            return len(leaf.shape) >= 2 and name.rpartition("/")[2] not in ("bias", "scale")
        return re.search(include, name) is not None if isinstance(include, str) else bool(include(name, leaf))

    named = by_path(params)
    if chosen := [name for name, leaf in named.items() if wanted(name, leaf)]:
        return chosen
    rule = "that has two or more axes" if include is None else f"that include={include!r} is true of"
    raise ValueError(
        f"{what}: expected a floating-point tensor {rule}, got none. Say by include= which are quantised; there are: "
        f"{checks.describe(named) or 'none'}."
    )
