"""Bytes of caches, and FLOPs of training and of on-policy generation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from benchmarks.scale.networks import SEQUENCE, STUDENT, TEACHER, TOKENS, WORDS, forward_flops, parameters
from jaxkd.cache import codecs

USED = 0.4  # share of the peak that a step is assumed to reach


class Device(NamedTuple):
    """A device by its data sheet: bytes, bytes per second, bfloat16 FLOPs per second."""

    bytes: float
    bandwidth: float
    flops: float


DEVICES = {"H100 SXM": Device(80e9, 3.35e12, 989e12), "TPU v5p": Device(95e9, 2.765e12, 459e12)}


def cache_rows() -> list[dict[str, Any]]:
    """Returns the bytes of a token in each codec, from the shapes of what it stores."""
    logits = jax.ShapeDtypeStruct((1, WORDS), jnp.float32)
    kinds = {
        "all logits, float16": codecs.full("float16"),
        "top 50, float16": codecs.top_k(50),
        **{
            f"packed top {k}, {levels} levels": codecs.packed_top_k(k, levels)
            for k, levels in ((16, 16), (50, 16), (50, 64), (128, 64), (128, 256))
        },
    }
    rows = []
    for name, codec in kinds.items():
        fields = jax.eval_shape(codec.encode, logits)
        stored = sum(math.prod(x.shape) * x.dtype.itemsize for x in jax.tree.leaves(fields))
        rows.append({"codec": name, "bytes_per_token": stored, "bytes": stored * TOKENS})
    hidden = 2 * TEACHER.width
    return [*rows, {"codec": "hidden states, bfloat16", "bytes_per_token": hidden, "bytes": hidden * TOKENS}]


def training_flops() -> dict[str, float]:
    """Returns the FLOPs of a token: forward of the teacher, forward and backward of the student.

    A backward pass has two products for each of the forward pass. The loss of hidden states computes the student's
    logits once, and its gradients from them.
    """
    teacher, student = (sum(forward_flops(each, SEQUENCE).values()) for each in (TEACHER, STUDENT))
    return {"teacher": teacher, "student": 3 * student, "step": teacher + 3 * student, "cached": 3 * student}


def generation_rows(
    prompt: int = 512, length: int = 512, sequences: Sequence[int] = (16, 64, 256)
) -> list[dict[str, Any]]:
    """Returns the cost of a token that the student writes, by the device and the sequences that it writes at once.

    A step of decoding reads the weights once and the keys and values of every sequence; it takes the time of these
    bytes or of its FLOPs, whichever is longer.
    """
    flops = sum(forward_flops(STUDENT, prompt + length).values())
    weights = 2 * parameters(STUDENT)
    head = STUDENT.width // STUDENT.heads
    per_token = 2 * STUDENT.layers * STUDENT.key_value_heads * head * 2
    rows = []
    for name, device in DEVICES.items():
        step = training_flops()["step"] / (USED * device.flops)
        for count in sequences:
            memory = count * (prompt + length) * per_token
            read = weights + count * (prompt + length / 2) * per_token
            seconds = max(read / device.bandwidth, count * flops / (USED * device.flops)) / count
            rows.append(
                {
                    **{"device": name, "sequences": count, "cache_bytes": memory, "tokens_per_second": 1 / seconds},
                    "over_training": seconds / step,
                }
            )
    return rows
