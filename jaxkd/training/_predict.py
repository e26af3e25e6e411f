"""Outputs of a trained model over a whole input: `predict`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from jaxkd._core import batches, checks
from jaxkd.training._arguments import check_input
from jaxkd.training._inputs import Input
from jaxkd.types import Model, Variables


def predict(model: Model, variables: Variables, data: Input) -> Iterator[dict[str, np.ndarray]]:
    """Yields a model's outputs in inference mode, batch by batch, without padding.

    Args:
      model: model from an adapter, such as the student.
      variables: its variables, such as ``state.student``.
      data: an input. One pass is made over it, ``steps_per_epoch`` batches in its order; `jaxkd.data.Resident` and
        `jaxkd.data.Stream` keep the order of their set with ``shuffle=False``.

    Yields:
      The outputs of each batch by name, with one row for each example that the batch's ``mask`` includes.

    Raises:
      TypeError: ``data`` is not an input, or ``model`` not a model.
      ValueError: an output has no row for each example.

    >>> import jaxkd
    >>> from jaxkd import data
    >>> mean = jaxkd.adapters.plain(lambda key, x: {}, lambda w, x: x.reshape(len(x), -1).mean(1, keepdims=True))
    >>> test = data.Resident(data.load("digits", "test"), batch_size=256, shuffle=False)
    >>> [outputs["logits"].shape for outputs in predict(mean, jaxkd.Variables({}), test)]
    [(256, 1), (144, 1)]
    """
    checks.contract("predict, model", model, Model)
    check_input(data, "data")

    @jax.jit
    def apply(variables: Variables, batch: Any) -> Any:
        outputs = model.apply(variables, batch, key=None, train=False)[0]
        return outputs, batches.example_mask(batch)

    def outputs_of(batch: Any) -> dict[str, np.ndarray]:
        outputs, mask = jax.device_get(apply(variables, batch))
        size = batches.batch_size(batch)
        if wrong := {name: x.shape for name, x in outputs.items() if x.shape[:1] != (size,)}:
            raise ValueError(f"predict: expected outputs with a row for each of {size} examples, got {wrong}.")
        return {name: x if mask is None else x[mask] for name, x in outputs.items()}

    return map(outputs_of, itertools.islice(data.batches(), data.steps_per_epoch))
