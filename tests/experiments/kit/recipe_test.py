"""The recipe and the protocol of the CIFAR-100 benchmark: rates, decays, stages, and who sees which images."""

import dataclasses
import doctest
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from experiments.cifar100 import config, problem, published
from experiments.kit import inputs, measures, methods, plots, recipe, report, statistics, taps
from experiments.kit import training as kit_training
from experiments.kit.rows import cost
from tests.experiments import cifar100_tiny as tiny

# The optimizer and its schedule.


@pytest.mark.parametrize(("student", "base"), [("resnet20", 0.05), ("vgg8", 0.05), *((s, 0.01) for s in recipe.LIGHT)])
@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(240, 2), (12, 4)])
def test_the_learning_rate_falls_after_five_eighths_and_two_more_eighths(student, base, epochs, steps_per_epoch):
    steps = epochs * steps_per_epoch
    optimizer = recipe.optimizer(student, steps)

    def step(state, _):
        update, state = optimizer.update(jnp.ones(()), state, jnp.zeros(()))
        return state, -update

    _, updates = jax.lax.scan(step, optimizer.init(jnp.zeros(())), None, length=steps)
    momentum = (1 - 0.9 ** np.arange(1, steps + 1)) / (1 - 0.9)
    epoch = np.arange(steps) / steps_per_epoch
    decays = sum((epoch >= share * epochs).astype(int) for share in (0.625, 0.75, 0.875))  # 150, 180, 210 of 240
    np.testing.assert_allclose(updates / momentum, base * 0.1**decays, rtol=1e-4)
    assert decays[0] == 0 and decays[-1] == 3


def sgd(parameters, gradients, rates):
    """PyTorch's, in float64: decay is part of the gradient that momentum gathers. The parameters after each step."""
    parameters, velocity, found = np.float64(parameters), 0.0, []
    for gradient, rate in zip(gradients, rates, strict=True):
        velocity = 0.9 * velocity + gradient + 5e-4 * parameters
        parameters = parameters - rate * velocity
        found.append(parameters)
    return np.array(found)


def test_decay_and_momentum_are_those_of_pytorch_for_every_parameter():
    random = np.random.default_rng(0)
    shapes = {"kernel": (3, 2), "scale": (2,), "bias": (2,)}  # BatchNorm and biases decay too
    params = {name: random.normal(size=shape) for name, shape in shapes.items()}
    gradients = [{name: random.normal(size=shape) for name, shape in shapes.items()} for _ in range(3)]
    optimizer, ours = recipe.sgd(0.05), jax.tree.map(jnp.float32, params)
    state = optimizer.init(ours)
    for gradient in gradients:
        updates, state = optimizer.update(jax.tree.map(jnp.float32, gradient), state, ours)
        ours = optax.apply_updates(ours, updates)
    for name in shapes:
        theirs = sgd(params[name], [gradient[name] for gradient in gradients], [0.05] * 3)[-1]
        np.testing.assert_allclose(ours[name], theirs, rtol=1e-5, atol=1e-7)


def linear(slope):
    """An objective whose gradient is the slope, for the student's logits."""
    return jaxkd.combine(slope=jaxkd.term(lambda logits: logits @ jnp.float32(slope), "student/logits"))


def learned(slope):
    """One that learns a vector of its own, and asks nothing of the student."""

    def apply(params, state, context, key):
        rows = jnp.broadcast_to(params["w"] @ jnp.float32(slope), context.student["logits"].shape[:1])
        return jaxkd.term(lambda x: x, "batch/rows").apply({}, state, context._replace(batch={"rows": rows}), key)

    return jaxkd.combine(own=jaxkd.Objective(lambda key, context: jaxkd.ObjectiveVars({"w": jnp.ones(2)}), apply))


def trajectory(method, student, steps):
    """The student's two parameters after each step of a method, and what the objective has learned."""

    def apply(variables, batch, *, key, train):
        return {"logits": jnp.broadcast_to(variables.params["w"], (4, 2))}, variables.state

    model = jaxkd.Model(lambda key, batch: jaxkd.Variables({"w": jnp.array([1.0, -2.0])}), apply)
    kd = methods.build(method, tiny.setting(tiny.TEACHER, student, steps), model, jaxkd.teachers.none(), tiny.PROBLEM)
    given = {"image": jnp.zeros(4)}
    state, step = kd.init(jax.random.key(0), given), jax.jit(kd.step)
    found, own = [], []
    for _ in range(steps + methods.initial_steps(method, steps)):
        state, _ = step(state, given)
        found.append(np.asarray(state.student.params["w"]))
        own += [np.asarray(x) for x in jax.tree.leaves(state.objective.params)]
    return np.array(found), own


