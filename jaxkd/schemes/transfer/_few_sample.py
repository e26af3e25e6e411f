"""Few-sample distillation: a compressed network, repaired by least squares."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import adapters
from jaxkd import metrics as metrics_lib
from jaxkd._core import axes, batches, checks
from jaxkd._core.model_calls import model_batch
from jaxkd._core.train_state import params_of, shape_of, strongly_typed
from jaxkd._core.tree_paths import by_path
from jaxkd.distillers import step_keys, teacher_outputs
from jaxkd.metrics import join
from jaxkd.types import (
    OBJECTIVE,
    STUDENT,
    Array,
    Batch,
    Context,
    Distiller,
    Mean,
    Metrics,
    Model,
    ObjectiveVars,
    Outputs,
    PyTree,
    Teacher,
    TrainState,
)


class FewSampleLayer(NamedTuple):
    """A convolution or dense layer of the student, fitted to the teacher's output.

    Attributes:
      student: name of the student's output that the layer makes, ``[batch, ..., channels]``, before BatchNorm and
        nonlinearity.
      teacher: name of the teacher's output, of the same size.
      kernel: path of the layer's kernel ``[..., channels]`` in the student's parameters, such as ``"Conv_0/kernel"``.
        Each output channel depends on all input channels: no depthwise or grouped convolution.
      bias: path of the layer's bias ``[channels]``; None for the ``bias`` beside the kernel, if there is one.
      channels: indices of the teacher's channels that the student has; None for all, in their order.
      affine: fits an offset too, which is merged into the bias.
    """

    student: str
    teacher: str
    kernel: str
    bias: str | None = None
    channels: tuple[int, ...] | None = None
    affine: bool = False


def few_sample(
    student: Model,
    teacher: Teacher,
    layers: Mapping[str, FewSampleLayer],
    *,
    steps: int = 1,
    ridge: float = 0.0,
    variables: Any = None,
    metrics: Callable[[Context], Metrics] | Sequence[Callable[[Context], Metrics]] = metrics_lib.classification,
) -> Distiller:
    """Least squares ``min_M Σ ‖X·M − Y‖²`` over examples and positions, by layers.

    Also known as: FSKD (few-sample knowledge distillation).

    Li, Li, Liu & Zhang, "Few Sample Knowledge Distillation for Efficient Network Compression", CVPR 2020, section 3. A
    network that was pruned or decomposed from its teacher has nearly its features, up to a linear map. X and Y are the
    outputs of a layer of the student and of the teacher; M ``[channels, channels]`` is a 1×1 convolution after the
    student's layer, merged into it: ``kernel ← kernel·M`` and ``bias ← bias·M``, plus an offset if fitted. Each layer
    is fitted with the layers before it already repaired. There are no labels and no gradients.

    Each layer is fitted in ``steps`` steps. Every step adds the sums ``XᵀX`` and ``Xᵀ(Y − X)`` of its batch, and the
    last one solves ``M = I + (XᵀX + ridge·diag(XᵀX))⁻¹ Xᵀ(Y − X)``, which is least squares if the ridge is 0.
    Directions that the examples do not determine, as with fewer examples than channels, are left unchanged; the
    authors' code solves for M rather than M − I, and sets them to 0. Both networks run in inference mode, with running
    statistics. Steps after the last layer's change nothing.

    Args:
      student: compressed model with a tap at each layer's output.
      teacher: teacher from `jaxkd.teachers`, usually the frozen original.
      layers: layers by any names, from the input to the output.
      steps: number of batches to which each layer is fitted.
      ridge: ≥ 0, relative to each channel's sum of squares; above 0, M is regularized towards the identity.
      variables: weights of the compressed student, as for `jaxkd.adapters.variables`; None for those of the model's
        ``init``.
      metrics: function of a `Context`, or several, reported by ``evaluate`` beside the residuals.

    Returns:
      A `Distiller`. ``state.objective.state`` are the sums of every layer. Its metrics are ``residual/NAME``, the mean
      square of X − Y of each layer before the step; their sum, ``loss``; and, from ``step``, the number of the current
      layer, ``layer``.

    Raises:
      ValueError: there are no layers, or a number is out of range; from ``init``: an output or a parameter does not
        exist, shapes do not fit, or an offset has no bias to be merged into.

    >>> import jaxkd
    >>> linear = lambda w, x: {"logits": x @ w["kernel"]}
    >>> model = jaxkd.adapters.plain(lambda key, x: {"kernel": jnp.eye(2)}, linear, inputs="x")
    >>> teacher = jaxkd.teachers.frozen(model, jaxkd.Variables({"kernel": jnp.array([[2.0, 1.0], [0.0, 3.0]])}))
    >>> kd = few_sample(model, teacher, {"only": FewSampleLayer("logits", "logits", "kernel")})
    >>> batch = {"x": jnp.array([[1.0, 0.0], [1.0, 2.0], [0.0, 1.0]])}
    >>> state, _ = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)
    >>> bool(jnp.allclose(state.student.params["kernel"], state.teacher.params["kernel"], atol=1e-5))
    True
    """
    checks.contract("few_sample, student", student, Model)
    checks.contract("few_sample, teacher", teacher, Teacher)
    layers = dict(layers)
    _check(layers, steps, ridge)
    initial = None if variables is None else adapters.variables(variables)
    init_student = jax.jit(lambda key, batch: strongly_typed(student.init(key, batch)))

    def outputs_of(state: TrainState, batch: Batch, key: Array | None) -> tuple[Outputs, Outputs]:
        checks.state("few_sample, state", state)
        checks.batch("few_sample, batch", batch)
        taught = teacher_outputs(teacher, state, batch, key)
        return student.apply(state.student, model_batch(batch, state.step, taught), key=None, train=False)[0], taught

    def init(key: Array, batch: Batch) -> TrainState:
        checks.key("init, key", key)
        checks.batch("init, batch", batch)
        run_key, student_key, teacher_key = jax.random.split(key, 3)
        shapes = jax.tree.map(shape_of, dict(batch))
        if initial is None:
            student_variables = init_student(student_key, jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes))
        else:
            student_variables = strongly_typed(jax.tree.map(lambda x: jnp.array(x, copy=True), initial))
        teacher_state = teacher.init(teacher_key, shapes, student_variables)
        opt_state, zero = {STUDENT: (), OBJECTIVE: ()}, jnp.zeros((), jnp.int32)
        state = TrainState(student_variables, teacher_state, ObjectiveVars(), opt_state, zero, run_key)
        outputs = jax.eval_shape(lambda state, batch: outputs_of(state, batch, None), state, shapes)
        sums = {name: _sums(name, layer, student_variables.params, *outputs) for name, layer in layers.items()}
        return state._replace(objective=ObjectiveVars({}, sums))

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        axis_name = axes.mapped_axis()
        outputs = outputs_of(state, batch, step_keys(state, axis_name)[1])
        last = (state.step + 1) % steps == 0

        def fit_of(name: str) -> Callable[..., Any]:
            def fit(params: PyTree, sums: Any) -> tuple[PyTree, Any]:
                own = _add(sums[name], layers[name], outputs, batch, axis_name)
                params = jax.lax.cond(last, lambda p: _fold(p, layers[name], own, ridge), lambda p: p, params)
                return params, {**sums, name: own}

            return fit

        at = jnp.minimum(state.step // steps, len(layers))
        branches = [*map(fit_of, layers), lambda params, sums: (params, sums)]
        params, sums = jax.lax.switch(at, branches, state.student.params, state.objective.state)
        fitted = state.student._replace(params=params)
        reported = metrics_lib.psum(residuals(outputs, batch), axis_name)
        number = Mean(jnp.minimum(at, len(layers) - 1).astype(jnp.float32), jnp.float32(1))
        return state._replace(
            student=fitted,
            teacher=teacher.update(state.teacher, fitted, state.step + 1),
            objective=ObjectiveVars(state.objective.params, sums),
            step=state.step + 1,
        ), {**reported, "layer": number}

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        axis_name = axes.mapped_axis()
        outputs = outputs_of(state, batch, None)
        params = state.student.params, params_of(state.teacher)
        extra = metrics_lib.report(metrics, Context(*outputs, batch, state.step, axis_name, *params))
        return metrics_lib.psum(join(residuals(outputs, batch), extra), axis_name)

    def residuals(outputs: tuple[Outputs, Outputs], batch: Batch) -> Metrics:
        mask = batches.example_mask(batch)
        pairs = {name: _features(layer, *outputs) for name, layer in layers.items()}
        squares = {name: _mean_square(x - y, batch) for name, (x, y) in pairs.items()}
        named = {f"residual/{name}": metrics_lib.from_values(square, mask) for name, square in squares.items()}
        return {"loss": metrics_lib.from_values(sum(squares.values(), jnp.zeros(())), mask), **named}

    return Distiller(init, step, evaluate)


def _features(layer: FewSampleLayer, student: Outputs, teacher: Outputs) -> tuple[Array, Array]:
    """Returns X and Y, in float32 or better."""
    x, y = student[layer.student], teacher[layer.teacher]
    if layer.channels is not None:
        y = y[..., np.array(layer.channels)]
    x, y = (v.astype(jnp.promote_types(v.dtype, jnp.float32)) for v in (x, y))
    return x, y


def _mask(batch: Batch, feature: Array) -> Array | None:
    """Returns the mask of a feature's positions or tokens, ``[batch, ..., 1]``."""
    mask = batches.mask_of_shape(Context({}, {}, batch, 0), feature.shape[:-1])
    return None if mask is None else mask[..., None]


