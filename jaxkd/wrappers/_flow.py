"""Knowledge flow: teacher features mixed into a student's layers in training.

In training, chosen submodules of the student return a weighted sum of their own output and of teacher features. The
weights are learned, and a schedule removes the teachers: where it is 0, outputs and gradients equal those of the plain
student bit for bit, and the mixing parameters get no gradient. `extract_student` then extracts the plain student.

How it works. A linen method interceptor replaces the output of each mixed submodule as the student's forward pass calls
it. At ``init``, another interceptor records the shapes of all submodules' outputs, from which the maps get theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import batches, checks
from jaxkd._core.model_calls import Inputs, add_outputs, normalize, pick_call
from jaxkd.adapters import linen
from jaxkd.types import STEP, TAUGHT, Array, Batch, Model, Outputs, PyTree, Variables

STUDENT, FLOW = "student", "flow"


class FlowEdge(NamedTuple):
    """Teacher features that are mixed into one submodule of the student.

    Attributes:
      path: the submodule, such as ``"ResNetStage_1"``; ``"name#1"`` selects one call of a submodule with several.
      teachers: the teacher's outputs to mix in, such as ``("stage2",)``, or ``("a/stage2", "b/stage2")`` of an
        ensemble.
      student_weight: initial weight of the student's own output, between 0 and 1; by default all weights are equal.
    """

    path: str
    teachers: Sequence[str]
    student_weight: float | None = None


def with_flow(
    module: nn.Module,
    mixes: Mapping[str, FlowEdge],
    schedule: float | Callable[[Any], Any],
    *,
    taps: Mapping[str, str] | None = None,
    inputs: Inputs = "image",
    outputs: Callable[[Any], Any] | None = None,
) -> Model:
    """Mixes teacher features into the layers of a Flax linen student.

    ``h' = (1 − λ(1 − s₀)) h + λ Σ_k s_k Q_k f_k``, where h is a submodule's output, f_k are the teachers' features, ``s
    = softmax(w)`` their weights, s₀ the student's own weight, and Q_k a linear map of the features (for feature maps, a
    1×1 convolution). Liu, Peng & Schwing, "Knowledge Flow: Improve Upon Your Teachers", ICLR 2019, section 3:
    normalized weights over the student's layer and the teachers', learned transformations, and a dependence loss,
    ``−log s₀`` summed over the layers, whose weight rises until the student no longer depends on its teachers. λ is an
    addition of this library: the paper ends with a weight s₀ of nearly 1, so that removing the teachers changes the
    outputs slightly; a schedule that ends at 0 makes the removal exact. With a constant 1 it is the paper's mixing
    alone.

    A feature map of another size than the student's is resized by averages over ⌊iH/h⌋ to ⌈(i+1)H/h⌉, which repeat the
    positions of a smaller one. A vector is a map of one position.

    The features are read from ``batch["teacher"]``, where every step and evaluation of `jaxkd.distill` puts them, and
    the step from ``batch["step"]``. ``init`` of a plain `jaxkd.distill` has no teacher outputs; use
    `jaxkd.schemes.knowledge_flow`, which provides them.

    Args:
      module: the unbound student. Outputs of nnx submodules cannot be replaced.
      mixes: the features to mix in, by names of your choice.
      schedule: λ from 0 to 1, an optax schedule of the step or a number.
      taps: names for submodules' outputs, as for `jaxkd.adapters.linen`. A tap of a mixed layer is h'.
      inputs: entries of the batch that the module is called with.
      outputs: function from the module's result to a mapping of names to arrays.

    Returns:
      A `Model` with ``Variables({"student": ..., "flow": {name: {"weights": w, "maps": [Q_1, ...]}}}, state)``. Its
      additional outputs ``[batch]`` repeat one value for all examples: ``dependence``, the mean of λ (1 − s₀) over the
      mixes; ``dependence/NAME``, that of each mix; and ``dependence_loss``, ``−Σ log s₀``, which is 0 where λ is 0.

    Raises:
      TypeError: the module is not a linen module.
      ValueError: there are no mixes, or a name, path, weight or schedule is invalid. ``init`` and ``apply`` raise it if
        the batch has no teacher outputs, a path or feature does not exist (the message lists those that do), or a
        feature does not fit the layer's shape.

    >>> module = nn.Sequential([nn.Dense(4), nn.relu, nn.Dense(2)])
    >>> student = with_flow(module, {"hidden": FlowEdge("layers_0", ["f"])}, 1.0, inputs="x")
    >>> batch = {"x": jnp.ones((3, 5)), "teacher": {"f": jnp.ones((3, 7))}}
    >>> variables = student.init(jax.random.key(0), batch)
    >>> jax.tree.map(jnp.shape, variables.params["flow"])
    {'hidden': {'maps': [(7, 4)], 'weights': (2,)}}
    >>> student.apply(variables, batch, key=None, train=False)[0]["dependence"]
    Array([0.5, 0.5, 0.5], dtype=float32)
    """
    _check(module, mixes, schedule)
    plain = linen(module, taps=taps, inputs=inputs, outputs=outputs)
    where = {name: normalize(mix.path) for name, mix in mixes.items()}

    def init(key: Array, batch: Batch) -> Variables:
        teacher = _teacher_outputs(batch)
        variables = plain.init(key, batch)
        layers: dict[str, Any] = {}
        with nn.intercept_methods(_recording(layers)):
            jax.eval_shape(lambda v, b: plain.apply(v, b, key=None, train=False)[0], variables, dict(batch))
        params: dict[str, Any] = {}
        for i, (name, mix) in enumerate(mixes.items()):
            layer = _layer(name, *where[name], layers)
            maps = []
            for k, feature in enumerate(mix.teachers):
                _check_feature(name, layer.shape, feature, teacher)
                own_key = jax.random.fold_in(jax.random.fold_in(key, i + 1), k)
                shape = (teacher[feature].shape[-1], layer.shape[-1])
                maps.append(jax.nn.initializers.lecun_normal()(own_key, shape, jnp.float32))
            share = 1 / (1 + len(maps)) if mix.student_weight is None else mix.student_weight
            first = math.log(share * len(maps) / (1 - share))  # softmax([first, 0, ..., 0])[0] == share
            params[name] = {"weights": jnp.zeros(1 + len(maps), jnp.float32).at[0].set(first), "maps": maps}
        return Variables({STUDENT: variables.params, FLOW: params}, variables.state)

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        step = batch.get(STEP, 0)
        rate = jnp.asarray(schedule(step) if callable(schedule) else schedule, jnp.float32)
        log_shares = {
            name: jax.nn.log_softmax(own["weights"].astype(jnp.float32)) for name, own in variables.params[FLOW].items()
        }
        teacher, mask = _teacher_outputs(batch), batches.example_mask(batch)
        calls: dict[str, int] = {}
        mixed: set[str] = set()

        def mixing(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
            result = next_fun(*args, **kwargs)
            if context.method_name == "__call__":
                path = "/".join(context.module.path)
                call = calls[path] = calls.get(path, -1) + 1
                for name in (name for name, (at, number) in where.items() if at == path and (number or 0) == call):
                    features = _features(name, mixes[name], teacher, mask, result)
                    maps = variables.params[FLOW][name]["maps"]
                    result = _mixed(result, features, maps, jnp.exp(log_shares[name]), rate)
                    mixed.add(name)
            return result

        with nn.intercept_methods(mixing):
            student = Variables(variables.params[STUDENT], variables.state)
            plain_outputs, state = plain.apply(student, batch, key=key, train=train)
        if missing := [name for name in mixes if name not in mixed]:
            raise ValueError(f"with_flow: the submodules of the mixes {missing} were not called in this forward pass.")
        return _with_dependence(plain_outputs, log_shares, rate, batches.batch_size(batch)), state

    return Model(init, apply)


def extract_student(variables: Variables) -> Variables:
    """Extracts the plain student's variables from those of a `with_flow`.

    ``jaxkd.adapters.linen`` of the same module, with the same arguments, takes them. It computes the same outputs as
    the flow where the schedule is 0.

    Args:
      variables: variables of a trained `with_flow`, such as ``state.student``.

    Returns:
      `Variables` without the mixing parameters.

    Raises:
      ValueError: the variables are not those of a flow.

    >>> extract_student(Variables({"student": {"w": 1}, "flow": {}}, {"mean": 0}))
    Variables(params={'w': 1}, state={'mean': 0})
    """
    params = variables.params
    if not isinstance(params, Mapping) or set(params) != {STUDENT, FLOW}:
        got = sorted(params) if isinstance(params, Mapping) else type(params).__name__
        raise ValueError(
            f"extract_student: expected the variables of a flow, {{'student': ..., 'flow': ...}}, got {got}."
        )
    return Variables(params[STUDENT], variables.state)


def _check(module: Any, mixes: Mapping[str, FlowEdge], schedule: Any) -> None:
    if not isinstance(module, nn.Module):
        raise TypeError(
            "with_flow: expected a Flax linen module, whose submodules' outputs can be replaced, got "
            f"{type(module).__name__}."
        )
    if not mixes:
        raise ValueError("with_flow, mixes: expected at least one Mix by name, got none.")
    seen: dict[Any, str] = {}
    for name, mix in mixes.items():
        path, call = normalize(mix.path)
        if not path or not mix.teachers or isinstance(mix.teachers, str):
            raise ValueError(
                f"with_flow, mix {name!r}: expected the path of a submodule and a sequence of teacher outputs, got "
                f"{mix}."
            )
        if (path, call or 0) in seen:
            raise ValueError(
                f"with_flow, mix {name!r}: {mix.path!r} is mixed by {seen[path, call or 0]!r} already; one Mix takes "
                "several teachers."
            )
        seen[path, call or 0] = name
        if mix.student_weight is not None and not 0 < mix.student_weight < 1:
            raise ValueError(
                f"with_flow, mix {name!r}, student_weight: expected a weight between 0 and 1, got {mix.student_weight}."
            )
    if not callable(schedule) and not isinstance(schedule, jax.core.Tracer) and not 0 <= schedule <= 1:
        raise ValueError(
            f"with_flow, schedule: expected a number from 0 to 1 or a schedule of the step, got {schedule}."
        )


def _teacher_outputs(batch: Batch) -> Outputs:
    if TAUGHT not in batch:
        raise ValueError(
            "with_flow: expected the teacher's outputs in batch['teacher'], got a batch without. Use "
            "jaxkd.schemes.knowledge_flow; without a teacher, run the plain module with extract_student(variables)."
        )
    outputs: Outputs = batch[TAUGHT]
    return outputs


def _recording(layers: dict[str, Any]) -> Any:
    """Builds an interceptor that records the shapes of every submodule's outputs."""

    def interceptor(next_fun: Any, args: Any, kwargs: Any, context: Any) -> Any:
        result = next_fun(*args, **kwargs)
        if context.method_name == "__call__" and context.module.path:
            shape = jax.ShapeDtypeStruct(result.shape, result.dtype) if hasattr(result, "shape") else result
            layers.setdefault("/".join(context.module.path), []).append(shape)
        return result

    return interceptor


