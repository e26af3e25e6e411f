"""Outputs computed from a model's other outputs, such as logits of some classes.

Teachers of different classes of one task are compared with a student class by class. `select_classes` gives the student
the logits of each teacher's classes, so that a term compares two arrays of one shape. `expand_classes` gives such a
teacher logits of all classes, so that `jaxkd.teachers.ensemble` can average several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks
from jaxkd._core.model_calls import add_outputs
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables


def with_outputs(model: Model, **computed: Callable[[Outputs], Array]) -> Model:
    """Adds outputs to a model, each a function of its other outputs.

    Args:
      model: model from an adapter.
      **computed: functions of the model's outputs, by the name of the new output.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: there are no functions; ``apply`` raises it if the model already has an output of that name.

    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: jnp.eye(2), lambda w, x: x @ w, inputs="x")
    >>> model = with_outputs(linear, negated=lambda outputs: -outputs["logits"])
    >>> model.apply(Variables(jnp.eye(2)), {"x": jnp.ones((1, 2))}, key=None, train=False)[0]["negated"]
    Array([[-1., -1.]], dtype=float32)
    """
    checks.contract("with_outputs, model", model, Model)
    if not computed:
        raise ValueError("with_outputs: expected at least one output, name=lambda outputs: ..., got none.")

    def extended(outputs: Outputs) -> Outputs:
        return add_outputs("with_outputs", outputs, {name: function(outputs) for name, function in computed.items()})

    return _mapped(model, extended)


def select_classes(model: Model, classes: Mapping[str, Sequence[int]], *, output: str = "logits") -> Model:
    """Adds the logits of subsets of the classes as outputs.

    The softmax of a subset's logits is the model's distribution given that the class is in the subset, so that
    ``term(losses.soft_target_kl, "student/of_a", "teacher/a/logits")`` compares student and teacher a on the classes of
    teacher a. The term does not determine the total probability of the subset: labels or other teachers have to.
    Vongkulbhisal, Vinayavekhin & Visentini-Scarzanella, "Unifying Heterogeneous Classifiers with Distillation", CVPR
    2019.

    Args:
      model: model from an adapter.
      classes: the classes of each new output by its name, in the teacher's order.
      output: the logits ``[..., classes]`` to select from.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: a list of classes is empty or names one twice. ``apply`` raises it if the model lacks a class or the
        output, or already has an output of that name.

    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: jnp.eye(3), lambda w, x: x @ w, inputs="x")
    >>> model = select_classes(linear, {"of_a": [2, 0]})
    >>> model.apply(Variables(jnp.eye(3)), {"x": jnp.arange(3.0)[None]}, key=None, train=False)[0]["of_a"]
    Array([[2., 0.]], dtype=float32)
    """
    checks.contract("select_classes, model", model, Model)
    chosen = {name: _classes(f"select_classes, {name!r}", these) for name, these in classes.items()}
    if not chosen:
        raise ValueError("select_classes: expected at least one list of classes by name, got none.")

    def selected(outputs: Outputs) -> Outputs:
        checks.known(output, checks.shapes(outputs), "select_classes, model output")
        logits = jnp.asarray(outputs[output])
        for name, these in chosen.items():
            if these.max() >= logits.shape[-1]:
                raise ValueError(
                    f"select_classes, {name!r}: expected classes below the {logits.shape[-1]} of {output!r}, got "
                    f"{these.max()}."
                )
        return add_outputs("select_classes", outputs, {name: logits[..., these] for name, these in chosen.items()})

    return _mapped(model, selected)


def expand_classes(
    model: Model, classes: Sequence[int], num_classes: int, *, output: str = "logits", name: str = "known"
) -> Model:
    """Expands logits of some classes to all, with −∞ for the other classes.

    It serves ensembles of teachers of different classes: ``teachers.ensemble({"a": frozen(expand_classes(model, [0, 1],
    5), variables), ...}, average=teachers.average_probabilities(T))``. The averaged probabilities then cover all
    classes, and a member's weight is the total probability of its classes. (The average of logits would be −∞ for
    nearly all classes.) The output ``name`` keeps the logits of the model's own classes, for terms with
    `select_classes`. For `jaxkd.metrics.per_teacher` an example of an unknown class is an error, with an infinite
    ``nll``.

    Args:
      model: model from an adapter.
      classes: the class of each of the model's logits.
      num_classes: the number of all classes.
      output: the logits ``[..., classes]``, which are replaced by ``[..., total]``.
      name: name of the output that keeps the model's own logits.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: a class is named twice or is not below the total. ``apply`` raises it if the model has another number
        of classes, has no such output, or already has an output called ``name``.

    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: jnp.eye(2), lambda w, x: x @ w, inputs="x")
    >>> outputs, _ = expand_classes(linear, [2, 0], 4).apply(
    ...     Variables(jnp.eye(2)), {"x": jnp.array([[5.0, 7.0]])}, key=None, train=False
    ... )
    >>> outputs["logits"], outputs["known"]
    (Array([[  7., -inf,   5., -inf]], dtype=float32), Array([[5., 7.]], dtype=float32))
    """
    checks.contract("expand_classes, model", model, Model)
    these = _classes("expand_classes, classes", classes)
    if these.max() >= num_classes:
        raise ValueError(
            f"expand_classes, classes: expected classes below the total of {num_classes}, got {these.max()}."
        )

    def expanded(outputs: Outputs) -> Outputs:
        checks.known(output, checks.shapes(outputs), "expand_classes, model output")
        logits = jnp.asarray(outputs[output])
        if logits.shape[-1] != len(these):
            raise ValueError(
                f"expand_classes: expected logits of {len(these)} classes at {output!r}, one for each of classes=, got "
                f"{checks.shape(logits)}."
            )
        whole = jnp.full((*logits.shape[:-1], num_classes), -jnp.inf, logits.dtype).at[..., these].set(logits)
        return {**add_outputs("expand_classes", outputs, {name: logits}), output: whole}

    return _mapped(model, expanded)


def _mapped(model: Model, function: Callable[[Outputs], Outputs]) -> Model:
    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(variables, batch, key=key, train=train)
        return function(outputs), state

    return Model(model.init, apply)


def _classes(what: str, classes: Sequence[int]) -> np.ndarray:
    """Returns checked class numbers as an array of indices."""
    indices = np.asarray(classes)
    valid = indices.ndim == 1 and indices.size and np.issubdtype(indices.dtype, np.integer) and (indices >= 0).all()
    if not valid or len(np.unique(indices)) != indices.size:
        raise ValueError(f"{what}: expected different class numbers, at least one, got {indices.tolist()}.")
    return indices
