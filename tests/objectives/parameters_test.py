"""Terms that read parameters, such as an output kernel: values and gradients equal those of whole logits."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh, PartitionSpec

import jaxkd
from jaxkd import losses, parallel, teachers, term, wrappers
from jaxkd._core.batches import lookup
from jaxkd.objectives import select
from jaxkd.types import REPLICAS, Context
from tests import tiny

WORDS, HIDDEN = 8, 4


def _init(key, word):
    one, two = jax.random.split(key)
    return {
        "embed": {"embedding": jax.random.normal(one, (WORDS, HIDDEN))},
        "head": {"kernel": jax.random.normal(two, (HIDDEN, WORDS))},
    }


def _hidden(params, word):
    return jnp.tanh(params["embed"]["embedding"][word])


def _apply(params, word):
    hidden = _hidden(params, word)
    return {"hidden": hidden, "logits": hidden @ params["head"]["kernel"]}


MODEL = jaxkd.adapters.plain(_init, _apply, inputs="word")
"""A model that needs its head only for the teacher's logits."""

TAUGHT = MODEL.init(jax.random.key(7), {"word": jnp.zeros(1, int)})
BATCH = {"word": np.array([0, 3, 5, 2, 2, 7, 1, 6], np.int32)}
TIED = ("student/hidden", "student_params/embed/embedding.T", "teacher/hidden", "teacher_params/head/kernel")
OWN = ("student/hidden", "student_params/head/kernel", "teacher/hidden", "teacher_params/head/kernel")


def objective(*paths):
    return jaxkd.combine(kd=term(losses.linear_soft_target_kl, *paths, temperature=2.0))


def distiller(paths, teacher=None, student=MODEL):
    teacher = teachers.frozen(MODEL, TAUGHT) if teacher is None else teacher
    return jaxkd.distill(student, teacher, objective(*paths), optimizer=optax.sgd(1.0), metrics=lambda context: {})


def by_hand(params, kernel, taught=TAUGHT.params, taught_kernel=None):
    """The loss from whole logits; `kernel` is a function of the student's parameters."""
    taught_kernel = taught["head"]["kernel"] if taught_kernel is None else taught_kernel
    teacher = jax.nn.log_softmax(_hidden(taught, BATCH["word"]) @ taught_kernel / 2.0)
    student = jax.nn.log_softmax(_hidden(params, BATCH["word"]) @ kernel(params) / 2.0)
    return 4.0 * jnp.sum(jnp.exp(teacher) * (teacher - student), axis=-1).mean()


KERNELS = {OWN: lambda p: p["head"]["kernel"], TIED: lambda p: p["embed"]["embedding"].T}


def mesh(*shape):
    axes = ("data", "model")[: len(shape)]
    return Mesh(np.array(jax.devices()[: int(np.prod(shape))]).reshape(shape), axes)


def shard_mapped(kd):
    whole, split = PartitionSpec(), PartitionSpec(jaxkd.DATA_AXIS)
    devices = Mesh(np.array(jax.devices()[:4]), (jaxkd.DATA_AXIS,))
    return jax.jit(jax.shard_map(kd.step, mesh=devices, in_specs=(whole, split), out_specs=whole))


# The vocabulary is one dimension of the head and the other one of the table.
RULES = {"kernel": PartitionSpec(None, "model"), "embedding": PartitionSpec("model")}
PLACES = {
    "jit": lambda kd: jax.jit(kd.step),
    "shard, vocabulary split": lambda kd: parallel.shard(kd, mesh(2, 4), rules=RULES).step,
    "shard_map": shard_mapped,
    "pmap": lambda kd: parallel.pmap(kd, jax.devices()[:4]).step,
}


@pytest.mark.parametrize("paths", [OWN, TIED], ids=["head", "tied"])
@pytest.mark.parametrize(
    "place", [*list(PLACES)[:2], *(pytest.param(p, marks=pytest.mark.slow) for p in list(PLACES)[2:])]
)
def test_step_equals_one_with_whole_logits(place, paths):
    kd = distiller(paths)
    state = kd.init(jax.random.key(0), BATCH)
    value, gradient = jax.value_and_grad(by_hand)(state.student.params, KERNELS[paths])
    expected = jax.tree.map(lambda x, g: x - g, state.student.params, gradient)
    new, metrics = PLACES[place](kd)(state, BATCH)
    assert tiny.numbers(metrics)["loss"] == pytest.approx(float(value), rel=1e-5)
    tiny.assert_close(new.student.params, expected, rtol=1e-5, atol=1e-6)
    tiny.assert_equal(new.teacher.params, TAUGHT.params)


