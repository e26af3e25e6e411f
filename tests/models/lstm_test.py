"""The LSTM against its equations, and as teacher and student of a convolutional network."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

import jaxkd
from jaxkd import losses, objectives, term
from jaxkd.data.vision import _modalities
from jaxkd.models import _lstm
from jaxkd.objectives import discriminators
from tests import tiny


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def layer(params, sequence):
    """Hidden states of one layer, in float64."""
    width = params["hi"]["bias"].shape[0]
    h = c = np.zeros((len(sequence), width))
    found = []
    for t in range(sequence.shape[1]):
        i, f, g, o = (
            sequence[:, t] @ params[f"i{name}"]["kernel"]
            + h @ params[f"h{name}"]["kernel"]
            + params[f"h{name}"]["bias"]
            for name in "ifgo"
        )
        c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
        h = sigmoid(o) * np.tanh(c)
        found.append(h)
    return np.stack(found, axis=1)


@pytest.fixture(scope="module")
def model():
    return _lstm.LSTM(features=(6, 5), num_classes=3)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).normal(size=(4, 7, 3, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def variables(model, image):
    return model.init(jax.random.key(1), image)


def test_outputs_equal_the_equations(model, image, variables):
    params = jax.tree.map(lambda x: np.asarray(x, np.float64), variables["params"])
    adapter = jaxkd.adapters.linen(model, taps=_lstm.taps(model))
    found, _ = adapter.apply(jaxkd.Variables(variables["params"]), {"image": image}, key=None, train=False)
    sequence = image.astype(np.float64).reshape(4, 7, 6)
    for name in ("OptimizedLSTMCell_0", "OptimizedLSTMCell_1"):
        sequence = layer(params[name], sequence)
    np.testing.assert_allclose(found["hidden"], sequence, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found["pooled"], sequence[:, -1], rtol=1e-5, atol=1e-6)
    head = params["Dense_0"]
    np.testing.assert_allclose(found["logits"], sequence[:, -1] @ head["kernel"] + head["bias"], rtol=1e-5, atol=1e-6)


def test_masked_steps_have_no_effect(model, image, variables):
    sequence = image.reshape(4, 7, 6)
    steps = np.array([7, 3, 1, 0])
    mask = np.arange(7)[None] < steps[:, None]
    apply = jax.jit(model.apply)
    found = apply(variables, jnp.where(mask[..., None], sequence, 1e3), jnp.asarray(mask))
    for n, length in enumerate(steps[:3]):
        np.testing.assert_allclose(
            found[n], model.apply(variables, sequence[n : n + 1, :length])[0], rtol=1e-5, atol=1e-6
        )
    np.testing.assert_allclose(found[3], variables["params"]["Dense_0"]["bias"], rtol=1e-6)


def test_masked_steps_have_zero_gradients(model, image, variables):
    mask = jnp.asarray(np.arange(7)[None] < np.array([[7], [3], [1], [0]]))

    def total(x):
        return jnp.sum(model.apply(variables, x, mask) ** 2)

    slope = jax.jit(jax.grad(total))(jnp.asarray(image.reshape(4, 7, 6)))
    np.testing.assert_array_equal(jnp.any(slope != 0, axis=2), mask)


def test_dropout_is_active_in_training_only(image):
    model = _lstm.LSTM(features=(8,), num_classes=3, dropout_rate=0.5)
    variables = model.init(jax.random.key(1), image)
    one, other = (model.apply(variables, image, train=True, rngs={"dropout": jax.random.key(i)}) for i in range(2))
    assert not np.allclose(one, other)
    np.testing.assert_array_equal(model.apply(variables, image), model.apply(variables, image))


def test_computes_in_bfloat16_with_float32_parameters(image):
    model = _lstm.LSTM(features=(8,), num_classes=3, dtype=jnp.bfloat16)
    variables = model.init(jax.random.key(1), image)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    found = model.apply(variables, image)
    assert found.dtype == jnp.bfloat16
    expected = _lstm.LSTM(features=(8,), num_classes=3).apply(variables, image)
    np.testing.assert_allclose(found.astype(jnp.float32), expected, rtol=0.1, atol=0.05)


def test_invalid_arguments_raise(model, image, variables):
    with pytest.raises(TypeError, match="Normalize images first"):
        model.init(jax.random.key(0), jnp.ones((1, 4, 4, 1), jnp.uint8))
    with pytest.raises(ValueError, match=r"expected \[batch, steps, features\]"):
        model.init(jax.random.key(0), jnp.ones((1, 4)))
    with pytest.raises(ValueError, match=r"mask: expected bool\[4, 7\], got float32\[4, 7\]"):
        model.apply(variables, image, jnp.ones((4, 7)))


class Conv(nn.Module):
    """A convolutional network with an embedding of the LSTM's width."""

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(5, (3, 3), strides=2)(x))
        pooled = x.mean(axis=(1, 2))
        return {"logits": nn.Dense(3)(pooled), "pooled": pooled}


