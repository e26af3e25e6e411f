"""Policies: multilayer perceptrons with logits and a value for each game."""

import itertools
import math
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from experiments.control.games import Game
from jaxkd import adapters
from jaxkd.types import Batch, Model, Variables


class ActorCritic(nn.Module):
    """Hidden layers that all games share, and a head for each of them.

    Observations are flattened, and padded to the same number of channels. Convolutions are left out: XLA runs their
    gradients on a CPU many times slower than dense layers.
    """

    features: tuple[int, ...]
    games: Mapping[str, tuple[tuple[int, ...], int]]  # shape of an observation and number of actions

    @nn.compact
    def __call__(self, *observations: Any) -> dict[str, Any]:
        layers = [nn.Dense(size, kernel_init=nn.initializers.he_normal()) for size in self.features]
        channels, found = max(shape[-1] for shape, _ in self.games.values()), {}
        for (game, (shape, actions)), x in zip(self.games.items(), observations, strict=True):
            x = x.astype(jnp.float32)
            x = jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, channels - shape[-1])])
            x = x.reshape(*x.shape[: x.ndim - len(shape)], -1)
            for layer in layers:
                x = nn.relu(layer(x))
            # Small first logits, so that a policy begins with all actions.
            small = nn.initializers.variance_scaling(0.01, "fan_in", "normal")
            found[f"logits_{game}"] = nn.Dense(actions, kernel_init=small, name=f"policy_{game}")(x)
            found[f"value_{game}"] = nn.Dense(1, name=f"value_{game}")(x)[..., 0]
        return found


def policy(games: Mapping[str, Game], features: tuple[int, ...]) -> Model:
    """Returns a model that reads ``observation_GAME`` and has outputs ``logits_GAME`` and ``value_GAME``."""
    sizes = {name: (game.shape, game.actions) for name, game in games.items()}
    return adapters.linen(ActorCritic(features, sizes), inputs=tuple(f"observation_{name}" for name in games))


def together(models: Mapping[str, Model]) -> Model:
    """Returns the policies of several games as one model: the teachers of a student of all of them."""

    def init(key: Any, batch: Batch) -> Variables:
        return Variables({name: model.init(key, batch).params for name, model in models.items()})

    def apply(variables: Variables, batch: Batch, *, key: Any, train: bool) -> Any:
        found: dict[str, Any] = {}
        for name, model in models.items():
            found |= model.apply(Variables(variables.params[name]), batch, key=key, train=train)[0]
        return found, {}

    return Model(init, apply)


def size(games: Mapping[str, Game], features: tuple[int, ...]) -> int:
    """Returns the number of parameters of a policy."""
    channels = max(game.shape[-1] for game in games.values())
    inputs = {math.prod(game.shape[:-1]) * channels for game in games.values()}
    if len(inputs) > 1:
        raise ValueError(f"games: expected fields of one size, got {[game.shape for game in games.values()]}.")
    widths = (*inputs, *features)
    hidden = sum((before + 1) * after for before, after in itertools.pairwise(widths))
    return hidden + sum((widths[-1] + 1) * (game.actions + 1) for game in games.values())


def features_of(games: Mapping[str, Game], budget: float) -> tuple[int, int]:
    """Returns the widths of the largest policy with two equal hidden layers and at most so many parameters."""
    width = 1
    while size(games, (width + 1, width + 1)) <= budget:
        width += 1
    return width, width
