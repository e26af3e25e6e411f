"""Adversarial objectives: gradient routing, values, gradient penalty, masks, devices and training."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxkd import Context, losses
from jaxkd.objectives import adversarial, wasserstein
from jaxkd.objectives.discriminators import cnn, mlp
from tests import objective_runs, references, tiny
from tests.objective_runs import KEY, double, initialize, run

BATCH, CLASSES = 16, 3
VECTORS, MAPS = ("student/logits", "teacher/logits"), ("student/map", "teacher/map")
KEEP = np.arange(BATCH) % 5 > 1

OBJECTIVES = {
    "plain": adversarial(*VECTORS, discriminator=mlp(6), weight=0.3),
    "conditional": adversarial(*VECTORS, discriminator=mlp(6), label_path="batch/label", weight=0.3),
    "of maps": adversarial(*MAPS, discriminator=cnn(4, 5), label_path="batch/label", num_classes=CLASSES, weight=0.3),
    "wasserstein": wasserstein(*VECTORS, discriminator=mlp(6), weight=0.3),
    "wasserstein of maps": wasserstein(*MAPS, condition="batch/image", discriminator=cnn(4), penalty=5.0, weight=0.3),
}


@pytest.fixture(params=OBJECTIVES)
def name(request):
    return request.param


def arrays(size=BATCH, seed=0, mask=None):
    rng = np.random.default_rng(seed)
    shapes = {"logits": (size, CLASSES), "map": (size, 6, 6, 2)}
    outputs = [{n: rng.normal(size=s).astype(np.float32) for n, s in shapes.items()} for _ in range(2)]
    batch = {
        "label": rng.integers(0, CLASSES, size).astype(np.int32),
        "image": rng.normal(size=(size, 6, 6, 1)).astype(np.float32),
    }
    return {
        "student": outputs[0],
        "teacher": outputs[1],
        "batch": batch if mask is None else {**batch, "mask": mask},
    }


def params_of(objective, given, seed=0):
    """Initial variables with random offsets, so that no bias is zero."""
    variables = initialize(objective, given, seed)
    rng = np.random.default_rng(seed)
    return variables._replace(
        params=jax.tree.map(lambda x: x + 0.1 * rng.normal(size=x.shape).astype(np.float32), variables.params)
    )


# --- the games, one at a time ----------------------------------------------------------------------------------------


def games(name, given):
    """Returns the discriminator's and the student's loss as functions of ``(discriminator, student)``."""
    feature = "map" if "maps" in name else "logits"
    network = {"of maps": cnn(4, 5), "wasserstein of maps": cnn(4)}.get(name, mlp(6))
    teacher, label = given["teacher"][feature], given["batch"]["label"]
    penalty = 5.0 if "maps" in name else 10.0

    def told(out):
        return losses.cross_entropy(out[:, 1:], label).mean() if name in ("conditional", "of maps") else 0.0

    def discriminator(params, student):
        real, fake = network.apply(params, teacher), network.apply(params, student[feature])
        game = jnp.log1p(jnp.exp(-real[:, 0])).mean() + jnp.log1p(jnp.exp(fake[:, 0])).mean()
        return game + told(real) + told(fake)

    def passing(params, student):
        out = network.apply(params, student[feature])
        return -jax.nn.log_sigmoid(out[:, 0]).mean() + told(out)

    def score(params, x):
        seen = jnp.concatenate([x, given["batch"]["image"]], axis=-1) if "maps" in name else x
        return network.apply(params, seen)[:, 0]

    def critic(params, student):
        student = student[feature]
        mix = jax.vmap(lambda k: jax.random.uniform(k))(
            jax.vmap(lambda i: jax.random.fold_in(KEY, i))(jnp.arange(len(student)))
        ).reshape(-1, *[1] * (student.ndim - 1))
        between = mix * student + (1 - mix) * teacher
        slope = jax.grad(lambda x: score(params, x).sum())(between).reshape(len(student), -1)
        norm = jnp.linalg.norm(slope, axis=1)
        return (score(params, student) - score(params, teacher) + penalty * (norm - 1) ** 2).mean()

    def fooling(params, student):
        return -score(params, student[feature]).mean()

    return (critic, fooling) if "wasserstein" in name else (discriminator, passing)


def test_discriminator_and_student_gradients_are_separate(name):
    """One backward pass equals two: the discriminator's loss for its parameters, the student's for the student."""
    objective, given = OBJECTIVES[name], arrays()
    variables = params_of(objective, given)
    params, student = variables.params["discriminator"], given["student"]
    own, other = games(name, given)
    want_params = jax.jit(jax.grad(own, 0))(params, student)
    want_student = jax.jit(jax.grad(other, 1))(params, student)
    found = run(objective, variables, given)
    tiny.assert_close(found.params["discriminator"], want_params, rtol=1e-4, atol=1e-6)
    tiny.assert_close(found.student, jax.tree.map(lambda g: 0.3 * g, want_student), rtol=1e-4, atol=1e-6)
    if "wasserstein" in name:  # the critic's last bias cancels in the difference of scores
        found.params["discriminator"][-1].pop("bias")
    assert all((g != 0).any() for g in jax.tree.leaves(found.params))
    values = jax.jit(own)(params, student), jax.jit(other)(params, student)
    np.testing.assert_allclose(found.value, values[0] + 0.3 * values[1], rtol=1e-5)
    np.testing.assert_allclose(found.metrics["discriminator"], values[0], rtol=1e-5)
    np.testing.assert_allclose(found.metrics[""], values[1], rtol=1e-5)


def test_weight_scales_only_the_student_loss():
    given = arrays()
    for make in adversarial, wasserstein:
        found = []
        for weight in 0.0, 2.0:
            objective = make(*VECTORS, discriminator=mlp(6), weight=weight)
            found.append(run(objective, params_of(objective, given), given))
        tiny.assert_close(found[0].params, found[1].params, rtol=1e-6)
        assert (found[0].student["logits"] == 0).all()
        assert (found[1].student["logits"] != 0).any()


def numpy_mlp(params, x):
    for i, layer in enumerate(params):
        x = np.where(x > 0, x, 0.2 * x) if i else x
        x = x @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    return x


def test_value_equals_numpy_reference():
    """The plain and the conditional loss, with a network written in NumPy."""
    given = arrays()
    label = given["batch"]["label"]
    for name in "plain", "conditional":
        objective = OBJECTIVES[name]
        variables = params_of(objective, given)
        real, fake = (numpy_mlp(variables.params["discriminator"], given[s]["logits"]) for s in ("teacher", "student"))
        sigmoid = lambda z: 1 / (1 + np.exp(-z))  # noqa: E731
        game = -np.log(sigmoid(real[:, 0])) - np.log(1 - sigmoid(fake[:, 0]))
        passing = -np.log(sigmoid(fake[:, 0]))
        if name == "conditional":
            told = [-references.base.log_softmax(x[:, 1:])[np.arange(BATCH), label] for x in (real, fake)]
            game, passing = game + told[0] + told[1], passing + told[1]
        found = run(objective, variables, given)
        np.testing.assert_allclose(found.value, game.mean() + 0.3 * passing.mean(), rtol=1e-5)
        accuracy = ((real[:, 0] > 0).mean() + (fake[:, 0] < 0).mean()) / 2
        np.testing.assert_allclose(found.metrics["accuracy"], accuracy, rtol=1e-6)


def test_gradient_penalty_equals_finite_differences():
    """Finite differences of a NumPy critic give the penalty, and once more its gradient, a second derivative."""
    given = arrays(5)
    objective = wasserstein(*VECTORS, discriminator=mlp(6), penalty=7.0, weight=0.0)
    with jax.enable_x64(True):
        given, variables = double(given), double(params_of(objective, given))
        s, t = (np.asarray(given[side]["logits"]) for side in ("student", "teacher"))

        def value(params, mix=0.5):
            critic = lambda x: numpy_mlp(params, x)[:, 0]  # noqa: E731
            slope = references.finite_difference(lambda x: critic(x).sum(), mix * s + (1 - mix) * t)
            penalty = 7.0 * (np.linalg.norm(slope, axis=1) - 1) ** 2
            return (critic(s) - critic(t) + penalty).mean()

        found = run(objective, variables, given, None)  # without a key, x̂ is the midpoint
        params = jax.tree.map(np.asarray, variables.params["discriminator"])
        np.testing.assert_allclose(found.value, value(params), rtol=1e-8)
        for i, layer in enumerate(params):
            for part, at in layer.items():

                def moved(x, i=i, part=part):
                    return value([*params[:i], {**params[i], part: x}, *params[i + 1 :]])

                want = references.finite_difference(moved, at, step=1e-4)
                np.testing.assert_allclose(found.params["discriminator"][i][part], want, rtol=1e-4, atol=1e-5)


def test_critic_with_zero_slope_has_finite_gradients():
    given = arrays()
    for name in "wasserstein", "wasserstein of maps":
        objective = OBJECTIVES[name]
        variables = initialize(objective, given)
        for still in variables.params, jax.tree.map(jnp.zeros_like, variables.params):
            same = {**given, "student": given["teacher"]}
            found = run(objective, variables._replace(params=still), same)
            assert all(np.isfinite(x).all() for x in jax.tree.leaves(found))
        np.testing.assert_allclose(found.metrics["discriminator"], 5.0 if "maps" in name else 10.0)


def test_interpolation_points_differ_between_steps():
    given = arrays()
    objective = OBJECTIVES["wasserstein"]
    variables = params_of(objective, given)
    values = {float(run(objective, variables, given, jax.random.key(i)).value) for i in range(3)}
    assert len(values) == 3
    tiny.assert_equal(run(objective, variables, given, None), run(objective, variables, given, None))


def test_condition_receives_no_gradient():
    """A student output that serves as the condition is not trained to fool the critic."""
    objective = wasserstein(*VECTORS, condition="student/extra", discriminator=mlp(6))
    given = arrays()
    given["student"]["extra"] = np.ones((BATCH, 2), np.float32)
    found = run(objective, params_of(objective, given), given)
    assert (found.student["extra"] == 0).all()
    assert (found.student["logits"] != 0).any()


# --- masks and devices -----------------------------------------------------------------------------------------------


def test_masking_equals_dropping(name):
    given = arrays(mask=KEEP)
    objective = OBJECTIVES[name]
    variables = params_of(objective, given)
    kept = {root: objective_runs.rows(tree, KEEP) for root, tree in given.items()}
    del kept["batch"]["mask"]
    want = run(objective, variables, kept)
    for garbage in np.nan, np.inf, 1e30:
        other = {root: objective_runs.spoiled(tree, KEEP, garbage) for root, tree in given.items()}
        other["batch"]["label"] = np.where(KEEP, given["batch"]["label"], 99)
        found = run(objective, variables, other)
        tiny.assert_close(found._replace(student={}), want._replace(student={}), rtol=1e-4, atol=1e-5)
        tiny.assert_close(objective_runs.rows(found.student, KEEP), want.student, rtol=1e-4, atol=1e-5)
        assert all((g[~KEEP] == 0).all() for g in jax.tree.leaves(found.student))


@pytest.mark.parametrize(("way", "count"), [("pmap", 8), ("shard_map", 4), ("shard_map, unchecked", 2)], ids=str)
@pytest.mark.parametrize("of", ["conditional", "wasserstein of maps"])
def test_result_is_independent_of_device_count(of, way, count):
    objective = OBJECTIVES[of]
    variables = params_of(objective, arrays())
    placed = objective_runs.on_devices(objective, way, count)
    for mask in np.ones(BATCH, bool), KEEP, np.arange(BATCH) >= BATCH // 2:
        given = arrays(mask=mask)
        tiny.assert_close(placed(variables, given), run(objective, variables, given), rtol=1e-4, atol=1e-5)


def test_bfloat16_equals_upcast_input(name):
    given, objective = arrays(), OBJECTIVES[name]
    low = {
        **given,
        **{s: jax.tree.map(lambda x: jnp.asarray(x, jnp.bfloat16), given[s]) for s in ("student", "teacher")},
    }
    high = {**low, **{s: jax.tree.map(lambda x: x.astype(jnp.float32), low[s]) for s in ("student", "teacher")}}
    variables = params_of(objective, given)
    found, want = run(objective, variables, low), run(objective, variables, high)
    assert all(g.dtype == jnp.bfloat16 for g in jax.tree.leaves(found.student))
    tiny.assert_close(found._replace(student={}), want._replace(student={}), rtol=1e-5)


# --- they play -------------------------------------------------------------------------------------------------------


def play(objective, *, steps, student_rate, rate=0.01, seed=0):
    """Trains a student that only shifts its outputs towards a teacher at distance 3; metrics and shift per step."""
    start = {"shift": jnp.zeros(2), "loss": objective.init(jax.random.key(seed), _toy(jnp.zeros(2), 0)).params}
    optimizer = optax.multi_transform(
        {"student": optax.sgd(student_rate), "loss": optax.adam(rate)}, {"shift": "student", "loss": "loss"}
    )

    def step(carry, i):
        trained, slots = carry

        def value(trained):
            out = objective.apply(trained["loss"], {}, _toy(trained["shift"], i), jax.random.key(i))
            return out.value, out.metrics

        gradient, metrics = jax.grad(value, has_aux=True)(trained)
        updates, slots = optimizer.update(gradient, slots)
        trained = optax.apply_updates(trained, updates)
        return (trained, slots), ({name: m.sum / m.count for name, m in metrics.items()}, trained["shift"])

    return jax.jit(lambda start: jax.lax.scan(step, (start, optimizer.init(start)), jnp.arange(steps))[1])(start)


def _toy(shift, i):
    keys = jax.random.split(jax.random.key(i + 100))
    student, teacher = (jax.random.normal(key, (64, 2)) for key in keys)
    return Context({"logits": student + shift[None]}, {"logits": teacher + jnp.array([[3.0, 0.0]])}, {}, i)


def test_discriminator_learns_to_separate():
    metrics, shift = play(adversarial(*VECTORS, discriminator=mlp(16)), steps=200, student_rate=0.0)
    assert (shift == 0).all()
    assert metrics["accuracy"][-20:].mean() > 0.85
    assert metrics["discriminator"][-20:].mean() < 0.5 * metrics["discriminator"][0]
    assert metrics[""][-20:].mean() > metrics[""][0]  # a better discriminator raises the student's loss


@pytest.mark.parametrize("make", [adversarial, wasserstein])
def test_student_learns_to_fool_the_discriminator(make):
    metrics, shift = play(make(*VECTORS, discriminator=mlp(16)), steps=800, student_rate=0.02)
    # The average over steps, since against a critic the student circles around the teacher.
    away = np.linalg.norm(np.asarray(shift)[-400:].mean(axis=0) - [3.0, 0.0])
    assert away < 0.8
    if make is adversarial:
        assert metrics["accuracy"][-50:].mean() < 0.75


# --- networks and errors ---------------------------------------------------------------------------------------------


def test_default_discriminator_follows_input_rank():
    given = arrays(2)
    flat, maps = (initialize(adversarial(*paths), given).params["discriminator"] for paths in (VECTORS, MAPS))
    assert [layer["kernel"].shape for layer in flat] == [(3, 128), (128, 128), (128, 1)]
    assert [layer["kernel"].shape for layer in maps] == [(4, 4, 2, 64), (4, 4, 64, 128), (128, 1)]
    conditional = adversarial(*VECTORS, label_path="batch/label", discriminator=mlp())
    assert initialize(conditional, given).params["discriminator"][0]["kernel"].shape == (3, 4)


def test_mismatched_inputs_raise():
    given = arrays(4)
    given["teacher"]["logits"] = given["teacher"]["logits"][:, :2]
    given["batch"]["label"] = given["batch"]["label"].astype(np.float32)
    for make in adversarial, wasserstein:
        with pytest.raises(
            ValueError, match=r"teacher/logits: expected the shape of student/logits, \[4, 3\], got \[4, 2"
        ):
            initialize(make(*VECTORS), given)
    with pytest.raises(ValueError, match=r"batch/label: expected integer classes \[batch\], got float32\[4\]"):
        initialize(adversarial(*MAPS, label_path="batch/label"), given)
    with pytest.raises(ValueError, match=r"batch/image: expected \[4, 'height', 'width', 'channels'\], .* got \[3, 6"):
        short = {**given, "batch": {"image": np.ones((3, 6, 6, 1), np.float32)}}
        initialize(wasserstein(*MAPS, condition="batch/image"), short)
    with pytest.raises(ValueError, match=r"cnn: expected maps .* got \[4, 3\]"):
        initialize(adversarial(*VECTORS, discriminator=cnn(4)), arrays(4))
    with pytest.raises(ValueError, match="student entry 'logit'"):
        initialize(adversarial("student/logit", "teacher/logits"), arrays(4))
