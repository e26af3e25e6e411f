"""Trajectories of a policy, and whole episodes, with all games of a task at once."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from experiments.control.games import Game
from jaxkd.types import Array, Model, Outputs, PyTree, Variables

Games = Mapping[str, Game]


def begin(games: Games) -> Callable[[Array], PyTree]:
    """Returns the function ``keys -> states`` that begins an episode of every game in every row."""

    def states(keys: Array) -> PyTree:
        own = {name: jax.vmap(lambda key, i=i: jax.random.fold_in(key, i))(keys) for i, name in enumerate(games)}
        return {name: game.begin(own[name]) for name, game in games.items()}

    return states


def observed(states: PyTree) -> dict[str, Array]:
    """Returns the entries of a batch that a policy reads."""
    return {f"observation_{name}": state["observation"] for name, state in states.items()}


def outputs_of(model: Model, variables: Variables, states: PyTree) -> Outputs:
    return model.apply(variables, observed(states), key=None, train=False)[0]


def moved(
    games: Games, states: PyTree, outputs: Outputs, keys: Array, greedy: bool = False
) -> tuple[PyTree, dict[str, Array]]:
    """Returns the states after an action in every game, and what happened ``[batch]``."""
    after: dict[str, PyTree] = {}
    found: dict[str, Array] = {}
    for number, (name, game) in enumerate(games.items()):
        own = jax.vmap(lambda key, i=number: jax.random.split(jax.random.fold_in(key, i)))(keys)
        logits = outputs[f"logits_{name}"]
        action = jnp.argmax(logits, axis=-1) if greedy else jax.vmap(jax.random.categorical)(own[:, 0], logits)
        after[name], reward, done = game.step(own[:, 1], states[name], action)
        found |= {f"action_{name}": action, f"reward_{name}": reward, f"done_{name}": done}
    return after, found


def trajectory(
    games: Games, model: Model, variables: Variables, states: PyTree, keys: Array, steps: int
) -> tuple[dict[str, Array], PyTree]:
    """Returns some steps in every row as entries ``[batch, steps, ...]``, and the states after them."""

    def one(states: PyTree, number: Array) -> tuple[PyTree, dict[str, Array]]:
        outputs = outputs_of(model, variables, states)
        own = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        after, found = moved(games, states, outputs, own)
        return after, {**observed(states), **outputs, **found}

    after, found = jax.lax.scan(one, states, jnp.arange(steps))
    return {name: jnp.moveaxis(x, 0, 1) for name, x in found.items()}, after


def episodes(
    games: Games,
    model: Model,
    variables: Variables,
    keys: Array,
    *,
    other: tuple[Model, Variables] | None = None,
    greedy: bool = False,
    limit: int = 1000,
) -> dict[str, Array]:
    """Plays an episode of every game in every row.

    Args:
      games: the games by name.
      model: the policy.
      variables: its variables.
      keys: a key for each row.
      other: a second policy, whose likeliest action is compared in every state.
      greedy: whether the likeliest action is taken, instead of one that is drawn.
      limit: largest number of steps.

    Returns:
      By the names of the games, ``return_GAME``, ``length_GAME`` and ``agreed_GAME``, the number of steps in which both
      policies have the same likeliest action, each ``[batch]``.
    """
    zeros = jnp.zeros(len(keys))
    first = {f"{part}_{name}": zeros for name in games for part in ("return", "length", "agreed")}
    playing = {name: jnp.ones(len(keys), bool) for name in games}

    def unfinished(carry: Any) -> Array:
        number, _, playing, _ = carry
        return (number < limit) & jnp.any(jnp.stack(list(playing.values())))

    def one(carry: Any) -> Any:
        number, states, playing, sums = carry
        outputs = outputs_of(model, variables, states)
        second = outputs if other is None else outputs_of(*other, states)
        own = jax.vmap(lambda key: jax.random.fold_in(key, number))(keys)
        after, found = moved(games, states, outputs, own, greedy)
        sums, still = dict(sums), {}
        for name, alive in playing.items():
            same = jnp.argmax(outputs[f"logits_{name}"], -1) == jnp.argmax(second[f"logits_{name}"], -1)
            counted = {"return": found[f"reward_{name}"], "length": jnp.ones_like(same), "agreed": same}
            for part, value in counted.items():
                sums[f"{part}_{name}"] += jnp.where(alive, value, 0)
            still[name] = alive & ~found[f"done_{name}"]
        return number + 1, after, still, sums

    at_first = jax.vmap(lambda key: jax.random.fold_in(key, limit))(keys)
    carry = (jnp.int32(0), strong(begin(games)(at_first)), playing, first)
    found: dict[str, Array] = jax.lax.while_loop(unfinished, one, carry)[3]
    return found


def strong(tree: PyTree) -> PyTree:
    """Returns a tree of arrays whose types do not change in a loop."""
    return jax.tree.map(lambda x: jax.lax.convert_element_type(x, jnp.asarray(x).dtype), tree)
