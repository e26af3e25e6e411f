"""Input gradients: finite differences, choice of class, random directions, training, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxkd
from jaxkd import adapters, combine, losses, term
from jaxkd._core.batch_norm import replicas
from jaxkd.wrappers import with_input_gradient, with_projected_input_gradient
from tests import references, tiny
from tests.adapters import models

BATCH = 8
MODELS = {
    "functions": tiny.student,
    "linen": adapters.linen(models.Net(), taps={"stem": "stem"}),
    "nnx": adapters.nnx(models.NnxNet),
}
INPUT = tiny.batch(BATCH)
KEEP = np.arange(BATCH) % 4 != 1


def run(model, batch=INPUT, *, variables=None, train=False):
    variables = variables or model.init(jax.random.key(1), batch)
    return jax.jit(lambda v, b: model.apply(v, b, key=None, train=train))(variables, batch)


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


def test_equals_finite_differences_of_the_chosen_logit(model):
    """Central differences along a random direction of each example, in float64."""
    with jax.enable_x64(True):
        batch = {**INPUT, "image": INPUT["image"].astype(np.float64)}
        variables = jax.tree.map(
            lambda x: x.astype(jnp.float64) if jnp.issubdtype(x.dtype, jnp.floating) else x,
            model.init(jax.random.key(1), INPUT),
        )
        logits = lambda image: run(model, {**batch, "image": image}, variables=variables)[0]["logits"]  # noqa: E731
        towards = np.random.default_rng(0).normal(size=batch["image"].shape)
        slope = (logits(batch["image"] + 1e-6 * towards) - logits(batch["image"] - 1e-6 * towards)) / 2e-6
        first = np.argmax(logits(batch["image"]), axis=-1)
        last = np.full(BATCH, slope.shape[1] - 1)
        for classes, chosen in (None, first), ("batch/wanted", last):
            extended = with_input_gradient(model, class_path=classes)
            found = run(extended, {**batch, "wanted": last}, variables=variables)[0]["input_gradient"]
            assert found.shape == batch["image"].shape
            along = (np.asarray(found) * towards).sum(axis=(1, 2, 3))
            np.testing.assert_allclose(along, slope[np.arange(BATCH), chosen], rtol=1e-6, atol=1e-9)


def test_equals_finite_differences_in_every_coordinate():
    """All coordinates of one small image, in float64."""
    with jax.enable_x64(True):
        image = INPUT["image"][:1].astype(np.float64)
        variables = jax.tree.map(lambda x: x.astype(jnp.float64), tiny.student.init(jax.random.key(1), INPUT))
        logits = jax.jit(lambda x: tiny.student.apply(variables, {"image": x}, key=None, train=False)[0]["logits"])
        want = references.finite_difference(lambda x: float(logits(x)[0, 2]), image)
        extended = with_input_gradient(tiny.student, class_path="batch/label")
        found = run(extended, {"image": image, "label": np.array([2])}, variables=variables)[0]
        np.testing.assert_allclose(found["input_gradient"], want, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("extend", [with_input_gradient, with_projected_input_gradient])
@pytest.mark.parametrize("train", [False, True])
def test_adds_one_output_and_changes_no_other(model, extend, train):
    extended = extend(model)
    assert extended.init is model.init
    want, want_state = run(model, train=train)
    found, state = run(extended, train=train)
    assert found.keys() == {*want, "input_gradient"}
    tiny.assert_close({name: found[name] for name in want}, dict(want))
    tiny.assert_close(state, want_state)


def test_classes_are_the_teachers_prediction_or_integer_labels():
    """Floating-point entries give their largest class; integers are classes."""
    teacher = np.random.default_rng(3).normal(size=(BATCH, tiny.CLASSES)).astype(np.float32)
    chosen = teacher.argmax(axis=1)
    found = [
        run(with_input_gradient(tiny.student, class_path=classes), {**INPUT, **extra})[0]["input_gradient"]
        for classes, extra in (
            ("teacher/logits", {"teacher": {"logits": teacher}}),
            ("teacher/choice", {"teacher": {"choice": chosen}}),
            ("batch/choice", {"choice": chosen}),
            (None, {}),
        )
    ]
    tiny.assert_equal(found[0], found[1])
    tiny.assert_equal(found[0], found[2])
    own = np.asarray(run(tiny.student)[0]["logits"]).argmax(axis=1)
    same = np.asarray(found[0] == found[3]).all(axis=(1, 2, 3))
    np.testing.assert_array_equal(same, own == chosen)
    assert not same.all()


# --- random directions -----------------------------------------------------------------------------------------------


def logits_as_input(image):
    """A model whose logits are its input, so that the gradient is the direction."""
    return {"logits": image}


DIRECTIONS = adapters.plain(lambda key, image: jnp.zeros(1), lambda params, image: logits_as_input(image))


def directions(batch, *, seed=0, dtype=np.float32):
    given = {"image": np.zeros((BATCH, 5), dtype), **batch}
    return np.asarray(run(with_projected_input_gradient(DIRECTIONS, seed=seed), given)[0]["input_gradient"], np.float32)


def test_student_and_teacher_share_directions_in_each_step():
    found = directions({"step": 3})
    np.testing.assert_array_equal(found, directions({"step": jnp.int32(3), "teacher": {"logits": np.ones(1)}}))
    assert (found != directions({"step": 4})).all()
    assert (found != directions({"step": 3}, seed=1)).all()
    assert len({tuple(row) for row in found}) == BATCH
    # The directions are the same in another dtype.
    np.testing.assert_array_equal(found.astype(jnp.bfloat16), directions({"step": 3}, dtype=jnp.bfloat16))


def test_directions_are_standard_normal():
    given = {"image": np.zeros((2000, 8), np.float32)}
    found = np.asarray(run(with_projected_input_gradient(DIRECTIONS), given)[0]["input_gradient"])
    np.testing.assert_allclose(found.mean(axis=0), 0, atol=0.1)
    np.testing.assert_allclose(found.T @ found / len(found), np.eye(8), atol=0.15)


def test_directions_are_independent_of_padding_and_devices():
    mask = KEEP
    want = directions({"mask": mask})
    alone = run(with_projected_input_gradient(DIRECTIONS), {"image": np.zeros((mask.sum(), 5), np.float32)})[0]
    np.testing.assert_array_equal(want[mask], alone["input_gradient"])
    given = {"image": np.zeros((BATCH, 5), np.float32), "mask": mask}
    extended = with_projected_input_gradient(DIRECTIONS)
    local = lambda batch: extended.apply(jaxkd.Variables({}), batch, key=None, train=False)[0]["input_gradient"]  # noqa: E731
    for count in 2, 8:
        slices = jax.tree.map(lambda x, n=count: x.reshape(n, BATCH // n, *x.shape[1:]), given)
        found = jax.pmap(local, axis_name=jaxkd.DATA_AXIS, devices=jax.devices()[:count])(slices)
        np.testing.assert_array_equal(np.reshape(found, (BATCH, 5))[mask], want[mask])
    spec = PartitionSpec(jaxkd.DATA_AXIS)
    sharded = jax.shard_map(
        local, mesh=Mesh(np.array(jax.devices()[:4]), (jaxkd.DATA_AXIS,)), in_specs=spec, out_specs=spec
    )
    np.testing.assert_array_equal(np.asarray(jax.jit(sharded)(given))[mask], want[mask])


def test_the_projection_is_the_direction_times_the_jacobian():
    image, variables = INPUT["image"], tiny.student.init(jax.random.key(1), INPUT)
    logits = lambda x: tiny.student.apply(variables, {"image": x[None]}, key=None, train=False)[0]["logits"][0]  # noqa: E731
    jacobians = jax.jit(jax.vmap(jax.jacobian(logits)))(image)
    key = jax.random.fold_in(jax.random.key(4), 2)
    v = jax.vmap(lambda i: jax.random.normal(jax.random.fold_in(key, i), (tiny.CLASSES,)))(jnp.arange(BATCH))
    found = run(with_projected_input_gradient(tiny.student, seed=4), {**INPUT, "step": 2}, variables=variables)[0]
    want = np.einsum("bc,bchwf->bhwf", v, jacobians)
    np.testing.assert_allclose(found["input_gradient"], want, rtol=1e-5, atol=1e-6)


# --- training --------------------------------------------------------------------------------------------------------

JACOBIAN = term(losses.jacobian_matching, "student/input_gradient", "teacher/input_gradient", weight=2.0)
WITH_BATCH_NORM = adapters.linen(models.Net(fast=False))


def distiller(form):
    extend, own = {
        "class": (with_input_gradient, {"class_path": "teacher/logits"}),
        "projected": (with_projected_input_gradient, {}),
    }[form]
    variables = WITH_BATCH_NORM.init(jax.random.key(11), INPUT)
    teacher = jaxkd.teachers.frozen(extend(WITH_BATCH_NORM), variables)
    student = extend(WITH_BATCH_NORM, **own)
    objective = combine(
        jacobian=JACOBIAN, kd=term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.1)
    )
    return jaxkd.distill(student, teacher, objective, optimizer=optax.sgd(0.05))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["class", "projected"])
def test_a_step_is_equal_under_masks_and_each_placement(form):
    """Covers second derivatives through a BatchNorm of the whole batch, on one device and on four."""
    kd = distiller(form)
    batch = {**INPUT, "mask": KEEP}
    kept = {name: x[KEEP] for name, x in INPUT.items()}
    start = kd.init(jax.random.key(0), INPUT)
    want, metrics = jax.jit(kd.step)(start, kept)
    assert metrics["jacobian"].sum > 0
    moved = jax.tree.map(lambda a, b: bool((a != b).any()), start.student, want.student)
    assert moved.params["stem"]["norm"]["scale"]
    assert moved.params["stem"]["conv"]["kernel"]
    copy = lambda: jax.tree.map(jnp.copy, start)  # noqa: E731
    mesh = Mesh(np.array(jax.devices()[:4]), (jaxkd.DATA_AXIS,))
    specs = {"in_specs": (PartitionSpec(), PartitionSpec(jaxkd.DATA_AXIS)), "out_specs": PartitionSpec()}
    ways = {
        "masked": jax.jit(kd.step),
        "pmap": jaxkd.parallel.pmap(kd, jax.devices()[:4], replicas=1),
        "shard": jaxkd.parallel.shard(kd, mesh, replicas=1),
        "shard_map": jax.jit(jax.shard_map(kd.step, mesh=mesh, **specs)),
    }
    for way, step in ways.items():
        with replicas(1):
            found, reported = step(copy(), batch)
        tiny.assert_close(found, want, rtol=1e-4, atol=1e-5), way
        assert tiny.numbers(reported) == pytest.approx(tiny.numbers(metrics), rel=1e-4), way


@pytest.mark.parametrize("form", ["class", "projected"])
def test_jacobian_matching_trains(form):
    kd = distiller(form)
    step = jax.jit(kd.step)
    state, values = kd.init(jax.random.key(0), INPUT), []
    for _ in range(100):
        state, metrics = step(state, INPUT)
        values.append(tiny.numbers(metrics)["jacobian"])
    assert np.mean(values[-5:]) < 0.6 * np.mean(values[:5])


def test_no_gradient_reaches_the_choice_of_class():
    """The choice of class is a constant: its cotangent to the teacher's logits is zero."""
    extended = with_input_gradient(tiny.student, class_path="teacher/logits")
    variables = tiny.student.init(jax.random.key(1), INPUT)

    def total(teacher):
        batch = {**INPUT, "teacher": {"logits": teacher}}
        return extended.apply(variables, batch, key=None, train=False)[0]["input_gradient"].sum()

    assert (jax.grad(total)(jnp.ones((BATCH, tiny.CLASSES))) == 0).all()


