"""Checks and error messages that all packages share."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Context
from jaxkd._core import batches, checks


def test_a_known_name_passes():
    checks.known("a", ["a", "b"], "thing")


def test_an_unknown_name_lists_the_available_and_the_closest():
    with pytest.raises(ValueError, match=r"tap 'stage_2': .*did you mean 'stage2'.*'logits' f4, 'stage2' f8\. Look\."):
        checks.known("stage_2", {"stage2": "f8", "logits": "f4"}, "tap", hint="Look.")


def test_an_empty_list_of_names_is_reported():
    with pytest.raises(ValueError, match="Available: nothing"):
        checks.known("a", [], "thing")


def test_batch_size_is_the_shared_leading_dimension():
    assert batches.batch_size({"x": np.zeros((3, 2)), "y": jnp.zeros(3)}) == 3


@pytest.mark.parametrize("batch", [{}, {"x": np.zeros(3), "y": np.zeros(2)}, {"x": np.zeros(3), "y": np.float32(1)}])
def test_a_batch_without_one_leading_dimension_is_refused(batch):
    with pytest.raises(ValueError, match=r"batch: expected a dict of arrays \[batch, \.\.\.\] with one leading"):
        batches.batch_size(batch)


@pytest.mark.parametrize("mask", [np.ones(3), np.bool_(True), [True]], ids=["float", "scalar", "list"])
def test_other_masks_are_refused(mask):
    with pytest.raises(ValueError, match=r"batch\['mask'\]: expected bool\[batch\]"):
        batches.example_mask({"mask": mask})


TOKENS = np.array([[True, False, True], [False, False, False]])


def test_a_mask_over_tokens_includes_examples_with_any_token():
    np.testing.assert_array_equal(batches.example_mask({"mask": TOKENS}), [True, False])


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        pytest.param((2, 3), TOKENS, id="tokens"),
        pytest.param((2, 3, 2), np.repeat(TOKENS[..., None], 2, -1), id="token-features"),
        pytest.param((2,), [True, False], id="examples"),
        pytest.param((2, 4), [[True] * 4, [False] * 4], id="features"),
        pytest.param((6, 1), TOKENS.reshape(6, 1), id="rows-of-tokens"),
    ],
)
def test_a_mask_over_tokens_is_broadcast_where_the_dimensions_agree(shape, expected):
    found = batches.mask_of_shape(Context({}, {}, {"mask": TOKENS}, 0), shape)
    np.testing.assert_array_equal(found, expected)


def test_an_array_of_other_examples_has_no_mask():
    with pytest.raises(ValueError, match=r"expected arrays of its 2 examples, \[2\], got an array \[5, 3\]"):
        batches.mask_of_shape(Context({}, {}, {"mask": TOKENS}, 0), (5, 3))


def test_a_batch_without_a_mask_has_none():
    assert batches.example_mask({"x": np.zeros(3)}) is None
