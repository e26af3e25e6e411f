"""A model with outputs that are computed from its others: features of features, logits of some of the classes.

Teachers that know different classes of one task are compared with a student class by class. `select_classes` gives the
student the logits of the classes that each of them knows, so that a term compares two arrays of one shape.
`place_classes` gives such a teacher logits of all classes, so that `jaxkd.teachers.ensemble` can average several.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jaxkd import checks
from jaxkd.types import Array, Batch, Model, Outputs, PyTree, Variables

__all__ = ["place_classes", "select_classes", "with_outputs"]


def with_outputs(model: Model, **computed: Callable[[Outputs], Array]) -> Model:
    """The same model with more outputs, each a function of those it has.

    Args:
      model: from an adapter.
      **computed: functions of the model's own outputs, by the name of the new one.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: there are none; and when it is applied: the model has an output of that name.

    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: jnp.eye(2), lambda w, x: x @ w, inputs="x")
    >>> model = with_outputs(linear, negated=lambda outputs: -outputs["logits"])
    >>> model.apply(Variables(jnp.eye(2)), {"x": jnp.ones((1, 2))}, key=None, train=False)[0]["negated"]
    Array([[-1., -1.]], dtype=float32)
    """
    if not computed:
        raise ValueError("with_outputs: expected at least one output, name=lambda outputs: ..., got none.")
    return _extended(
        model, lambda outputs: {name: function(outputs) for name, function in computed.items()}, "with_outputs"
    )


def select_classes(model: Model, classes: Mapping[str, Sequence[int]], *, output: str = "logits") -> Model:
    """The same model with the logits of some classes as outputs of their own.

    A softmax of them is the model's distribution given that the class is one of these, so that
    ``term(losses.soft_target_kl, "student/of_a", "teacher/a/logits")`` compares what both say of the classes that the
    teacher a knows. It leaves open how likely the others are: labels or other teachers have to say so. Vongkulbhisal,
    Vinayavekhin & Visentini-Scarzanella, "Unifying Heterogeneous Classifiers with Distillation", CVPR 2019.

    Args:
      model: from an adapter.
      classes: by the name of the new output: the classes, in the order in which the teacher has them.
      output: the logits ``[..., classes]`` that they are taken of.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: a list of classes is empty or names one twice; and when it is applied: a class is not among the
        model's, there is no such output, or the model has an output of that name.

    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: jnp.eye(3), lambda w, x: x @ w, inputs="x")
    >>> model = select_classes(linear, {"of_a": [2, 0]})
    >>> model.apply(Variables(jnp.eye(3)), {"x": jnp.arange(3.0)[None]}, key=None, train=False)[0]["of_a"]
    Array([[2., 0.]], dtype=float32)
    """
    chosen = {name: _classes(f"select_classes, {name!r}", these) for name, these in classes.items()}
    if not chosen:
        raise ValueError("select_classes: expected at least one list of classes by name, got none.")

    def selected(outputs: Outputs) -> dict[str, Array]:
        checks.known(output, _shapes(outputs), "select_classes, model output")
        logits = jnp.asarray(outputs[output])
        for name, these in chosen.items():
            if these.max() >= logits.shape[-1]:
                raise ValueError(
                    f"select_classes, {name!r}: expected classes below the {logits.shape[-1]} of {output!r}, got "
                    f"{these.max()}."
                )
        return {name: logits[..., these] for name, these in chosen.items()}

    return _extended(model, selected, "select_classes")


def place_classes(
    model: Model, classes: Sequence[int], total: int, *, output: str = "logits", name: str = "known"
) -> Model:
    """The same model with logits of all classes: −∞, a probability of 0, for those that it does not know.

    For teachers of some classes each, as members of one ensemble: ``teachers.ensemble({"a": frozen(place_classes(model,
    [0, 1], 5), variables), ...}, average=teachers.average_probabilities(T))``. Averaged probabilities are then those of
    all classes, and a member's weight is the share of its classes. (The average of logits would be −∞ nearly
    everywhere.) What the model says of its own classes stays there as ``name``, for terms with `select_classes`. To
    `jaxkd.training.metrics.per_teacher` an example of an unknown class is a mistake, with an infinite ``nll``.

    Args:
      model: from an adapter.
      classes: which class each of its logits is of.
      total: the number of all classes.
      output: the logits ``[..., classes]``, which get the new shape ``[..., total]``.
      name: of the output that keeps them as they are.

    Returns:
      A `Model` with the same variables.

    Raises:
      ValueError: a class is named twice or is not below the total; and when it is applied: the model has another number
        of classes, no such output, or an output of that name.

    >>> from jaxkd import adapters
    >>> linear = adapters.plain(lambda key, x: jnp.eye(2), lambda w, x: x @ w, inputs="x")
    >>> outputs, _ = place_classes(linear, [2, 0], 4).apply(
    ...     Variables(jnp.eye(2)), {"x": jnp.array([[5.0, 7.0]])}, key=None, train=False
    ... )
    >>> outputs["logits"], outputs["known"]
    (Array([[  7., -inf,   5., -inf]], dtype=float32), Array([[5., 7.]], dtype=float32))
    """
    these = _classes("place_classes, classes", classes)
    if these.max() >= total:
        raise ValueError(f"place_classes, classes: expected classes below the total of {total}, got {these.max()}.")

    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(variables, batch, key=key, train=train)
        checks.known(output, _shapes(outputs), "place_classes, model output")
        if name in outputs:
            raise ValueError(f"place_classes: {name!r} is an output of the model already; give another name=.")
        logits = jnp.asarray(outputs[output])
        if logits.shape[-1] != len(these):
            raise ValueError(
                f"place_classes: expected logits of {len(these)} classes at {output!r}, as classes= says, got "
                f"{checks.shape(logits)}."
            )
        whole = jnp.full((*logits.shape[:-1], total), -jnp.inf, logits.dtype).at[..., these].set(logits)
        return {**outputs, output: whole, name: logits}, state

    return Model(model.init, apply)


def _extended(model: Model, computed: Callable[[Outputs], Mapping[str, Array]], what: str) -> Model:
    def apply(variables: Variables, batch: Batch, *, key: Array | None, train: bool) -> tuple[Outputs, PyTree]:
        outputs, state = model.apply(variables, batch, key=key, train=train)
        more = computed(outputs)
        if twice := sorted(outputs.keys() & more.keys()):
            raise ValueError(
                f"{what}: {', '.join(map(repr, twice))} is an output of the model already; give it another name."
            )
        return {**outputs, **more}, state

    return Model(model.init, apply)


def _classes(what: str, classes: Sequence[int]) -> np.ndarray:
    """Checked, as the indices that they are."""
    found = np.asarray(classes)
    valid = found.ndim == 1 and found.size and np.issubdtype(found.dtype, np.integer) and (found >= 0).all()
    if not valid or len(np.unique(found)) != found.size:
        raise ValueError(f"{what}: expected different class numbers, at least one, got {found.tolist()}.")
    return found


def _shapes(outputs: Outputs) -> dict[str, str]:
    return {name: checks.shape(value) for name, value in outputs.items()}
