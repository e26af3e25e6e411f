"""What the tasks share: two sets of images, their networks, teachers that are trained once."""

import dataclasses
import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

import jaxkd
from experiments.kit import inputs, measures, training
from experiments.kit.recipe import Transform, adam
from experiments.kit.tasks import networks
from experiments.kit.tasks.task import Measure, Method, Task
from jaxkd import data, distillers, losses, metrics, models, teachers
from jaxkd.types import Distiller, Model, Objective, Teacher, TrainState, Variables

CE = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")

MEASURES = {
    "accuracy": Measure("accuracy (%)", scale=100, digits=1),
    "agreement": Measure("agreement (%)", scale=100, digits=1),
    "calibration_error": Measure("calibration error (%)", scale=100, digits=1, higher=False),
}


class Images(NamedTuple):
    """A set of images with its splits."""

    name: str  # name of the set
    classes: int  # number of classes
    train: data.Dataset  # the images to train on
    validation: data.Dataset  # held-out training images
    test: data.Dataset  # the test split
    normalize: Transform  # transform of stored images

    def loader(self, split: str) -> data.Resident:
        """Returns a split in its own order, to evaluate on."""
        dataset: data.Dataset = getattr(self, split)
        return data.Resident(dataset, min(inputs.EVAL_BATCH, data.num_examples(dataset)), shuffle=False)

    def moved(self, seed: int) -> Transform:
        """Returns the usual augmentation of the set: shifts of digits, crops and mirrors of CIFAR; not normalized."""
        change = data.shift if self.name == "digits" else data.random_crop_flip
        return functools.partial(change, seed=seed)


def load(name: str, config: Any) -> Images:
    """Returns the digits, or CIFAR-100 from ``--data-dir``, of which 5,000 training images are held out."""
    if name == "digits":
        train, validation, test = (data.load("digits", split) for split in ("train", "validation", "test"))
        return Images(name, 10, train, validation, test, inputs.normalize_digits)
    if config.data_dir is None:
        raise ValueError(f"--data-dir: expected the folder of prepared TFDS sets, with {name}.")
    whole, test = (inputs.cifar100(config.data_dir, split) for split in ("train", "test"))
    validation, train = data.split(whole, [5000, data.num_examples(whole) - 5000], seed=0)
    return Images(name, 100, train, validation, test, inputs.normalize_cifar100)


def convolutional(name: str, classes: int, *taps: str) -> Model:
    """Returns a convolutional network of the zoo, with some of its taps."""
    paths = models.taps(name)
    return jaxkd.adapters.linen(models.create(name, classes), taps={tap: paths[tap] for tap in taps})


def transformer(name: str, classes: int, **options: Any) -> Model:
    """Returns a vision transformer; a narrow one begins with larger weights."""
    config = models.vit_config(name, classes, **options)
    if config.width < 100:
        config = dataclasses.replace(config, init_scale=0.1)
    return jaxkd.adapters.nnx(lambda rngs: models.ViT(config, rngs=rngs))


def distill(
    images: Images,
    student: Model,
    teacher: Teacher,
    objective: Objective,
    optimizer: Any,
    views: Transform,
) -> Distiller:
    """Returns a distiller of stored images whose evaluations run the student alone."""
    kd = jaxkd.distill(student, teacher, objective, optimizer=optimizer, metrics=lambda context: {})
    kd = training.measured(kd, student, metrics=metrics.classification)
    return distillers.preprocess(kd, train_transform=views, eval_transform=images.normalize)


class Opened:
    """An opened task: its images, and teachers that are trained once."""

    def __init__(self, name: str, config: Any, folder: pathlib.Path) -> None:
        self.images, self.folder, self._config = load(name, config), folder, config

    @functools.cached_property
    def splits(self) -> Mapping[str, Any]:
        """The inputs that are evaluated during a training."""
        return {"validation": self.images.loader("validation")}

    def some(self, count: int | None) -> data.Dataset:
        """Returns training images, equally many of each class; all of them for None."""
        return self.images.train if count is None else data.split(self.images.train, [count], seed=1)[0]

    def trained(self, name: str, model: Model, rate: float, steps: int, batch: int) -> Variables:
        """Returns a network that is trained once, on all training images and their labels."""
        steps, views = networks.before(steps, self._config), data.compose(self.images.moved(0), self.images.normalize)
        kd = distill(self.images, model, teachers.none(), CE, adam(rate, steps), views)
        train = data.Resident(self.images.train, batch, seed=0, drop_remainder=True)
        return networks.trained_once(self.folder / f"{name}.safetensors", kd, train, self.splits, steps=steps)

    def outputs(self, model: Model, variables: Variables, *names: str) -> dict[str, np.ndarray]:
        """Returns outputs of a network, by default its logits, for the test images."""
        return training.outputs_of(model, variables, self.images.test, names or ("logits",), self.images.normalize)

    def measured(self, logits: np.ndarray, taught: np.ndarray | None = None) -> dict[str, float]:
        """Returns the measures of logits of the test images, beside those of a teacher if there is one."""
        found = measures.describe(logits, self.images.test.arrays["label"], taught)
        named = ("accuracy", "agreement", "calibration_error", "nll", "kl_to_teacher")
        return {name: found[name] for name in named if name in found}

    def reference(self, logits: np.ndarray, variables: Variables) -> dict[str, float]:
        """Returns the measures of a teacher, and its number of parameters."""
        return self.measured(logits) | {"parameters": networks.parameters(variables)}

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        return []


class Taught(Opened):
    """An opened task with one convolutional teacher, which learned from all images."""

    def __init__(self, name: str, config: Any, folder: pathlib.Path, *, teacher: str, rate: float, steps: int) -> None:
        super().__init__(name, config, folder)
        self.teacher, self._recipe = convolutional(teacher, self.images.classes), (rate, steps)

    @functools.cached_property
    def taught(self) -> Variables:
        """The teacher's weights."""
        return self.trained("teacher", self.teacher, *self._recipe, 64)

    @functools.cached_property
    def taught_logits(self) -> np.ndarray:
        """The teacher's logits of the test images."""
        return self.outputs(self.teacher, self.taught)["logits"]

    def references(self) -> Mapping[str, Mapping[str, float]]:
        return {"teacher": self.reference(self.taught_logits, self.taught)}


def task(
    title: str,
    about: str,
    opened: Callable[..., Any],
    methods: Mapping[str, Method],
    steps: int,
    *,
    measures: Mapping[str, Measure] = MEASURES,
) -> Task:
    """Returns a task whose students are compared by accuracy."""
    return Task(
        title=title,
        about=about,
        measures=measures,
        methods=methods,
        steps=steps,
        evaluations=10,
        open=opened,
        curve="validation/accuracy",
        rises=True,
    )
