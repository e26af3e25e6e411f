"""Files that several processes share."""

import json

import pytest

from experiments.kit import files


def test_a_path_is_claimed_by_one_holder(tmp_path):
    with files.claim(tmp_path / "cell") as first, files.claim(tmp_path / "cell") as second:
        assert first and not second
    with files.claim(tmp_path / "cell") as again:
        assert again


def test_a_result_is_computed_once(tmp_path):
    path, calls = tmp_path / "rows" / "a.json", []
    for _ in range(2):
        assert files.once(path, lambda: calls.append(1) or {"accuracy": [0.5]}) == {"accuracy": [0.5]}
    assert calls == [1] and json.loads(path.read_text()) == {"accuracy": [0.5]}


def test_a_failed_write_leaves_the_old_content(tmp_path):
    path = tmp_path / "results.json"
    files.write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        files.write_json(path, {"a": object()})
    assert json.loads(path.read_text()) == {"a": 1} and [*tmp_path.iterdir()] == [path]
