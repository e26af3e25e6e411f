"""The benchmark of language: both sides agree, composition adds no FLOPs, violated claims are reported."""

import time
from pathlib import Path

import pytest

from benchmarks import tokens

SIZES = tokens.Sizes(2, 3, 5)
TINY = {
    "hidden_size": 16,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    folder = Path(tmp_path_factory.mktemp("models"))
    return [
        tokens.llama(folder / name, tokens.TEACHER | TINY, seed) for seed, name in enumerate(("student", "teacher"))
    ]


def test_composition_adds_no_flops_and_both_sides_agree(pair):
    row = tokens.composition(*pair, SIZES, 1, time.perf_counter)
    assert row["flops_ratio"] == pytest.approx(1, abs=0.005)
    assert row["last_losses"][tokens.COMPOSED] == pytest.approx(row["last_losses"][tokens.HANDWRITTEN], rel=1e-4)


def test_sequences_count_the_tokens_after_the_prompts(pair):
    made = tokens.sequences(pair[1], SIZES, 2)
    assert made["tokens"].shape == (2, 8) and (made["tokens"][:, 0] == tokens.BOS).all()
    assert made["mask"].sum(axis=1).tolist() == [SIZES.length] * 2
    assert (made["label"][:, :-1] == made["tokens"][:, 1:]).all()


def test_violated_claims_are_reported():
    rows = [
        {"loss_difference": 2e-5, "times_as_fast": [1.0, 2.0, 9.0]},
        {"speed_ratio": [0.9, 0.97, 1.0], "flops_ratio": 1.01},
        {"cached_time_over_alone": [1.0, 1.2, 1.3]},
    ]
    assert len(tokens.broken(rows)) == 5
    rows = [
        {"loss_difference": 1e-6, "times_as_fast": [1.0, 3.1, 9.0]},
        {"speed_ratio": [0.9, 0.99, 1.0], "flops_ratio": 1.0},
        {"cached_time_over_alone": [1.0, 1.05, 1.3]},
    ]
    assert tokens.broken(rows) == []


@pytest.mark.slow
def test_reduced_form_runs(pair):
    for compare in (tokens.on_policy, tokens.cached):
        row = compare(*pair, SIZES, 1, time.perf_counter)
        assert all(seconds > 0 for seconds in row["seconds"].values())
        assert row.get("loss_difference", 0) < tokens.LOSS
        tokens.show([row])
