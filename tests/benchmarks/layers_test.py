"""Benchmarks of layers and of the time to the first step, with tiny sizes."""

import json

import pytest

from benchmarks import compile_time, convolutions


@pytest.mark.slow
def test_each_way_is_the_gradient_by_the_kernel(tmp_path):
    convolutions.main(batch=2, rounds=1, repeats=1, layers=2, out=tmp_path / "out.json")
    first, *_ = rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert set(convolutions.OTHER_WAYS) < set(first["milliseconds"])
    assert all(row["difference"] < 1e-4 for row in rows if "difference" in row)
    assert sum("difference" in row for row in rows) == 2


@pytest.mark.slow
def test_a_round_has_all_phases_and_an_equal_program_size(tmp_path):
    compile_time.main(rounds=1, only="MLP", out=tmp_path / "out.json")
    (row,) = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert set(row["seconds"]["composed"]) == set(compile_time.PHASES)
    sizes = [row["program"][side]["lines"] for side in ("composed", "handwritten")]
    assert 0.8 < sizes[0] / sizes[1] < 1.25