def _mean_square(error: Array, batch: Batch) -> Array:
    """Mean square over each example's unmasked positions and channels ``[batch]``."""
    axes = tuple(range(1, error.ndim))
    mask = _mask(batch, error)
    if mask is None:
        return jnp.mean(error**2, axis=axes)
    mask = jnp.broadcast_to(mask, error.shape)
    return jnp.sum(jnp.where(mask, error**2, 0), axis=axes) / jnp.maximum(jnp.sum(mask, axis=axes), 1)


def _add(
    sums: dict[str, Array],
    layer: FewSampleLayer,
    outputs: tuple[Outputs, Outputs],
    batch: Batch,
    axis_name: str | None,
) -> dict[str, Array]:
    """Returns the sums after one more batch, over all devices."""
    x, y = _features(layer, *outputs)
    r = y - x
    if layer.affine:
        x = jnp.concatenate([x, jnp.ones_like(x[..., :1])], axis=-1)
    where = _mask(batch, x)
    if where is not None:
        x, r = jnp.where(where, x, 0), jnp.where(where, r, 0)
    x, r = x.reshape(-1, x.shape[-1]), r.reshape(-1, r.shape[-1])
    new = {"xx": _product(x.T, x), "xr": _product(x.T, r)}
    if axis_name is not None:
        new = jax.lax.psum(new, axis_name)
    return {name: old + new[name].astype(old.dtype) for name, old in sums.items()}


