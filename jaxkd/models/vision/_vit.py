"""A vision transformer, with an optional distillation token, for small images.

========================  ========  ============  ======  =======  =====  ==========
name                      images    patches       width   layers   heads  parameters
========================  ========  ============  ======  =======  =====  ==========
``vit_micro_patch2_8``    8×8×1     16 of 2×2     48      4        3      114,778
``vit_micro_patch4_32``   32×32×3   64 of 4×4     96      6        3      691,972
``vit_tiny_patch4_32``    32×32×3   64 of 4×4     192     12       3      5,380,132
``vit_small_patch4_32``   32×32×3   64 of 4×4     384     12       6      21,376,996
========================  ========  ============  ======  =======  =====  ==========

Parameters are those with 10 classes for 8×8 and 100 classes for 32×32, without a distillation token. ``tiny`` and
``small`` have the widths, layers and heads of DeiT-Ti and DeiT-S.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from jaxkd.models._layers import check_images
from jaxkd.models._transformer_config import TransformerConfig
from jaxkd.models._transformer_parts import Tap, dropout, linear, norm
from jaxkd.models.language._layer import TransformerLayer

if TYPE_CHECKING:
    from jaxtyping import Array, Float

_SIZES: dict[str, dict[str, Any]] = {
    "vit_micro_patch2_8": {"image_size": 8, "channels": 1, "patch_size": 2, "width": 48, "layers": 4, "heads": 3},
    "vit_micro_patch4_32": {"width": 96, "layers": 6, "heads": 3},
    "vit_tiny_patch4_32": {"width": 192, "layers": 12, "heads": 3},
    "vit_small_patch4_32": {"width": 384, "layers": 12, "heads": 6},
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig:
    """Sizes and choices of a `ViT`.

    >>> ViTConfig(width=192, layers=12, heads=3, classes=100).grid
    (8, 8)

    Attributes:
      width: features of a token.
      layers: number of layers.
      heads: number of attention heads, which divides ``width``.
      image_size: height and width of the images, a multiple of ``patch_size``.
      channels: channels of the images.
      patch_size: height and width of a patch.
      classes: number of logits; None for no classifier, as for self-supervised features.
      distillation: whether there is a distillation token, with a classifier of its own.
      mlp_width: features between the two products of an MLP; by default ``4 width``.
      norm_epsilon: ε that is added to the variance.
      dropout_rate: rate of dropout after the embedding, attention and MLPs, in training mode.
      init_scale: standard deviation of the initial kernels, tokens and positions. The default is the literature's; a
        width below 100 trains faster from about ``width ** -0.5``.
      tap_attention: whether attention's scores and probabilities are computed as a whole, so that they can be tapped.
      dtype: dtype of the computation; parameters stay float32. None for that of the parameters.
    """

    width: int
    layers: int
    heads: int
    image_size: int = 32
    channels: int = 3
    patch_size: int = 4
    classes: int | None = None
    distillation: bool = False
    mlp_width: int | None = None
    norm_epsilon: float = 1e-6
    dropout_rate: float = 0.0
    init_scale: float = 0.02
    tap_attention: bool = False
    dtype: Any = None

    def __post_init__(self) -> None:
        """Raises a ValueError unless the fields fit each other."""
        for name in ("image_size", "channels", "patch_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"ViTConfig, {name}: expected at least 1, got {getattr(self, name)}.")
        if self.image_size % self.patch_size:
            raise ValueError(
                f"ViTConfig, patch_size: expected a divisor of the image_size {self.image_size}, got {self.patch_size}."
            )
        if self.distillation and self.classes is None:
            raise ValueError("ViTConfig, distillation: expected classes=, since the distillation token classifies.")
        _ = self.transformer  # checks the other sizes

    @property
    def grid(self) -> tuple[int, int]:
        """Number of patches from top to bottom and from left to right."""
        return self.image_size // self.patch_size, self.image_size // self.patch_size

    @property
    def transformer(self) -> TransformerConfig:
        """Configuration of the layers; its vocabulary is not used."""
        shared = ("width", "layers", "heads", "mlp_width", "norm_epsilon", "dropout_rate", "init_scale")
        fields = {name: getattr(self, name) for name in (*shared, "tap_attention", "dtype")}
        return TransformerConfig(vocabulary=1, **fields)


def vit_config(name: str, classes: int | None, **options: Any) -> ViTConfig:
    """Returns the configuration of a `ViT` by its name.

    Args:
      name: ``"vit_micro_patch2_8"``, ``"vit_micro_patch4_32"``, ``"vit_tiny_patch4_32"`` or ``"vit_small_patch4_32"``;
        the last number is the size of the images. Case, underscores and hyphens do not matter.
      classes: number of logits; None for no classifier.
      **options: other fields of `ViTConfig`, such as ``distillation=True``, also in place of the named sizes.

    Raises:
      ValueError: there is no such name; the message lists the names.

    >>> vit_config("ViT-Tiny-patch4-32", classes=100, distillation=True).width
    192
    """
    plain = {known.replace("_", ""): sizes for known, sizes in _SIZES.items()}
    sizes = plain.get(name.lower().replace("_", "").replace("-", ""))
    if sizes is None:
        raise ValueError(f"name: expected one of {list(_SIZES)}, got {name!r}.")
    return ViTConfig(**{**sizes, "classes": classes, **options})


class ViT(nnx.Module):
    """Vision transformer: pre-norm layers on patches, with a class token.

    Dosovitskiy et al., "An Image is Worth 16x16 Words: Transformers for Image Recognition at Scale", ICLR 2021,
    equations 1 to 4. With ``distillation``, a second token has a classifier of its own: Touvron et al., "Training
    data-efficient image transformers & distillation through attention", ICML 2021, section 4. It learns the teacher's
    labels, the class token learns the labels, and ``logits`` are the mean of both classifiers' logits.

    The outputs are

    ========================  ====================================================================================
    ``class_token``           the normalized class token ``[batch, width]``
    ``patches``               the normalized patch tokens as a map ``[batch, height, width, features]``
    ``logits``                ``[batch, classes]``, with ``classes``
    ``distillation_token``    ``[batch, width]``, with ``distillation``
    ``class_logits``          logits of the class token, with ``distillation``
    ``distillation_logits``   logits of the distillation token, with ``distillation``
    ========================  ====================================================================================

    `layer_taps` names the inputs and outputs of its layers, ``[batch, tokens, width]``: the class token, the
    distillation token, and the patches row by row.

    >>> config = vit_config("vit_micro_patch2_8", classes=10, distillation=True)
    >>> model = nnx.eval_shape(lambda: ViT(config, rngs=nnx.Rngs(0)))
    >>> out = nnx.eval_shape(lambda model: model(jnp.zeros((1, 8, 8, 1))), model)
    >>> out["logits"].shape, out["class_logits"].shape, out["patches"].shape
    ((1, 10), (1, 10), (1, 4, 4, 48))
    """

    def __init__(self, config: ViTConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the layers.

        Args:
          config: sizes and choices.
          rngs: random streams of the initial parameters (and of dropout).
        """
        self.config, shared = config, config.transformer
        prefix, (rows, columns) = 1 + config.distillation, config.grid
        init, width = shared.kernel_init(), config.width
        self.patch_embed = linear(shared, config.patch_size**2 * config.channels, width, bias=True, rngs=rngs)
        self.tokens = nnx.Param(init(rngs.params(), (prefix, width)))
        self.positions = nnx.Param(init(rngs.params(), (prefix + rows * columns, width)))
        self.dropout, self.embedded = dropout(shared, rngs=rngs), Tap()
        self.layers = nnx.List([TransformerLayer(shared, rngs=rngs) for _ in range(config.layers)])
        self.norm, self.hidden = norm(shared, width, rngs=rngs), Tap()
        if config.classes is not None:
            self.classifier = linear(shared, width, config.classes, bias=True, rngs=rngs)
        if config.distillation and config.classes is not None:
            self.distillation_classifier = linear(shared, width, config.classes, bias=True, rngs=rngs)

    def __call__(self, x: Float[Array, "batch height width channels"]) -> dict[str, Array]:
        """Returns logits and features of images.

        Args:
          x: normalized images ``[batch, height, width, channels]``.

        Returns:
          The outputs of the table.

        Raises:
          TypeError: the images are not of a floating-point dtype.
          ValueError: the images are not of the configuration's size.
        """
        config = self.config
        check_images(x)
        expected = (config.image_size, config.image_size, config.channels)
        if x.shape[1:] != expected:
            raise ValueError(f"x: expected images {list(expected)}, as its ViTConfig says, got {list(x.shape)}.")
        patches = self.patch_embed(_patches(x, config.patch_size))
        prefix, positions = self.tokens[...].astype(patches.dtype), self.positions[...].astype(patches.dtype)
        first = jnp.broadcast_to(prefix[None], (x.shape[0], *prefix.shape))
        tokens = self.embedded(self.dropout(jnp.concatenate([first, patches], axis=1) + positions[None]))
        for layer in self.layers:
            tokens = layer(tokens, None)
        tokens = self.hidden(self.norm(tokens))
        out = {
            "class_token": tokens[:, 0],
            "patches": tokens[:, len(prefix) :].reshape(x.shape[0], *config.grid, config.width),
        }
        if config.classes is not None:
            out["logits"] = self.classifier(tokens[:, 0])
        if config.distillation:
            out |= {"distillation_token": tokens[:, 1], "class_logits": out["logits"]}
            out["distillation_logits"] = self.distillation_classifier(tokens[:, 1])
            out["logits"] = (out["class_logits"] + out["distillation_logits"]) / 2
        return out


def _patches(x: Array, size: int) -> Array:
    """Returns the patches of images, row by row, ``[batch, patches, features]``.

    >>> _patches(jnp.arange(16.0).reshape(1, 4, 4, 1), 2)[0, 1]
    Array([2., 3., 6., 7.], dtype=float32)
    """
    batch, height, width, channels = x.shape
    x = x.reshape(batch, height // size, size, width // size, size, channels).transpose(0, 1, 3, 2, 4, 5)
    return x.reshape(batch, -1, size * size * channels)
