"""A student of a teacher alone: no image of the data set is read to train it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import optax

import jaxkd
from experiments.schemes.networks import Maker
from experiments.schemes.trials import Own, Row, Setting, Trial, soft
from jaxkd import adapters, data, models, schemes, teachers, wrappers
from jaxkd.types import Distiller, Model, Teacher

NOISE = 32
TIMES = 2
"""How many times as long as a student alone it trains, and of batches twice as large: a random image says little."""

Synthesis = Callable[[Setting, Teacher, Model], schemes.synthesis.Synthesis]


def data_free(synthesis: Synthesis) -> Callable[[Setting], Trial]:
    """A student of images that a synthesiser makes."""

    def build(setting: Setting) -> Trial:
        problem = setting.problem
        steps = TIMES * setting.steps
        height, width, channels = problem.shape
        network = Maker(problem.shape) if problem.mapped else models.Generator((height, width), channels)
        generator = adapters.linen(network, inputs="noise")
        model = wrappers.with_batch_stat_distance(problem.network("teacher"))

        def make(own: Own) -> Distiller:
            teacher = teachers.frozen(model, own["teacher"])
            objective = jaxkd.combine(kd=soft())
            kd = jaxkd.distill(setting.student, teacher, objective, optimizer=setting.optimizer(steps))
            return schemes.data_free(kd, synthesis(setting, teacher, generator))

        def loader(images: Any, seed: int) -> data.Noise:
            del images  # nothing of them is used
            return data.Noise(2 * setting.config.batch, NOISE, problem.classes, seed=seed)

        return Trial(make, steps, setting.student, loader=loader)

    return build


def dafl(setting: Setting, teacher: Teacher, generator: Model) -> schemes.synthesis.Synthesis:
    """A generator trained beside the student, which also matches the BatchNorm statistics."""
    return schemes.synthesis.dafl(teacher, generator, optax.adam(1e-2), feature="pooled", statistics=1.0)


def inversion(setting: Setting, teacher: Teacher, generator: Model) -> schemes.synthesis.Synthesis:
    """Images found by gradient descent, in short rounds: many different images matter more here than good ones."""
    jitter = 0 if setting.problem.name == "digits" else 2
    return schemes.synthesis.inversion(
        teacher,
        setting.problem.shape,
        optax.adam(0.1),
        iterations=25,
        slots=32,
        jitter=jitter,
    )


def cmi(setting: Setting, teacher: Teacher, generator: Model) -> schemes.synthesis.Synthesis:
    """A generator and codes found anew for each batch of images, told apart from those made before."""
    return schemes.synthesis.cmi(
        teacher,
        generator,
        optax.adam(1e-2, b1=0.5),
        feature_names=["pooled"],
        iterations=25,
        slots=32,
        memory=512,
        embedding=32,
    )


ROWS = {
    "dafl": Row("generator (DAFL)", "data-free", data_free(dafl)),
    "inversion": Row("inverted images (DeepInversion)", "data-free", data_free(inversion)),
    "cmi": Row("contrastive inversion (CMI)", "data-free", data_free(cmi)),
}
