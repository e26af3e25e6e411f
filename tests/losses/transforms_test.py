"""A loss is a pure function of arrays: jit, vmap, scan and forward mode give the same result."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from tests.loss_runs import cast, run
from tests.loss_table import ROWS, each


def options(row, arrays):
    """Returns a mask as an option, if the loss takes one."""
    shape = row.result_shape(arrays)
    return {"where": np.arange(np.prod(shape)).reshape(shape) % 3 > 0} if row.per_example else {}


@each()
def test_eager_is_jit(row):
    """Called with NumPy arrays."""
    arrays = [np.asarray(array) for array in cast(row.inputs(), np.float32)]
    where = options(row, arrays)
    value, _ = run(row, arrays, dtype=np.float32, **where)
    np.testing.assert_allclose(row.function(*arrays, **where), value, rtol=1e-5, atol=row.rounding)


@each()
def test_vmap_is_a_loop(row):
    """Values and gradients of several seeds in one program, with one mask for all."""
    arrays = row.inputs()
    where = options(row, arrays)
    seeds = [cast(row.inputs(seed=seed), np.float32) for seed in range(3)]
    stacked = [jnp.stack(column) for column in zip(*seeds, strict=True)]
    positions = row.floating(arrays)

    def both(*arrays):
        loss = functools.partial(row.function, **where)
        return loss(*arrays), jax.grad(lambda *a: loss(*a).sum(), argnums=positions)(*arrays)

    values, gradients = jax.jit(jax.vmap(both))(*stacked)
    for seed, single in enumerate(seeds):
        value, expected = run(row, [np.asarray(array) for array in single], dtype=np.float32, **where)
        np.testing.assert_allclose(values[seed], value, rtol=1e-4, atol=1e-6)
        for gradient, one in zip(gradients, expected, strict=True):
            np.testing.assert_allclose(gradient[seed], one, rtol=1e-3, atol=1e-5)


@each([row for row in ROWS if row.per_example])
def test_vmap_over_the_student_alone(row):
    """Many students of one teacher, each with its own mask."""
    student, *rest = cast(row.inputs(), np.float32)
    students = jnp.stack([student, student[::-1]])
    shape = row.result_shape((student, *rest))
    ordinal = jnp.arange(np.prod(shape)).reshape(shape)
    masks = jnp.stack([ordinal % 2 == remainder for remainder in range(2)])
    mapped = jax.vmap(lambda student, where: row.function(student, *rest, where=where))
    values = jax.jit(mapped)(students, masks)
    for value, one, where in zip(values, students, masks, strict=True):
        expected, _ = run(row, (one, *rest), where=where, dtype=np.float32)
        np.testing.assert_allclose(value, expected, rtol=1e-4, atol=1e-6)


@each([row for row in ROWS if row.forward_mode])
def test_forward_mode_is_reverse_mode(row):
    arrays = row.inputs()
    positions = row.floating(arrays)
    rng = np.random.default_rng(100)
    fixed = [np.zeros(x.shape, float if np.issubdtype(x.dtype, np.floating) else jax.dtypes.float0) for x in arrays]
    tangents = [rng.normal(size=zero.shape) if i in positions else zero for i, zero in enumerate(fixed)]
    with jax.enable_x64(True):
        push = jax.jit(lambda p, t: jax.jvp(row.function, p, t)[1])
        slope = np.asarray(push(tuple(cast(arrays, np.float64)), tuple(tangents)))
    cotangent = rng.normal(size=slope.shape)
    _, gradients = run(row, arrays, cotangent=cotangent)
    expected = sum((gradient * tangents[index]).sum() for index, gradient in zip(positions, gradients, strict=True))
    np.testing.assert_allclose((cotangent * slope).sum(), expected, rtol=1e-8)


@each()
def test_scan_and_rematerialization(row):
    """A training step in a scan, under `jax.checkpoint`."""
    single = cast(row.inputs(), np.float32)
    loss = jax.checkpoint(lambda first, *rest: row.function(first, *rest).sum())

    def step(student, _):
        value, gradient = jax.value_and_grad(loss)(student, *single[1:])
        return student - 0.01 * gradient, value

    scan = jax.jit(lambda first: jax.lax.scan(step, first, length=3))
    student, values = scan(single[0])
    expected = single[0]
    for value in values:
        result, gradients = run(row, [np.asarray(a) for a in (expected, *single[1:])], dtype=np.float32)
        np.testing.assert_allclose(value, result.sum(), rtol=1e-3, atol=1e-5)
        expected = expected - 0.01 * gradients[0]
    np.testing.assert_allclose(student, expected, rtol=1e-4, atol=1e-5)
