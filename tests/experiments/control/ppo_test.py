"""Proximal policy optimization: advantages and losses against their formulas in NumPy."""

import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.control import ppo
from tests.references.base import log_softmax


def reference(reward, value, done, last, discount, trace):
    """Returns Σ_k (γλ)^k δ_{t+k}, up to the end of the episode or of the trajectory."""
    found = np.zeros_like(reward)
    following = np.concatenate([value[:, 1:], last[:, None]], axis=1)
    delta = reward + discount * following * ~done - value
    for row in range(reward.shape[0]):
        for t in range(reward.shape[1]):
            for k in range(reward.shape[1] - t):
                found[row, t] += (discount * trace) ** k * delta[row, t + k]
                if done[row, t + k]:
                    break
    return found


def test_advantages_are_those_of_the_formula():
    rng = np.random.default_rng(0)
    reward, value = rng.normal(size=(2, 3, 7))
    done, last = rng.random((3, 7)) < 0.3, rng.normal(size=3)
    assert done.any() and not done.all(axis=1).any()
    for discount, trace in ((0.99, 0.95), (0.9, 0.5), (1.0, 0.0)):
        found = ppo.advantages(*map(jnp.asarray, (reward, value, done, last)), discount=discount, trace=trace)
        np.testing.assert_allclose(found, reference(reward, value, done, last, discount, trace), rtol=1e-4, atol=1e-5)


def test_the_policy_loss_is_clipped():
    logits = np.log([[0.5, 0.5], [0.5, 0.5], [0.5, 0.5], [0.5, 0.5]])
    before = np.log([0.25, 0.25, 1.0, 1.0])  # ratios 2 and 1/2
    advantage = np.array([1.0, -1.0, 1.0, -1.0])  # mean 0, variance 1
    found = ppo.clipped_policy(*map(jnp.asarray, (logits, np.zeros(4, int), before, advantage)))
    np.testing.assert_allclose(found, [-1.2, 2.0, -0.5, 0.8], rtol=1e-5)
    scaled = ppo.clipped_policy(*map(jnp.asarray, (logits, np.zeros(4, int), before, 5 * advantage + 3)))
    np.testing.assert_allclose(scaled, found, rtol=1e-5)  # advantages are standardized


def test_value_and_entropy():
    np.testing.assert_allclose(ppo.value_error(jnp.array([3.0]), jnp.array([1.0])), [2.0])
    logits = np.random.default_rng(0).normal(size=(2, 3, 4))
    log_p = log_softmax(logits)
    np.testing.assert_allclose(ppo.negative_entropy(jnp.asarray(logits)), (np.exp(log_p) * log_p).sum(-1), rtol=1e-5)


def test_terms_are_an_objective_of_each_game():
    terms = ppo.terms(("a", "b"), 10)
    assert sorted(terms) == [f"{part}_{name}" for part in ("entropy", "policy", "values") for name in ("a", "b")]
    rng = np.random.default_rng(1)
    batch = {f"{part}_a": jnp.asarray(rng.normal(size=(2, 3))) for part in ("log_probability", "advantage", "target")}
    batch |= {"action_a": jnp.asarray(rng.integers(0, 2, (2, 3)))}
    student = {"logits_a": jnp.asarray(rng.normal(size=(2, 3, 2))), "value_a": jnp.asarray(rng.normal(size=(2, 3)))}
    context = jaxkd.Context(student, {}, batch, 5)
    total = sum(terms[f"{part}_a"].apply({}, {}, context, None).value for part in ("entropy", "policy", "values"))
    loss = ppo.clipped_policy(
        student["logits_a"], *(batch[f"{p}_a"] for p in ("action", "log_probability", "advantage"))
    )
    loss += 0.5 * ppo.value_error(student["value_a"], batch["target_a"])
    loss += 0.055 * ppo.negative_entropy(student["logits_a"])
    np.testing.assert_allclose(total, loss.mean(), rtol=1e-5)