# --- errors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "batch", "message"),
    [
        pytest.param(
            {}, {"image": np.zeros((2, 4, 4, 2), np.uint8)}, r"expected floating-point inputs .* uint8", id="dtype"
        ),
        pytest.param({"input": "pixels"}, {}, "batch entry 'pixels'", id="input"),
        pytest.param({"output": "logit"}, {}, "model output 'logit'", id="output"),
        pytest.param({"class_path": "student/logits"}, {}, "root 'student'", id="root"),
        pytest.param({"class_path": "teacher/logits"}, {}, "teacher entry 'logits'", id="no-teacher"),
        pytest.param({"class_path": "batch/labels"}, {}, "did you mean 'label'", id="entry"),
    ],
)
def test_mistakes_raise_errors_that_teach(options, batch, message):
    extended = with_input_gradient(tiny.student, **options)
    with pytest.raises(ValueError, match=message):
        extended.apply(tiny.student.init(jax.random.key(1), INPUT), {**INPUT, **batch}, key=None, train=False)


def test_an_existing_output_is_not_overwritten():
    """A second gradient needs another name."""
    twice = with_projected_input_gradient(with_input_gradient(tiny.student), name="projected")
    assert {"input_gradient", "projected"} <= run(twice)[0].keys()
    with pytest.raises(ValueError, match="'input_gradient' is an output of the model already"):
        run(with_projected_input_gradient(with_input_gradient(tiny.student)))
