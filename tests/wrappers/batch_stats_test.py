"""Distance from BatchNorm statistics: formula, gradient, masks, devices, and unchanged other outputs."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxkd
from jaxkd import Variables, adapters
from jaxkd._core.batch_norm import replicas
from jaxkd.wrappers import track_batch_stats, with_batch_stat_distance
from tests import tiny
from tests.adapters import models

KEY = jax.random.key(0)
IMAGE = np.random.default_rng(0).normal(1, 2, size=(8, 2, 2, 2)).astype(np.float32)
MODELS = {
    "linen": (with_batch_stat_distance(adapters.linen(models.Net())), adapters.linen(models.Net())),
    "nnx": (
        with_batch_stat_distance(adapters.nnx(track_batch_stats(models.NnxNet))),
        adapters.nnx(models.NnxNet),
    ),
}


class Two(nn.Module):
    """Two BatchNorms, on a feature map and on a vector."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(not train, name="first", epsilon=0.1)(x)
        x = nn.BatchNorm(not train, name="second", use_scale=False)(jnp.tanh(x).mean(axis=(1, 2)))
        return x @ jnp.ones((2, 3), x.dtype)


TWO = with_batch_stat_distance(adapters.linen(Two()))
STATE = {"batch_stats": {"first": {"mean": jnp.array([0.5, -1.0]), "var": jnp.array([2.0, 3.0])},
                         "second": {"mean": jnp.array([0.1, 0.2]), "var": jnp.array([0.3, 0.4])}}}  # fmt: skip
PARAMS = {"first": {"scale": jnp.array([1.0, 2.0]), "bias": jnp.array([0.0, 0.5])}, "second": {"bias": jnp.zeros(2)}}
VARIABLES = Variables(PARAMS, STATE)


def reference(image):
    """The formula in float64 NumPy."""
    x = np.asarray(image, np.float64)
    params, stats = (jax.tree.map(lambda v: np.asarray(v, np.float64), t) for t in (PARAMS, STATE["batch_stats"]))

    def distance(x, own):
        x = x.reshape(-1, x.shape[-1])
        return np.linalg.norm(x.mean(0) - own["mean"]) + np.linalg.norm(x.var(0) - own["var"])

    total = distance(x, stats["first"])
    x = (x - stats["first"]["mean"]) / np.sqrt(stats["first"]["var"] + 0.1)
    x = np.tanh(x * params["first"]["scale"] + params["first"]["bias"]).mean(axis=(1, 2))
    return total + distance(x, stats["second"])


def distance(batch, model=TWO, variables=VARIABLES):
    return model.apply(variables, batch, key=None, train=False)[0]["batch_statistics"]


def slope(batch, model=TWO, variables=VARIABLES):
    """Returns the distance and its gradient by the image."""
    rest = {k: x for k, x in batch.items() if k != "image"}
    run = jax.value_and_grad(lambda x, v, rest: distance({**rest, "image": x}, model, v)[0])
    return jax.jit(run)(jnp.asarray(batch["image"]), variables, rest)


def test_examples_are_counted_from_the_batch():
    """A scalar, or anchors of another leading size, may be the first output."""

    class Several(nn.Module):
        @nn.compact
        def __call__(self, x):
            return {"aux": jnp.ones(()), "anchors": jnp.ones((7, 4)), "logits": nn.BatchNorm(True)(x.mean((1, 2)))}

    model = with_batch_stat_distance(adapters.linen(Several()))
    found = distance({"image": IMAGE}, model, model.init(KEY, {"image": IMAGE}))
    x = IMAGE.mean((1, 2)).astype(np.float64)  # the statistics are 0 and 1
    expected = np.linalg.norm(x.mean(0)) + np.linalg.norm(x.var(0) - 1)
    np.testing.assert_allclose(found, np.full(8, expected), rtol=1e-5)


def test_equals_the_formula():
    found = distance({"image": IMAGE})
    assert found.shape == (8,)
    np.testing.assert_allclose(found, np.full(8, reference(IMAGE)), rtol=2e-6)


