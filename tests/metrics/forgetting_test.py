"""Measures of continual learning against their definitions, and the matrix from a run's history."""

import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd.metrics import _forgetting as lib
from jaxkd.types import Context

MATRIX = np.random.default_rng(0).uniform(size=(4, 4))


def test_measures_of_a_matrix_by_hand():
    a = [[0.9, 0.1, 0.0], [0.7, 0.8, 0.0], [0.8, 0.5, 0.6]]
    assert lib.average_accuracy(a) == pytest.approx((0.8 + 0.5 + 0.6) / 3)
    assert lib.average_accuracy(a, after=1) == pytest.approx(0.75)
    assert lib.average_accuracy(a, after=0) == pytest.approx(0.9)
    assert lib.forgetting(a) == pytest.approx((0.9 - 0.8 + 0.8 - 0.5) / 2)
    assert lib.forgetting(a, after=1) == pytest.approx(0.9 - 0.7)
    assert lib.backward_transfer(a) == pytest.approx((0.8 - 0.9 + 0.5 - 0.8) / 2)


@pytest.mark.parametrize("k", [1, 2, 3])
def test_measures_equal_their_definitions(k):
    fell = [max(MATRIX[before, j] for before in range(k)) - MATRIX[k, j] for j in range(k)]
    assert lib.forgetting(MATRIX, after=k) == pytest.approx(sum(fell) / k)
    part = MATRIX[: k + 1, : k + 1]
    assert lib.backward_transfer(part) == pytest.approx(sum(part[k, i] - part[i, i] for i in range(k)) / k)
    assert lib.forgetting(part) == lib.forgetting(MATRIX, after=k)


def test_forgetting_ignores_tasks_before_their_first_evaluation():
    lower = np.where(np.tri(4, dtype=bool), MATRIX, np.nan)
    best = [max(MATRIX[before, j] for before in range(j, 3)) for j in range(3)]
    assert lib.forgetting(lower) == pytest.approx(np.mean(best - MATRIX[3, :3]))
    assert lib.average_accuracy(lower) == lib.average_accuracy(MATRIX)
    assert lib.backward_transfer(lower) == lib.backward_transfer(MATRIX)


def test_forgetting_is_zero_for_constant_accuracies():
    assert lib.forgetting(np.ones((3, 3))) == lib.backward_transfer(np.ones((3, 3))) == 0


def context(step=0, mask=None, seed=0, size=12):
    rng = np.random.default_rng(seed)
    batch = {"label": jnp.asarray(rng.integers(0, 6, size))}
    if mask is not None:
        batch["mask"] = jnp.asarray(mask)
    return Context({"logits": jnp.asarray(rng.normal(size=(size, 6)), jnp.float32)}, {}, batch, jnp.int32(step))


@pytest.mark.parametrize("step,seen", [(0, 1), (1, 1), (3, 1), (4, 2), (5, 2), (7, 2), (8, 3)])
def test_per_task_predicts_among_the_classes_so_far(step, seen):
    """At a boundary, the task that begins with the next step has not been trained on."""
    tasks = [[5, 0], [2, 3], [1, 4]]
    mask = np.arange(12) % 4 != 1
    given = context(step, mask)
    logits, label = np.asarray(given.student["logits"]), np.asarray(given.batch["label"])
    known = [number for group in tasks[:seen] for number in group]
    found = jaxkd.metrics.compute(lib.per_task(tasks, steps=[3, 4, 5])(given))
    for i, group in enumerate(tasks):
        rows = [n for n in range(12) if mask[n] and label[n] in group]
        right = [max(known, key=lambda c, n=n: logits[n, c]) == label[n] for n in rows]
        within = [max(group, key=lambda c, n=n: logits[n, c]) == label[n] for n in rows]
        assert found[f"accuracy/{i}"] == pytest.approx(np.mean(right))
        assert found[f"accuracy_within/{i}"] == pytest.approx(np.mean(within))


def test_per_task_without_steps_predicts_among_all_classes():
    given = context()
    found = lib.per_task([[0, 1, 2], [3, 4, 5]])(given)
    plain = jaxkd.metrics.classification(given)
    assert found["accuracy"] == plain["accuracy"]
    total = sum(float(found[f"accuracy/{i}"].sum) for i in range(2))
    assert total == float(plain["accuracy"].sum)
    assert sum(float(found[f"accuracy/{i}"].count) for i in range(2)) == 12


def test_accuracies_from_a_history():
    rows = [{"step": step, "train/loss": 1.0} for step in range(1, 10)]
    rows += [{"step": s, **{f"test/accuracy/{j}": MATRIX[i, j] for j in range(4)}} for i, s in enumerate((2, 4, 6, 8))]
    name = "test/accuracy/{task}"
    np.testing.assert_array_equal(lib.task_accuracies(rows, 2, 4, name=name), MATRIX)
    np.testing.assert_array_equal(lib.task_accuracies(rows, [2, 2, 2, 2], name=name), MATRIX)
    with pytest.raises(ValueError, match=r"none at \[3\].*eval_every"):
        lib.task_accuracies(rows, [3, 5], name=name)
    with pytest.raises(ValueError, match="the number of tasks"):
        lib.task_accuracies(rows, 2, name=name)


def test_invalid_arguments_are_refused():
    with pytest.raises(ValueError, match=r"\[tasks, tasks\], got \[4, 3\]"):
        lib.forgetting(MATRIX[:, :3])
    for after in (0, 4, -5):
        with pytest.raises(ValueError, match="with a task before it"):
            lib.forgetting(MATRIX, after=after)
    with pytest.raises(ValueError, match="one of 1 tasks"):
        lib.backward_transfer([[0.5]])
    with pytest.raises(ValueError, match="one for each of the 2 tasks"):
        lib.per_task([[0], [1]], steps=[1])
    with pytest.raises(ValueError, match="batch entry 'label'"):
        lib.per_task([[0]])(context()._replace(batch={}))
