"""Objectives from losses: `term` binds a loss to where its inputs are found, `combine` adds terms up."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd import checks
from jaxkd.types import Array, Context, LossOut, LossVars, Mean, Objective

Schedule = Callable[[Any], Any]
_ROOTS = ("student", "teacher", "batch")


Path = str | tuple["Path", ...]
"""Where an argument is found: ``"student/logits"``, or a tuple of such where a loss takes several features at once."""


def lookup(context: Context, path: Path) -> Any:
    """The value at a path such as ``"student/logits"``, ``"teacher/stage2"`` or ``"batch/label"``.

    Args:
      context: what an objective may read.
      path: the root, a slash, and the name; the name may itself hold slashes. A tuple or list of paths gives a tuple.

    Raises:
      ValueError: it is no path, or there is no such root or name; the message lists what there is.

    >>> lookup(Context({"logits": 1}, {}, {"label": 2}, 0), "batch/label")
    2
    """
    if isinstance(path, (tuple, list)):
        return tuple(lookup(context, part) for part in path)
    if not isinstance(path, str):
        raise ValueError(f"path: expected one such as 'student/logits' or 'batch/label', got {path!r}.")
    root, _, name = path.partition("/")
    checks.known(root, _ROOTS, f"path {path!r}, root", hint="A path reads like 'student/logits' or 'batch/label'.")
    found = getattr(context, root)
    hints = {
        "student": "Features come from the taps of the student's adapter.",
        "teacher": "Features come from the taps of the teacher's adapter.",
        "batch": "",
    }
    shapes = {key: checks.shape(value) for key, value in found.items()}
    checks.known(name, shapes, f"path {path!r}, {root} entry", hint=hints[root])
    return found[name]


def replace(context: Context, values: Mapping[str, Any]) -> Context:
    """The context with other values at some paths, for an objective that maps features before it compares them.

    Args:
      context: what an objective may read.
      values: a value for each path; a path need not have been there before.

    >>> replace(Context({"f": 1, "g": 2}, {}, {}, 0), {"student/f": 3, "student/h": 4}).student
    {'f': 3, 'g': 2, 'h': 4}
    """
    roots: dict[str, Any] = {}
    for path, value in values.items():
        root, _, name = path.partition("/")
        roots.setdefault(root, dict(getattr(context, root)))[name] = value
    return context._replace(**roots)


def counted(context: Context, x: Array) -> Array:
    """An array ``[batch, ...]`` with zeros at the examples that do not count, so that nothing of them can leak."""
    mask = checks.example_mask(context.batch)
    return x if mask is None else jnp.where(jnp.expand_dims(mask, tuple(range(1, x.ndim))), x, 0)


def term(
    loss: Callable[..., Array],
    *paths: Path,
    weight: float | Array | Schedule = 1.0,
    where: str | None = None,
    **hyperparameters: Any,
) -> Objective:
    """One weighted loss, bound to the outputs it compares.

    Args:
      loss: any function of arrays that returns one value per example ``[batch]`` (or ``[batch, tokens]``).
      *paths: where its positional arguments are found, such as ``"student/logits", "teacher/logits"``. A loss of
        several layers takes tuples, such as ``losses.solution_flow`` of ``("student/a", "student/b"), ("teacher/a",
        "teacher/b")``.
      weight: a number, or an optax schedule of the step.
      where: the path of a boolean mask of the result's shape, for losses over tokens. The batch's own ``mask``
        always applies as well.
      **hyperparameters: passed to the loss by name. A callable is a schedule of the step, as for the weight; bind a
        hyperparameter that really is a function with `functools.partial`.

    Returns:
      An `Objective` without parameters or state. Its metrics are the unweighted mean and the weight.

    Raises:
      ValueError: when it is initialised or applied: a path does not exist (what does is listed), or the loss does
        not return values per example.

    >>> from jaxkd import losses
    >>> kd = term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.9, temperature=4.0)
    >>> logits = jnp.array([[0.0, 1.0]])
    >>> kd.apply({}, {}, Context({"logits": logits}, {"logits": logits}, {}, 0), None).value
    Array(0., dtype=float32)
    """
    accepted = _parameters(loss)

    def values(context: Context) -> tuple[Array, Array | None]:
        arguments = [lookup(context, path) for path in paths]
        options = {k: v(context.step) if callable(v) else v for k, v in hyperparameters.items()}
        if context.axis_name is not None and "axis_name" in accepted and "axis_name" not in options:
            options["axis_name"] = context.axis_name
        # Only the loss knows the shape of its result; asking for it costs a trace and no computation.
        result = jax.eval_shape(lambda *a: loss(*a, **options), *arguments)
        if not getattr(result, "shape", ()):
            raise ValueError(
                f"{_name(loss)}: expected one value per example [batch], got {checks.shape(result)}. Leave out the "
                "mean: the term takes it, so that masks, devices and micro-batches are counted rightly."
            )
        mask = _mask(context, where, result.shape, _name(loss))
        if mask is not None and "where" in accepted:
            options["where"] = mask
        return loss(*arguments, **options), mask

    def init(key: Array, context: Context) -> LossVars:
        del key
        jax.eval_shape(lambda c: values(c._replace(axis_name=None))[0], context._replace(axis_name=None))
        return LossVars()

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
        del params, key
        found, mask = values(context)
        return weighted(found, mask, weight, context, state)

    return Objective(init, apply)


def _mask(context: Context, where: str | None, shape: tuple[int, ...], loss: str) -> Array | None:
    """What counts of a result of this shape: by the mask at the path, and by the batch's own."""
    mask = None
    if where is not None:
        mask = lookup(context, where)
        if mask.dtype != bool or mask.shape != shape:
            raise ValueError(
                f"{loss}: expected bool{list(shape)} at where={where!r}, True for what counts, in the shape of the "
                f"loss; got {checks.shape(mask)}."
            )
    examples = checks.example_mask(context.batch)
    if examples is None:
        return mask
    if examples.shape != shape[:1]:
        raise ValueError(
            f"{loss}: expected one value per example of the batch's mask, {list(examples.shape)}, got {list(shape)}."
        )
    rows = jnp.expand_dims(examples, tuple(range(1, len(shape))))
    return jnp.broadcast_to(rows, shape) if mask is None else mask & rows


