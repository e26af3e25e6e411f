"""A student of a teacher alone: no image of the data set is read to train it."""

from __future__ import annotations

from collections.abc import Callable

import optax

import jaxkd
from experiments.kit.methods import soft_targets
from experiments.schemes.method import Method, Own, Setting, Training
from experiments.schemes.networks import Maker
from jaxkd import adapters, data, models, schemes, teachers, wrappers
from jaxkd.types import Distiller, Model, Teacher

NOISE = 32
TIMES = 2
"""Trainings are so many times as long as a student alone, with batches twice as large: a random image says little."""

Synthesis = Callable[[Setting, Teacher, Model], schemes.synthesis.Synthesis]


def data_free(synthesis: Synthesis) -> Callable[[Setting], Training]:
    """Returns the training of a student on synthesized images."""

    def build(setting: Setting) -> Training:
        problem, steps = setting.problem, TIMES * setting.steps
        height, width, channels = problem.shape
        network = Maker(problem.shape) if problem.mapped else models.Generator((height, width), channels)
        generator = adapters.linen(network, inputs="noise")
        model = wrappers.with_batch_stat_distance(problem.network("teacher"))

        def make(own: Own) -> Distiller:
            teacher, objective = teachers.frozen(model, own["teacher"]), jaxkd.combine(kd=soft_targets())
            kd = jaxkd.distill(setting.student, teacher, objective, optimizer=setting.optimizer(steps))
            return schemes.data_free(kd, synthesis(setting, teacher, generator))

        def loader(images: data.Dataset, seed: int) -> data.Noise:
            return data.Noise(2 * setting.config.batch, NOISE, problem.classes, seed=seed)

        return Training(make, steps, setting.student, loader=loader)

    return build


def dafl(setting: Setting, teacher: Teacher, generator: Model) -> schemes.synthesis.Synthesis:
    """Returns a generator trained beside the student, with BatchNorm statistics."""
    return schemes.synthesis.dafl(teacher, generator, optax.adam(1e-2), feature="pooled", statistics=1.0)


def inversion(setting: Setting, teacher: Teacher, generator: Model) -> schemes.synthesis.Synthesis:
    """Returns images found by gradient descent, in short rounds that give many."""
    jitter = 0 if setting.problem.name == "digits" else 2
    return schemes.synthesis.inversion(
        teacher, setting.problem.shape, optax.adam(0.1), iterations=25, slots=32, jitter=jitter
    )


def cmi(setting: Setting, teacher: Teacher, generator: Model) -> schemes.synthesis.Synthesis:
    """Returns a generator and codes for each batch, contrasted with earlier images."""
    optimizer = optax.adam(1e-2, b1=0.5)
    return schemes.synthesis.cmi(
        teacher, generator, optimizer, feature_names=["pooled"], iterations=25, slots=32, memory=512, embedding=32
    )


METHODS = {
    "dafl": Method("generator (DAFL)", "data-free", data_free(dafl)),
    "inversion": Method("inverted images (DeepInversion)", "data-free", data_free(inversion)),
    "cmi": Method("contrastive inversion (CMI)", "data-free", data_free(cmi)),
}
