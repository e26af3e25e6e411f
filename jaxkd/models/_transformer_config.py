"""Fields that encoders and decoders share, with checks of their sizes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
from flax import nnx

ACTIVATIONS: dict[str, Callable[[Any], Any]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_tanh": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
    "silu": jax.nn.silu,
}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig:
    """Sizes and choices of a transformer.

    Attributes:
      vocabulary: number of words.
      width: features of a hidden state.
      layers: number of layers.
      heads: number of query heads.
      key_value_heads: number of heads of keys and values, which divides ``heads``; by default as many.
      head_dim: features of a head; by default ``width / heads``.
      mlp_width: features between the two products of an MLP; by default ``4 width``.
      max_length: number of learned positions; rotary positions have no limit.
      norm: ``"layer"`` (LayerNorm), ``"rms"`` (RMSNorm) or ``"scale"`` (a scale and a bias alone, MobileBERT's NoNorm).
      norm_epsilon: ε that is added to the variance.
      pre_norm: whether each part of a layer normalizes its input (GPT-2, Llama) or the sum after it (BERT).
      activation: one of ``"gelu"`` (exact), ``"gelu_tanh"``, ``"relu"`` and ``"silu"``.
      mlp_blocks: number of MLPs of a layer, each with its norm and its residual connection.
      gated: whether the MLP is ``down(activation(gate(x)) · up(x))`` instead of ``down(activation(up(x)))``.
      rope_base: base θ of rotary positions; None for learned positions.
      rope_interleaved: whether rotary positions turn neighboring features (the paper, Meta's Llama) instead of those
        half a head apart (Hugging Face's Llama).
      attention_bias: whether queries, keys and values have a bias.
      out_bias: whether attention's output has one; by default as ``attention_bias``.
      mlp_bias: whether the products of the MLP have one.
      dropout_rate: rate of dropout after the embeddings, attention and MLPs, in training mode.
      init_scale: standard deviation of the initial kernels and embeddings.
      tap_attention: whether attention's scores and probabilities are computed as a whole, so that they can be tapped.
      dtype: dtype of the computation; parameters stay float32. None for that of the parameters.
    """

    vocabulary: int
    width: int
    layers: int
    heads: int
    key_value_heads: int | None = None
    head_dim: int | None = None
    mlp_width: int | None = None
    mlp_blocks: int = 1
    max_length: int = 2048
    norm: str = "layer"
    norm_epsilon: float = 1e-5
    pre_norm: bool = True
    activation: str = "gelu"
    gated: bool = False
    rope_base: float | None = None
    rope_interleaved: bool = False
    attention_bias: bool = True
    out_bias: bool | None = None
    mlp_bias: bool = True
    dropout_rate: float = 0.0
    init_scale: float = 0.02
    tap_attention: bool = False
    dtype: Any = None

    def __post_init__(self) -> None:
        """Raises a ValueError unless the fields fit each other."""
        sizes = ("vocabulary", "width", "layers", "heads", "kv_heads", "head_features", "mlp_features", "mlp_blocks")
        for name in sizes:
            if getattr(self, name) < 1:
                raise ValueError(f"{type(self).__name__}, {name}: expected at least 1, got {getattr(self, name)}.")
        if self.head_dim is None and self.width % self.heads:
            raise ValueError(
                f"{type(self).__name__}, heads: expected a divisor of the width {self.width}, got {self.heads}. Give "
                "head_dim= for heads of another size."
            )
        if self.heads % self.kv_heads:
            raise ValueError(
                f"{type(self).__name__}, key_value_heads: expected a divisor of the {self.heads} heads, got "
                f"{self.key_value_heads}."
            )
        for name, known in (("norm", ["layer", "rms", "scale"]), ("activation", list(ACTIVATIONS))):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{type(self).__name__}, {name}: expected one of {known}, got {getattr(self, name)!r}."
                )
        if self.rope_base is not None and self.head_features % 2:
            raise ValueError(
                f"{type(self).__name__}, head_dim: expected an even number, since rotary positions turn pairs of "
                f"features, got {self.head_features}."
            )

    @property
    def kv_heads(self) -> int:
        """Number of heads of keys and values."""
        return self.heads if self.key_value_heads is None else self.key_value_heads

    @property
    def head_features(self) -> int:
        """Features of a head."""
        return self.width // self.heads if self.head_dim is None else self.head_dim

    @property
    def mlp_features(self) -> int:
        """Features between the two products of an MLP."""
        return 4 * self.width if self.mlp_width is None else self.mlp_width

    @property
    def residual_scale(self) -> float:
        """Factor of the initial kernels whose products are added to the residual stream.

        ``1 / √(2 layers)``: Radford et al., "Language Models are Unsupervised Multitask Learners", 2019, section 2.3.
        """
        return float((2 * self.layers) ** -0.5) if self.pre_norm else 1.0

    def kernel_init(self, scale: float = 1.0) -> Any:
        """Returns the initializer of a kernel or embedding."""
        return nnx.initializers.normal(self.init_scale * scale)
