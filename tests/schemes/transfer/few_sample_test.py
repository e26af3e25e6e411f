"""`schemes.few_sample`: least squares layer by layer, merged into the kernels."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh

import jaxkd
from jaxkd import adapters, teachers
from jaxkd.schemes import few_sample
from jaxkd.schemes.transfer import FewSampleLayer
from jaxkd.schemes.transfer._few_sample import _solve
from tests import tiny


class Conv(nn.Module):
    width: int = 4

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(nn.BatchNorm(use_running_average=not train)(nn.Conv(self.width, (3, 3))(x)))
        x = nn.relu(nn.Conv(5, (3, 3), use_bias=False)(x)).mean(axis=(1, 2))
        return nn.Dense(3)(x)


TAPS = {"one": "Conv_0", "two": "Conv_1", "out": "Dense_0"}
MODEL = adapters.linen(Conv(), taps=TAPS)
LAYERS = {
    "one": FewSampleLayer("one", "one", "Conv_0/kernel", affine=True),
    "two": FewSampleLayer("two", "two", "Conv_1/kernel"),
    "out": FewSampleLayer("out", "out", "Dense_0/kernel"),
}


def randomised(variables, seed, scale=0.3):
    """Moves all parameters away from 0 and 1, so that biases and statistics matter."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + rng.uniform(-scale, scale, size=x.shape).astype(x.dtype), variables)


ORIGINAL = randomised(MODEL.init(jax.random.key(7), tiny.batch(2)), 0)
COMPRESSED = randomised(ORIGINAL, 1)
TEACHER = teachers.frozen(MODEL, ORIGINAL)
WHOLE = few_sample(MODEL, TEACHER, LAYERS, variables=COMPRESSED)


def outputs(variables, batch):
    return MODEL.apply(variables, batch, key=None, train=False)[0]


def run(kd, batches, step=None):
    state = kd.init(jax.random.key(1), batches[0])
    step, found = step or jax.jit(kd.step), []
    for batch in batches:
        state, metrics = step(state, batch)
        found.append(tiny.numbers(metrics))
    return state, found


