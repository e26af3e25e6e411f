"""BatchNorm replicas: separate normalization of batch parts, independent of the number of devices."""

import functools
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import jaxkd
from jaxkd import Variables, adapters
from jaxkd._core import axes, batch_norm
from jaxkd._core.batch_norm import replicas
from jaxkd.objectives import layers

AXIS = jaxkd.DATA_AXIS
BATCH, COUNTS = 16, (1, 2, 4, 8)
RNG = np.random.default_rng(0)
IMAGE = RNG.normal(1, 2, size=(BATCH, 3)).astype(np.float32)
RAGGED = RNG.random(BATCH) < 0.7
RAGGED[-3:] = False
MASKS = {
    "everything": np.ones(BATCH, bool),
    "ragged": RAGGED,
    "half": np.arange(BATCH) >= BATCH // 2,  # fully masks one replica of 2, two of 4, four of 8
}


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(4, name="first")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.9, use_fast_variance=False, name="norm")(x)
        return nn.Dense(2, name="head")(jnp.tanh(x))


class NnxNet(nnx.Module):
    def __init__(self, rngs):
        self.first, self.head = nnx.Linear(3, 4, rngs=rngs), nnx.Linear(4, 2, rngs=rngs)
        self.norm = nnx.BatchNorm(4, momentum=0.9, use_fast_variance=False, rngs=rngs)

    def __call__(self, x):
        return self.head(jnp.tanh(self.norm(self.first(x))))


def with_layers(variables, batch, *, key, train):
    """The same network with the BatchNorm of `jaxkd.objectives.layers`."""
    params, mask, axis = variables.params, batch.get("mask"), axes.mapped_axis()
    x = layers.dense(params["first"], batch["image"])
    x, norm = layers.batch_norm(params["norm"], variables.state["norm"], x, mask=mask, axis_name=axis, train=train)
    return {"logits": layers.dense(params["head"], jnp.tanh(x))}, {"norm": norm}


MADE = adapters.linen(Net()).init(jax.random.key(0), {"image": IMAGE})
MODELS = {
    "linen": adapters.linen(Net()),
    "nnx": adapters.nnx(NnxNet),
    "layers": jaxkd.Model(lambda key, batch: MADE, with_layers),
}
NORM = {"mean": jnp.full(4, 0.3), "var": jnp.full(4, 2.0)}
PARAMS = {**MADE.params, "norm": {"scale": jnp.array([1.0, 2.0, 0.5, -1.0]), "bias": jnp.array([0.0, 0.1, 0.2, 0.3])}}
STATES = {"linen": {"batch_stats": {"norm": NORM}}, "nnx": {"norm": NORM}, "layers": {"norm": NORM}}


def value(logits, mask):
    return jnp.sum(jnp.where(mask[:, None], jnp.sin(logits), 0))


def run(name, counts, variables, batch):
    """Returns logits, running statistics and gradients by the number of replicas."""
    axis = axes.mapped_axis()

    def one(params):
        outputs, state = MODELS[name].apply(Variables(params, variables.state), batch, key=None, train=True)
        mask = batch.get("mask", jnp.ones(batch["image"].shape[0], bool))
        return value(outputs["logits"], mask), (outputs["logits"], jax.tree.leaves(state))

    found = {}
    params = jax.lax.pcast(variables.params, axis, to="varying") if axis else variables.params
    for count in counts:
        with replicas(count):
            gradients, (logits, state) = jax.grad(one, has_aux=True)(params)
        if axis is not None:  # the reduction that a step makes
            gradients, state = jax.lax.psum(gradients, axis), jax.lax.pmean(state, axis)
        found[str(count)] = {"logits": logits, "state": state, "gradients": gradients}
    return found


@jax.jit
def alone(params, image):
    """Gradients, logits and running statistics of one batch, by Flax without jaxkd."""

    def total(params):
        given = {"params": params, "batch_stats": {"norm": NORM}}
        logits, changed = Net().apply(given, image, train=True, mutable=["batch_stats"])
        return jnp.sum(jnp.sin(logits)), (logits, changed["batch_stats"]["norm"])

    return jax.grad(total, has_aux=True)(params)


