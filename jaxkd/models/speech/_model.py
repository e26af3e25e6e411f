"""The parts of all acoustic models: front end, head, embedding of the utterance."""

from __future__ import annotations

import abc
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
from flax import nnx

from jaxkd.models._transformer_parts import Tap, dropout, mean_over_tokens
from jaxkd.models.speech._config import SpeechConfig
from jaxkd.models.speech._parts import Subsampling

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float


class SpeechModel(nnx.Module):
    """Acoustic model, whose layers a subclass defines.

    The parameters are in ``subsample``, ``layers``, ``head`` and the optional ``classifier``. `speech_taps` names what
    can be tapped.
    """

    def __init__(self, config: SpeechConfig, *, rngs: nnx.Rngs) -> None:
        """Makes the front end and the heads.

        Args:
          config: sizes and choices.
          rngs: random streams of the initial parameters (and of dropout).
        """
        self.config = config
        self.subsample = Subsampling(config, rngs=rngs)
        self.front_dropout, self.hidden = dropout(config, rngs=rngs), Tap()
        self.head = nnx.Linear(config.width, config.labels + 1, dtype=config.dtype, rngs=rngs)
        if config.classes is not None:
            self.classifier = nnx.Linear(config.width, config.classes, dtype=config.dtype, rngs=rngs)

    @abc.abstractmethod
    def encode(
        self, x: Float[Array, "batch frames width"], mask: Bool[Array, "batch frames"]
    ) -> Float[Array, "batch frames width"]:
        """Returns the input of the head, from subsampled frames and their mask."""

    def __call__(
        self, features: Float[Array, "batch frames bands"], mask: Bool[Array, "batch frames"] | None = None
    ) -> dict[str, Any]:
        """Returns the outputs by name.

        Args:
          features: frames of each utterance, such as a log-mel spectrogram, normalized.
          mask: True for frames that exist, which come first, one after another. Padding has no effect.

        Returns:
          ``logits`` ``[batch, ⌈frames / subsampling⌉, labels + 1]``, of which class 0 is the blank; ``mask`` of these
          frames, which have no meaning where it is False; ``hidden`` ``[batch, frames, width]``, the input of the
          head; ``pooled`` ``[batch, width]``, its mean over the unmasked frames; and ``class_logits`` ``[batch,
          classes]`` of it with a classifier.

        Raises:
          TypeError: the features are not floating point.
          ValueError: shapes do not fit.
        """
        check_features(features, mask, self.config.bands)
        exists = jnp.ones(features.shape[:2], bool) if mask is None else mask
        x, exists = self.subsample(features, exists)
        hidden = self.hidden(self.encode(self.front_dropout(x), exists))
        pooled = mean_over_tokens(hidden, exists)
        out = {"logits": self.head(hidden), "mask": exists, "hidden": hidden, "pooled": pooled}
        return out if self.config.classes is None else out | {"class_logits": self.classifier(pooled)}


def check_features(features: Any, mask: Any, bands: int) -> None:
    """Raises unless features and mask are those of an acoustic model.

    >>> check_features(jnp.zeros((2, 5, 40)), None, 80)
    Traceback (most recent call last):
    ValueError: features: expected [batch, frames, 80] with at least one frame, got float32[2, 5, 40].
    """
    got = f"{features.dtype}{list(features.shape)}"
    if features.ndim != 3 or features.shape[1] < 1 or features.shape[2] != bands:
        raise ValueError(f"features: expected [batch, frames, {bands}] with at least one frame, got {got}.")
    if not jnp.issubdtype(features.dtype, jnp.floating):
        raise TypeError(f"features: expected floating point, got {got}. A waveform is first to become a spectrogram.")
    if mask is not None and (mask.shape != features.shape[:2] or mask.dtype != bool):
        raise ValueError(f"mask: expected bool{list(features.shape[:2])}, got {mask.dtype}{list(mask.shape)}.")
