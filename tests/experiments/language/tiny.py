"""Made-up sets and a small encoder in place of MiniLM."""

import types

import jax
import numpy as np
import pytest
from flax import nnx

from experiments.kit.tasks import minilm
from jaxkd import data, models
from jaxkd.data import text
from jaxkd.types import Variables

CONFIG = types.SimpleNamespace(data_dir="data", pretrained="models", steps=4)
WORDS = ["a", "plane", "is", "taking", "off", "man", "plays", "flute", "good", "bad"]
FIELDS = {"width": 8, "layers": 6, "heads": 2, "mlp_width": 16, "max_length": 64, "types": 0}


def sentence(generator):
    return " ".join(generator.choice(WORDS, generator.integers(2, 6)))


@pytest.fixture
def encoder(monkeypatch):
    """Puts a small encoder with random weights in the place of MiniLM."""
    tokenizer = text.WordTokenizer(WORDS, ("cls", "sep", "pad"))
    fields = FIELDS | {"vocabulary": tokenizer.vocabulary}
    module = models.Encoder(models.EncoderConfig(**fields), rngs=nnx.Rngs(0))
    variables = Variables(nnx.to_pure_dict(nnx.state(module, nnx.Param)))
    monkeypatch.setattr(minilm, "folder", lambda config: "MiniLM")
    monkeypatch.setattr(minilm, "load", lambda place: (fields, variables, tokenizer))
    return fields, variables, tokenizer


def sources(monkeypatch, rows):
    """Puts ``rows(name, generator)``, 40 of them a split, in the place of prepared sets."""

    def source(name, split, data_dir):
        generator = np.random.default_rng(["train", "validation", "test"].index(split))
        return [rows(name, generator) for _ in range(40)]

    monkeypatch.setattr(data, "source", source)


def traced(training):
    """Returns the shapes of the state after a step."""
    batch = next(iter(training.inputs.batches()))
    state = jax.eval_shape(training.kd.init, jax.random.key(0), batch)
    return jax.eval_shape(training.kd.step, state, batch)


def trained(training, steps=1):
    """Returns the state after some steps, and the last loss."""
    batches = iter(training.inputs.batches())
    state = training.kd.init(jax.random.key(0), next(batches))
    step = jax.jit(training.kd.step)
    for _ in range(steps):
        state, found = step(state, next(batches))
    return state, float(found["loss"].sum / found["loss"].count)
