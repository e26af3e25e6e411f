"""Data-free learning with a generator that trains beside the student."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd._core import axes, batches
from jaxkd._core.axes import average_over_devices
from jaxkd._core.model_calls import model_batch
from jaxkd._core.train_state import strongly_typed
from jaxkd.schemes.synthesis import _contract, _terms
from jaxkd.schemes.synthesis._contract import IMAGE, LABEL, NOISE, STATISTICS, Synthesis
from jaxkd.types import Array, Batch, Metrics, Model, PyTree, Teacher, Variables


def dafl(
    teacher: Teacher,
    generator: Model,
    optimizer: optax.GradientTransformation,
    *,
    feature: str | None,
    one_hot: float = 1.0,
    activation: float = 0.1,
    entropy: float = 5.0,
    statistics: float = 0.0,
) -> Synthesis:
    """Generator with ``L = mean CE(t, argmax t) − α mean|f_t| + β Σ_c p̄_c log p̄_c``.

    Also known as: DAFL (data-free learning).

    The teacher's prediction t for each image should be certain, its feature f_t large, and its mean prediction p̄
    balanced. Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, equations 3 to 6, whose weights on MNIST
    and CIFAR are the defaults. In each step the generator makes one batch; it takes one update on it, and so does the
    student, as in the authors' code. There the second term has the mean over the feature's entries, as here, where the
    paper has the ℓ1 norm, and the entropy is to base 10, so that its β = 5 is 2.17 here.

    Args:
      teacher: teacher of the student, evaluated in inference mode.
      generator: model from an adapter, with ``inputs="noise"``; its output ``image`` is the networks' normalized input.
        `jaxkd.models.Generator` is one.
      optimizer: any optax transformation, for the generator; the authors use Adam with 0.2 on MNIST and 0.02 on CIFAR.
      feature: name of the teacher's output f_t, such as its pooled feature; None with ``activation=0``.
      one_hot: weight of the first term.
      activation: α.
      entropy: β.
      statistics: weight of the teacher's output ``batch_statistics`` (`jaxkd.wrappers.with_batch_stat_distance`); not
        in the paper.

    Returns:
      A `Synthesis` that makes ``image``, and ``label``, the teacher's argmax. It trains the generator.

    Raises:
      ValueError: a term lacks its feature; from ``init``: the batch lacks an entry, or a model an output.

    >>> import jaxkd
    >>> from jaxkd import adapters
    >>> from jaxkd import adapters
    >>> generator = adapters.plain(lambda key, z: jnp.eye(4), lambda w, z: {"image": z @ w}, inputs="noise")
    >>> model = adapters.plain(lambda key, x: jnp.ones((4, 3)), lambda w, x: x @ w)
    >>> teacher = jaxkd.teachers.frozen(model, Variables(jnp.eye(4, 3)))
    >>> synthesis = dafl(teacher, generator, optax.adam(0.1), feature=None, activation=0.0)
    >>> synthesis.shapes({"noise": jax.ShapeDtypeStruct((8, 4), jnp.float32)})["image"].shape
    (8, 4)
    """
    if activation and feature is None:
        raise ValueError(
            f"dafl, feature: expected the name of a teacher's output for activation={activation}, got None. Tap the "
            "teacher's pooled feature, or omit the term by activation=0."
        )

    def shapes(batch: Batch) -> dict[str, Any]:
        size = _contract.needs("dafl", batch, NOISE)
        return {**_contract.generated(generator, batch), LABEL: jax.ShapeDtypeStruct((size,), jnp.int32)}

    def init(key: Array, batch: Batch, teacher_state: PyTree) -> PyTree:
        names = "logits", *([feature] if feature and activation else []), *([STATISTICS] if statistics else [])
        _contract.teacher_shapes("dafl", teacher, teacher_state, batch, *names)
        made = strongly_typed(generator.init(key, _contract.zeros(batch)))
        return {"generator": made, "optimizer": strongly_typed(optimizer.init(made.params))}

    def apply(
        state: PyTree, batch: Batch, teacher_state: PyTree, student: Variables, *, key: Array, step: Any
    ) -> tuple[Batch, PyTree, Metrics]:
        del student
        size, mask, axis_name = _contract.needs("dafl", batch, NOISE), batches.example_mask(batch), axes.mapped_axis()
        options: dict[str, Any] = {"mask": mask, "axis_name": axis_name}
        old: Variables = state["generator"]

        def loss(params: PyTree) -> tuple[Array, Any]:
            own = _contract.device_key(key, axis_name)
            outputs, new = generator.apply(Variables(params, old.state), batch, key=own, train=True)
            image = _contract.image_of(outputs)
            teacher_outputs = teacher.apply(teacher_state, model_batch({**batch, IMAGE: image}, step), key=None)
            logits = _contract.output_of("dafl", teacher_outputs, "logits")
            label = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            values = {
                "one_hot": _terms.cross_entropy(logits, label, **options),
                "entropy": _terms.information_entropy(logits, **options),
            }
            value = one_hot * values["one_hot"] + entropy * values["entropy"]
            if activation and feature is not None:
                values["activation"] = _terms.activation(
                    _contract.output_of("dafl", teacher_outputs, feature), **options
                )
                value += activation * values["activation"]
            if statistics:
                distance = _contract.output_of("dafl", teacher_outputs, STATISTICS)
                values["statistics"] = _contract.mean_of(distance, mask, axis_name)
                value += statistics * values["statistics"]
            return value, ({IMAGE: image, LABEL: label}, new, values)

        value, (made, new, values), grads = _contract.gradient(loss, old.params, axis_name)
        if axis_name is not None:
            new = average_over_devices(new, axis_name)
        params, opt_state = _contract.updated(optimizer, grads, state["optimizer"], old.params)
        metrics = _contract.reported({"loss": value, **values}, mask, size, axis_name)
        return jax.lax.stop_gradient(made), {"generator": Variables(params, new), "optimizer": opt_state}, metrics

    return Synthesis(shapes, init, apply)
