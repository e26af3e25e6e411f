"""A recurrent classifier of sequences, or of images read row by row.

=============  ==========================  =====================
tap            path                        shape
=============  ==========================  =====================
``hidden``     path of the last `nn.RNN`   ``[batch, steps, f]``
``pooled``     ``LastState_0``             ``[batch, f]``
=============  ==========================  =====================
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

from jaxkd.models._layers import classifier

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class LastState(nn.Module):
    """Hidden state after the last unmasked step, as a module that can be tapped."""

    @nn.compact
    def __call__(
        self, hidden: Float[Array, "batch steps features"], mask: Bool[Array, "batch steps"] | None = None
    ) -> Float[Array, "batch features"]:
        """Returns the states ``[batch, features]``; zeros for a fully masked sequence."""
        if mask is None:
            return hidden[:, -1]
        last = hidden.shape[1] - 1 - jnp.argmax(mask[:, ::-1], axis=1)
        state = jnp.take_along_axis(hidden, last[:, None, None], axis=1)[:, 0]
        return jnp.where(jnp.any(mask, axis=1)[:, None], state, 0)


class LSTM(nn.Module):
    """LSTM layers (Hochreiter & Schmidhuber, 1997) and a classifier of the last state.

    For distillation between recurrent and convolutional networks, and for sequences such as those of
    `jaxkd.data.strokes`.

    >>> import jax
    >>> model = LSTM(features=(16, 12), num_classes=10)
    >>> variables = model.init(jax.random.key(0), jnp.zeros((1, 8, 8, 1)))
    >>> model.apply(variables, jnp.zeros((5, 8, 8, 1))).shape, sorted(taps(model).items())
    ((5, 10), [('hidden', 'RNN_1'), ('pooled', 'LastState_0')])

    Attributes:
      features: width of each layer.
      num_classes: number of logits.
      dropout_rate: rate of dropout after each layer, in training mode (needs a ``"dropout"`` key).
      dtype: dtype of the computation; parameters stay float32.
    """

    features: Sequence[int] = (128,)
    num_classes: int = 10
    dropout_rate: float = 0.0
    dtype: Any = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "batch *shape"], mask: Bool[Array, "batch steps"] | None = None, train: bool = False
    ) -> Float[Array, "batch classes"]:
        """Returns logits ``[batch, classes]``.

        Args:
          x: sequences ``[batch, steps, features]``, or images ``[batch, height, width, channels]``, which are read row
            by row from the top.
          mask: True for valid steps, which come first; later steps have no effect. With an adapter:
            ``linen(LSTM(...), inputs=("strokes", "strokes_mask"))``.
          train: whether dropout is active.

        Raises:
          TypeError: the input is not floating point, like an image that was not normalized.
          ValueError: the input is neither a sequence nor an image, or the mask has another shape.
        """
        if not jnp.issubdtype(x.dtype, jnp.floating):
            raise TypeError(f"x: expected floating point, got {x.dtype}{list(x.shape)}. Normalize images first.")
        if x.ndim not in (3, 4):
            raise ValueError(
                f"x: expected [batch, steps, features] or [batch, height, width, channels], got {x.dtype}"
                f"{list(x.shape)}."
            )
        sequence: Any = x.reshape(*x.shape[:2], -1)
        if mask is not None and (mask.shape != x.shape[:2] or mask.dtype != bool):
            raise ValueError(f"mask: expected bool{list(x.shape[:2])}, got {mask.dtype}{list(mask.shape)}.")
        if self.dtype is not None:
            sequence = sequence.astype(self.dtype)
        for features in self.features:
            cell = nn.OptimizedLSTMCell(features, dtype=self.dtype)
            # Under shard_map, zeros must vary over the devices like x, since a scan's carry keeps its type.
            start = jnp.zeros((x.shape[0], features), sequence.dtype) + jnp.zeros_like(sequence[:, 0, :1])
            sequence = nn.RNN(cell)(sequence, initial_carry=(start, start))
            sequence = nn.Dropout(self.dropout_rate, deterministic=not train)(sequence)
        return classifier(self.num_classes, self.features[-1], self.dtype)(LastState()(sequence, mask))


def taps(model: LSTM) -> dict[str, str]:
    """Returns the path of each tapped submodule, by the name of its tap.

    >>> taps(LSTM(features=(16,)))["hidden"]
    'RNN_0'
    """
    return {"hidden": f"RNN_{len(model.features) - 1}", "pooled": "LastState_0"}
