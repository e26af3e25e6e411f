"""Pose networks of images and of clips, and the sizes and costs that docs/guides/dense.md states."""

import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters, models
from jaxkd.models.dense._dynamic_kernels import convolved

PAGE = pathlib.Path(__file__).parents[3] / "docs" / "guides" / "dense.md"
ROW = re.compile(
    r"^\| `(?P<call>(PoseNetwork|DynamicKernels)\([^`]*\))` \| (?P<parameters>[\d,]+) \| (?P<flops>[\d.]+) \|$",
    re.MULTILINE,
)
ROWS = {m["call"]: m for m in ROW.finditer(PAGE.read_text(encoding="utf-8"))}
FRAMES = 5

VIDEO = models.DynamicKernels(
    joints=3, widths=(4, 6), channels=4, kernel_size=3, initializer_widths=(4,), initializer_channels=4
)
CLIPS = np.float32(np.random.default_rng(0).normal(size=(2, 3, 24, 28, 3)))


def shapes(model, *size):
    image = jax.ShapeDtypeStruct(size, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    return {name: x.shape for name, x in jax.eval_shape(model.apply, variables, image).items()}


@pytest.mark.parametrize("stride", [2, 4])
def test_heatmaps_of_any_size_of_image(stride):
    model = models.PoseNetwork(joints=3, widths=(4, 6), channels=4, stride=stride)
    found = shapes(model, 2, 29, 50, 3)
    assert found["heatmaps"] == (2, -(-29 // stride), -(-50 // stride), 3)
    video = VIDEO.copy(stride=stride)
    clips = shapes(video, 2, FRAMES, 29, 50, 3)
    assert clips["heatmaps"] == (2, FRAMES, *found["heatmaps"][1:]) and clips["kernels"] == (2, 4, 3, 3, 4)
    assert shapes(video, 2, 1, 29, 50, 3)["heatmaps"].count(1) == 1  # a clip of the first frame


def test_every_example_has_kernels_of_its_own():
    rng = np.random.default_rng(0)
    features, kernels = rng.normal(size=(2, 4, 5, 3)), rng.normal(size=(2, 3, 3, 3))
    expected = np.zeros_like(features)
    for b, i, j, c in np.ndindex(features.shape):
        for di, dj in np.ndindex(3, 3):
            row, column = i + di - 1, j + dj - 1
            if 0 <= row < 4 and 0 <= column < 5:
                expected[b, i, j, c] += features[b, row, column, c] * kernels[b, di, dj, c]
    found = convolved(jnp.array(features, jnp.float32), jnp.array(kernels, jnp.float32))
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "shape", "message"),
    [
        (models.PoseNetwork(joints=0), (1, 8, 8, 3), "joints: expected at least 1"),
        (VIDEO.copy(kernel_size=4), (1, 2, 8, 8, 3), "kernel_size: expected an odd number, got 4"),
        (VIDEO, (2, 8, 8, 3), r"x: expected clips \[batch, frames"),
    ],
)
def test_what_is_refused(model, shape, message):
    with pytest.raises(ValueError, match=message):
        shapes(model, *shape)
    with pytest.raises(TypeError, match="Normalize clips first"):
        jax.eval_shape(VIDEO.init, jax.random.key(0), jnp.zeros((1, 2, 8, 8, 3), jnp.uint8))


@pytest.fixture(scope="module")
def video():
    model = adapters.linen(VIDEO)
    variables = jax.jit(model.init)(jax.random.key(0), {"image": jnp.array(CLIPS)})
    rng = np.random.default_rng(1)
    variables = jax.tree.map(lambda x: x + 0.2 * np.abs(rng.normal(size=x.shape)).astype(np.float32), variables)
    run = jax.jit(
        lambda variables, batch, train: model.apply(variables, batch, key=None, train=train), static_argnums=2
    )
    return variables, run


@pytest.mark.slow
def test_a_frame_reads_itself_and_the_frames_before(video):
    variables, run = video
    whole = run(variables, {"image": CLIPS}, False)[0]["heatmaps"]
    changed = CLIPS.copy()
    changed[:, 1] += 1
    other = run(variables, {"image": changed}, False)[0]["heatmaps"]
    moved = np.abs(np.asarray(whole - other)).max((0, 2, 3, 4))
    assert moved[0] == 0 and moved[1] > 0 and moved[2] > 0


@pytest.mark.slow
def test_the_structure_is_that_of_the_equations(video):
    """The first step of the recurrence, from the parameters by name."""
    variables, run = video
    out = run(variables, {"image": CLIPS}, False)[0]
    params, stats = jax.tree.map(np.asarray, (variables.params, variables.state["batch_stats"]))

    def norm(x, name, group):
        p, s = params[group][name], stats[group][name]
        return (x - s["mean"]) / np.sqrt(s["var"] + 1e-5) * p["scale"] + p["bias"]

    def conv(x, kernel):
        half, (height, width) = kernel.shape[0] // 2, x.shape[1:3]
        padded = np.pad(x, ((0, 0), (half, half), (half, half), (0, 0)))
        shifts = [(i, j) for i in range(2 * half + 1) for j in range(2 * half + 1)]
        return sum(padded[:, i : i + height, j : j + width] @ kernel[i, j] for i, j in shifts)

    heatmaps, features = (np.asarray(out[name]) for name in ("heatmaps", "features"))
    kernels = params["distillator"]
    x = np.concatenate([heatmaps[:, 0], features[:, 0]], axis=-1)  # 6 × 7
    x = norm(conv(x, kernels["Conv_0"]["kernel"]), "BatchNorm_0", "distillator")
    for k in (1, 2, 3):
        x = np.maximum(norm(conv(x, kernels[f"Conv_{k}"]["kernel"]), f"BatchNorm_{k}", "distillator"), 0)
        x = np.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, x.shape[2] % 2), (0, 0)), constant_values=-np.inf)
        x = x.reshape(2, x.shape[1] // 2, 2, x.shape[2] // 2, 2, 4).max((2, 4))
    x = np.broadcast_to(x, (2, 3, 3, 4))  # of one position
    x = norm(conv(x, kernels["Conv_4"]["kernel"]), "BatchNorm_4", "distillator")
    np.testing.assert_allclose(out["kernels"][:, 0], x, rtol=1e-4)
    searched = np.asarray(convolved(jnp.array(features[:, 1]), jnp.array(x, jnp.float32)))
    joints = searched @ params["head"]["to_joints"]["kernel"][0, 0] + params["head"]["to_joints"]["bias"]
    np.testing.assert_allclose(heatmaps[:, 1], norm(joints, "BatchNorm_0", "head"), rtol=1e-3)


@pytest.mark.slow
def test_a_masked_clip_is_as_absent(video):
    variables, run = video
    clips = CLIPS.copy()
    clips[1] = 1e3
    found, state = run(variables, {"image": clips, "mask": np.array([True, False])}, True)
    expected, other = run(variables, {"image": CLIPS[:1], "mask": np.array([True])}, True)
    np.testing.assert_allclose(found["heatmaps"][0], expected["heatmaps"][0], atol=1e-4)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), state, other)


