"""Objectives on derived outputs: values, and the parameters and state of both."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses, objectives, term
from jaxkd.objectives import lookup, with_derived_outputs
from jaxkd.types import Context, ObjectiveVars

CONTEXT = Context({"f": jnp.arange(6.0).reshape(3, 2)}, {"f": jnp.ones((3, 4))}, {}, jnp.int32(0))


def scaled(objective):
    def make(params, state, context, key):
        new = {"calls": state["calls"] + (key is not None)}
        return {"made/f": params["scale"] * lookup(context, "student/f")}, new

    first = ObjectiveVars({"scale": jnp.float32(2)}, {"calls": jnp.int32(0)})
    return with_derived_outputs(lambda key, context: first, make, objective)


def test_variables_hold_parts_and_objective():
    objective = scaled(objectives.hint("student/made/f", "teacher/f"))
    made = objective.init(jax.random.key(0), CONTEXT)
    assert jax.tree.map(jnp.shape, made.params["objective"]) == {"bias": (4,), "kernel": (2, 4)}
    out = objective.apply(made.params, made.state, CONTEXT, jax.random.key(0))
    kernel = np.asarray(made.params["objective"]["kernel"])
    expected = np.mean((2 * np.arange(6.0).reshape(3, 2) @ kernel - 1) ** 2)
    assert float(out.value) == pytest.approx(expected, rel=1e-5)
    assert out.state == {"parts": {"calls": 1}}
    assert objective.apply(made.params, made.state, CONTEXT, None).state == {"parts": {"calls": 0}}
    slope = jax.grad(lambda p: objective.apply(p, made.state, CONTEXT, None).value)(made.params)
    assert float(slope["parts"]["scale"]) != 0


def test_state_of_the_inner_objective_is_updated():
    crd = objectives.crd_in_batch("student/made/f", "teacher/f", label_path=None, embedding_size=3)
    objective = scaled(
        objectives.combine(
            crd=crd,
            queue=objectives.crd_queue("student/made/f", "teacher/f", queue_size=8, embedding_size=3, label_path=None),
        )
    )
    made = objective.init(jax.random.key(0), CONTEXT)
    out = objective.apply(made.params, made.state, CONTEXT, jax.random.key(0))
    assert jax.tree.structure(out.state) == jax.tree.structure(made.state)
    assert int(out.state["objective"]["queue"]["written"]) == 3
    assert sorted(out.terms) == ["crd", "queue"]


def test_variables_are_empty_without_parameters():
    doubled = with_derived_outputs(
        lambda key, context: ObjectiveVars(),
        lambda p, s, context, key: ({"twice": 2 * lookup(context, "student/f")}, s),
        term(losses.hint_mse, "student/twice", "student/f"),
    )
    assert doubled.init(jax.random.key(0), CONTEXT) == ObjectiveVars({}, {})
    assert float(doubled.apply({}, {}, CONTEXT, None).value) == pytest.approx(np.mean(np.arange(6.0) ** 2))
