"""Fuzzed calls of the losses: no fault, the same calls for the same seed, and a fault where there is one."""

import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import fuzz
from jaxkd import losses
from tests.loss_table import BY_NAME


def test_a_smoke_of_two_hundred_calls():
    counts, faults = fuzz.fuzz(200, only=("binary_kl", "logit_mse"), programs=1)
    assert not faults, faults
    assert sum(counts.values()) == 200
    assert {kind for _, kind in counts} == {"inputs", "mistakes"}
    assert counts == fuzz.fuzz(200, only=("binary_kl", "logit_mse"), programs=1)[0]


@pytest.mark.slow
def test_mistakes_of_all_losses():
    random = np.random.default_rng(1)
    drawn = [fuzz.mistake(loss, random) for loss in fuzz.LOSSES for _ in range(8)]
    faults = [fuzz.check_mistake(*call) for call in drawn if call is not None]
    assert len(faults) > 200
    assert not any(faults), [fault for fault in faults if fault]


@pytest.mark.slow
def test_two_thousand_calls():
    counts, faults = fuzz.fuzz(2000, programs=1, seconds=600)
    assert not faults, faults
    assert sum(counts.values()) > 500


def test_true_is_no_mistake_of_a_flag():
    """Of square kernels, the transposed ones have the shape of the others."""
    random = np.random.default_rng(0)
    chosen = [loss for loss in fuzz.LOSSES if loss.name in ("linear_cross_entropy", "pair_affinity")]
    drawn = [fuzz.mistake(loss, random) for loss in chosen for _ in range(150)]
    texts = [call[0] for call in drawn if call is not None]
    for flag in ("transposed", "constant_norm"):
        given = [text for text in texts if f"{{'{flag}'" in text]
        assert given and not any(f"'{flag}': True" in text for text in given)


def test_every_loss_is_called():
    assert {loss.name for loss in fuzz.LOSSES} == set(BY_NAME) - {
        "overhaul_margin",
        "region_moments",
        "reverse_gradient",
    } - {"standardize_logits"}


def test_faults_are_found(monkeypatch):
    """A loss that broadcasts and is infinite at zeros is told from one that is right."""

    def careless(student, teacher, *, where=None):
        value = jnp.sum(jnp.log(student**2) - teacher, axis=-1)
        return value if where is None else jnp.where(where, value, 0)

    monkeypatch.setattr(losses, "logit_mse", careless)
    _, faults = fuzz.fuzz(120, only=("logit_mse",), programs=3)
    assert any("accepted" in fault for fault in faults)
    assert any("value" in fault or "gradient" in fault for fault in faults)
