"""Poses of athletes: labels that a method must not know, and a whole run on a made-up set."""

import json

import jax.numpy as jnp
import numpy as np
import pytest

from experiments.pose import lspet, main
from tests.experiments.pose import tiny


@pytest.fixture
def small(monkeypatch):
    tiny.use(monkeypatch)
    for name, value in {"TEACHER": ((4, 6), 4), "STUDENT": ((4,), 3), "TEACHER_STEPS": 2, "LABELED": 2}.items():
        monkeypatch.setattr(lspet, name, value)
    monkeypatch.setattr(lspet, "OTHERS", 3)


def test_few_labels_are_each_seeds_own_and_others_are_hidden(small, tmp_path):
    work = lspet.Poses(tiny.CONFIG, tmp_path)
    batches = [next(iter(work._inputs(True, seed).batches())) for seed in (0, 1)]
    for batch in batches:
        assert batch["labeled"].tolist() == [True] * 2 + [False] * 3
        assert not jnp.any(batch["point_mask"][2:]) and jnp.any(batch["point_mask"][:2])
    known = [set(np.asarray(work._inputs(True, seed)._loaders[0].arrays["index"]).tolist()) for seed in (0, 1)]
    assert known[0] != known[1]
    whole = next(iter(work._inputs(False, 0).batches()))
    assert whole["labeled"].all()


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--dataset", "somebody"]])
def test_a_whole_run(small, tmp_path, options):
    names = ["student", "all"] if options else ["student", "structure", "all_heatmaps"]
    arguments = [
        "lspet",
        "--data-dir",
        "data",
        "--out",
        str(tmp_path),
        "--steps",
        "2",
        "--seeds",
        "1",
        "--no-equal-cost",
    ]
    assert main.cli([*arguments, "--methods", *names, *options]) == 0
    folder = tmp_path / "pose" / ("lspet-somebody" if options else "lspet")
    results = json.loads((folder / "results.json").read_text())
    assert list(results["rows"]) == names and "teacher" in results["references"]
    for one in results["rows"].values():
        assert 0 <= one["measures"]["pck"]["mean"] <= one["measures"]["pck_wide"]["mean"] <= 1
    assert results["rows"]["student"]["measures"]["mflops"]["mean"] < results["references"]["teacher"]["mflops"]
    for figure in lspet.TASK.figures:
        assert (folder / f"{figure}.png").stat().st_size > 5000
