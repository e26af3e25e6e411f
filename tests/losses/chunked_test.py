"""The chunked losses are the dense ones: values, gradients for every cotangent, on any devices, in much less memory."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd.losses import (
    generalized_jsd,
    linear_generalized_jsd,
    linear_reverse_kl,
    linear_skew_kl,
    linear_skew_reverse_kl,
    linear_soft_target_kl,
    linear_total_variation,
    reverse_kl,
    skew_kl,
    skew_reverse_kl,
    soft_target_kl,
    total_variation,
)
from jaxkd.losses.chunked import _kernel
from tests.losses.memory_test import largest

TOKENS, VOCABULARY = 12, 16
NAMES = ("student_hidden", "student_kernel", "student_bias", "teacher_hidden", "teacher_kernel", "teacher_bias")

CASES = {
    "kl": (linear_soft_target_kl, soft_target_kl, {}),
    "kl at 2": (linear_soft_target_kl, soft_target_kl, {"temperature": 2.0}),
    "jsd": (linear_generalized_jsd, generalized_jsd, {}),
    "jsd 0.1 at 2": (linear_generalized_jsd, generalized_jsd, {"beta": 0.1, "temperature": 2.0}),
    "jsd 0": (linear_generalized_jsd, generalized_jsd, {"beta": 0.0}),
    "jsd 1": (linear_generalized_jsd, generalized_jsd, {"beta": 1.0}),
    "reverse at 2": (linear_reverse_kl, reverse_kl, {"temperature": 2.0}),
    "skew 0.3 at 2": (linear_skew_kl, skew_kl, {"alpha": 0.3, "temperature": 2.0}),
    "skew reverse 0.3 at 2": (linear_skew_reverse_kl, skew_reverse_kl, {"alpha": 0.3, "temperature": 2.0}),
    "tv at 2": (linear_total_variation, total_variation, {"temperature": 2.0}),
}
FEW = {name: CASES[name] for name in ("kl at 2", "jsd 0.1 at 2")}


def inputs(tokens=TOKENS, vocabulary=VOCABULARY, hidden=(5, 3), seed=0):
    rng = np.random.default_rng(seed)
    arrays = {}
    for network, size in zip(("student", "teacher"), hidden, strict=True):
        arrays[f"{network}_hidden"] = rng.normal(size=(tokens, size))
        arrays[f"{network}_kernel"] = rng.normal(size=(size, vocabulary))
        arrays[f"{network}_bias"] = rng.normal(size=vocabulary)
    return {name: jnp.asarray(arrays[name]) for name in NAMES}


def dense(case, *, soft_cap=(None, None), temperature=None, **options):
    """The loss of the logits, written out."""
    _, loss, hyper = CASES[case]
    hyper = dict({"temperature": 1.0} | hyper)
    if temperature is not None:
        hyper["temperature"] = temperature

    def function(arrays):
        logits = []
        for network, cap in zip(("student", "teacher"), soft_cap, strict=True):
            z = arrays[f"{network}_hidden"] @ arrays[f"{network}_kernel"]
            if (bias := arrays.get(f"{network}_bias")) is not None:
                z = z + bias[None, :]
            logits.append(z if cap is None else cap * jnp.tanh(z / cap))
        return loss(*logits, **hyper, **options)

    return function


def linear(case, **options):
    function, _, hyper = CASES[case]
    return lambda arrays: function(**arrays, **{"chunk": 5} | hyper | options)


def value_and_gradients(function, cotangent):
    def both(arrays):
        value, pullback = jax.vjp(function, arrays)
        return value, pullback(jnp.asarray(cotangent, value.dtype))[0]

    return both


def quickly(function):
    return jax.jit(function)


def close(found, expected, rtol=1e-9, atol=1e-12):
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol), found, expected)


COTANGENTS = {
    "ones": np.ones(TOKENS),
    "a mean": np.full(TOKENS, 1 / TOKENS),
    "negative": np.full(TOKENS, -3.0),
    "zeros": np.zeros(TOKENS),
    "one token's": np.eye(TOKENS)[3],
    "one weight each": np.linspace(-1, 2, TOKENS),
}


@pytest.mark.parametrize("case", CASES)
def test_every_cotangent(case):
    with jax.enable_x64(True):
        arrays = inputs()
        found, expected = (
            quickly(lambda arrays, cotangent, f=f: value_and_gradients(f, cotangent)(arrays))
            for f in (linear(case), dense(case))
        )
        for cotangent in COTANGENTS.values():
            close(found(arrays, cotangent), expected(arrays, cotangent))


@pytest.mark.parametrize("case", FEW)
def test_nan_cotangent_gives_nan_gradients(case):
    cotangent = np.where(np.arange(TOKENS) == 3, np.nan, 1.0)
    _, gradients = value_and_gradients(linear(case), cotangent)(inputs())
    assert np.isnan(gradients["student_kernel"]).any()
    np.testing.assert_array_equal(np.isnan(gradients["student_hidden"]).any(axis=1), np.isnan(cotangent))


@pytest.mark.parametrize("case", FEW)
@pytest.mark.parametrize("tokens", [0, 1, 7, 12])
def test_any_number_of_tokens_in_chunks_of_any_size(case, tokens):
    with jax.enable_x64(True):
        arrays, cotangent = inputs(tokens), np.linspace(1, 2, tokens)
        where = jnp.arange(tokens) % 3 != 1
        expected = quickly(value_and_gradients(dense(case, where=where), cotangent))(arrays)
        for chunk in (1, 5, None):
            step = value_and_gradients(linear(case, where=where, chunk=chunk), cotangent)
            close(quickly(step)(arrays), expected)


@pytest.mark.parametrize("biased", [(), ("student_bias",), ("teacher_bias",)], ids=str)
@pytest.mark.parametrize("case", FEW)
def test_biases_are_optional(case, biased):
    with jax.enable_x64(True):
        arrays = {name: x for name, x in inputs().items() if "bias" not in name or name in biased}
        cotangent = np.ones(TOKENS)
        found, expected = (quickly(value_and_gradients(f(case), cotangent))(arrays) for f in (linear, dense))
        close(found, expected)


@pytest.mark.parametrize("soft_cap", [(2.0, 2.0), (None, 1.5), (1.5, None)])
@pytest.mark.parametrize("case", FEW)
def test_soft_caps(case, soft_cap):
    with jax.enable_x64(True):
        arrays, cotangent = inputs(), np.linspace(1, 2, TOKENS)
        expected = quickly(value_and_gradients(dense(case, soft_cap=soft_cap), cotangent))(arrays)
        ways = [soft_cap, soft_cap[0]] if soft_cap[0] == soft_cap[1] else [soft_cap]
        for way in ways:
            close(quickly(value_and_gradients(linear(case, soft_cap=way), cotangent))(arrays), expected)


@pytest.mark.parametrize("case", FEW)
def test_temperature_of_masked_tokens_may_be_garbage(case):
    with jax.enable_x64(True):
        arrays, cotangent = inputs(), np.linspace(1, 2, TOKENS)
        temperature, where = jnp.linspace(0.5, 3, TOKENS), jnp.arange(TOKENS) % 4 > 0
        expected = quickly(value_and_gradients(dense(case, where=where, temperature=temperature), cotangent))(arrays)
        step = quickly(lambda a, t: value_and_gradients(linear(case, where=where, temperature=t), cotangent)(a))
        for masked in (1.0, math.nan, 0.0, math.inf):
            close(step(arrays, jnp.where(where, temperature, masked)), expected)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("student, teacher", [((0, 3), ()), ((), (0, 3)), ((0, 3), (0, 3)), ((0,), (3,))])
def test_excluded_words(case, student, teacher):
    with jax.enable_x64(True):
        arrays = inputs()
        for network, words in (("student", student), ("teacher", teacher)):
            arrays[f"{network}_bias"] = arrays[f"{network}_bias"].at[np.array(words, int)].set(-jnp.inf)
        for cotangent in (np.ones(TOKENS), np.linspace(1, 2, TOKENS)):
            value, gradients = quickly(value_and_gradients(linear(case), cotangent))(arrays)
            expected, expected_gradients = quickly(value_and_gradients(dense(case), cotangent))(arrays)
            close(value, expected)
            # Where KL(p ‖ q) is infinite, so would be the slope of p, and what stands for it is anyone's choice.
            p = "student" if case in ("jsd 1", "reverse at 2") else "teacher"
            for name in NAMES:
                if p not in name or np.isfinite(value).all():
                    close(gradients[name], expected_gradients[name])
            assert all(np.isfinite(gradient).all() for gradient in gradients.values())


def test_the_divergence_from_a_student_that_excludes_a_word_is_infinite():
    arrays = inputs()
    arrays["student_bias"] = arrays["student_bias"].at[2].set(-jnp.inf)
    np.testing.assert_array_equal(linear("kl")(arrays), np.inf)
    assert np.isfinite(linear("jsd")(arrays)).all()


# --- what is computed -------------------------------------------------------------------------------------------------


def products(function, *arrays):
    """The number of matrix products in a program, those within scans and branches counted once."""

    def count(jaxpr):
        total = 0
        for equation in jaxpr.eqns:
            total += equation.primitive.name == "dot_general"
            for parameter in jax.tree.leaves(list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")):
                inner = getattr(parameter, "jaxpr", parameter)
                total += count(inner) if hasattr(inner, "eqns") else 0
        return total

    # As compiled, without what nothing uses.
    jaxpr = jax.make_jaxpr(function)(*arrays)
    return count(jaxpr.jaxpr)


@pytest.mark.parametrize("case", FEW)
def test_only_what_is_differentiated_is_computed(case):
    arrays = inputs()
    loss = linear(case)

    def gradient(*names):
        def of(part):
            return loss(arrays | part).mean()

        return lambda: jax.grad(of)({name: arrays[name] for name in names})

    logits = 2
    assert products(loss, arrays) == logits
    assert products(gradient("student_hidden")) == logits + 1
    again = logits  # and the kernel's gradient with it, in the branch for other cotangents
    assert products(gradient("student_kernel")) == logits + 1 + again + 1
    assert products(gradient("student_hidden", "student_kernel")) == logits + 2 + again + 1
    assert products(gradient("student_hidden", "student_kernel", "student_bias")) == logits + 2 + again + 1
    assert products(gradient("teacher_hidden")) == logits + 1
    assert products(gradient(*NAMES)) == logits + 4 + again + 2


@pytest.mark.parametrize("case", FEW)
def test_teacher_behind_stop_gradient_has_no_products(case):
    def loss(arrays):
        stopped = {name: jax.lax.stop_gradient(x) if "teacher" in name else x for name, x in arrays.items()}
        return linear(case)(stopped).mean()

    arrays = inputs()
    assert products(jax.grad(loss), arrays) == 2 + 2 + 2 + 1
    gradients = jax.grad(loss)(arrays)
    assert all((gradients[name] == 0).all() == ("teacher" in name) for name in NAMES)


@pytest.mark.parametrize("case", FEW)
def test_one_pass_for_a_mean_and_two_for_weights(case, monkeypatch):
    arrays, passes, run = inputs(), [], _kernel._run
    monkeypatch.setattr(_kernel, "_run", lambda *arguments: passes.append(arguments[1]) or run(*arguments))
    where = jnp.arange(TOKENS) % 3 > 0

    def count(loss):
        passes.clear()
        with jax.disable_jit():
            jax.grad(loss)(arrays)
        return len(passes)

    masked = linear(case, where=where)
    assert count(lambda a: linear(case)(a).mean()) == 1
    assert count(lambda a: -3 * linear(case)(a).sum()) == 1
    assert count(lambda a: masked(a).sum() / where.sum()) == 1
    assert count(lambda a: (masked(a) * jnp.where(where, 0.5, jnp.nan)).sum()) == 1, "what is masked has no say"
    assert count(lambda a: (linear(case)(a) * jnp.arange(TOKENS)).sum()) == 2


@pytest.mark.parametrize("case", FEW)
def test_no_array_of_all_logits(case):
    """Nor of the tokens times anything: what is largest is a kernel."""
    tokens, vocabulary, hidden = 512, 1024, 16
    arrays = jax.eval_shape(lambda: inputs(tokens, vocabulary, (hidden, hidden)))
    weights = jax.ShapeDtypeStruct((tokens,), jnp.float32)

    def loss(arrays, weights):
        return (linear(case, chunk=8)(arrays) * weights).sum()

    count, operation = largest(jax.value_and_grad(loss), arrays, weights)
    assert count == max(hidden * vocabulary, tokens * hidden), f"{operation} returns {count} elements"
    count, _ = largest(jax.value_and_grad(lambda a, w: (dense(case)(a) * w).sum()), arrays, weights)
    assert count == tokens * vocabulary


@pytest.mark.parametrize("case, least", [("kl", 6), ("jsd", 6)])
def test_compiled_memory(case, least):
    """At 4096 tokens and 32768 words; `benchmarks.memory` has the figures."""
    arrays = {
        "student_hidden": (4096, 512),
        "student_kernel": (512, 32768),
        "teacher_hidden": (4096, 1024),
        "teacher_kernel": (1024, 32768),
    }
    shapes = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in arrays.items()}

    def temporary(loss):
        def mean(student, teacher):
            return loss(student | jax.lax.stop_gradient(teacher)).mean()

        halves = ({k: v for k, v in shapes.items() if network in k} for network in ("student", "teacher"))
        compiled = jax.jit(jax.value_and_grad(mean)).lower(*halves).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(linear(case, chunk=None)) * least <= temporary(dense(case))


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "kinds", [(jnp.bfloat16, jnp.bfloat16), (jnp.bfloat16, jnp.float32), (jnp.float32, jnp.float16)]
)
@pytest.mark.parametrize("case", FEW)
def test_half_precision_is_rounded_once(case, kinds):
    hidden, kernel = kinds
    given = {name: x.astype(hidden if "hidden" in name else kernel) for name, x in inputs().items()}
    wide = {name: x.astype(jnp.float32) for name, x in given.items()}
    cotangent = np.full(TOKENS, 1 / TOKENS)
    value, gradients = jax.jit(value_and_gradients(linear(case), cotangent))(given)
    expected, expected_gradients = jax.jit(value_and_gradients(linear(case), cotangent))(wide)
    assert value.dtype == jnp.float32
    np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-7)
    for name in NAMES:
        assert gradients[name].dtype == given[name].dtype
        scale = np.abs(expected_gradients[name]).max()
        unit, tiny = (float(getattr(jnp.finfo(given[name].dtype), part)) for part in ("eps", "smallest_subnormal"))
        found = gradients[name].astype(jnp.float32)
        np.testing.assert_allclose(found, expected_gradients[name], rtol=max(unit, 1e-5), atol=1e-6 * scale + tiny)


# --- transformations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "case, weights",
    [("kl at 2", np.ones(TOKENS)), ("jsd 0.1 at 2", np.linspace(1, 2, TOKENS))],
    ids=["same", "different"],
)
def test_within_scan_and_checkpoint_and_vmap(case, weights):
    with jax.enable_x64(True):
        seeds = [inputs(seed=seed) for seed in range(3)]
        stacked = jax.tree.map(lambda *x: jnp.stack(x), *seeds)

        def gradients(loss):
            return lambda arrays: jax.value_and_grad(lambda a: (loss(a) * weights).sum())(arrays)

        expected = jax.lax.map(gradients(dense(case)), stacked)
        close(jax.jit(jax.vmap(gradients(linear(case))))(stacked), expected)
        close(jax.jit(lambda x: jax.lax.map(gradients(jax.checkpoint(linear(case))), x))(stacked), expected)

        def total(loss):
            """The gradient of a scan, rather than a gradient within one."""
            return lambda stacked: jax.lax.scan(lambda c, a: (c + (loss(a) * weights).sum(), None), 0.0, stacked)[0]

        close(jax.jit(jax.grad(total(linear(case))))(stacked), jax.grad(total(dense(case)))(stacked))


@pytest.mark.parametrize("case", FEW)
def test_vmap_over_the_weights_of_one_loss(case):
    """The inputs have no mapped axis and the cotangents have one."""
    with jax.enable_x64(True):
        arrays, weights = inputs(), jnp.stack([jnp.ones(TOKENS), jnp.linspace(1, 2, TOKENS)])

        def gradients(loss):
            return lambda w: jax.grad(lambda a: (loss(a) * w).sum())(arrays)

        close(jax.vmap(gradients(linear(case)))(weights), jax.lax.map(gradients(dense(case)), weights))


def test_second_derivative_is_an_error():
    arrays = inputs()

    def inner(weights):
        gradient = jax.grad(lambda a: (linear("kl")(a) * weights).sum())(arrays)
        return (gradient["student_kernel"] ** 2).sum()

    with pytest.raises(NotImplementedError, match="second derivative"):
        jax.grad(inner)(jnp.ones(TOKENS))
    with pytest.raises(NotImplementedError, match="second derivative"):
        jax.grad(lambda a: jax.grad(lambda b: linear("kl")(b).sum())(a)["student_hidden"].sum())(arrays)


def test_gradient_of_the_temperature_is_an_error():
    with pytest.raises(NotImplementedError, match="temperature"):
        jax.grad(lambda t: linear("kl", temperature=t)(inputs()).sum())(2.0)
    jax.jit(lambda t: jax.grad(lambda a: linear("kl", temperature=t)(a).sum())(inputs()))(2.0)  # a schedule's


# --- devices ----------------------------------------------------------------------------------------------------------

WORDS, MODEL, DATA = "words", "model", "data"
MASK = np.arange(TOKENS) % 5 != 2
WEIGHTS = {"same": np.full(TOKENS, 0.5), "different": np.linspace(-1, 1, TOKENS)}


def spec(name, tokens=None, words=WORDS):
    if "hidden" in name:
        return PartitionSpec(tokens)
    return PartitionSpec(None, words) if "kernel" in name else PartitionSpec(words)


def local_step(case):
    def step(arrays, where, weights):
        loss = linear(case, where=where, vocabulary_axis=WORDS)
        return value_and_gradients(loss, weights)(arrays)

    return step


def expected_step(case, arrays, weights):
    return value_and_gradients(dense(case, where=jnp.asarray(MASK)), weights)(arrays)


@pytest.mark.parametrize("devices, check_vma", [(1, True), (2, False), (4, True), (8, False), (8, True)])
@pytest.mark.parametrize("case", FEW)
def test_a_vocabulary_over_devices(case, devices, check_vma):
    mesh = Mesh(np.array(jax.devices()[:devices]), (WORDS,))
    specs = {name: spec(name) for name in NAMES}
    step = jax.jit(
        jax.shard_map(
            local_step(case),
            mesh=mesh,
            in_specs=(specs, PartitionSpec(), PartitionSpec()),
            out_specs=(PartitionSpec(), specs),
            check_vma=check_vma,
        )
    )
    with jax.enable_x64(True):
        arrays = inputs()
        arrays["student_bias"] = arrays["student_bias"].at[:3].set(-jnp.inf)  # more than a slice, on eight devices
        arrays["teacher_bias"] = arrays["teacher_bias"].at[:4].set(-jnp.inf)
        spoiled = arrays | {"student_hidden": jnp.where(MASK[:, None], arrays["student_hidden"], jnp.nan)}
        for weights in WEIGHTS.values():
            close(step(spoiled, MASK, weights), expected_step(case, arrays, weights), rtol=1e-8)


@pytest.mark.parametrize("data, words, check_vma", [(2, 4, True), (4, 2, False), (2, 1, True), (2, 4, False)])
@pytest.mark.parametrize("case", FEW)
def test_tokens_and_vocabulary_over_devices(case, data, words, check_vma):
    """Some of the data shards have one weight for all of their tokens and others do not."""
    mesh = Mesh(np.array(jax.devices()[: data * words]).reshape(data, words), (DATA, WORDS))
    specs, by_token = {name: spec(name, DATA) for name in NAMES}, PartitionSpec(DATA)

    def step(arrays, where, weights):
        value, gradients = local_step(case)(arrays, where, weights)
        if not check_vma:  # with types, a replicated parameter's gradient is already the sum
            gradients = {k: x if "hidden" in k else jax.lax.psum(x, DATA) for k, x in gradients.items()}
        return value, gradients

    step = jax.jit(
        jax.shard_map(
            step, mesh=mesh, in_specs=(specs, by_token, by_token), out_specs=(by_token, specs), check_vma=check_vma
        )
    )
    with jax.enable_x64(True):
        arrays = inputs()
        half = np.where(np.arange(TOKENS) < TOKENS // 2, 1.0, np.arange(TOKENS))
        for weights in (*WEIGHTS.values(), half):
            close(step(arrays, MASK, weights), expected_step(case, arrays, weights), rtol=1e-8)


@pytest.mark.parametrize("case", FEW)
def test_differentiated_from_outside_of_shard_map(case):
    mesh = Mesh(np.array(jax.devices()).reshape(2, 4), (DATA, WORDS))
    specs = {name: spec(name, DATA) for name in NAMES}
    loss = jax.shard_map(
        linear(case, vocabulary_axis=WORDS), mesh=mesh, in_specs=(specs,), out_specs=PartitionSpec(DATA)
    )
    with jax.enable_x64(True):
        arrays = inputs()
        for weights in WEIGHTS.values():
            found = jax.jit(value_and_gradients(loss, weights))(arrays)
            close(found, value_and_gradients(dense(case), weights)(arrays), rtol=1e-8)


@pytest.mark.parametrize("case", FEW)
def test_replicated_trunk_has_its_gradient_once(case):
    """Hidden states of parameters that all devices hold: no device's share is missing, and none is counted twice."""
    mesh = Mesh(np.array(jax.devices()[:4]), (WORDS,))
    specs = {name: spec(name) for name in NAMES}

    def gradient(loss, trunk, arrays):
        def mean(trunk):
            return loss(arrays | {"student_hidden": jnp.tanh(arrays["student_hidden"] @ trunk)}).mean()

        return jax.grad(mean)(trunk)

    with jax.enable_x64(True):
        arrays, trunk = inputs(), jnp.asarray(np.random.default_rng(1).normal(size=(5, 5)))
        expected = gradient(dense(case), trunk, arrays)
        for check_vma in (True, False):
            step = jax.shard_map(
                functools.partial(gradient, linear(case, vocabulary_axis=WORDS)),
                mesh=mesh,
                in_specs=(PartitionSpec(), specs),
                out_specs=PartitionSpec(),
                check_vma=check_vma,
            )
            close(jax.jit(step)(trunk, arrays), expected, rtol=1e-8)


