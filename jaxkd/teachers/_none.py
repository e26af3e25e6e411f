"""No teacher: supervised training in the same loop."""

from __future__ import annotations

from typing import Any

from jaxkd.types import Array, Batch, Outputs, PyTree, Teacher, Variables


def none() -> Teacher:
    """A teacher without outputs: `jaxkd.distill` becomes supervised training.

    Returns:
      A `Teacher` whose state is empty. `Distiller.init` raises for an objective that reads ``teacher/...``.

    >>> none().apply({}, {"image": None}, key=None)
    {}
    """

    def init(key: Array | None, batch: Batch, student: Variables | None) -> PyTree:
        del key, batch, student
        return {}

    def apply(state: PyTree, batch: Batch, *, key: Array | None) -> Outputs:
        del state, batch, key
        return {}

    def update(state: PyTree, student: Variables, step: Any) -> PyTree:
        del student, step
        return state

    return Teacher(init, apply, update)
