"""A small generator of images from noise, after DCGAN."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class Generator(nn.Module):
    """Generator that repeatedly doubles and convolves a map computed from noise.

    The network of Chen et al., "Data-Free Learning of Student Networks", ICCV 2019, which is that of Radford, Metz &
    Chintala, "Unsupervised Representation Learning with DCGANs", 2016, with nearest-neighbor upsampling instead of
    transposed convolutions. Its last layer is a BatchNorm without scale and bias, so that each channel of a batch of
    images has mean 0 and variance 1, like normalized real images. The authors' intermediate BatchNorms have an ε of
    0.8, probably meant as the momentum (PyTorch's second argument is ε); here it is the usual 1e-5.

    >>> import jax
    >>> generator = Generator((8, 8), 1, features=(16, 8))
    >>> variables = generator.init(jax.random.key(0), jnp.zeros((2, 5)))
    >>> generator.apply(variables, jnp.zeros((2, 5)))["image"].shape
    (2, 8, 8, 1)

    Attributes:
      size: height and width of an image, divisible by 2 to the number of doublings.
      channels: channels of an image.
      features: channels of the first map and of the map after each doubling; by default those published for CIFAR.
      dtype: dtype of the computation; parameters stay float32.
    """

    size: tuple[int, int]
    channels: int
    features: Sequence[int] = (128, 128, 64)
    dtype: Any = None

    @nn.compact
    def __call__(
        self, noise: Float[Array, "batch size"], train: bool = False
    ) -> dict[str, Float[Array, "batch height width channels"]]:
        """Returns ``{"image": [batch, height, width, channels]}`` from noise.

        The noise is floating point. With ``train``, BatchNorm uses the batch's statistics and updates the running ones.

        Raises:
          ValueError: the noise does not have two axes, or the size is not divisible.
        """
        doublings = len(self.features) - 1
        factor = 2 ** max(doublings, 0)
        if noise.ndim != 2:
            raise ValueError(f"Generator, noise: expected [batch, size], got {noise.dtype}{list(noise.shape)}.")
        if not self.features or any(side % factor for side in self.size):
            raise ValueError(
                f"Generator: {len(self.features)} features double a map {doublings} times, which cannot give "
                f"{list(self.size)}: expected at least one feature, and a size divisible by {factor}."
            )

        def norm(**options: Any) -> nn.BatchNorm:
            return nn.BatchNorm(not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype, **options)

        height, width = (side // factor for side in self.size)
        x = nn.Dense(height * width * self.features[0], dtype=self.dtype)(noise)
        x = norm()(x.reshape(-1, height, width, self.features[0]))
        for features in self.features[1:]:
            x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
            x = norm()(nn.Conv(features, (3, 3), dtype=self.dtype)(x))
            x = nn.leaky_relu(x, 0.2)
        x = nn.tanh(nn.Conv(self.channels, (3, 3), dtype=self.dtype)(x))
        return {"image": norm(use_bias=False, use_scale=False)(x)}