@pytest.mark.parametrize("way", ["pmap", "vmap"])
@pytest.mark.parametrize("case", FEW)
def test_a_vocabulary_over_pmap_and_vmap(case, way):
    devices = 4
    mapped = functools.partial(jax.pmap, devices=jax.devices()[:devices]) if way == "pmap" else jax.vmap
    axes = {name: None if "hidden" in name else 0 for name in NAMES}
    step = mapped(local_step(case), axis_name=WORDS, in_axes=(axes, None, None))

    def slices(name, x):
        return x if "hidden" in name else jnp.moveaxis(x.reshape(*x.shape[:-1], devices, -1), -2, 0)

    with jax.enable_x64(True):
        arrays = inputs()
        split = {name: slices(name, x) for name, x in arrays.items()}
        for weights in WEIGHTS.values():
            value, gradients = step(split, MASK, weights)
            expected, expected_gradients = expected_step(case, arrays, weights)
            for device in range(devices):
                np.testing.assert_allclose(value[device], expected, rtol=1e-9)
                for name in NAMES:
                    right = expected_gradients[name]
                    right = right if "hidden" in name else slices(name, right)[device]
                    np.testing.assert_allclose(gradients[name][device], right, rtol=1e-8, atol=1e-12, err_msg=name)


@pytest.mark.parametrize(
    "case, data, words", [("kl at 2", 1, 8), ("jsd 0.1 at 2", 8, 1), ("kl at 2", 2, 4), ("jsd 0.1 at 2", 2, 4)]
)
def test_automatic_partitioning(case, data, words):
    """jit alone, with arrays that are placed; a chunk of 5 does not fit the devices, and need not."""
    mesh = Mesh(np.array(jax.devices()).reshape(data, words), (DATA, WORDS))
    with jax.enable_x64(True):
        arrays = inputs(16)
        where, weights = jnp.arange(16) % 5 != 2, jnp.linspace(-1, 1, 16)
        placed = {name: jax.device_put(x, NamedSharding(mesh, spec(name, DATA))) for name, x in arrays.items()}
        for cotangent in (jnp.ones(16), weights):
            for chunk in (5, 8, None):
                found = jax.jit(value_and_gradients(linear(case, where=where, chunk=chunk), cotangent))(placed)
                close(found, value_and_gradients(dense(case, where=where), cotangent)(arrays), rtol=1e-8)


