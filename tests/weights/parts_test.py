"""Weights in parts: missing and extra arrays, files with an index, boxed parameters."""

import json

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import adapters, weights

TEMPLATE = {"params": {"body": {"kernel": jnp.zeros((2, 3))}, "head": {"kernel": jnp.full((3, 4), 7.0)}}}
BODY = {"params/body/kernel": np.arange(6, dtype=np.float32).reshape(2, 3)}


def test_missing_parts_keep_the_values_of_the_template():
    with pytest.raises(weights.WeightsError, match=r"1 missing(.|\n)*keep the values of the template in missing="):
        weights.fit_to(TEMPLATE, BODY)
    found = weights.fit_to(TEMPLATE, BODY, missing="params/head/.*")["params"]
    np.testing.assert_array_equal(found["body"]["kernel"], BODY["params/body/kernel"])
    assert (found["head"]["kernel"] == 7).all()
    with pytest.raises(weights.WeightsError, match="1 missing"):
        weights.fit_to(TEMPLATE, BODY, missing="head")  # a whole name is to match
    shapes = jax.eval_shape(lambda: TEMPLATE)
    with pytest.raises(weights.WeightsError, match="params/head/kernel may be missing, but the template has no values"):
        weights.fit_to(shapes, BODY, missing="params/head/.*")


def test_extra_parts_are_left_out_and_those_that_fit_are_used():
    source = {**BODY, "params/head/kernel": np.ones((3, 4), np.float32), "params/old/kernel": np.ones(5, np.float32)}
    with pytest.raises(weights.WeightsError, match="1 unused"):
        weights.fit_to(TEMPLATE, source)
    found = weights.fit_to(TEMPLATE, source, extra=".*")["params"]
    assert sorted(found) == ["body", "head"]
    assert (found["head"]["kernel"] == 1).all()
    wrong = {**source, "params/head/kernel": np.ones((3, 5), np.float32)}
    with pytest.raises(weights.WeightsError, match="1 mismatched"):
        weights.fit_to(TEMPLATE, wrong, extra=".*", missing=".*")


def test_torch_weights_may_have_missing_and_extra_parts():
    source = {"body.weight": np.arange(6, dtype=np.float32).reshape(3, 2), "fc.weight": np.zeros((9, 9), np.float32)}
    found = weights.fit_torch_to(TEMPLATE, source, missing="params/head/kernel", extra=r"fc\..*")["params"]
    np.testing.assert_array_equal(found["body"]["kernel"], source["body.weight"].T)
    assert (found["head"]["kernel"] == 7).all()


@pytest.fixture
def index(tmp_path):
    parts = {"model-1.safetensors": {"a": np.arange(3.0)}, "model-2.safetensors": {"b": {"c": np.ones(2)}}}
    for file, arrays in parts.items():
        weights.save_safetensors(tmp_path / file, jaxkd.Variables(arrays))
    path = tmp_path / "model.safetensors.index.json"
    names = {"params/a": "model-1.safetensors", "params/b/c": "model-2.safetensors"}
    path.write_text(json.dumps({"metadata": {}, "weight_map": names}))
    return path


def test_files_with_an_index_are_read_as_one(index):
    found = weights.load_safetensors(index)
    assert {name: x.tolist() for name, x in found.items()} == {"params/a": [0, 1, 2], "params/b/c": [1, 1]}
    assert weights.load_torch(index).keys() == found.keys()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "expected an index of safetensors files"),
        ("[]", "expected an index of safetensors files"),
        ('{"weight_map": {"params/a": "../model-1.safetensors"}}', "in its own directory, got '../model-1"),
        ('{"weight_map": {"params/z": "model-1.safetensors"}}', "expected 'params/z' in model-1.safetensors"),
    ],
    ids=str,
)
def test_a_damaged_index_is_an_error(index, content, message):
    index.write_text(content)
    with pytest.raises(ValueError, match=message):
        weights.load_safetensors(index)


def test_a_file_of_the_index_may_not_be_absent(index):
    (index.parent / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="model-2"):
        weights.load_safetensors(index)


class Boxed(nn.Module):
    @nn.compact
    def __call__(self, x):
        kernel = nn.with_partitioning(nn.initializers.lecun_normal(), (None, "model"))
        return nn.Dense(3, kernel_init=kernel)(x)


def test_boxed_parameters_are_plain_arrays_in_a_model_and_in_files(tmp_path):
    batch = {"image": np.random.default_rng(0).normal(size=(4, 2)).astype(np.float32)}
    boxed = Boxed().init(jax.random.key(0), batch["image"])
    model = adapters.linen(Boxed())
    variables = model.init(jax.random.key(0), batch)
    assert isinstance(variables.params["Dense_0"]["kernel"], jax.Array)
    own = adapters.variables(boxed)
    assert adapters.variables(jaxkd.Variables(boxed["params"])).params.keys() == own.params.keys()
    expected = Boxed().apply(boxed, batch["image"])
    for given in (own, weights.fit_to(variables, boxed), jaxkd.teachers.frozen(model, boxed).init(None, batch, None)):
        found, _ = model.apply(given, batch, key=None, train=False)
        np.testing.assert_array_equal(found["logits"], expected)
    weights.save_safetensors(tmp_path / "w.safetensors", boxed)
    assert sorted(weights.load_safetensors(tmp_path / "w.safetensors")) == [
        "params/Dense_0/bias",
        "params/Dense_0/kernel",
    ]