def _solve(sums: dict[str, Array], ridge: float) -> Array:
    """``(XᵀX + ridge·diag(XᵀX))⁻¹ Xᵀ(Y − X)``, or 0 in directions without data.

    Channels are scaled to unit sum of squares first, so that those of different sizes are solved for with equal
    accuracy. Eigenvalues below the rounding error of the largest one belong to directions without data.
    """
    square = jnp.diagonal(sums["xx"])
    scale = jnp.where(square > 0, jax.lax.rsqrt(jnp.where(square > 0, square, 1)), 0)
    gram, right = scale[:, None] * sums["xx"] * scale[None, :], scale[:, None] * sums["xr"]
    values, vectors = jnp.linalg.eigh(gram)
    least = len(values) * jnp.finfo(gram.dtype).eps * jnp.max(values)
    inverse = jnp.where(values > least, 1 / jnp.where(values > least, values + ridge, 1), 0)

    def solve(right: Array) -> Array:
        return _product(vectors, inverse[:, None] * _product(vectors.T, right))

    solution = solve(right)
    # One step of iterative refinement: XᵀX squares the condition of X, so that rounding errors matter.
    solution += solve(right - _product(gram, solution) - ridge * solution)
    return scale[:, None] * solution


def _fold(params: PyTree, layer: FewSampleLayer, sums: dict[str, Array], ridge: float) -> PyTree:
    """Returns the parameters with M merged into the layer."""
    solution = _solve(sums, ridge)
    channels = solution.shape[1]
    change = solution[:channels]
    named = by_path(params)
    bias = _bias(layer, named)

    def join(old: Array) -> Array:
        old = old.astype(change.dtype)
        return old + _product(old, change)

    new = {layer.kernel: join(named[layer.kernel])}
    if bias is not None:
        new[bias] = join(named[bias]) + (solution[channels] if layer.affine else 0)
    leaves = [new[name].astype(leaf.dtype) if name in new else leaf for name, leaf in named.items()]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)


