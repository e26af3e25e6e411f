"""A recurrent acoustic model, in one or both directions."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.models._transformer_parts import dropout
from jaxkd.models.speech._config import SpeechConfig
from jaxkd.models.speech._model import SpeechModel

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcousticLSTMConfig(SpeechConfig):
    """Sizes and choices of an `AcousticLSTM`.

    Attributes:
      bidirectional: whether half of a layer's features are those of an LSTM that reads the frames backwards; further
        fields are those of `SpeechConfig`.
    """

    bidirectional: bool = True

    def __post_init__(self) -> None:
        """Raises a ValueError unless the fields fit each other."""
        super().__post_init__()
        if self.bidirectional and self.width % 2:
            raise ValueError(
                f"AcousticLSTMConfig, width: expected an even number for two directions, got {self.width}."
            )

    @property
    def context(self) -> int | None:
        """Subsampled frames ahead that the layers together read: none, or all."""
        return None if self.bidirectional else 0


class AcousticLSTM(SpeechModel):
    """LSTM layers on subsampled frames, in one or both directions.

    Graves, Fernández, Gomez & Schmidhuber, "Connectionist Temporal Classification", ICML 2006, section 5.2, and for
    several layers Graves, Mohamed & Hinton, "Speech Recognition with Deep Recurrent Neural Networks", ICASSP 2013. With
    one direction the model can be used while someone speaks: `AcousticLSTMConfig.look_ahead` is finite.

    >>> config = AcousticLSTMConfig(bands=8, labels=10, width=12, layers=2)
    >>> out = nnx.eval_shape(lambda: AcousticLSTM(config, rngs=nnx.Rngs(0))(jnp.zeros((1, 9, 8))))
    >>> {name: out[name].shape for name in ("logits", "mask", "hidden", "pooled")}
    {'logits': (1, 3, 11), 'mask': (1, 3), 'hidden': (1, 3, 12), 'pooled': (1, 12)}
    """

    def __init__(self, config: AcousticLSTMConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the layers.

        Args:
          config: sizes and choices.
          rngs: random streams of the initial parameters (and of dropout).
        """
        super().__init__(config, rngs=rngs)
        self.layers = nnx.List([LSTMLayer(config, rngs=rngs) for _ in range(config.layers)])

    def encode(
        self, x: Float[Array, "batch frames width"], mask: Bool[Array, "batch frames"]
    ) -> Float[Array, "batch frames width"]:
        """Returns the states of the last layer."""
        for layer in self.layers:
            x = layer(x, mask)
        return x


class LSTMLayer(nnx.Module):
    """One LSTM, or two that read the frames in opposite directions."""

    def __init__(self, config: AcousticLSTMConfig, *, rngs: nnx.Rngs) -> None:
        """Makes a cell for each direction."""
        size = config.width // 2 if config.bidirectional else config.width
        self.forward = DirectedLSTM(config.width, size, config.dtype, rngs=rngs)
        self.backward = DirectedLSTM(config.width, size, config.dtype, rngs=rngs) if config.bidirectional else None
        self.dropout = dropout(config, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch frames width"], mask: Bool[Array, "batch frames"]
    ) -> Float[Array, "batch frames width"]:
        """Returns the states, forward ones first."""
        states = self.forward(x, mask)
        if self.backward is not None:
            states = jnp.concatenate([states, self.backward(x, mask, reverse=True)], axis=-1)
        return self.dropout(states)


class DirectedLSTM(nnx.Module):
    """LSTM over frames, whose masked frames leave the state unchanged.

    The parameters are those of `flax.nnx.OptimizedLSTMCell`, with the gates in the order of PyTorch: its
    ``weight_ih_l0`` and ``weight_hh_l0`` are the transposed kernels of ``cell/dense_i`` and ``cell/dense_h``, and its
    two biases sum to that of ``cell/dense_h``. Here the inputs' product is one for all frames, before the scan.
    """

    def __init__(self, inputs: int, size: int, dtype: Any, *, rngs: nnx.Rngs) -> None:
        """Makes the cell."""
        self.cell = nnx.OptimizedLSTMCell(inputs, size, dtype=dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch frames width"], mask: Bool[Array, "batch frames"], *, reverse: bool = False
    ) -> Float[Array, "batch frames size"]:
        """Returns the state after each frame, or before each frame in reverse."""
        inputs = self.cell.dense_i(x)
        bias = self.cell.dense_h.bias
        assert bias is not None
        inputs = inputs + bias[...].astype(inputs.dtype)[None, None, :]
        kernel = self.cell.dense_h.kernel[...].astype(inputs.dtype)
        wide = jnp.promote_types(inputs.dtype, jnp.float32)

        def step(carry: tuple[Array, Array], now: tuple[Array, Array]) -> tuple[tuple[Array, Array], Array]:
            memory, state = carry
            gates, exists = now
            entering, kept, new, shown = jnp.split((gates + state @ kernel).astype(wide), 4, axis=-1)
            sigmoid = jax.nn.sigmoid
            after = sigmoid(kept) * memory + sigmoid(entering) * jnp.tanh(new)
            output = (sigmoid(shown) * jnp.tanh(after)).astype(state.dtype)
            memory, state = jnp.where(exists, after, memory), jnp.where(exists, output, state)
            return (memory, state), state

        # Zeros that vary over the devices of shard_map like the inputs, since a scan's carry keeps its type.
        start = jnp.zeros_like(inputs[:, 0, : kernel.shape[0]])
        frames = jnp.swapaxes(inputs, 0, 1), mask.T[:, :, None]
        _, states = jax.lax.scan(step, (start.astype(wide), start), frames, reverse=reverse)
        return jnp.swapaxes(states, 0, 1)
