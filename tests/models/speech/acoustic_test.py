"""Acoustic models against their formulas, their masks, their contexts and their taps."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxkd
from jaxkd import adapters, losses, metrics, models, weights
from tests.models.language import tiny_models
from tests.models.speech import reference

SIZES: dict[str, Any] = {"bands": 5, "labels": 3, "width": 8, "layers": 2}
BILSTM = models.AcousticLSTMConfig(**SIZES, classes=4)
LSTM = models.AcousticLSTMConfig(**SIZES, bidirectional=False, subsampling=2)
CNN = models.AcousticCNNConfig(**SIZES, kernel=5, mlp_width=12)
LIMITED_CNN = dataclasses.replace(CNN, right_context=1, subsampling=2)
CONFORMER = models.ConformerConfig(**SIZES, heads=2, kernel=5, mlp_width=12)
LIMITED = dataclasses.replace(CONFORMER, left_context=3, right_context=1, subsampling=2)
CAUSAL = dataclasses.replace(CONFORMER, right_context=0, subsampling=1)
KINDS: dict[type, tuple[type, Any]] = {
    models.AcousticLSTMConfig: (models.AcousticLSTM, reference.lstm_layer),
    models.AcousticCNNConfig: (models.AcousticCNN, reference.cnn_layer),
    models.ConformerConfig: (models.Conformer, reference.conformer_layer),
}
CONFIGS = {
    "bidirectional lstm": BILSTM,
    "lstm": LSTM,
    "cnn": CNN,
    "limited cnn": LIMITED_CNN,
    "conformer": CONFORMER,
    "limited conformer": LIMITED,
    "causal conformer": CAUSAL,
}
QUICK = ("bidirectional lstm", "limited conformer", "conformer with attention")
LENGTHS = np.array([19, 14, 1])


def network(config):
    return adapters.nnx(
        lambda rngs: KINDS[type(config)][0](config, rngs=rngs),
        taps=models.speech_taps(config),
        inputs=models.speech_inputs,
    )


def features_of(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, SIZES["bands"])).astype(np.float32)


def cases(names):
    """Returns the names, most of which belong to the slow tests."""
    return [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in names]


@pytest.fixture(scope="module", params=cases(CONFIGS), ids=str)
def found(request):
    """A model, 3 utterances of 22 frames with padding, and the outputs."""
    config = CONFIGS[request.param]
    model = tiny_models.build(config, KINDS[type(config)][0])
    features, mask = features_of(3, 22), np.arange(22)[None] < LENGTHS[:, None]
    return model, features, mask, tiny_models.call(model, features, mask)


def test_outputs_equal_the_formulas_of_each_utterance_without_padding(found):
    model, features, mask, out = found
    config, params = model.config, tiny_models.params_of(model)
    frames = -(-LENGTHS // config.subsampling)
    np.testing.assert_array_equal(out["mask"].sum(1), frames)
    for number in range(3):
        one = features[number][mask[number]].astype(np.float64)
        hidden, logits = reference.acoustic(KINDS[type(config)][1], params, one, config)
        kept = out["mask"][number]
        np.testing.assert_allclose(out["hidden"][number][kept], hidden, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out["logits"][number][kept], logits, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(out["pooled"][number], hidden.mean(0), rtol=1e-4, atol=1e-5)
    if config.classes:
        wanted = np.asarray(out["pooled"]) @ params["classifier"]["kernel"] + params["classifier"]["bias"]
        np.testing.assert_allclose(out["class_logits"], wanted, rtol=1e-4, atol=1e-5)
    assert ("class_logits" in out) == bool(config.classes)


def test_padding_does_not_change_any_output(found):
    """Neither what it holds, also numbers that are none, nor how long it is."""
    model, features, mask, out = found
    spoiled = np.where(mask[..., None], features, np.nan)
    other = tiny_models.call(model, spoiled, mask)
    kept = np.asarray(out["mask"])
    np.testing.assert_array_equal(other["logits"][kept], out["logits"][kept])
    np.testing.assert_array_equal(other["pooled"], out["pooled"])
    assert np.isfinite(other["logits"]).all()


def test_look_ahead_is_that_of_the_formulas(found):
    """An output changes with the last frame that it may read, and with none behind it."""
    config = found[0].config
    layer, params = KINDS[type(config)][1], tiny_models.params_of(found[0])
    frames = np.asarray(features_of(1, 40)[0], np.float64)
    ahead = config.look_ahead
    number = 2

    def output(changed):
        changed = np.where(np.arange(40)[:, None] >= changed, frames + 1, frames)
        return reference.acoustic(layer, params, changed, config)[1][number]

    if ahead is None:
        assert (output(39) != output(40)).any()
    else:
        last = config.subsampling * number + ahead
        np.testing.assert_array_equal(output(last + 1), output(40))
        assert (output(last) != output(40)).any()


STREAMING = {"lstm": LSTM, "limited cnn": LIMITED_CNN, "limited conformer": LIMITED, "causal conformer": CAUSAL}


@pytest.mark.parametrize("name", cases(STREAMING))
def test_a_frame_behind_the_look_ahead_changes_no_earlier_output(name):
    config = STREAMING[name]
    model = tiny_models.build(config, KINDS[type(config)][0])
    features = features_of(1, 40)
    plain = np.asarray(tiny_models.call(model, features, None)["logits"][0])
    number = len(plain) - 2 - (config.look_ahead // config.subsampling)
    last = config.subsampling * number + config.look_ahead
    assert last < 39
    changed = features.copy()
    changed[:, last + 1 :] += 1
    other = np.asarray(tiny_models.call(model, changed, None)["logits"][0])
    np.testing.assert_allclose(other[: number + 1], plain[: number + 1], rtol=1e-5, atol=1e-6)
    assert np.abs(other[number + 1 :] - plain[number + 1 :]).max() > 1e-3


def test_look_ahead_in_frames():
    assert [config.look_ahead for config in (BILSTM, LSTM, CONFORMER, CAUSAL)] == [None, 1, None, 0]
    assert CNN.look_ahead == 2 * 2 * 4 + 3 and LIMITED_CNN.look_ahead == 2 * 1 * 2 + 1
    assert LIMITED.look_ahead == 2 * (1 + 1) * 2 + 1
    assert dataclasses.replace(LIMITED, kernel=1).look_ahead == 2 * 1 * 2 + 1


@pytest.mark.slow
@pytest.mark.parametrize("config", [BILSTM, CONFORMER], ids=["lstm", "conformer"])
def test_gradients_are_finite_for_an_utterance_without_frames(config):
    model = tiny_models.build(config, KINDS[type(config)][0])
    mask = np.array([[False] * 6, [True] * 6])

    @jax.jit
    def total(params):
        out = nnx.merge(nnx.graphdef(model), params)(jnp.ones((2, 6, 5)), mask)
        return jnp.sum(out["logits"]) + jnp.sum(out["pooled"])

    value = jax.jit(jax.value_and_grad(total))(nnx.state(model))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(value))


TAPPED = {"conformer with attention": dataclasses.replace(CONFORMER, tap_attention=True), "lstm": BILSTM, "cnn": CNN}


@pytest.mark.parametrize("name", cases(TAPPED))
def test_taps_are_paths_of_the_model(name):
    batch = {"features": features_of(2, 12), "frame_mask": np.arange(12)[None] < np.array([[12], [4]])}
    model = network(TAPPED[name])
    out = jax.eval_shape(lambda: model.apply(model.init(jax.random.key(0), batch), batch, key=None, train=False)[0])
    assert all(out[name].shape == (2, 3, 8) for name in ("embedding", "hidden0", "hidden1", "hidden"))
    if name == "conformer with attention":
        assert out["scores1"].shape == out["probabilities0"].shape == (2, 2, 3, 3)
        assert out["queries0"].shape == out["values1"].shape == (2, 3, 2, 4)


@pytest.mark.slow
@pytest.mark.parametrize("student", [LSTM, dataclasses.replace(LIMITED, dropout_rate=0.1)], ids=["lstm", "conformer"])
def test_a_student_learns_from_a_teacher_of_another_kind(student):
    """Logits by frame, hidden states and utterances, with CTC; the mask of the frames is an output."""
    teacher = network(dataclasses.replace(CNN, subsampling=2))
    batch = {
        "features": features_of(4, 16),
        "frame_mask": np.arange(16)[None] < np.array([[16], [12], [10], [8]]),
        "label": np.array([[1, 2], [3, 3], [2, 1], [1, 1]]),
        "label_mask": np.array([[True, True], [True, True], [True, True], [True, False]]),
    }

    def ctc(logits, frames, labels, exist):
        return losses.ctc(logits, labels, frame_where=frames, label_where=exist)

    objective = jaxkd.combine(
        ctc=jaxkd.term(ctc, "student/logits", "student/mask", "batch/label", "batch/label_mask"),
        kd=jaxkd.term(losses.frame_kl, "student/logits", "teacher/logits", blank_weight=0.5, where="student/mask"),
        hidden=jaxkd.term(losses.hidden_mse, "student/hidden0", "teacher/hidden1", where="student/mask"),
        pooled=jaxkd.term(losses.hidden_mse, "student/pooled", "teacher/pooled"),
    )
    variables = teacher.init(jax.random.key(1), batch)
    kd = jaxkd.distill(
        network(student), jaxkd.teachers.frozen(teacher, variables), objective, optimizer=optax.adam(1e-2)
    )
    state, step = kd.init(jax.random.key(0), batch), jax.jit(kd.step)
    found = []
    for _ in range(40):
        state, reported = step(state, batch)
        found.append(metrics.compute(reported)["loss"])
    assert found[-1] < 0.7 * found[0] and np.isfinite(found).all()


@pytest.mark.parametrize(
    "change, message",
    [
        ({"subsampling": 3}, "AcousticCNNConfig, subsampling: expected a power of two, such as 1, 2 or 4, got 3"),
        ({"kernel": 4}, "AcousticCNNConfig, kernel: expected an odd number of frames, got 4"),
        ({"right_context": -1}, "AcousticCNNConfig, right_context: expected a number of frames, or None"),
        ({"labels": 0}, "AcousticCNNConfig, labels: expected at least 1, got 0"),
    ],
)
def test_sizes_that_do_not_fit(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(CNN, **change)


def test_two_directions_have_half_of_the_features_each():
    with pytest.raises(ValueError, match="width: expected an even number for two directions, got 7"):
        dataclasses.replace(BILSTM, width=7)
    with pytest.raises(ValueError, match="heads: expected a divisor of the width 8, got 3"):
        dataclasses.replace(CONFORMER, heads=3)


def test_features_of_another_form():
    model = tiny_models.build(LSTM, models.AcousticLSTM)
    with pytest.raises(ValueError, match=r"features: expected \[batch, frames, 5\] with at least one frame"):
        model(jnp.zeros((2, 4, 6)))
    with pytest.raises(TypeError, match="features: expected floating point"):
        model(jnp.zeros((2, 4, 5), jnp.int16))
    with pytest.raises(ValueError, match=r"mask: expected bool\[2, 4\], got float32\[2, 4\]"):
        model(jnp.zeros((2, 4, 5)), jnp.ones((2, 4)))


@pytest.mark.slow
@pytest.mark.parametrize("name", ["lstm", "limited cnn", "limited conformer"])
def test_an_exported_student_writes_the_same_of_a_beginning(name, tmp_path):
    """For any number of frames: what it heard so far decides on the frames that the look-ahead allows."""
    config = STREAMING[name]
    model = network(config)
    variables = adapters.variables(tiny_models.build(config, KINDS[type(config)][0]))
    batch, frames = jax.export.symbolic_shape("batch, frames")
    features = jax.ShapeDtypeStruct((batch, frames, SIZES["bands"]), jnp.float32)
    weights.save_program(tmp_path / "student.jax", model, variables, {"features": features})
    program = weights.load_program(tmp_path / "student.jax")
    spoken = features_of(2, 41)
    full = np.asarray(program.call({"features": spoken})["logits"])
    np.testing.assert_allclose(
        full, model.apply(variables, {"features": spoken}, key=None, train=False)[0]["logits"], rtol=1e-4, atol=1e-5
    )
    for heard in (40, 27, 18):
        found = np.asarray(program.call({"features": spoken[:, :heard]})["logits"])
        decided = (heard - 1 - config.look_ahead) // config.subsampling + 1
        assert decided > 0
        np.testing.assert_allclose(found[:, :decided], full[:, :decided], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("config", [BILSTM, LIMITED], ids=["lstm", "conformer"])
def test_devices_agree(config):
    """The state of a scan starts from zeros, which must vary over the devices as the frames do."""
    model = network(config)
    variables = adapters.variables(tiny_models.build(config, KINDS[type(config)][0]))
    batch = {"features": features_of(4, 9), "frame_mask": np.arange(9)[None] < np.array([[9], [5], [9], [2]])}
    run = lambda batch: model.apply(variables, batch, key=None, train=False)[0]  # noqa: E731
    mesh = jax.make_mesh((2,), ("devices",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.sharding.PartitionSpec("devices")
    found = jax.jit(jax.shard_map(run, mesh=mesh, in_specs=split, out_specs=split))(batch)
    for name, value in jax.jit(run)(batch).items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5)
