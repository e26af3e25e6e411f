"""Objectives from losses: `term` binds a loss to its inputs, `combine` sums."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import batches, checks
from jaxkd._core.batches import Path, lookup, mask_of_shape
from jaxkd.objectives._checks import finite
from jaxkd.types import Array, Context, Mean, Objective, ObjectiveOut, ObjectiveVars, Schedule


def replace(context: Context, values: Mapping[str, Any]) -> Context:
    """Returns the context with the values at some paths replaced.

    An objective that compares mapped features passes them to its loss this way. A path may be new.

    >>> replace(Context({"f": 1, "g": 2}, {}, {}, 0), {"student/f": 3, "student/h": 4}).student
    {'f': 3, 'g': 2, 'h': 4}
    """
    roots: dict[str, Any] = {}
    for path, value in values.items():
        root, _, name = path.partition("/")
        roots.setdefault(root, dict(getattr(context, root)))[name] = value
    return context._replace(**roots)


def mask_out(context: Context, x: Array) -> Array:
    """Sets masked examples or tokens of an array ``[batch, ...]`` to zero.

    Padding may hold NaN or infinity, which would otherwise reach gradients of parameters and batch statistics.

    Raises:
      ValueError: the array has other tokens than the mask, or it is unclear whether its last axis are tokens.
    """
    given = context.batch.get("mask")
    if given is not None and getattr(given, "ndim", 1) > 1:
        batches.check_tokens("mask_out", given, x.shape)
        if x.shape == given.shape and jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"mask_out: {checks.shape(x)} has the shape of the mask, so that its last axis may be tokens or "
                "features. Write mask_out(context, x[..., None])[..., 0] for one number per token, and "
                "mask_out(context, x[:, None])[:, 0] for the features of an example."
            )
    mask = mask_of_shape(context, x.shape)
    return x if mask is None else jnp.where(mask, x, 0)


def at_step(value: Any, step: Any) -> Any:
    """Evaluates a schedule at a step; anything that is not callable is constant."""
    return value(step) if callable(value) else value


def term(
    loss: Callable[..., Array],
    *paths: Path,
    weight: float | Array | Schedule = 1.0,
    where: str | None = None,
    weights: str | Any = None,
    **hyperparameters: Any,
) -> Objective:
    """Builds an objective from a loss: its weighted mean over the batch.

    Args:
      loss: function of arrays that returns one value per example ``[batch]``, or per token ``[batch, tokens]``.
      *paths: paths of its positional arguments, such as ``"student/logits", "teacher/logits"``. A loss of several
        layers takes tuples of paths: ``losses.solution_flow`` takes ``("student/a", "student/b"), ("teacher/a",
        "teacher/b")``. A parameter is ``"student_params/head/kernel"``, and a matrix transposed ``"....T"``.
      weight: a number, or an optax schedule of the step.
      where: path of a boolean mask in the shape of the result, in place of the batch's own ``mask``. An example that
        the batch's mask excludes as a whole remains excluded.
      weights: path of numbers, one for each value or each example, not negative, such as the weight of each label's
        class. The mean is then ``Σ w·value / Σ w`` over the unmasked values of all devices and micro-batches, and a
        value of weight 0 is excluded as by a mask. Anything but a path is a hyperparameter of the loss.
      **hyperparameters: keyword arguments of the loss. A callable is a schedule of the step, as for the weight; bind a
        hyperparameter that is itself a function with `functools.partial`.

    Returns:
      An `Objective` without parameters or state. Its metrics are the unweighted mean and the weight.

    Raises:
      ValueError: from ``init``: a path does not exist (the message lists the available ones), or the loss does not
        return one value per example.

    >>> from jaxkd import losses
    >>> kd = term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.9, temperature=4.0)
    >>> logits = jnp.array([[0.0, 1.0]])
    >>> kd.apply({}, {}, Context({"logits": logits}, {"logits": logits}, {}, 0), None).value
    Array(0., dtype=float32)
    """
    if not callable(loss):
        raise TypeError(
            f"term: expected a loss, a function of arrays, got {type(loss).__name__}. Objectives have paths of their "
            "own: sum them with jaxkd.combine(name=objective, ...)."
        )
    accepted = _parameters(loss)
    if weights is not None and not isinstance(weights, str):
        hyperparameters["weights"] = weights

    def values(context: Context) -> tuple[Array, Array | None, Array | None]:
        arguments = [lookup(context, path) for path in paths]
        options = {k: at_step(v, context.step) for k, v in hyperparameters.items()}
        if context.axis_name is not None and "axis_name" in accepted and "axis_name" not in options:
            options["axis_name"] = context.axis_name
        # The mask is checked against the result's shape before the loss runs, since the loss takes it as `where`. An
        # abstract evaluation costs one more trace and no computation.
        result = jax.eval_shape(lambda *a: loss(*a, **options), *arguments)
        if not getattr(result, "shape", ()):
            raise ValueError(
                f"{_name(loss)}: expected one value per example [batch], got {checks.shape(result)}. Leave out the "
                "mean: the term takes it, over the unmasked examples of all devices and micro-batches."
            )

        def takes(mask: Array) -> bool:
            """Returns whether the loss takes a mask."""
            if "where" not in accepted:
                return False
            try:
                masked = jax.eval_shape(lambda w, *a: loss(*a, **options, where=w), mask, *arguments)
            except Exception:  # whatever a loss raises for a mask of another shape
                return False
            return bool(masked.shape == result.shape)

        mask = batch_mask(context, where, result.shape, arguments, _name(loss), takes)
        shares = _weights(context, weights, result.shape, _name(loss)) if isinstance(weights, str) else None
        if shares is not None:
            counted = shares != 0
            mask = (
                counted if mask is None else mask & counted.reshape(*counted.shape, *(1,) * (mask.ndim - counted.ndim))
            )
        if mask is None:
            return loss(*arguments, **options), None, None
        if mask.shape != result.shape and not takes(mask):  # a mask over tokens, and one value per example
            raise ValueError(
                f"{_name(loss)}: expected a loss of tokens, for the mask {list(mask.shape)}; it returns one value per "
                "example and takes no mask over tokens, so that excluded tokens would count. Give the loss a keyword "
                f"argument `where` {list(mask.shape)}, let it return one value per token, pool the tokens in the "
                "model, or, if it reads tokens that always count, name a mask over examples by where='batch/NAME'."
            )
        if "where" in accepted:
            options["where"] = mask
        return loss(*arguments, **options), _any_token(mask, result.shape), shares

    def init(key: Array, context: Context) -> ObjectiveVars:
        del key
        jax.eval_shape(lambda c: values(c)[0], context._replace(axis_name=None))
        return ObjectiveVars()

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        del params, key
        per_example, mask, shares = values(context)
        return reduce_values(per_example, mask, weight, context, state, weights=shares)

    return Objective(init, apply)


def batch_mask(
    context: Context,
    where: str | None,
    shape: tuple[int, ...],
    arguments: Sequence[Any],
    loss: str,
    takes: Callable[[Array], bool] = lambda mask: False,
) -> Array | None:
    """Returns the mask of a loss, over its values or the tokens of its arguments.

    Args:
      context: outputs and batch of the step.
      where: path of a mask in place of the batch's own, or None.
      shape: shape of the loss's values.
      arguments: the loss's arrays.
      loss: its name, for errors.
      takes: whether the loss takes a mask, where shapes do not decide.
    """
    examples = batches.example_mask(context.batch)
    if where is None:
        if examples is None:
            return None
        mask = context.batch["mask"]
        fitted = batches.broadcast(mask, shape)
        if fitted is None:
            tokens = shape == examples.shape and _reads_tokens(mask, examples, arguments, loss, takes)
            fitted = mask if tokens else batches.broadcast(examples, shape)
        if fitted is None or (mask.ndim > 1 and len(shape) > 1 and mask.shape != shape[: mask.ndim]):
            raise ValueError(
                f"{loss}: expected one value per example of the batch's mask, {list(examples.shape)}, or per token, "
                f"{list(mask.shape)}, got {list(shape)}. Name a mask of that shape by where='batch/NAME'."
            )
        return fitted
    mask = lookup(context, where)
    over_tokens = mask.ndim > len(shape) == 1 and mask.shape[:1] == shape
    if mask.dtype != bool or not (mask.shape == shape or over_tokens):
        raise ValueError(
            f"{loss}: expected bool{list(shape)} at where={where!r}, the shape of the loss, True for the values "
            f"to average; got {checks.shape(mask)}."
        )
    if examples is None:
        return mask
    rows = batches.broadcast(examples, mask.shape)
    if rows is None and context.batch["mask"].size == mask.shape[0]:  # rows are the tokens of all examples
        rows = batches.broadcast(context.batch["mask"], mask.shape)
    if rows is None:
        raise ValueError(
            f"{loss}: expected one value per example of the batch's mask, {list(examples.shape)}, got {list(shape)}."
        )
    return mask & rows


def _reads_tokens(
    mask: Array, examples: Array, arguments: Sequence[Any], loss: str, takes: Callable[[Array], bool]
) -> bool:
    """Returns whether a loss with one value per example reads tokens of a mask.

    The last axis of ``[batch, n]`` is classes or features, or else the n tokens of a mask ``[batch, n]``: the loss
    decides, by the mask that it takes.
    """
    arrays = [x for x in jax.tree.leaves(arguments) if hasattr(x, "shape")]
    if any(batches.over_tokens(mask, x.shape) for x in arrays):
        return True
    for x in arrays:
        batches.check_tokens(loss, mask, x.shape)
    alike = [checks.shape(x) for x in arrays if x.shape == mask.shape]
    if not alike:
        return False
    tokens = takes(mask)
    if tokens == takes(examples):
        raise ValueError(
            f"{loss}: {alike[0]} has the shape of batch['mask'], so that its last axis may be classes, features or the "
            f"mask's tokens, and the loss takes {'either mask' if tokens else 'no mask'}. Name the mask by "
            f"where='batch/NAME', bool{list(examples.shape)} over examples or bool{list(mask.shape)} over tokens"
            + ("." if tokens else ", or give the loss a keyword argument `where` over one of them.")
        )
    return tokens


def _weights(context: Context, path: str, shape: tuple[int, ...], loss: str) -> Array:
    """Returns the weights at a path, broadcast to the shape of a loss's result."""
    weights = lookup(context, path)
    fitted = None if weights.dtype == bool or not weights.ndim else batches.broadcast(weights, shape)
    if fitted is None:
        raise ValueError(
            f"{loss}: expected numbers {list(shape)}, or one for each example, at weights={path!r}, got "
            f"{checks.shape(weights)}. A boolean mask is where={path!r}."
        )
    return fitted