def test_automatic_partitioning_splits_the_work():
    """Neither the kernel, nor its gradient, nor a chunk's logits are gathered on a device."""
    tokens, vocabulary, hidden = 2048, 8192, 64
    mesh = Mesh(np.array(jax.devices()), (WORDS,))
    shapes = jax.eval_shape(lambda: inputs(tokens, vocabulary, (hidden, hidden)))

    def temporary(placed):
        arguments = {
            name: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=NamedSharding(mesh, spec(name)) if placed else None)
            for name, x in shapes.items()
        }
        loss = jax.jit(jax.value_and_grad(lambda arrays: linear("kl", chunk=256)(arrays).mean()))
        return loss.lower(arguments).compile().memory_analysis().temp_size_in_bytes

    assert temporary(True) < temporary(False) / 3


# --- mistakes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["kl", "jsd"])
def test_hyperparameters_out_of_range(way):
    def message(**options):
        with pytest.raises(ValueError) as error:
            linear(way, **options)(inputs())
        return str(error.value)

    assert message(temperature=0.0) == "temperature: expected a positive number, got 0.0."
    expected = "temperature: expected a scalar, or one for each entry of [12], got float32[3]"
    assert expected in message(temperature=jnp.ones(3))
    for cap in (0.0, -1.0, math.nan, (1.0, 0.0), (1.0, 2.0, 3.0)):
        assert message(soft_cap=cap).startswith("soft_cap: expected a positive number, or a pair")
    assert message(chunk=0).startswith("chunk: expected at least one token")
    if way == "jsd":
        for beta in (-0.1, 1.1, math.nan):
            assert message(beta=beta).startswith("beta: expected a number from 0 to 1")


