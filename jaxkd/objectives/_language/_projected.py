"""Linear maps of student features to the teacher's size, shared within groups."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax

from jaxkd._core import checks
from jaxkd._core.batches import lookup
from jaxkd.objectives._compose import replace
from jaxkd.objectives._projection import with_projection
from jaxkd.objectives._tokens import mask_feature
from jaxkd.objectives.layers import dense, dense_init
from jaxkd.types import Array, Context, Objective, ObjectiveVars


class Pair(NamedTuple):
    """A student's feature, the teacher's feature, and the path of the mapped one."""

    student: str
    teacher: str
    mapped: str


def projected(groups: Mapping[str, Sequence[Pair]], loss: Objective) -> Objective:
    """Applies an objective to student features behind one linear map for each group.

    The map has a bias. A group whose sizes agree has none, and is compared directly.
    """

    def init(key: Array, context: Context) -> ObjectiveVars:
        params = {}
        for number, (name, pairs) in enumerate(groups.items()):
            sizes = {path: lookup(context, path).shape[-1:] for pair in pairs for path in pair[:2]}
            first = pairs[0]
            wrong = [
                p for p in pairs if (sizes[p.student], sizes[p.teacher]) != (sizes[first.student], sizes[first.teacher])
            ]
            if wrong or () in sizes.values():
                given = {path: checks.shape(lookup(context, path)) for path in sizes}
                raise ValueError(f"{name}: expected features of one size for each network, got {given}.")
            if sizes[first.student] != sizes[first.teacher]:
                params[name] = dense_init(
                    jax.random.fold_in(key, number), sizes[first.student][0], sizes[first.teacher][0]
                )
        return ObjectiveVars(params)

    def change(params: Any, state: Any, context: Context, key: Array | None) -> tuple[Context, Any]:
        del key
        mapped = {}
        for name, pairs in groups.items():
            for pair in pairs:
                x = lookup(context, pair.student)
                # Padding must not reach the map's gradient.
                mapped[pair.mapped] = dense(params[name], mask_feature(context, x)) if name in params else x
        return replace(context, mapped), state

    return with_projection(init, change, loss)
