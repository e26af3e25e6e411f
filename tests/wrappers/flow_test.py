"""Knowledge flow: formula, sizes, exact removal of the teachers, masks, composition and errors."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

from jaxkd import Variables, adapters, wrappers
from jaxkd.wrappers import FlowEdge, extract_student, with_flow
from tests import tiny
from tests.adapters import models
from tests.references import adaptive_average_pool

RNG = np.random.default_rng(0)
NET = models.Net()
BATCH = {"image": RNG.normal(size=(6, 4, 4, 2)).astype(np.float32)}
TAUGHT = {
    "large": RNG.normal(size=(6, 7, 8, 5)),
    "small": RNG.normal(size=(6, 2, 3, 4)),
    "same": RNG.normal(size=(6, 4, 4, 3)),
    "vector": RNG.normal(size=(6, 7)),
}
TAUGHT = {name: x.astype(np.float32) for name, x in TAUGHT.items()}
GIVEN = {**BATCH, "teacher": TAUGHT}
MIXES = {
    "stem": FlowEdge("stem/conv", ["large", "small", "same", "vector"]),
    "head": FlowEdge("head", ["vector", "same"], student_weight=0.7),
}
KEY = jax.random.key(3)


def made(rate=0.6, mixes=MIXES, **options):
    model = with_flow(NET, mixes, rate, **options)
    variables = model.init(KEY, GIVEN)
    rng = np.random.default_rng(1)  # perturbed, so that results depend on every weight
    learned = jax.tree.map(lambda x: jnp.asarray(x + 0.3 * rng.normal(size=x.shape), x.dtype), variables.params["flow"])
    return model, variables._replace(params={**variables.params, "flow": learned})


def run(model, variables, batch=GIVEN, *, train=False):
    return jax.jit(lambda v, b: model.apply(v, b, key=KEY, train=train))(variables, batch)


def mixed(layer, features, own, rate):
    """The formula in float64 NumPy."""
    shares = np.exp(own["weights"].astype(np.float64))
    shares /= shares.sum()
    result = (1 - rate * (1 - shares[0])) * layer
    for share, kernel, feature in zip(shares[1:], own["maps"], features, strict=True):
        result = result + rate * share * (feature @ np.asarray(kernel, np.float64))
    return result


def sized(feature, height=4, width=4):
    feature = np.asarray(feature, np.float64)
    return adaptive_average_pool(feature if feature.ndim == 4 else feature[:, None, None], height, width)


def test_examples_are_counted_from_the_batch():
    """A scalar, or anchors of another leading size, may be the first output."""

    class Several(nn.Module):
        @nn.compact
        def __call__(self, image):
            logits = nn.Dense(3, name="head")(image.mean((1, 2)))
            return {"aux": jnp.ones(()), "anchors": jnp.ones((7, 4)), "logits": logits}

    model = with_flow(Several(), {"head": FlowEdge("head", ["vector"], student_weight=0.5)}, 1.0)
    found, _ = model.apply(model.init(KEY, GIVEN), GIVEN, key=KEY, train=True)
    np.testing.assert_allclose(found["dependence_loss"], np.full(6, np.log(2)), rtol=1e-6)  # −log s₀


def test_equals_the_formula():
    """Mixes larger, smaller, equal-sized and vector features into a feature map, and two into a vector."""
    rate = 0.6
    model, variables = made(rate, taps={"conv": "stem/conv", "norm": "stem/norm"})
    params = jax.tree.map(np.asarray, variables.params)
    found, _ = run(model, variables)
    kernel, bias = (params["student"]["stem"]["conv"][name] for name in ("kernel", "bias"))
    layer = mixed(
        BATCH["image"].astype(np.float64) @ kernel[0, 0] + bias.reshape(1, 1, 1, -1),
        [sized(TAUGHT[name]) for name in ("large", "small", "same", "vector")],
        params["flow"]["stem"],
        rate,
    )
    np.testing.assert_allclose(found["conv"], layer, rtol=1e-4, atol=1e-5)  # a tap has the mixed output
    np.testing.assert_allclose(found["norm"], layer / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-5)
    hidden = np.maximum(found["norm"], 0).mean(axis=(1, 2), dtype=np.float64)
    features = [TAUGHT["vector"].astype(np.float64), sized(TAUGHT["same"], 1, 1)[:, 0, 0]]
    head = params["student"]["head"]
    logits = mixed(hidden @ head["kernel"] + head["bias"].reshape(1, -1), features, params["flow"]["head"], rate)
    np.testing.assert_allclose(found["logits"], logits, rtol=1e-4, atol=1e-5)
    shares = {name: np.exp(own["weights"]) / np.exp(own["weights"]).sum() for name, own in params["flow"].items()}
    for name, share in shares.items():
        np.testing.assert_allclose(found[f"dependence/{name}"], np.full(6, rate * (1 - share[0])), rtol=1e-5)
    np.testing.assert_allclose(found["dependence"], rate * np.mean([1 - s[0] for s in shares.values()]), rtol=1e-5)
    np.testing.assert_allclose(found["dependence_loss"], -sum(np.log(s[0]) for s in shares.values()), rtol=1e-5)


def test_initial_weights_and_maps():
    params = with_flow(NET, MIXES, 1.0).init(KEY, GIVEN).params["flow"]
    np.testing.assert_allclose(jax.nn.softmax(params["stem"]["weights"]), np.full(5, 0.2), rtol=1e-6)
    np.testing.assert_allclose(jax.nn.softmax(params["head"]["weights"]), [0.7, 0.15, 0.15], rtol=1e-5)
    assert [x.shape for x in params["stem"]["maps"]] == [(5, 3), (4, 3), (3, 3), (7, 3)]


@pytest.mark.parametrize("train", [False, True])
def test_a_schedule_of_zero_equals_the_plain_student(train):
    """Outputs, taps, statistics and gradients are equal bit for bit, even if teacher features are NaN."""
    taps = {"conv": "stem/conv"}
    plain, (model, variables) = adapters.linen(NET, taps=taps), made(lambda step: 0.0 * step, taps=taps)
    tiny.assert_equal(variables.params["student"], plain.init(KEY, BATCH).params)
    alone = extract_student(variables)
    wild = {**GIVEN, "teacher": {name: np.full_like(x, np.nan) for name, x in TAUGHT.items()}, "step": jnp.int32(2)}
    found, state = run(model, variables, wild, train=train)
    expected, expected_state = run(plain, alone, BATCH, train=train)
    tiny.assert_equal({name: found[name] for name in expected}, dict(expected))
    tiny.assert_equal(state, expected_state)
    assert all((found[name] == 0).all() for name in ("dependence", "dependence/stem", "dependence_loss"))

    def loss(model, batch):
        def of(params):
            outputs, _ = model.apply(Variables(params, variables.state), batch, key=KEY, train=train)
            return jnp.sum(outputs["logits"] ** 2) + sum(jnp.sum(v) for k, v in outputs.items() if "dependence" in k)

        return of

    gradient = jax.jit(jax.grad(loss(model, wild)))(variables.params)
    tiny.assert_equal(gradient["student"], jax.jit(jax.grad(loss(plain, BATCH)))(alone.params))
    assert all((np.asarray(g) == 0).all() for g in jax.tree.leaves(gradient["flow"]))


def test_gradients_reach_all_parameters_and_follow_the_dependence_loss():
    model, variables = made(0.5)
    gradient = jax.grad(lambda p: jnp.sum(run(model, Variables(p, variables.state))[0]["logits"] ** 2))(
        variables.params
    )
    assert all((np.asarray(g) != 0).any() for g in jax.tree.leaves(gradient["flow"]))
    assert (np.asarray(gradient["student"]["stem"]["conv"]["kernel"]) != 0).any()
    loss = jax.grad(lambda p: run(model, Variables(p, variables.state))[0]["dependence_loss"].mean())(variables.params)
    for own, slope in zip(variables.params["flow"].values(), loss["flow"].values(), strict=True):
        np.testing.assert_allclose(
            slope["weights"], np.asarray(jax.nn.softmax(own["weights"])) - np.eye(len(own["weights"]))[0], atol=1e-6
        )


def test_the_schedule_is_a_function_of_the_step():
    model, variables = made(optax.linear_schedule(1.0, 0.0, 4))
    found = [run(model, variables, {**GIVEN, "step": jnp.int32(i)})[0]["dependence"][0] for i in (0, 1, 4, 9)]
    np.testing.assert_allclose(np.array(found) / found[0], [1, 0.75, 0, 0], rtol=1e-6)


def test_masked_examples_equal_dropped_examples():
    model, variables = made(0.5)
    keep = np.arange(6) % 3 > 0
    holed = jax.tree.map(lambda x: np.where(keep.reshape(-1, *[1] * (x.ndim - 1)), x, np.nan), TAUGHT)
    masked = {**BATCH, "teacher": holed, "mask": keep}
    dropped = jax.tree.map(lambda x: x[keep], GIVEN)

    def total(params, batch):
        outputs, state = model.apply(Variables(params, variables.state), batch, key=KEY, train=True)
        mask = batch.get("mask", np.ones(len(batch["image"]), bool))
        return jnp.sum(jnp.where(mask[:, None], outputs["logits"], 0) ** 2), state

    found, expected = (jax.jit(jax.grad(total, has_aux=True))(variables.params, b) for b in (masked, dropped))
    tiny.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("weight", [-1e4, 1e4])
def test_extreme_weights_and_features_stay_finite(weight):
    model, variables = made(1.0)
    learned = jax.tree.map(lambda x: x, variables.params["flow"])
    for own in learned.values():
        own["weights"] = own["weights"].at[0].set(weight)
    huge = {**BATCH, "teacher": {name: 1e4 * x for name, x in TAUGHT.items()}}

    def total(with_flow):
        outputs, _ = model.apply(
            Variables({**variables.params, "flow": with_flow}, variables.state), huge, key=None, train=False
        )
        return sum(jnp.sum(x) for x in outputs.values())

    value, gradient = jax.value_and_grad(total)(learned)
    assert np.isfinite(value) and all(np.isfinite(g).all() for g in jax.tree.leaves(gradient))


def test_token_features_and_one_of_several_calls():
    """Token features need equal positions; ``#1`` selects the second call."""
    x = {"image": TAUGHT["same"][:, 0], "teacher": {"f": RNG.normal(size=(6, 4, 5)).astype(np.float32)}}
    model = with_flow(
        models.Twice(), {"second": FlowEdge("shared#1", ["f"])}, 1.0, taps={"a": "shared#0", "b": "shared#1"}
    )
    variables = model.init(KEY, x)
    found, _ = model.apply(variables, x, key=None, train=False)
    plain, _ = adapters.linen(models.Twice(), taps={"a": "shared#0", "b": "shared#1"}).apply(
        extract_student(variables), x, key=None, train=False
    )
    np.testing.assert_array_equal(found["a"], plain["a"])
    (kernel,) = variables.params["flow"]["second"]["maps"]
    np.testing.assert_allclose(found["b"], 0.5 * plain["b"] + 0.5 * x["teacher"]["f"] @ kernel, rtol=1e-5, atol=1e-6)


