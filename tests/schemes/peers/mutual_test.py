"""`schemes.mutual`: the formula, reductions to plain training, objectives, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, losses, objectives, term
from jaxkd.schemes import mutual
from jaxkd.wrappers import get_member
from tests import tiny
from tests.schemes.peers_toy import CE, CLIPPED, KL, SGD, assert_placed, head, normed, run

PEERS = {"a": tiny.student, "b": tiny.teacher_model, "c": normed}
THREE = mutual(PEERS, own=CE, mutual=KL, optimizer=SGD)
NOTHING = term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.0)


def logits_of(model, variables, train=True):
    return model.apply(variables, tiny.batch(8), key=None, train=train)[0]["logits"]


def test_two_peers_match_the_formula():
    """Equation 8 with K = 2 and a step of SGD, written out."""
    kd = mutual({"a": tiny.student, "b": tiny.teacher_model}, own=CE, mutual=KL, optimizer=optax.sgd(0.5))
    start = kd.init(jax.random.key(1), tiny.batch(8))
    state, found = run(kd, 1, state=start)
    label, a, b = tiny.batch(8)["label"], get_member(start.student, "a"), get_member(start.student, "b")

    def loss(params, model, variables, other):
        z = logits_of(model, variables._replace(params=params))
        return (losses.cross_entropy(z, label) + losses.soft_target_kl(z, other, temperature=2.0)).mean()

    models = {
        "a": (tiny.student, a, logits_of(tiny.teacher_model, b)),
        "b": (tiny.teacher_model, b, logits_of(tiny.student, a)),
    }
    values = 0.0
    for name, (model, variables, other) in models.items():
        value, slope = jax.jit(jax.value_and_grad(loss), static_argnums=1)(variables.params, model, variables, other)
        expected = jax.tree.map(lambda x, g: x - 0.5 * g, variables.params, slope)
        tiny.assert_close(get_member(state.student, name).params, expected)
        values += float(value)
    assert found[0]["loss"] == pytest.approx(values, rel=1e-5)


@pytest.mark.slow
def test_three_peers_teach_by_their_mean():
    _, (found,) = run(THREE, 1)
    own = sum(found[f"own/{name}"] for name in PEERS)
    taught = sum(found[f"mutual/{i}/{j}"] for i in PEERS for j in PEERS if i != j) / 2
    assert taught > 0.01
    assert found["loss"] == pytest.approx(own + taught, rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("copied", [False, True])
def test_zero_mutual_weight_trains_each_peer_alone(copied):
    """Also with gradients clipped by norm, and a hint with parameters."""
    teacher = tiny.teacher()
    own = combine(ce=CE, hint=objectives.hint("student/vector", "teacher/vector", weight=0.3))
    options = {"own": own, "mutual": NOTHING, "optimizer": CLIPPED, "teacher": teacher}
    kd = mutual(normed, peers=2, **options) if copied else mutual(PEERS, **options)
    start = kd.init(jax.random.key(1), tiny.batch(8))
    state, _ = run(kd, 3, state=start)
    for name, model in ({"0": normed, "1": normed} if copied else PEERS).items():
        alone = jaxkd.distill(model, teacher, own, optimizer=CLIPPED)
        begin = alone.init(jax.random.key(5), tiny.batch(8))
        begin = begin._replace(student=get_member(start.student, name))
        begin = begin._replace(objective=start.objective._replace(params=start.objective.params["own"].get(name, {})))
        expected, _ = run(alone, 3, state=begin)
        tiny.assert_close(get_member(state.student, name), expected.student, rtol=1e-4, atol=1e-5)
        tiny.assert_close(state.objective.params["own"].get(name, {}), expected.objective.params, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_copies_equal_models_by_name():
    options = {"own": CE, "mutual": KL, "optimizer": CLIPPED}
    copied, named = mutual(normed, peers=3, **options), mutual({str(i): normed for i in range(3)}, **options)
    state, found = run(copied, 3)
    expected, values = run(named, 3)
    for name in "012":
        tiny.assert_close(get_member(state.student, name), get_member(expected.student, name), rtol=1e-4, atol=1e-5)
    for one, other in zip(found, values, strict=True):
        assert one == pytest.approx(other, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_relations_hints_and_crd_between_peers():
    """Features of different widths; a hint has a regressor for each ordered pair."""
    pairs = combine(
        rkd=term(losses.distance_relation, "student/vector", "teacher/vector"),
        hint=objectives.hint("student/vector", "teacher/vector"),
        crd=objectives.crd_queue("student/vector", "teacher/vector", queue_size=16, embedding_size=2),
    )
    kd = mutual({"a": tiny.student, "b": tiny.teacher_model}, own=CE, mutual=pairs, optimizer=SGD)
    state, _ = run(kd, 2)
    kernels = {(i, j): state.objective.params["mutual"][i][j]["hint"]["kernel"].shape for i, j in ("ab", "ba")}
    assert kernels == {("a", "b"): (4, 5), ("b", "a"): (5, 4)}
    assert int(state.objective.state["mutual"]["b"]["a"]["crd"]["written"]) == 16
    assert_placed(kd)


def test_exits_of_peers_teach_each_other():
    """A peer's exit learns from the other peer."""
    from jaxkd.wrappers import Exit, with_exits

    early = with_exits(tiny.student, {"early": Exit("map", head())})
    both = combine(last=KL, early=objectives.select(KL, student="early"))
    _, (found,) = run(mutual({"a": early, "b": early}, own=CE, mutual=both, optimizer=SGD), 1)
    assert found["mutual/a/b/early"] > 0
    assert found["mutual/a/b/early"] != found["mutual/a/b/last"]


