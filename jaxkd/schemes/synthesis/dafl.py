"""DAFL: a generator that learns what the teacher takes for data."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax

from jaxkd import adapters, checks
from jaxkd.schemes.synthesis import terms
from jaxkd.schemes.synthesis.contract import (
    IMAGE,
    LABEL,
    NOISE,
    Synthesis,
    device_key,
    generated,
    gradient,
    image_of,
    needs,
    output_of,
    reported,
    updated,
    zeros,
)
from jaxkd.training.distill import average, strong
from jaxkd.types import Array, Batch, Metrics, Model, PyTree, Teacher, Variables

__all__ = ["dafl"]


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
    """Data-free learning: a generator trained to please the teacher, at the same time as the student.

    ``L = mean CE(t, argmax t) − α mean|f_t| + β Σ_c p̄_c log p̄_c``: the teacher is to be sure of each image, its
    feature f_t to be active, and its mean prediction p̄ to have all classes. Chen et al., "Data-Free Learning of Student
    Networks", ICCV 2019, equations 3 to 6, whose weights on MNIST and CIFAR are the defaults. In each step the
    generator makes one batch, on which it makes one update and the student another, as in the authors' code. Where
    that code and the paper differ, see `jaxkd.schemes.synthesis.terms`. Its entropy is to base 10, so that its β = 5
    is 2.17 here.

    Args:
      teacher: the one that is distilled; it is asked in inference mode, and stays as it is.
      generator: from an adapter, with ``inputs="noise"``; its output ``image`` is what the networks are given, that is
        normalised. `jaxkd.models.vision.generator.Generator` is one.
      optimizer: any optax transformation, for the generator; the authors use Adam with 0.2 on MNIST, 0.02 on CIFAR.
      feature: the teacher's output that is to be active, such as its pooled feature; None, with ``activation=0``, for
        none.
      one_hot: the weight of the first term.
      activation: α.
      entropy: β.
      statistics: the weight of the teacher's output ``batch_statistics``, of `jaxkd.adapters.with_batch_statistics`;
        not in the paper.

    Returns:
      A `Synthesis` that makes ``image``, and ``label``, the teacher's choice. It learns the generator's parameters.

    Raises:
      ValueError: there is no feature for a term that needs it; and from ``init``, if the batch or an output lacks
        something.

    >>> import jaxkd
    >>> generator = adapters.plain(lambda key, z: jnp.eye(4), lambda w, z: {"image": z @ w}, inputs="noise")
    >>> model = adapters.plain(lambda key, x: jnp.ones((4, 3)), lambda w, x: x @ w)
    >>> teacher = jaxkd.teachers.frozen(model, Variables(jnp.eye(4, 3)))
    >>> synthesis = dafl(teacher, generator, optax.adam(0.1), feature=None, activation=0.0)
    >>> synthesis.shapes({"noise": jax.ShapeDtypeStruct((8, 4), jnp.float32)})["image"].shape
    (8, 4)
    """
    if activation and feature is None:
        raise ValueError(
            f"dafl, feature: expected the name of a teacher's output, for a weight of {activation}, got None. Tap the "
            "teacher's pooled feature, or leave the term out with activation=0."
        )

    def shapes(batch: Batch) -> dict[str, Any]:
        size = needs("dafl", batch, NOISE)
        return {**generated(generator, batch), LABEL: jax.ShapeDtypeStruct((size,), jnp.int32)}

    def init(key: Array, batch: Batch, teacher_state: PyTree) -> PyTree:
        taught = jax.eval_shape(lambda state, batch: teacher.apply(state, batch, key=None), teacher_state, dict(batch))
        for name in _wanted():
            output_of("dafl", taught, name, _HINT)
        made = strong(generator.init(key, zeros(batch)))
        return {"generator": made, "optimizer": strong(optimizer.init(made.params))}

    def apply(
        state: PyTree, batch: Batch, teacher_state: PyTree, student: Variables, *, key: Array, step: Any
    ) -> tuple[Batch, PyTree, Metrics]:
        del student
        size, mask, axis_name = needs("dafl", batch, NOISE), checks.example_mask(batch), adapters.mapped_axis()
        options: dict[str, Any] = {"mask": mask, "axis_name": axis_name}
        old: Variables = state["generator"]

        def loss(params: PyTree) -> tuple[Array, Any]:
            own = device_key(key, axis_name)
            outputs, new = generator.apply(Variables(params, old.state), batch, key=own, train=True)
            image = image_of(outputs)
            taught = teacher.apply(teacher_state, {**batch, IMAGE: image, "step": step}, key=None)
            logits = output_of("dafl", taught, "logits")
            label = jnp.argmax(logits, axis=-1).astype(jnp.int32)
            found = {
                "one_hot": terms.cross_entropy(logits, label, **options),
                "entropy": terms.information_entropy(logits, **options),
            }
            value = one_hot * found["one_hot"] + entropy * found["entropy"]
            if activation and feature is not None:
                found["activation"] = terms.activation(output_of("dafl", taught, feature), **options)
                value += activation * found["activation"]
            if statistics:
                found["statistics"] = terms.mean_of(output_of("dafl", taught, _STATISTICS, _HINT), mask, axis_name)
                value += statistics * found["statistics"]
            return value, ({IMAGE: image, LABEL: label}, new, found)

        value, (made, new, found), grads = gradient(loss, old.params, axis_name)
        if axis_name is not None:
            new = average(new, axis_name)
        params, opt_state = updated(optimizer, grads, state["optimizer"], old.params)
        metrics = reported({"loss": value, **found}, mask, size, axis_name)
        return jax.lax.stop_gradient(made), {"generator": Variables(params, new), "optimizer": opt_state}, metrics

    def _wanted() -> list[str]:
        extra = [feature] if activation and feature is not None else []
        return ["logits", *extra, *([_STATISTICS] if statistics else [])]

    return Synthesis(shapes, init, apply)


_STATISTICS = "batch_statistics"
_HINT = "Features come from the taps of its adapter, 'batch_statistics' from adapters.with_batch_statistics."