def _any_token(mask: Array, shape: tuple[int, ...]) -> Array:
    """Reduces a mask to the leading dimensions of a shape: examples with any token."""
    return jnp.any(mask, axis=tuple(range(len(shape), mask.ndim))) if mask.shape != shape else mask


def masked_mean(
    values: Array, where: Array | None, axis_name: str | None = None, *, weights: Array | None = None
) -> tuple[Array, Mean]:
    """Mean of the unmasked values, and the same as a metric (sum, count).

    On a mapped axis the first result is this device's share: the mean of the shares over the axis is the global mean,
    also where devices hold different numbers of unmasked values. If all values are masked, the mean is 0.

    Args:
      values: loss of each example ``[batch]``, or of each token.
      where: mask of the same shape, True for the values to average; None for all.
      axis_name: a mapped axis over which the batch is split.
      weights: weight of each value, of the same shape. The mean is then ``Σ w·value / Σ w``, and the count is ``Σ w``.

    >>> masked_mean(jnp.array([1.0, 3.0, 100.0]), jnp.array([True, True, False]))[0]
    Array(2., dtype=float32)
    >>> masked_mean(jnp.array([1.0, 3.0]), None, weights=jnp.array([3.0, 1.0]))[0]
    Array(1.5, dtype=float32)
    """
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if weights is not None:
        weights = weights.astype(values.dtype)
        where = weights != 0 if where is None else where & (weights != 0)
    if where is None:
        total = jnp.sum(values)
        return total / values.size, Mean(total, jnp.asarray(values.size, total.dtype))
    values = jnp.where(where, values, 0)
    if weights is None:
        total, count = jnp.sum(values), jnp.sum(where, dtype=values.dtype)
    else:
        weights = jnp.where(where, weights, 0)
        total, count = jnp.sum(weights * values), jnp.sum(weights)
    shared = count if axis_name is None else jax.lax.pmean(count, axis_name)
    return total / jnp.where(shared > 0, shared, 1), Mean(total, count)


