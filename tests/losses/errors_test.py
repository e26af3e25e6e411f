"""A wrong argument is a ValueError at trace time that says what was expected and what came. Nothing broadcasts."""

import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.loss_row import discrete
from tests.loss_runs import cast
from tests.loss_table import BY_NAME, PER_EXAMPLE, RELATIONAL, ROWS, each


def abstract(row, shapes):
    """The shapes with the dtypes that the row takes."""
    kinds = [(bool if a.dtype == bool else jnp.int32) if discrete(a) else jnp.float32 for a in row.inputs()]
    return [jax.ShapeDtypeStruct(shape, kind) for shape, kind in zip(shapes, kinds, strict=True)]


def message(function, *arguments, eager=False, **options):
    """Returns the message of the ValueError, which has to be the same traced and eager."""
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


@each([row for row in ROWS if row.mismatches])
def test_mismatched_shapes(row):
    for name, shapes in row.mismatches:
        check_mismatch(row, name, shapes)


def check_mismatch(row, name, shapes):
    text = message(row.function, *abstract(row, shapes), eager=(name, shapes) == row.mismatches[0])
    assert re.search(rf"\b{name}\b", text), text
    came = shapes[row.parameters.index(name)]
    if row.call:  # one argument has several arrays
        assert any(mentions(text, shape) for shape in shapes), text
    elif came and came[0] != shapes[0][0] and "batch" in text:  # naming the two batch sizes is enough
        assert re.search(rf"expected.*\b{shapes[0][0]}\b.*got.*\b{came[0]}\b", text), text
    else:
        assert mentions(text, came), f"what came is not in: {text}"
        assert re.search(rf"expected.*\b{shapes[0][0]}\b", text), f"what was expected is not in: {text}"


@each([row for row in ROWS if row.ranks])
def test_too_low_ranks(row):
    for name, shapes in row.ranks:
        text = message(row.function, *abstract(row, shapes))
        assert re.search(rf"\b{name}\b", text), text
        assert any(mentions(text, shape) for shape in shapes), text


@each(PER_EXAMPLE)
def test_mask_of_another_shape(row):
    arrays = abstract(row, row.shapes[0])
    right = row.result_shape(row.inputs())
    for shape in ((), (1,), (*right[:-1], right[-1] + 1), (*right, 1), (1, *right)):
        text = message(row.function, *arrays, where=jnp.ones(shape, bool))
        assert re.search(r"\bwhere\b", text), text
        assert mentions(text, shape), f"what came is not in: {text}"
        assert mentions(text, right), f"what was expected is not in: {text}"


@each(PER_EXAMPLE)
def test_mask_that_is_not_boolean(row):
    """Weights are not a mask, and ~ of an integer is not `not`."""
    for dtype in (jnp.int32, jnp.float32, jnp.uint8):
        where = jnp.ones(row.result_shape(row.inputs()), dtype)
        text = message(row.function, *abstract(row, row.shapes[0]), where=where)
        assert re.search(r"\bwhere\b", text), text
        assert "bool" in text, text
        assert jnp.dtype(dtype).name in text, text


@each()
def test_logits_and_features_that_are_not_floating_point(row):
    """Such as labels instead of logits, or an image of uint8 instead of a feature."""
    dtypes = (jnp.int32, jnp.bool, jnp.complex64)
    for position, dtype in itertools.product(row.floating(row.inputs()), dtypes):
        arrays = abstract(row, row.shapes[0])
        arrays[position] = jax.ShapeDtypeStruct(arrays[position].shape, dtype)
        text = message(row.function, *arrays)
        assert re.search(rf"\b{row.parameters[position]}\b", text), text
        assert jnp.dtype(dtype).name in text, text
        assert "float" in text, text


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bool], ids=["float32", "bool"])
def test_labels_that_are_not_integers(dtype):
    arrays = [jax.ShapeDtypeStruct((4, 10), jnp.float32), jax.ShapeDtypeStruct((4,), dtype)]
    text = message(BY_NAME["cross_entropy"].function, *arrays)
    assert re.search(r"\blabels\b", text), text
    assert "integer" in text, text
    assert jnp.dtype(dtype).name in text, text


@pytest.mark.parametrize("temperature", [0, 0.0, -1.0, np.nan, np.float32(-4), np.array(-2.0)], ids=repr)
def test_temperature_that_is_not_positive(temperature):
    row = BY_NAME["soft_target_kl"]
    text = message(row.function, *abstract(row, row.shapes[0]), temperature=temperature)
    assert re.search(r"\btemperature\b", text), text
    assert "positive" in text, text
    assert str(temperature) in text, text


@pytest.mark.parametrize("p", [0, -2.0])
def test_power_that_is_not_positive(p):
    row = BY_NAME["attention_transfer"]
    text = message(row.function, *abstract(row, row.shapes[0]), p=p)
    assert re.search(rf"\bp\b.*positive.*{p}", text), text


@each([row for row in PER_EXAMPLE if not row.call])
def test_hyperparameters_are_keyword_only(row):
    """A third positional argument must not become a temperature or a mask."""
    with pytest.raises(TypeError):
        row.function(*row.inputs(), np.ones(row.result_shape(row.inputs()), bool))


@each(RELATIONAL)
def test_unknown_axis_name(row):
    with pytest.raises(NameError, match="devices"):
        row.function(*cast(row.inputs(), jnp.float32), axis_name="devices")
