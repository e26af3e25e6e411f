"""Singular vectors as a loss: their sign, their derivative, and singular values that are equal, zero or missing."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import losses
from tests import references

LAYERS = ((3, 2, 3), (2, 1, 4))  # more positions than channels, fewer
RANKS = (1, 2)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def matrix(rng, positions, channels, values):
    """With the singular values that are given."""
    left = np.linalg.qr(rng.normal(size=(positions, positions)))[0][:, : len(values)]
    right = np.linalg.qr(rng.normal(size=(channels, channels)))[0][:, : len(values)]
    return left * np.asarray(values) @ right.T


def network(rng, *spectra, batch=2, layers=LAYERS):
    """A layer's maps for each spectrum."""
    return [
        np.stack([matrix(rng, h * w, c, values) for _ in range(batch)]).reshape(batch, h, w, c)
        for (h, w, c), values in zip(layers, spectra, strict=True)
    ]


def distinct(seed=0):
    rng = np.random.default_rng(seed)
    return network(rng, (4.0, 2.0, 1.0), (3.0, 1.0)), network(rng, (5.0, 3.0, 1.0), (2.0, 1.5))


def loss(students, teachers, rank=1):
    """The sum over the examples, of two lists of maps."""
    return losses.singular_vectors(students, teachers, rank=rank).sum()


each = jax.jit(losses.singular_vectors, static_argnames="rank")
total = jax.jit(loss, static_argnums=2)
_gradients = jax.jit(jax.grad(loss, argnums=(0, 1)), static_argnums=2)
_slope = jax.jit(
    lambda maps, along, rank: jax.jvp(lambda s, t: loss(s, t, rank), maps, along)[1],
    static_argnums=2,
)


def gradients(students, teachers, rank=1):
    return jax.tree.leaves(_gradients(students, teachers, rank))


@pytest.mark.parametrize("rank", RANKS)
def test_the_value_is_that_of_a_singular_value_decomposition(rank):
    for seed in range(5):
        students, teachers = distinct(seed)
        values = each(students, teachers, rank=rank)
        np.testing.assert_allclose(values, references.singular_vectors(students, teachers, rank=rank), rtol=1e-11)


@pytest.mark.parametrize("shape", [(2, 2, 2), (3, 2, 3), (1, 2, 5), (4, 1, 4)], ids=str)
def test_each_singular_vector_against_numpy(shape):
    """Against a second layer of one channel, whose vector is 1, the relation gives every entry away."""
    rng = np.random.default_rng(0)
    height, width, channels = shape
    maps = rng.normal(size=(1, *shape))
    ones, zeros = np.ones((1, 1, 1, 1)), np.zeros((1, *shape))
    _, _, transposed = np.linalg.svd(maps.reshape(height * width, channels))
    vector = transposed[0] * np.sign(transposed[0][np.argmax(np.abs(transposed[0]))])
    # The teacher's first layer is 0 and so are its vectors: exp(-1/8) for every channel.
    expected = np.sum((np.exp(-((1 - vector) ** 2) / 8) - np.exp(-1 / 8)) ** 2)
    np.testing.assert_allclose(each((maps, ones), (zeros, ones)), [expected], rtol=1e-12)


@pytest.mark.parametrize("rank", RANKS)
def test_sign_of_the_decomposition_does_not_matter(rank, monkeypatch):
    """Value and gradient: eigenvectors are returned with any sign."""
    students, teachers = distinct()
    value, gradient = total(students, teachers, rank), gradients(students, teachers, rank)
    eigh = jnp.linalg.eigh
    for seed in range(2):
        rng = np.random.default_rng(seed)
        shapes = []

        def flipped(array, rng=rng, shapes=shapes):
            values, vectors = eigh(array)
            shapes.append(array.shape)
            return values, vectors * rng.choice([-1.0, 1.0], size=(len(array), 1, array.shape[-1]))

        both = jax.value_and_grad(functools.partial(loss, rank=rank), argnums=(0, 1))
        with monkeypatch.context() as patch:
            patch.setattr(jnp.linalg, "eigh", flipped)
            changed, slopes = jax.jit(both)(students, teachers)
        assert sorted(shapes) == [(2, 2, 2), (2, 2, 2), (2, 3, 3), (2, 3, 3)], "one of the smaller size for each map"
        np.testing.assert_allclose(changed, value, rtol=1e-11)
        for one, expected in zip(jax.tree.leaves(slopes), gradient, strict=True):
            np.testing.assert_allclose(one, expected, rtol=1e-8, atol=1e-11)


