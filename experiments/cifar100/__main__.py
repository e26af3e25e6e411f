"""``python -m experiments.cifar100 --data-dir DIR``: trains a teacher and distils a student on streamed CIFAR-100."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any

import jax
import optax
import tyro

import jaxkd
from jaxkd import data, losses, models
from jaxkd.training import FitResult, fit, preprocess


@dataclasses.dataclass(frozen=True)
class Config:
    """Trains a teacher and distils a student on CIFAR-100, read with grain from a prepared TFDS directory."""

    data_dir: Path
    """the TFDS data_dir that holds cifar100 as array_record"""
    teacher: str = "resnet20"
    student: str = "resnet8"
    teacher_epochs: int = 1
    epochs: int = 1
    """epochs of the student"""
    batch_size: int = 64
    learning_rate: float = 0.05
    temperature: float = 4.0
    ce_weight: float = 0.1
    kd_weight: float = 0.9
    hint_weight: float = 1.0
    """weight of the learned hint between the second stages"""
    steps: int | None = None
    """stop both trainings after so many steps, to try things out"""
    seed: int = 0
    workers: int = 0
    """processes that decode images; 0 decodes in threads"""
    out: Path = Path("runs/cifar100")


def optimizer(config: Config, steps: int) -> optax.GradientTransformation:
    """SGD as the published recipe has it: momentum 0.9, weight decay 5e-4, ×0.1 at 62.5, 75 and 87.5 % of the run."""
    schedule = optax.piecewise_constant_schedule(
        config.learning_rate, {int(steps * at): 0.1 for at in (0.625, 0.75, 0.875)}
    )
    return optax.chain(optax.add_decayed_weights(5e-4), optax.sgd(schedule, momentum=0.9))


def model(name: str) -> jaxkd.Model:
    """A network of the zoo with its second stage tapped."""
    return jaxkd.adapters.linen(models.create(name, 100), taps={"stage2": models.taps(name)["stage2"]})


def run(config: Config, name: str, kd: jaxkd.Distiller, inputs: Any, steps: int) -> FitResult:
    """One training: augmentation and normalisation join the step, then the loop runs it."""
    train, test = inputs
    normalize = functools.partial(data.normalize, mean=data.CIFAR100_MEAN, std=data.CIFAR100_STD)
    augment = data.compose(functools.partial(data.random_crop_flip, seed=config.seed), normalize)
    return fit(
        jaxkd.parallel.jit(preprocess(kd, train=augment, evaluate=normalize)),
        train,
        steps=steps,
        key=jax.random.key(config.seed),
        evaluate=test,
        best="eval/accuracy",
        directory=config.out / name,
        checkpoint_every=200,
        config={k: str(v) if isinstance(v, Path) else v for k, v in dataclasses.asdict(config).items() if k != "out"},
    )


def main(config: Config) -> None:
    """Both trainings; each goes on where it was, and a finished one is not repeated."""
    split = functools.partial(data.source, "cifar100", data_dir=config.data_dir)
    train = data.Stream(split("train"), config.batch_size, config.seed, workers=config.workers)
    test = data.Stream(split("test"), 500, shuffle=False, epochs=1, workers=config.workers)
    inputs = (train, test)

    steps = config.steps or config.teacher_epochs * train.steps_per_epoch
    teacher = jaxkd.distill(
        model(config.teacher),
        jaxkd.teachers.none(),
        jaxkd.combine(ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")),
        optimizer=optimizer(config, steps),
    )
    trained = run(config, "teacher", teacher, inputs, steps).state.student

    steps = config.steps or config.epochs * train.steps_per_epoch
    objective = jaxkd.combine(
        ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=config.ce_weight),
        kd=jaxkd.term(
            losses.soft_target_kl,
            "student/logits",
            "teacher/logits",
            weight=config.kd_weight,
            temperature=config.temperature,
        ),
        hint=jaxkd.objectives.hint("student/stage2", "teacher/stage2", weight=config.hint_weight),
    )
    student = jaxkd.distill(
        model(config.student),
        jaxkd.teachers.frozen(model(config.teacher), trained),
        objective,
        optimizer=optimizer(config, steps),
    )
    result = run(config, "student", student, inputs, steps)
    for name in ("accuracy", "teacher_accuracy", "agreement"):
        print(f"{config.student} from {config.teacher}: test {name} {100 * result.history[-1]['eval/' + name]:.2f} %")


if __name__ == "__main__":
    main(tyro.cli(Config))
