"""Street scenes of CamVid, or any set with masks: labels of an eighth of the images, and of all."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.kit import inputs
from experiments.kit.tasks import networks
from experiments.kit.tasks.task import Figure, Measure, Method, Task, Training
from experiments.segmentation import pictures, scenes
from jaxkd import adapters, data, distillers, losses, metrics, models, objectives, teachers
from jaxkd.objectives import discriminators
from jaxkd.types import Batch, Context, Distiller, Model, Objective, Teacher, TrainState, Variables

FEW = 8  # one of so many images has labels
LABELED, OTHERS = 8, 8  # images with labels in a batch, and of all images without their labels
RATE, TEACHER_RATE, TEACHER_STEPS = 5e-3, 3e-3, 2500
SHOWN = 3  # test images in the figure
PICTURED = ("student", "pixel", "skd", "cwd", "intra", "all_student", "all_cwd")

LEVELS = ("level1", "level2")
STUDENT = {"widths": (8, 16, 32), "channels": 16, "stride": 2}
TEACHER = {"widths": (24, 48, 96, 192), "channels": 32, "stride": 2}


def segmenter(classes: int, **options: Any) -> Model:
    """Returns a segmenter as a model; its logits before the upsampling are ``scores``."""
    return adapters.linen(models.Segmenter(num_classes=classes, **options))


CE = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/known")
BOTH = "student/scores", "teacher/scores"


def structured(pixel: float = 0.0, pair: float = 0.0, holistic: float = 0.0) -> Objective:
    """Returns terms of structured distillation, by their weights."""
    return objectives.structured_segmentation(
        ("student/scores", "student/level0"),
        ("teacher/scores", "teacher/level0"),
        where="batch/inside",
        pixel_weight=pixel,
        pair_weight=pair,
        holistic_weight=holistic,
        discriminator=discriminators.cnn(16, 32),
    )


def channels(where: str) -> Objective:
    """Returns channel-wise distillation of the scores over the pixels of a mask."""
    loss = jaxkd.term(losses.channel_kl, *BOTH, weight=3.0, temperature=4.0, where=where)
    return objectives.with_resized(loss, {where: "student/scores"})


REGIONS = objectives.inter_region(
    tuple(f"student/{level}" for level in LEVELS), tuple(f"teacher/{level}" for level in LEVELS)
)
PARTS: dict[str, Objective] = {
    "pixel": structured(pixel=80.0),
    "pair": structured(pair=1.0),
    "skd": structured(pixel=80.0, pair=1.0, holistic=0.1),
    "cwd": channels("batch/inside"),
    "intra": REGIONS,
}
NOTES = {
    "pixel": ("pixel-wise", "Liu et al. (2019), weight 10 of a sum over 8 images: 80 of the mean"),
    "pair": ("pair-wise", "Liu et al. (2019), the affinity of the authors' code, weight 1"),
    "skd": ("SKD", "Liu et al. (2019): pixel-wise, pair-wise, and a critic of scores and image, weight 0.1"),
    "cwd": ("CWD", "Shu et al. (2021) on the scores, T = 4, weight 3"),
    "intra": ("IntRA-KD", "Hou et al. (2020) on two levels, weight 1; regions of the labels or of the teacher"),
}


def _methods() -> dict[str, Method]:
    few, every = "1/8 labeled", "all labeled"
    found = {"student": Method(f"student alone, {few}", "cross-entropy of the labeled pixels")}
    found |= {name: Method(f"{title}, {few}", note) for name, (title, note) in NOTES.items()}
    found["cwd_labeled"] = Method(f"CWD, {few}, labeled images alone", "without the teacher on the other images")
    found["all_student"] = Method(f"student alone, {every}", "cross-entropy, all images with labels")
    found |= {f"all_{name}": Method(f"{title}, {every}", baseline="all_student") for name, (title, _) in NOTES.items()}
    return found | {"all_student": found["all_student"]._replace(baseline="all_student")}


METHODS = _methods()


def objective(method: str) -> Objective:
    """Returns what a method trains with."""
    name = method.removeprefix("all_")
    if name == "student":
        return jaxkd.combine(ce=CE)
    return jaxkd.combine(ce=CE, kd=channels("batch/known") if name == "cwd_labeled" else PARTS[name])


class CamVid:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        self._folder, self.scenes = folder, scenes.read(config)
        self._steps = networks.before(TEACHER_STEPS, config)
        classes = len(self.scenes.class_names)
        self.student, self.teacher = segmenter(classes, **STUDENT), segmenter(classes, **TEACHER)

    @functools.cached_property
    def _splits(self) -> dict[str, Any]:
        return {"validation": self.scenes.loader("validation")}

    def _distiller(
        self, student: Model, teacher: Teacher, parts: Objective, rate: float, steps: int, seed: int
    ) -> Distiller:
        measures = functools.partial(metrics.segmentation, class_names=self.scenes.class_names)
        kd = networks.distill(student, teacher, parts, rate, steps, measures)

        def see(batch: Batch) -> dict[str, Any]:
            return self.scenes.seen(batch, seed)

        return distillers.preprocess(kd, train_transform=see, eval_transform=self.scenes.normalize)

    def _all(self, seed: int) -> data.Resident:
        """Returns batches of all images with their labels."""
        train = self.scenes.splits["train"]
        arrays = {**train, "labeled": np.ones(len(train["label"]), bool)}
        return data.Resident(arrays, min(LABELED + OTHERS, len(train["label"])), seed=seed, drop_remainder=True)

    def _few(self, seed: int) -> Any:
        """Returns batches of a seed's labeled images, and of all images without their labels."""
        train = self.scenes.splits["train"]
        count = len(train["label"])
        few = max(round(count / FEW), 1)
        chosen = np.sort(np.random.default_rng(seed).choice(count, few, replace=False))
        sizes = min(LABELED, few), min(OTHERS, count)
        return inputs.few_labels(train, chosen, sizes, seed, scenes.hidden(train))

    @functools.cached_property
    def _taught(self) -> Variables:
        """The variables of the teacher, which is trained once, on all images and their labels."""
        kd = self._distiller(self.teacher, teachers.none(), jaxkd.combine(ce=CE), TEACHER_RATE, self._steps, 0)
        path = self._folder / "teacher.safetensors"
        return networks.trained_once(path, kd, self._all(0), self._splits, steps=self._steps)

    def training(self, method: str, seed: int, steps: int) -> Training:
        alone = method.removeprefix("all_") == "student"
        teacher = teachers.none() if alone else teachers.frozen(self.teacher, self._taught)
        kd = self._distiller(self.student, teacher, objective(method), RATE, steps, seed)
        loader = self._all(seed) if method.startswith("all_") else self._few(seed)
        return Training(kd, loader, steps, self._splits)

    def _logits(self, model: Model, variables: Variables, rows: Any = slice(None)) -> np.ndarray:
        """Returns a network's logits of test images."""
        arrays = {name: x[rows] for name, x in self.scenes.splits["test"].items()}
        loader = data.Resident(arrays, min(scenes.EVAL_BATCH, len(arrays["label"])), shuffle=False)

        def apply(variables: Variables, batch: Batch, **options: Any) -> Any:
            outputs, state = model.apply(variables, self.scenes.normalize(batch), **options)
            return {"logits": outputs["logits"]}, state

        pieces = jaxkd.training.predict(model._replace(apply=apply), variables, loader)
        return np.concatenate([piece["logits"] for piece in pieces])

    @functools.cached_property
    def _taught_logits(self) -> np.ndarray:
        return self._logits(self.teacher, self._taught)

    def _measured(self, logits: np.ndarray) -> dict[str, float]:
        label = jnp.asarray(self.scenes.splits["test"]["label"])
        context = Context(
            {"logits": jnp.asarray(logits)}, {"logits": jnp.asarray(self._taught_logits)}, {"label": label}, 0
        )
        names = self.scenes.class_names
        found = jax.jit(lambda c: metrics.segmentation(c._replace(axis_name=None), class_names=names))(context)
        kept = ("mean_iou", "accuracy", "agreement", *(f"iou/{name}" for name in names))
        numbers = metrics.compute(found)
        return {name: float(numbers[name]) for name in kept if np.isfinite(numbers[name])}

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        return self._measured(self._logits(self.student, state.student))

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        return []

    def references(self) -> Mapping[str, Mapping[str, float]]:
        return {"teacher": {**self._measured(self._taught_logits), "parameters": networks.parameters(self._taught)}}

    def shown(self, method: str, state: TrainState) -> dict[str, Any]:
        """Returns predictions of some test images, and of the student alone what they are compared with."""
        if method not in PICTURED:
            return {}
        test = self.scenes.splits["test"]
        rows = np.linspace(0, len(test["label"]) - 1, min(SHOWN, len(test["label"]))).astype(int)
        found: dict[str, Any] = {
            "predicted": pictures.packed(self._logits(self.student, state.student, rows).argmax(-1))
        }
        if method == "student":
            found |= {"image": pictures.packed(test["image"][rows]), "truth": pictures.packed(test["label"][rows])}
            found |= {"teacher": pictures.packed(self._taught_logits[rows].argmax(-1))}
            found |= {"classes": list(self.scenes.class_names)}
        return found