def test_the_sign_and_the_scale_of_a_map_do_not_matter():
    students, teachers = distinct()
    value = total(students, teachers, 2)
    for signs in itertools.product([-1, 0.01, 300], repeat=2):
        for maps in ([students, teachers], [teachers, students]):
            changed = [sign * array for sign, array in zip(signs, maps[0], strict=True)]
            pair = (changed, maps[1]) if maps[0] is students else (maps[1], changed)
            np.testing.assert_allclose(total(*pair, 2), value, rtol=1e-10)


def test_a_student_with_its_teacher_s_vectors_has_no_loss():
    """Whatever its left-singular vectors are: its positions are turned, and there are more of them."""
    _, teachers = distinct()
    rng = np.random.default_rng(3)
    students = []
    for array in teachers:
        batch, height, width, channels = array.shape
        turn = np.linalg.qr(rng.normal(size=(12, height * width)))[0]
        students.append((turn @ array.reshape(batch, height * width, channels)).reshape(batch, 3, 4, channels))
    np.testing.assert_allclose(each(students, teachers, rank=2), 0, atol=1e-20)


# --- the derivative ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("rank", RANKS)
def test_the_gradient_for_distinct_singular_values(rank):
    students, teachers = distinct()
    maps = [*students, *teachers]
    for index, gradient in enumerate(gradients(students, teachers, rank)):

        def of(array, index=index):
            changed = [*maps[:index], array, *maps[index + 1 :]]
            return references.singular_vectors(changed[:2], changed[2:], rank=rank).sum()

        assert np.abs(gradient).max() > 1e-4
        expected = references.finite_difference(of, maps[index])
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("rank", RANKS)
def test_forward_mode_and_second_derivatives(rank):
    students, teachers = distinct()
    rng = np.random.default_rng(5)
    direction = [rng.normal(size=array.shape) for array in students]
    still = [np.zeros_like(array) for array in teachers]
    gradient = gradients(students, teachers, rank)[:2]
    slope = _slope((students, teachers), (direction, still), rank)
    expected = sum((g * d).sum() for g, d in zip(gradient, direction, strict=True))
    np.testing.assert_allclose(slope, expected, rtol=1e-10)
    of = jax.grad(functools.partial(loss, teachers=teachers, rank=rank))
    curvature = jax.jit(lambda at: jax.jvp(of, (at,), (direction,))[1])(students)
    step = 1e-5
    ends = [[a + sign * step * d for a, d in zip(students, direction, strict=True)] for sign in (1, -1)]
    for second, ahead, behind in zip(curvature, *(gradients(end, teachers, rank)[:2] for end in ends), strict=True):
        np.testing.assert_allclose(second, (ahead - behind) / (2 * step), rtol=1e-4, atol=1e-7)


def test_the_gradient_in_float32():
    students, teachers = distinct()
    exact = gradients(students, teachers, 2)
    single = gradients(*([array.astype(np.float32) for array in maps] for maps in (students, teachers)), 2)
    for one, expected in zip(single, exact, strict=True):
        assert one.dtype == np.float32
        np.testing.assert_allclose(one, expected, rtol=1e-3, atol=1e-4 * np.abs(expected).max())


def test_descent():
    students, teachers = distinct()
    first = total(students, teachers, 2)
    for _ in range(100):
        slopes = gradients(students, teachers, 2)[:2]
        students = [array - 20 * slope for array, slope in zip(students, slopes, strict=True)]
    assert total(students, teachers, 2) < first / 20


REPEATED = {
    "all equal": ((2.0, 2.0, 2.0), (1.0, 1.0)),
    "the first two": ((2.0, 2.0, 1.0), (1.0, 1.0)),
    "those behind": ((2.0, 1.0, 1.0), (2.0, 1.0)),
    "nearly": ((2.0, 2.0 + 1e-9, 1.0), (1.0, 1.0 - 1e-7)),
    "one": ((2.0, 0.0, 0.0), (1.0, 0.0)),
    "the last zero": ((2.0, 1.0, 0.0), (1.0, 0.0)),
    "none": ((0.0, 0.0, 0.0), (0.0, 0.0)),
    "tiny": ((1e-30, 1e-30, 1e-31), (1e-30, 1e-30)),
}


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
@pytest.mark.parametrize("rank", RANKS)
@pytest.mark.parametrize("name", REPEATED)
def test_repeated_and_zero_singular_values_have_finite_derivatives(name, rank, dtype):
    rng = np.random.default_rng(1)
    special = [array.astype(dtype) for array in network(rng, *REPEATED[name])]
    usual = [array.astype(dtype) for array in distinct()[1]]
    direction = [rng.normal(size=array.shape).astype(dtype) for array in special]
    for students, teachers in ((special, usual), (usual, special), (special, special)):
        assert np.isfinite(total(students, teachers, rank))
        for gradient in gradients(students, teachers, rank):
            assert np.isfinite(gradient).all()
        assert np.isfinite(_slope((students, teachers), (direction, direction), rank))
    np.testing.assert_allclose(total(special, special, rank), 0, atol=1e-12)


