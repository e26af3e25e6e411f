"""Arrays by name into a model: every name and shape fits, or one error lists all mismatches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import jaxkd
from jaxkd import weights

F32 = jnp.float32


def _like(*shape, dtype=F32):
    return jax.ShapeDtypeStruct(shape, dtype)


TEMPLATE = {
    "params": {
        "Conv_0": {"kernel": _like(3, 3, 2, 4)},
        "BatchNorm_0": {"scale": _like(4), "bias": _like(4)},
        "Dense_0": {"kernel": _like(4, 5), "bias": _like(5)},
    },
    "batch_stats": {"BatchNorm_0": {"mean": _like(4), "var": _like(4)}},
}


def _source():
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in weights.flatten(TEMPLATE).items()}


def _problems(template=TEMPLATE, source=None, **options):
    with pytest.raises(weights.WeightsError) as caught:
        weights.fit_to(template, source, **options)
    return str(caught.value), caught.value.problems


def test_names_with_and_without_their_collection():
    source = _source()
    short = {name.partition("/")[2]: value for name, value in source.items()}
    for given in (source, short):
        found = weights.flatten(weights.fit_to(TEMPLATE, given))
        assert found.keys() == source.keys()
        for name, value in source.items():
            np.testing.assert_array_equal(found[name], value)


def test_the_result_has_the_form_of_the_template():
    state = {"batch_stats": TEMPLATE["batch_stats"]}
    for template in (TEMPLATE, jaxkd.Variables(TEMPLATE["params"], state)):
        found = weights.fit_to(template, _source())
        assert jax.tree.structure(found) == jax.tree.structure(template)
        assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(found))
    module = nnx.Linear(2, 3, rngs=nnx.Rngs(0))
    found = weights.fit_to(module, {"kernel": np.ones((2, 3)), "bias": np.ones(3)})
    assert isinstance(found, jaxkd.Variables) and found.state == {}
    nested = {"params": {"kernel": jnp.ones((2, 3)), "bias": jnp.ones(3)}}
    for source in (nested, jaxkd.Variables(nested["params"]), nested["params"], module):
        weights.fit_to(module, source)


def test_the_result_is_a_copy():
    source = _source()
    found = weights.fit_to(TEMPLATE, source)
    source["params/Dense_0/bias"][:] = 7
    assert not np.any(found["params"]["Dense_0"]["bias"] == 7)


def test_all_problems_in_one_error():
    source = _source()
    source["params/head/kernel"] = source.pop("params/Dense_0/kernel")
    source["params/Conv_0/kernel"] = source["params/Conv_0/kernel"].transpose(3, 2, 0, 1)
    source["params/BatchNorm_0/scale"] = np.zeros(6, np.float32)
    source["steps"] = np.zeros((), np.int32)
    del source["batch_stats/BatchNorm_0/var"]
    text, problems = _problems(source=source)
    assert text.startswith("expected the arrays of the model: 2 missing, 2 unused, 2 mismatched.")
    assert set(problems) == {
        "mismatched: 'params/Conv_0/kernel' float32[4, 2, 3, 3] for params/Conv_0/kernel float32[3, 3, 2, 4]: laid "
        "out as [4, 2, 3, 3]; transposed by (2, 3, 1, 0) it would fit",
        "mismatched: 'params/BatchNorm_0/scale' float32[6] for params/BatchNorm_0/scale float32[4]: laid out as [6]",
        "missing: params/Dense_0/kernel float32[4, 5] (closest: 'params/head/kernel' float32[4, 5])",
        "missing: batch_stats/BatchNorm_0/var float32[4]",
        "unused: 'params/head/kernel' float32[4, 5] (closest: 'params/Dense_0/kernel' float32[4, 5])",
        "unused: 'steps' int32[]",
    }
    assert all(problem in text for problem in problems)
    assert "Map names that differ with names=" in text


def test_a_long_list_is_truncated_in_the_message_only():
    template = {"params": {f"layer_{n}": _like(2) for n in range(300)}}
    text, problems = _problems(template, {f"block_{n}": np.ones(2, np.float32) for n in range(300)})
    assert "300 missing, 300 unused" in text and text.count("... and 280 more") == 2
    assert len(problems) == 600 and text.count("\n") < 50


def test_a_missing_reshape_is_suggested():
    source = _source() | {"params/Dense_0/kernel": np.zeros((2, 10), np.float32)}
    assert "with the same number of elements; is a reshape missing?" in _problems(source=source)[0]


def test_two_arrays_of_one_name_are_a_problem():
    source = _source()
    source["Dense_0/bias"] = source["params/Dense_0/bias"]
    text, _ = _problems(source=source)
    assert "'Dense_0/bias' and 'params/Dense_0/bias' both name params/Dense_0/bias" in text


def test_an_ambiguous_name_needs_its_collection():
    template = {"params": {"a": _like(2)}, "stats": {"a": _like(2)}}
    text, _ = _problems(template, {"a": np.ones(2, np.float32)})
    assert "2 missing, 1 unused" in text
    weights.fit_to(template, {"params/a": np.ones(2), "stats/a": np.zeros(2)})


def test_ignored_arrays_need_not_be_used():
    source = _source() | {"opt/mu": np.ones(2), "opt/nu": np.ones(2), "step": np.ones(())}
    weights.fit_to(TEMPLATE, source, ignore=["opt/.*", "step"])
    assert "1 unused" in _problems(source=source, ignore="opt/.*")[0]
    assert "3 unused" in _problems(source=source, ignore="opt")[0]  # patterns match whole names
    with pytest.raises(ValueError, match=r"ignore: expected a regular expression, got '\*'"):
        weights.fit_to(TEMPLATE, source, ignore="*")


# --- name maps --------------------------------------------------------------------------------------------------------


def _renamed():
    source = {name.partition("/")[2]: value for name, value in _source().items()}
    parts = {"Conv_0": "stem.conv", "BatchNorm_0": "stem.norm", "Dense_0": "head"}
    return {name.replace(module := name.partition("/")[0], parts[module]): v for name, v in source.items()}


def _function(name):
    module, _, leaf = name.partition("/")
    return f"{({'stem.conv': 'Conv_0', 'stem.norm': 'BatchNorm_0', 'head': 'Dense_0'})[module]}/{leaf}"


@pytest.mark.parametrize(
    "names",
    [
        {"stem.conv": "Conv_0", "stem.norm": "BatchNorm_0", "head": "Dense_0"},
        {
            "stem": "wrong",
            "stem.conv": "Conv_0",
            "stem.norm": "BatchNorm_0",
            "head/bias": "Dense_0/bias",
            "head": "Dense_0",
        },
        [(r"^stem\.", ""), ("conv/", "Conv_0/"), (r"^norm/(\w+)$", r"BatchNorm_0/\1"), ("^head", "Dense_0")],
        _function,
    ],
    ids=["modules", "longest", "rules", "function"],
)
def test_name_maps(names):
    found = weights.flatten(weights.fit_to(TEMPLATE, _renamed(), names=names))
    for name, value in _source().items():
        np.testing.assert_array_equal(found[name], value)


def test_a_prefix_ends_at_a_separator():
    template = {"params": {"a": _like(2), "conv10": _like(2)}}
    weights.fit_to(template, {"conv1": np.ones(2), "conv10": np.ones(2)}, names={"conv1": "a"})


def test_one_array_may_fill_several_parameters():
    template = {"params": {"embed": _like(3, 2), "head": _like(3, 2)}}
    for names in ({"tied": ("embed", "head")}, lambda name: ["embed", "head"]):
        found = weights.fit_to(template, {"tied": np.ones((3, 2))}, names=names)
        np.testing.assert_array_equal(found["params"]["embed"], found["params"]["head"])
    text, _ = _problems(template, {"tied": np.ones((3, 2), np.float32)}, names={"tied": ("embed", "hat")})
    assert "unused: 'tied' float32[3, 2], renamed to hat (closest: 'params/head'" in text
    text, _ = _problems(template, {"tied": np.ones((3, 2), np.float32)}, names=lambda name: None)
    assert "unused: 'tied' float32[3, 2] (closest" in text


def test_a_name_map_of_unknown_form_is_an_error():
    with pytest.raises(TypeError, match=r"expected a mapping, a list of .* got str"):
        weights.fit_to(TEMPLATE, {}, names="head")
    with pytest.raises(ValueError, match=r"expected rules \(regular expression, replacement\), got 'head'"):
        weights.fit_to(TEMPLATE, {}, names=["head"])
    with pytest.raises(ValueError, match=r"names: expected a regular expression, got '\('"):
        weights.fit_to(TEMPLATE, {}, names=[("(", "")])


# --- dtypes and devices -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "given, wanted",
    [
        (np.array([1.5, np.inf, np.nan]), np.float32),
        (np.array([1.5, -0.0], jnp.bfloat16), np.float32),
        (np.array([1.5, 1e30], np.float32), jnp.bfloat16),
        (np.array([3, -4], np.int64), np.int32),
        (np.array([3, 4], np.uint8), np.int32),
    ],
    ids=str,
)
def test_lossless_conversions_of_dtypes(given, wanted):
    found = weights.fit_to({"params": {"w": _like(*given.shape, dtype=wanted)}}, {"w": given})["params"]["w"]
    assert found.dtype == wanted
    np.testing.assert_array_equal(np.asarray(found), given.astype(wanted))


@pytest.mark.parametrize(
    "given, wanted, message",
    [
        (np.array([1e10], np.float32), np.float16, "values too large for float16"),
        (np.array([1e300]), np.float32, "values too large for float32"),
        (np.array([2**40]), np.int32, "int64 cannot be converted to int32 without"),
        (np.array([-1], np.int32), np.uint8, "int32 cannot be converted to uint8 without"),
        (np.array([1], np.int32), np.float32, "int32 cannot be converted to float32 without"),
        (np.array([1.0], np.float32), np.int32, "float32 cannot be converted to int32 without"),
    ],
    ids=str,
)
def test_lossy_conversions_of_dtypes_are_problems(given, wanted, message):
    assert message in _problems({"params": {"w": _like(1, dtype=wanted)}}, {"w": given})[0]


def test_the_result_has_the_shardings_of_the_template():
    mesh = jax.make_mesh((4,), ("x",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.NamedSharding(mesh, jax.P("x"))
    for leaf in (jax.ShapeDtypeStruct((8,), F32, sharding=split), jax.device_put(jnp.zeros(8), split)):
        found = weights.fit_to({"params": {"w": leaf}}, {"w": np.arange(8.0)})["params"]["w"]
        assert found.sharding == split
        np.testing.assert_array_equal(found, np.arange(8.0))
    free = weights.fit_to({"params": {"w": jnp.zeros(8)}}, {"w": np.arange(8.0)})["params"]["w"]
    assert not free.committed