TASK = Task(
    title="Street scenes, an eighth of them labeled, and all",
    about=(
        "CamVid (11 classes, 367 training images), resized to 60 × 80 pixels, at which it is also evaluated; numbers "
        "of the literature are of larger images. Teacher and student are encoder-decoders on a feature pyramid; the "
        "teacher learned once, from all images and labels. With few labels, each seed has 46 labeled images of its "
        "own, and every method sees the same batches: 8 labeled images, and 8 of all images without their labels, on "
        "which the teacher's terms are too. The student alone has them in its BatchNorm statistics, and learns nothing "
        "else from them."
    ),
    measures={
        "mean_iou": Measure("mIoU (%)", scale=100, digits=1),
        "accuracy": Measure("pixel accuracy (%)", scale=100, digits=1),
        "agreement": Measure("agreement (%)", scale=100, digits=1),
    },
    methods=METHODS,
    steps=1000,
    evaluations=5,
    open=CamVid,
    curve="validation/mean_iou",
    rises=True,
    figures={
        "masks": Figure(
            "Test images, their labels, and what the teacher and students of the first seed predict",
            pictures.masks,
            lambda work, method, state: work.shown(method, state),
        ),
        "classes": Figure("Intersection over union of each class", pictures.classes),
    },
    any_set=True,
)