def rows(batch):
    x, y = (np.asarray(outputs(v, batch)["one"], np.float64).reshape(-1, 4) for v in (COMPRESSED, ORIGINAL))
    return x, y


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("ridge", [0.0, 0.1])
def test_solution_matches_float64_least_squares(affine, ridge):
    """Float64 least squares over all batches of the layer, or the ridge solution."""
    layers = {"one": LAYERS["one"]._replace(affine=affine)}
    kd = few_sample(MODEL, TEACHER, layers, steps=3, ridge=ridge, variables=COMPRESSED)
    batches = [tiny.batch(4, i) for i in range(3)]
    state, _ = run(kd, batches)
    x, y = (np.concatenate(parts) for parts in zip(*map(rows, batches), strict=True))
    plain = x
    if affine:
        x = np.concatenate([x, np.ones((len(x), 1))], axis=1)
    identity = np.eye(x.shape[1], 4)
    gram = x.T @ x
    if ridge:
        mixing = identity + np.linalg.solve(gram + ridge * np.diag(np.diag(gram)), x.T @ (y - plain))
    else:
        mixing = np.linalg.lstsq(x, y)[0]
    kernel, bias = (np.asarray(COMPRESSED.params["Conv_0"][k], np.float64) for k in ("kernel", "bias"))
    offset = mixing[4] if affine else 0
    np.testing.assert_allclose(state.student.params["Conv_0"]["kernel"], kernel @ mixing[:4], rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(state.student.params["Conv_0"]["bias"], bias @ mixing[:4] + offset, rtol=1e-3, atol=2e-4)
    # The merged layer computes the fitted map on any input.
    held_out = tiny.batch(4, 9)
    before, after = (np.asarray(outputs(v, held_out)["one"]) for v in (COMPRESSED, state.student))
    np.testing.assert_allclose(after, before @ mixing[:4] + offset, rtol=1e-3, atol=5e-4)


def test_solve_reaches_float32_accuracy():
    """On equations of condition 400, with channels of scale 10⁻³ to 10³."""
    rng = np.random.default_rng(0)
    basis = np.linalg.qr(rng.normal(size=(400, 6)))[0] * np.geomspace(1, 0.05, 6)
    x = (basis @ np.linalg.qr(rng.normal(size=(6, 6)))[0]) * np.geomspace(1e-3, 1e3, 6)
    mixing = rng.normal(size=(6, 6)) / np.geomspace(1e-3, 1e3, 6)[:, None]
    r = x @ mixing + 1e-3 * rng.normal(size=(400, 6))
    sums = {"xx": jnp.float32(x.T @ x), "xr": jnp.float32(x.T @ r)}
    expected, found = np.linalg.lstsq(x, r)[0], np.asarray(_solve(sums, 0.0), np.float64)
    np.testing.assert_allclose(x @ found, x @ expected, atol=2e-4 * np.abs(x @ expected).max())


def test_layer_is_fitted_after_earlier_layers_are_repaired():
    batches = [tiny.batch(4, i) for i in range(6)]
    whole = few_sample(MODEL, TEACHER, LAYERS, steps=2, variables=COMPRESSED)
    state, found = run(whole, batches)
    assert [one["layer"] for one in found] == [0, 0, 1, 1, 2, 2]
    student = COMPRESSED
    for i, name in enumerate(LAYERS):
        part = few_sample(MODEL, TEACHER, {name: LAYERS[name]}, steps=2, variables=student)
        student = run(part, batches[2 * i : 2 * i + 2])[0].student
    tiny.assert_close(state.student, student, rtol=1e-4, atol=1e-5)
    # The residual of a layer falls when its solution is merged.
    fitted = [one["residual/one"] for one in found]
    assert fitted[2] < 0.5 * fitted[0]
    # Fitting one layer does not change the others.
    first, _ = run(whole, batches[:2])
    rest = {name: value for name, value in first.student.params.items() if name != "Conv_0"}
    tiny.assert_equal(rest, {name: COMPRESSED.params[name] for name in rest})
    tiny.assert_equal(first.student.state, COMPRESSED.state)


def mixed(variables, seed):
    """Mixes every layer's output channels at random."""
    rng = np.random.default_rng(seed)
    params = {name: dict(layer) for name, layer in variables.params.items()}
    for name in ("Conv_0", "Conv_1", "Dense_0"):
        width = params[name]["kernel"].shape[-1]
        matrix = jnp.asarray(np.eye(width) + 0.3 * rng.normal(size=(width, width)), jnp.float32)
        params[name] = {part: value @ matrix for part, value in params[name].items()}
    return variables._replace(params=params)


def test_mixed_channels_are_restored():
    student = mixed(ORIGINAL, 3)
    held_out = tiny.batch(8, 77)
    assert np.abs(outputs(student, held_out)["logits"] - outputs(ORIGINAL, held_out)["logits"]).max() > 0.1
    state, _ = run(few_sample(MODEL, TEACHER, LAYERS, variables=student), [tiny.batch(8, i) for i in range(3)])
    tiny.assert_close(state.student, ORIGINAL, rtol=2e-3, atol=2e-3)
    tiny.assert_close(outputs(state.student, held_out), outputs(ORIGINAL, held_out), rtol=2e-3, atol=2e-3)


def test_student_equal_to_the_teacher_is_unchanged():
    state, found = run(few_sample(MODEL, TEACHER, LAYERS, variables=ORIGINAL), [tiny.batch(4, i) for i in range(3)])
    tiny.assert_equal(state.student, ORIGINAL)
    assert found[0]["loss"] == 0


def test_steps_after_the_last_layer_change_nothing():
    batches = [tiny.batch(4, i) for i in range(6)]
    done, _ = run(WHOLE, batches[:3])
    later, found = run(WHOLE, batches)
    tiny.assert_equal(later._replace(step=done.step), done)
    assert int(later.step) == 6
    assert found[-1]["layer"] == 2


@pytest.mark.slow
def test_pruned_network_is_fitted_to_selected_channels():
    """Half of the hidden units are pruned."""

    class Net(nn.Module):
        width: int

        @nn.compact
        def __call__(self, x):
            x = nn.tanh(nn.Dense(self.width)(x))
            return nn.Dense(3)(x)

    wide, narrow = (adapters.linen(Net(w), inputs="x", taps={"h": "Dense_0", "o": "Dense_1"}) for w in (6, 3))
    batch = {"x": np.random.default_rng(0).normal(size=(40, 5)).astype(np.float32)}
    variables, keep = wide.init(jax.random.key(0), batch), np.array([5, 0, 2])
    first, second = (variables.params[f"Dense_{i}"] for i in range(2))
    pruned = {
        "Dense_0": {"kernel": first["kernel"][:, keep] * 0.5, "bias": first["bias"][keep]},
        "Dense_1": {"kernel": second["kernel"][keep], "bias": second["bias"]},
    }
    layers = {
        "h": FewSampleLayer("h", "h", "Dense_0/kernel", channels=(5, 0, 2)),
        "o": FewSampleLayer("o", "o", "Dense_1/kernel", affine=True),
    }
    kd = few_sample(narrow, teachers.frozen(wide, variables), layers, variables={"params": pruned})
    state, found = run(kd, [batch, batch])
    np.testing.assert_allclose(
        state.student.params["Dense_0"]["kernel"], first["kernel"][:, keep], rtol=1e-4, atol=1e-5
    )
    after = tiny.numbers(kd.evaluate(state, batch))
    assert after["residual/h"] < 1e-9
    assert after["residual/o"] < 0.9 * found[1]["residual/o"] < found[0]["residual/o"]


def test_nnx_modules():
    class Net(nnx.Module):
        def __init__(self, rngs):
            self.first, self.second = nnx.Linear(2, 4, rngs=rngs), nnx.Linear(4, 3, rngs=rngs)

        def __call__(self, x):
            return self.second(nnx.relu(self.first(x)))

    model = adapters.nnx(Net, taps={"h": "first"})
    original = model.init(jax.random.key(0), tiny.batch(2))
    spoilt = randomised(original, 5)
    kd = few_sample(
        model, teachers.frozen(model, original), {"h": FewSampleLayer("h", "h", "first/kernel", affine=True)},
        variables=spoilt,
    )  # fmt: skip
    _, found = run(kd, [tiny.batch(4), tiny.batch(4)])
    assert found[1]["loss"] < 0.9 * found[0]["loss"]


@pytest.mark.parametrize("ridge", [0.0, 1e-3])
def test_fewer_examples_than_channels(ridge):
    """Undetermined directions are unchanged; the others are fitted."""
    model = adapters.plain(lambda key, x: {"kernel": jnp.eye(6)}, lambda w, x: x @ w["kernel"], inputs="x")
    rng = np.random.default_rng(0)
    target = jnp.float32(np.eye(6) + rng.normal(size=(6, 6)))
    layers = {"all": FewSampleLayer("logits", "logits", "kernel")}
    kd = few_sample(model, teachers.frozen(model, jaxkd.Variables({"kernel": target})), layers, ridge=ridge)
    x = rng.normal(size=(2, 6)).astype(np.float32)
    state, _ = run(kd, [{"x": x}])
    mixing = np.asarray(state.student.params["kernel"])
    assert np.isfinite(mixing).all()
    np.testing.assert_allclose(x @ mixing, x @ np.asarray(target), rtol=1e-2, atol=2e-4 if not ridge else 2e-2)
    # In directions without data, with channels scaled to unit squares, the change is 0.
    change, scale = mixing - np.eye(6), np.sqrt((x**2).sum(0))
    unseen = np.linalg.svd(x / scale)[2][2:]
    np.testing.assert_allclose(unseen @ (scale[:, None] * change), 0, atol=1e-3)
    one, _ = run(kd, [{"x": x[:1]}])
    assert np.isfinite(np.asarray(one.student.params["kernel"])).all()


def test_extreme_inputs_stay_finite():
    for scale in (0.0, 1e-30, 1e4):
        batches = [{**tiny.batch(4, i), "image": np.float32(scale) * tiny.batch(4, i)["image"]} for i in range(3)]
        state, _ = run(WHOLE, batches)
        assert all(np.isfinite(x).all() for x in jax.tree.leaves((state.student, state.objective)))
    empty = [{**tiny.batch(6, i), "mask": np.zeros(6, bool)} for i in range(3)]
    tiny.assert_equal(run(WHOLE, empty)[0].student, COMPRESSED)


def test_masked_tokens_equal_dropped_tokens():
    rng = np.random.default_rng(0)
    x, kernel = rng.normal(size=(3, 4, 2)).astype(np.float32), rng.normal(size=(2, 2)).astype(np.float32)
    mask = np.array([[1, 1, 0, 0], [0, 1, 0, 1], [1, 0, 0, 1]], bool)
    model = adapters.plain(lambda key, x: {"kernel": jnp.eye(2)}, lambda w, x: {"logits": x @ w["kernel"]}, inputs="x")
    teacher = teachers.frozen(model, jaxkd.Variables({"kernel": kernel}))
    kd = few_sample(model, teacher, {"only": FewSampleLayer("logits", "logits", "kernel")})
    state, found = run(kd, [{"x": np.where(mask[..., None], x, np.nan), "mask": mask}])
    expected, wanted = run(kd, [{"x": x[mask].reshape(3, 2, 2)}])
    tiny.assert_close(state.student, expected.student, rtol=1e-4)
    np.testing.assert_allclose(state.student.params["kernel"], kernel, atol=1e-5)
    assert found[0]["residual/only"] == pytest.approx(wanted[0]["residual/only"], rel=1e-5)


def test_masked_examples_equal_dropped_examples():
    """Even if masked values are NaN."""
    masked, dropped = [], []
    for batch in [tiny.batch(6, i) for i in range(3)]:
        keep = np.array([True, False, True, True, False, True])
        spoilt = np.where(keep[:, None, None, None], batch["image"], np.nan)
        masked.append({**batch, "image": spoilt, "mask": keep})
        dropped.append({name: x[keep] for name, x in batch.items()})
    state, found = run(WHOLE, masked)
    expected, other = run(WHOLE, dropped)
    tiny.assert_close(state.student, expected.student, rtol=1e-3, atol=1e-4)
    for one, two in zip(found, other, strict=True):
        assert one == pytest.approx(two, rel=1e-3, abs=1e-5)


@pytest.mark.slow
def test_pmap_equals_jit_over_several_layers():
    """Four examples are padded on three devices."""
    batches = [tiny.batch(4, i) for i in range(4)]
    expected, metrics = run(WHOLE, batches)
    placed = jaxkd.parallel.pmap(WHOLE, jax.devices()[:3], replicas=1)
    state, found = run(placed, batches, step=placed)
    for one, other in zip(found, metrics, strict=True):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)
    tiny.assert_close(state.student, expected.student, rtol=1e-3, atol=1e-4)


