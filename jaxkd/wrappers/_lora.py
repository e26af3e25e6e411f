"""Low-rank adapters beside frozen weights, which can serve as the teacher too."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import adapters
from jaxkd._core import checks
from jaxkd._core.quantization import Include, chosen_tensors
from jaxkd._core.train_state import starting_from
from jaxkd._core.tree_paths import by_parts, nest
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables

_BASE, _MODEL, _SCALE = "base", "model", "scale"


def lora(model: Model, variables: Any, *, rank: int = 8, alpha: float = 16.0, include: Include = None) -> Model:
    """Trains low-rank additions to the weights of a trained model.

    Also known as: LoRA.

    ``W' = W + (α / rank) A B`` for each chosen kernel W. Hu et al., "LoRA: Low-Rank Adaptation of Large Language
    Models", ICLR 2022, section 4.1. A is normal with the variance ``1 / inputs`` and B is 0, so that training begins
    with the trained model. The weights W are state: they get no gradient, no optimizer slots and no weight decay, and
    `with_base` evaluates them as the teacher, so that one copy of them serves both. A kernel of more than two axes is
    taken as a matrix of its first axis by all others. The sum is formed in each step, one kernel at a time.

    Args:
      model: model from an adapter.
      variables: its trained weights: linen's dict, an nnx module or `Variables`. They are copied, so that the caller's
        arrays survive the donation of the state.
      rank: rank of the additions.
      alpha: the paper's α. The size of a change does not depend on the rank if α is kept.
      include: the kernels: a regular expression to find in the path, such as ``"queries|values"``; a predicate of path
        and array; or None for all of two or more axes that are not called ``bias`` or ``scale``.

    Returns:
      A `Model` with ``Variables({path: {"a", "b"}}, {"base": params, "model": state, "scale": α / rank})``.
      `merge_lora` returns the variables of the model itself.

    Raises:
      ValueError: the rank or α is not positive; from ``init``: no kernel is chosen, or the weights are not the model's.

    >>> linear = adapters.plain(lambda key, x: {"kernel": jnp.eye(4)}, lambda w, x: x @ w["kernel"], inputs="x")
    >>> model = lora(linear, Variables({"kernel": 2 * jnp.eye(4)}), rank=1)
    >>> variables = model.init(jax.random.key(0), {"x": jnp.ones((1, 4))})
    >>> jax.tree.map(jnp.shape, variables.params)
    {'kernel': {'a': (4, 1), 'b': (1, 4)}}
    """
    if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
        raise ValueError(f"lora, rank: expected a number of at least 1, got {rank}.")
    if not 0 < alpha < math.inf:
        raise ValueError(f"lora, alpha: expected a positive number, got {alpha}.")
    checks.contract("lora, model", model, Model)
    trained = adapters.variables(variables)

    def init(key: Array, batch: Batch) -> Variables:
        base = starting_from("lora, variables", trained, jax.eval_shape(model.init, key, dict(batch)))
        chosen = set(chosen_tensors("lora", base.params, include))
        parts = {path: x for path, x in by_parts(base.params).items() if "/".join(path) in chosen}
        added: dict[tuple[str, ...], Any] = {}
        for number, (path, kernel) in enumerate(parts.items()):
            if kernel.ndim < 2:
                raise ValueError(f"lora, include: expected kernels of two or more axes, got {'/'.join(path)!r}.")
            inputs, outputs = kernel.shape[0], math.prod(kernel.shape[1:])
            drawn = jax.random.normal(jax.random.fold_in(key, number), (inputs, rank), jnp.float32)
            added[(*path, "a")] = drawn / math.sqrt(inputs)
            added[(*path, "b")] = jnp.zeros((rank, outputs), jnp.float32)
        state = {_BASE: base.params, _MODEL: base.state, _SCALE: jnp.float32(alpha / rank)}
        return Variables(nest(added), state)

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(merge_lora(variables), batch, key=key, train=train)
        return outputs, {**variables.state, _MODEL: state}

    return Model(init, apply)


def merge_lora(variables: Variables) -> Variables:
    """Returns the variables of a model itself, with the additions of `lora`.

    Args:
      variables: variables of a model with low-rank additions, such as ``state.student``.

    Raises:
      ValueError: they are those of another model.

    >>> state = {"base": {"kernel": jnp.zeros((2, 1))}, "model": {}, "scale": 2.0}
    >>> merge_lora(Variables({"kernel": {"a": jnp.ones((2, 1)), "b": jnp.ones((1, 1))}}, state)).params["kernel"]
    Array([[2.],
           [2.]], dtype=float32)
    """
    _check("merge_lora", variables)
    added = by_parts(variables.params)
    leaves = []
    for path, kernel in by_parts(variables.state[_BASE]).items():
        if (*path, "a") in added:
            change = variables.state[_SCALE] * (added[(*path, "a")] @ added[(*path, "b")])
            kernel = (kernel.astype(jnp.float32) + change.reshape(kernel.shape)).astype(kernel.dtype)
        leaves.append(kernel)
    treedef: Any = jax.tree.structure(variables.state[_BASE])
    return Variables(jax.tree.unflatten(treedef, leaves), variables.state[_MODEL])


def with_base(model: Model, lora_model: Model) -> Model:
    """Adds the outputs of the trained model itself to those of its `lora`.

    They are under ``base/...``, in inference mode and without gradients. ``jaxkd.objectives.select(objective,
    teacher="base")`` lets an objective read them as the teacher's, with `jaxkd.teachers.none` as the teacher: the state
    holds the weights once, and the optimizer no slots of them.

    Args:
      model: the model that was adapted.
      lora_model: the same model with low-rank additions, from `lora`.

    Returns:
      A `Model` with the variables of ``lora_model``.

    Raises:
      ValueError: ``apply`` raises it if the variables are those of another model.

    >>> linear = adapters.plain(lambda key, x: {"kernel": jnp.eye(2)}, lambda w, x: x @ w["kernel"], inputs="x")
    >>> student = with_base(linear, lora(linear, Variables({"kernel": 2 * jnp.eye(2)}), rank=1))
    >>> variables = student.init(jax.random.key(0), {"x": jnp.ones((1, 2))})
    >>> sorted(student.apply(variables, {"x": jnp.ones((1, 2))}, key=None, train=False)[0])
    ['base/logits', 'logits']
    """

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        _check("with_base", variables)
        outputs, state = lora_model.apply(variables, batch, key=key, train=train)
        base = Variables(variables.state[_BASE], variables.state[_MODEL])
        found = model.apply(base, batch, key=None, train=False)[0]
        return {**outputs, **{f"base/{name}": jax.lax.stop_gradient(x) for name, x in found.items()}}, state

    return Model(lora_model.init, apply)


def _check(what: str, variables: Variables) -> None:
    if not isinstance(variables.state, Mapping) or set(variables.state) != {_BASE, _MODEL, _SCALE}:
        raise ValueError(f"{what}: expected the variables of a model from lora, got those of another model.")
