"""What the tasks of language models share: networks, a teacher trained once, measures."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

import jaxkd
from experiments.kit.tasks import networks
from jaxkd import adapters, losses, metrics, models
from jaxkd.data import text
from jaxkd.types import Context, Distiller, Metrics, Model, Objective, Teacher, Variables

bits = functools.partial(metrics.tokens, bytes_path="batch/bytes")
"""Metrics of the next tokens, with bits per byte."""

CE = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")


def decoder(config: models.DecoderConfig, *taps: str) -> Model:
    """Returns a decoder that reads tokens, segments and positions, with some of its taps."""
    paths = models.layer_taps(config)
    build = functools.partial(models.Decoder, config)
    return adapters.nnx(
        lambda rngs: build(rngs=rngs), inputs=models.token_inputs, taps={name: paths[name] for name in taps}
    )


def distill(
    student: Model, teacher: Teacher, objective: Objective, rate: float, steps: int, measures: Any = bits
) -> Distiller:
    """Returns a distiller whose evaluations run the student alone."""
    return networks.distill(student, teacher, objective, rate, steps, measures)


def trained_once(
    path: pathlib.Path,
    model: Model,
    train: Any,
    splits: Mapping[str, Any],
    rate: float,
    steps: int,
    *,
    measures: Any = bits,
) -> Variables:
    """Returns a network that is trained on labels alone, by the first process that needs it."""
    kd = distill(model, jaxkd.teachers.none(), CE, rate, steps, measures)
    return networks.trained_once(path, kd, train, splits, steps=steps)


def measure(
    student: Model,
    variables: Variables,
    teacher: Model,
    taught: Variables,
    data: Any,
    *,
    asked: Callable[[Context], Metrics] = bits,
) -> dict[str, float]:
    """Returns the metrics of a student beside its teacher on a set."""
    all_asked = (asked, metrics.imitation, metrics.calibration)

    @jax.jit
    def of_batch(variables: Variables, taught: Variables, batch: Any) -> Metrics:
        ours, _ = student.apply(variables, batch, key=None, train=False)
        theirs, _ = teacher.apply(taught, batch, key=None, train=False)
        return metrics.report(all_asked, Context(ours, theirs, batch, 0))

    whole: Any = None
    batches = data.batches()
    for _ in range(data.steps_per_epoch):
        one = of_batch(variables, taught, next(batches))
        whole = one if whole is None else metrics.merge(whole, one)
    return {name: float(value) for name, value in metrics.compute(whole).items()}


def continuations(
    config: models.DecoderConfig,
    variables: Variables,
    prompts: Sequence[str],
    tokenizer: text.Tokenizer,
    length: int = 80,
    temperature: float = 0.7,
) -> list[str]:
    """Returns what a decoder writes after prompts, of which all methods draw with the same keys."""
    begin = [tokenizer.specials["bos"]] if "bos" in tokenizer.specials else []
    rows = [np.array([*begin, *tokenizer.encode(prompt)], np.int32) for prompt in prompts]
    found = []
    for number, row in enumerate(rows):
        write = models.generator(
            lambda rngs: models.Decoder(config, rngs=rngs), prompt=len(row), length=length, temperature=temperature
        )
        keys = jax.random.split(jax.random.key(number), 1)
        made = jax.jit(write)(variables, {"tokens": row[None]}, keys=keys)
        found.append(repr(tokenizer.decode(made["tokens"][0].tolist())))
    return found
