"""`schemes.data_free`: state, placement, resume, learning without data, errors."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxkd
from jaxkd import adapters, data, losses, teachers, term
from jaxkd._core.batch_norm import replicas
from jaxkd.data import Noise
from jaxkd.models import Generator
from jaxkd.schemes import data_free
from jaxkd.schemes.synthesis import cmi, dafl, inversion
from jaxkd.training import fit
from jaxkd.wrappers import with_batch_stat_distance
from tests import tiny

CLASSES, SIZE = 3, 5


class Net(nn.Module):
    """A network with one BatchNorm."""

    width: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.Conv(self.width, (3, 3))(x)
        x = jnp.tanh(nn.BatchNorm(not train, momentum=0.9)(x)).mean(axis=(1, 2))
        return {"logits": nn.Dense(CLASSES)(x), "pooled": x}


class Deep(nn.Module):
    """A network for digits."""

    width: int

    @nn.compact
    def __call__(self, x, train=False):
        for i in (1, 2):
            x = nn.Conv(i * self.width, (3, 3), strides=i, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(not train, momentum=0.9)(x))
        x = x.mean(axis=(1, 2))
        return {"logits": nn.Dense(10)(x), "pooled": x}


TEACHER, STUDENT = with_batch_stat_distance(adapters.linen(Net(5))), adapters.linen(Net())
GENERATOR = adapters.linen(Generator((4, 4), 1, features=(4, 3)), inputs="noise")
IMAGES = np.random.default_rng(0).normal(size=(32, 4, 4, 1)).astype(np.float32)
REAL = {"image": IMAGES, "label": np.arange(32, dtype=np.int32) % CLASSES}
WEIGHTS = jax.jit(TEACHER.init)(jax.random.key(7), REAL)
TAUGHT = teachers.frozen(TEACHER, WEIGHTS)
SGD = optax.sgd(0.05, momentum=0.9)
OBJECTIVE = jaxkd.combine(
    ce=term(losses.cross_entropy, "student/logits", "batch/label", weight=0.5),
    kd=term(losses.soft_target_kl, "student/logits", "teacher/logits"),
)
MAKERS = {
    "dafl": lambda: dafl(TAUGHT, GENERATOR, SGD, feature="pooled", statistics=0.5),
    "inversion": lambda: inversion(
        TAUGHT, (4, 4, 1), optax.adam(0.1), iterations=2, slots=2, jitter=1, student=STUDENT, competition=1.0
    ),
    "cmi": lambda: cmi(
        TAUGHT, GENERATOR, SGD, feature_names=["pooled", "logits"], iterations=2, slots=2, memory=20, embedding=4,
        student=STUDENT, adversarial=0.5,
    ),
}  # fmt: skip
each = pytest.mark.parametrize("name", MAKERS)


def distiller(name):
    return data_free(jaxkd.distill(STUDENT, TAUGHT, OBJECTIVE, optimizer=SGD), MAKERS[name]())


def batches(steps, size=8):
    noise = Noise(size, SIZE, CLASSES)
    return [noise.gather(noise.arrays, i) for i in range(steps)]


def run(kd, step, given, size=8):
    state, found = kd.init(jax.random.key(1), batches(1, size)[0]), []
    for batch in given:
        state, metrics = step(state, batch)
        found.append(tiny.numbers(metrics))
    return state, found


@pytest.fixture(scope="module")
def reference():
    """Four steps on one device, in which rounds end and begin."""
    kd, traces = distiller("cmi"), []

    def step(state, batch):
        traces.append(None)
        return kd.step(state, batch)

    state, found = run(kd, jax.jit(step), batches(4, 6), 6)
    return kd, state, found, len(traces)


@pytest.mark.slow
def test_state_structure_and_teacher_are_constant(reference):
    kd, state, found, traces = reference
    start = kd.init(jax.random.key(1), batches(1, 6)[0])
    chex.assert_trees_all_equal_shapes_and_dtypes(state, start)
    assert traces == 1
    tiny.assert_equal(state.teacher, start.teacher)
    tiny.assert_equal(state.teacher, WEIGHTS)
    assert all(
        (x != y).any() for x, y in zip(*map(jax.tree.leaves, (state.student.params, start.student.params)), strict=True)
    )
    assert jax.tree.structure(state.student) == jax.tree.structure(STUDENT.init(jax.random.key(0), REAL))
    assert all(np.isfinite(list(one.values())).all() for one in found)


@pytest.mark.slow
def test_shard_map_equals_jit(reference):
    """Six examples are padded on four devices; padding must not change the result."""
    kd, expected, metrics, _ = reference
    mesh = Mesh(np.array(jax.devices()[:4]), (jaxkd.DATA_AXIS,))
    whole, axis = PartitionSpec(), PartitionSpec(jaxkd.DATA_AXIS)
    step = jax.jit(jax.shard_map(kd.step, mesh=mesh, in_specs=(whole, axis), out_specs=whole))
    with replicas(1):
        state, found = run(kd, step, [jaxkd.parallel.pad(batch, 4) for batch in batches(4, 6)], 6)
    for one, other in zip(found, metrics, strict=True):
        assert one == pytest.approx(other, rel=2e-3, abs=2e-4)
    # Adam's first updates have the size of the learning rate, so that gradients near 0 amplify rounding errors.
    tiny.assert_close(state, expected, rtol=5e-3, atol=5e-4)


@pytest.mark.slow
def test_dafl_step_matches_its_definition():
    """The generator's gradient, then the student on the images before the update."""
    kd = data_free(
        jaxkd.distill(STUDENT, TAUGHT, OBJECTIVE, optimizer=SGD),
        dafl(TAUGHT, GENERATOR, optax.sgd(0.1), feature="pooled"),
    )
    (batch,) = batches(1)
    state = kd.init(jax.random.key(1), batch)
    generator = state.opt_state["synthesis"]["generator"]

    def loss(params):
        outputs, _ = GENERATOR.apply(generator._replace(params=params), batch, key=jax.random.key(0), train=True)
        taught, _ = TEACHER.apply(WEIGHTS, {"image": outputs["image"]}, key=None, train=False)
        p = jax.nn.softmax(taught["logits"])
        mean = p.mean(axis=0)
        one_hot = -jnp.log(p.max(axis=1)).mean()
        return one_hot - 0.1 * jnp.abs(taught["pooled"]).mean() + 5 * (mean * jnp.log(mean)).sum(), (outputs, taught)

    grads, (outputs, taught) = jax.jit(jax.grad(loss, has_aux=True))(generator.params)
    new, _ = jax.jit(kd.step)(state, batch)
    expected = jax.tree.map(lambda w, g: w - 0.1 * g, generator.params, grads)
    tiny.assert_close(new.opt_state["synthesis"]["generator"].params, expected, rtol=1e-4)
    plain = jaxkd.distill(STUDENT, TAUGHT, OBJECTIVE, optimizer=SGD)
    inner = state._replace(opt_state={k: v for k, v in state.opt_state.items() if k != "synthesis"})
    seen = {**batch, "image": outputs["image"], "label": jnp.argmax(taught["logits"], axis=-1)}
    tiny.assert_close(new.student, jax.jit(plain.step)(inner, seen)[0].student, rtol=1e-4)


