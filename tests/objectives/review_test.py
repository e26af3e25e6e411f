"""Knowledge review: value, default width, resizing and errors."""

import jax
import numpy as np
import pytest

from jaxkd import losses
from jaxkd.objectives import review
from jaxkd.objectives._features._review import _nearest
from tests.objectives import plain

KEY = jax.random.key(0)
GIVEN = plain.context(
    {"a": (5, 6, 6, 2), "b": (5, 3, 3, 4), "c": (5, 7)}, {"a": (5, 6, 6, 3), "b": (5, 4, 4, 5), "c": (5, 6)}
)
NAMES = ("a", "b", "c")
OBJECTIVE = review(*(tuple(f"{root}/{n}" for n in NAMES) for root in ("student", "teacher")), hidden_size=3, weight=0.5)


def nearest(x, height, width):
    (_, h, w, _), (rows, columns) = x.shape, (range(height), range(width))
    return x[:, [i * h // height for i in rows]][:, :, [j * w // width for j in columns]]


def context_loss(s, t):
    """Hierarchical context loss of maps with at most four rows or with six, pooled by hand."""
    total, weight, halves = ((s - t) ** 2).mean((1, 2, 3)), 1.0, 1.0
    for level in (4, 2, 1):
        if level >= s.shape[1]:
            continue
        halves /= 2
        if level == 4:  # six rows in four windows: 0-1, 1-2, 3-4, 4-5
            windows = np.zeros((4, 6))
            for i, rows in enumerate(([0, 1], [1, 2], [3, 4], [4, 5])):
                windows[i, rows] = 0.5
            pooled = [np.einsum("ih,jw,bhwc->bijc", windows, windows, x) for x in (s, t)]
        else:
            pooled = [plain.pool(x, level, level) for x in (s, t)]
        total = total + halves * ((pooled[0] - pooled[1]) ** 2).mean((1, 2, 3))
        weight += halves
    return total / weight


@pytest.mark.slow
def test_value_equals_numpy_reference():
    params, state = plain.made(OBJECTIVE, GIVEN)
    own, total, deeper = plain.f64(params), 0.0, None
    for i, name in reversed(list(enumerate(NAMES))):
        layer = own[f"stage{i}"]
        x, t = (np.float64(side[name]) for side in (GIVEN.student, GIVEN.teacher))
        x, t = (f[:, None, None] if f.ndim == 2 else f for f in (x, t))
        x = plain.connector(layer["project"], x)
        if deeper is not None:
            deeper = nearest(deeper, *x.shape[1:3])
            z = 1 / (1 + np.exp(-plain.dense(layer["attention"], np.concatenate([x, deeper], -1))))
            x = x * z[..., :1] + deeper * z[..., 1:]
        deeper = x = nearest(x, *t.shape[1:3])
        y = plain.batch_norm(layer["output"]["norm"], plain.conv(layer["output"], x))
        total = total + context_loss(y, t)
    out = OBJECTIVE.apply(params, state, GIVEN, KEY)
    np.testing.assert_allclose(out.value, 0.5 * total.mean(), rtol=1e-4)
    assert jax.tree.map(np.shape, out.state) == jax.tree.map(np.shape, state)


def test_deepest_stage_has_no_attention():
    params = OBJECTIVE.init(KEY, jax.eval_shape(lambda: GIVEN)).params
    assert ["attention" in params[f"stage{i}"] for i in range(3)] == [True, True, False]
    assert {params[f"stage{i}"]["project"]["kernel"].shape[-1] for i in range(3)} == {3}


def test_default_width_is_deepest_students_and_at_most_512():
    for channels, width in (7, 7), (600, 512):
        given = jax.eval_shape(lambda c=channels: plain.context({"a": (2, c)}, {"a": (2, 3)}))
        params = review(["student/a"], ["teacher/a"]).init(KEY, given).params
        assert params["stage0"]["project"]["kernel"].shape == (channels, width)


def test_single_stage_equals_hierarchical_context():
    objective = review(["student/b"], ["teacher/b"])
    params, state = plain.made(objective, GIVEN)
    layer = plain.f64(params)["stage0"]
    x = nearest(plain.connector(layer["project"], np.float64(GIVEN.student["b"])), 4, 4)
    y = plain.batch_norm(layer["output"]["norm"], plain.conv(layer["output"], x))
    want = losses.hierarchical_context(np.float32(y), GIVEN.teacher["b"]).mean()
    np.testing.assert_allclose(objective.apply(params, state, GIVEN, KEY).value, want, rtol=1e-4)


@pytest.mark.parametrize("size", [(3, 4), (6, 8), (2, 3), (7, 1), (4, 9)])
def test_nearest_neighbor_equals_numpy_reference(size):
    x = np.arange(24.0).reshape(1, 3, 4, 2)
    np.testing.assert_array_equal(_nearest(x, size), nearest(x, *size))


def test_invalid_stages_raise():
    with pytest.raises(ValueError, match=r"review: expected as many paths of students as of teachers.* got 1 and 0"):
        review(["student/a"], [])
    with pytest.raises(ValueError, match="got 0 and 0"):
        review([], [])
    tokens = plain.context({"a": (2, 3, 4)}, {"a": (2, 3, 4)})
    with pytest.raises(ValueError, match=r"review: expected a map"):
        review(["student/a"], ["teacher/a"]).init(KEY, tokens)
    with pytest.raises(ValueError, match="teacher entry 'd'"):
        review(["student/a"], ["teacher/d"]).init(KEY, GIVEN)