SLOPES = np.array([0.5, -0.25]), np.array([-1.0, 0.75])
DECAYED = [*[1.0] * 15, *[0.1] * 3, *[0.01] * 3, *[0.001] * 3]  # of 24 steps


@pytest.mark.parametrize(("student", "rate"), [("resnet8", 0.05), ("shufflenet_v1", 0.01)])
def test_an_initialization_comes_on_top_of_the_training_and_before_its_decays(student, rate):
    method = methods.Method("m", lambda *_: linear(SLOPES[1]), taps.fixed(), initial=lambda *_: linear(SLOPES[0]))
    assert methods.initial_steps(method, 240) == 30 and methods.initial_steps(method, 24) == 3
    found, _ = trajectory(method, student, 24)
    first = sgd([1.0, -2.0], [SLOPES[0]] * 3, [rate] * 3)
    then = sgd(first[-1], [SLOPES[1]] * 24, [rate * decay for decay in DECAYED])
    np.testing.assert_allclose(found, [*first, *then], rtol=1e-5)


@pytest.mark.parametrize(("student", "rate"), [("resnet8", 0.01), ("wrn_16_2", 0.01), ("vgg8", 0.05)])
def test_an_initialization_of_what_is_learned_leaves_the_student_alone(student, rate):
    method = methods.Method(
        "m",
        lambda *_: linear(SLOPES[1]),
        taps.fixed(),
        initial=lambda *_: learned(SLOPES[0]),
        train_student=False,
    )
    found, own = trajectory(method, student, 24)
    np.testing.assert_array_equal(found[:3], [[1.0, -2.0]] * 3)
    then = sgd([1.0, -2.0], [SLOPES[1]] * 24, [0.05 * decay for decay in DECAYED])
    np.testing.assert_allclose(found[3:], then, rtol=1e-5)
    np.testing.assert_allclose(own[:3], sgd([1.0, 1.0], [SLOPES[0]] * 3, [rate] * 3), rtol=1e-5)
    np.testing.assert_array_equal(own[3:], [own[2]] * 24)


def test_a_row_without_an_initialization_has_no_more_steps():
    plain = methods.Method("m", lambda *_: linear(SLOPES[1]), taps.fixed())
    assert methods.initial_steps(plain, 240) == 0
    then = sgd([1.0, -2.0], [SLOPES[1]] * 24, [0.05 * decay for decay in DECAYED])
    np.testing.assert_allclose(trajectory(plain, "resnet8", 24)[0], then, rtol=1e-5)
    assert {name for name, method in methods.METHODS.items() if method.initial} == {"ab", "ft", "fsp"}
    assert not methods.METHODS["ft"].train_student and methods.METHODS["ab"].train_student


def test_the_order_of_the_rows_is_that_of_the_tables():
    assert list(methods.METHODS) == list(methods.TITLES) == methods.in_order(sorted(methods.METHODS))
    assert methods.in_order(["zeta", "kd", "student"]) == ["student", "kd", "zeta"]
    assert recipe.LIGHT == ("mobilenet_v2", "shufflenet_v1", "shufflenet_v2")


def test_images_are_augmented_and_normalized_as_published():
    image = np.full((2, 32, 32, 3), 128, np.uint8)
    given = {"image": image, "index": np.arange(2), "epoch": np.zeros(2, np.int32)}
    inside = (128 / 255 - np.array([0.5071, 0.4867, 0.4408])) / np.array([0.2675, 0.2565, 0.2761])
    np.testing.assert_allclose(
        problem.PROBLEM.normalize(given)["image"], np.broadcast_to(inside, image.shape), rtol=1e-4
    )
    outside = -np.array([0.5071, 0.4867, 0.4408]) / np.array([0.2675, 0.2565, 0.2761])
    views = [np.asarray(problem.PROBLEM.augment(seed)(given)["image"]) for seed in range(4)]
    for view in np.concatenate(views):
        black = np.isclose(view, outside, rtol=1e-4).all(-1)
        np.testing.assert_allclose(view[~black], np.broadcast_to(inside, view[~black].shape), rtol=1e-4)
        assert 28 <= (~black).any(1).sum() <= 32 and 28 <= (~black).any(0).sum() <= 32
    assert not np.array_equal(views[0], views[1])


# The protocol.

OTHER = {
    **{"epochs": 24, "teacher_epochs": 24, "images": 100, "holdout": 500, "batch_size": 32},
    **{"eval_every": 2, "cached": True, "bf16": True},
}


