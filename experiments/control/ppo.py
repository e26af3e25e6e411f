"""Proximal policy optimization (PPO) as an objective: what a sampler returns, and the terms of the loss.

Schulman et al., "Proximal Policy Optimization Algorithms", 2017, equations 7 and 9, with advantages of Schulman et al.,
"High-Dimensional Continuous Control Using Generalized Advantage Estimation", ICLR 2016, equation 16.
"""

from collections.abc import Iterable

import jax
import jax.numpy as jnp
import optax

import jaxkd
from experiments.control import acting
from jaxkd.types import Array, Model, Objective, PyTree, Variables

DISCOUNT, TRACE, CLIP, VALUE = 0.97, 0.95, 0.2, 0.5
ENTROPY = (
    0.1,
    0.01,
)  # weight of the entropy at the beginning and at the end; with less of it, policies stop to explore


def advantages(
    reward: Array, value: Array, done: Array, last: Array, *, discount: float = DISCOUNT, trace: float = TRACE
) -> Array:
    """Returns generalized advantage estimates of trajectories.

    ``A_t = δ_t + γλ (1 − d_t) A_{t+1}`` with ``δ_t = r_t + γ (1 − d_t) V_{t+1} − V_t``.

    Args:
      reward: ``[batch, steps]``.
      value: values of the states ``[batch, steps]``.
      done: whether an episode ended with the step ``[batch, steps]``.
      last: values of the states after the last step ``[batch]``.
      discount: γ.
      trace: λ.
    """

    def back(carry: tuple[Array, Array], step: tuple[Array, ...]) -> tuple[tuple[Array, Array], Array]:
        (later, following), (r, v, going) = carry, step
        advantage = r + discount * going * following - v + discount * trace * going * later
        return (advantage, v), advantage

    steps = tuple(jnp.moveaxis(x, 1, 0) for x in (reward, value, 1.0 - done))
    _, found = jax.lax.scan(back, (jnp.zeros_like(last), last), steps, reverse=True)
    return jnp.moveaxis(found, 0, 1)


def entries(
    games: acting.Games, model: Model, variables: Variables, states: PyTree, keys: Array, steps: int
) -> tuple[dict[str, Array], PyTree]:
    """Returns trajectories with what the loss needs, and the states after them."""
    found, after = acting.trajectory(games, model, variables, states, keys, steps)
    last = acting.outputs_of(model, variables, after)
    made: dict[str, Array] = {}
    for name in games:
        action, value = found[f"action_{name}"], found[f"value_{name}"]
        advantage = advantages(found[f"reward_{name}"], value, found[f"done_{name}"], last[f"value_{name}"])
        made |= {
            f"observation_{name}": found[f"observation_{name}"],
            f"action_{name}": action,
            f"log_probability_{name}": log_probability(found[f"logits_{name}"], action),
            f"advantage_{name}": advantage,
            f"target_{name}": advantage + value,
        }
    return made, after


def log_probability(logits: Array, action: Array) -> Array:
    return jnp.take_along_axis(jax.nn.log_softmax(logits), action[..., None], axis=-1)[..., 0]


def clipped_policy(
    logits: Array, action: Array, before: Array, advantage: Array, *, clip: float = CLIP, axis_name: str | None = None
) -> Array:
    """Returns the clipped policy loss of each step; advantages are standardized over the whole batch."""
    moments = jnp.stack([advantage.mean(), (advantage**2).mean()])
    if axis_name is not None:
        moments = jax.lax.pmean(moments, axis_name)
    advantage = (advantage - moments[0]) / (jnp.sqrt(jnp.maximum(moments[1] - moments[0] ** 2, 0.0)) + 1e-8)
    ratio = jnp.exp(log_probability(logits, action) - before)
    return -jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def value_error(value: Array, target: Array) -> Array:
    return 0.5 * (value - target) ** 2


def negative_entropy(logits: Array) -> Array:
    log_p = jax.nn.log_softmax(logits)
    return jnp.sum(jnp.exp(log_p) * log_p, axis=-1)


def terms(games: Iterable[str], steps: int) -> dict[str, Objective]:
    """Returns the three terms of every game, which read the entries of `entries`, for a training of so many steps."""
    entropy, found = optax.linear_schedule(*ENTROPY, steps), {}
    for name in games:
        logits = f"student/logits_{name}"
        read = [f"batch/{part}_{name}" for part in ("action", "log_probability", "advantage")]
        found[f"policy_{name}"] = jaxkd.term(clipped_policy, logits, *read)
        found[f"values_{name}"] = jaxkd.term(value_error, f"student/value_{name}", f"batch/target_{name}", weight=VALUE)
        found[f"entropy_{name}"] = jaxkd.term(negative_entropy, logits, weight=entropy)
    return found
