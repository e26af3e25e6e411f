"""One distillation on 1, 2, 4 and 8 devices, by jit, pmap and shard: the same parameters, statistics and metrics."""

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from jax.sharding import Mesh, PartitionSpec

import jaxkd
from jaxkd import combine, losses, objectives, parallel, term
from tests import tiny

SIZES = (16, 16, 13)  # 13 is odd and divides by nothing


class Student(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(4, (3, 3), name="conv")(x)
        x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(x))
        return nn.Dense(tiny.CLASSES, name="head")(x.mean(axis=(1, 2)))


class NnxStudent(nnx.Module):
    def __init__(self, rngs):
        self.dense = nnx.Linear(2, 4, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.5, rngs=rngs)
        self.head = nnx.Linear(4, tiny.CLASSES, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.norm(self.dense(x))).mean(axis=(1, 2)))


def relation(loss, weight):
    return term(loss, "student/logits", "teacher/logits", weight=weight)


CE = term(losses.cross_entropy, "student/logits", "batch/label", weight=0.5)
KD = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0)
EVERYTHING = combine(
    ce=CE,
    kd=KD,
    hint=objectives.hint("student/norm", "teacher/map"),
    attention=term(losses.attention_transfer, "student/norm", "teacher/map", weight=10.0),
    distance=relation(losses.distance_relation, 25.0),
    angle=relation(losses.angle_relation, 50.0),
)
MODELS = {
    "plain": (tiny.student, combine(ce=CE, distance=relation(losses.distance_relation, 25.0))),
    "linen": (jaxkd.adapters.linen(Student(), taps={"norm": "norm"}), EVERYTHING),
    "nnx": (jaxkd.adapters.nnx(NnxStudent), combine(ce=CE, kd=KD)),
}


def distiller(name):
    student, objective = MODELS[name]
    # Plain gradient descent: an adaptive optimizer, which divides by small numbers, would amplify rounding.
    return jaxkd.distill(student, tiny.teacher(), objective, optimizer=optax.sgd(0.05))


def mesh(devices, axes=("data",), shape=None):
    return Mesh(np.array(jax.devices()[:devices]).reshape(shape or -1), axes)


PLACES = {
    "pmap": lambda kd, devices: parallel.pmap(kd, jax.devices()[:devices], replicas=1),
    "shard": lambda kd, devices: parallel.shard(kd, mesh(devices), replicas=1),
}


def train(placed, state, sizes=SIZES):
    totals = {}
    for seed, size in enumerate(sizes):
        state, metrics = placed(state, tiny.batch(size, seed))
        totals = jaxkd.metrics.merge(totals, metrics)
    return state, tiny.numbers(totals), tiny.numbers(placed.evaluate(state, tiny.batch(13, 9)))


@pytest.fixture(scope="module")
def by_jit():
    """Memoized results of training each model on one device."""
    found = {}

    def of(name):
        if name not in found:
            kd = distiller(name)
            start = jax.tree.map(np.asarray, kd.init(jax.random.PRNGKey(1), tiny.batch(16)))
            found[name] = kd, start, train(parallel.jit(kd), jax.tree.map(jnp.array, start))
        return found[name]

    return of


