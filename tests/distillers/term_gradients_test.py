"""Gradients of terms: reference by hand, global batch, reporting interval, and no cost without reports."""

import itertools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxkd
from jaxkd import combine, distillers, losses, objectives, term
from jaxkd.types import DATA_AXIS
from tests import tiny


class Net(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(tiny.CLASSES, name="head")(nn.relu(nn.Dense(6, name="hidden")(x.reshape(x.shape[0], -1))))


NET = jaxkd.adapters.linen(Net(), taps={"hidden": "hidden"})
OBJECTIVE = combine(
    kd=term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.9),
    hint=objectives.hint("student/hidden", "teacher/vector", weight=optax.linear_schedule(8.0, 0.0, 4)),
    rkd=combine(
        distance=term(losses.distance_relation, "student/hidden", "teacher/vector", weight=25.0),
        similar=term(losses.similarity_preserving, "student/hidden", "teacher/vector", weight=50.0),
    ),
)
TERMS = ["hint", "kd", "rkd/distance", "rkd/similar"]
SGD = optax.sgd(0.1)


def make_distillers(objective=OBJECTIVE, every=1, student=NET):
    plain = jaxkd.distill(student, tiny.teacher(), objective, optimizer=SGD)
    return plain, distillers.term_gradients(plain, student, tiny.teacher(), objective, every=every)


PLAIN, KD = make_distillers()
NAMES = {f"grad_norm/{name}" for name in TERMS} | {f"grad_cosine/{a},{b}" for a, b in itertools.combinations(TERMS, 2)}


def masked(size=13):
    return tiny.batch(size) | {"mask": np.arange(size) % 4 != 2}


def by_hand(state, batch):
    """Gradient of each term alone, with its masked mean written out, as one vector."""
    keep = np.flatnonzero(batch["mask"])
    batch = {name: x[keep] for name, x in batch.items() if name != "mask"}
    taught, _ = tiny.teacher_model.apply(state.teacher, batch, key=None, train=False)
    regressor = state.objective.params["hint"]

    def terms(params):
        out, _ = NET.apply(jaxkd.Variables(params), batch, key=None, train=True)
        mapped = out["hidden"] @ regressor["kernel"] + regressor["bias"].reshape(1, -1)
        return {
            "kd": 0.9 * losses.soft_target_kl(out["logits"], taught["logits"]).mean(),
            "hint": 8.0 * (1 - state.step / 4) * jnp.mean((mapped - taught["vector"]) ** 2),
            "rkd/distance": 25.0 * losses.distance_relation(out["hidden"], taught["vector"]).mean(),
            "rkd/similar": 50.0 * losses.similarity_preserving(out["hidden"], taught["vector"]).mean(),
        }

    alone = jax.jit(lambda p: {name: jax.grad(lambda p, name=name: terms(p)[name])(p) for name in TERMS})
    gradients = alone(state.student.params)
    flat = {
        n: np.concatenate([np.ravel(x) for x in jax.tree.leaves(g)]).astype(np.float64) for n, g in gradients.items()
    }
    found = {f"grad_norm/{name}": np.linalg.norm(g) for name, g in flat.items()}
    for a, b in itertools.combinations(TERMS, 2):
        found[f"grad_cosine/{a},{b}"] = flat[a] @ flat[b] / np.linalg.norm(flat[a]) / np.linalg.norm(flat[b])
    return found


def shard_mapped(kd, devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), (DATA_AXIS,))
    specs = {"in_specs": (PartitionSpec(), PartitionSpec(DATA_AXIS)), "out_specs": PartitionSpec()}
    step = jax.jit(jax.shard_map(kd.step, mesh=mesh, **specs))
    return lambda state, batch: step(state, jaxkd.parallel.pad(batch, devices))


PLACES = {
    "jit": lambda kd: jax.jit(kd.step),
    "pmap": lambda kd: jaxkd.parallel.pmap(kd, jax.devices()[:4]).step,
    "shard": lambda kd: jaxkd.parallel.shard(kd, Mesh(np.array(jax.devices()[:4]), ("data",))).step,
    "shard_map": lambda kd: shard_mapped(kd, 4),
}


@pytest.fixture(scope="module")
def expected():
    """The state after one step, the expected gradients there, and the result of an unwrapped step."""
    state, _ = jax.jit(PLAIN.step)(PLAIN.init(jax.random.key(0), tiny.batch(8)), tiny.batch(8))
    new, metrics = jax.jit(PLAIN.step)(state, masked())
    return (
        jax.tree.map(np.asarray, state._replace(key=jax.random.key_data(state.key))),
        by_hand(state, masked()),
        (new, tiny.numbers(metrics)),
    )


