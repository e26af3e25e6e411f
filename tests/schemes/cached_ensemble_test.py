"""A cached ensemble trains the same student as a live one."""

import functools

import jax
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, data, losses, teachers, term
from jaxkd.cache import codecs
from jaxkd.distillers import preprocess
from jaxkd.training import fit
from tests import tiny

KEY = jax.random.key(3)
AUGMENT = functools.partial(data.shift, seed=0)
OBJECTIVE = combine(
    ce=term(losses.cross_entropy, "student/logits", "batch/label"),
    dkd=term(losses.decoupled_kd, "student/logits", "teacher/logits", "batch/label"),
)
AVERAGES = {"logits": teachers.average_logits, "probabilities": teachers.average_probabilities(4.0)}


def ensemble(average, weights=(0.7, 0.3)):
    other = tiny.student.init(jax.random.key(8), tiny.batch(1))
    members = {"a": tiny.teacher(), "b": teachers.frozen(tiny.student, other)}
    return teachers.ensemble(members, weights=weights, average=average)


def as_model(teacher):
    """A teacher as a model whose parameters are the teacher's state."""

    def init(key, batch):
        return jaxkd.Variables(teacher.init(key, batch, None))

    def apply(variables, batch, *, key, train):
        return teacher.apply(variables.params, batch, key=None), {}

    return jaxkd.Model(init, apply)


def trained(teacher, train):
    kd = preprocess(jaxkd.distill(tiny.student, teacher, OBJECTIVE, optimizer=optax.sgd(0.05)), train_transform=AUGMENT)
    return fit(kd, train, epochs=3, key=KEY, log_every=1, progress=False)


@pytest.mark.slow
@pytest.mark.parametrize("average", [pytest.param("logits", marks=pytest.mark.slow), "probabilities"])
def test_cached_ensemble_trains_the_same_student(average, tmp_path):
    images = data.Dataset({**tiny.batch(30), "index": np.arange(30, dtype=np.int32)}, tiny.CLASSES, "tiny")
    train = data.Resident(images, batch_size=8)  # the last batch of an epoch is smaller
    live = ensemble(AVERAGES[average])
    model = as_model(live)
    cache = jaxkd.cache.write_cache(
        tmp_path,
        model,
        model.init(KEY, tiny.batch(1)),
        train,
        transform=AUGMENT,
        views=3,  # one for each epoch, as in the live run
        codecs={name: codecs.full("float32") for name in ("logits", "a/logits")},
        batch_size=8,
        progress=False,
    )
    found, expected = trained(teachers.cached(cache), jaxkd.cache.attach(cache, train)), trained(live, train)
    assert not jax.tree.leaves(found.state.teacher)  # the state has no variables of the ensemble
    tiny.assert_close(found.state.student, expected.state.student, rtol=1e-6, atol=1e-7)
    rows = [[row["train/dkd"] for row in result.history if "train/dkd" in row] for result in (found, expected)]
    assert len(rows[0]) == 12 and rows[0] == pytest.approx(rows[1], rel=1e-6)
    another = trained(ensemble(AVERAGES[average], (0.3, 0.7)), train).history[0]["train/dkd"]
    assert abs(another - rows[0][0]) > 1e-3 * abs(another)  # the cache depends on the weights