@pytest.mark.slow
def test_synthesizer_does_not_change_the_student():
    still = jaxkd.distill(STUDENT, TAUGHT, OBJECTIVE, optimizer=optax.set_to_zero())
    kd = data_free(still, MAKERS["cmi"]())
    state, _ = run(kd, jax.jit(kd.step), batches(2))
    tiny.assert_equal(state.student.params, kd.init(jax.random.key(1), batches(1)[0]).student.params)


@pytest.mark.slow
def test_resume_on_noise_is_exact(tmp_path):
    kd, noise = distiller("dafl"), Noise(8, SIZE, CLASSES, examples=24)
    options = {"key": jax.random.key(3), "progress": False, "chunk": 1}
    whole = fit(kd, noise, steps=5, **options)
    fit(kd, noise, steps=2, directory=tmp_path, **options)
    parts = fit(kd, noise, steps=5, directory=tmp_path, **options)
    tiny.assert_equal(parts.state, whole.state)
    assert int(whole.state.step) == 5


# --- Without data -----------------------------------------------------------------------------------------------------

DIGITS = {split: data.load("digits", split).arrays for split in ("train", "test")}
GRAY = {name: {**x, "image": x["image"].astype(np.float32) / 94 - 0.81} for name, x in DIGITS.items()}
LARGE, SMALL = adapters.linen(Deep(16)), adapters.linen(Deep(12))


