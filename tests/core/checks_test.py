"""Checks and error messages that all packages share."""

import jax.numpy as jnp
import numpy as np
import pytest

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


@pytest.mark.parametrize("mask", [np.ones(3), np.ones((3, 1), bool)], ids=["float", "two-axes"])
def test_other_masks_are_refused(mask):
    with pytest.raises(ValueError, match=r"batch\['mask'\]: expected bool\[batch\]"):
        batches.example_mask({"mask": mask})


def test_a_batch_without_a_mask_has_none():
    assert batches.example_mask({"x": np.zeros(3)}) is None
