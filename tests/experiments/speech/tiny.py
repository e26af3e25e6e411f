"""Made-up recordings, a tone for each digit, and sizes that compile fast."""

import types

import numpy as np

from experiments.speech import recognizers, sounds
from jaxkd import data

CONFIG = types.SimpleNamespace(data_dir="data", pretrained="models", steps=600)
SIZES = {"LONGEST": 0.05, "SAMPLES": 1600, "PAUSE": (0, 40), "BANDS": 8, "WINDOW": 0.016}


def recording(generator, label):
    samples = np.arange(generator.integers(200, 400))
    tone = np.sin(2 * np.pi * (200 + 300 * label) * samples / sounds.RATE)
    wave = 0.3 * tone + 0.01 * generator.normal(size=len(samples))
    return (wave * 32767).astype("<i2").tobytes()


def source(name, split, data_dir):
    generator = np.random.default_rng(["train", "validation", "test"].index(split))
    rows = [(label, speaker) for label in range(10) for speaker in range(6) for _ in range(2)]
    return [
        {"audio": recording(generator, label), "audio/filename": b"x", "label": label, "speaker": speaker, "take": 0}
        for label, speaker in rows
    ]


def use(monkeypatch, module, **constants):
    """Puts made-up recordings in the place of prepared sets, and small sizes in the place of a task's."""
    monkeypatch.setattr(data, "source", source)
    for name, value in SIZES.items():
        monkeypatch.setattr(sounds, name, value)
    for name, value in constants.items():
        monkeypatch.setattr(module, name, value)
    for name, value in {"BATCH": 4, "EVAL_BATCH": 6}.items():
        monkeypatch.setattr(recognizers, name, value)
        if hasattr(module, name):
            monkeypatch.setattr(module, name, value)
