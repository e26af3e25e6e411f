"""Small linen networks for the tests of schemes."""

import flax.linen as nn
import jax.numpy as jnp

from tests import tiny


class Convolutional(nn.Module):
    """Two convolutions, a mean, a dense layer; with BatchNorm if `norm`."""

    channels: int = 4
    norm: bool = False

    @nn.compact
    def __call__(self, x, train: bool = False):
        for _ in range(2):
            x = nn.Conv(self.channels, (3, 3))(x)
            if self.norm:
                x = nn.BatchNorm(use_running_average=not train, momentum=0.9)(x)
            x = jnp.tanh(x)
        return nn.Dense(tiny.CLASSES)(x.mean(axis=(1, 2)))
