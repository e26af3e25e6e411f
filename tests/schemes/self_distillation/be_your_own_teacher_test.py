"""`schemes.byot`: value and gradient, schedules, exported network, heads, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import adapters, losses, term, wrappers
from jaxkd.schemes import byot
from jaxkd.schemes.self_distillation import exit_head
from jaxkd.wrappers import Exit, get_member
from tests import tiny
from tests.schemes import self_runs

SGD = optax.sgd(0.1, momentum=0.9)


def _init(key, feature):
    one, two = jax.random.split(key)
    size = feature.shape[-1]
    return {"bend": jax.random.normal(one, (size, 4)), "out": jax.random.normal(two, (4, tiny.CLASSES))}


def _apply(params, feature):
    bent = jnp.tanh(feature.mean(axis=tuple(range(1, feature.ndim - 1))) @ params["bend"])
    return {"logits": bent @ params["out"], "feature": bent}


PLAIN = adapters.plain(_init, _apply, inputs="feature")
EXITS = {"early": Exit("map", PLAIN)}


def made(exits=EXITS, **options):
    return byot(tiny.student, exits, **{"optimizer": SGD, "feature": "vector", **options})


def test_step_matches_float64_value_and_gradient():
    """Distillation terms train only the exits and the layers below them."""
    kd = made(optimizer=optax.sgd(1.0), alpha=0.4, temperature=2.5, feature_weight=0.3)
    given = tiny.batch(8)
    start = kd.init(jax.random.key(1), given)
    after, metrics = jax.jit(kd.step)(start, given)
    params = self_runs.double(start.student.params)
    target, hint = self_runs.forward(params["model"], given["image"])  # a constant

    def loss(params):
        logits, vector = self_runs.forward(params["model"], given["image"])
        bent = np.tanh(vector @ params["early"]["bend"])
        early = bent @ params["early"]["out"]
        hard = self_runs.cross_entropy(logits, given["label"]) + 0.6 * self_runs.cross_entropy(early, given["label"])
        return hard + 0.4 * self_runs.kl(target, early, 2.5) + 0.3 * ((bent - hint) ** 2).sum(axis=1).mean()

    np.testing.assert_allclose(tiny.numbers(metrics)["loss"], loss(params), rtol=1e-5)
    self_runs.assert_slopes(loss, params, jax.tree.map(np.subtract, params, self_runs.double(after.student.params)))
    # The deepest classifier learns from the labels alone.
    alone = jaxkd.combine(ce=term(losses.cross_entropy, "student/logits", "batch/label"))
    plain = jaxkd.distill(tiny.student, jaxkd.teachers.none(), alone, optimizer=optax.sgd(1.0))
    expected, _ = self_runs.run(plain, [given])
    tiny.assert_close(after.student.params["model"]["second"], expected.student.params["second"])


def test_constant_schedules_equal_numbers():
    """Constant schedules give the numbers' result; others follow the step."""
    batches = [tiny.batch(8, i) for i in range(3)]
    numbers = {"alpha": 0.4, "temperature": 2.0, "feature_weight": 0.1, "weight": 0.5}
    expected, _ = self_runs.run(made(**numbers), batches)
    state, _ = self_runs.run(made(**{k: optax.constant_schedule(v) for k, v in numbers.items()}), batches)
    tiny.assert_close(state, expected)
    found = self_runs.run(made(alpha=optax.linear_schedule(0.0, 1.0, 2)), batches)[1]
    assert [one["early/ce/weight"] for one in found] == [1, 0.5, 0]
    assert [one["early/kd/weight"] for one in found] == [0, 0.5, 1]


