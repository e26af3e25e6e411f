"""A sweep gives the results of separate runs, from one program and with one shared teacher."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, data, distillers, losses, objectives, teachers, term, training
from tests import tiny

SETTINGS = {"temperature": [1.0, 4.0], "weight": [0.9, 0.1], "rate": [0.1, 0.2]}
KEY = jax.random.key(0)
TRACES: list[float] = []


def make(temperature=4.0, weight=0.9, rate=0.1):
    TRACES.append(temperature)
    objective = combine(
        ce=term(losses.cross_entropy, "student/logits", "batch/label", weight=1 - weight),
        kd=term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=weight, temperature=temperature),
        hint=objectives.hint("student/vector", "teacher/vector", weight=weight),
    )
    optimizer = optax.sgd(rate, momentum=0.9)
    return jaxkd.distill(tiny.student, tiny.teacher(), objective, optimizer=optimizer)


def separately(values, key, steps, kd=None):
    kd = make(**values) if kd is None else kd
    state, step = kd.init(key, tiny.batch(8)), jax.jit(kd.step)
    for number in range(steps):
        state, metrics = step(state, tiny.batch(8, number))
    return state, tiny.numbers(metrics), tiny.numbers(kd.evaluate(state, tiny.batch(8, 9)))


def picked(metrics, i):
    return {name: float(mean.sum[i] / mean.count[i]) for name, mean in metrics.items()}


def test_members_equal_separate_runs():
    kd = distillers.sweep(make, **SETTINGS)
    state, step = kd.init(KEY, tiny.batch(8)), jax.jit(kd.step, donate_argnums=0)
    for number in range(3):
        state, metrics = step(state, tiny.batch(8, number))
    evaluated = jax.jit(kd.evaluate)(state, tiny.batch(8, 9))
    ends = []
    for i in range(2):
        end, found, seen = separately({name: value[i] for name, value in SETTINGS.items()}, KEY, 3)
        tiny.assert_close(distillers.select_run(state, i), end, rtol=1e-4, atol=1e-5)
        assert picked(metrics, i) == pytest.approx(found, rel=1e-4)
        assert picked(evaluated, i) == pytest.approx(seen, rel=1e-4)
        ends.append(end.student.params["second"])
    assert np.abs(ends[0] - ends[1]).max() > 1e-3  # far above the tolerance


def test_keys_are_swept():
    kd, keys = distillers.sweep(make), jax.random.split(KEY, 2)
    start = kd.init(keys, tiny.batch(8))
    state, _ = jax.jit(kd.step)(start, tiny.batch(8))
    alone, step = make(), jax.jit(make().step)
    for i in range(2):
        expected, _ = step(alone.init(keys[i], tiny.batch(8)), tiny.batch(8))
        tiny.assert_close(distillers.select_run(state, i), expected, rtol=1e-4, atol=1e-5)
    first, second = (distillers.select_run(state, i).student.params["first"] for i in range(2))
    assert not np.array_equal(first, second)
    # With settings and keys, each member has its own key and its own values.
    both = distillers.sweep(make, rate=[0.1, 0.2]).init(keys, tiny.batch(8))
    tiny.assert_equal(both._replace(opt_state={}), start._replace(opt_state={}))


def test_raw_uint32_keys():
    kd = distillers.sweep(make)
    keys = jnp.stack([jax.random.PRNGKey(i) for i in range(2)])
    state = kd.init(keys, tiny.batch(8))
    tiny.assert_equal(distillers.select_run(state, 1), make().init(keys[1], tiny.batch(8)))
    paired = distillers.sweep(make, rate=[0.1, 0.2]).init(keys[0], tiny.batch(8))
    tiny.assert_equal(distillers.select_run(paired, 1), make(rate=0.2).init(keys[0], tiny.batch(8)))


def test_step_is_traced_once_for_all_members():
    kd = distillers.sweep(make, **SETTINGS)
    state, step = kd.init(KEY, tiny.batch(8)), jax.jit(kd.step)
    TRACES.clear()
    for number in range(4):
        state, _ = step(state, tiny.batch(8, number))
    assert len(TRACES) == 1


def test_frozen_teacher_is_stored_and_evaluated_once():
    seen = []
    counted = tiny.teacher_model._replace(
        apply=lambda variables, batch, **options: (
            seen.append(jax.tree.leaves(variables)[0].shape) or tiny.teacher_model.apply(variables, batch, **options)
        )
    )
    teacher = teachers.frozen(counted, tiny.teacher_variables())
    objective = term(losses.soft_target_kl, "student/logits", "teacher/logits")

    def of(chosen):
        return lambda rate: jaxkd.distill(tiny.student, chosen, objective, optimizer=optax.sgd(rate))

    state = distillers.sweep(of(teacher), rate=[0.1, 0.2]).init(KEY, tiny.batch(8))
    tiny.assert_equal(state.teacher.value, tiny.teacher_variables())
    step = distillers.sweep(of(teacher), rate=jnp.full(50, 0.1)).step
    many = distillers.sweep(of(teacher), rate=jnp.full(50, 0.1)).init(KEY, tiny.batch(8))
    dots = [x for x in jax.make_jaxpr(step)(many, tiny.batch(8)).eqns if x.primitive.name == "dot_general"]
    wide = [x for x in dots if 50 in x.outvars[0].aval.shape]
    assert len(dots) - len(wide) == 2  # the teacher's two layers
    # A teacher that follows the student differs between members.
    own = distillers.sweep(of(teachers.ema(tiny.student)), rate=[0.1, 0.2]).init(KEY, tiny.batch(8))
    assert jax.tree.leaves(own.teacher)[0].shape[0] == 2


def test_teacher_that_depends_on_the_member():
    """A teacher with swept weights, and a mean teacher."""

    def made(share):
        teacher = teachers.ensemble(
            [tiny.teacher(), teachers.ema(tiny.student, decay=share)], weights=[share, 1 - share]
        )
        objective = term(losses.logit_mse, "student/logits", "teacher/logits")
        return jaxkd.distill(tiny.student, teacher, objective, optimizer=optax.sgd(0.5))

    kd = distillers.sweep(made, share=[0.5, 0.9])
    state, step = kd.init(KEY, tiny.batch(8)), jax.jit(kd.step)
    for number in range(2):
        state, _ = step(state, tiny.batch(8, number))
    for i, share in enumerate([0.5, 0.9]):
        tiny.assert_close(distillers.select_run(state, i), separately({}, KEY, 2, made(share))[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_fit_logs_each_member_and_a_member_can_be_trained_further(tmp_path):
    model = jaxkd.adapters.plain(
        lambda key, x: 0.1 * jax.random.normal(key, (64, 10)), lambda w, x: x.reshape(-1, 64) / 255 @ w, inputs="image"
    )
    objective = term(losses.cross_entropy, "student/logits", "batch/label")

    def of(rate):
        kd = jaxkd.distill(model, teachers.none(), objective, optimizer=optax.sgd(rate))
        return distillers.with_ema(kd, decay=0.5)

    train = data.Resident(data.load("digits", "train"), batch_size=256)
    settings = {"epochs": 1, "eval_data": train, "progress": False, "log_every": 5}
    result = training.fit(distillers.sweep(of, rate=[0.1, 1.0]), train, key=KEY, directory=tmp_path, **settings)
    alone = training.fit(of(1.0), train, key=KEY, **settings)
    mine = {name.removesuffix("[rate=1]"): x for name, x in result.history[-1].items() if name.endswith("[rate=1]")}
    assert mine == pytest.approx({name: alone.history[-1][name] for name in mine}, rel=1e-4)
    assert "eval/average/accuracy" in mine
    tiny.assert_close(distillers.select_run(result.state, 1), alone.state, rtol=1e-4, atol=1e-5)


def named(**settings):
    """Names under which the metrics of a sweep are logged."""
    model = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")

    def made(rate=0.1, weight=1.0):
        objective = term(losses.cross_entropy, "student/logits", "batch/label", weight=weight)
        return jaxkd.distill(model, teachers.none(), objective, optimizer=optax.sgd(rate))

    batch = {"x": jnp.eye(2), "label": jnp.array([0, 1])}
    kd = distillers.sweep(made, **settings)
    state = jax.eval_shape(lambda: kd.init(KEY if settings else jax.random.split(KEY), batch))
    names = []

    def step(state):
        for metrics in (jaxkd.distillers.preprocess(kd).step(state, batch)[1], kd.evaluate(state, batch)):
            names.append({name for name in jaxkd.metrics.pack(metrics).names if name.startswith("loss")})

    jax.eval_shape(step, state)
    assert names[0] == names[1]
    return sorted(names[0])


def test_metrics_are_named_by_what_is_swept():
    assert named(rate=[0.1, 1.0]) == ["loss[rate=0.1]", "loss[rate=1]"]
    assert named(rate=[0.1, 1e-5], weight=[2, 3]) == ["loss[rate=0.1,weight=2]", "loss[rate=1e-05,weight=3]"]
    assert named(rate=[0.5, 0.5]) == ["loss[0,rate=0.5]", "loss[1,rate=0.5]"]  # as beside swept keys
    assert named() == ["loss[0]", "loss[1]"]


@pytest.mark.slow
def test_data_order_of_each_member():
    resident = data.Resident(data.load("digits", "train"), batch_size=64)
    seeds = jnp.array([3, 4])
    model = jaxkd.adapters.plain(
        lambda key, x: jnp.zeros((64, 10)), lambda w, x: x.reshape(-1, 64) / 255 @ w, inputs="image"
    )
    objective = term(losses.cross_entropy, "student/logits", "batch/label")

    def of(rate):
        return jaxkd.distill(model, teachers.none(), objective, optimizer=optax.sgd(rate))

    def gather(arrays, step):
        return jax.vmap(lambda seed: resident.gather(arrays, step, seed=seed))(seeds)

    kd = distillers.sweep(of, batch_axis=0, rate=[0.1, 0.1])
    batch = gather(resident.arrays, 0)
    state, _ = jax.jit(kd.step)(kd.init(KEY, batch), batch)
    weights = []
    for i, seed in enumerate((3, 4)):
        alone, own = of(0.1), resident.gather(resident.arrays, 0, seed=seed)
        expected, _ = jax.jit(alone.step)(alone.init(KEY, own), own)
        tiny.assert_close(distillers.select_run(state, i), expected, rtol=1e-4, atol=1e-6)
        weights.append(expected.student.params)
    assert not np.allclose(*weights, atol=1e-4)
    shared = {name: x[0] for name, x in batch.items()}
    assert kd.evaluate(state, shared)["loss"].sum.shape == (2,)


@pytest.mark.parametrize("place", ["shard", pytest.param("pmap", marks=pytest.mark.slow)])
def test_sweep_does_not_depend_on_the_devices(place):
    kd = distillers.sweep(make, **SETTINGS)
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:2]), ("data",))
    placed = jaxkd.parallel.pmap(kd, jax.devices()[:2]) if place == "pmap" else jaxkd.parallel.shard(kd, mesh)
    state = kd.init(KEY, tiny.batch(8))
    expected, found = jax.jit(kd.step)(jax.tree.map(jnp.copy, state), tiny.batch(7))
    state, metrics = placed.step(state, tiny.batch(7))
    tiny.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    assert [picked(metrics, i) for i in range(2)] == [pytest.approx(picked(found, i), rel=1e-4) for i in range(2)]


def test_members_skip_steps_independently():
    def of(rate):
        return distillers.skip_nonfinite(make(rate=rate))

    kd = distillers.sweep(of, rate=[0.1, float("nan")])
    start = kd.init(KEY, tiny.batch(8))
    state, metrics = jax.jit(kd.step)(start, tiny.batch(8))
    assert metrics["skipped"].sum.tolist() == [0, 1]
    tiny.assert_equal(distillers.select_run(state, 1).student, distillers.select_run(start, 1).student)
    assert not np.array_equal(distillers.select_run(state, 0).student.params["first"], start.student.params["first"][0])


def traced(loss, *inputs, **values):
    """The loss with traced hyperparameters, and with Python numbers."""
    ((name, chosen),) = values.items()
    mapped = jax.jit(jax.vmap(lambda value: loss(*inputs, **{name: value})))(jnp.array(chosen, jnp.float32))
    return mapped, jnp.stack([loss(*inputs, **{name: value}) for value in chosen])


Z = jax.random.normal(jax.random.key(1), (2, 4, 5))
LABELS = jnp.array([0, 1, 2, 4])


@pytest.mark.parametrize(
    ("loss", "inputs", "values"),
    [
        pytest.param(losses.soft_target_kl, Z, {"temperature": [1.0, 4.0]}, id="soft_target_kl"),
        pytest.param(losses.generalized_jsd, Z, {"beta": [0.0, 0.3, 1.0]}, id="generalized_jsd"),
        pytest.param(losses.skew_kl, Z, {"alpha": [0.0, 0.1, 1.0]}, id="skew_kl"),
        pytest.param(losses.decoupled_kd, (*Z, LABELS), {"beta": [1.0, 8.0]}, id="decoupled_kd"),
        pytest.param(losses.label_smoothing, (Z[0], LABELS), {"smoothing": [0.0, 0.1]}, id="label_smoothing"),
        pytest.param(losses.virtual_teacher_kl, (Z[0], LABELS), {"correct": [0.9, 1.0]}, id="virtual_teacher_kl"),
        pytest.param(losses.attention_transfer, Z[:, :, :, None, None], {"p": [1.0, 2.0]}, id="attention_transfer"),
        pytest.param(losses.probabilistic_transfer, Z, {"epsilon": [1e-7, 1e-3]}, id="probabilistic_transfer"),
    ],
)
def test_hyperparameters_can_be_swept(loss, inputs, values):
    found, expected = traced(loss, *inputs, **values)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=1e-6)
    gradient = jax.vmap(lambda x: jax.grad(lambda z: loss(z, *inputs[1:], **{next(iter(values)): x}).sum())(inputs[0]))
    assert np.isfinite(jax.jit(gradient)(jnp.array(next(iter(values.values())), jnp.float32))).all()


def test_swept_share_out_of_range_gives_nan():
    found = jax.vmap(lambda beta: losses.generalized_jsd(*Z, beta=beta))(jnp.array([-0.1, 0.5, 1.1]))
    assert np.isnan(found).all(axis=1).tolist() == [True, False, True]


def test_other_hyperparameters_can_be_traced():
    def trace(function, **values):
        jax.eval_shape(jax.vmap(function), {name: jnp.array([x, x]) for name, x in values.items()})

    trace(lambda h: losses.darkrank_soft(*Z, **h), alpha=3.0, beta=3.0)
    trace(lambda h: losses.info_nce(*Z, **h), temperature=0.1)
    trace(lambda h: losses.dist(*Z, **h), beta=1.0, gamma=2.0, temperature=4.0)
    feature = {"f": jnp.ones((2, 4, 4, 3))}
    context = jaxkd.Context(feature, feature, {"index": jnp.arange(2)}, 0)

    def value(objective):
        made = objective.init(KEY, context)
        return objective.apply(made.params, made.state, context, KEY).value

    labels = np.arange(6) % 3
    trace(lambda h: value(objectives.crd("student/f", "teacher/f", labels, negatives=2, **h)), temperature=0.1)
    trace(lambda h: value(objectives.dual_masked_generation("student/f", "teacher/f", **h)), threshold=1.0)


def test_invalid_arguments_are_refused():
    with pytest.raises(
        ValueError, match=r"sweep: expected equally many values of each setting, got {'rate': 2, 'weight': 1}"
    ):
        distillers.sweep(make, rate=[0.1, 0.2], weight=[0.5])
    with pytest.raises(ValueError, match=r"sweep, rate: expected one number for each member, \[n\], got \[\]"):
        distillers.sweep(make, rate=0.1)
    with pytest.raises(ValueError, match=r"sweep, key: expected one key, or one for each member, \[2\], got \[3\]"):
        distillers.sweep(make, rate=[0.1, 0.2]).init(jax.random.split(KEY, 3), tiny.batch(8))
    with pytest.raises(ValueError, match=r"sweep, key: expected one key for each member, \[n\], got one key"):
        distillers.sweep(make).init(KEY, tiny.batch(8))
    with pytest.raises(ValueError, match="sweep, batch_axis"):
        distillers.sweep(make, batch_axis=1)
    state = distillers.sweep(make, rate=[0.1, 0.2]).init(KEY, tiny.batch(8))
    for i in (-1, 2):
        with pytest.raises(IndexError, match="select_run: expected a number from 0 to 1"):
            distillers.select_run(state, i)
