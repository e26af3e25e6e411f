"""Parts of acoustic models: subsampling, convolutions, configuration of layers."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.models._layers import grouped_convolution
from jaxkd.models._transformer_config import TransformerConfig
from jaxkd.models.speech._config import SpeechConfig

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class Subsampling(nnx.Module):
    """Convolutions over three frames with a stride of two, as products.

    A frame of the result at position k reads the frames ``2k − 1``, ``2k`` and ``2k + 1``. A convolution's kernel
    ``[3, inputs, outputs]`` is that of the product, ``[3 · inputs, outputs]``.
    """

    def __init__(self, config: SpeechConfig, *, rngs: nnx.Rngs) -> None:
        """Makes a convolution for each factor of two, and the map of the result."""
        widths = [config.bands] + [config.width] * (config.subsampling.bit_length() - 1)
        self.convolutions = nnx.List(
            [nnx.Linear(3 * width, config.width, dtype=config.dtype, rngs=rngs) for width in widths[:-1]]
        )
        self.out = nnx.Linear(widths[-1], config.width, dtype=config.dtype, rngs=rngs)

    def __call__(
        self, x: Float[Array, "batch frames bands"], mask: Bool[Array, "batch frames"]
    ) -> tuple[Float[Array, "batch subsampled width"], Bool[Array, "batch subsampled"]]:
        """Returns the inputs of the first layer, and which of them exist.

        A frame exists where the first of its input frames does.
        """
        for convolution in self.convolutions:
            x = convolution(neighbors(zero_where_masked(x, mask)))
            x, mask = jax.nn.silu(x), mask[:, ::2]
        return self.out(zero_where_masked(x, mask)), mask


def neighbors(x: Float[Array, "batch frames width"]) -> Float[Array, "batch half three_widths"]:
    """Returns every second frame, joined with the frame before and the one after.

    >>> neighbors(jnp.array([[[1.0], [2.0], [3.0]]]))
    Array([[[0., 1., 2.],
            [2., 3., 0.]]], dtype=float32)
    """
    half = (x.shape[1] + 1) // 2
    padded = jnp.pad(x, ((0, 0), (1, 1), (0, 0)))[:, : 2 * half + 1]
    return jnp.concatenate([padded[:, :-1:2], padded[:, 1::2], padded[:, 2::2]], axis=-1)


def zero_where_masked(
    x: Float[Array, "batch frames width"], mask: Bool[Array, "batch frames"]
) -> Float[Array, "batch frames width"]:
    """Returns frames that are 0 where they do not exist, as a convolution pads."""
    return jnp.where(mask[:, :, None], x, 0)


class DepthwiseConvolution(nnx.Module):
    """Convolution over frames of each feature by itself."""

    def __init__(self, width: int, kernel: int, right_context: int | None, dtype: Any, *, rngs: nnx.Rngs) -> None:
        """Makes the kernel ``[frames, 1, width]``, as of Flax's ``Conv``, and the bias."""
        self.dtype = dtype
        self.right = frames_ahead(kernel, right_context)
        bound = kernel**-0.5
        draw = jax.random.uniform(rngs.params(), (kernel, 1, width), minval=-bound, maxval=bound)
        self.kernel, self.bias = nnx.Param(draw), nnx.Param(jnp.zeros(width))

    def __call__(self, x: Float[Array, "batch frames width"]) -> Float[Array, "batch frames width"]:
        """Returns the convolution, with zeros before the first frame and behind the last."""
        kernel, bias = self.kernel[...], self.bias[...]
        dtype = jnp.result_type(x, kernel) if self.dtype is None else self.dtype
        x, kernel, bias = (part.astype(dtype) for part in (x, kernel, bias))
        padding = ((kernel.shape[0] - 1 - self.right, self.right), (0, 0))
        # Frames are the rows of an image that is one pixel wide.
        rows = grouped_convolution(
            x[:, :, None, :], kernel[:, None], (1, 1), padding, feature_group_count=kernel.shape[-1]
        )
        return rows[:, :, 0] + bias[None, None, :]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig(TransformerConfig):
    """Configuration of the parts of transformers in a layer over frames."""

    def kernel_init(self, scale: float = 1.0) -> Any:
        """Returns an initializer for products that keep the variance of their inputs."""
        return nnx.initializers.variance_scaling(scale**2, "fan_in", "truncated_normal")


def layer_config(config: SpeechConfig, **options: Any) -> LayerConfig:
    """Returns the configuration of the parts of a layer; options are its fields."""
    return LayerConfig(
        vocabulary=config.labels + 1,
        width=config.width,
        layers=config.layers,
        activation="silu",
        dropout_rate=config.dropout_rate,
        dtype=config.dtype,
        **{"heads": 1} | options,
    )


def frames_ahead(kernel: int, right_context: int | None) -> int:
    """Returns the number of frames ahead that a convolution reads.

    >>> frames_ahead(9, None), frames_ahead(9, 2), frames_ahead(9, 7)
    (4, 2, 4)
    """
    return kernel // 2 if right_context is None else min(kernel // 2, right_context)
