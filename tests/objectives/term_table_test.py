"""Masking is dropping for every loss, through `term`: over examples, over tokens, with garbage in the padding."""

import jax
import numpy as np
import pytest

from jaxkd import Context, combine, term
from tests.loss_runs import cast
from tests.loss_table import PER_EXAMPLE, each

pytestmark = pytest.mark.slow


def mask_of(shape, tokens):
    """A mask over examples that includes all but one of them, or over tokens, some of each and none of the first."""
    if not tokens:
        return np.arange(shape[0]) != 1
    return (np.arange(np.prod(shape)).reshape(shape) % 3 > 0) & (np.arange(shape[0]) > 0).reshape(
        -1, *[1] * (len(shape) - 1)
    )


@each(PER_EXAMPLE)
def test_masking_is_dropping(row):
    arrays = row.inputs(seed=4)
    shape = row.result_shape(arrays)
    for tokens in [False, True][: len(shape)]:
        check_masking(row, arrays, shape, mask_of(shape, tokens))


def check_masking(row, arrays, shape, mask):
    where = np.broadcast_to(mask.reshape(*mask.shape, *[1] * (len(shape) - mask.ndim)), shape)
    weights = 1.0 + np.arange(np.prod(shape)).reshape(shape) % 4
    expected = row.keep(where, arrays)
    paths = [f"batch/{i}" for i in range(len(arrays))]
    terms = combine(plain=term(row.function, *paths), weighted=term(row.function, *paths, weights="batch/weight"))
    with jax.enable_x64(True):
        given = cast(row.spoiled(arrays, where, np.nan, -1), np.float64)
        batch = {str(i): x for i, x in enumerate(given)} | {"mask": mask, "weight": weights}
        run = jax.jit(lambda batch: terms.apply({}, {}, Context({}, {}, batch, 0), None).metrics)
        found = jax.device_get(run(batch))
    for name, share in (("plain", np.ones(shape)), ("weighted", weights)):
        np.testing.assert_allclose(found[name].sum, (share * expected)[where].sum(), rtol=1e-9, atol=1e-13)
        assert found[name].count == share[where].sum()