@pytest.mark.parametrize("base", [config.PRESETS["paper"], recipe.Protocol(8, 4, images=200, holdout=100, bf16=True)])
def test_folders_differ_wherever_numbers_would(base):
    fields = {field.name for field in dataclasses.fields(recipe.Protocol)}
    assert fields == OTHER.keys()
    changed = {name: dataclasses.replace(base, **{name: _other(base, name)}) for name in fields}
    names = {name: protocol.name for name, protocol in changed.items()} | {"base": base.name}
    assert len(set(names.values())) == len(fields) + 1, names
    own = {name: protocol.teacher_name for name, protocol in changed.items()} | {"base": base.teacher_name}
    theirs = {"teacher_epochs", "holdout", "batch_size", "bf16"}  # ... and a teacher is that of many students
    assert len({own[name] for name in theirs | {"base"}}) == len(theirs) + 1
    assert {own[name] for name in fields - theirs} == {own["base"]}


def _other(base, name):
    now, other = getattr(base, name), OTHER[name]
    return other if now != other else type(other)(not other)


def test_the_presets():
    paper, reduced = config.PRESETS["paper"], config.PRESETS["reduced"]

    def unlike(**changed):
        return published.unlike_published(dataclasses.replace(paper, **changed).settings())

    assert unlike() == [] == unlike(bf16=True, eval_every=5) and published.unlike_published(reduced.settings())
    for name in ("epochs", "teacher_epochs", "images", "holdout", "batch_size", "cached"):
        assert len(unlike(**{name: OTHER[name]})) == 1, name
    assert config.protocol(config.Config()) == paper
    assert config.protocol(config.Config(preset="reduced", epochs=3)) == dataclasses.replace(
        reduced, epochs=3, teacher_epochs=3
    )
    assert config.protocol(config.Config(epochs=3, teacher_epochs=5)).teacher_epochs == 5
    assert config.seeds(config.Config()) == [0, 1, 2, 3, 4]
    assert config.seeds(config.Config(preset="reduced", first_seed=7)) == [7, 8, 9]


@functools.cache
def many(data_dir, split):
    """As many images of each class as CIFAR-100 has for training, of one pixel."""
    return tiny.images(50_000 if split == "train" else 100, size=1)


@pytest.mark.slow
@pytest.mark.parametrize(("images", "holdout"), [(None, 0), (None, 500), (400, 0), (400, 500), (49_500, 500)])
def test_who_sees_which_images(images, holdout):
    protocol = config.protocol(config.Config(images=images, holdout=holdout))
    (train, held), (theirs, held_too) = (
        inputs.parts(many(None, "train"), protocol, student=student) for student in (True, False)
    )
    index = {name: set(part.arrays["index"].tolist()) for name, part in (("train", train), ("teacher", theirs))}
    assert len(index["train"]) == (images or 50_000 - holdout) and len(index["teacher"]) == 50_000 - holdout
    assert index["train"] <= index["teacher"]
    for part in (train, theirs):
        count = np.bincount(part.arrays["label"], minlength=100)
        assert (count == len(part.arrays["label"]) // 100).all()
    splits = inputs.evaluations(many(None, "test"), held)
    if not holdout:
        assert held is held_too is None and list(splits) == ["test"]
        return
    assert set(held.arrays["index"]) == set(held_too.arrays["index"]) and len(held.arrays["index"]) == holdout
    assert not index["teacher"] & set(held.arrays["index"].tolist())
    assert (np.bincount(held.arrays["label"], minlength=100) == holdout // 100).all()
    assert list(splits) == ["validation", "test"] and splits["validation"].num_examples == holdout


def test_evaluations_see_every_image_once_in_order():
    logits = np.random.default_rng(0).normal(size=(tiny.TEST, 100))
    test = inputs.evaluations(tiny.whole(None, "test"), None, logits)["test"]
    given = next(iter(test.batches()))
    np.testing.assert_array_equal(given["index"], np.arange(tiny.TEST))
    np.testing.assert_array_equal(given["teacher_logits"], logits.astype(np.float32))
    assert test.steps_per_epoch == 1


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "--epochs: expected at least 1, got 0"),
        ({"teacher_epochs": -1}, "--teacher-epochs: expected at least 1"),
        ({"eval_every": 0}, "--eval-every: expected at least 1"),
        ({"images": 0}, "--images: expected at least 1"),
        ({"images": 150}, "--images: expected a multiple of 100, equally many of each class, got 150"),
        ({"holdout": -100}, "--holdout: expected a multiple of 100"),
        ({"holdout": 50_000}, "--holdout: expected less than the 50,000"),
        ({"images": 49_600, "holdout": 500}, "--images 49600 and --holdout 500 are more than the 50,000"),
    ],
)
def test_protocols_that_cannot_be_run_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        config.protocol(config.Config(**settings))


def test_a_row_of_no_seeds_is_refused():
    with pytest.raises(ValueError, match="--seeds: expected at least 1, got 0"):
        config.seeds(config.Config(seeds=0))


@pytest.mark.parametrize("module", [cost, measures, methods, plots, published, report, statistics, taps, kit_training])
def test_doctests(module):
    found = doctest.testmod(module)
    assert found.failed == 0 and found.attempted > 0