def _layer(name: str, path: str, call: int | None, layers: Mapping[str, Any]) -> Any:
    """Returns the checked shape of the layer that a mix replaces."""
    layer = pick_call(f"with_flow, mix {name!r}", path, call, layers)
    if not hasattr(layer, "shape") or not jnp.issubdtype(layer.dtype, jnp.floating) or len(layer.shape) < 2:
        raise ValueError(
            f"with_flow, mix {name!r}: expected {path!r} to return one array [batch, ..., features], got "
            f"{checks.shape(layer)}."
        )
    return layer


def _check_feature(name: str, layer: tuple[int, ...], feature: str, teacher: Outputs) -> None:
    """Raises unless a feature exists and fits the layer's positions.

    Feature maps and vectors are pooled to each other's positions; features of other ranks need the layer's positions.
    """
    checks.known(feature, checks.shapes(teacher), f"with_flow, mix {name!r}, teacher output")
    given = teacher[feature]
    shape = given.shape
    pooled = len(layer) in (2, 4) and len(shape) in (2, 4)
    same = len(shape) == len(layer) and shape[1:-1] == layer[1:-1]
    if not jnp.issubdtype(given.dtype, jnp.floating) or shape[:1] != layer[:1] or not (pooled or same):
        raise ValueError(
            f"with_flow, mix {name!r}: expected a feature of the layer's examples and positions, {list(layer)} except "
            f"for the last dimension, or maps and vectors; got {checks.shape(given)} for the teacher's {feature!r}."
        )


