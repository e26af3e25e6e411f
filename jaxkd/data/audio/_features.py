"""Features of recordings, computed on the device."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import jax.numpy as jnp
import numpy as np

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Float, Int


class LogMel(NamedTuple):
    """Features of recordings, and which of them exist.

    Attributes:
      features: float32 ``[batch, frames, bands]``, 0 in frames that do not exist.
      mask: bool ``[batch, frames]``, False for frames that begin after the recording's end.
    """

    features: Float[Array, "batch frames bands"]
    mask: Bool[Array, "batch frames"]


def log_mel(
    audio: Float[Array, "batch samples"],
    audio_length: Int[Array, " batch"] | None = None,
    *,
    sample_rate: int,
    bands: int = 40,
    window: float = 0.025,
    hop: float = 0.01,
    min_frequency: float = 20.0,
    max_frequency: float | None = None,
    floor: float = 1e-7,
) -> LogMel:
    """Computes the logarithm of the energies of mel bands, frame by frame.

    Frame t holds the samples from ``t·hop`` on, times the periodic window of Hann; a frame begins at each hop within
    the recording, and the samples after its end are zeros, whatever the array holds. The power ``|DFT|²``, of as many
    points as the next power of two, is summed with triangular filters of height 1 whose corners are evenly spaced in
    ``mel(f) = 2595 log10(1 + f / 700)`` (O'Shaughnessy 1987, as in HTK). ``log max(energy, floor)`` is the natural
    logarithm. A pure function without state, for `jaxkd.distillers.preprocess`, the ``inputs=`` of a model, or the
    ``preprocess=`` of `jaxkd.weights.save_program`. A frame looks ``window`` ahead from its beginning.

    Args:
      audio: samples from -1 to 1 ``[batch, samples]``.
      audio_length: number of samples of each recording without its padding ``[batch]``; by default, all.
      sample_rate: samples in a second.
      bands: number of mel bands.
      window: length of a frame in seconds.
      hop: seconds from the beginning of a frame to that of the next.
      min_frequency: lowest corner of the first band, in Hz.
      max_frequency: highest corner of the last band, in Hz; half of the sample rate by default.
      floor: smallest energy, which silence has.

    Returns:
      `LogMel`: features and their mask, with ``ceil(samples / hop)`` frames. Those of a recording do not depend on its
      padding.

    Raises:
      ValueError: the recordings are not floating point ``[batch, samples]``, a size is not positive, the frequencies
        are no range below half of the sample rate, or a band is so narrow that it lies between two points of the DFT.

    >>> tone = jnp.sin(2 * jnp.pi * 1000 * jnp.arange(800) / 8000)[None]
    >>> found = log_mel(tone, jnp.array([400]), sample_rate=8000, bands=20)
    >>> found.features.shape, found.mask.sum().item(), found.features[0, 1].argmax().item()
    ((1, 10, 20), 5, 9)
    """
    audio = jnp.asarray(audio)
    if audio.ndim != 2 or not audio.shape[1] or not jnp.issubdtype(audio.dtype, jnp.floating):
        raise ValueError(
            f"log_mel, audio: expected floating-point samples [batch, samples], got {audio.dtype}{list(audio.shape)}."
        )
    size, step = (round(seconds * sample_rate) for seconds in (window, hop))
    if min(size, step, bands) < 1 or floor <= 0:
        raise ValueError(
            f"log_mel: expected a window and a hop of at least one sample, at least one band and a positive floor, got "
            f"{size}, {step}, {bands}, {floor}."
        )
    points = 1 << (size - 1).bit_length()
    filters = _filters(bands, points, sample_rate, min_frequency, max_frequency)
    if audio_length is not None:
        audio_length = jnp.asarray(audio_length)
        if audio_length.shape != audio.shape[:1]:
            raise ValueError(
                f"log_mel, audio_length: expected one number for each of the {audio.shape[0]} recordings, got "
                f"{list(audio_length.shape)}."
            )
        audio = jnp.where(jnp.arange(audio.shape[1])[None] < audio_length[:, None], audio, 0)
    frames = -(-audio.shape[1] // step)
    missing = max(0, (frames - 1) * step + size - audio.shape[1])
    padded = jnp.pad(audio.astype(jnp.float32), ((0, 0), (0, missing)))
    starts = np.arange(frames)[:, None] * step
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(size) / size)
    framed = padded[:, starts + np.arange(size)[None]] * jnp.asarray(hann, jnp.float32)[None, None]
    spectrum = jnp.fft.rfft(framed, points)
    energies = (spectrum.real**2 + spectrum.imag**2) @ jnp.asarray(filters, jnp.float32)
    features = jnp.log(jnp.maximum(energies, floor))
    begins = jnp.arange(frames, dtype=jnp.int32)[None] * step
    mask = begins < (audio.shape[1] if audio_length is None else audio_length[:, None])
    mask = jnp.broadcast_to(mask, features.shape[:2])
    return LogMel(jnp.where(mask[..., None], features, 0), mask)


def _filters(bands: int, points: int, sample_rate: int, lowest: float, highest: float | None) -> np.ndarray:
    """Returns the triangular filters ``[points // 2 + 1, bands]``."""
    highest = sample_rate / 2 if highest is None else highest
    if not 0 <= lowest < highest <= sample_rate / 2:
        raise ValueError(
            f"log_mel: expected frequencies 0 <= min_frequency < max_frequency <= {sample_rate / 2:g} Hz, half of the "
            f"sample rate, got {lowest:g} and {highest:g}."
        )
    low, high = (2595 * np.log10(1 + edge / 700) for edge in (lowest, highest))
    corners = 700 * (10 ** (np.linspace(low, high, bands + 2) / 2595) - 1)
    frequencies = np.arange(points // 2 + 1)[:, None] * sample_rate / points
    left, center, right = corners[:-2], corners[1:-1], corners[2:]
    rising, falling = (frequencies - left) / (center - left), (right - frequencies) / (right - center)
    found: np.ndarray[Any, Any] = np.maximum(0, np.minimum(rising, falling))
    if (empty := ~found.any(axis=0)).any():
        raise ValueError(
            f"log_mel, bands: {int(empty.sum())} of {bands} bands contain no point of the DFT, which are "
            f"{sample_rate / points:g} Hz apart. Use fewer bands, a longer window, or a higher min_frequency."
        )
    return found
