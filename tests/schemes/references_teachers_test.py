"""Chains and several teachers against float64 NumPy: losses and gradients."""

import itertools

import flax.linen as nn
import jax
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, losses, objectives, schemes, teachers, term, wrappers
from jaxkd.objectives import discriminators
from tests.schemes.references import (
    CE,
    CLASSES,
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
    network,
    scores,
    slopes,
    softmax,
    trained,
)

# --- chains -----------------------------------------------------------------------------------------------------------


def test_born_again_matches_float64_reference():
    kd = schemes.born_again(
        network(), combine(ce=CE, kd=kl_term(3.0)), first=CE, generations=2, steps=1, optimizer=optax.sgd(0.5)
    )
    state, step = kd.init(KEY, batch()), jax.jit(kd.step)
    for i in range(3):
        given = kept(batch(i))
        own = {name: float64(wrappers.get_member(state.student, name).params) for name in "012"}
        state, metrics = step(state, batch(i))
        z = forward(own[str(i)], given["image"])[0]
        expected = ce(z, given["label"])
        if i:
            expected += kl(forward(own[str(i - 1)], given["image"])[0], z, 3.0)
        assert scores(metrics)["loss"] == pytest.approx(expected, rel=2e-4)
    born = [float64(wrappers.get_member(state.student, name).params) for name in "12"]
    large = {**{n: np.concatenate([batch(i)[n] for i in range(20)]) for n in ("image", "label", "mask")}}
    seen = scores(jax.jit(kd.evaluate)(state, large), "ensemble")
    image, label = large["image"][large["mask"]], large["label"][large["mask"]]
    mean = np.mean([forward(params, image)[0] for params in born], axis=0)
    assert seen["ensemble/accuracy"] == pytest.approx((mean.argmax(-1) == label).mean())


def test_assistants_match_float64_reference():
    teacher_params = network().init(jax.random.key(8), batch())
    teacher = teachers.frozen(network(), teacher_params)
    objective = combine(ce=CE, kd=kl_term(3.0))
    kd = schemes.assistants(
        network(), teacher, objective, assistants={"large": network()}, steps=2, optimizer=optax.sgd(0.5)
    )
    state, step = kd.init(KEY, batch()), jax.jit(kd.step)
    for i in range(4):
        given, name = kept(batch(i)), "large" if i < 2 else "student"
        own = {n: float64(wrappers.get_member(state.student, n).params) for n in ("large", "student")}
        state, metrics = step(state, batch(i))
        z = forward(own[name], given["image"])[0]
        before = float64(teacher_params.params) if i < 2 else own["large"]
        expected = ce(z, given["label"]) + kl(forward(before, given["image"])[0], z, 3.0)
        assert scores(metrics)["loss"] == pytest.approx(expected, rel=2e-4)


# --- several teachers -------------------------------------------------------------------------------------------------


def three_teachers():
    variables = [network().init(jax.random.key(20 + i), batch()) for i in range(3)]
    return {n: teachers.frozen(network(), v) for n, v in zip("abc", variables, strict=True)}, [
        float64(v.params) for v in variables
    ]


@pytest.mark.parametrize("probabilities", [False, True])
def test_weighted_ensemble_matches_float64_reference(probabilities):
    members, known = three_teachers()
    weights, temperature = [0.5, 0.3, 0.2], 3.0
    average = teachers.average_probabilities(temperature) if probabilities else teachers.average_logits
    teacher = teachers.ensemble(members, weights=dict(zip("abc", weights, strict=True)), average=average)
    kd = jaxkd.distill(network(), teacher, combine(ce=CE, kd=kl_term(temperature)), optimizer=SGD)

    def reference(params, _, given, __):
        zs = [forward(one, given["image"])[0] for one in known]
        if probabilities:
            mean = sum(w * softmax(z / temperature) for w, z in zip(weights, zs, strict=True))
            target = temperature * np.log(mean)
        else:
            target = sum(w * z for w, z in zip(weights, zs, strict=True))
        z = forward(params["student"], given["image"])[0]
        return ce(z, given["label"]) + kl(target, z, temperature)

    assert_steps(kd, reference)


def test_learned_ensemble_matches_float64_reference():
    members, known = three_teachers()
    objective = objectives.learned_ensemble(
        teachers=[f"teacher/{n}/logits" for n in "abc"], temperature=3.0, weight=0.6
    )
    kd = jaxkd.distill(network(), teachers.ensemble(members), objective, optimizer=SGD)

    def student_loss(params, held, given, _):
        zs = [forward(one, given["image"])[0] for one in known]
        share = softmax(held["loss"]["weights"])
        target = 3.0 * np.log(sum(w * softmax(z / 3.0) for w, z in zip(share, zs, strict=True)))
        return 0.6 * kl(target, forward(params["student"], given["image"])[0], 3.0)

    def reference(params, held, given, step):
        zs = [forward(one, given["image"])[0] for one in known]
        rows = np.arange(len(given["label"]))

        def nll(a):
            mixed = sum(w * softmax(z) for w, z in zip(softmax(a), zs, strict=True))
            return -np.log(mixed[rows, given["label"]]).mean()

        return student_loss(params, held, given, step) + nll(params["loss"]["weights"]) - nll(held["loss"]["weights"])

    assert_steps(kd, reference, steps=3)


