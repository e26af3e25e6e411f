"""A multilayer perceptron whose hidden layers can be tapped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Hidden(nn.Module):
    """One hidden layer; its output, after the ReLU, is the tap.

    Attributes:
      features: its width.
      dtype: to compute in; parameters stay float32.
    """

    features: int
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch inputs"]) -> Float[Array, "batch features"]:
        """``relu(x W + b)``."""
        x = nn.Dense(self.features, dtype=self.dtype, kernel_init=nn.initializers.he_normal())(x)
        return nn.relu(x)


class MLP(nn.Module):
    """Flatten, hidden layers, logits. The taps are ``"Hidden_0"``, ``"Hidden_1"``, … ``[batch, features]``.

    Dropout comes after a tap, so what is tapped has no noise.

    >>> import jax
    >>> model = MLP(features=(32, 16), num_classes=10)
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> model.apply(variables, jnp.zeros((5, 8, 8, 1))).shape, sorted(variables["params"])
    ((5, 10), ['Dense_0', 'Hidden_0', 'Hidden_1'])

    Attributes:
      features: the width of each hidden layer; none makes a linear classifier.
      num_classes: logits.
      dropout_rate: of each hidden layer's output, when training (needs a ``"dropout"`` key).
      dtype: to compute in; parameters stay float32.
    """

    features: Sequence[int]
    num_classes: int
    dropout_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch *shape"], train: bool = False) -> Float[Array, "batch classes"]:
        """Logits.

        Args:
          x: inputs of any shape after the first axis, floating point.
          train: whether dropout acts.

        Returns:
          ``[batch, classes]``.

        Raises:
          TypeError: the input is not floating point, as an image that was not normalized.
        """
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"x: expected floating point, got {x.dtype}{list(x.shape)}. Normalize images first.")
        x = x.reshape(x.shape[0], -1)
        for features in self.features:
            x = Hidden(features, dtype=self.dtype)(x)
            x = nn.Dropout(self.dropout_rate, deterministic=not train)(x)
        return nn.Dense(self.num_classes, dtype=self.dtype)(x)