@pytest.mark.parametrize("dtype", [np.float64, np.float32], ids=["float64", "float32"])
def test_maps_of_one_hot_channels(dtype):
    """Exactly repeated singular values, as a network with dead units has them: the derivative is not large either."""
    eye = np.eye(4, dtype=dtype).reshape(1, 2, 2, 4)
    teachers = [
        array[:1].astype(dtype) for array in network(np.random.default_rng(2), (4, 3), (3, 2), layers=[(2, 2, 4)] * 2)
    ]
    for gradient in gradients([eye, eye], teachers, 2):
        assert np.isfinite(gradient).all()
        assert np.abs(gradient).max() < 10


def test_equal_singular_values_beyond_the_rank_do_not_affect_the_gradient():
    """Only gaps to the vectors that are used matter."""
    rng = np.random.default_rng(4)
    students, (_, teachers) = network(rng, (4.0, 1.0, 1.0), (3.0, 1.0)), distinct()
    for index, gradient in enumerate(gradients(students, teachers)[:2]):

        def of(array, index=index):
            changed = [*students[:index], array, *students[index + 1 :]]
            return references.singular_vectors(changed, teachers).sum()

        expected = references.finite_difference(of, students[index])
        np.testing.assert_allclose(gradient, expected, rtol=1e-6, atol=1e-9)


def test_a_singular_value_that_is_missing_has_no_direction():
    """A map of rank one has no second vector: whichever a decomposition returns, it must not be compared."""
    rng = np.random.default_rng(6)
    teachers = network(rng, (4.0, 2.0, 1.0), (3.0, 1.0))
    one = network(rng, (2.0,), (1.0,))
    noisy = [array + 1e-17 * rng.normal(size=array.shape) for array in one]
    np.testing.assert_allclose(total(noisy, teachers, 2), total(one, teachers, 2), rtol=1e-10)
    np.testing.assert_allclose(total(teachers, noisy, 2), total(teachers, one, 2), rtol=1e-10)
    np.testing.assert_allclose(total(one, teachers, 2), references.singular_vectors(one, teachers, rank=2).sum())


def test_map_of_zeros_has_no_gradient_and_no_effect_on_others():
    students, teachers = distinct()
    expected, expected_gradients = each(students, teachers), gradients(students, teachers)
    for layer in range(2):
        dead = [array.copy() for array in students]
        dead[layer][0] = 0
        np.testing.assert_allclose(each(dead, teachers)[1], expected[1], rtol=1e-12)
        result = gradients(dead, teachers)
        np.testing.assert_array_equal(result[layer][0], 0)
        for gradient, one in zip(result, expected_gradients, strict=True):
            np.testing.assert_allclose(gradient[1], one[1], rtol=1e-10, atol=1e-14)


# --- cost and errors --------------------------------------------------------------------------------------------------


def test_the_smaller_matrix_is_decomposed():
    maps = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((2, 16, 16, 8), (2, 4, 4, 128))]
    jaxpr = str(jax.make_jaxpr(lambda s, t: losses.singular_vectors(s, t))(maps, maps))
    assert "f32[2,8,8]" in jaxpr and "f32[2,16,16]" in jaxpr
    assert "256,256]" not in jaxpr


@pytest.mark.parametrize("rank", [0, -1, 4])
def test_rank_larger_than_a_map_has(rank):
    wide, tall = jnp.ones((2, 4, 4, 8)), jnp.ones((2, 3, 1, 8))
    with pytest.raises(ValueError, match=rf"rank: expected 1 to .* \[2, 3, 1, 8\], got {rank}|got {rank}"):
        losses.singular_vectors([wide, tall], [wide, wide], rank=rank)
    assert losses.singular_vectors([wide, tall], [wide, wide], rank=3).shape == (2,)


def test_number_of_layers():
    layer = jnp.ones((2, 4, 4, 3))
    with pytest.raises(ValueError, match="student_maps: expected the maps of two or more layers, got 1"):
        losses.singular_vectors([layer], [layer])
    with pytest.raises(ValueError, match="teacher_maps: expected the student's 2 layers, got 3"):
        losses.singular_vectors([layer] * 2, [layer] * 3)