@pytest.mark.slow
def test_bfloat16_is_finite_and_parameters_have_gradients():
    model = adapters.linen(VIDEO.copy(dtype=jnp.bfloat16))
    batch = {"image": jnp.array(CLIPS)}
    variables = jax.jit(model.init)(jax.random.key(0), batch)

    def loss(params):
        outputs, _ = model.apply(variables._replace(params=params), batch, key=None, train=True)
        assert outputs["heatmaps"].dtype == jnp.float32
        return jnp.sum(jnp.sin(outputs["heatmaps"]))

    grads = jax.tree.leaves(jax.jit(jax.grad(loss))(variables.params))
    assert all(np.isfinite(x).all() for x in grads) and sum(bool(np.any(x)) for x in grads) > 0.9 * len(grads)


@pytest.mark.slow
@pytest.mark.parametrize("call", ROWS)
def test_parameters_and_flops_a_frame(call):
    model = eval(call, {name: getattr(models, name) for name in ("PoseNetwork", "DynamicKernels")})
    size = (1, FRAMES, 96, 96, 3) if call.startswith("Dynamic") else (1, 96, 96, 3)
    frames = FRAMES if call.startswith("Dynamic") else 1
    image = jax.ShapeDtypeStruct(size, jnp.float32)
    variables = jax.eval_shape(model.init, jax.random.key(0), image)
    assert sum(x.size for x in jax.tree.leaves(variables["params"])) == int(ROWS[call]["parameters"].replace(",", ""))
    program = jax.jit(lambda v, x: model.apply(v, x)["heatmaps"]).lower(variables, image)
    flops = program.cost_analysis()["flops"] / frames / 1e6
    assert flops == pytest.approx(float(ROWS[call]["flops"]), rel=0.02)


@pytest.mark.slow
def test_the_table_is_read():
    assert len(ROWS) == 4