def test_shape_errors_say_what_to_do():
    arrays = inputs()
    with pytest.raises(ValueError, match="select the words both know"):
        linear("kl")(arrays | {"teacher_kernel": jnp.ones((3, 15)), "teacher_bias": jnp.ones(15)})
    with pytest.raises(ValueError, match="an embedding table is transposed=True"):
        linear("kl")(arrays | {"student_kernel": jnp.ones((16, 5))})
    with pytest.raises(ValueError, match="a kernel is transposed=False"):
        linear("kl", transposed=(True, False))(arrays)
    with pytest.raises(ValueError, match=r"transposed: expected True or False.*got 1"):
        linear("kl", transposed=1)(arrays)
    with pytest.raises(ValueError, match=r"teacher_hidden: expected the student's tokens \[3, 4\]"):
        linear("kl")(arrays | {"student_hidden": jnp.ones((3, 4, 5))})


# --- embedding tables and batches of sequences ------------------------------------------------------------------------


@pytest.mark.parametrize("transposed", [(True, False), (False, True), True], ids=str)
def test_embedding_tables_are_taken_as_they_are(transposed):
    sides = transposed if isinstance(transposed, tuple) else (transposed, transposed)
    with jax.enable_x64(True):
        arrays, cotangent = inputs(), np.linspace(1, 2, TOKENS)
        tables = [f"{network}_kernel" for network, table in zip(("student", "teacher"), sides, strict=True) if table]
        given = arrays | {name: arrays[name].T for name in tables}
        found, gradients = quickly(value_and_gradients(linear("kl at 2", transposed=transposed), cotangent))(given)
        gradients |= {name: gradients[name].T for name in tables}
        close((found, gradients), quickly(value_and_gradients(dense("kl at 2"), cotangent))(arrays))


