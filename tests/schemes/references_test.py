"""Peers and self-distillation against float64 NumPy: losses and gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.optimize

import jaxkd
from jaxkd import combine, losses, objectives, schemes, teachers, term, wrappers
from jaxkd.losses import ensembles
from tests.schemes.references import (
    CE,
    CLASSES,
    KEY,
    SGD,
    SIZE,
    assert_steps,
    assert_trees,
    batch,
    ce,
    exit_of,
    float64,
    forward,
    kept,
    kl,
    kl_term,
    log_softmax,
    network,
    softmax,
)

# --- several models ---------------------------------------------------------------------------------------------------


def test_online_matches_float64_reference():
    kd = schemes.online(network(), network(), combine(ce=CE, kd=kl_term(3.0)), teacher_objective=CE, optimizer=SGD)

    def reference(params, held, given, _):
        x, y, own = given["image"], given["label"], params["student"]
        student, teacher = forward(own["student"], x)[0], forward(held["student"]["teacher"], x)[0]
        return ce(forward(own["teacher"], x)[0], y) + ce(student, y) + kl(teacher, student, 3.0)

    assert_steps(kd, reference)


def unstacked(params, count):
    return [jax.tree.map(lambda x, i=i: x[i], params["copies"]) for i in range(count)]


def dml(members, held, given):
    value, x = 0.0, given["image"]
    for i, peer in enumerate(members):
        z = forward(peer, x)[0]
        taught = [kl(forward(held[j], x)[0], z) for j in range(len(members)) if j != i]
        value += ce(z, given["label"]) + np.mean(taught)
    return value


def test_mutual_by_name_matches_float64_reference():
    kd = schemes.mutual({name: network() for name in "xyz"}, own=CE, mutual=kl_term(1.0), optimizer=SGD)

    def reference(params, held, given, _):
        return dml(*([tree["student"][name] for name in "xyz"] for tree in (params, held)), given)

    assert_steps(kd, reference)


@pytest.mark.slow
def test_mutual_of_copies_matches_float64_reference():
    kd = schemes.mutual(network(), peers=3, own=CE, mutual=kl_term(1.0), optimizer=SGD)

    def reference(params, held, given, _):
        return dml(unstacked(params["student"], 3), unstacked(held["student"], 3), given)

    assert_steps(kd, reference)


@pytest.mark.slow
@pytest.mark.parametrize("hold", [False, True])
def test_diverse_peers_match_float64_reference(hold):
    temperature, weight, count = 3.0, 0.7, 4
    kd = schemes.diverse_peers(
        network(),
        network(),
        peers=count,
        feature="hidden",
        own=CE,
        optimizer=SGD,
        temperature=temperature,
        hidden_size=2,
        weight=weight,
        hold=hold,
    )

    def reference(params, held, given, _):
        x, y = given["image"], given["label"]
        peers, leader = unstacked(params["student"]["peers"], count), params["student"]["leader"]
        seen = unstacked(held["student"]["peers"], count) if hold else peers
        parts = params["loss"]["parts"]
        q = np.stack([softmax(forward(peer, x)[0] / temperature) for peer in seen])
        h = [forward(peer, x)[1] for peer in seen]
        query, key = ([one @ parts[name]["kernel"] for one in h] for name in ("query", "key"))
        alpha = softmax(np.stack([[(a * b).sum(-1) for b in key] for a in query]).transpose(2, 0, 1))  # [batch, a, b]
        targets = np.einsum("nab,bnc->anc", alpha, q)

        def divergence(target, z):
            return temperature**2 * (target * (np.log(target) - log_softmax(z / temperature))).sum(-1).mean()

        value = ce(forward(leader, x)[0], y) + weight * divergence(q.mean(0), forward(leader, x)[0])
        for peer, target in zip(peers, targets, strict=True):
            z = forward(peer, x)[0]
            value += ce(z, y) + weight * divergence(target, z)
        return value

    assert_steps(kd, reference)


@pytest.mark.slow
def test_branches_match_float64_reference():
    exits = {"b": wrappers.Exit("hidden", exit_of()), "c": wrappers.Exit("hidden", exit_of())}
    kd = schemes.branches(network(), exits, feature="hidden", own=CE, taught=kl_term(3.0), optimizer=SGD)

    def branches_of(params, x):
        z, hidden = forward(params["model"], x)
        return [z, *(hidden @ params[name]["f"] @ params[name]["w"] for name in "bc")], hidden

    def gate_of(parts, hidden):
        g = hidden @ parts["kernel"]
        g = (g - g.mean(0)) / np.sqrt(g.var(0) + 1e-5) * parts["norm"]["scale"] + parts["norm"]["bias"]
        return softmax(np.maximum(g, 0))

    def reference(params, held, given, _):
        x, y = given["image"], given["label"]
        zs, hidden = branches_of(params["student"], x)
        ensemble = np.einsum("ni,inc->nc", gate_of(params["loss"]["parts"], hidden), np.stack(zs))
        old, seen = branches_of(held["student"], x)
        target = np.einsum("ni,inc->nc", gate_of(held["loss"]["parts"], seen), np.stack(old))
        return ce(ensemble, y) + sum(ce(z, y) + kl(target, z, 3.0) for z in zs)

    assert_steps(kd, reference)


def best(z, label):
    found = np.empty(z.shape[1:])
    for n, y in enumerate(label):
        found[n] = z[np.argmin([-log_softmax(one[n])[y] for one in z]), n]
    return found


def smallest(z, label):
    rows = np.arange(len(label))
    return (z - z[:, rows, label][..., None]).min(0)


def combined(z, label):
    """Solves the convex program with SciPy."""
    found = np.empty(z.shape[1:])
    for n, y in enumerate(label):
        outcome = scipy.optimize.minimize(
            lambda a, n=n, y=y: -log_softmax(a @ z[:, n])[y],
            np.full(len(z), 1 / len(z)),
            bounds=[(0, 1)] * len(z),
            constraints={"type": "eq", "fun": lambda a: a.sum() - 1},
            method="SLSQP",
            options={"ftol": 1e-14, "maxiter": 500},
        )
        found[n] = outcome.x @ z[:, n]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ensemble", "expected", "atol"),
    [
        (ensembles.best_logits, best, 1e-4),
        (ensembles.min_logits, smallest, 1e-4),
        (ensembles.combined_logits, combined, 3e-3),
    ],
    ids=["best", "min", "linear"],
)
def test_collaborative_matches_float64_reference(ensemble, expected, atol):
    names = "abcd"
    options = {"own": CE, "taught": kl_term(3.0), "optimizer": SGD, "ensemble": ensemble}
    kd = schemes.collaborative({name: network(2.0) for name in names}, **options)

    def reference(params, held, given, _):
        x, y = given["image"], given["label"]
        if held.get("given") is not x:  # the ensemble is a constant, computed once
            target = expected(np.stack([forward(held["student"][name], x)[0] for name in names]), y)
            held.update(given=x, target=target)
        zs = [forward(params["student"][name], x)[0] for name in names]
        return sum(ce(z, y) + kl(held["target"], z, 3.0) for z in zs)

    assert_steps(kd, reference, steps=1, atol=atol)


@pytest.mark.slow
def test_combined_logits_match_a_convex_solver():
    rng = np.random.default_rng(3)
    for members in (3, 5):
        z, y = 3 * rng.normal(size=(members, SIZE, CLASSES)), rng.integers(0, CLASSES, SIZE)
        solved = ce(combined(z, y), y)
        assert solved - 1e-6 <= ce(np.float64(ensembles.combined_logits(jnp.float32(z), y)), y) <= solved + 2e-3


# --- one model --------------------------------------------------------------------------------------------------------


def test_byot_matches_float64_reference():
    alpha, temperature, feature_weight = 0.3, 3.0, 0.02
    exits = {"b": wrappers.Exit("hidden", exit_of(True)), "c": wrappers.Exit("hidden", exit_of(True))}
    kd = schemes.byot(
        network(),
        exits,
        optimizer=SGD,
        feature="hidden",
        alpha=alpha,
        temperature=temperature,
        feature_weight=feature_weight,
        weight=0.6,
    )

    def reference(params, held, given, _):
        x, y, own = given["image"], given["label"], params["student"]
        z, hidden = forward(own["model"], x)
        target, deepest = forward(held["student"]["model"], x)
        value = ce(z, y)
        for name in "bc":
            feature = hidden @ own[name]["f"]
            logits = feature @ own[name]["w"]
            distance = ((feature - deepest) ** 2).sum(-1).mean()
            taught = (1 - alpha) * ce(logits, y) + alpha * kl(target, logits, temperature)
            value += 0.6 * (taught + feature_weight * distance)
        return value

    assert_steps(kd, reference)


def test_class_wise_matches_float64_reference():
    kd = schemes.class_wise(network(), optimizer=SGD)

    def reference(params, held, given, _):
        z, target = forward(params["student"], given["image"])[0], forward(held["student"], given["pair"])[0]
        return ce(z, given["label"]) + kl(target, z, 4.0)

    assert_steps(kd, reference)


def test_two_views_match_float64_reference():
    kd = schemes.distorted_views(
        network(), optimizer=SGD, feature="hidden", weight=0.4, temperature=3.0, feature_weight=0.9
    )

    def reference(params, held, given, _):
        x, v, y = given["image"], given["view"], given["label"]
        (z, h), (other, seen) = forward(params["student"], x), forward(params["student"], v)
        target, image_target = forward(held["student"], v)[0], forward(held["student"], x)[0]
        value = ce(z, y) + ce(other, y) + 0.4 * (kl(target, z, 3.0) + kl(image_target, other, 3.0))
        return value + 0.9 * ((h.mean(0) - seen.mean(0)) ** 2).sum()

    assert_steps(kd, reference)


def test_past_predictions_match_float64_reference():
    epochs, per_epoch, examples = 3, 2, 20
    past = objectives.progressive_self_kd(examples, alpha=lambda step: 0.8 * (step // per_epoch + 1) / epochs)
    kd = jaxkd.distill(network(), teachers.none(), past, optimizer=SGD)
    tables = {0: np.zeros((examples, CLASSES))}

    def epoch(step=0):
        """Two batches of an epoch, with different examples in a new order."""
        given = batch(step)
        order = np.random.default_rng(step // per_epoch).permutation(examples // 2)
        index = order + examples // 2 * (step % per_epoch)
        label = (index * 7 % CLASSES).astype(np.int32)
        return {**given, "index": index.astype(np.int32), "label": label}

    def reference(params, held, given, step):
        index, y, alpha = given["index"], given["label"], 0.8 * (step // per_epoch + 1) / epochs
        if step + 1 not in tables:
            tables[step + 1] = tables[step].copy()
            tables[step + 1][index] = softmax(forward(held["student"], given["image"])[0])
        known, one_hot = tables[step][index], np.eye(CLASSES)[y]
        seen = known.sum(-1, keepdims=True) > 0
        target = np.where(seen, (1 - alpha) * one_hot + alpha * known, one_hot)
        return -(target * log_softmax(forward(params["student"], given["image"])[0])).sum(-1).mean()

    state, _ = assert_steps(kd, reference, steps=epochs * per_epoch, batch=epoch)
    table = objectives.past_probabilities(state.objective.state)
    np.testing.assert_allclose(table, tables[epochs * per_epoch], rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(("correct", "temperature"), [(0.99, 20.0), (0.7, 3.0)])
def test_virtual_teacher_matches_float64_reference(correct, temperature):
    virtual = term(losses.virtual_teacher_kl, "student/logits", "batch/label", correct=correct, temperature=temperature)
    kd = jaxkd.distill(network(), teachers.none(), combine(ce=CE, virtual=virtual), optimizer=optax.sgd(1.0))

    def reference(params, _, given, __):
        z, y = forward(params["student"], given["image"])[0], given["label"]
        made = np.full((len(y), CLASSES), (1 - correct) / (CLASSES - 1))
        made[np.arange(len(y)), y] = correct
        return ce(z, y) + kl(np.log(made), z, temperature)

    assert_steps(kd, reference, rtol=1e-3, atol=3e-4)


def test_ema_teacher_with_a_schedule_matches_float64_reference():
    decay = jaxkd._core.moving_average.ema_warmup(0.15)
    kd = jaxkd.distill(network(), teachers.ema(network(), decay=decay), combine(ce=CE, kd=kl_term(2.0)), optimizer=SGD)
    state, step = kd.init(KEY, batch()), jax.jit(kd.step)
    average = float64(state.student.params)
    for i in range(4):
        own, given = float64(state.student.params), kept(batch(i))
        z, target = forward(own, given["image"])[0], forward(average, given["image"])[0]
        state, metrics = step(state, batch(i))
        expected = ce(z, given["label"]) + kl(target, z, 2.0)
        np.testing.assert_allclose(metrics["loss"].sum / metrics["loss"].count, expected, rtol=2e-4)
        d = min(0.15, (1 + i) / (10 + i))
        average = jax.tree.map(lambda a, b, d=d: d * a + (1 - d) * b, average, float64(state.student.params))
        assert_trees(float64(state.teacher.params), average, 1e-5, 1e-5)
