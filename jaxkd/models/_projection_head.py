"""The projection head of self-supervised networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import flax.linen as nn
import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    from jaxtyping import Array, Float


class ProjectionHead(nn.Module):
    """Perceptron, unit-length bottleneck and unit-length prototypes.

    Also known as: DINO head.

    ``z_k = ⟨w_k / ‖w_k‖, h / ‖h‖⟩`` for each prototype k, with h the output of a perceptron with GELU: Caron et al.,
    "Emerging Properties in Self-Supervised Vision Transformers", ICCV 2021, section 3.1 and appendix C, where the
    lengths of the prototypes are fixed to 1. `jaxkd.wrappers.with_exits` puts it on a model's feature. Freezing the
    prototypes, the parameter ``prototypes``, in the first epoch helps large networks: ``optax.masked`` with
    ``optax.scale_by_schedule``.

    >>> head = ProjectionHead(prototypes=16, hidden_features=8, bottleneck=4)
    >>> outputs, variables = head.init_with_output(jax.random.key(0), jnp.ones((2, 5)))
    >>> outputs.shape, variables["params"]["prototypes"].shape
    ((2, 16), (4, 16))

    Attributes:
      prototypes: number of outputs; 65,536 in the paper.
      hidden_features: width of the hidden layers.
      bottleneck: number of features of h.
      layers: number of layers up to h.
      dtype: dtype of the computation; parameters stay float32.
    """

    prototypes: int
    hidden_features: int = 2048
    bottleneck: int = 256
    layers: int = 3
    dtype: Any = None

    @nn.compact
    def __call__(self, x: Float[Array, "batch features"], train: bool = False) -> Float[Array, "batch prototypes"]:
        """Returns cosines of features ``[batch, features]`` and prototypes."""
        del train
        small = nn.initializers.truncated_normal(0.02)
        for _ in range(self.layers - 1):
            x = nn.gelu(nn.Dense(self.hidden_features, dtype=self.dtype, kernel_init=small)(x), approximate=False)
        x = nn.Dense(self.bottleneck, dtype=self.dtype, kernel_init=small)(x)
        prototypes = self.param(
            "prototypes", nn.initializers.lecun_normal(), (self.bottleneck, self.prototypes), jnp.float32
        )
        return _unit(x, -1) @ _unit(prototypes, 0).astype(x.dtype)


def _unit(x: Array, axis: int) -> Array:
    """Divides by the length, in float32 or better; zeros stay zeros."""
    wide = x.astype(jnp.promote_types(x.dtype, jnp.float32))
    square = jnp.maximum(jnp.sum(wide * wide, axis=axis, keepdims=True), 1e-24)
    return (wide * jax.lax.rsqrt(square)).astype(x.dtype)