@pytest.mark.slow
def test_metrics_equal_those_of_the_peers_alone():
    state, _ = run(THREE, 3)
    found = tiny.numbers(jax.jit(THREE.evaluate)(state, tiny.batch(8)))
    label, logits = tiny.batch(8)["label"], []
    for name, model in PEERS.items():
        logits.append(logits_of(model, get_member(state.student, name), train=False))
        assert found[f"accuracy/{name}"] == pytest.approx(np.mean(np.argmax(logits[-1], axis=-1) == label))
        assert found[f"nll/{name}"] == pytest.approx(float(losses.cross_entropy(logits[-1], label).mean()), rel=1e-5)
    together = losses.cross_entropy(jnp.stack(logits).mean(axis=0), label)
    assert found["nll"] == pytest.approx(float(together.mean()), rel=1e-5)


def test_invalid_arguments_raise():
    options = {"own": CE, "mutual": KL, "optimizer": SGD}
    with pytest.raises(ValueError, match="joint: expected at least one, got none"):
        mutual({}, **options)
    with pytest.raises(ValueError, match="mutual, peers: expected None, as the students have names, got 2"):
        mutual(PEERS, peers=2, **options)
    with pytest.raises(ValueError, match="mutual, peers: expected the number of copies"):
        mutual(tiny.student, **options)
    with pytest.raises(ValueError, match="positive number of members, got 0"):
        mutual(tiny.student, peers=0, **options)
    with pytest.raises(
        ValueError, match="mutual, students: expected a mapping from names to models, or one model, got list"
    ):
        mutual([tiny.student, tiny.student], **options)
    with pytest.raises(ValueError, match="students: expected a mapping from names to models"):
        mutual([tiny.student, tiny.student], peers=2, **options)
    with pytest.raises(ValueError, match=r"'vectr'.*did you mean 'vector'") as raised:
        relation = term(losses.distance_relation, "student/vectr", "teacher/vector")
        mutual(PEERS, own=CE, mutual=relation, optimizer=SGD).init(jax.random.key(0), tiny.batch(8))
    assert "in the objective 'mutual'" in raised.value.__notes__
