"""Entries that a step, a wrapper or a loader adds to a batch never replace those of the user."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import data, distillers, losses, term, wrappers
from jaxkd.types import RESERVED
from tests import tiny

CE = term(losses.cross_entropy, "student/logits", "batch/label")
TIMED = jaxkd.adapters.plain(
    lambda key, x, time: jnp.ones((2, 3)), lambda w, x, time: x @ w * time.reshape(-1, 1), inputs=("x", "time")
)
BATCH = {"x": jnp.eye(2), "label": jnp.array([0, 1])}


@pytest.mark.parametrize("function", ["init", "step", "evaluate"])
@pytest.mark.parametrize("name", RESERVED)
def test_a_reserved_entry_is_refused(name, function):
    model = jaxkd.adapters.plain(lambda key, x: jnp.ones((2, 3)), lambda w, x: x @ w, inputs="x")
    kd = jaxkd.distill(model, jaxkd.teachers.none(), CE, optimizer=optax.sgd(0.1))
    state = jax.eval_shape(lambda: kd.init(jax.random.key(0), BATCH))
    with pytest.raises(ValueError, match=f"'{name}' is reserved.*the batch has .*'label'.*Rename"):
        jax.eval_shape(
            getattr(kd, function), jax.random.key(0) if function == "init" else state, {**BATCH, name: BATCH["label"]}
        )


def test_a_renamed_entry_reaches_the_model():
    kd = jaxkd.distill(TIMED, jaxkd.teachers.none(), CE, optimizer=optax.sgd(0.1))

    def renamed(batch):
        return {**{name: x for name, x in batch.items() if name != "step"}, "time": batch["step"]}

    kd = distillers.preprocess(kd, train_transform=renamed, eval_transform=renamed)
    batch = {**BATCH, "step": jnp.array([2.0, 3.0])}
    state = kd.init(jax.random.key(0), batch)._replace(step=jnp.int32(100))
    state = state._replace(student=jaxkd.Variables(jnp.array([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])))
    # Logits (2, 0, 0) and (0, 3, 0): the factors are the user's entry, not the number of the step.
    expected = np.mean([np.log(np.exp(2) + 2) - 2, np.log(np.exp(3) + 2) - 3])
    assert tiny.numbers(kd.evaluate(state, batch))["loss"] == pytest.approx(expected, rel=1e-5)


def test_the_feature_of_an_exit_does_not_replace_an_entry():
    model = jaxkd.adapters.plain(
        lambda key, x: jnp.ones((2, 3)), lambda w, x: {"logits": x @ w, "hidden": x}, inputs="feature"
    )
    head = jaxkd.adapters.plain(lambda key, f: jnp.ones((2, 3)), lambda w, f: f @ w, inputs="feature")
    both = wrappers.with_exits(model, {"early": wrappers.Exit("hidden", head)})
    with pytest.raises(ValueError, match="with_exits: 'feature' is reserved"):
        both.init(jax.random.key(0), {"feature": jnp.eye(2)})


TOKENS = np.array([[True, False], [True, True], [False, True]])


@pytest.mark.parametrize("loader", [data.Resident, data.Stream])
def test_padding_keeps_a_mask_of_the_set(loader):
    arrays = {"image": np.zeros((3, 1), np.float32), "mask": TOKENS, "index": np.arange(3, dtype=np.int32)}
    batches = iter(loader(data.Dataset(arrays, 2, "toy"), 2, shuffle=False))
    np.testing.assert_array_equal(next(batches)["mask"], TOKENS[:2])
    np.testing.assert_array_equal(next(batches)["mask"], [[False, True], [False, False]])  # the padding is excluded


@pytest.mark.parametrize("loader", [data.Resident, data.Stream])
def test_an_epoch_of_the_set_is_refused(loader):
    arrays = {"epoch": np.zeros(3, np.int32), "index": np.arange(3, dtype=np.int32)}
    with pytest.raises(ValueError, match="'epoch' is reserved"):
        next(iter(loader(data.Dataset(arrays, 2, "toy"), 2)))


def test_padding_for_devices_keeps_a_mask_over_tokens():
    padded = jaxkd.parallel.pad({"x": np.ones((3, 2)), "mask": TOKENS}, 2)
    np.testing.assert_array_equal(padded["mask"], [*TOKENS, [False, False]])