def _features(name: str, mix: FlowEdge, teacher: Outputs, mask: Array | None, layer: Array) -> Iterator[Array]:
    """Yields teacher features at the layer's size, zero for masked examples."""
    for feature in mix.teachers:
        _check_feature(name, layer.shape, feature, teacher)
        x = jnp.asarray(teacher[feature])
        if mask is not None:
            x = jnp.where(jnp.expand_dims(mask, tuple(range(1, x.ndim))), x, 0)
        yield _resized(x.astype(jnp.promote_types(x.dtype, layer.dtype)), layer.shape)


def _resized(x: Array, layer: tuple[int, ...]) -> Array:
    if x.ndim == len(layer) and x.shape[1:-1] == layer[1:-1]:
        return x
    x = x if x.ndim == 4 else x[:, None, None, :]
    height, width = layer[1:3] if len(layer) == 4 else (1, 1)
    rows, columns = _windows(x.shape[1], height, x.dtype), _windows(x.shape[2], width, x.dtype)
    precision = jax.lax.Precision.HIGHEST
    x = jnp.einsum("ia,jc,nacf->nijf", rows, columns, x, precision=precision)
    return x if len(layer) == 4 else x[:, 0, 0]


def _windows(size: int, target: int, dtype: Any) -> Array:
    """Returns ``[target, size]``, whose row i averages from ⌊iH/h⌋ to ⌈(i+1)H/h⌉."""
    at = np.arange(target)[:, None]
    inside = (np.arange(size) >= at * size // target) & (np.arange(size) < -(-(at + 1) * size // target))
    return jnp.asarray(inside / inside.sum(axis=1, keepdims=True), dtype)


def _mixed(layer: Array, features: Iterator[Array], maps: Sequence[Array], shares: Array, rate: Array) -> Array:
    """Computes h'; where λ is 0, it returns h and stops all other gradients."""
    on = rate > 0  # features are zeroed before the product: NaN features would reach gradients through `where`
    result = (1 - rate * (1 - shares[0])).astype(layer.dtype) * layer
    for k, (feature, kernel) in enumerate(zip(features, maps, strict=True)):
        dtype = jnp.promote_types(feature.dtype, kernel.dtype)
        mapped = jnp.where(on, feature, 0).astype(dtype) @ kernel.astype(dtype)
        result = result + ((rate * shares[k + 1]).astype(dtype) * mapped).astype(layer.dtype)
    return jnp.where(on, result, layer)


def _with_dependence(outputs: Outputs, log_shares: Mapping[str, Array], rate: Array, size: int) -> Outputs:
    # −expm1(log s₀) computes 1 − s₀ without cancellation for s₀ near 1.
    each = {f"dependence/{name}": -rate * jnp.expm1(log_share[0]) for name, log_share in log_shares.items()}
    loss = -sum(log_share[0] for log_share in log_shares.values())
    mean = sum(each.values()) / len(each)
    more = {"dependence": mean, **each, "dependence_loss": jnp.where(rate > 0, loss, 0)}
    return add_outputs("with_flow", outputs, {name: jnp.broadcast_to(value, (size,)) for name, value in more.items()})