def test_gradient_equals_finite_differences_of_the_formula():
    _, found = slope({"image": IMAGE})
    for place in [(0, 0, 0, 0), (3, 1, 0, 1), (7, 1, 1, 0)]:
        step = np.zeros(IMAGE.shape)
        step[place] = 1e-5
        expected = (reference(IMAGE + step) - reference(IMAGE - step)) / 2e-5
        np.testing.assert_allclose(found[place], expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_adds_one_output_and_changes_no_other(name):
    model, plain = MODELS[name]
    variables = model.init(KEY, {"image": IMAGE})
    tiny.assert_equal(variables, plain.init(KEY, {"image": IMAGE}))
    outputs, state = model.apply(variables, {"image": IMAGE}, key=None, train=False)
    expected, _ = plain.apply(variables, {"image": IMAGE}, key=None, train=False)
    tiny.assert_equal({k: x for k, x in outputs.items() if k != "batch_statistics"}, dict(expected))
    tiny.assert_equal(state, variables.state)
    assert float(outputs["batch_statistics"][0]) > 0
    trained = [m.apply(variables, {"image": IMAGE}, key=KEY, train=True) for m in (model, plain)]
    tiny.assert_equal(*trained)


def test_nnx_equals_linen():
    """A single BatchNorm has the same distance in both libraries."""
    linen = with_batch_stat_distance(adapters.linen(nn.BatchNorm()))
    norm = nnx.BatchNorm(2, rngs=nnx.Rngs(0))
    own = with_batch_stat_distance(adapters.nnx(track_batch_stats(norm)))
    found = distance({"image": IMAGE}, own, adapters.variables(norm))
    np.testing.assert_allclose(found, distance({"image": IMAGE}, linen, linen.init(KEY, {"image": IMAGE})), rtol=1e-6)
    assert type(norm) is nnx.BatchNorm  # the given module is unchanged


@pytest.mark.parametrize("name", MODELS)
def test_masked_examples_equal_dropped_examples(name):
    model = MODELS[name][0]
    variables = model.init(KEY, {"image": IMAGE})
    mask = np.arange(8) % 3 != 1
    image = np.where(mask[:, None, None, None], IMAGE, 1e6)
    dropped, expected = slope({"image": IMAGE[mask]}, model, variables)
    found, own = slope({"image": image.astype(np.float32), "mask": mask}, model, variables)
    np.testing.assert_allclose(found, dropped, rtol=1e-5)
    np.testing.assert_allclose(own[mask], expected, rtol=1e-4, atol=1e-6)
    assert not own[~mask].any()


def test_a_fully_masked_batch_has_distance_zero():
    found, own = slope({"image": IMAGE, "mask": np.zeros(8, bool)})
    assert float(found) == 0
    assert not own.any()


def test_gradient_is_zero_where_the_statistics_agree():
    image = jnp.array([-1.0, 1.0]).reshape(2, 1)
    model = with_batch_stat_distance(adapters.linen(nn.BatchNorm()))
    variables = model.init(KEY, {"image": image})
    found, own = slope({"image": image}, model, variables)
    assert float(found) == 0
    np.testing.assert_array_equal(own, np.zeros((2, 1)))


@pytest.mark.parametrize("size", [1, 8])
@pytest.mark.parametrize("scale", [1e-20, 1e4])
def test_extreme_inputs_stay_finite(size, scale):
    found, own = slope({"image": scale * IMAGE[:size]})
    assert np.isfinite(found)
    assert np.isfinite(own).all()


@pytest.mark.parametrize("masked", [False, True])
def test_statistics_cover_all_devices(masked):
    """The number of training replicas has no influence."""
    batch = {"image": IMAGE, **({"mask": np.arange(8) < 5} if masked else {})}
    expected, whole = slope(batch)
    devices = jax.devices()[:4]

    def local(batch):
        def share(x):
            return distance({**batch, "image": x}).mean()

        value, own = jax.value_and_grad(share)(batch["image"])
        return jnp.reshape(value, (1,)), own

    split = {k: x.reshape(4, 2, *x.shape[1:]) for k, x in batch.items()}
    values, slopes = jax.pmap(local, axis_name=jaxkd.DATA_AXIS, devices=devices)(split)
    np.testing.assert_allclose(values[:, 0], np.full(4, expected), rtol=1e-5)
    # Each device's gradient is four times its share, since all four devices report the same distance.
    np.testing.assert_allclose(slopes.reshape(IMAGE.shape), 4 * whole, rtol=2e-4, atol=1e-6)

    mesh = Mesh(np.array(devices), ("data",))
    placed = jax.device_put(batch, NamedSharding(mesh, PartitionSpec("data")))

    def sharded(batch):
        with replicas(4):
            return distance(batch)

    np.testing.assert_allclose(jax.jit(sharded)(placed), np.full(8, expected), rtol=1e-5)


def test_mistakes_raise_errors_that_teach():
    batch = {"image": IMAGE}
    flat = adapters.linen(nn.Dense(2))
    with pytest.raises(ValueError, match=r"expected a model with BatchNorms.*dafl"):
        distance(batch, with_batch_stat_distance(flat), flat.init(KEY, batch))
    unwatched = adapters.nnx(models.NnxNet)
    with pytest.raises(ValueError, match=r"adapters\.nnx\(wrappers\.track_batch_stats\(module\)\)"):
        distance(batch, with_batch_stat_distance(unwatched), unwatched.init(KEY, batch))
    twice = with_batch_stat_distance(TWO)
    with pytest.raises(ValueError, match="'batch_statistics' is an output of the model already"):
        distance(batch, twice)
