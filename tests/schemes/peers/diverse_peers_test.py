"""`schemes.diverse_peers`: terms of the loss, different architectures, the leader."""

import jax
import pytest

import jaxkd
from jaxkd import losses
from jaxkd.schemes import diverse_peers
from jaxkd.schemes.peers import ramp_up
from jaxkd.wrappers import get_member
from tests import tiny
from tests.schemes.peers_toy import CE, CLIPPED, SGD, assert_placed, normed, run

PEERS = {"a": tiny.student, "b": normed}  # both have a vector of 4 features
NAMES = ("peers/a", "peers/b", "leader")


def distiller(auxiliaries=PEERS, leader=tiny.teacher_model, feature="vector", optimizer=SGD, **options):
    return diverse_peers(auxiliaries, leader, feature=feature, own=CE, optimizer=optimizer, **options)


def test_loss_is_the_weighted_sum_of_its_terms():
    _, found = run(distiller(weight=ramp_up(3, high=2.0)), 2)
    for one in found:
        own, taught = (sum(one[f"{kind}/{name}"] for name in NAMES) for kind in ("own", "taught"))
        assert taught > 0
        assert one["loss"] == pytest.approx(own + one["taught/leader/weight"] * taught, rel=1e-5)
    assert found[0]["taught/leader/weight"] == pytest.approx(0.013476, rel=1e-3)


@pytest.mark.parametrize("copied", [False, True])
def test_zero_weight_trains_each_model_alone(copied):
    options = {"weight": 0.0, "optimizer": CLIPPED}
    kd = distiller(normed, peers=2, **options) if copied else distiller(**options)
    models = {"0": normed, "1": normed} if copied else PEERS
    start = kd.init(jax.random.key(1), tiny.batch(8))
    state, _ = run(kd, 3, state=start)
    peers = {
        name: (model, lambda v, name=name: get_member(get_member(v, "peers"), name)) for name, model in models.items()
    }
    for model, of in [*peers.values(), (tiny.teacher_model, lambda v: get_member(v, "leader"))]:
        alone = jaxkd.distill(model, jaxkd.teachers.none(), CE, optimizer=CLIPPED)
        begin = alone.init(jax.random.key(1), tiny.batch(8))._replace(student=of(start.student))
        expected, _ = run(alone, 3, state=begin)
        tiny.assert_close(of(state.student), expected.student, rtol=1e-4, atol=1e-5)


def test_leader_defines_the_main_metrics():
    kd = distiller()
    state, _ = run(kd, 2)
    seen = tiny.numbers(jax.jit(kd.evaluate)(state, tiny.batch(8)))
    outputs, _ = tiny.teacher_model.apply(get_member(state.student, "leader"), tiny.batch(8), key=None, train=False)
    nll = losses.cross_entropy(outputs["logits"], tiny.batch(8)["label"]).mean()
    assert seen["nll"] == seen["nll/leader"] == pytest.approx(float(nll), rel=1e-5)
    assert {"accuracy/peers", "accuracy/peers/a", "accuracy/peers/b"} <= seen.keys()


def test_attention_projections_are_trained():
    kd = distiller(hidden_size=2)
    start = kd.init(jax.random.key(1), tiny.batch(8))
    state, _ = run(kd, 2, state=start)
    for name in ("query", "key"):
        before, after = (s.objective.params["parts"][name]["kernel"] for s in (start, state))
        assert before.shape == (4, 2)
        assert (before != after).any()


@pytest.mark.slow
def test_pmap_equals_jit_for_different_architectures():
    assert_placed(distiller(optimizer=CLIPPED, hold=True))


def test_invalid_arguments_raise():
    with pytest.raises(ValueError, match="diverse_peers, peers: expected the number of copies"):
        distiller(tiny.student)
    with pytest.raises(ValueError, match="of one size for all peers"):
        distiller({"a": tiny.student, "b": tiny.teacher_model}).init(jax.random.key(0), tiny.batch(8))
    with pytest.raises(ValueError, match=r"'peers/a/vectr'.*did you mean 'peers/a/vector'"):
        distiller(feature="vectr").init(jax.random.key(0), tiny.batch(8))