@pytest.mark.slow
@pytest.mark.parametrize("place", ["jit", "shard", "shard_map", pytest.param("pmap", marks=pytest.mark.slow)])
def test_gradients_are_those_of_each_term_alone_on_the_global_batch(place, expected):
    start, gradients, (plain, metrics) = expected
    state = jax.tree.map(jnp.array, start)
    state = state._replace(key=jax.random.wrap_key_data(state.key))
    state, found = PLACES[place](KD)(state, masked())
    found = tiny.numbers(found)
    assert found.keys() == NAMES | metrics.keys()
    assert {name: found[name] for name in NAMES} == pytest.approx(gradients, rel=2e-3, abs=1e-4)
    assert {name: found[name] for name in metrics} == pytest.approx(metrics, rel=1e-3)
    tiny.assert_close(state, plain, rtol=1e-3, atol=1e-5)
    assert all(abs(gradients[name]) > 1e-2 for name in NAMES)  # far above the tolerance


@pytest.mark.slow
def test_reports_every_few_steps():
    """Counts are 0 in other steps, so that a row holds the mean over the steps that report."""
    _, kd = make_distillers(every=2)
    state, each = kd.init(jax.random.key(0), tiny.batch(8)), jax.jit(KD.step)
    step, counts, total = jax.jit(kd.step), [], {}
    norms = []
    for number in range(4):
        norms.append(tiny.numbers(each(state, tiny.batch(8, number))[1])["grad_norm/kd"])
        state, metrics = step(state, tiny.batch(8, number))
        counts.append(float(metrics["grad_norm/kd"].count))
        total = jaxkd.metrics.merge(total, metrics)
    assert counts == [1, 0, 1, 0]
    assert tiny.numbers(total)["grad_norm/kd"] == pytest.approx((norms[0] + norms[2]) / 2, rel=1e-4)
    # Other steps do not compute the backward passes at all.
    names = [x.primitive.name for x in jax.make_jaxpr(kd.step)(state, tiny.batch(8)).eqns]
    assert names.count("cond") == 1


@pytest.mark.slow
def test_adversarial_term_reports_the_gradient_of_the_student():
    """The loss of the discriminator and its metrics do not contribute."""
    objective = combine(
        game=objectives.adversarial("student/logits", "teacher/logits", weight=0.5),
        ce=term(losses.cross_entropy, "student/logits", "batch/label", weight=0.0),
    )
    plain, kd = make_distillers(objective)
    state = plain.init(jax.random.key(0), tiny.batch(8))
    found = tiny.numbers(jax.jit(kd.step)(state, tiny.batch(8))[1])
    new, _ = jax.jit(plain.step)(state, tiny.batch(8))
    moved = jax.tree.map(lambda a, b: (a - b) / 0.1, state.student.params, new.student.params)
    assert found["grad_norm/game"] == pytest.approx(float(optax.tree.norm(moved)), rel=1e-3)
    # A term of weight 0 has no gradient, and its cosines have a count of 0.
    assert found["grad_norm/ce"] == 0 and np.isnan(found["grad_cosine/ce,game"])


def test_single_term_has_a_norm():
    _, kd = make_distillers(term(losses.cross_entropy, "student/logits", "batch/label"))
    found = jax.eval_shape(kd.step, kd.init(jax.random.key(0), tiny.batch(8)), tiny.batch(8))[1]
    assert [name for name in found if name.startswith("grad_")] == ["grad_norm/objective"]


def test_composes_with_other_wrappers():
    kd = distillers.skip_nonfinite(
        distillers.term_gradients(distillers.with_ema(PLAIN, decay=0.5), NET, tiny.teacher(), OBJECTIVE)
    )
    state, found = jax.jit(kd.step)(kd.init(jax.random.key(0), tiny.batch(8)), tiny.batch(8))
    assert NAMES | {"skipped", "loss"} <= found.keys()
    assert not np.array_equal(distillers.ema_params(state).params["head"]["bias"], state.student.params["head"]["bias"])


@pytest.mark.slow
def test_no_cost_without_reports():
    """Terms that `combine` returns add no FLOPs to a step that does not use them."""

    def silent(params, state, context, key):
        return OBJECTIVE.apply(params, state, context, key)._replace(terms={})

    def flops(objective):
        kd = jaxkd.distill(NET, tiny.teacher(), objective, optimizer=SGD)
        state = kd.init(jax.random.key(0), tiny.batch(8))
        return jax.jit(kd.step).lower(state, tiny.batch(8)).compile().cost_analysis()["flops"]

    assert flops(OBJECTIVE) <= flops(jaxkd.Objective(OBJECTIVE.init, silent))


@pytest.mark.slow
def test_terms_sum_to_the_value():
    state = PLAIN.init(jax.random.key(0), tiny.batch(8))
    taught, _ = tiny.teacher_model.apply(state.teacher, tiny.batch(8), key=None, train=False)
    out, _ = NET.apply(state.student, tiny.batch(8), key=None, train=False)
    context = jaxkd.Context(out, taught, tiny.batch(8), jnp.int32(0))
    found = OBJECTIVE.apply(state.objective.params, state.objective.state, context, None)
    assert sorted(found.terms) == TERMS
    np.testing.assert_allclose(sum(found.terms.values()), found.value, rtol=1e-6)


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match="term_gradients, every: expected a positive number of steps, got 0"):
        make_distillers(every=0)
