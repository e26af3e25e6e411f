"""Hyperparameters of every loss: a wrong number or kind is a ValueError that names it; a traced number passes."""

import inspect
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests.loss_row import discrete
from tests.loss_table import ROWS

#: parameters with a default that are arrays, masks or names
OTHERS = {"where", "axis_name", "vocabulary_axis", "labels", "segments", "student_bias", "teacher_bias", "weights"}
OTHERS |= {"transposed", "constant_norm"}
#: numbers that the program depends on: no traced number, and where None is no default an integer or a float
STATIC = {"soft_cap", "chunk", "blank", "background", "list_size", "order", "rank", "pool", "max_window", "heads"}
SIGNED = {("bounded_regression", "margin")}


def hyperparameters(row):
    parameters = inspect.signature(row.loss).parameters.values()
    keywords = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name not in OTHERS}
    return {name: default for name, default in keywords.items() if not name.endswith("where")}


PAIRS = [(row, name, default) for row in ROWS for name, default in hyperparameters(row).items()]
each_pair = pytest.mark.parametrize(("row", "name", "default"), PAIRS, ids=[f"{row}-{name}" for row, name, _ in PAIRS])


def abstract(row):
    kinds = [(bool if a.dtype == bool else jnp.int32) if discrete(a) else jnp.float32 for a in row.inputs()]
    return [jax.ShapeDtypeStruct(a.shape, kind) for a, kind in zip(row.inputs(), kinds, strict=True)]


def usual(row, name):
    """The row's own value of a required hyperparameter."""
    required = {
        key: next(hyper[key] for hyper in row.hyper if key in hyper)
        for key, default in hyperparameters(row).items()
        if default is inspect.Parameter.empty and key != name and any(key in hyper for hyper in row.hyper)
    }
    return row.hyper[0] | required


def refused(row, name, value):
    options = {**usual(row, name), name: value}
    with pytest.raises(ValueError) as error:
        jax.eval_shape(lambda *arrays: row.function(*arrays, **options), *abstract(row))
    assert re.search(rf"\b{name}\b.*expected.*got", str(error.value), re.DOTALL), str(error.value)


@each_pair
def test_wrong_hyperparameters(row, name, default):
    wrong = [np.nan, np.inf, "4", True, {}, 1j, np.ones((7, 2)), jnp.float32(np.nan), np.array(False)]
    if (row.name, name) not in SIGNED:
        wrong += [-1, -0.5, np.float32(-2)]
    if "temperature" in name:
        wrong += [0, 0.0, jnp.zeros(())]
    if default is not None:
        wrong.append(None)
    for value in wrong:
        refused(row, name, value)


@each_pair
def test_traced_hyperparameters(row, name, default):
    """A schedule of the step passes; a number that the program depends on says that it has to be known."""
    static = name in STATIC or (row.name.startswith("linear") and name in ("alpha", "beta"))

    def loss(number, *arrays):
        return row.function(*arrays, **{**usual(row, name), name: number})

    number = jax.ShapeDtypeStruct((), jnp.float32)
    if static:
        with pytest.raises(ValueError, match=rf"{name}: expected.*known while tracing"):
            jax.eval_shape(loss, number, *abstract(row))
    else:
        jax.eval_shape(loss, number, *abstract(row))


@pytest.mark.parametrize(
    "weights", [np.nan, "12", True, (1.0,), (1.0, np.nan), (1.0, "2"), (True, 1.0), np.ones((2, 1))]
)
def test_wrong_weights_of_voters(weights):
    features = jnp.ones((3, 2))
    with pytest.raises(ValueError, match=r"weights: expected a number that is not negative for each of 2 .*got"):
        losses.voted_dissimilarity(features, (features, features), weights=weights)


def test_the_losses_have_hyperparameters():
    assert len({row.name for row, _, _ in PAIRS}) > 20


@pytest.mark.parametrize("value", [np.nan, "1", True, None, np.ones(2)], ids=repr)
def test_wrong_hyperparameters_of_helpers(value):
    with pytest.raises(ValueError, match=r"scale: expected a (finite number|scalar).*got"):
        losses.reverse_gradient(jnp.ones(3), value)
    with pytest.raises(ValueError, match=r"sweeps: expected.*got"):
        losses.combined_logits(jnp.ones((2, 3, 4)), jnp.zeros(3, int), sweeps=value)
    with pytest.raises(ValueError, match=r"threshold: expected a (number from 0 to 1|scalar).*got"):
        losses.imitation_mask(jnp.ones((2, 2, 1, 4)), jnp.ones((1, 1, 4)), threshold=value)
    with pytest.raises(ValueError, match=r"rank: expected 1 to.*got"):
        losses.singular_directions(jnp.ones((1, 2, 2, 2)), value)
