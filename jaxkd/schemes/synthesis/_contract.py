"""The contract of a synthesizer, and helpers of those in this package."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd._core import checks
from jaxkd._core.axes import average_over_devices, mark_varying
from jaxkd.types import Array, Batch, Mean, Metrics, Model, PyTree, Teacher, Variables

IMAGE, LABEL, NOISE = "image", "label", "noise"
STATISTICS = "batch_statistics"


class Synthesis(NamedTuple):
    """Makes the images on which a student trains.

    Attributes:
      shapes: ``batch -> entries``: from the shapes of a batch, shapes and dtypes of the entries that the synthesizer
        adds.
      init: ``(key, batch, teacher_state) -> state``: parameters and state, from the shapes of a batch with these
        entries.
      apply: ``(state, batch, teacher_state, student, *, key, step) -> (entries, state, metrics)``: the entries of this
        step's batch, without gradients; the updated state; metrics of the whole batch. Under a mapped axis, the batch
        is the device's share, and state, key and metrics are the same on all devices.
    """

    shapes: Callable[..., Mapping[str, Any]]
    init: Callable[..., PyTree]
    apply: Callable[..., tuple[Batch, PyTree, Metrics]]


# --- shared helpers ---------------------------------------------------------------------------------------------------


def zeros(batch: Batch) -> dict[str, Array]:
    """Returns an array of zeros for each shape, for libraries whose init needs values."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(batch))


def needs(caller: str, batch: Batch, *names: str) -> int:
    """Returns the number of examples of a batch; raises unless it has these entries."""
    shapes = {name: checks.shape(x) for name, x in batch.items()}
    hint = "jaxkd.data.Noise yields 'noise', and 'label' if num_classes= is given."
    for name in names:
        checks.known(name, shapes, f"{caller}, batch entry", hint=hint)
    return int(batch[names[0]].shape[0])


def image_of(outputs: Mapping[str, Array]) -> Array:
    """Returns the images among a generator's outputs."""
    shapes = {name: checks.shape(x) for name, x in outputs.items()}
    hint = "Name the generator's output: adapters.linen(..., outputs=lambda x: {'image': x})."
    checks.known(IMAGE, shapes, "generator output", hint=hint)
    return outputs[IMAGE]


def output_of(caller: str, outputs: Mapping[str, Array], name: str) -> Array:
    """Returns one of a teacher's outputs."""
    hint = f"Taps of its adapter add features, wrappers.with_batch_stat_distance adds {STATISTICS!r}."
    checks.known(name, {k: checks.shape(x) for k, x in outputs.items()}, f"{caller}, teacher output", hint=hint)
    return outputs[name]


def teacher_shapes(caller: str, teacher: Teacher, state: PyTree, batch: Batch, *names: str) -> Mapping[str, Any]:
    """Returns the shapes of a teacher's outputs, which include the named ones."""
    outputs = jax.eval_shape(lambda state, batch: teacher.apply(state, batch, key=None), state, dict(batch))
    for name in names:
        output_of(caller, outputs, name)
    return outputs


def generated(generator: Model, batch: Batch) -> Mapping[str, Any]:
    """Returns the shape of a generator's images for a batch."""

    def run(batch: Batch) -> Array:
        key = jax.random.key(0)
        return image_of(generator.apply(generator.init(key, batch), batch, key=key, train=True)[0])

    shape = jax.eval_shape(run, dict(batch))
    if not jnp.issubdtype(shape.dtype, jnp.floating):
        raise ValueError(f"generator, 'image': expected floating point, got {checks.shape(shape)}.")
    return {IMAGE: shape}


def device_key(key: Array, axis_name: str | None) -> Array:
    """Returns a key that differs between devices, for a generator's dropout."""
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def total(x: Array, axis_name: str | None) -> Array:
    """Returns the sum over the devices."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def mean_of(values: Array, mask: Array | None, axis_name: str | None) -> Array:
    """Returns the mean over the unmasked examples of the whole batch, or 0."""
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    count = jnp.asarray(len(values), values.dtype) if mask is None else jnp.sum(mask, dtype=values.dtype)
    values = values if mask is None else jnp.where(mask, values, 0)
    value, count = total(jnp.sum(values), axis_name), total(count, axis_name)
    return value / jnp.where(count > 0, count, 1)


def gradient(
    loss: Callable[[PyTree], tuple[Array, Any]], params: PyTree, axis_name: str | None
) -> tuple[Array, Any, PyTree]:
    """Value, auxiliary result and gradient of a loss of the whole batch.

    The loss has the same value on every device. Each device's gradient is ``num_devices`` times its share of the
    gradient, as the transpose of `psum` adds the cotangents of all devices; so `pmean` gives the gradient of the whole
    batch.
    """

    def device_loss(params: PyTree) -> tuple[Array, Any]:
        value, aux = loss(params)
        return mark_varying(value, axis_name), aux

    (value, aux), grads = jax.value_and_grad(device_loss, has_aux=True)(mark_varying(params, axis_name))
    if axis_name is not None:
        value, grads = average_over_devices((value, grads), axis_name)
    return value, aux, grads


def updated(
    optimizer: optax.GradientTransformation, grads: PyTree, state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """Returns parameters and optimizer state after one update."""
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def reported(values: Mapping[str, Array], mask: Array | None, size: int, axis_name: str | None) -> Metrics:
    """Returns values of the whole batch as metrics, counted by its examples."""
    count = total(jnp.asarray(size, jnp.float32) if mask is None else jnp.sum(mask, dtype=jnp.float32), axis_name)
    fixed = {name: jax.lax.stop_gradient(x).astype(jnp.float32) for name, x in values.items()}
    if axis_name is not None:
        fixed = average_over_devices(fixed, axis_name)
    return {name: Mean(x * count, count) for name, x in fixed.items()}


def with_student(caller: str, weight: float, student: Model | None) -> None:
    """Raises if a term that needs the student has a weight, but no student is given."""
    if weight and student is None:
        raise ValueError(
            f"{caller}: a term that needs the student has a weight of {weight}; give student=, the student's model."
        )


def outputs_of(model: Model, variables: Variables, batch: Batch) -> Mapping[str, Array]:
    """Returns a student's outputs in inference mode, with fixed parameters."""
    return model.apply(jax.lax.stop_gradient(variables), batch, key=None, train=False)[0]
