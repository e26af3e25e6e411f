"""A convolutional acoustic model."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from flax import nnx

from jaxkd.models._transformer_parts import MLP, dropout, norm
from jaxkd.models.speech._config import SpeechConfig, check_context, check_kernel
from jaxkd.models.speech._model import SpeechModel
from jaxkd.models.speech._parts import DepthwiseConvolution, frames_ahead, layer_config, zero_where_masked

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


@dataclasses.dataclass(frozen=True, kw_only=True)
class AcousticCNNConfig(SpeechConfig):
    """Sizes and choices of an `AcousticCNN`.

    Attributes:
      kernel: subsampled frames of a convolution, an odd number.
      right_context: how many of them a layer reads ahead, at most; None for half of the kernel. The rest of the kernel
        lies before.
      mlp_width: features between the two products of a layer; by default ``4 width``. Further fields are those of
        `SpeechConfig`.
    """

    kernel: int = 9
    right_context: int | None = None
    mlp_width: int | None = None

    def __post_init__(self) -> None:
        """Raises a ValueError unless the fields fit each other."""
        super().__post_init__()
        check_kernel(self, self.kernel)
        check_context(self, "right_context")

    @property
    def context(self) -> int:
        """Subsampled frames ahead that the layers together read."""
        return self.layers * frames_ahead(self.kernel, self.right_context)


class AcousticCNN(SpeechModel):
    """Residual layers of convolutions over frames, on subsampled frames.

    A layer is ``x + mlp(norm(depthwise(x)))``: a convolution of each feature by itself, and two products with an
    activation between them. It is the block of Liu et al., "A ConvNet for the 2020s", CVPR 2022, figure 4, over frames,
    as time-channel separable convolutions are for speech (Kriman et al., "QuartzNet", ICASSP 2020).

    >>> import jax.numpy as jnp
    >>> config = AcousticCNNConfig(bands=8, labels=10, width=12, layers=2, kernel=5, right_context=1)
    >>> out = nnx.eval_shape(lambda: AcousticCNN(config, rngs=nnx.Rngs(0))(jnp.zeros((1, 9, 8))))
    >>> out["logits"].shape, config.look_ahead
    ((1, 3, 11), 11)
    """

    def __init__(self, config: AcousticCNNConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the layers.

        Args:
          config: sizes and choices.
          rngs: random streams of the initial parameters (and of dropout).
        """
        super().__init__(config, rngs=rngs)
        self.layers = nnx.List([CNNLayer(config, rngs=rngs) for _ in range(config.layers)])
        self.final_norm = norm(layer_config(config), config.width, rngs=rngs)

    def encode(
        self, x: Float[Array, "batch frames width"], mask: Bool[Array, "batch frames"]
    ) -> Float[Array, "batch frames width"]:
        """Returns the normalized output of the last layer."""
        for layer in self.layers:
            x = layer(x, mask)
        return self.final_norm(x)


class CNNLayer(nnx.Module):
    """A depthwise convolution and an MLP, with a norm and a residual connection."""

    def __init__(self, config: AcousticCNNConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the parts."""
        parts = layer_config(config, mlp_width=config.mlp_width)
        self.depthwise = DepthwiseConvolution(
            config.width, config.kernel, config.right_context, config.dtype, rngs=rngs
        )
        self.norm, self.mlp = norm(parts, config.width, rngs=rngs), MLP(parts, rngs=rngs)
        self.dropout = dropout(parts, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch frames width"], mask: Bool[Array, "batch frames"]
    ) -> Float[Array, "batch frames width"]:
        """Returns the new hidden states."""
        return x + self.dropout(self.mlp(self.norm(self.depthwise(zero_where_masked(x, mask)))))
