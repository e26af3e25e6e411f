"""`derived`: values of merged means, through every way in which metrics are merged and packed."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.metrics import Packed, compute, derived, from_values, merge, pack, packing, psum, total, total_of
from jaxkd.types import Derived, Mean

NLL = np.array([0.0, 0.5, 3.0, 1.0, 2.0, 0.25], np.float32)
PARTS = (slice(0, 1), slice(1, 4), slice(4, 6))
"""Unequal parts of a set."""


def metrics(nll):
    """A perplexity, and a score of two means with counts of their own."""
    mean, high = from_values(nll), from_values(nll, nll > 0.4)
    return {"nll": mean, "perplexity": derived(jnp.exp, mean), "score": derived(lambda a, b: a / (a + b), mean, high)}


EXPECTED = {"nll": NLL.mean(), "perplexity": np.exp(NLL.mean()), "score": 1.125 / (1.125 + 1.625)}


def check(found):
    assert compute(found) == pytest.approx(EXPECTED, rel=1e-6)


def test_merged_parts_give_the_value_of_the_whole():
    merged: dict = {}
    for part in PARTS:
        merged = merge(merged, metrics(jnp.asarray(NLL[part])))
    check(merged)
    assert compute(metrics(jnp.asarray(NLL[:1])))["perplexity"] == 1


def test_packed_parts_give_the_value_of_the_whole():
    run = jax.jit(packing(metrics))
    parts = [run(jnp.asarray(NLL[part])) for part in PARTS]
    assert all(isinstance(part, Packed) for part in parts)
    assert (list(parts[0]), len(parts[0])) == (["nll", "perplexity", "score"], 3)
    check(merge(merge(parts[0], parts[1]), parts[2]))
    check(merge(dict(merge(parts[0], parts[1])), dict(parts[2])))


def test_scanned_and_mapped_parts_give_the_value_of_the_whole():
    halves = jnp.asarray(NLL.reshape(2, 3))
    stacked = jax.lax.scan(lambda _, nll: (None, metrics(nll)), None, halves)[1]
    check(total(stacked))
    with pytest.raises(ValueError, match=r"metric 'nll': expected a scalar.*metrics\.total"):
        compute(stacked)
    check(total(jax.lax.scan(lambda _, nll: (None, pack(metrics(nll))), None, halves)[1]))
    check(jax.tree.map(lambda x: x[1], jax.pmap(lambda nll: psum(metrics(nll), "d"), axis_name="d")(halves)))


def test_members_of_a_vmap_have_values_of_their_own():
    packed = pack(jax.vmap(metrics)(jnp.asarray(NLL.reshape(2, 3))))
    found = compute(packed)
    assert found["perplexity[1]"] == pytest.approx(np.exp(3.25 / 3), rel=1e-6)
    assert found["score[0]"] == pytest.approx((3.5 / 3) / (3.5 / 3 + 1.75), rel=1e-6)


def test_branches_of_one_program_agree():
    """Although a lambda is a new object in each trace."""
    run = jax.jit(lambda i, nll: jax.lax.switch(i, [metrics, lambda x: metrics(x[::-1])], nll))
    check(run(0, jnp.asarray(NLL)))


def test_vector_gives_one_argument_for_each_entry_and_nan_for_an_empty_one():
    per_class = Mean(jnp.array([1.0, 0.0, 3.0]), jnp.array([2.0, 0.0, 4.0]))
    mean = derived(lambda *each: jnp.nanmean(jnp.stack(each)), per_class)
    assert compute({"miou": mean}) == {"miou": 0.625}
    assert math.isnan(compute({"x": derived(jnp.exp, from_values(jnp.ones(2), jnp.zeros(2, bool)))})["x"])


def test_total_of_means_with_their_own_counts():
    a, b, none = Mean(jnp.float32(6), jnp.float32(3)), Mean(jnp.float32(1), jnp.float32(2)), Mean(*jnp.zeros((2,)))
    both = {"x": total_of(a, b, none)}
    assert compute(both) == {"x": 2.5}
    assert compute(merge(both, {"x": total_of(a, none, none)})) == {"x": 12 / 6 + 0.5}
    assert math.isnan(compute({"x": total_of(none, none)})["x"])
    assert math.isnan(compute({"x": total_of(Mean(jnp.float32(jnp.nan), jnp.float32(1)), b)})["x"])
    assert total_of(a) is a


def test_mean_does_not_merge_with_a_derived_value():
    with pytest.raises(ValueError, match="metric 'x': expected a mean, or a derived value, in both"):
        merge({"x": from_values(jnp.ones(1))}, {"x": derived(jnp.exp, from_values(jnp.ones(1)))})


def test_derived_value_can_be_read_before_it_is_merged():
    value = metrics(jnp.asarray(NLL))["perplexity"]
    assert isinstance(value, Derived)
    assert float(value.sum / value.count) == pytest.approx(np.exp(1.125), rel=1e-6)


def test_totals_with_different_terms_merge_to_the_mean_over_their_steps():
    """As where a scheme has a stage of one term and then one of two."""
    one, two = Mean(jnp.float32(8), jnp.float32(4)), Mean(jnp.float32(2), jnp.float32(4))
    first, second = {"x": one}, {"x": total_of(two, one)}
    for merged in (merge(first, second), merge(second, first)):
        assert compute(merged) == {"x": (2 + (0.5 + 2)) / 2}