@functools.cache
def by_hand(count, mask):
    """Reference: Flax's BatchNorm on the unmasked examples of each contiguous part."""
    keep = MASKS[mask]
    parts = [rows[keep[rows]] for rows in np.split(np.arange(BATCH), count)]
    parts = [alone(PARAMS, IMAGE[rows]) if len(rows) else (None, (None, NORM)) for rows in parts]
    gradients = [gradient for gradient, _ in parts if gradient is not None]
    return {
        "logits": np.concatenate([logits for _, (logits, _) in parts if logits is not None]),
        "state": jax.tree.leaves(jax.tree.map(lambda *xs: sum(xs) / count, *(norm for _, (_, norm) in parts))),
        "gradients": jax.tree.map(lambda *xs: sum(xs), *gradients),
    }


def mesh(devices):
    return Mesh(np.array(jax.devices()[:devices]), (AXIS,))


def split(batch, devices):
    return {name: x.reshape(devices, -1, *x.shape[1:]) for name, x in batch.items()}


def by_jit(function):
    return jax.jit(function)


def by_pmap(function, devices):
    mapped = jax.pmap(function, axis_name=AXIS, in_axes=(None, 0), devices=jax.devices()[:devices])

    def call(variables, batch):
        found = mapped(variables, split(batch, devices))
        first = lambda tree: jax.tree.map(lambda x: x[0], tree)  # noqa: E731
        return {
            count: {"logits": x["logits"].reshape(BATCH, -1), **first({k: x[k] for k in ("state", "gradients")})}
            for count, x in found.items()
        }

    return call


def by_shard_map(function, devices):
    whole, rows = PartitionSpec(), PartitionSpec(AXIS)
    outs = {"logits": rows, "state": whole, "gradients": whole}
    return jax.jit(
        lambda variables, batch: jax.shard_map(
            function, mesh=mesh(devices), in_specs=(whole, rows), out_specs=dict.fromkeys(map(str, COUNTS), outs)
        )(variables, batch)
    )


def by_compiler(function, devices):
    rows = NamedSharding(mesh(devices), PartitionSpec(AXIS))
    program = jax.jit(function, in_shardings=(NamedSharding(mesh(devices), PartitionSpec()), rows))
    return lambda variables, batch: program(variables, jax.device_put(batch, rows))


PLACES = {
    "jit": by_jit,
    **{f"pmap_{n}": functools.partial(by_pmap, devices=n) for n in COUNTS},
    "shard_map_4": functools.partial(by_shard_map, devices=4),
    "sharded_8": functools.partial(by_compiler, devices=8),
}


@pytest.mark.parametrize(
    ("name", "place"),
    [
        *(("linen", place) for place in PLACES),
        *(("nnx", place) for place in ("jit", "pmap_4", "sharded_8")),
        *(("layers", place) for place in ("jit", "pmap_4")),
    ],
)
def test_equals_the_reference_under_each_placement(name, place):
    program = PLACES[place](functools.partial(run, name, COUNTS))
    for mask, keep in MASKS.items():
        found = program(Variables(PARAMS, STATES[name]), {"image": IMAGE, "mask": keep})
        for count in COUNTS:
            logits = found[str(count)].pop("logits")
            expected = dict(by_hand(count, mask))
            message = f"{count} replicas, mask {mask}"
            np.testing.assert_allclose(logits[keep], expected.pop("logits"), rtol=1e-4, atol=1e-5, err_msg=message)
            chex.assert_trees_all_close(found[str(count)], expected, rtol=1e-4, atol=1e-4, custom_message=message)
            chex.assert_tree_all_finite(logits)


def test_numbers_of_replicas_differ_by_more_than_the_tolerance():
    largest = lambda x, y: float(np.abs(x - y).max())  # noqa: E731
    for mask in ("everything", "ragged"):
        for one, other in ((1, 2), (2, 4), (4, 8)):
            a, b = by_hand(one, mask), by_hand(other, mask)
            differ = {part: max(jax.tree.leaves(jax.tree.map(largest, a[part], b[part]))) for part in a}
            assert min(differ.values()) > 5e-3, (mask, one, other, differ)


@pytest.mark.parametrize(
    ("name", "place", "default"),
    [("linen", "jit", 1), ("nnx", "jit", 1), *((name, "pmap_4", 4) for name in MODELS), ("linen", "sharded_8", 1)],
)
def test_the_default_is_one_replica_per_device_of_the_mapped_axis(name, place, default):
    """Without a mask, Flax computes each device's share."""
    found = PLACES[place](functools.partial(run, name, (None, 2)))(Variables(PARAMS, STATES[name]), {"image": IMAGE})
    chex.assert_trees_all_close(found["None"], by_hand(default, "everything"), rtol=1e-4, atol=1e-4)
    chex.assert_trees_all_close(found["2"], by_hand(2, "everything"), rtol=1e-4, atol=1e-4)


