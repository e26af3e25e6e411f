"""What `jaxkd.schemes.data_free` asks of a synthesiser, and what those of this package share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from jaxkd import checks
from jaxkd.training.distill import average, varying
from jaxkd.types import Array, Batch, Mean, Metrics, Model, PyTree, Variables

__all__ = ["Synthesis", "given"]

IMAGE, LABEL, NOISE = "image", "label", "noise"


class Synthesis(NamedTuple):
    """Makes the images that a student is trained on, and learns to.

    Attributes:
      shapes: ``batch -> entries``: the shapes and dtypes of the batch entries that it makes, from those of a batch.
      init: ``(key, batch, teacher_state) -> state``: what it learns and remembers, from the shapes of a batch, those of
        its own entries included.
      apply: ``(state, batch, teacher_state, student, *, key, step) -> (entries, state, metrics)``: the entries of this
        step's batch, without a gradient; the state after it has learned; and metrics of the whole batch. Under a mapped
        axis the state is the same on every device, as are key and metrics, and the batch is this device's share.
    """

    shapes: Callable[..., Mapping[str, Any]]
    init: Callable[..., PyTree]
    apply: Callable[..., tuple[Batch, PyTree, Metrics]]


def given() -> Synthesis:
    """The batch's own images: data-free distillation with the data, which is `jaxkd.distill` as it is.

    >>> given().apply({}, {"image": 1}, None, None, key=None, step=0)
    ({}, {}, {})
    """
    return Synthesis(lambda batch: {}, lambda key, batch, teacher: {}, lambda state, *rest, key, step: ({}, state, {}))


# --- what the others share --------------------------------------------------------------------------------------------


def zeros(batch: Batch) -> dict[str, Array]:
    """An array of zeros for each shape, for a library whose init insists on values."""
    return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), dict(batch))


def needs(who: str, batch: Batch, *names: str) -> int:
    """The number of examples in a batch that has these entries.

    Raises:
      ValueError: one is missing; the message lists what there is.
    """
    shapes = {name: checks.shape(x) for name, x in batch.items()}
    for name in names:
        checks.known(
            name, shapes, f"{who}, batch entry", hint="jaxkd.data.Noise gives 'noise', and 'label' by classes=."
        )
    return int(batch[names[0]].shape[0])


def image_of(outputs: Mapping[str, Array]) -> Array:
    """The images among a generator's outputs.

    Raises:
      ValueError: there are none.
    """
    shapes = {name: checks.shape(x) for name, x in outputs.items()}
    hint = "Name what the generator returns: adapters.linen(..., outputs=lambda x: {'image': x})."
    checks.known(IMAGE, shapes, "generator output", hint=hint)
    return outputs[IMAGE]


def output_of(who: str, outputs: Mapping[str, Array], name: str, hint: str = "") -> Array:
    """One of a teacher's outputs.

    Raises:
      ValueError: there is no such output.
    """
    checks.known(name, {k: checks.shape(x) for k, x in outputs.items()}, f"{who}, teacher output", hint=hint)
    return outputs[name]


def generated(generator: Model, batch: Batch) -> Mapping[str, Any]:
    """The shape of what a generator makes of a batch.

    Raises:
      ValueError: it makes no floating-point images.
    """

    def run(batch: Batch) -> Array:
        key = jax.random.key(0)
        return image_of(generator.apply(generator.init(key, batch), batch, key=key, train=True)[0])

    shape = jax.eval_shape(run, dict(batch))
    if not jnp.issubdtype(shape.dtype, jnp.floating):
        raise ValueError(f"generator, 'image': expected floating point, got {checks.shape(shape)}.")
    return {IMAGE: shape}


def device_key(key: Array, axis_name: str | None) -> Array:
    """For a generator's own draws (dropout): another key on each device, as for a student."""
    return key if axis_name is None else jax.random.fold_in(key, jax.lax.axis_index(axis_name))


def total(x: Array, axis_name: str | None) -> Array:
    """The sum over the devices."""
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def mean_of(values: Array, mask: Array | None, axis_name: str | None) -> Array:
    """The mean over the examples of the whole batch that count; 0 if none does."""
    values = values.astype(jnp.promote_types(values.dtype, jnp.float32))
    count = jnp.asarray(len(values), values.dtype) if mask is None else jnp.sum(mask, dtype=values.dtype)
    values = values if mask is None else jnp.where(mask, values, 0)
    whole, count = total(jnp.sum(values), axis_name), total(count, axis_name)
    return whole / jnp.where(count > 0, count, 1)


def gradient(
    loss: Callable[[PyTree], tuple[Array, Any]], params: PyTree, axis_name: str | None
) -> tuple[Array, Any, PyTree]:
    """Value, auxiliary result and gradient of a loss that is the whole batch's, the same number on every device.

    A device's gradient is that of the sum of all devices' numbers by way of its own examples: so many times its share
    of the gradient as there are devices. The mean over the devices is therefore the gradient by all examples.
    """

    def seen(params: PyTree) -> tuple[Array, Any]:
        value, aux = loss(params)
        return varying(value, axis_name), aux

    (value, aux), grads = jax.value_and_grad(seen, has_aux=True)(varying(params, axis_name))
    if axis_name is not None:
        value, grads = average((value, grads), axis_name)
    return value, aux, grads


def updated(
    optimizer: optax.GradientTransformation, grads: PyTree, state: PyTree, params: PyTree
) -> tuple[PyTree, PyTree]:
    """Parameters and optimizer state after one update."""
    updates, state = optimizer.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def reported(values: Mapping[str, Array], mask: Array | None, size: int, axis_name: str | None) -> Metrics:
    """Values of the whole batch as metrics, counted by its examples."""
    count = total(jnp.asarray(size, jnp.float32) if mask is None else jnp.sum(mask, dtype=jnp.float32), axis_name)
    found = {name: jax.lax.stop_gradient(x).astype(jnp.float32) for name, x in values.items()}
    if axis_name is not None:
        found = average(found, axis_name)
    return {name: Mean(x * count, count) for name, x in found.items()}


def with_student(who: str, weight: float, student: Model | None) -> None:
    """Raises unless a term that asks the student has one.

    Raises:
      ValueError: the weight is not 0, and there is no student.
    """
    if weight and student is None:
        raise ValueError(
            f"{who}: a term with the student has a weight of {weight}; give student=, the student's model."
        )


def outputs_of(model: Model, variables: Variables, batch: Batch) -> Mapping[str, Array]:
    """A student's outputs in inference mode, with its parameters fixed."""
    return model.apply(jax.lax.stop_gradient(variables), batch, key=None, train=False)[0]