def test_a_table_is_not_copied():
    """As large as a loss of kernels: no transposed array outside of the loop."""
    shapes = jax.eval_shape(lambda: inputs(256, 8192, (64, 64)))
    tables = {k: jax.ShapeDtypeStruct(x.shape[::-1] if "kernel" in k else x.shape, x.dtype) for k, x in shapes.items()}

    def temporary(arrays, **options):
        step = jax.jit(jax.value_and_grad(lambda a: linear("kl", chunk=64, **options)(a).mean()))
        return step.lower(arrays).compile().memory_analysis().temp_size_in_bytes

    kernel = 4 * 64 * 8192
    assert temporary(tables, transposed=True) < temporary(shapes) + kernel / 2


def test_a_batch_of_sequences_is_its_tokens():
    with jax.enable_x64(True):
        arrays, where = inputs(), jnp.arange(TOKENS) % 5 != 2
        expected = value_and_gradients(linear("kl at 2", where=where), np.linspace(1, 2, TOKENS))(arrays)
        batch = {k: x.reshape(3, 4, -1) if "hidden" in k else x for k, x in arrays.items()}
        loss = linear("kl at 2", where=where.reshape(3, 4))
        value, gradients = value_and_gradients(loss, np.linspace(1, 2, TOKENS).reshape(3, 4))(batch)
        close(value.reshape(-1), expected[0])
        close(jax.tree.map(lambda x, like: x.reshape(like.shape), gradients, expected[1]), expected[1])