def test_member_model_equals_the_plain_network():
    given = tiny.batch(8)
    state, _ = self_runs.run(made(), [given])
    both = wrappers.with_exits(tiny.student, EXITS)
    seen = jax.jit(lambda v, b: both.apply(v, b, key=None, train=False)[0])(state.student, given)
    alone = jax.jit(lambda v, b: dict(tiny.student.apply(v, b, key=None, train=False)[0]))(
        get_member(state.student, "model"), given
    )
    np.testing.assert_array_equal(seen["logits"], alone["logits"])
    found = tiny.numbers(jax.jit(made().evaluate)(state, given))
    assert found["accuracy"] == np.mean(np.argmax(alone["logits"], axis=1) == given["label"])
    assert found["early/accuracy"] == np.mean(np.argmax(seen["early/logits"], axis=1) == given["label"])


@pytest.fixture(scope="module")
def bottlenecks():
    """Exits with BatchNorm, on a map and on a vector."""
    exits = {"map": Exit("map", exit_head(tiny.CLASSES, 4, shrink=2)), "deep": Exit("vector", exit_head(3, 4))}
    return made(exits, feature_weight=0.1)


@pytest.mark.slow
def test_pmap_with_batch_norm_exits_equals_jit(bottlenecks):
    batches = [tiny.batch(6, i) for i in range(2)]
    self_runs.assert_placed(bottlenecks, batches, *self_runs.run(bottlenecks, batches))


@pytest.mark.slow
def test_bottleneck_exits_learn(bottlenecks):
    state, found = self_runs.run(bottlenecks, [tiny.batch(6)] * 30)
    for name in "map", "deep":
        assert found[-1][f"{name}/ce"] < found[0][f"{name}/ce"]
        assert set(state.student.params) == {"model", "map", "deep"}


@pytest.mark.slow
def test_exit_head_takes_maps_and_vectors():
    head = exit_head(10, 16, shrink=2)
    for shape, count in ((3, 8, 6, 5), 3), ((3, 5), 3):
        batch = {"feature": jnp.ones(shape)}
        variables = head.init(jax.random.key(0), batch)
        outputs, state = head.apply(variables, batch, key=None, train=True)
        assert (outputs["logits"].shape, outputs["feature"].shape) == ((3, 10), (3, 16))
        assert len(state["batch_stats"]) == count
    with pytest.raises(ValueError, match=r"at least 2 x 2, got float32\[3, 1, 4, 5\]"):
        head.init(jax.random.key(0), {"feature": jnp.ones((3, 1, 4, 5))})
    with pytest.raises(ValueError, match=r"expected a vector .* got float32\[3, 4, 5\]"):
        head.init(jax.random.key(0), {"feature": jnp.ones((3, 4, 5))})


def test_extreme_parameters_and_masked_batches_stay_finite():
    kd, given = made(optimizer=optax.sgd(0.1)), tiny.batch(1)
    start = kd.init(jax.random.key(1), given)
    huge = start._replace(student=start.student._replace(params=jax.tree.map(lambda x: 1e4 * x, start.student.params)))
    for state, one in (huge, given), (start, {**given, "mask": np.zeros(1, bool)}):
        after, metrics = jax.jit(kd.step)(state, one)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves(after.student))
        assert np.isfinite(metrics["loss"].sum)
    tiny.assert_equal(after.student, start.student)


def test_invalid_arguments_raise():
    key = jax.random.key(0)
    with pytest.raises(ValueError, match="expected at least one, got none"):
        made({})
    with pytest.raises(ValueError, match="the name 'ce' is reserved"):
        made({"ce": EXITS["early"]})
    with pytest.raises(ValueError, match=r"alpha: expected a number from 0 to 1.*got 1.5"):
        made(alpha=1.5)
    with pytest.raises(ValueError, match="hidden_size: expected a positive number, got 0"):
        exit_head(10, 0)
    with pytest.raises(ValueError, match=r"exit 'early', output of the model 'stage9'"):
        made({"early": Exit("stage9", PLAIN)}).init(key, tiny.batch(4))
    with pytest.raises(ValueError, match=r"teacher entry 'pooled'"):
        made(feature="pooled").init(key, tiny.batch(4))
    with pytest.raises(ValueError, match=r"expected vectors .* of one size, got \[4, 4\] .* and \[4, 4, 4, 4\]"):
        made(feature="map").init(key, tiny.batch(4))
