"""A mistake is a ValueError at trace time, of the argument, what was expected and what came. Nothing broadcasts."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.loss_row import discrete
from tests.loss_runs import cast
from tests.loss_table import BY_NAME, PER_EXAMPLE, RELATIONAL, ROWS

CASES = [
    pytest.param(row, name, shapes, id=f"{row}-{name}-{shapes}") for row in ROWS for name, shapes in row.mismatches
]
RANK_CASES = [
    pytest.param(row, name, shapes, id=f"{row}-{name}-{shapes}") for row in ROWS for name, shapes in row.ranks
]


def abstract(row, shapes):
    """The shapes with the dtypes that the row takes."""
    kinds = [(bool if a.dtype == bool else jnp.int32) if discrete(a) else jnp.float32 for a in row.inputs()]
    return [jax.ShapeDtypeStruct(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]


def message(function, *arguments, eager=False, **options):
    """Of the ValueError, which tracing raises as running does."""
    with pytest.raises(ValueError) as traced:
        jax.eval_shape(lambda *arrays: function(*arrays, **options), *arguments)
    if not eager:
        return str(traced.value)
    concrete = [jnp.ones(a.shape, a.dtype) for a in arguments]
    with pytest.raises(ValueError) as run:
        function(*concrete, **options)
    assert str(traced.value) == str(run.value)
    return str(run.value)


def mentions(text, shape):
    """The shape, as a tuple or a list would print it."""
    return re.search(r"[\[(]" + r",\s*".join(map(str, shape)) + r",?[\])]", text) is not None


@pytest.mark.parametrize("row, name, shapes", CASES)
def test_shapes_that_do_not_go_together(row, name, shapes):
    text = message(row.function, *abstract(row, shapes), eager=(name, shapes) == row.mismatches[0])
    assert re.search(rf"\b{name}\b", text), text
    came = shapes[row.parameters.index(name)]
    if row.call:  # of several arrays of one argument, any
        assert any(mentions(text, shape) for shape in shapes), text
    elif came and came[0] != shapes[0][0] and "batch" in text:  # then the two batches are enough to say
        assert re.search(rf"expected.*\b{shapes[0][0]}\b.*got.*\b{came[0]}\b", text), text
    else:
        assert mentions(text, came), f"what came is not in: {text}"
        assert re.search(rf"expected.*\b{shapes[0][0]}\b", text), f"what was expected is not in: {text}"


@pytest.mark.parametrize("row, name, shapes", RANK_CASES)
def test_ranks_that_are_too_low(row, name, shapes):
    text = message(row.function, *abstract(row, shapes))
    assert re.search(rf"\b{name}\b", text), text
    assert any(mentions(text, shape) for shape in shapes), text


@pytest.mark.parametrize("row", PER_EXAMPLE, ids=str)
def test_a_mask_of_another_shape(row):
    arrays = abstract(row, row.shapes[0])
    right = row.result_shape(row.inputs())
    for shape in ((), (1,), (*right[:-1], right[-1] + 1), (*right, 1), (1, *right)):
        text = message(row.function, *arrays, where=jnp.ones(shape, bool))
        assert re.search(r"\bwhere\b", text), text
        assert mentions(text, shape), f"what came is not in: {text}"
        assert mentions(text, right), f"what was expected is not in: {text}"


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.float32, jnp.uint8], ids=str)
@pytest.mark.parametrize("row", PER_EXAMPLE, ids=str)
def test_a_mask_that_is_no_bool(row, dtype):
    """Weights look like a mask and are none; ~ of an integer is not `not`."""
    text = message(row.function, *abstract(row, row.shapes[0]), where=jnp.ones(row.result_shape(row.inputs()), dtype))
    assert re.search(r"\bwhere\b", text), text
    assert "bool" in text, text
    assert jnp.dtype(dtype).name in text, text


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.bool, jnp.complex64], ids=["int32", "bool", "complex64"])
@pytest.mark.parametrize("row", ROWS, ids=str)
def test_what_has_no_gradient_is_no_logit_and_no_feature(row, dtype):
    """The labels in the place of the logits, an image of uint8 in that of a feature."""
    for position in row.floating(row.inputs()):
        arrays = abstract(row, row.shapes[0])
        arrays[position] = jax.ShapeDtypeStruct(arrays[position].shape, dtype)
        text = message(row.function, *arrays)
        assert re.search(rf"\b{row.parameters[position]}\b", text), text
        assert jnp.dtype(dtype).name in text, text
        assert "float" in text, text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bool], ids=["float32", "bool"])
def test_labels_that_are_no_integers(dtype):
    """One-hot labels in the shape of indices, or weights."""
    arrays = [jax.ShapeDtypeStruct((4, 10), jnp.float32), jax.ShapeDtypeStruct((4,), dtype)]
    text = message(BY_NAME["cross_entropy"].function, *arrays)
    assert re.search(r"\blabels\b", text), text
    assert "integer" in text, text
    assert jnp.dtype(dtype).name in text, text


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, np.nan, np.float32(-4), np.array(-2.0)], ids=repr)
def test_a_temperature_that_is_not_positive(temperature):
    row = BY_NAME["soft_target_kl"]
    text = message(row.function, *abstract(row, row.shapes[0]), temperature=temperature)
    assert re.search(r"\btemperature\b", text), text
    assert "positive" in text, text
    assert str(temperature) in text, text


@pytest.mark.parametrize("p", [0, -2.0])
def test_a_power_that_is_not_positive(p):
    row = BY_NAME["attention_transfer"]
    text = message(row.function, *abstract(row, row.shapes[0]), p=p)
    assert re.search(rf"\bp\b.*positive.*{p}", text), text


@pytest.mark.parametrize("row", [row for row in PER_EXAMPLE if not row.call], ids=str)
def test_hyperparameters_are_keyword_only(row):
    """A third positional argument is a mistake that must not become a temperature or a mask."""
    with pytest.raises(TypeError):
        row.function(*row.inputs(), np.ones(row.result_shape(row.inputs()), bool))


@pytest.mark.parametrize("row", RELATIONAL, ids=str)
def test_an_axis_that_is_not_there(row):
    with pytest.raises(NameError, match="devices"):
        row.function(*cast(row.inputs(), jnp.float32), axis_name="devices")