def test_shard_map_equals_jit():
    spec, mesh = jax.sharding.PartitionSpec, Mesh(np.array(jax.devices()[:2]), (jaxkd.DATA_AXIS,))
    split = spec(jaxkd.DATA_AXIS)
    step = jax.jit(jax.shard_map(WHOLE.step, mesh=mesh, in_specs=(spec(), split), out_specs=spec()))
    batches = [tiny.batch(4, i) for i in range(4)]
    state, _ = run(WHOLE, batches, step=step)
    tiny.assert_close(state.student, run(WHOLE, batches)[0].student, rtol=1e-3, atol=1e-4)


def test_invalid_arguments_raise():
    def made(**changed):
        return few_sample(MODEL, TEACHER, {"a": LAYERS["one"]._replace(**changed)}, variables=COMPRESSED)

    batch = tiny.batch(2)
    with pytest.raises(ValueError, match="layers: expected at least one"):
        few_sample(MODEL, TEACHER, {})
    with pytest.raises(ValueError, match=r"'Conv_0/kernel' is the kernel of more than one"):
        few_sample(MODEL, TEACHER, {"a": LAYERS["one"], "b": LAYERS["one"]})
    with pytest.raises(ValueError, match=r"steps: expected at least 1.*got 0"):
        few_sample(MODEL, TEACHER, LAYERS, steps=0)
    with pytest.raises(ValueError, match=r"ridge: expected a number of at least 0, got nan"):
        few_sample(MODEL, TEACHER, LAYERS, ridge=float("nan"))
    for message, changed in {
        r"layer 'a', student output 'ona': there is no such name \(did you mean 'one'": {"student": "ona"},
        r"layer 'a', teacher output 'x'": {"teacher": "x"},
        r"layer 'a', kernel 'Conv_0/kernal'.*did you mean 'Conv_0/kernel'": {"kernel": "Conv_0/kernal"},
        r"layer 'a', bias 'b'": {"bias": "b"},
        r"expected outputs of one shape, got \[2, 4, 4, 4\].*channels=": {"teacher": "two"},
        r"channels: expected indices of the channels of float32\[2, 4, 4, 4\], got \(0, 4\)": {"channels": (0, 4)},
        r"kernel 'Conv_1/kernel': expected \[..., 4\]": {"kernel": "Conv_1/kernel"},
    }.items():
        with pytest.raises(ValueError, match=message):
            made(**changed).init(jax.random.key(0), batch)
    two = LAYERS["two"]._replace(affine=True)
    with pytest.raises(ValueError, match="affine: the layer has no bias"):
        few_sample(MODEL, TEACHER, {"a": two}, variables=COMPRESSED).init(jax.random.key(0), batch)


def test_several_metrics_are_reported():
    model = jaxkd.adapters.plain(
        lambda key, x: {"kernel": jnp.eye(2)}, lambda w, x: {"logits": x @ w["kernel"]}, inputs="x"
    )
    teacher = jaxkd.teachers.frozen(model, jaxkd.Variables({"kernel": jnp.ones((2, 2))}))
    count = lambda context: {"sum": jaxkd.metrics.from_values(context.student["logits"])}  # noqa: E731
    layers = {"only": FewSampleLayer("logits", "logits", "kernel")}
    kd = few_sample(model, teacher, layers, metrics=[jaxkd.metrics.classification, count])
    batch = {"x": jnp.array([[1.0, 0.0], [1.0, 2.0]])}
    found = tiny.numbers(kd.evaluate(kd.init(jax.random.key(0), batch), batch))
    assert found["sum"] == 1.0 and "agreement" in found
