"""The table is complete: every public loss has a row, every row a reference and an independent value."""

import importlib
import inspect
import pkgutil

import numpy as np
import pytest

from jaxkd import losses
from tests import references
from tests.loss_row import golden, golden_file
from tests.loss_runs import reference_gradients
from tests.loss_table import BY_NAME, HELPERS, ROWS, each

FOUND = [module.name for module in pkgutil.walk_packages(losses.__path__, "jaxkd.losses.") if not module.ispkg]
MODULES = [name.removeprefix("jaxkd.losses.") for name in FOUND if "._" not in name]


def test_the_loss_modules_are_found():
    assert {"kl", "features.attention", "relations.distances"} <= set(MODULES)


@pytest.mark.parametrize("name", MODULES)
def test_every_public_loss_has_a_row(name):
    module = importlib.import_module(f"jaxkd.losses.{name}")
    public = [member for member in module.__all__ if inspect.isroutine(getattr(module, member))]
    losses_of = [member for member in public if member not in HELPERS]
    without = [member for member in losses_of if member not in BY_NAME or BY_NAME[member].module != name]
    assert not without, f"{without} of jaxkd.losses.{name} need a row in tests/loss_rows"
    defined = inspect.getmembers(module, inspect.isfunction)
    forgotten = [key for key, member in defined if member.__module__ == module.__name__ and not key.startswith("_")]
    assert sorted(forgotten) == sorted(public), "every function without a leading underscore is in __all__"


def test_rows_are_of_different_losses():
    assert len(BY_NAME) == len(ROWS)


@each()
def test_row_is_complete(row):
    assert callable(row.reference)
    assert row.golden or row.hand, "a golden value, or one derived by hand"
    assert row.extremes and (row.invariances or row.mapped)
    assert len(row.shapes) > 1, "one shape is no test of the others"
    assert row.mismatches or len(row.parameters) == 1, "shapes that do not go together"
    assert row.ranks, "shapes of too low a rank"
    assert row.result_shape(row.inputs())[:1] >= (5,), "the main shape has examples to mask and to permute"
    assert set(row.golden) <= {key.split("/")[0] for key in golden_file()}
    assert getattr(losses, row.name) is row.loss, "jaxkd.losses names every loss"


@each()
def test_signature_keeps_the_contract(row):
    parameters = dict(inspect.signature(row.loss).parameters)
    assert ("where" in parameters) is row.per_example
    assert ("axis_name" in parameters) is row.relational
    for name in {"where", "axis_name"} & set(parameters):
        assert parameters.pop(name).default is None
    for name in row.execution:
        assert parameters.pop(name).default in (None, False)
    assert all(p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) for p in parameters.values())
    assert len(row.parameters) == len(row.inputs())
    # Loss and reference state the paper's hyperparameters and defaults independently; both have to agree.
    reference = inspect.signature(getattr(references, row.name)).parameters
    assert {name: p.default for name, p in parameters.items()} == {name: p.default for name, p in reference.items()}


@each([row for row in ROWS if row.golden])
def test_reference_has_the_golden_values_and_slopes(row):
    for case in row.golden:
        check_golden(row, case)


def check_golden(row, case):
    reference, arrays = row.golden[case](references), golden(case, "in")
    hyper = {name: value.item() for name, value in golden(case, "arg").items()}
    np.testing.assert_allclose(reference(*arrays.values(), **hyper).mean(), golden_file()[f"{case}/value"], rtol=1e-12)
    for name, gradient in golden(case, "grad").items():
        # Around a channel of zeros, a unit vector changes within 1e-12: no step of a difference is small enough.
        flat = (gradient == 0) & (arrays[name] == 0)
        direction = np.where(flat, 0, np.random.default_rng(0).normal(size=gradient.shape))

        def moved(t, name=name, direction=direction):
            return reference(*{**arrays, name: arrays[name] + t * direction}.values(), **hyper).mean()

        slope = references.finite_difference(moved, np.zeros(()), step=1e-6)
        np.testing.assert_allclose(slope, (gradient * direction).sum(), rtol=2e-6, atol=1e-9)


@each([row for row in ROWS if row.hand])
def test_reference_has_the_values_derived_by_hand(row):
    for hand in row.hand:
        arrays = tuple(np.asarray(array) for array in hand.arguments)
        value = row.reference(*arrays, **hand.hyper)
        np.testing.assert_allclose(value, hand.value, rtol=1e-12)
        if hand.gradient is not None:
            gradient = reference_gradients(row, arrays, np.ones_like(value), hand.hyper)[0]
            np.testing.assert_allclose(gradient, hand.gradient, rtol=1e-7, atol=1e-9)


def test_finite_differences_of_a_known_function():
    at = np.array([0.5, -2.0, -np.inf])
    gradient = references.finite_difference(lambda x: np.sin(x[0]) + x[1] ** 3, at)
    np.testing.assert_allclose(gradient, [np.cos(0.5), 12.0, 0.0], rtol=1e-8)


def test_keep_drops_masked_examples():
    where = np.array([True, False, True])
    result = references.keep(where, lambda x: x - x.mean(0), np.array([1.0, np.nan, 3.0]))
    np.testing.assert_array_equal(result, [-1.0, 0.0, 1.0])