def votes(student, teacher_features, margin, weights):
    """Voted dissimilarity, one triplet at a time."""
    found = []
    n = len(student)
    for i, j, k in itertools.permutations(range(n), 3):
        vote = 0.0
        for w, t in zip(weights, teacher_features, strict=True):
            vote += w * np.sign(((t[i] - t[k]) ** 2).sum() - ((t[i] - t[j]) ** 2).sum())
        if vote > 0:
            gap = ((student[i] - student[j]) ** 2).sum() - ((student[i] - student[k]) ** 2).sum()
            found.append(max(0.0, gap + margin))
    return np.mean(found)


def test_voted_dissimilarity_matches_float64_reference():
    members, known = three_teachers()
    weights = [0.45, 0.3, 0.25]
    voted = term(
        losses.voted_dissimilarity,
        "student/hidden",
        tuple(f"teacher/{n}/hidden" for n in "abc"),
        margin=0.4,
        weights=weights,
    )
    kd = jaxkd.distill(network(), teachers.ensemble(members), voted, optimizer=optax.sgd(1.0))

    def reference(params, _, given, __):
        seen = [forward(one, given["image"])[1] for one in known]
        return votes(forward(params["student"], given["image"])[1], seen, 0.4, weights)

    assert_steps(kd, reference)


def test_knowledge_flow_matches_float64_reference():
    members, known = three_teachers()
    names = ["a/hidden", "c/hidden"]
    student = wrappers.with_flow(
        nn.Sequential([nn.Dense(6), nn.tanh, nn.Dense(CLASSES)]),
        {"m": wrappers.FlowEdge("layers_0", names, student_weight=0.6)},
        0.37,
    )
    objective = combine(ce=CE, alone=schemes.transfer.dependence_loss(weight=0.25))
    kd = schemes.knowledge_flow(student, teachers.ensemble(members), objective, optimizer=SGD)
    share = softmax(np.float64(kd.init(KEY, batch()).student.params["flow"]["m"]["weights"]))
    np.testing.assert_allclose(share, [0.6, 0.2, 0.2], rtol=1e-5)

    def reference(params, _, given, __):
        own, mix = params["student"]["student"], params["student"]["flow"]["m"]
        s = softmax(mix["weights"])
        h = np.float64(given["image"]) @ own["layers_0"]["kernel"] + own["layers_0"]["bias"]
        h = (1 - 0.37 * (1 - s[0])) * h
        for k, which in enumerate((0, 2)):
            h = h + 0.37 * s[1 + k] * forward(known[which], given["image"])[1] @ mix["maps"][k]
        z = np.tanh(h) @ own["layers_2"]["kernel"] + own["layers_2"]["bias"]
        return ce(z, given["label"]) - 0.25 * np.log(s[0])

    _, metrics = assert_steps(kd, reference)
    assert 0 < scores(metrics)["dependence"] < 0.37


def test_adversarial_matches_float64_reference():
    members, known = three_teachers()
    objective = objectives.adversarial(
        "student/logits", "teacher/logits", discriminator=discriminators.mlp(5), weight=0.3
    )
    kd = jaxkd.distill(network(), members["a"], objective, optimizer=SGD)

    def judged(layers, x):
        for i, layer in enumerate(layers):
            x = x @ layer["kernel"] + layer["bias"]
            x = np.where(x > 0, x, 0.2 * x) if i + 1 < len(layers) else x
        return x[:, 0]

    def softplus(x):
        return np.logaddexp(0, x)

    def reference(params, held, given, _):
        t = forward(known[0], given["image"])[0]
        s, still = (forward(tree["student"], given["image"])[0] for tree in (params, held))
        judge, judge_held = params["loss"]["discriminator"], held["loss"]["discriminator"]

        def own_loss(layers):
            return softplus(-judged(layers, t)).mean() + softplus(judged(layers, still)).mean()

        return 0.3 * softplus(-judged(judge_held, s)).mean() + own_loss(judge) - own_loss(judge_held)

    state = kd.init(KEY, batch())
    before, given = float64(trained(state)), kept(batch())
    after, _ = jax.jit(kd.step)(state, batch())
    gradient = jax.tree.map(np.subtract, before, float64(trained(after)))
    held = jax.tree.map(np.copy, before)
    assert_trees(gradient, slopes(lambda params: reference(params, held, given, 0), before), 1e-3, 2e-4)