def _sums(name: str, layer: FewSampleLayer, params: PyTree, student: Outputs, teacher: Outputs) -> dict[str, Array]:
    """Checks a layer against both networks, and returns its initial sums."""
    what = f"few_sample, layer {name!r}"
    for side, tap, outputs in (("student", layer.student, student), ("teacher", layer.teacher, teacher)):
        checks.known(tap, {k: checks.shape(v) for k, v in outputs.items()}, f"{what}, {side} output")
        if len(outputs[tap].shape) < 2 or not jnp.issubdtype(outputs[tap].dtype, jnp.floating):
            raise ValueError(
                f"{what}, {side} output {tap!r}: expected floating-point [batch, ..., channels], got "
                f"{checks.shape(outputs[tap])}."
            )
    if layer.channels is not None and not all(0 <= c < teacher[layer.teacher].shape[-1] for c in layer.channels):
        raise ValueError(
            f"{what}, channels: expected indices of the channels of {checks.shape(teacher[layer.teacher])}, got "
            f"{layer.channels}."
        )
    x, y = jax.eval_shape(lambda *outputs: _features(layer, *outputs), student, teacher)
    if x.shape != y.shape:
        raise ValueError(
            f"{what}: expected outputs of one shape, got {list(x.shape)} for the student and {list(y.shape)} for the "
            "teacher. Name the teacher's channels that the student has by channels=."
        )
    named = by_path(params)
    shapes = {k: checks.shape(v) for k, v in named.items()}
    width = x.shape[-1]
    checks.known(layer.kernel, shapes, f"{what}, kernel")
    if layer.bias is not None:
        checks.known(layer.bias, shapes, f"{what}, bias")
    bias = _bias(layer, named)
    for part, path in (("kernel", layer.kernel), ("bias", bias)):
        if path is not None and (not named[path].shape or named[path].shape[-1] != width):
            raise ValueError(
                f"{what}, {part} {path!r}: expected [..., {width}], as its output has, got {shapes[path]}."
            )
    if layer.affine and bias is None:
        raise ValueError(
            f"{what}, affine: the layer has no bias into which an offset could be merged. Give bias=, or affine=False."
        )
    rows = width + layer.affine
    return {"xx": jnp.zeros((rows, rows), x.dtype), "xr": jnp.zeros((rows, width), x.dtype)}


def _bias(layer: FewSampleLayer, named: Mapping[str, Any]) -> str | None:
    """Returns the path of the layer's bias: as given, or beside the kernel."""
    if layer.bias is not None:
        return layer.bias
    parent, slash, _ = layer.kernel.rpartition("/")
    return f"{parent}{slash}bias" if f"{parent}{slash}bias" in named else None


def _check(layers: Mapping[str, FewSampleLayer], steps: int, ridge: float) -> None:
    if not layers:
        raise ValueError("few_sample, layers: expected at least one FewSampleLayer by name, got none.")
    kernels = [layer.kernel for layer in layers.values()]
    if twice := sorted({kernel for kernel in kernels if kernels.count(kernel) > 1}):
        raise ValueError(f"few_sample, layers: {', '.join(map(repr, twice))} is the kernel of more than one layer.")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"few_sample, steps: expected at least 1 for each layer, got {steps}.")
    if not ridge >= 0 or ridge == float("inf"):
        raise ValueError(f"few_sample, ridge: expected a number of at least 0, got {ridge}.")