def test_a_bfloat16_layer_keeps_its_dtype():
    class Half(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(3, dtype=jnp.bfloat16, name="layer")(x)

    x = {"image": TAUGHT["vector"], "teacher": TAUGHT}
    model = with_flow(Half(), {"a": FlowEdge("layer", ["vector"])}, 0.5)
    assert model.apply(model.init(KEY, x), x, key=None, train=False)[0]["logits"].dtype == jnp.bfloat16


def test_composes_with_other_wrappers():
    """Accumulation, remat and precision treat teacher features like entries of the batch."""
    model, variables = made(0.5, {"head": MIXES["head"]})
    expected = run(model, variables)[0]
    tiny.assert_close(
        dict(run(wrappers.remat(model), variables, train=True)[0]), dict(run(model, variables, train=True)[0])
    )
    tiny.assert_close(dict(run(wrappers.accumulate(model, 3), variables)[0]), dict(expected))
    half = run(wrappers.precision(model), variables)[0]["logits"]
    np.testing.assert_allclose(half.astype(np.float32), expected["logits"], rtol=0.1, atol=0.1)


def test_invalid_arguments_raise_errors_that_teach():
    one = {"a": FlowEdge("head", ["vector"])}
    with pytest.raises(TypeError, match=r"expected a Flax linen module.*got Linear"):
        with_flow(nnx.Linear(2, 3, rngs=nnx.Rngs(0)), one, 1.0)
    for mixes, schedule, message in (
        ({}, 1.0, "mixes: expected at least one Mix by name, got none"),
        ({"a": FlowEdge("", ["vector"])}, 1.0, "mix 'a': expected the path of a submodule"),
        ({"a": FlowEdge("head", "vector")}, 1.0, "mix 'a': expected the path of a submodule and a sequence"),
        ({"a": FlowEdge("head", [])}, 1.0, "a sequence of teacher outputs"),
        ({**one, "b": FlowEdge("head#0", ["same"])}, 1.0, "mix 'b': 'head#0' is mixed by 'a' already"),
        (
            {"a": FlowEdge("head", ["vector"], student_weight=1.0)},
            1.0,
            "student_weight: expected a weight between 0 and 1, got 1.0",
        ),
        (one, 1.5, "schedule: expected a number from 0 to 1 or a schedule of the step, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            with_flow(NET, mixes, schedule)


def test_unknown_names_raise_errors_that_teach():
    for mixes, batch, message in (
        (
            {"a": FlowEdge("stem/nrm", ["same"])},
            GIVEN,
            r"mix 'a', submodule 'stem/nrm'.*did you mean 'stem/norm'.*\[6, 4, 4",
        ),
        (
            {"a": FlowEdge("head", ["vectr"])},
            GIVEN,
            r"mix 'a', teacher output 'vectr'.*did you mean 'vector'.*'same' float32",
        ),
        (
            {"a": FlowEdge("head", ["same"])},
            BATCH,
            "expected the teacher's outputs in batch.*knowledge_flow.*extract_student",
        ),
        ({"a": FlowEdge("head#1", ["same"])}, GIVEN, "'head' is called 1 times, there is no call 1"),
        (
            {"a": FlowEdge("head", ["tokens"])},
            {**GIVEN, "teacher": {"tokens": np.ones((6, 3, 5), np.float32)}},
            r"mix 'a': expected a feature of the layer's examples and positions.*got float32\[6, 3, 5\].*'tokens'",
        ),
        (
            {"a": FlowEdge("head", ["numbers"])},
            {**GIVEN, "teacher": {"numbers": np.ones((6, 5), np.int32)}},
            r"got int32\[6, 5\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            with_flow(NET, mixes, 1.0).init(KEY, batch)
    with pytest.raises(ValueError, match="'shared' is called 2 times; name the call, as in 'shared#0'"):
        x = {"image": TAUGHT["same"], "teacher": TAUGHT}
        with_flow(models.Twice(), {"a": FlowEdge("shared", ["same"])}, 1.0).init(KEY, x)
    model, variables = made()
    with pytest.raises(ValueError, match="without a teacher, run the plain module with extract_student"):
        model.apply(variables, BATCH, key=None, train=False)
    with pytest.raises(ValueError, match=r"extract_student: expected the variables of a flow.*got \['head', 'stem'\]"):
        extract_student(extract_student(variables))
    with pytest.raises(ValueError, match="with_flow: 'dependence' is an output of the model already"):
        run(*made(taps={"dependence": "head"}))