def reduce_values(
    values: Array,
    where: Array | None,
    weight: float | Array | Schedule,
    context: Context,
    objective_state: Any,
    *,
    weights: Array | None = None,
    **extra: Array,
) -> ObjectiveOut:
    """Returns an objective's output: the weighted mean and the unweighted metrics.

    Args:
      values: loss of each example ``[batch]``, or of each token.
      where: mask of the same shape, True for the values to average; None for all.
      weight: a number, or an optax schedule of the step.
      context: outputs and batch of the step.
      objective_state: the objective's new state.
      weights: weight of each value in the mean, of the same shape.
      **extra: further metrics by name, in the same shape; their means have no weights.

    >>> out = reduce_values(jnp.array([1.0, 3.0]), None, 0.5, Context({}, {}, {}, 0), {}, sizes=jnp.array([4.0, 6.0]))
    >>> out.value, out.metrics[""].sum, out.metrics["sizes"].sum
    (Array(1., dtype=float32), Array(4., dtype=float32), Array(10., dtype=float32))
    """
    scale = at_step(weight, context.step)
    finite("objective", weight=scale)
    average, metric = masked_mean(values, where, context.axis_name, weights=weights)
    metrics = {"": metric, "weight": Mean(jnp.asarray(scale, jnp.float32), jnp.ones((), jnp.float32))}
    metrics |= {name: masked_mean(jax.lax.stop_gradient(x), where, context.axis_name)[1] for name, x in extra.items()}
    return ObjectiveOut(scale * average, objective_state, metrics)


