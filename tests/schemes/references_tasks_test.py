"""Data-free, few-sample, quantized and continual schemes against float64 NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import adapters, schemes, teachers, weights, wrappers
from jaxkd.metrics import _forgetting as measures
from jaxkd.schemes.synthesis._cmi import contrast
from tests.schemes.references import (
    CE,
    CLASSES,
    HIDDEN,
    INPUTS,
    KEEP,
    KEY,
    SGD,
    assert_steps,
    assert_trees,
    batch,
    ce,
    float64,
    forward,
    kept,
    kl,
    kl_term,
    log_softmax,
    network,
    scores,
    slopes,
    softmax,
)

# --- data-free --------------------------------------------------------------------------------------------------------


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        x = nn.BatchNorm(use_running_average=not train, name="before")(x)
        x = nn.Conv(3, (1, 1), name="conv")(x)
        x = jnp.tanh(nn.BatchNorm(use_running_average=not train, name="after")(x))
        return nn.Dense(CLASSES, name="out")(x.mean(axis=(1, 2)))


SHAPE = (2, 3, 2)
NORMED = adapters.linen(Normed(), taps={"features": "after"})


def normed_teacher():
    rng = np.random.default_rng(4)
    made = NORMED.init(jax.random.key(2), {"image": jnp.zeros((2, *SHAPE))})
    made = jax.tree.map(lambda x: jnp.asarray(x + rng.uniform(0.1, 0.9, x.shape), jnp.float32), made)
    return teachers.frozen(wrappers.with_batch_stat_distance(NORMED), made), float64(made)


def asked(variables, x):
    """Computes logits, features and R_feature of a batch of images."""
    distance = 0.0

    def norm(x, name):
        nonlocal distance
        mean, var = (variables.state["batch_stats"][name][key] for key in ("mean", "var"))
        flat = x.reshape(-1, x.shape[-1])
        distance += np.linalg.norm(flat.mean(0) - mean) + np.linalg.norm(flat.var(0) - var)
        own = variables.params[name]
        return (x - mean) / np.sqrt(var + 1e-5) * own["scale"] + own["bias"]

    x = norm(np.float64(x), "before") @ variables.params["conv"]["kernel"][0, 0] + variables.params["conv"]["bias"]
    features = norm(x, "after")
    out = variables.params["out"]
    return np.tanh(features).mean((1, 2)) @ out["kernel"] + out["bias"], features, distance


def generator_of():
    return adapters.plain(
        lambda key, z: 0.5 * jax.random.normal(key, (5, int(np.prod(SHAPE)))),
        lambda w, z: {"image": (z @ w).reshape(-1, *SHAPE)},
        inputs="noise",
    )


def noise(i=0):
    rng = np.random.default_rng(50 + i)
    z = rng.normal(size=(len(KEEP), 5)).astype(np.float32)
    z[~KEEP] = 30
    return {"noise": z, "label": rng.integers(0, CLASSES, len(KEEP)).astype(np.int32), "mask": KEEP}


def test_dafl_matches_float64_reference():
    teacher, known = normed_teacher()
    made = schemes.synthesis.dafl(
        teacher, generator_of(), SGD, feature="features", one_hot=0.7, activation=0.2, entropy=3.0, statistics=0.4
    )
    kd = schemes.data_free(jaxkd.distill(NORMED, teacher, kl_term(2.0), optimizer=SGD), made)
    state, step = kd.init(KEY, noise()), jax.jit(kd.step)
    for i in range(2):
        given = kept(noise(i))
        before = float64(state.opt_state["synthesis"]["generator"].params)
        state, metrics = step(state, noise(i))

        def value(w, given=given):
            z, features, distance = asked(known, (given["noise"] @ w).reshape(-1, *SHAPE))
            mean = softmax(z).mean(0)
            pleased = -log_softmax(z).max(-1).mean()
            return 0.7 * pleased - 0.2 * np.abs(features).mean() + 3.0 * (mean * np.log(mean)).sum() + 0.4 * distance

        assert scores(metrics)["synthesis/loss"] == pytest.approx(value(before), rel=2e-4)
        gradient = before - float64(state.opt_state["synthesis"]["generator"].params)
        np.testing.assert_allclose(gradient, slopes(value, before), rtol=1e-3, atol=2e-4)


def test_inversion_matches_float64_reference():
    teacher, known = normed_teacher()
    student = adapters.linen(Normed())
    options = {"cross_entropy": 0.8, "statistics": 2.0, "total_variation": 0.03, "l2": 0.02, "competition": 1.5}
    made = schemes.synthesis.inversion(
        teacher, SHAPE, SGD, iterations=5, slots=2, jitter=0, student=student, temperature=3.0, **options
    )
    kd = schemes.data_free(jaxkd.distill(student, teacher, kl_term(2.0), optimizer=SGD), made)
    given = {"label": np.array([3, 10, 0, 7, 7, 1, 5], np.int32)}
    state, step = kd.init(KEY, given), jax.jit(kd.step)
    state, _ = step(state, given)  # the first step of a round draws its noise
    pixels, own = float64(state.opt_state["synthesis"]["image"]), float64(state.student)
    after, metrics = step(state, given)

    def value(x):
        z, _, distance = asked(known, x)
        other = asked(own, x)[0]
        p, q = softmax(z / 3), softmax(other / 3)
        m = (p + q) / 2
        js = 0.5 * ((p * np.log(p / m)).sum(-1) + (q * np.log(q / m)).sum(-1)).mean()
        pairs = [(x[:, :, :-1], x[:, :, 1:]), (x[:, :-1], x[:, 1:])]
        pairs += [(x[:, 1:, :-1], x[:, :-1, 1:]), (x[:, :-1, :-1], x[:, 1:, 1:])]
        rough = sum(np.linalg.norm(a - b) for a, b in pairs)
        found = 0.8 * ce(z, given["label"]) + 2.0 * distance + 0.03 * rough
        return found + 0.02 * np.linalg.norm(x) + 1.5 * (1 - js)

    assert scores(metrics)["synthesis/loss"] == pytest.approx(value(pixels), rel=2e-4)
    gradient = pixels - float64(after.opt_state["synthesis"]["image"])
    np.testing.assert_allclose(gradient, slopes(value, pixels), rtol=1e-3, atol=2e-4)


def test_contrast_matches_float64_reference():
    rng = np.random.default_rng(6)
    head = [{"kernel": rng.normal(size=shape), "bias": rng.uniform(0.5, 1, shape[1])} for shape in ((4, 5), (5, 6))]
    seen = {name: rng.normal(size=(7, 4)) for name in ("local", "global")}
    memory = {name: rng.normal(size=(6, 4)) for name in ("local", "global")}
    there = np.array([True, False, True, True, False, True])

    def value(tree, still):
        head, local = tree

        def embed(x, layers):
            h = np.maximum(x @ layers[0]["kernel"] + layers[0]["bias"], 0) @ layers[1]["kernel"] + layers[1]["bias"]
            return h / np.linalg.norm(h, axis=-1, keepdims=True)

        g = np.concatenate([embed(seen["global"], still), embed(memory["global"][there], still)])
        anchors = np.concatenate([embed(local, head), embed(memory["local"][there], head)])
        own = -np.diag(log_softmax(anchors @ g.T / 0.2))
        return own[:7].mean() + own[7:].mean()

    def ours(tree):
        head, local = tree
        return contrast(head, {**seen, "local": local}, memory, jnp.asarray(there), temperature=0.2)

    tree = jax.tree.map(np.copy, (head, seen["local"]))
    found, gradient = jax.jit(jax.value_and_grad(ours))(jax.tree.map(jnp.float32, tree))
    still = jax.tree.map(np.copy, head)
    assert float(found) == pytest.approx(value(tree, still), rel=1e-5)
    assert_trees(float64(gradient), slopes(lambda tree: value(tree, still), tree), 1e-3, 1e-4)


# --- few samples ------------------------------------------------------------------------------------------------------


def test_few_sample_matches_float64_least_squares():
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x):
            x = nn.relu(nn.Conv(3, (2, 2), name="a")(x))
            return nn.Conv(CLASSES, (1, 1), name="b")(x).mean(axis=(1, 2))

    model = adapters.linen(Two(), taps={"a": "a", "b": "b"})
    images = [np.random.default_rng(i).normal(size=(len(KEEP), 3, 3, 2)).astype(np.float32) for i in range(4)]
    for x in images:
        x[~KEEP] = 40
    batches = [{"image": x, "mask": KEEP} for x in images]
    original, own = (model.init(jax.random.key(i), batches[0]) for i in range(2))
    layers = {
        "a": schemes.transfer.FewSampleLayer("a", "a", "a/kernel", affine=True),
        "b": schemes.transfer.FewSampleLayer("b", "b", "b/kernel"),
    }
    kd = schemes.few_sample(
        model, teachers.frozen(model, original), layers, steps=2, variables=own, metrics=lambda context: {}
    )
    state, step = kd.init(KEY, batches[0]), jax.jit(kd.step)
    for given in batches:
        state, _ = step(state, given)

    def layer(variables, name, batches):
        out = [model.apply(variables, b, key=None, train=False)[0][name][KEEP] for b in batches]
        return np.concatenate([np.float64(x).reshape(-1, x.shape[-1]) for x in out])

    expected = float64(own.params)
    x, y = layer(own, "a", batches[:2]), layer(original, "a", batches[:2])
    found = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    expected["a"] = {
        "kernel": expected["a"]["kernel"] @ found[:-1],
        "bias": expected["a"]["bias"] @ found[:-1] + found[-1],
    }
    repaired = jaxkd.Variables({**own.params, "a": jax.tree.map(jnp.float32, expected["a"])}, own.state)
    x, y = layer(repaired, "b", batches[2:]), layer(original, "b", batches[2:])
    change = np.linalg.pinv(x, rcond=1e-4) @ (y - x)  # rank 3 of 11: undetermined directions are unchanged
    folded = np.eye(CLASSES) + change
    expected["b"] = {name: expected["b"][name] @ folded for name in ("kernel", "bias")}
    assert_trees(float64(state.student.params), expected, 2e-2, 5e-3)


# --- quantization -----------------------------------------------------------------------------------------------------


def in_buckets(w, bucket):
    flat = w.reshape(-1)
    return [flat[i : i + bucket] for i in range(0, flat.size, bucket)]


@pytest.mark.parametrize("bits", [2, 4, 8])
def test_quantized_values_match_float64_and_the_file(bits, tmp_path):
    bucket, s = 6, 2**bits - 1
    model = network()
    kd = jaxkd.distill(wrappers.quantized(model, bits=bits, bucket=bucket), teachers.none(), CE, optimizer=SGD)

    def rounded(w):
        parts = []
        for part in in_buckets(w, bucket):
            low, width = part.min(), np.ptp(part)
            parts.append(low + width / s * np.round((part - low) / width * s))
        return np.concatenate(parts).reshape(w.shape)

    state = kd.init(KEY, batch())
    before, given = float64(state.student.params), kept(batch())
    low = jax.tree.map(rounded, before)
    after, metrics = jax.jit(kd.step)(state, batch())

    def value(params):
        return ce(forward(params, given["image"])[0], given["label"])

    assert scores(metrics)["loss"] == pytest.approx(value(low), rel=2e-4)
    gradient = jax.tree.map(np.subtract, before, float64(after.student.params))
    assert_trees(gradient, slopes(value, jax.tree.map(np.copy, low)), 1e-3, 2e-4)  # straight-through

    path = tmp_path / "student.safetensors"
    size = weights.save_quantized(path, state, bits=bits, bucket=bucket)
    assert_trees(float64(weights.load_quantized(path).params), low, 1e-5, 1e-5)
    sizes = [INPUTS * HIDDEN, HIDDEN * CLASSES]
    assert size.codes == sum(-(-n * bits // 8) for n in sizes)
    assert size.scales == sum(-(-n // bucket) for n in sizes) * 8
    assert (size.rest, size.total, size.values) == (0, path.stat().st_size, sum(sizes))


def test_learned_points_match_float64_reference():
    bucket = 5
    trained = network().init(jax.random.key(3), batch())
    kd = jaxkd.distill(
        wrappers.learned_codebook(network(), trained, bits=2, bucket=bucket), teachers.none(), CE, optimizer=SGD
    )
    w = float64(trained.params)

    def scaled(w):
        return np.concatenate([(part - part.min()) / np.ptp(part) for part in in_buckets(w, bucket)])

    def weights_of(points, assigned):
        found = {}
        for name in w:
            parts, at = in_buckets(w[name], bucket), 0
            made = []
            for part in parts:
                made.append(part.min() + np.ptp(part) * points[name][assigned[name][at : at + len(part)]])
                at += len(part)
            found[name] = np.concatenate(made).reshape(w[name].shape)
        return found

    def nearest(points):
        return {name: np.abs(scaled(w[name])[:, None] - points[name]).argmin(-1) for name in w}

    begun = kd.init(KEY, batch()).student.params
    for name in w:
        np.testing.assert_allclose(begun[name], np.quantile(scaled(w[name]), np.linspace(0, 1, 4)), rtol=1e-5)

    def reference(params, held, given, _):
        z = forward(weights_of(params["student"], nearest(held["student"])), given["image"])[0]
        return ce(z, given["label"])

    assert_steps(kd, reference)


# --- continual learning -----------------------------------------------------------------------------------------------

TASKS = [[0, 4, 9], [1, 2], [3, 5, 6, 7, 8, 10]]


def of_task(task, retained=()):
    def made(i=0):
        given = batch(i)
        classes = [*TASKS[task], *retained]
        label = np.array(classes, np.int32)[given["label"] % len(classes)]
        return {**given, "label": label}

    return made


def among(z, label, classes):
    return ce(z[:, classes], np.array([classes.index(y) for y in label]))


def test_learning_without_forgetting_matches_float64_reference():
    kd = schemes.learning_without_forgetting(
        network(), tasks=TASKS, steps=[1, 1, 2], optimizer=optax.sgd(0.5), old_weight=0.7
    )
    state, step = kd.init(KEY, of_task(0)()), jax.jit(kd.step)
    old = None
    for i, task in enumerate([0, 1, 2, 2]):
        given = kept(of_task(task)(i))
        before = float64(state.student.params)
        if i in (1, 2):
            old = jax.tree.map(np.copy, before)

        def value(params, given=given, task=task, old=old):
            z = forward(params, given["image"])[0]
            found = among(z, given["label"], TASKS[task])
            for head in TASKS[:task]:
                target = forward(old, given["image"])[0][:, head]
                found += 0.7 * kl(target, z[:, head], 2.0) / 4  # no T²
            return found

        state, metrics = step(state, of_task(task)(i))
        assert scores(metrics)["loss"] == pytest.approx(value(before), rel=2e-4)
        gradient = jax.tree.map(lambda a, b: (a - b) / 0.5, before, float64(state.student.params))
        assert_trees(gradient, slopes(value, before), 1e-3, 3e-4)


def test_retrospection_matches_float64_reference():
    options = {"label_weight": 0.3, "expert_weight": 0.8, "old_weight": 0.6, "expert_temperature": 3.0}
    kd = schemes.retrospection(
        network(), network(), tasks=TASKS[:2], steps=[1, 3], expert_steps=1, optimizer=optax.sgd(0.5), **options
    )
    state, step = kd.init(KEY, of_task(0)()), jax.jit(kd.step)
    state, metrics = step(state, of_task(0)(0))
    mixed = of_task(1, retained=TASKS[0])
    old = float64(state.student.params)
    given = kept(mixed(1))
    new = np.isin(given["label"], TASKS[1])
    assert 0 < new.sum() < len(new)
    state, metrics = step(state, mixed(1))  # a step of the expert
    for one, other in zip(jax.tree.leaves(float64(state.student.params)), jax.tree.leaves(old), strict=True):
        np.testing.assert_array_equal(one, other)
    for i in (2, 3):
        given, before = kept(mixed(i)), float64(state.student.params)
        new = np.isin(given["label"], TASKS[1])
        expert = float64(state.teacher["expert"].params)

        def value(params, given=given, new=new, expert=expert):
            z, x = forward(params, given["image"])[0], given["image"]
            found = 0.6 * kl(forward(old, x)[0][:, TASKS[0]], z[:, TASKS[0]], 2.0) / 4
            told = forward(expert, x)[0]
            if new.any():
                found += 0.8 * kl(told[new][:, TASKS[1]], z[new][:, TASKS[1]], 3.0) / 9
            if not new.all():
                found += 0.3 * among(z[~new], given["label"][~new], TASKS[0])
            return found

        state, metrics = step(state, mixed(i))
        assert scores(metrics)["loss"] == pytest.approx(value(before), rel=2e-4)
        gradient = jax.tree.map(lambda a, b: (a - b) / 0.5, before, float64(state.student.params))
        assert_trees(gradient, slopes(value, before), 1e-3, 3e-4)


def test_forgetting_measures_match_their_definitions():
    a = np.random.default_rng(0).uniform(size=(5, 5))
    assert measures.average_accuracy(a) == pytest.approx(sum(a[4]) / 5)
    assert measures.average_accuracy(a, 2) == pytest.approx(sum(a[2, :3]) / 3)
    assert measures.backward_transfer(a) == pytest.approx(sum(a[4, i] - a[i, i] for i in range(4)) / 4)
    best = [max(a[i, j] for i in range(4)) for j in range(4)]  # before the last task, as in the paper
    assert measures.forgetting(a) == pytest.approx(sum(best[j] - a[4, j] for j in range(4)) / 4)
