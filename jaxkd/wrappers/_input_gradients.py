"""Gradients of a model's logits by its input as outputs, for Jacobian matching.

The gradient comes from the same forward pass as the logits and costs one backward pass through the model. A loss on
it, such as `jaxkd.losses.jacobian_matching`, is differentiated through that backward pass (second order).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd._core import batches, checks
from jaxkd._core.axes import data_axis, positions
from jaxkd._core.model_calls import add_outputs
from jaxkd.types import POSITION, STEP, TAUGHT, Array, Batch, Model, Outputs, PyTree, Variables


def with_input_gradient(
    model: Model,
    *,
    class_path: str | None = None,
    input: str = "image",
    output: str = "logits",
    name: str = "input_gradient",
) -> Model:
    """Adds ``∇ₓ z_c``, the gradient of one logit per example by the input.

    Srinivas & Fleuret, "Knowledge Transfer with Jacobian Matching", ICML 2018, section 4: of all classes only the one
    that the teacher predicts is matched. In training mode a BatchNorm couples the examples of a batch; the gradient is
    then that of the sum over the unmasked examples on all devices.

    Args:
      model: model from an adapter.
      class_path: path of the classes c: None for the class that the model itself predicts (a teacher),
        ``"teacher/logits"`` for the class that the teacher predicts (its student), ``"batch/label"`` for integer
        labels.
      input: the floating-point entry of the batch to differentiate by.
      output: the output to differentiate, ``[batch, classes]``.
      name: name of the new output, which has the shape of the input.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: ``apply`` raises it if the input is not floating point, if there is no such entry or output, or if the
        model already has an output of that name.

    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> model = with_input_gradient(linear, input="x")
    >>> weights = Variables(jnp.arange(6.0).reshape(2, 3))
    >>> model.apply(weights, {"x": jnp.ones((1, 2))}, key=None, train=False)[0]["input_gradient"]
    Array([[2., 5.]], dtype=float32)
    """
    checks.contract("with_input_gradient, model", model, Model)

    def cotangent(logits: Array, batch: Batch) -> Array:
        if class_path is None:
            chosen = jnp.argmax(logits, axis=-1)
        else:
            root, _, key = class_path.partition("/")
            checks.known(root, ("teacher", "batch"), f"with_input_gradient(class_path={class_path!r}), root")
            entries = batch.get(TAUGHT, {}) if root == "teacher" else batch
            checks.known(key, list(entries), f"with_input_gradient(class_path={class_path!r}), {root} entry")
            chosen = entries[key]
            chosen = chosen if jnp.issubdtype(chosen.dtype, jnp.integer) else jnp.argmax(chosen, axis=-1)
        return jax.nn.one_hot(chosen, logits.shape[-1], dtype=logits.dtype)

    return _with_gradient(model, cotangent, input, output, name)


def with_projected_input_gradient(
    model: Model,
    *,
    seed: int = 0,
    input: str = "image",
    output: str = "logits",
    name: str = "input_gradient",
) -> Model:
    """Adds ``∇ₓ ⟨v, z⟩`` for random directions v ~ N(0, I) in the logit space.

    This is a random projection of the Jacobian: in expectation over v, matching it matches all rows, at the cost of one
    backward pass. v depends on the seed, the step and the example's position in the batch, so a student and a teacher
    wrapped with the same seed have the same directions in each step, on any number of devices.

    Args:
      model: model from an adapter.
      seed: seed of the directions.
      input: the floating-point entry of the batch to differentiate by.
      output: the output to differentiate, ``[batch, classes]``.
      name: name of the new output, which has the shape of the input.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: as for `with_input_gradient`.

    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> model = with_projected_input_gradient(linear, input="x")
    >>> outputs, _ = model.apply(Variables(jnp.ones((2, 3))), {"x": jnp.ones((4, 2))}, key=None, train=False)
    >>> outputs["input_gradient"].shape
    (4, 2)
    """
    checks.contract("with_projected_input_gradient, model", model, Model)

    def cotangent(logits: Array, batch: Batch) -> Array:
        key = jax.random.fold_in(jax.random.key(seed), batch.get(STEP, 0))
        places = batch.get(POSITION)
        if places is None:
            places = positions(batches.example_mask(batch), logits.shape[0], data_axis())
        keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(places)
        # Drawn in float32 for every dtype: a bfloat16 teacher and a float32 student need the same directions.
        directions = jax.vmap(lambda k: jax.random.normal(k, logits.shape[1:], jnp.float32))(keys)
        return directions.astype(logits.dtype)

    return _with_gradient(model, cotangent, input, output, name)


def _with_gradient(
    model: Model, cotangent: Callable[[Array, Batch], Array], input: str, output: str, name: str
) -> Model:
    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        checks.known(input, list(batch), "with_input_gradient, batch entry")
        x = jnp.asarray(batch[input])
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise ValueError(
                f"batch[{input!r}]: expected floating-point inputs to differentiate by, got {checks.shape(x)}. Scale "
                "images before the step, with jaxkd.distillers.preprocess."
            )

        def forward(x: Array) -> tuple[Array, Any]:
            outputs, state = model.apply(variables, {**batch, input: x}, key=key, train=train)
            checks.known(output, list(outputs), "with_input_gradient, model output")
            return outputs[output], (outputs, state)

        logits, pullback, (outputs, state) = jax.vjp(forward, x, has_aux=True)
        direction, mask = jax.lax.stop_gradient(cotangent(logits, batch)), batches.example_mask(batch)
        if mask is not None:  # a BatchNorm would couple the gradients of padding and of the other examples
            direction = jnp.where(jnp.expand_dims(mask, tuple(range(1, direction.ndim))), direction, 0)
        (gradient,) = pullback(direction)
        return add_outputs("with_input_gradient", outputs, {name: gradient}), state

    return Model(model.init, apply)
