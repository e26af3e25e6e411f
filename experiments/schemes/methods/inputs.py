"""Teachers and students that differ in architecture or input, discriminators, and students without any data."""

import functools
from collections.abc import Callable
from typing import Any

import optax

import jaxkd
from experiments.kit.methods import soft_targets
from experiments.kit.recipe import Transform
from experiments.schemes.method import BOTH, CE, Method, Own, Setting, Training, deferred, supervised, taught
from experiments.schemes.problem import Maker
from experiments.schemes.teachers import LEFT, NETWORKS, PEN
from jaxkd import adapters, data, models, objectives, schemes, teachers, wrappers
from jaxkd.objectives import discriminators
from jaxkd.types import Distiller, Model, Objective, Teacher

DISCRIMINATOR = objectives.adversarial(
    "student/logits", "teacher/logits", discriminator=discriminators.mlp(64), label_path="batch/label", weight=0.1
)
GAME = jaxkd.combine(ce=CE, kd=soft_targets(), gan=DISCRIMINATOR)
"""Soft targets, and a discriminator of the logits that also classifies (Xu et al., 2018)."""

Network = Callable[[Setting], Model]


def recurrent(**options: Any) -> Network:
    """Returns an LSTM in place of the student."""
    return lambda setting: setting.problem.lstm("student", **options)


def _usual(setting: Setting) -> Model:
    return setting.student


def reads(name: str) -> Network:
    """Returns the student with another input in place of the image."""
    return lambda setting: wrappers.with_inputs(setting.student, image=name)


@deferred
def by(
    setting: Setting, student: Network, *more: Transform, teacher: str = "teacher", objective: Objective = BOTH
) -> Training:
    """Returns the training of a student of transformed images by one of the trained networks."""
    made, model = student(setting), NETWORKS[teacher].model(setting)
    options: Any = {"objective": objective, "needs": (teacher,)}
    return taught(setting, setting.steps, made, lambda own: teachers.frozen(model, own[teacher]), *more, **options)


def other_student(student: Network, *more: Transform, **options: Any) -> dict[str, Any]:
    """Returns the training of another student, and its baselines, with the usual teacher."""
    return {
        "build": by(student, *more, **options),
        "alone": lambda setting, steps: supervised(setting, steps, student(setting), *more),
        "offline": lambda setting, steps: taught(setting, steps, student(setting), setting.teacher, *more),
    }


LSTM = other_student(recurrent(), objective=GAME)
STROKES = other_student(recurrent(inputs=("strokes", "strokes_mask")), PEN)
HALVES = other_student(reads("right"), LEFT, teacher="left")
SPECTRUM = other_student(reads("spectrum"), data.spectrum)
MODAL = "cross-modal"

# A student of a teacher alone: no image of the data set is read to train it.

NOISE = 32
TIMES = 2
"""Trainings are so many times as long as a student alone, with batches twice as large: a random image says little."""

Synthesis = Callable[[Setting, Teacher, Model], schemes.synthesis.Synthesis]


@deferred
def data_free(setting: Setting, synthesis: Synthesis) -> Training:
    """Returns the training of a student on synthesized images."""
    problem, steps = setting.problem, TIMES * setting.steps
    height, width, channels = problem.shape
    network = Maker(problem.shape) if problem.mapped else models.Generator((height, width), channels)
    generator = adapters.linen(network, inputs="noise")
    model = wrappers.with_batch_stat_distance(problem.network("teacher"))

    def make(own: Own) -> Distiller:
        teacher, objective = teachers.frozen(model, own["teacher"]), jaxkd.combine(kd=soft_targets())
        kd = jaxkd.distill(setting.student, teacher, objective, optimizer=setting.optimizer(steps))
        return schemes.data_free(kd, synthesis(setting, teacher, generator))

    noise = functools.partial(data.Noise, 2 * setting.config.batch, NOISE, problem.classes)
    return setting.unplaced(make, steps=steps, loader=lambda _, seed: noise(seed=seed))


def dafl(setting: Setting, teacher: Teacher, generator: Model) -> schemes.synthesis.Synthesis:
    """Returns a generator trained beside the student, with BatchNorm statistics."""
    return schemes.synthesis.dafl(teacher, generator, optax.adam(1e-2), feature="pooled", statistics=1.0)


def inversion(setting: Setting, teacher: Teacher, generator: Model) -> schemes.synthesis.Synthesis:
    """Returns images found by gradient descent, in short rounds that give many."""
    jitter = 0 if setting.problem.name == "digits" else 2
    options: Any = {"iterations": 25, "slots": 32, "jitter": jitter}
    return schemes.synthesis.inversion(teacher, setting.problem.shape, optax.adam(0.1), **options)


def cmi(setting: Setting, teacher: Teacher, generator: Model) -> schemes.synthesis.Synthesis:
    """Returns a generator and codes for each batch, contrasted with earlier images."""
    options: Any = {"feature_names": ["pooled"], "iterations": 25, "slots": 32, "memory": 512, "embedding": 32}
    return schemes.synthesis.cmi(teacher, generator, optax.adam(1e-2, b1=0.5), **options)


METHODS = {
    "adversarial": Method("adversarial", "adversarial", by(_usual, objective=GAME)),
    "from_lstm": Method("LSTM teacher, adversarial", "adversarial", by(_usual, teacher="lstm", objective=GAME)),
    "to_lstm": Method("LSTM student, adversarial", "adversarial", **LSTM),
    "halves": Method("teacher left half, student right half", MODAL, **HALVES),
    "spectrum": Method("student of the spectrum", MODAL, **SPECTRUM),
    "strokes": Method("LSTM student of pen strokes", MODAL, **STROKES),
    "dafl": Method("generator (DAFL)", "data-free", data_free(dafl)),
    "inversion": Method("inverted images (DeepInversion)", "data-free", data_free(inversion)),
    "cmi": Method("contrastive inversion (CMI)", "data-free", data_free(cmi)),
}