@pytest.fixture(scope="module")
def digits_teacher():
    """Trained on the training set, which nothing else reads."""
    objective = term(losses.cross_entropy, "student/logits", "batch/label")
    kd = jaxkd.distill(LARGE, teachers.none(), objective, optimizer=optax.adam(5e-3))
    rows = np.random.default_rng(0).integers(0, 1000, (200, 128))
    state, step = kd.init(jax.random.key(0), {k: x[:2] for k, x in GRAY["train"].items()}), jax.jit(kd.step)
    for chosen in rows:
        state, _ = step(state, {k: GRAY["train"][k][chosen] for k in ("image", "label")})
    assert tiny.numbers(jax.jit(kd.evaluate)(state, GRAY["test"]))["accuracy"] > 0.85
    return teachers.frozen(with_batch_stat_distance(LARGE), state.student)


@each
@pytest.mark.slow
def test_student_learns_digits_without_data(name, digits_teacher, monkeypatch):
    generator = adapters.linen(Generator((8, 8), 1, features=(16, 8)), inputs="noise")
    synthesis = {
        "dafl": lambda: dafl(digits_teacher, generator, optax.adam(1e-2), feature="pooled", statistics=1.0),
        "inversion": lambda: inversion(digits_teacher, (8, 8, 1), optax.adam(0.1), iterations=25, jitter=0),
        "cmi": lambda: cmi(
            digits_teacher,
            generator,
            optax.adam(1e-2, b1=0.5),
            feature_names=["pooled"],
            iterations=25,
            memory=256,
            embedding=8,
        ),
    }[name]()
    objective = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0)
    kd = data_free(jaxkd.distill(SMALL, digits_teacher, objective, optimizer=optax.adam(5e-3)), synthesis)
    test = GRAY["test"]

    def unreachable(*arguments, **options):
        raise AssertionError("real data was read")

    with monkeypatch.context() as patch:
        for module in (data, data._loading):
            for function in ("load", "digits", "from_arrays", "Dataset"):
                patch.setattr(module, function, unreachable)
        patch.setitem(GRAY, "train", None)
        patch.setitem(GRAY, "test", None)
        noise = Noise(64, 16, 10)
        assert not {"image"} & next(iter(noise)).keys()
        state = kd.init(jax.random.key(1), next(iter(noise)))
        before, step = state, jax.jit(kd.step)
        for batch, _ in zip(noise, range(200), strict=False):
            state, _ = step(state, batch)
    scores = [tiny.numbers(jax.jit(kd.evaluate)(one, test))["accuracy"] for one in (before, state)]
    assert scores[0] < 0.25
    assert scores[1] > 0.55


# --- Errors -----------------------------------------------------------------------------------------------------------


def test_batch_with_an_image_raises():
    kd = distiller("dafl")
    (batch,) = batches(1)
    with pytest.raises(ValueError, match=r"expected a batch without the entries that are synthesized, got 'image'"):
        kd.init(jax.random.key(0), {**batch, "image": IMAGES[:8]})
    state = kd.init(jax.random.key(0), batch)
    with pytest.raises(ValueError, match=r"expected a batch without the entries that are synthesized, got 'image'"):
        kd.step(state, {**batch, "image": IMAGES[:8]})


@pytest.mark.parametrize("name", ["inversion", "cmi"])
def test_invalid_batches_and_states_raise(name):
    kd = distiller(name)
    with pytest.raises(ValueError, match=r"'label' if num_classes= is given"):
        kd.init(jax.random.key(0), next(iter(Noise(8, SIZE))))
    state = kd.init(jax.random.key(0), batches(1)[0])
    with pytest.raises(ValueError, match=r"expected batches of 8 examples, as the one at init, got 6"):
        kd.step(state, batches(1, 6)[0])
    plain = jaxkd.distill(STUDENT, TAUGHT, OBJECTIVE, optimizer=SGD).init(jax.random.key(0), REAL)
    with pytest.raises(ValueError, match=r"no opt_state\['synthesis'\]"):
        kd.step(plain, batches(1)[0])
