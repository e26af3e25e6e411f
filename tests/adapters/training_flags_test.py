"""Training flags of any name, and modules that no flag reaches."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from jaxkd import adapters

KEY = jax.random.key(0)
BATCH = {"x": np.random.default_rng(0).normal(2, 3, (64, 2)).astype(np.float32)}


class Enable(nn.Module):
    @nn.compact
    def __call__(self, x, enable_dropout: bool = False):
        return nn.Dropout(0.5, deterministic=not enable_dropout)(x)


class IsTrain(nn.Module):
    @nn.compact
    def __call__(self, x, *, is_train=True):
        return nn.BatchNorm(use_running_average=not is_train)(x)


class Mode(nn.Module):
    @nn.compact
    def __call__(self, x, mode="eval"):
        return nn.Dropout(0.5)(nn.BatchNorm(use_running_average=mode != "train")(x), deterministic=mode != "train")


class NnxEnable(nnx.Module):
    def __init__(self, rngs):
        self.drop, self.norm = nnx.Dropout(0.5, rngs=rngs), nnx.BatchNorm(2, rngs=rngs)

    def __call__(self, x, enable_dropout=False):
        x = self.norm(x, use_running_average=not enable_dropout)
        return self.drop(x, deterministic=not enable_dropout)


def by_mode(train):
    return {"mode": "train" if train else "eval"}


NAMED = {
    "enable_dropout": (adapters.linen, Enable(), "enable_dropout"),
    "is_train": (adapters.linen, IsTrain(), "is_train"),
    "mode": (adapters.linen, Mode(), by_mode),
    "nnx": (adapters.nnx, NnxEnable, "enable_dropout"),
}


def run(model):
    variables = model.init(KEY, BATCH)
    return [model.apply(variables, BATCH, key=KEY, train=train)[0]["logits"] for train in (True, False)]


@pytest.mark.parametrize("name", NAMED)
def test_a_named_flag_reaches_the_module(name):
    adapter, module, flag = NAMED[name]
    train, infer = run(adapter(module, inputs="x", flag=flag))
    np.testing.assert_allclose(infer, BATCH["x"], rtol=1e-4)  # the statistics are 0 and 1, and nothing is dropped
    if name == "is_train":
        np.testing.assert_allclose(train.mean(axis=0), 0, atol=1e-4)
    else:
        assert 0.3 < np.mean(train == 0) < 0.7


@pytest.mark.parametrize("name", NAMED)
def test_a_flag_that_is_not_named_is_an_error(name):
    adapter, module, _ = NAMED[name]
    wanted = "always trains" if name == "is_train" else "never trains"
    with pytest.raises(ValueError, match=rf"training flag: .* {wanted}: none of its usual names .*Name the argument"):
        run(adapter(module, inputs="x"))


def test_the_error_comes_from_init_and_names_the_argument():
    with pytest.raises(ValueError, match=r"'Dropout_0' never trains.*whose \['enable_dropout'\] may be the flag"):
        adapters.linen(Enable(), inputs="x").init(KEY, BATCH)


def test_a_flag_in_a_field_is_an_error():
    class Field(nn.Module):
        train: bool = False

        @nn.compact
        def __call__(self, x):
            return nn.BatchNorm(use_running_average=not self.train)(x)

    with pytest.raises(ValueError, match=r"'BatchNorm_0' never trains.*whose \['train'\] may be the flag"):
        adapters.linen(Field(), inputs="x").init(KEY, BATCH)
    with pytest.raises(ValueError, match="'BatchNorm_0' always trains"):
        adapters.linen(Field(train=True), inputs="x").init(KEY, BATCH)


def test_dropout_that_ignores_the_mode_is_an_error():
    class Always(nnx.Module):
        def __init__(self, rngs):
            self.drop = nnx.Dropout(0.5, rngs=rngs)

        def __call__(self, x):
            return self.drop(x, deterministic=False)

    model = adapters.nnx(Always, inputs="x")
    with pytest.raises(ValueError, match="'drop' always trains"):
        model.apply(model.init(KEY, BATCH), BATCH, key=None, train=False)


def test_a_name_that_does_not_change_the_mode_is_an_error():
    with pytest.raises(ValueError, match="never trains: flag='mode' does not change them"):
        adapters.linen(Mode(), inputs="x", flag="mode").init(KEY, BATCH)


@pytest.mark.parametrize(
    "model",
    [
        adapters.linen(Enable(), inputs="x", flag="is_train"),
        adapters.nnx(NnxEnable, inputs="x", flag="is_train"),
        adapters.plain(lambda key, x: (), lambda params, x, enable_dropout=False: x, inputs="x", flag="is_train"),
    ],
    ids=["linen", "nnx", "plain"],
)
def test_an_argument_that_does_not_exist_is_an_error(model):
    with pytest.raises(
        ValueError, match=r"flag, argument of the model's call 'is_train': there is no such name.*'enable_dr"
    ):
        run(model)


def test_plain_functions_take_a_named_flag():
    model = adapters.plain(lambda key, x: (), lambda params, x, mode: x * (mode == "train"), inputs="x", flag=by_mode)
    train, infer = run(model)
    np.testing.assert_array_equal(train, BATCH["x"])
    assert not infer.any()


def test_modules_that_need_no_flag_are_left_alone():
    class Constant(nn.Module):
        @nn.compact
        def __call__(self, x, mask=None):
            return nn.Dropout(0.0, deterministic=False)(nn.BatchNorm(use_running_average=True)(x))

    class Intended(nn.Module):
        @nn.compact
        def __call__(self, x, wide: bool = False):
            return nn.BatchNorm(use_running_average=True)(x)

    for model in (
        adapters.linen(Constant(), inputs="x"),
        adapters.linen(Intended(), inputs="x", flag=lambda train: {}),
        adapters.linen(nn.Sequential([nn.BatchNorm(use_running_average=True), jnp.tanh]), inputs="x"),
    ):
        train, infer = run(model)
        np.testing.assert_array_equal(train, infer)