@pytest.mark.parametrize("micro_batches", [2, 3])
def test_micro_batches_leave_parameters_whole(micro_batches):
    kd = distiller(TIED, student=wrappers.accumulate(MODEL, micro_batches))
    state = kd.init(jax.random.key(0), BATCH)
    gradient = jax.grad(by_hand)(state.student.params, KERNELS[TIED])
    new, _ = jax.jit(kd.step)(state, BATCH)
    tiny.assert_close(
        new.student.params, jax.tree.map(lambda x, g: x - g, state.student.params, gradient), rtol=1e-5, atol=1e-6
    )


def test_parameters_of_a_moving_average():
    kd = distiller((*OWN[:3], "teacher_params/embed/embedding.T"), teachers.ema(MODEL, decay=0.5))
    state = kd.init(jax.random.key(0), BATCH)._replace(teacher=TAUGHT)
    args = state.student.params, KERNELS[OWN], TAUGHT.params, TAUGHT.params["embed"]["embedding"].T
    value, gradient = jax.value_and_grad(by_hand)(*args)
    new, metrics = jax.jit(kd.step)(state, BATCH)
    assert tiny.numbers(metrics)["loss"] == pytest.approx(float(value), rel=1e-5)
    expected = jax.tree.map(lambda x, g: x - g, state.student.params, gradient)
    tiny.assert_close(new.student.params, expected, rtol=1e-5, atol=1e-6)
    average = jax.tree.map(lambda a, b: 0.5 * a + 0.5 * b, TAUGHT.params, expected)
    tiny.assert_close(new.teacher.params, average, rtol=1e-5, atol=1e-6)


def test_parameters_of_a_member_of_an_ensemble():
    other = jax.tree.map(lambda x: -2.0 * x, TAUGHT)
    teacher = teachers.ensemble({"a": teachers.frozen(MODEL, TAUGHT), "b": teachers.frozen(MODEL, other)})
    kd = distiller((*OWN[:2], "teacher/b/hidden", "teacher_params/b/head/kernel"), teacher)
    state = kd.init(jax.random.key(0), BATCH)
    value = by_hand(state.student.params, KERNELS[OWN], other.params)
    assert tiny.numbers(jax.jit(kd.evaluate)(state, BATCH))["loss"] == pytest.approx(float(value), rel=1e-5)


def test_unknown_parameters_are_errors_of_init():
    with pytest.raises(ValueError, match=r"'student_params/head/kernal'.*did you mean 'head/kernel'.*float32\[4, 8\]"):
        distiller((OWN[0], "student_params/head/kernal", *OWN[2:])).init(jax.random.key(0), BATCH)
    cached = teachers.none()._replace(apply=lambda state, batch, *, key: {"hidden": jnp.zeros((8, HIDDEN))})
    with pytest.raises(ValueError, match=r"teacher_params parameter 'head/kernel'.*cached outputs has none"):
        distiller(OWN, cached).init(jax.random.key(0), BATCH)


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        return nn.Dense(3, kernel_init=nn.with_partitioning(nn.initializers.ones, (None, "model")))(x)


def test_paths_of_parameters():
    params = Boxed().init(jax.random.key(0), jnp.ones((1, 2)))["params"]
    context = Context({}, {}, {}, 0, None, params, jnp.ones(2))
    assert lookup(context, "student_params/Dense_0/kernel").shape == (2, 3)
    assert lookup(context, "student_params/Dense_0/kernel.T").shape == (3, 2)
    assert lookup(context, "teacher_params").shape == (2,)  # the whole tree is one array
    with pytest.raises(ValueError, match=r"expected a matrix to transpose, got float32\[3\]"):
        lookup(context, "student_params/Dense_0/bias.T")


@pytest.mark.parametrize("form", ["joint", "replicate"])
def test_parameters_of_selected_parts(form):
    trees = [{"w": jnp.full(2, 3.0)}, {"w": jnp.full(2, 5.0)}]
    params = {"0": trees[0], "1": trees[1]}
    if form == "replicate":
        params = {REPLICAS: jax.tree.map(lambda *x: jnp.stack(x), *trees)}
    outputs = {"0/logits": jnp.zeros(2), "1/logits": jnp.zeros(2)}
    product = term(lambda s, t: s * t, "student_params/w", "teacher_params/w")

    def value(params):
        context = Context(outputs, {}, {}, 0, None, params)
        return select(product, student="0", teacher="1").apply({}, {}, context, None).value

    found, gradient = jax.value_and_grad(value)(params)
    assert float(found) == 15.0
    by_part = [gradient[REPLICAS]["w"][i] for i in (0, 1)] if form == "replicate" else [gradient[i]["w"] for i in "01"]
    np.testing.assert_allclose(by_part[0], 2.5)  # 5 / 2 examples
    np.testing.assert_allclose(by_part[1], 0.0)
