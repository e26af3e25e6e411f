"""Small networks with BatchNorm, dropout, sown values and a layer that is called twice, in linen and in nnx."""

import flax.linen as nn
import jax.numpy as jnp
from flax import nnx


class Block(nn.Module):
    features: int
    fast: bool = True

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(self.features, (1, 1), name="conv")(x)
        x = nn.BatchNorm(use_running_average=not train, momentum=0.5, use_fast_variance=self.fast, name="norm")(x)
        self.sow("intermediates", "before", x)
        return nn.relu(x)


class Net(nn.Module):
    """A block ``stem`` and a layer ``head``; the BatchNorm gets its flag by the constructor."""

    fast: bool = True

    @nn.compact
    def __call__(self, x, *, train):
        x = Block(3, self.fast, name="stem")(x, train)
        return nn.Dense(2, name="head")(x.mean(axis=(1, 2)))


class ByCall(nn.Module):
    """The same layers; the BatchNorm gets its flag by the call."""

    fast: bool = True

    @nn.compact
    def __call__(self, x, use_running_average):
        x = nn.Conv(3, (1, 1), name="conv")(x)
        norm = nn.BatchNorm(momentum=0.5, use_fast_variance=self.fast, name="norm")
        x = nn.relu(norm(x, use_running_average=use_running_average))
        return nn.Dense(2, name="head")(x.mean(axis=(1, 2)))


class Twice(nn.Module):
    @nn.compact
    def __call__(self, x):
        layer = nn.Dense(x.shape[-1], name="shared")
        return layer(nn.relu(layer(x)))


class Dropped(nn.Module):
    @nn.compact
    def __call__(self, x, deterministic):
        return nn.Dropout(0.5, deterministic=deterministic)(x)


class NnxBlock(nnx.Module):
    def __init__(self, rngs, fast=True):
        self.conv = nnx.Conv(2, 3, (1, 1), rngs=rngs)
        self.norm = nnx.BatchNorm(3, momentum=0.5, use_fast_variance=fast, rngs=rngs)

    def __call__(self, x):
        return nnx.relu(self.norm(self.conv(x)))


class NnxNet(nnx.Module):
    def __init__(self, rngs, fast=True):
        self.blocks = nnx.List([NnxBlock(rngs, fast)])
        self.head = nnx.Linear(3, 2, rngs=rngs)

    def __call__(self, x):
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(axis=(1, 2)))


class NnxDropped(nnx.Module):
    def __init__(self, rngs):
        self.dropout = nnx.Dropout(0.5, rngs=rngs)

    def __call__(self, x):
        return self.dropout(x)


class NnxTwice(nnx.Module):
    def __init__(self, rngs):
        self.shared = nnx.Linear(3, 3, rngs=rngs)

    def __call__(self, x):
        return self.shared(jnp.tanh(self.shared(x)))
