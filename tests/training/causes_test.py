"""A loss that is not finite because of its batch: the error names the entry and the value."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import losses, objectives, parallel, term
from jaxkd.training import NonFiniteError, fit
from jaxkd.training._errors._causes import find_cause
from tests import tiny
from tests.training import toy

CE = term(losses.cross_entropy, "student/logits", "batch/label")
KEY = jax.random.key(0)


def distiller(objective, student=tiny.student):
    return jaxkd.distill(student, jaxkd.teachers.none(), objective, optimizer=optax.sgd(0.1))


def crd(rows):
    return objectives.crd("student/vector", "student/map", np.arange(rows) % 3, negatives=4, embedding_size=4)


@pytest.mark.parametrize("place", [lambda kd: kd, parallel.jit], ids=["plain", "placed"])
def test_label_that_is_no_class_is_named(place):
    batch = tiny.batch(8)
    kd = place(distiller(CE))
    assert find_cause(kd, batch, KEY) is None
    batch["label"][5] = tiny.CLASSES
    assert f"batch['label'] is 3 in the example of index {batch['index'][5]}, " in find_cause(kd, batch, KEY)
    batch["mask"] = np.arange(8) != 5  # padding may hold anything
    assert find_cause(kd, batch, KEY) is None


def test_token_outside_of_the_vocabulary_is_named():
    embed = jaxkd.adapters.plain(
        lambda key, x: jax.random.normal(key, (7, tiny.CLASSES)),
        lambda table, x: jnp.take(table, x, axis=0).mean(1),
        inputs="token",
    )
    batch = {"token": np.arange(8, dtype=np.int32).reshape(4, 2), "label": np.zeros(4, np.int32)}
    assert "batch['token'] is from 6 to 7 in row 3 of the batch" in find_cause(distiller(CE, embed), batch, KEY)


def test_index_outside_of_a_bank_is_named_with_its_cure():
    batch = {**tiny.batch(8), "index": np.arange(8, dtype=np.int32)}
    found = find_cause(distiller(crd(7)), batch, KEY)
    assert (
        found == "crd, index: expected positions in [0, 7), got 7. Give labels for the whole training set, not a split."
    )


def test_nan_in_an_unmasked_example_is_named():
    batch = tiny.batch(8)
    batch["image"][2, 0, 0, 0] = np.nan
    kd = distiller(CE)
    assert find_cause(kd, batch, KEY) == f"batch['image'] holds NaN, first in the example of index {batch['index'][2]}."
    assert find_cause(kd, {**batch, "mask": np.arange(8) != 2}, KEY) is None


def test_broken_teacher_stops_a_run_and_is_named():
    """Its divergence is NaN in the first step; an entry of the batch is not blamed."""
    weights = {"w": jnp.ones((toy.FEATURES, 3))}
    linear = jaxkd.adapters.plain(lambda key, x: weights, lambda params, x: x @ params["w"], inputs="x")
    broken = jaxkd.Variables({"w": weights["w"].at[2, 1].set(jnp.nan)})
    kd = term(losses.soft_target_kl, "student/logits", "teacher/logits")
    kd = jaxkd.distill(linear, jaxkd.teachers.frozen(linear, broken), kd, optimizer=optax.sgd(0.1))
    with pytest.raises(NonFiniteError, match=r"update 1: .*The teacher's weights hold NaN, first in teacher/params/w"):
        fit(kd, toy.TRAIN, steps=4, key=KEY, progress=False)


@pytest.mark.parametrize("mode", ["resident", "streaming"])
def test_fit_names_a_label_that_is_no_class(mode):
    train = toy.Resident(shuffle=False)
    train.arrays["label"] = jnp.zeros(toy.EXAMPLES, jnp.int32).at[13].set(9)
    linear = jaxkd.adapters.plain(lambda key, x: jnp.zeros((toy.FEATURES, 3)), lambda w, x: x @ w, inputs="x")
    data = train if mode == "resident" else toy.Streaming(train)
    with pytest.raises(NonFiniteError, match=r"update 2.* batch\['label'\] is 9 in the example of index 13") as error:
        fit(distiller(CE, linear), data, steps=4, key=KEY, progress=False)
    assert "learning rate" not in str(error.value)


@pytest.mark.slow
def test_fit_names_an_index_outside_of_a_bank():
    """Compiled, the index is unknown when the loss is traced."""
    train = toy.Resident(shuffle=False)
    train.arrays["label"] = jnp.arange(toy.EXAMPLES) % 2
    linear = jaxkd.adapters.plain(lambda key, x: jnp.ones((toy.FEATURES, 3)), lambda w, x: x @ w, inputs="x")
    bank = objectives.crd("student/logits", "student/logits", np.arange(20) % 2, negatives=4, embedding_size=4)
    with pytest.raises(NonFiniteError, match=r"expected positions in \[0, 20\), got 20\. Give labels for the whole"):
        fit(distiller(bank, linear), train, steps=5, key=KEY, progress=False)


def test_fit_advises_a_smaller_learning_rate_where_the_batch_is_not_the_cause():
    linear = jaxkd.adapters.plain(lambda key, x: jnp.ones((toy.FEATURES,) * 2), lambda w, x: x @ w, inputs="x")
    kd = jaxkd.distill(
        linear,
        jaxkd.teachers.none(),
        term(losses.logit_mse, "student/logits", "batch/x"),
        optimizer=optax.sgd(1e15),
    )
    with pytest.raises(NonFiniteError, match="A smaller learning rate"):
        fit(kd, toy.TRAIN, steps=5, key=KEY, progress=False)
