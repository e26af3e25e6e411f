"""Made-up clips: a bright box that moves over noise."""

import types

import jax
import numpy as np

from experiments.video import frames, online
from jaxkd import data

CONFIG = types.SimpleNamespace(data_dir="data", dataset=None, steps=9)
HEIGHT, WIDTH, CLIPS, LENGTH = 32, 48, 3, 4


def row(generator, clip, number):
    image = generator.integers(0, 90, (HEIGHT, WIDTH, 3)).astype(np.uint8)
    left, top = 4 + 3 * number + clip, 6 + clip
    image[top : top + 16, left : left + 10] += 160
    box = np.array([[top / HEIGHT, left / WIDTH, (top + 16) / HEIGHT, (left + 10) / WIDTH]], np.float32)
    return {"image": image, "objects": {"bbox": box, "label": np.array([clip % 2])}, "clip": clip, "frame": number}


def source(name, split, data_dir):
    if split == "validation":
        raise ValueError("no split 'validation'")
    generator = np.random.default_rng(["train", "test"].index(split))
    rows = [row(generator, clip, number) for clip in range(CLIPS) for number in range(LENGTH)]
    return [rows[i] for i in generator.permutation(len(rows))]


def opened(monkeypatch, folder, **constants):
    """Opens the task on made-up clips, with small detectors that are not trained."""
    monkeypatch.setattr(data, "source", source)
    small = {"STUDENT": ((2, 2, 2), 2), "TEACHER": ((2, 3, 3), 3), "LEARN_FRAMES": 8, "WINDOW": 3, "LSTM_STEPS": 2}
    for name, value in {**small, "THRESHOLD": 0.0, "UPDATES": 1, "SHOWN": 2, **constants}.items():
        monkeypatch.setattr(online, name, value)
    monkeypatch.setattr(frames, "trained", drawn)
    monkeypatch.setattr(frames, "LEAST_SCORE", 0.0)
    return online.Online(CONFIG, folder)


def drawn(path, frames, model, arrays, *, steps, seed):
    batch = frames.normalize({"image": arrays["image"][:1]})
    return jax.jit(model.init)(jax.random.key(seed + 5), batch)
