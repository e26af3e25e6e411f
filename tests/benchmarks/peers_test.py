"""The comparison with other libraries: equal batches and losses, and reports of missing peers."""

import importlib.util
import warnings

import jax
import pytest

from benchmarks.peers import __main__ as peers
from benchmarks.peers import setting


@pytest.fixture(scope="module")
def chosen():
    return setting.make(8, 3, 4)


@pytest.fixture(scope="module")
def ours(chosen):
    sides = {name: make(chosen) for name, (module, make) in peers.makers(3).items() if module == "ours"}
    return {name: (side, side.losses()) for name, side in sides.items()}


@pytest.mark.slow
def test_fit_and_loop_see_the_same_batches(ours):
    losses = {name: found for name, (_, found) in ours.items()}
    assert losses[peers.FIT] == pytest.approx(losses[peers.LOOP], rel=1e-5)
    assert len(set(losses[peers.FIT])) == 4


@pytest.mark.slow
@pytest.mark.parametrize("peer", [peers.KERAS, peers.TUNIX])
def test_peer_has_the_same_losses(chosen, ours, peer):
    module, make = peers.makers(3)[peer]
    if importlib.util.find_spec(module) is None:
        with pytest.raises(ModuleNotFoundError, match=f"No module named '{module}"):
            make(chosen)
        return
    with jax.numpy_rank_promotion("allow"), warnings.catch_warnings(action="ignore"):  # the peers are less strict
        found = make(chosen).losses()
    assert found == pytest.approx(ours[peers.FIT][1], rel=peers.TOLERANCE)


def test_missing_peer_is_reported(chosen, capsys):
    def missing(_):
        raise ModuleNotFoundError("No module named 'peer'")

    sides = peers.makers(2)
    rows = peers.measure(chosen, {name: sides[name] for name in (peers.FIT, peers.LOOP)} | {"p": ("keras", missing)}, 1)
    assert [row["side"] for row in rows] == [peers.FIT, peers.LOOP, "p"]
    assert rows[0]["fit_over_it"] == [1, 1, 1] and rows[1]["steps_per_second"] > 0
    assert rows[2] == {"side": "p", "error": "ModuleNotFoundError: No module named 'peer'"}
    peers.show(rows, 8)
    assert "p was not measured: ModuleNotFoundError: No module named 'peer'" in " ".join(
        capsys.readouterr().out.split()
    )
    assert peers.broken([{"batch": 8, **row} for row in rows]) == []


def test_failure_of_jaxkd_raises(chosen):
    def fails(_):
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        peers.measure(chosen, {peers.FIT: ("ours", fails)}, 1)


def test_violated_claims_are_reported():
    row = {"batch": 8, "side": peers.KERAS, "loss_difference": 2e-4, "fit_over_it": [1.0, 1.2, 2.0]}
    assert peers.broken([row]) == ["Keras fit, batch 8: losses differ by 2.0e-04", "Keras fit, batch 8: 1.20 times"]
    assert peers.broken([{**row, "loss_difference": 1e-6, "fit_over_it": [1.0, 1.4, 2.0]}]) == []