def add_loss(out: ObjectiveOut, values: Array, where: Array | None, context: Context) -> ObjectiveOut:
    """Adds the mean of the loss by which an objective's own parameters learn.

    It has the weight 1 and no part in the metrics; the caller routes gradients with `jax.lax.stop_gradient`.
    """
    return out._replace(value=out.value + masked_mean(values, where, context.axis_name)[0])


def is_zero(weight: Any) -> bool:
    """Returns whether a weight is the number 0, of which the term can be left out.

    >>> is_zero(0.0), is_zero(jnp.zeros(())), is_zero(lambda step: 0.0)
    (True, False, False)
    """
    return isinstance(weight, (int, float)) and weight == 0


def combine(**objectives: Objective) -> Objective:
    """Sums named objectives; the sum is itself an objective, so combinations nest.

    Parameters, state and metrics are keyed by the names: the metric of ``combine(a=combine(b=term(...)))`` is
    ``"a/b"``, its weight ``"a/b/weight"``.

    Raises:
      ValueError: no objective is given.
      TypeError: an argument is not an objective.

    >>> from jaxkd import losses
    >>> objective = combine(ce=term(losses.cross_entropy, "student/logits", "batch/label", weight=0.5))
    >>> context = Context({"logits": jnp.zeros((1, 2))}, {}, {"label": jnp.array([1])}, 0)
    >>> out = objective.apply({}, {}, context, None)
    >>> out.value.round(4), sorted(out.metrics)
    (Array(0.3466, dtype=float32), ['ce', 'ce/weight'])
    """
    if not objectives:
        raise ValueError("combine: expected at least one named objective, got none.")
    for name, objective in objectives.items():
        checks.contract(f"combine({name}=...)", objective, Objective)

    def init(key: Array, context: Context) -> ObjectiveVars:
        children = {
            name: _named(name, objective.init, jax.random.fold_in(key, i), context)
            for i, (name, objective) in enumerate(objectives.items())
        }
        return ObjectiveVars(
            {name: child.params for name, child in children.items() if jax.tree.leaves(child.params)},
            {name: child.state for name, child in children.items() if jax.tree.leaves(child.state)},
        )

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> ObjectiveOut:
        value: Any = 0.0
        states, metrics, terms = {}, {}, {}
        for i, (name, objective) in enumerate(objectives.items()):
            sub = None if key is None else jax.random.fold_in(key, i)
            out = _named(name, objective.apply, params.get(name, {}), state.get(name, {}), context, sub)
            value = value + out.value
            if name in state:
                states[name] = out.state
            metrics.update({f"{name}/{k}" if k else name: v for k, v in out.metrics.items()})
            terms.update({f"{name}/{k}": v for k, v in out.terms.items()} or {name: out.value})
        return ObjectiveOut(value, states, metrics, terms)

    return Objective(init, apply)


def _named(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls a function; adds the objective's name as a note to any error."""
    try:
        return function(*arguments)
    except Exception as error:
        error.add_note(f"in the objective {name!r}")
        raise


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    """Returns a function's parameter names; ``**kwargs`` adds the loss contract's.

    A function with ``**kwargs`` is assumed to pass ``where`` and ``axis_name`` to a loss.
    """
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins and some C callables have no signature
        return frozenset()
    forwards = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return frozenset(parameters) | (frozenset({"where", "axis_name"}) if forwards else frozenset())


def _name(function: Any) -> str:
    inner = getattr(function, "func", function)  # unwraps a functools.partial
    return str(getattr(inner, "__name__", type(inner).__name__))