def conv(entry="image"):
    return jaxkd.adapters.linen(Conv(), inputs=entry)


def recurrent(entry="image"):
    module = _lstm.LSTM(features=(5,), num_classes=3)
    return jaxkd.adapters.linen(module, taps={"pooled": _lstm.taps(module)["pooled"]}, inputs=entry)


def batch(i):
    rng = np.random.default_rng(i)
    image = rng.integers(0, 256, (6, 6, 6, 1)).astype(np.uint8)
    return {"image": image, "label": rng.integers(0, 3, 6).astype(np.int32)}


def with_strokes(given):
    """Adds strokes to the batch and scales the image."""
    given = _modalities.strokes(given, steps=6)
    return {**given, "image": given["image"].astype(jnp.float32) / 255}


PAIRS = {
    "lstm to conv": (conv(), recurrent()),
    "conv to lstm": (recurrent(), conv()),
    "strokes to image": (conv(), recurrent(("strokes", "strokes_mask"))),
}


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS)
def test_distillation_between_recurrent_and_convolutional_networks(pair):
    """Soft targets and a discriminator of pooled embeddings, on one device and on four, with padding."""
    student, model = PAIRS[pair]
    variables = model.init(jax.random.key(7), with_strokes(batch(0)))
    objective = jaxkd.combine(
        ce=term(losses.cross_entropy, "student/logits", "batch/label", weight=0.1),
        kd=term(losses.soft_target_kl, "student/logits", "teacher/logits"),
        game=objectives.adversarial("student/pooled", "teacher/pooled", discriminator=discriminators.mlp(4)),
    )
    kd = jaxkd.distill(student, jaxkd.teachers.frozen(model, variables), objective, optimizer=optax.sgd(0.1))
    kd = jaxkd.distillers.preprocess(kd, train_transform=with_strokes, eval_transform=with_strokes)
    mesh = Mesh(np.array(jax.devices()[:4]), (jaxkd.DATA_AXIS,))
    runs = {}
    for name, step in (("jit", jax.jit(kd.step)), ("shard", jaxkd.parallel.shard(kd, mesh, replicas=1))):
        state = start = kd.init(jax.random.key(0), batch(0))
        start = jax.tree.map(jnp.copy, start)
        for i in range(3):
            state, metrics = step(state, batch(i))
        runs[name] = state, tiny.numbers(metrics)
    state, found = runs["jit"]
    assert np.isfinite(list(found.values())).all()
    tiny.assert_equal(state.teacher, start.teacher)
    moved = jax.tree.map(lambda x, y: bool((x != y).any()), state.student.params, start.student.params)
    assert all(jax.tree.leaves(moved))
    tiny.assert_close(runs["shard"][0], state, rtol=1e-4, atol=1e-5)
    assert runs["shard"][1] == pytest.approx(found, rel=1e-4, abs=1e-5)
