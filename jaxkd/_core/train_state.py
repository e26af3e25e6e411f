"""Train states: dtypes, shapes, wrappers' slots, an objective's optimizer.

`take` removes a wrapper's slot from ``opt_state`` before the wrapped distiller runs and `put` adds it afterwards, so
that any wrapper composes with any distiller. Checkpoints and placements treat a slot like any other part of the
`TrainState`.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd._core import checks, tree_paths
from jaxkd.types import Array, PyTree, TrainState, Variables


def strongly_typed(tree: PyTree) -> PyTree:
    """Returns a tree without weakly typed arrays, such as those made from ``1.0``.

    The first step would return them strongly typed, and the second would be traced again.
    """

    def convert(x: Any) -> Array:
        x = jnp.asarray(x)
        return x if jnp.issubdtype(x.dtype, jax.dtypes.extended) else jax.lax.convert_element_type(x, x.dtype)

    return jax.tree.map(convert, tree)


def shape_of(x: Any) -> jax.ShapeDtypeStruct:
    """Returns shape and dtype of an array once it is a JAX array.

    NumPy's int64 labels, for instance, become int32 unless 64 bits are enabled.
    """
    dtype = x.dtype if hasattr(x, "dtype") else jnp.asarray(x).dtype
    extended = jnp.issubdtype(dtype, jax.dtypes.extended)
    return jax.ShapeDtypeStruct(jnp.shape(x), dtype if extended else jax.dtypes.canonicalize_dtype(dtype))


def params_of(teacher_state: PyTree) -> PyTree:
    """Returns the parameters in a teacher's state, of several members by name.

    A state of another form is returned unmodified.

    >>> params_of({"a": Variables({"w": 1}, {"mean": 2})})
    {'a': {'w': 1}}
    """
    if isinstance(teacher_state, Variables):
        return teacher_state.params
    if isinstance(teacher_state, Mapping):
        return {name: params_of(member) for name, member in teacher_state.items()}
    return teacher_state


def starting_from(what: str, variables: Variables, like: Variables) -> Variables:
    """Returns a copy of trained variables, in the structure of a model's own.

    Floating-point arrays of narrower dtypes are widened.

    Raises:
      ValueError: they differ in a name or a shape, or a dtype would be narrowed; the message lists the differences.

    >>> like = Variables({"w": jnp.zeros(2)})
    >>> starting_from("model", Variables({"w": np.ones(2, np.float16)}), like).params
    {'w': Array([1., 1.], dtype=float32)}
    """
    given, wanted = tree_paths.named(variables), tree_paths.named(like)

    def copy(name: str, x: Any) -> Array:
        x = jnp.asarray(x)
        dtype = wanted[name].dtype if name in wanted else x.dtype
        both_float = all(jnp.issubdtype(kind, jnp.floating) for kind in (x.dtype, dtype))
        return jnp.array(x, dtype if both_float and jnp.promote_types(x.dtype, dtype) == dtype else None, copy=True)

    copies = {name: copy(name, x) for name, x in given.items()}
    has, needs = ({name: tree_paths.describe(x) for name, x in tree.items()} for tree in (copies, wanted))
    if has != needs:
        names = [name for name in {**needs, **has} if has.get(name) != needs.get(name)]
        shown = "; ".join(
            f"{name} is {has.get(name, 'missing')}, for {needs.get(name, 'nothing')}" for name in names[:8]
        )
        raise ValueError(
            f"{what}: expected variables of the model, got others in {len(names)} places: {shown}. Weights of other "
            "names or shapes are fitted by jaxkd.weights.fit_to."
        )
    return jax.tree.unflatten(jax.tree.structure(like), [copies[name] for name in wanted])


def put(state: TrainState, name: str, value: PyTree, wrapper: str) -> TrainState:
    """Returns the state with an additional slot; errors name ``wrapper``.

    Raises:
      TypeError: ``opt_state`` is not a dict.
      ValueError: the slot exists already.
    """
    if not isinstance(state.opt_state, Mapping):
        raise TypeError(
            f"{wrapper}: expected a state whose opt_state is a dict, to which {name!r} can be added, got "
            f"{type(state.opt_state).__name__}."
        )
    if name in state.opt_state:
        raise ValueError(f"{wrapper}: opt_state has {name!r} already; apply this wrapper only once.")
    return state._replace(opt_state={**state.opt_state, name: value})


def take(state: TrainState, name: str, wrapper: str) -> tuple[TrainState, PyTree]:
    """Returns the wrapped distiller's state and the slot; errors name ``wrapper``.

    Raises:
      ValueError: the slot does not exist.
    """
    checks.state(f"{wrapper}, state", state)
    if not isinstance(state.opt_state, Mapping) or name not in state.opt_state:
        raise ValueError(
            f"{wrapper}: the state has no opt_state[{name!r}], so another distiller made it. Use the init of the "
            "distiller that this wrapper returned."
        )
    rest = {key: value for key, value in state.opt_state.items() if key != name}
    return state._replace(opt_state=rest), state.opt_state[name]


def optimizer_of_objective(
    optimizer: optax.GradientTransformation, objective_optimizer: optax.GradientTransformation | None
) -> optax.GradientTransformation:
    """Returns the optimizer of an objective's parameters, or else the student's.

    The student's optimizer may hold trees, labels or masks that were made for the student's parameters only. The
    ``init`` of the result therefore refuses parameters that it could not train.

    Raises:
      ValueError: from ``init``: the optimizer does not accept the parameters; it is the student's and gives some of
        them no update, or their gradient itself, which ascends.

    >>> frozen = optax.multi_transform({"all": optax.set_to_zero()}, lambda params: "all")
    >>> optimizer_of_objective(frozen, None).init({"kernel": jnp.ones(2)})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: optimizer... does not train kernel. ... objective_optimizer=optax.set_to_zero().
    """
    chosen = optimizer if objective_optimizer is None else objective_optimizer
    which = "optimizer, by default also the objective's" if objective_optimizer is None else "objective_optimizer"
    own = "Give the objective an optimizer of its own, such as objective_optimizer=optax.adam(1e-3)."

    def init(params: PyTree) -> PyTree:
        names = list(tree_paths.by_path(params))
        try:
            state = chosen.init(params)
        except Exception as error:
            if not names:  # labels or masks of the student do not matter where nothing is learned
                return optax.EmptyState()
            raise ValueError(
                f"{which}: expected one for the objective's parameters, {', '.join(names)}; its init raised: "
                f"{str(error).partition(chr(10))[0]}. {own}"
            ) from error
        if objective_optimizer is None:
            trained = dict(zip(names, _trained(chosen, params), strict=True))
            if untrained := [name for name in names if not trained[name]]:
                raise ValueError(
                    f"{which}: expected one that trains the objective's parameters too; it does not train "
                    f"{', '.join(untrained)}. {own} To keep them as they are, pass "
                    "objective_optimizer=optax.set_to_zero()."
                )
        return state

    def update(grads: PyTree, state: PyTree, params: PyTree | None = None) -> tuple[PyTree, PyTree]:
        nothing = isinstance(state, optax.EmptyState) and not jax.tree.leaves(grads)
        return (grads, state) if nothing else chosen.update(grads, state, params)

    return optax.GradientTransformation(init, update)


def optimizer_of_model(
    optimizer: optax.GradientTransformation, own: optax.GradientTransformation | None, model: str
) -> optax.GradientTransformation:
    """Returns a second model's own optimizer, or else the student's.

    Raises:
      ValueError: from ``init``: the student's optimizer does not accept the parameters, such as one with labels or
        masks that were made for the student's.

    >>> masked = optax.masked(optax.sgd(0.1), {"w": True})
    >>> optimizer_of_model(masked, None, "teacher").init({"v": jnp.ones(2)})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ValueError: optimizer, by default also the teacher's: expected one for its parameters, v; its init raised: ...
    """
    if own is not None:
        return own

    def init(params: PyTree) -> PyTree:
        try:
            return optimizer.init(params)
        except Exception as error:
            names = list(tree_paths.by_path(params))
            listed = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
            raise ValueError(
                f"optimizer, by default also the {model}'s: expected one for its parameters, {listed}; its init "
                f"raised: {str(error).partition(chr(10))[0]} Labels and masks made for the student's parameters do "
                f"not fit others. Give the {model} an optimizer of its own: {model}_optimizer=optax.adam(1e-3)."
            ) from error

    return optax.with_extra_args_support(optimizer)._replace(init=init)


# Operations, among others, that clip a gradient.
_KEEPS_SIGN = {
    *("abs", "add", "add_any", "broadcast_in_dim", "clamp", "convert_element_type", "copy", "div", "integer_pow"),
    *("max", "min", "mul", "reduce_max", "reduce_sum", "reshape", "rsqrt", "select_n", "sqrt", "square", "squeeze"),
}


def _trained(optimizer: optax.GradientTransformation, params: PyTree) -> list[bool]:
    """Returns whether the update of each parameter can descend.

    It depends on its gradient then, and is not the gradient itself. This is read from the traced update, since values
    do not tell a learning rate that begins with 0 from none. `optax.set_to_zero` and a constant learning rate of 0
    leave no dependence. `optax.masked` returns the gradients outside of its mask unmodified; they, even clipped, never
    meet a factor that can be negative.
    """
    shapes = jax.tree.map(shape_of, params)
    size = len(jax.tree.leaves(shapes))
    state = jax.eval_shape(optimizer.init, shapes)
    traced = jax.make_jaxpr(lambda *args: jax.tree.leaves(optimizer.update(*args)[0]))(shapes, state, shapes).jaxpr
    other = [1 << size] * (len(traced.invars) - size)
    found = _reads(traced, [1 << i for i in range(size)] + other, size + 1)
    return [bool(bits >> size + 1 + i & 1) for i, bits in enumerate(found)]


def _reads(jaxpr: Any, given: Sequence[int], width: int) -> list[int]:
    """Returns the inputs of a jaxpr that each output is computed from, as bit sets.

    ``width`` lower bits stand for the inputs, the last of them for all that are not gradients; as many higher bits
    stand for those that were on the way multiplied by a factor that can be negative.
    """
    known = dict(zip(jaxpr.invars, given, strict=True))
    inputs = (1 << width) - 1

    def bits(x: Any) -> int:
        return 0 if hasattr(x, "val") else known.get(x, 0)  # a literal, or a constant

    def union(sets: Sequence[int]) -> int:
        return functools.reduce(operator.or_, sets, 0)

    def turns(factor: Any) -> bool:
        """Returns whether a factor can be negative, and is not computed from gradients."""
        return bool(np.any(factor.val < 0)) if hasattr(factor, "val") else not bits(factor) & inputs >> 1

    for eqn in jaxpr.eqns:
        values, name = [bits(x) for x in eqn.invars], eqn.primitive.name
        choice = values.pop(0) & inputs if name in ("cond", "select_n") else 0
        inner = eqn.params.get("branches") or [eqn.params[key] for key in ("jaxpr", "call_jaxpr") if key in eqn.params]
        inner = [getattr(closed, "jaxpr", closed) for closed in inner]
        if inner and name not in ("scan", "while") and all(len(body.invars) == len(values) for body in inner):
            results = [union(each) for each in zip(*(_reads(body, values, width) for body in inner), strict=True)]
        elif name == "mul" and any(hasattr(x, "val") and not np.any(x.val) for x in eqn.invars):
            results = [0]
        else:
            results = [union(values)] * len(eqn.outvars)
            if name not in _KEEPS_SIGN or (name == "mul" and any(map(turns, eqn.invars))):
                results = [found | (found & inputs) << width for found in results]
        # A choice between constants, such as the zeros of a frozen group in a step that may be skipped, is a constant.
        known.update(zip(eqn.outvars, [found and found | choice for found in results], strict=True))
    return [bits(x) for x in jaxpr.outvars]
