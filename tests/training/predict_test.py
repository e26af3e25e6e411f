"""`predict`: outputs of every example once, in order, without padding."""

import jax
import numpy as np
import pytest

from jaxkd import adapters, data, training
from jaxkd.types import Variables

WEIGHT = np.arange(6.0, dtype=np.float32).reshape(2, 3)
MODEL = adapters.plain(lambda key, x: WEIGHT, lambda w, x: x @ w, inputs="x")
X = np.random.default_rng(0).normal(size=(7, 2)).astype(np.float32)
INPUTS = {
    "resident": data.Resident({"x": X}, batch_size=3, shuffle=False),
    "function": data.from_batches(lambda: ({"x": x} for x in np.split(X, [3, 6])), 3),
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_every_example_has_its_outputs_once(inputs):
    parts = list(training.predict(MODEL, Variables(WEIGHT), inputs))
    assert [len(part["logits"]) for part in parts] == [3, 3, 1]
    np.testing.assert_allclose(np.concatenate([part["logits"] for part in parts]), X @ WEIGHT, rtol=1e-6)


def test_an_output_without_a_row_for_each_example_is_named():
    scalar = adapters.plain(lambda key, x: {}, lambda w, x: {"logits": x, "mean": x.mean()}, inputs="x")
    with pytest.raises(ValueError, match=r"a row for each of 3 examples, got \{'mean': \(\)\}"):
        next(training.predict(scalar, Variables({}), INPUTS["resident"]))


def test_what_is_no_model_or_input_is_named():
    with pytest.raises(TypeError, match="predict, model: expected a Model, got the function"):
        training.predict(jax.nn.relu, Variables({}), INPUTS["resident"])  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="from_batches"):
        training.predict(MODEL, Variables({}), {"x": X})  # type: ignore[arg-type]
