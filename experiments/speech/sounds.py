"""Spoken digits: recordings, strings of them, and the features that every network reads."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import data
from jaxkd.data import audio
from jaxkd.types import Batch

SET = "free_spoken_digits"
RATE = 8000  # samples in a second
LONGEST = 1.0  # seconds of a recording; the few longer ones are left out
LEVEL = 0.1  # root of the mean square of every recording, as of a microphone that adjusts itself
HELD_OUT = 5  # speaker of whom no recording is trained on
WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")

DIGITS = (2, 4)  # fewest and most digits of a string
PAUSE = (0, 800)  # samples
SAMPLES = 16_000  # of a row; digits that do not fit are left out
BANDS, WINDOW, HOP = 40, 0.032, 0.02
MEAN, SCALE = -0.7, 2.0  # about those of the features
SNR, SPEED = (0.0, 20.0), (0.9, 1.1)

Arrays = Mapping[str, np.ndarray]


def read(config: Any) -> dict[str, dict[str, np.ndarray]]:
    """Returns the recordings of each split, and those of the held-out speaker; labels begin with 1, after the blank."""
    if config.data_dir is None:
        raise ValueError(f"--data-dir: expected the folder of prepared TFDS sets, with {SET}.")
    found, held_out = {}, []
    for split in ("train", "validation", "test"):
        source = data.source(SET, split, config.data_dir)
        rows = [row for row in map(source.__getitem__, range(len(source))) if len(row["audio"]) <= 2 * RATE * LONGEST]
        arrays = leveled(audio.recordings(rows, samples=int(RATE * LONGEST)))
        found[split], held = audio.hold_out(arrays | {"label": arrays["label"] + 1}, speaker=HELD_OUT)
        held_out.append(held)
    names = held_out[0].keys() - {"index"}
    return found | {"held_out": {name: np.concatenate([part[name] for part in held_out]) for name in names}}


def leveled(arrays: Arrays) -> dict[str, np.ndarray]:
    """Returns recordings of one level."""
    power = np.sum(np.square(arrays["audio"]), axis=1) / arrays["audio_length"]
    return {**arrays, "audio": arrays["audio"] * (LEVEL / np.sqrt(power + 1e-9))[:, None].astype(np.float32)}


def strings(arrays: Arrays, batch_size: int, count: int, seed: int = 0, **options: Any) -> audio.Concatenated:
    """Returns a loader of strings, each by one speaker, which are the same in every epoch."""
    sizes: dict[str, Any] = {"parts": DIGITS, "pause": PAUSE, "samples": SAMPLES}
    return audio.Concatenated(
        arrays, batch_size, seed, strings=count, together="speaker", fresh=False, **sizes, **options
    )


def features(batch: Batch) -> dict[str, Any]:
    """Returns a batch with features in place of its samples."""
    options: dict[str, Any] = {"bands": BANDS, "window": WINDOW, "hop": HOP, "min_frequency": 60.0, "floor": 1e-5}
    found = audio.log_mel(batch["audio"], batch["audio_length"], sample_rate=RATE, **options)
    normalized = jnp.where(found.mask[..., None], (found.features - MEAN) / SCALE, 0)
    others = {name: value for name, value in batch.items() if name not in ("audio", "audio_length")}
    return {**others, "features": normalized, "frame_mask": found.mask}


def heard(batch: Batch, seed: int) -> dict[str, Any]:
    """Returns a batch of features, of strings that are played faster or slower and with noise."""
    return features(audio.add_noise(audio.change_speed(batch, seed=seed, speed=SPEED), seed=seed, snr=SNR))


def noisy(batch: Batch) -> dict[str, Any]:
    """Returns a batch of features, of strings with noise that is always the same."""
    return features(audio.add_noise(batch, seed=1, snr=SNR))


def in_memory(loader: audio.Concatenated, prepare: Callable[[Batch], dict[str, Any]] = noisy) -> dict[str, np.ndarray]:
    """Returns the features and transcripts of all strings of a loader that does not shuffle."""
    batches, prepared = loader.batches(), jax.jit(prepare)
    found = [jax.device_get(prepared(next(batches))) for _ in range(loader.steps_per_epoch)]
    whole = {name: np.concatenate([part[name] for part in found]) for name in found[0] if name not in ("epoch", "mask")}
    return {name: value[: loader.num_examples] for name, value in whole.items()}


def words(labels: Sequence[int] | np.ndarray, mask: np.ndarray) -> str:
    """Returns a transcript as text.

    >>> words(np.array([4, 2, 0]), np.array([True, True, False]))
    'three one'
    """
    return " ".join(WORDS[label - 1] for label in np.asarray(labels)[mask])
