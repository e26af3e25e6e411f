"""Augmentation of recordings on the device, random by example."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp

from jaxkd.data._transforms import example_keys
from jaxkd.types import Batch


def add_noise(batch: Batch, *, seed: Any, snr: tuple[float, float] = (5.0, 30.0), view: int = 0) -> dict[str, Any]:
    """Adds white noise of a random level to each recording.

    The ratio of the recording's mean power to that of the noise is uniform in decibels; the padding stays 0.

    Args:
      batch: batch with ``audio`` ``[batch, samples]``, ``audio_length``, ``index`` and ``epoch`` ``[batch]``.
      seed: seed of the run, an integer; it may be traced.
      snr: lowest and highest signal-to-noise ratio, in dB.
      view: number of the draw, where an example is drawn several times in an epoch.

    Returns:
      The batch with a new ``audio``, a function of the seed and the example's ``epoch`` and ``index``. It is not
      limited to the range from -1 to 1.

    Raises:
      ValueError: the batch lacks an entry, or the ratios are not in order.

    >>> batch = {"audio": jnp.ones((1, 4)), "audio_length": jnp.array([3])}
    >>> noisy = add_noise({**batch, "index": jnp.array([5]), "epoch": jnp.array([0])}, seed=0)
    >>> bool((noisy["audio"] != 1).all()), float(noisy["audio"][0, 3])
    (True, 0.0)
    """
    audio, inside = _audio("add_noise", batch)
    if not snr[0] <= snr[1]:
        raise ValueError(f"add_noise, snr: expected the lowest and the highest ratio in dB, got {snr}.")

    def draw(key: Any) -> tuple[Any, Any]:
        level, noise = jax.random.split(key)
        ratio = jax.random.uniform(level, (), jnp.float32, *map(float, snr)) if snr[0] < snr[1] else jnp.float32(snr[0])
        return ratio, jax.random.normal(noise, audio.shape[1:], jnp.float32)

    ratio, noise = jax.vmap(draw)(example_keys(batch, seed=seed, view=view))
    signal = jnp.where(inside, audio, 0)
    power = jnp.sum(signal**2, axis=1) / jnp.maximum(jnp.sum(inside, axis=1), 1)
    scale = jnp.sqrt(power * 10 ** (-ratio / 10))
    return {**batch, "audio": jnp.where(inside, audio + scale[:, None] * noise, 0)}


def change_speed(batch: Batch, *, seed: Any, speed: tuple[float, float] = (0.9, 1.1), view: int = 0) -> dict[str, Any]:
    """Plays each recording faster or slower, by a random factor.

    Sample i of the result is the recording at ``factor · i``, between two samples by linear interpolation, so that the
    pitch changes too (Ko et al., "Audio Augmentation for Speech Recognition", Interspeech 2015). The factor is uniform.

    Args:
      batch: batch with ``audio`` ``[batch, samples]``, ``audio_length``, ``index`` and ``epoch`` ``[batch]``.
      seed: seed of the run, an integer; it may be traced.
      speed: lowest and highest factor.
      view: number of the draw, where an example is drawn several times in an epoch.

    Returns:
      The batch with a new ``audio`` and ``audio_length``, functions of the seed and the example's ``epoch`` and
      ``index``. Rows have ``ceil(samples / lowest factor)`` samples, so that every recording fits.

    Raises:
      ValueError: the batch lacks an entry, or the factors are not positive and in order.

    >>> batch = {"audio": jnp.arange(8.0)[None], "audio_length": jnp.array([7])}
    >>> fast = change_speed({**batch, "index": jnp.array([0]), "epoch": jnp.array([0])}, seed=0, speed=(1.5, 1.5))
    >>> fast["audio"].tolist(), fast["audio_length"].tolist()
    ([[0.0, 1.5, 3.0, 4.5, 6.0, 0.0]], [5])
    """
    audio, inside = _audio("change_speed", batch)
    if not 0 < speed[0] <= speed[1]:
        raise ValueError(f"change_speed, speed: expected the lowest and the highest factor above 0, got {speed}.")

    def draw(key: Any) -> Any:
        return jax.random.uniform(jax.random.fold_in(key, 1), (), jnp.float32, *map(float, speed))

    keys = example_keys(batch, seed=seed, view=view)
    factor = jax.vmap(draw)(keys) if speed[0] < speed[1] else jnp.full(len(keys), speed[0], jnp.float32)
    last = jnp.sum(inside, axis=1) - 1
    samples = math.ceil(audio.shape[1] / speed[0])
    place = jnp.arange(samples, dtype=jnp.float32)[None] * factor[:, None]
    before = jnp.minimum(place.astype(jnp.int32), last[:, None])
    after = jnp.minimum(before + 1, last[:, None])
    share = place - before.astype(jnp.float32)
    first, second = (jnp.take_along_axis(audio, rows, axis=1, mode="clip") for rows in (before, after))
    kept = place <= last[:, None].astype(jnp.float32)
    mixed = (1 - share) * first + share * second
    return {**batch, "audio": jnp.where(kept, mixed, 0), "audio_length": jnp.sum(kept, axis=1, dtype=jnp.int32)}


def _audio(name: str, batch: Batch) -> tuple[Any, Any]:
    """Returns the recordings of a batch, and which of their samples are no padding."""
    missing = [key for key in ("audio", "audio_length") if key not in batch]
    if missing:
        raise ValueError(
            f"{name}, batch: expected recordings and their lengths, got no {missing}, only {sorted(batch)}."
        )
    audio = jnp.asarray(batch["audio"])
    if audio.ndim != 2 or not jnp.issubdtype(audio.dtype, jnp.floating):
        raise ValueError(
            f"{name}, audio: expected floating-point samples [batch, samples], got {audio.dtype}{list(audio.shape)}."
        )
    return audio, jnp.arange(audio.shape[1])[None] < jnp.asarray(batch["audio_length"])[:, None]
