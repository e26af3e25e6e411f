"""ResNet-50 for images of 224 pixels.

He et al., "Deep Residual Learning for Image Recognition", 2016, with the stride in the 3×3 convolution. The zoo of
`jaxkd.models` has the form for small images only, without the 7×7 stem and the pooling.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import flax.linen as nn
import jax.numpy as jnp


class ResNet50(nn.Module):
    """ResNet of bottleneck blocks: 25.6 million parameters with 1000 classes.

    Attributes:
      classes: number of logits.
      blocks: blocks of each stage.
      width: channels of the stem.
      dtype: dtype of the computation.
    """

    classes: int = 1000
    blocks: tuple[int, ...] = (3, 4, 6, 3)
    width: int = 64
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> Any:
        """Returns logits of normalized images ``[batch, height, width, channels]``."""
        conv = partial(nn.Conv, use_bias=False, dtype=self.dtype)
        norm = partial(nn.BatchNorm, use_running_average=not train, momentum=0.9, epsilon=1e-5, dtype=self.dtype)
        x = nn.relu(norm()(conv(self.width, (7, 7), (2, 2), padding=[(3, 3), (3, 3)])(x)))
        x = nn.max_pool(x, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
        for stage, blocks in enumerate(self.blocks):
            for block in range(blocks):
                features, stride = self.width * 2**stage, 2 if stage and not block else 1
                y = nn.relu(norm()(conv(features, (1, 1))(x)))
                y = nn.relu(norm()(conv(features, (3, 3), (stride, stride), padding=[(1, 1), (1, 1)])(y)))
                y = norm(scale_init=nn.initializers.zeros_init())(conv(4 * features, (1, 1))(y))
                if x.shape != y.shape:
                    x = norm()(conv(4 * features, (1, 1), (stride, stride))(x))
                x = nn.relu(x + y)
        return nn.Dense(self.classes, dtype=self.dtype)(jnp.mean(x, axis=(1, 2)))
