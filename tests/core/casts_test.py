"""Casts that keep finite values finite, in the helper and where weights and batches are narrowed."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import Variables, adapters, losses, teachers, term, weights, wrappers
from jaxkd._core.arrays.casts import cast

LOWEST = np.finfo(np.float32).min
HIGHEST = {"bfloat16": 3.3895313892515355e38, "float16": 65504.0, "float8_e5m2": 57344.0, "float8_e4m3fn": 448.0}


@pytest.mark.parametrize("lib", [np, jnp], ids=["numpy", "jax"])
@pytest.mark.parametrize("source", ["float32", "bfloat16"])
@pytest.mark.parametrize("target", HIGHEST)
def test_finite_values_stay_finite_and_others_stay_what_they_are(lib, source, target):
    lowest = float(jnp.finfo(source).min)
    found = cast(lib.asarray([lowest, -lowest, 1.5, 0, np.nan], jnp.dtype(source)), jnp.dtype(target))
    assert isinstance(found, np.ndarray if lib is np else jax.Array)
    assert found.dtype == target
    np.testing.assert_array_equal(np.float64(found), [-HIGHEST[target], HIGHEST[target], 1.5, 0, np.nan])
    if target != "float8_e4m3fn":  # it has no infinities
        infinite = cast(lib.asarray([np.inf, -np.inf], jnp.dtype(source)), jnp.dtype(target))
        np.testing.assert_array_equal(np.float64(infinite), [np.inf, -np.inf])


def test_values_within_the_range_round_as_in_the_plain_conversion():
    x = np.float32(np.random.default_rng(0).normal(0, 1e4, 1000))
    for dtype in (jnp.float16, jnp.bfloat16):
        np.testing.assert_array_equal(cast(jnp.asarray(x), dtype), x.astype(dtype))


def test_the_derivative_is_that_of_the_conversion():
    x = jnp.array([1.5, 65504.0, 1e6, -1e6])
    grad = jax.grad(lambda x: jnp.sum(cast(x, jnp.float16).astype(jnp.float32)))(x)
    assert grad.tolist() == [1, 1, 0, 0]


def test_host_arrays_get_dtypes_that_jax_has():
    found = cast(np.array([1e300, -1e300, np.inf, 0.1]))
    assert found.tolist() == [-LOWEST, LOWEST, np.inf, np.float32(0.1)]
    assert cast(np.array([2**31 - 1])).dtype == np.int32
    with pytest.raises(ValueError, match=r"expected integers that fit int32, got int64 from 3 to 1099511627776\. "):
        cast(np.array([3, 2**40]))


def masked():
    """A model whose attention-like mask is a parameter and an entry of the batch: finfo(float32).min excludes."""

    def init(key, x, mask):
        return {"w": jnp.eye(3), "mask": jnp.array([[0.0, LOWEST, 0.0]])}

    def apply(params, x, mask):
        return {"logits": x @ params["w"] + 0 * mask + 0 * params["mask"]}  # 0 · (−inf) is NaN

    return adapters.plain(init, apply, inputs=("x", "bias"))


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
def test_a_mask_of_the_lowest_float32_trains_in_narrow_precision(dtype):
    model = masked()
    batch = {"x": jnp.eye(3), "bias": jnp.full((3, 3), LOWEST), "label": jnp.arange(3)}
    variables = model.init(None, batch)
    teacher = teachers.frozen(wrappers.precision(model, dtype), variables, dtype=dtype)
    objective = jaxkd.combine(
        kd=term(losses.soft_target_kl, "student/logits", "teacher/logits"),
        ce=term(losses.cross_entropy, "student/logits", "batch/label"),
    )
    kd = jaxkd.distill(wrappers.precision(model, dtype), teacher, objective, optimizer=optax.sgd(0.1))
    state = kd.init(jax.random.key(0), batch)
    assert state.teacher.params["mask"].tolist() == [[0, -float(jnp.finfo(dtype).max), 0]]
    state, metrics = jax.jit(kd.step)(state, batch)
    assert np.isfinite(metrics["loss"].sum)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(state.student.params))
    assert (state.student.params["w"] != jnp.eye(3)).any()


def test_state_that_a_model_returns_wider_is_narrowed():
    model = jaxkd.Model(
        lambda key, batch: Variables({}, {"mask": jnp.zeros(1, jnp.float16)}),
        lambda v, batch, *, key, train: ({"logits": batch["x"]}, {"mask": jnp.full(1, LOWEST)}),
    )
    variables = model.init(None, {})
    _, state = wrappers.precision(model).apply(variables, {"x": jnp.ones((1, 1))}, key=None, train=True)
    assert state["mask"].tolist() == [-65504.0]


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16], ids=str)
def test_casts_of_weights(dtype, tmp_path):
    source = {"params": {"mask": np.array([0, LOWEST, -np.inf], np.float32), "w": np.full((2, 2), 1e300)}}
    lowest = -float(jnp.finfo(dtype).max)
    small = weights.cast(source, dtype)
    assert np.float64(small.params["mask"]).tolist() == [0, lowest, -np.inf]
    assert (np.float64(small.params["w"]) == -lowest).all()
    like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, dtype), {"params": {"mask": source["params"]["mask"]}})
    fitted = weights.fit_to(like, {"mask": source["params"]["mask"]})
    assert np.float64(fitted["params"]["mask"]).tolist() == [0, lowest, -np.inf]


def test_weights_in_64_bits_stay_finite_in_a_teacher_a_program_and_codes(tmp_path):
    model = adapters.plain(lambda key, x: None, lambda w, x: x @ w, inputs="x")
    wide = Variables(np.array([[1e300, 1.0], [0.5, -1e300]]))
    expected = np.float32([[-LOWEST, 1], [0.5, LOWEST]])
    np.testing.assert_array_equal(teachers.frozen(model, wide).init(None, {}, None).params, expected)
    weights.save_program(tmp_path / "program", model, wide, {"x": np.ones((1, 2), np.float32)}, platforms=("cpu",))
    program = jax.export.deserialize(bytearray((tmp_path / "program").read_bytes()))
    np.testing.assert_array_equal(program.call({"x": np.eye(2, dtype=np.float32)})["logits"], expected)
    narrow = Variables({"w": np.full((2, 2), 65504, np.float16)})
    weights.save_quantized(tmp_path / "codes", narrow, bits=2)
    assert (weights.load_quantized(tmp_path / "codes").params["w"] == 65504).all()
    with pytest.raises(ValueError, match="expected integers that fit int32"):
        teachers.frozen(model, Variables({"n": np.array([2**40])})).init(None, {}, None)
