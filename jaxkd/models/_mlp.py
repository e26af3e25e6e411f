"""A multilayer perceptron whose hidden layers can be tapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Hidden(nn.Module):
    """Hidden layer, whose output after the ReLU is a tap."""

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch features"]:
        """Computes ``relu(x W + b)``."""
        return nn.relu(nn.Dense(self.features, dtype=self.dtype, kernel_init=nn.initializers.he_normal())(x))


class MLP(nn.Module):
    """Multilayer perceptron on flattened inputs.

    The taps are ``"Hidden_0"``, ``"Hidden_1"``, … ``[batch, features]``. Dropout follows a tap, so that taps have no
    noise.

    >>> import jax
    >>> model = MLP(features=(32, 16), num_classes=10)
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> model.apply(variables, jnp.zeros((5, 8, 8, 1))).shape, sorted(variables["params"])
    ((5, 10), ['Dense_0', 'Hidden_0', 'Hidden_1'])

    Attributes:
      features: width of each hidden layer; without any, the model is a linear classifier.
      num_classes: number of logits.
      dropout_rate: rate of dropout after each hidden layer, in training mode (needs a ``"dropout"`` key).
      dtype: dtype of the computation; parameters stay float32.
    """

    features: Sequence[int]
    num_classes: int
    dropout_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch *shape"], train: bool = False) -> Float[Array, "batch classes"]:
        """Returns logits of inputs ``[batch, ...]``; ``train`` activates dropout.

        Raises:
          TypeError: the input is not floating point, like an image that was not normalized.
        """
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"x: expected floating point, got {x.dtype}{list(x.shape)}. Normalize images first.")
        x = x.reshape(x.shape[0], -1)
        for features in self.features:
            x = Hidden(features, dtype=self.dtype)(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)
