"""Environments of gymnax as functions of batches, a row for each game that is played."""

import warnings
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxkd.types import Array, PyTree


class Game(NamedTuple):
    """An environment, whose episodes follow each other in every row.

    Attributes:
      id: its name in gymnax.
      shape: shape of an observation.
      actions: number of actions.
      begin: function ``keys -> state``: of each key a new episode, with its ``observation [batch, ...]``.
      step: function ``(keys, state, action) -> (state, reward, done)`` of arrays ``[batch]``. Where an episode is done,
        the state is the first of the next one. A time limit ends an episode like any other end.
    """

    id: str
    shape: tuple[int, ...]
    actions: int
    begin: Callable[[Array], PyTree]
    step: Callable[[Array, PyTree, Array], tuple[PyTree, Array, Array]]


def make(name: str) -> Game:
    """Returns an environment of gymnax, such as ``"Breakout-MinAtar"``."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of modules that gymnax imports
        import gymnax
    environment, settings = gymnax.make(name)
    shape = tuple(environment.observation_space(settings).shape)

    def one(key: Array) -> PyTree:
        observation, state = environment.reset(key, settings)
        return {"observation": jnp.asarray(observation, jnp.float32), "game": state}

    def move(key: Array, state: PyTree, action: Array) -> tuple[PyTree, Array, Array]:
        observation, after, reward, ended, late, _ = environment.step(key, state["game"], action, settings)
        after = jax.tree.map(lambda new, old: jnp.asarray(new, jnp.asarray(old).dtype), after, state["game"])
        return {"observation": observation, "game": after}, jnp.asarray(reward, jnp.float32), ended | late

    def begin(keys: Array) -> PyTree:
        with jax.numpy_rank_promotion("allow"):  # gymnax broadcasts
            return jax.vmap(one)(keys)

    def step(keys: Array, state: PyTree, action: Array) -> tuple[PyTree, Array, Array]:
        with jax.numpy_rank_promotion("allow"):
            return jax.vmap(move)(keys, state, action)

    return Game(name, shape, int(environment.num_actions), begin, step)