def test_flax_computes_the_unmasked_share_of_a_device(monkeypatch):
    """The default therefore adds no cost; other numbers of replicas need `batch_norm.statistics`."""
    taken_over = []
    monkeypatch.setattr(batch_norm, "statistics", lambda *args, **kwargs: taken_over.append(args) or 1 / 0)
    for name in ("linen", "nnx"):
        variables = Variables(PARAMS, STATES[name])
        jax.eval_shape(by_pmap(functools.partial(run, name, (None, 4)), 4), variables, {"image": IMAGE})
        jax.eval_shape(functools.partial(run, name, (None, 1)), variables, {"image": IMAGE})
        assert not taken_over
        with pytest.raises(ZeroDivisionError):
            jax.eval_shape(functools.partial(run, name, (2,)), variables, {"image": IMAGE})
        assert len(taken_over) == 1
        taken_over.clear()


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("count", [8, 1])
def test_one_replica_per_device_needs_no_communication(name, count):
    def forward(variables, batch):
        with replicas(count):
            return MODELS[name].apply(variables, batch, key=None, train=True)[0]["logits"]

    whole, rows = (NamedSharding(mesh(8), PartitionSpec(*axes)) for axes in ((), (AXIS,)))
    arguments = Variables(PARAMS, STATES[name]), {"image": IMAGE, "mask": RAGGED}
    program = jax.jit(forward, in_shardings=(whole, rows), out_shardings=rows).lower(*arguments).compile().as_text()
    assert bool(re.search(r"all-reduce|all-gather|all-to-all|collective-permute", program)) == (count == 1)


def test_the_context_manager_restores_the_number():
    def count():
        return batch_norm.share_of(None, None).groups

    with replicas(4):
        with replicas(2):
            assert count() == 2
        with replicas(None):
            assert count() == 1
        assert count() == 4
    with pytest.raises(KeyError), replicas(4):
        raise KeyError
    assert count() == 1


def test_inference_ignores_replicas():
    batch = {"image": IMAGE[:5], "mask": np.ones(5, bool)}
    variables = Variables(PARAMS, STATES["linen"])
    expected = MODELS["linen"].apply(variables, batch, key=None, train=False)
    with replicas(4):
        found = MODELS["linen"].apply(variables, batch, key=None, train=False)
    chex.assert_trees_all_equal(found, expected)


# --- synchronized and derived layers -------------------------------------------------------------------------------


class Synchronized(nn.Module):
    """Requests the statistics of the whole batch, by an axis name that is not `jaxkd.DATA_AXIS`."""

    @nn.compact
    def __call__(self, x, train):
        return nn.BatchNorm(use_running_average=not train, axis_name="devices", name="norm")(x)


class NnxSynchronized(nnx.Module):
    def __init__(self, rngs):
        self.norm = nnx.BatchNorm(3, axis_name="devices", rngs=rngs)

    def __call__(self, x):
        return self.norm(x)


@pytest.mark.parametrize("model", [adapters.linen(Synchronized()), adapters.nnx(NnxSynchronized)], ids=["linen", "nnx"])
def test_a_layer_with_an_axis_name_gets_whole_batch_statistics(model):
    batch = {"image": IMAGE}
    variables = model.init(jax.random.key(0), batch)
    expected = (IMAGE - IMAGE.mean(axis=0)) / np.sqrt(IMAGE.var(axis=0) + 1e-5)
    for count in (None, 1, 4):

        def forward(batch, count=count):
            with replicas(count):
                return model.apply(variables, batch, key=None, train=True)[0]["logits"]

        found = jax.jit(forward)(batch), jax.pmap(forward, axis_name=AXIS)(split(batch, 8)).reshape(BATCH, -1)
        for logits in found:
            np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-5)


class Doubled(nn.BatchNorm):
    """A subclass of BatchNorm in user code."""

    @nn.compact
    def __call__(self, x, use_running_average=None, *, mask=None):
        return 2 * super().__call__(x, use_running_average, mask=mask)


class NnxDoubled(nnx.BatchNorm):
    def __call__(self, *args, **kwargs):
        return 2 * super().__call__(*args, **kwargs)


