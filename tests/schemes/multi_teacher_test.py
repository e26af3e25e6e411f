"""Distillation from teachers of different architectures and label sets."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import adapters, combine, losses, teachers, term
from jaxkd.losses import voted_dissimilarity
from jaxkd.metrics import _classification as metrics_lib
from jaxkd.objectives import learned_ensemble
from jaxkd.wrappers import expand_classes, select_classes
from tests import tiny

KNOWN = {"a": [0, 1], "b": [4, 2, 3]}
TOTAL, SIZE, T = 5, 13, 4.0
KEY = jax.random.key(1)


class Convolutional(nn.Module):
    """Teacher of two classes."""

    @nn.compact
    def __call__(self, x):
        return nn.Dense(2, name="head")(nn.relu(nn.Conv(6, (1, 1), name="stem")(x)).mean(axis=(1, 2)))


class Flat(nn.Module):
    """Another architecture: the student with five classes, a teacher with three."""

    classes: int

    @nn.compact
    def __call__(self, x):
        x = nn.tanh(nn.Dense(8, name="hidden")(x.reshape(len(x), -1)))
        return nn.Dense(self.classes, name="head")(x)


STUDENT = select_classes(
    adapters.linen(Flat(TOTAL), taps={"f": "hidden"}), {f"of_{name}": classes for name, classes in KNOWN.items()}
)
MODELS = {"a": adapters.linen(Convolutional(), taps={"f": "stem"}), "b": adapters.linen(Flat(3), taps={"f": "hidden"})}
OBJECTIVE = combine(
    a=term(losses.soft_target_kl, "student/of_a", "teacher/a/known", temperature=T),
    b=term(losses.soft_target_kl, "student/of_b", "teacher/b/known", temperature=T),
    whole=term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.1, temperature=T),
    votes=term(voted_dissimilarity, "student/f", ("teacher/a/f", "teacher/b/f"), weight=0.01),
)


def batch(seed, size=SIZE):
    rng = np.random.default_rng(seed)
    return {**tiny.batch(size, seed), "label": rng.integers(0, TOTAL, size).astype(np.int32)}


def teacher(average=None):
    members = {
        name: teachers.frozen(expand_classes(model, KNOWN[name], TOTAL), model.init(jax.random.key(5 + i), batch(0)))
        for i, (name, model) in enumerate(MODELS.items())
    }
    return teachers.ensemble(members, average=average or teachers.average_probabilities(T))


def of_known_classes(context):
    """Metrics of each teacher on its classes, and of the student among them."""
    found = dict(metrics_lib.classification(context))
    label, mask = context.batch["label"], context.batch.get("mask", jnp.ones(len(context.batch["label"]), bool))
    for name, classes in KNOWN.items():
        own = jnp.argmax(label[:, None] == jnp.asarray(classes)[None], axis=1)
        where = mask & jnp.isin(label, jnp.asarray(classes))
        for side, logits in (("teacher", context.teacher[f"{name}/known"]), ("student", context.student[f"of_{name}"])):
            found[f"{side}_accuracy/{name}"] = jaxkd.metrics.from_values(jnp.argmax(logits, axis=-1) == own, where)
            found[f"{side}_nll/{name}"] = jaxkd.metrics.from_values(
                losses.cross_entropy(logits, own, where=where), where
            )
    return found


def distiller(objective=OBJECTIVE, **options):
    return jaxkd.distill(STUDENT, teacher(), objective, optimizer=optax.adam(3e-2), **options)


@pytest.mark.slow
def test_student_learns_from_both_teachers():
    kd = distiller(metrics=of_known_classes)
    state, step, evaluate = kd.init(KEY, batch(0)), jax.jit(kd.step), jax.jit(kd.evaluate)
    before, first = tiny.numbers(evaluate(state, batch(99))), None
    for i in range(60):
        state, metrics = step(state, batch(i % 6))
        first = first or tiny.numbers(metrics)
    last, after = tiny.numbers(metrics), tiny.numbers(evaluate(state, batch(99)))
    for name in KNOWN:
        assert last[name] < 0.3 * first[name]
        assert after[name] < before[name]
        assert after[f"teacher_accuracy/{name}"] == before[f"teacher_accuracy/{name}"]
    assert all(np.isfinite(x) for x in after.values())
    # The teachers' accuracy on the examples of their classes, in NumPy.
    out = teacher().apply(state.teacher, batch(99), key=None)
    label = batch(99)["label"]
    for name, classes in KNOWN.items():
        where = np.isin(label, classes)
        chosen = np.array(classes)[np.argmax(out[f"{name}/known"], axis=1)]
        assert after[f"teacher_accuracy/{name}"] == pytest.approx(np.mean((chosen == label)[where]))


@pytest.mark.slow
def test_term_equals_distillation_from_one_teacher():
    """A term equals the loss of a student with that teacher's classes only."""
    kd = distiller()
    state = kd.init(KEY, batch(0))
    _, found = jax.jit(kd.step)(state, batch(3))
    model, variables = MODELS["b"], state.teacher["b"]
    z_t = model.apply(variables, batch(3), key=None, train=False)[0]["logits"]
    z_s = STUDENT.apply(state.student, batch(3), key=None, train=False)[0]["logits"][:, KNOWN["b"]]
    np.testing.assert_allclose(
        tiny.numbers(found)["b"], losses.soft_target_kl(z_s, z_t, temperature=T).mean(), rtol=1e-5
    )


@pytest.mark.slow
def test_per_teacher_metrics_cover_known_classes():
    """Each teacher is measured on the examples of its classes."""
    kd = distiller(metrics=metrics_lib.per_teacher)
    state = kd.init(KEY, batch(0))
    found = tiny.numbers(jax.jit(kd.evaluate)(state, batch(1)))
    assert {"accuracy", "nll", "teacher_accuracy", "agreement/a"} <= found.keys()
    label, out = batch(1)["label"], teacher().apply(state.teacher, batch(1), key=None)
    for name, classes in KNOWN.items():
        where = np.isin(label, classes)
        chosen = np.array(classes)[np.argmax(out[f"{name}/known"], axis=1)]
        assert found[f"teacher_accuracy/{name}"] == pytest.approx(np.mean((chosen == label)[where]))
        assert np.isfinite(found[f"teacher_nll/{name}"])


@pytest.mark.slow
def test_learned_ensemble_weights_follow_the_labels():
    """The share of a teacher rises if the labels are of its classes."""
    kd = distiller(combine(kd=learned_ensemble(teachers=("teacher/a/logits", "teacher/b/logits"), weight=0.5)))
    state, step = kd.init(KEY, batch(0)), jax.jit(kd.step)
    only_a = {**batch(2), "label": (batch(2)["label"] % 2).astype(np.int32)}
    for _ in range(40):
        state, metrics = step(state, only_a)
    found = tiny.numbers(metrics)
    assert found["kd/share/a"] > 0.65 and found["kd/share/a"] + found["kd/share/b"] == pytest.approx(1)
    assert np.isfinite(found["kd"]) and np.isfinite(found["kd/nll"])