def mean(values: Array, where: Array | None, axis_name: str | None = None) -> tuple[Array, Mean]:
    """The mean of what counts, and the same as a metric that is not divided yet.

    On a mapped axis the first result is this device's share: the shares' mean over the axis is the global mean, also
    where the devices hold different numbers of examples. With nothing that counts it is 0.

    >>> mean(jnp.array([1.0, 3.0, 100.0]), jnp.array([True, True, False]))[0]
    Array(2., dtype=float32)
    """
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    if where is not None:
        values = jnp.where(where, values, 0)
    total = jnp.sum(values)
    if where is None:
        return total / values.size, Mean(total, jnp.asarray(values.size, total.dtype))
    count = jnp.sum(where, dtype=total.dtype)
    shared = count if axis_name is None else jax.lax.pmean(count, axis_name)
    return total / jnp.where(shared > 0, shared, 1), Mean(total, count)


def weighted(
    values: Array,
    where: Array | None,
    weight: float | Array | Schedule,
    context: Context,
    state: Any,
    **extra: Array,
) -> LossOut:
    """What an objective returns for one value per example: its weighted mean, and its unweighted metrics.

    Args:
      values: of the loss ``[batch]``, or over tokens.
      where: True for what counts, of the same shape, or None for all.
      weight: a number, or a schedule of the step.
      context: what the objective has read.
      state: the objective's new state.
      **extra: further values to report by name, of the same shape.

    >>> out = weighted(jnp.array([1.0, 3.0]), None, 0.5, Context({}, {}, {}, 0), {}, sizes=jnp.array([4.0, 6.0]))
    >>> out.value, out.metrics[""].sum, out.metrics["sizes"].sum
    (Array(1., dtype=float32), Array(4., dtype=float32), Array(10., dtype=float32))
    """
    scale = weight(context.step) if callable(weight) else weight
    average, metric = mean(values, where, context.axis_name)
    metrics = {"": metric, "weight": Mean(jnp.asarray(scale, jnp.float32), jnp.ones((), jnp.float32))}
    metrics |= {name: mean(jax.lax.stop_gradient(x), where, context.axis_name)[1] for name, x in extra.items()}
    return LossOut(scale * average, state, metrics)


def combine(**objectives: Objective) -> Objective:
    """The sum of named objectives, itself an objective, so that it nests.

    Parameters, state and metrics are keyed by the names: the metric of ``combine(a=combine(b=term(...)))`` is
    ``"a/b"``, its weight ``"a/b/weight"``.

    Raises:
      ValueError: there is nothing to combine.
      TypeError: something is not an objective.

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
        if not (hasattr(objective, "init") and hasattr(objective, "apply")):
            raise TypeError(
                f"combine({name}=...): expected an Objective, got {type(objective).__name__}. Bind a loss with "
                f"jaxkd.term({_name(objective)}, 'student/...', 'teacher/...')."
            )

    def init(key: Array, context: Context) -> LossVars:
        children = {
            name: _named(name, objective.init, jax.random.fold_in(key, i), context)
            for i, (name, objective) in enumerate(objectives.items())
        }
        return LossVars(
            {name: child.params for name, child in children.items() if jax.tree.leaves(child.params)},
            {name: child.state for name, child in children.items() if jax.tree.leaves(child.state)},
        )

    def apply(params: Any, state: Any, context: Context, key: Array | None) -> LossOut:
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
        return LossOut(value, states, metrics, terms)

    return Objective(init, apply)


def _named(name: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """Calls, and notes on any error in which term it arose."""
    try:
        return function(*arguments)
    except Exception as error:
        error.add_note(f"in the objective {name!r}")
        raise


def _parameters(function: Callable[..., Any]) -> frozenset[str]:
    """The names a function takes; one that takes any name forwards them, so it takes the contract's too."""
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # builtins and some C callables have none to read
        return frozenset()
    forwards = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    return frozenset(parameters) | (frozenset({"where", "axis_name"}) if forwards else frozenset())


def _name(function: Any) -> str:
    inner = getattr(function, "func", function)  # of a functools.partial
    return str(getattr(inner, "__name__", type(inner).__name__))
