"""`per_student`: metrics of each member, with masks, beside those of the group."""

import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd.metrics import classification, compute, per_student
from jaxkd.types import Context

RIGHT = jnp.array([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])


def context(**batch):
    student = {"logits": RIGHT, "a/logits": RIGHT, "peers/b/logits": -RIGHT, "a/vector": jnp.ones((3, 5))}
    return Context(student, {}, {"label": jnp.array([0, 1, 0]), **batch}, 0)


def test_metrics_of_each_member():
    found = compute(per_student(context()))
    assert (found["accuracy"], found["accuracy/a"], found["accuracy/peers/b"]) == (1, 1, 0)
    assert found["nll/a"] == pytest.approx(np.mean([np.log1p(np.exp(-x)) for x in (2.0, 1.0, 3.0)]), rel=1e-6)
    assert sorted(found) == ["accuracy", "accuracy/a", "accuracy/peers/b", "nll", "nll/a", "nll/peers/b"]


def test_masked_examples_are_excluded():
    mixed = context(mask=jnp.array([True, True, False]))
    mixed = mixed._replace(student={**mixed.student, "a/logits": RIGHT.at[1].set(jnp.array([1.0, 0.0]))})
    found = per_student(mixed)
    assert found["accuracy/a"] == (1, 2)
    assert compute(found)["accuracy"] == compute(classification(mixed))["accuracy"] == 1
