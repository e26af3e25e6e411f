"""The cost of a step of each method, relative to the student alone."""

import pytest

from benchmarks import which_method


@pytest.mark.slow
def test_the_costs_of_a_step_are_those_of_its_parts():
    rows = {row["method"]: row for row in which_method.rows("resnet14", "resnet8", 8, ("student", "kd", "ab", "crd"))}
    assert rows["student"]["flops_over_alone"] == rows["student"]["bytes_over_alone"] == 1.0
    assert 1.3 < rows["kd"]["flops_over_alone"] < 2.0  # and the forward pass of a network of twice the size
    first = rows["ab"]["parts"]["initialization"]["flops"]
    assert rows["ab"]["flops"] == rows["ab"]["parts"]["training"]["flops"] + first / 8
    banks = 2 * 50_000 * 128 * 4  # of float32 embeddings of both networks
    assert rows["crd"]["bytes"] > rows["kd"]["bytes"] + banks