@pytest.mark.parametrize("place", ["shard", pytest.param("pmap", marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("name", "devices"),
    [
        pytest.param("plain", 1, id="plain-1"),
        pytest.param("plain", 8, id="plain-8"),
        pytest.param("linen", 2, id="linen-2", marks=pytest.mark.slow),
        pytest.param("nnx", 4, id="nnx-4", marks=pytest.mark.slow),
    ],
)
def test_results_do_not_depend_on_the_devices(by_jit, name, devices, place):
    kd, start, (expected, training, evaluation) = by_jit(name)
    state, metrics, evaluated = train(PLACES[place](kd, devices), jax.tree.map(jnp.array, start))
    chex.assert_trees_all_close(metrics, training, rtol=2e-4, atol=1e-5)
    chex.assert_trees_all_close(evaluated, evaluation, rtol=2e-4, atol=1e-5)
    tiny.assert_close(state, expected, rtol=5e-4, atol=5e-5)
    chex.assert_trees_all_equal_shapes_and_dtypes(state, expected)
    chex.assert_tree_all_finite(state)


@pytest.mark.slow
def test_per_device_statistics_differ_from_those_of_the_batch(by_jit):
    """The tolerances above are small enough to detect other BatchNorm statistics."""
    _, start, (expected, *_) = by_jit("linen")
    before, after = (jax.tree.leaves(tree.student.state) for tree in (start, expected))
    assert all(np.abs(a - b).max() > 1e-3 for a, b in zip(before, after, strict=True))


@pytest.fixture(scope="module")
def plain():
    return distiller("plain")


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_batch_smaller_than_the_number_of_devices(by_jit, place):
    kd, start, _ = by_jit("plain")
    expected, metrics, _ = train(parallel.jit(kd), jax.tree.map(jnp.array, start), sizes=(3,))
    state, found, _ = train(PLACES[place](kd, 8), jax.tree.map(jnp.array, start), sizes=(3,))
    tiny.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    assert found == pytest.approx(metrics, rel=1e-4)


@pytest.mark.slow
def test_mesh_of_two_axes(by_jit):
    kd, start, (expected, training, _) = by_jit("plain")
    two = mesh(4, ("model", "data"), (2, 2))
    state, metrics, _ = train(parallel.shard(kd, two, axis="data"), jax.tree.map(jnp.array, start))
    tiny.assert_close(state, expected, rtol=1e-4, atol=1e-5)
    assert metrics == pytest.approx(training, rel=1e-4)


@pytest.mark.slow
def test_mesh_with_explicit_axes(by_jit):
    kd, start, (expected, *_) = by_jit("plain")
    placed = parallel.shard(kd, jax.make_mesh((2,), ("data",), devices=jax.devices()[:2]))
    state, *_ = train(placed, jax.tree.map(jnp.array, start))
    tiny.assert_close(state, expected, rtol=1e-4, atol=1e-5)


def test_unknown_mesh_axis_is_refused_with_a_suggestion(plain):
    with pytest.raises(ValueError, match=r"shard, mesh axis 'dta'.*did you mean 'data'.*'data', 'model'"):
        parallel.shard(plain, mesh(4, ("data", "model"), (2, 2)), axis="dta")


@pytest.mark.slow
def test_state_moves_from_one_placement_to_another(plain):
    expected = state = plain.init(jax.random.key(1), tiny.batch(4))
    step = jax.jit(plain.step)
    state = jax.tree.map(jnp.copy, state)
    for placed in (PLACES["pmap"](plain, 2), PLACES["shard"](plain, 2), parallel.jit(plain), PLACES["pmap"](plain, 2)):
        expected, _ = step(expected, tiny.batch(4))
        state, _ = placed(state, tiny.batch(4))
    tiny.assert_close(state, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("place", ["shard", pytest.param("pmap", marks=pytest.mark.slow)])
def test_state_of_numpy_arrays(by_jit, place):
    kd, start, _ = by_jit("plain")
    expected, _ = jax.jit(kd.step)(start, tiny.batch(4))
    state, _ = PLACES[place](kd, 2)(start, tiny.batch(4))
    tiny.assert_close(state, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_one_program_for_each_batch_shape(plain):
    traces = []

    def counted(state, batch):
        traces.append("mask" in batch)
        return plain.step(state, batch)

    placed = PLACES["pmap"](plain._replace(step=counted), 2)
    state = plain.init(jax.random.key(1), tiny.batch(4))
    for size in (4, 3, 4, 3):
        state, _ = placed(state, tiny.batch(size))
    assert traces == [False, True]


# --- pad ------------------------------------------------------------------------------------------------------------


def test_padding_repeats_the_last_example_under_a_mask():
    padded = parallel.pad({"x": np.arange(6.0).reshape(3, 2), "y": jnp.arange(3)}, 4)
    np.testing.assert_array_equal(padded["x"], [[0, 1], [2, 3], [4, 5], [4, 5]])
    np.testing.assert_array_equal(padded["y"], [0, 1, 2, 2])
    np.testing.assert_array_equal(padded["mask"], [True, True, True, False])
    assert isinstance(padded["x"], np.ndarray)
    assert isinstance(padded["y"], jax.Array)


@pytest.mark.parametrize("mask", [np.array([True, False, True]), jnp.array([True, False, True])], ids=["np", "jnp"])
def test_padding_keeps_a_mask(mask):
    padded = parallel.pad({"x": np.zeros(3), "mask": mask}, 8)
    np.testing.assert_array_equal(padded["mask"], [True, False, True] + 5 * [False])


def test_batch_that_divides_is_returned_unmodified():
    batch = {"x": np.zeros(4)}
    assert parallel.pad(batch, 2) is batch
    assert parallel.pad(batch, 1) is batch


@pytest.mark.parametrize("batch", [{}, {"x": np.zeros(3), "y": np.zeros(4)}, {"x": np.float32(1)}], ids=str)
def test_batch_without_one_size_is_refused(batch):
    with pytest.raises(ValueError, match="one leading dimension"):
        parallel.pad(batch, 2)


# --- what is split over a mesh --------------------------------------------------------------------------------------


def remembering():
    """A distiller with CRD and a bank of 16 rows."""
    labels = np.arange(16) % tiny.CLASSES
    crd = objectives.crd("student/vector", "teacher/vector", labels, negatives=4, embedding_size=3)
    objective = combine(ce=term(losses.cross_entropy, "student/logits", "batch/label"), crd=crd)
    return jaxkd.distill(tiny.student, tiny.teacher(), objective, optimizer=optax.sgd(0.1))


def indexed(seed):
    index = np.random.default_rng(seed).permutation(16)[:8].astype(np.int32)
    return {**tiny.batch(8, seed), "index": index}


@pytest.mark.slow
def test_rules_split_a_bank():
    kd, devices = remembering(), 4
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    placed = jaxkd.parallel.shard(kd, mesh, rules={"crd/bank/": PartitionSpec("data")})
    state, alone, step = (
        placed.init(jax.random.key(1), indexed(0)),
        kd.init(jax.random.key(1), indexed(0)),
        jax.jit(kd.step),
    )
    for seed in range(3):
        state, found = placed(state, indexed(seed))
        alone, expected = step(alone, indexed(seed))
        for side in ("student", "teacher"):
            bank = state.objective.state["crd"]["bank"][side]
            assert {part.data.shape for part in bank.addressable_shards} == {(16 // devices, 3)}
        assert tiny.numbers(found) == pytest.approx(tiny.numbers(expected), rel=1e-4)
    tiny.assert_close(state, alone, rtol=1e-4, atol=1e-5)
    assert tiny.numbers(placed.evaluate(state, indexed(0)))["crd"] > 0


def test_rules_that_do_not_apply_are_refused():
    kd = remembering()
    mesh = Mesh(np.array(jax.devices()[:3]), ("data",))
    with pytest.raises(ValueError, match=r"'blank/'.*match no path.*objective/state/crd/bank/student"):
        jaxkd.parallel.shard(kd, mesh, rules={"blank/": PartitionSpec("data")}).init(jax.random.key(1), indexed(0))
    with pytest.raises(ValueError, match=r"bank/student float32\[16, 3\] does not divide into 3 parts"):
        jaxkd.parallel.shard(kd, mesh, rules={"bank/": PartitionSpec("data")}).init(jax.random.key(1), indexed(0))


def test_compiled_functions_can_be_lowered():
    """As those of `jax.jit`: for a program's cost, its memory or its text."""
    kd = jaxkd.distill(tiny.student, tiny.teacher(), KD, optimizer=optax.sgd(0.1))
    state = jax.eval_shape(lambda: kd.init(jax.random.key(0), tiny.batch(8)))
    assert "stablehlo" in jaxkd.parallel.jit(kd).step.lower(state, tiny.batch(8)).as_text()