@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("keep", [None, np.ones(BATCH, bool)], ids=["whole", "masked"])
def test_a_subclass_of_batch_norm_keeps_its_behavior(keep, count):
    batch = {"image": IMAGE} if keep is None else {"image": IMAGE, "mask": keep}
    parts = IMAGE.reshape(count, -1, 3)
    expected = (2 * (parts - parts.mean(1, keepdims=True)) / np.sqrt(parts.var(1, keepdims=True) + 1e-5)).reshape(-1, 3)
    for model in (adapters.linen(Doubled()), adapters.nnx(lambda rngs: NnxDoubled(3, rngs=rngs))):
        variables = model.init(jax.random.key(0), batch)
        with replicas(count):
            found, _ = model.apply(variables, batch, key=None, train=True)
        np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [None, jnp.bfloat16, jnp.float32], ids=str)
@pytest.mark.parametrize("given", [jnp.bfloat16, jnp.float32], ids=str)
def test_dtype_scale_and_bias_are_those_of_flax(given, dtype):
    batch = {"image": jnp.asarray(IMAGE, given)}
    made = {
        "linen": adapters.linen(nn.BatchNorm(dtype=dtype, use_bias=False)),
        "nnx": adapters.nnx(lambda rngs: nnx.BatchNorm(3, dtype=dtype, use_scale=False, rngs=rngs)),
    }
    for model in made.values():
        variables = model.init(jax.random.key(0), batch)
        expected, _ = model.apply(variables, batch, key=None, train=True)
        assert expected["logits"].dtype == (dtype or jnp.float32)
        with replicas(2):
            found, state = model.apply(variables, batch, key=None, train=True)
        assert found["logits"].dtype == expected["logits"].dtype
        chex.assert_trees_all_equal_shapes_and_dtypes(state, variables.state)
        halves = IMAGE.astype(given).astype(np.float64).reshape(2, 8, 3)
        by_hand = (halves - halves.mean(1, keepdims=True)) / np.sqrt(halves.var(1, keepdims=True) + 1e-5)
        tolerance = 1e-4 if found["logits"].dtype == jnp.float32 else 1e-2
        logits = np.float64(found["logits"])
        np.testing.assert_allclose(logits, by_hand.reshape(BATCH, 3), rtol=tolerance, atol=tolerance)


def test_feature_maps_and_several_feature_axes():
    x = RNG.normal(size=(8, 2, 3, 4)).astype(np.float32)
    model = adapters.linen(nn.BatchNorm(axis=(1, 3)))
    variables = model.init(jax.random.key(0), {"image": x})
    with replicas(2):
        found, _ = model.apply(variables, {"image": x}, key=None, train=True)
    parts = [model.apply(variables, {"image": part}, key=None, train=True)[0]["logits"] for part in np.split(x, 2)]
    np.testing.assert_allclose(found["logits"], np.concatenate(parts), rtol=1e-4, atol=1e-5)


# --- errors ---------------------------------------------------------------------------------------------------------


def train_step(count, image, place=jax.jit):
    def forward(image):
        with replicas(count):
            return MODELS["linen"].apply(Variables(PARAMS, STATES["linen"]), {"image": image}, key=None, train=True)[0]

    return place(forward)(image)


@pytest.mark.parametrize("count", [0, -1])
def test_a_non_positive_number_is_refused(count):
    with pytest.raises(ValueError, match=rf"replicas: expected a positive number, .*got {count}"), replicas(count):
        pass


@pytest.mark.parametrize("count", [3, 6])
def test_replicas_and_devices_must_be_multiples(count):
    with pytest.raises(ValueError, match=rf"{count} replicas do not fit 4 devices: expected a multiple or a"):
        train_step(count, IMAGE.reshape(4, 4, 3), lambda f: jax.pmap(f, axis_name=AXIS))


def test_a_batch_must_divide_into_its_replicas():
    with pytest.raises(ValueError, match=r"15 examples do not divide into 2 replicas.*parallel\.pad\(batch, 2\)"):
        train_step(2, IMAGE[:15])


def test_a_reshaped_batch_is_refused_with_replicas():
    """After a reshape, it is unknown which rows belong to which replica."""

    class Folded(nn.Module):
        @nn.compact
        def __call__(self, x, train):
            return nn.BatchNorm(use_running_average=not train)(x.T.reshape(-1, 1)).reshape(3, -1).T

    model = adapters.linen(Folded())
    variables = model.init(jax.random.key(0), {"image": IMAGE})
    whole, _ = model.apply(variables, {"image": IMAGE}, key=None, train=True)
    assert whole["logits"].shape == IMAGE.shape
    with pytest.raises(ValueError, match=r"the batch has 16 examples but its input is .*replicas=1"), replicas(2):
        model.apply(variables, {"image": IMAGE}, key=None, train=True)
