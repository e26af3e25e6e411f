"""Fields that the acoustic models share, with checks of their sizes."""

from __future__ import annotations

import abc
import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class SpeechConfig(abc.ABC):
    """Sizes and choices that all acoustic models have.

    Attributes:
      bands: features of an input frame, such as the bands of a log-mel spectrogram.
      labels: number of labels, without the blank, which is class 0: labels are 1, 2, …
      width: features of a hidden state.
      layers: number of layers.
      subsampling: input frames of an output frame, a power of two.
      classes: number of logits of a classifier of the whole utterance; None for no classifier.
      dropout_rate: rate of dropout, in training mode.
      dtype: dtype of the computation; parameters stay float32. None for that of the parameters.
    """

    bands: int
    labels: int
    width: int
    layers: int
    subsampling: int = 4
    classes: int | None = None
    dropout_rate: float = 0.0
    dtype: Any = None

    def __post_init__(self) -> None:
        """Raises a ValueError unless the fields fit each other."""
        for name in ("bands", "labels", "width", "layers", "classes"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{type(self).__name__}, {name}: expected at least 1, got {value}.")
        if self.subsampling < 1 or self.subsampling & (self.subsampling - 1):
            raise ValueError(
                f"{type(self).__name__}, subsampling: expected a power of two, such as 1, 2 or 4, got "
                f"{self.subsampling}."
            )

    @property
    @abc.abstractmethod
    def context(self) -> int | None:
        """Subsampled frames ahead that the layers together read; None for all."""

    @property
    def look_ahead(self) -> int | None:
        """Input frames ahead that an output reads; None for the whole utterance.

        Output frame k reads no input frame behind ``subsampling · k + look_ahead``, so that a recognizer may write it
        as soon as that one is there.
        """
        context = self.context
        return None if context is None else self.subsampling * (context + 1) - 1


def check_context(config: SpeechConfig, *names: str) -> None:
    """Raises unless the named fields are None or numbers of frames."""
    for name in names:
        value = getattr(config, name)
        if value is not None and value < 0:
            raise ValueError(
                f"{type(config).__name__}, {name}: expected a number of frames, or None without a limit, got {value}."
            )


def check_kernel(config: SpeechConfig, kernel: int) -> None:
    """Raises unless a kernel has a middle."""
    if kernel < 1 or kernel % 2 == 0:
        raise ValueError(f"{type(config).__name__}, kernel: expected an odd number of frames, got {kernel}.")
