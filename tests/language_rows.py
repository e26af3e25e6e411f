"""Rows of the conformance table for objectives of language models, on tokens made from the tiny models' maps."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import Objective, combine, objectives
from tests import tiny

TOKENS = 4
KERNELS = [0.5 * np.random.default_rng(0).normal(size=(width, tiny.CLASSES)).astype(np.float32) for width in (4, 5)]


def taps(x):
    """Outputs of one layer of a transformer with one head."""
    heads = x[:, :, None, :]
    return {
        "hidden0": x,
        "same0": x[..., :4],
        "embedding": jnp.tanh(x),
        "scores0": jnp.einsum("bqc,bkc->bqk", x, x)[:, None],
        "queries0": heads,
        "keys0": 2 * heads,
        "values0": heads**2,
        "logits": x[..., : tiny.CLASSES],
    }


def outputs_and_batch(student, teacher, batch):
    count = len(batch["label"])
    pooled = student["map"].reshape(count, 2, 2, 2, 2, -1).mean(axis=(2, 4)).reshape(count, TOKENS, -1)
    places = jnp.broadcast_to(jnp.arange(TOKENS, dtype=jnp.int32), (count, TOKENS))
    label = (batch["label"][:, None] + places) % tiny.CLASSES
    entries = {
        "label": label,
        "teacher_label": label,
        "selected": (places + label) % 2 == 0,
        "ends": places + 1,
        "teacher_ends": jnp.array([0, 2, 2, 4], jnp.int32)[places],
    }
    return taps(pooled), taps(teacher["map"].reshape(count, TOKENS, -1)), {**batch, **entries}


def on_tokens(objective):
    """Gives an objective tokens, and the kernels of both networks' last layers."""

    def full(context, evaluate=lambda function, *x: function(*x)):
        student, teacher, batch = evaluate(outputs_and_batch, context.student, context.teacher, dict(context.batch))
        params = dict(zip(("student_params", "teacher_params"), KERNELS, strict=True))
        return context._replace(student=student, teacher=teacher, batch=batch, **params)

    return Objective(
        lambda key, context: objective.init(key, full(context, jax.eval_shape)),
        lambda params, state, context, key: objective.apply(params, state, full(context), key),
    )


LINEAR = ("student/hidden0", "student_params", "teacher/hidden0", "teacher_params", "batch/label")
LANGUAGE: dict[str, tuple[Any, ...]] = {
    "minilm": (
        combine(lm=on_tokens(objectives.minilm(0, 0, weight=2.0))),
        {"lm/attention": 2.0, "lm/values": 2.0},
    ),
    "minilm_v2": (
        combine(lm=on_tokens(objectives.minilm_v2(0, 0, heads=1))),
        {"lm/queries": 1.0, "lm/keys": 1.0, "lm/values": 1.0},
    ),
    "tinybert": (
        combine(lm=on_tokens(objectives.tinybert({0: 0}, weight=0.5))),
        {"lm/embedding": 0.5, "lm/attention0": 0.5, "lm/hidden0": 0.5},
        True,
    ),
    "mobilebert": (
        combine(lm=on_tokens(objectives.mobilebert({0: 0}, steps_per_layer=5, hidden_names="same{}"))),
        {"lm/hidden0": 1.0, "lm/attention0": 1.0},
    ),
    "distilbert": (
        combine(lm=on_tokens(objectives.distilbert("student/same0", "teacher/same0"))),
        {"lm/kd": 5.0, "lm/mlm": 2.0, "lm/cosine": 1.0},
    ),
    "embedding_transfer": (
        combine(
            lm=objectives.embedding_transfer(
                "student/vector", "teacher/vector", cosine=0.5, contrastive=0.1, relational=3.0
            )
        ),
        {"lm/mse": 1.0, "lm/cosine": 0.5, "lm/contrastive": 0.1, "lm/relational": 3.0},
        True,
    ),
    "span_aligned": (
        combine(lm=on_tokens(objectives.span_aligned(jnp.array([[0, 0], [2, 1]]), weight=3.0))),
        {"lm": 3.0},
        False,
        {"lm/matched": 0.0, "lm/unmatched": 0.0},
    ),
    "linear_kd": (
        combine(lm=on_tokens(objectives.linear_kd(*LINEAR, label_weight=0.5, temperature=2.0))),
        {"lm/ce": 0.5, "lm/kd": 1.0},
    ),
}
