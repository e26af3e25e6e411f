"""Blood cells: a detector learns from a larger one, with twenty labeled images and with all."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.detection import pictures, sets
from experiments.kit import inputs
from experiments.kit.tasks import networks
from experiments.kit.tasks.task import Figure, Measure, Method, Task, Training
from jaxkd import data, dense, distillers, losses, metrics, models, objectives, teachers, training
from jaxkd.types import (
    Batch,
    Context,
    Distiller,
    Metrics,
    Model,
    Objective,
    ObjectiveOut,
    ObjectiveVars,
    Teacher,
    TrainState,
    Variables,
)

FEW = 20  # images with labels
LABELED, OTHERS = 8, 8  # images with labels in a batch, and others of all images
EVAL_BATCH = 24
STRIDE = 8  # pixels between neighboring positions of the finest level
TEACHER: Mapping[str, Any] = {"widths": (24, 48, 96), "channels": 48}
STUDENT: Mapping[str, Any] = {"widths": (8, 16, 32), "channels": 16}
LEVELS = 3
RATE = 3e-3
TEACHER_STEPS = 1500
CONFIDENT = 0.5  # score from which the teacher's boxes stand for those of an image without labels

Make = Callable[[Any, sets.Boxes], Objective]


def labels(anchors: Any, weight: float = 1.0, box_weight: float = 1.0) -> Objective:
    """Returns the objective of the images with labels."""
    return objectives.detection(anchors, where="batch/labeled", weight=weight, box_weight=box_weight)


def on_levels(make: Callable[..., Objective], *arguments: Any, **options: Any) -> Make:
    """Returns what makes the labels' objective and a feature objective on every level."""

    def both(anchors: Any, boxes: sets.Boxes) -> Objective:
        features = objectives.pyramid(functools.partial(make, *arguments, **options), LEVELS)
        return jaxkd.combine(labels=labels(anchors), features=with_boxes(features, anchors, boxes.size))

    return both


def with_boxes(objective: Objective, anchors: Any, size: tuple[int, int]) -> Objective:
    """Gives an objective the teacher's boxes of images without labels."""

    def completed(context: Context) -> Context:
        batch = dict(context.batch)
        logits, offsets = (context.teacher[name] for name in ("logits", "offsets"))
        found = dense.detections(
            logits, offsets, jnp.asarray(anchors), image_size=size, least_score=CONFIDENT, most=batch["boxes"].shape[1]
        )
        known = batch["labeled"][:, None]
        batch["boxes"] = jnp.where(known[..., None], batch["boxes"], found.boxes)
        batch["box_mask"] = jnp.where(known, batch["box_mask"], found.mask)
        return context._replace(batch=batch)

    def init(key: Any, context: Context) -> ObjectiveVars:
        return objective.init(key, jax.eval_shape(completed, context._replace(axis_name=None)))

    def apply(params: Any, state: Any, context: Context, key: Any) -> ObjectiveOut:
        return objective.apply(params, state, completed(context), key)

    return Objective(init, apply)


def chen(anchors: Any, boxes: sets.Boxes) -> Objective:
    """Chen et al. (2017): labels with the weight μ for classes and 1 for boxes, and the teacher's parts."""
    taught = objectives.detector_kd(anchors, level_map=LEVELS, where="batch/labeled")
    return jaxkd.combine(labels=labels(anchors, weight=0.5, box_weight=2.0), kd=taught)


def soft(anchors: Any, boxes: sets.Boxes) -> Objective:
    """The teacher's classes and boxes beside the labels."""
    return jaxkd.combine(labels=labels(anchors), kd=objectives.soft_detections(anchors))


# The published weights belong to sums over maps of 256 channels and, in the first level, 100 · 167 positions. Where the
# loss is a sum, the weight here is larger by the ratio of the elements of the first level, about.
OBJECTIVES: Mapping[str, Make] = {
    "student": lambda anchors, boxes: jaxkd.combine(labels=labels(anchors)),
    "soft": soft,
    "chen": chen,
    "fgfi": on_levels(objectives.fine_grained_imitation, weight=0.04),
    "mgd": on_levels(objectives.masked_generation, mask_ratio=0.65, weight=2e-3),
    "dmkd": on_levels(objectives.dual_masked_generation, weight=2e-3),
    "pkd": on_levels(objectives.aligned, losses.pearson_features, weight=6.0),
    "cwd": on_levels(objectives.aligned, losses.channel_kl, temperature=1.0, weight=10.0),
    "fgd": on_levels(objectives.focal_and_global, alpha=2e-3, beta=1e-3, gamma=5e-3, relation=1e-4),
}
METHODS = {
    "student": Method("student alone", "classes and boxes of the images with labels"),
    "soft": Method("soft classes and boxes", "the teacher's classes and boxes of all images as targets"),
    "chen": Method("Chen", "Chen et al. (2017): soft classes, bounded boxes, hints; μ = ν = γ = 0.5, T = 1"),
    "fgfi": Method("FGFI", "Wang et al. (2019): near objects, on every level; ψ = 0.5, weight 0.04"),
    "mgd": Method("MGD", "Yang et al. (2022): generated features, on every level; λ = 0.65, weight 2e-3"),
    "dmkd": Method("DMKD", "Yang et al. (2024): two masks by attention, on every level; weight 2e-3"),
    "pkd": Method("PKD", "Cao et al. (2022): correlation of features, on every level; weight 6"),
    "cwd": Method("CWD", "Shu et al. (2021): channels as distributions, on every level; T = 1, weight 10"),
    "fgd": Method(
        "FGD", "Yang et al. (2022): where the teacher attends, and the relation to the whole, on every level"
    ),
}


class Detectors:
    """The opened task: a set, two detectors with the same anchors, and a teacher that is trained once.

    With ``few``, each seed has that number of images with labels of its own, and all images without labels.
    """

    def __init__(self, few: int | None, config: Any, folder: pathlib.Path) -> None:
        self.boxes, self._few, self._folder = sets.read(config, "bccd"), few, folder
        self._steps = networks.before(TEACHER_STEPS, config)
        made = {
            side: models.Detector(**self._fields(shape)) for side, shape in (("student", STUDENT), ("teacher", TEACHER))
        }
        self.anchors = self.boxes.anchors(made["student"].strides)
        self.student, self.teacher = (jaxkd.adapters.linen(made[side]) for side in ("student", "teacher"))

    def _fields(self, shape: Mapping[str, Any]) -> dict[str, Any]:
        anchors = sets.PER_LEVEL * len(sets.RATIOS)
        return {"num_classes": len(self.boxes.class_names), "num_anchors": anchors, "stride": STRIDE, **shape}

    @functools.cached_property
    def splits(self) -> Mapping[str, Any]:
        """The inputs that are evaluated during a training."""
        return {"validation": self.boxes.loader("validation", EVAL_BATCH)}

    @functools.cached_property
    def taught(self) -> Variables:
        """The teacher's weights: it learns from all training images and their labels."""
        make = OBJECTIVES["student"](self.anchors, self.boxes)
        kd = self._distill(self.teacher, teachers.none(), make, RATE / 2, self._steps, 0)
        path = self._folder / "teacher.safetensors"
        return networks.trained_once(path, kd, self._whole(0), self.splits, steps=self._steps)

    def _distill(
        self, model: Model, teacher: Teacher, objective: Objective, rate: float, steps: int, seed: int
    ) -> Distiller:
        kd = networks.distill(model, teacher, objective, rate, steps, functools.partial(_measures, self.anchors))
        views = data.compose(self.boxes.moved(seed), self.boxes.normalize)
        return distillers.preprocess(kd, train_transform=views, eval_transform=self.boxes.normalize)

    def _whole(self, seed: int) -> data.Resident:
        """Returns batches of all images with their labels."""
        arrays = self.boxes.splits["train"]
        batch = min(LABELED + OTHERS, len(arrays["image"]))
        return data.Resident({**arrays, "labeled": _flags(arrays, True)}, batch, seed=seed, drop_remainder=True)

    def _some(self, seed: int) -> inputs.Joined:
        """Returns batches of the images with labels, and after them of all images without their labels."""
        arrays = self.boxes.splits["train"]
        count = len(arrays["image"])
        usable = np.flatnonzero(arrays["box_mask"].any(axis=1))  # an image without objects would be wasted
        chosen = np.random.default_rng(1000 + seed).permutation(usable)[: self._few]
        known = {name: value[chosen] for name, value in arrays.items()}
        unknown = {name: np.zeros_like(arrays[name]) for name in ("boxes", "box_label", "box_mask")}
        parts = (
            {**known, "labeled": _flags(known, True), "index": chosen.astype(np.int32)},
            {**arrays, **unknown, "labeled": _flags(arrays, False), "index": np.arange(count, dtype=np.int32)},
        )
        sizes = min(LABELED, len(chosen)), min(OTHERS, count)
        return inputs.Joined(
            *(
                data.Resident(part, size, seed=seed, drop_remainder=True)
                for part, size in zip(parts, sizes, strict=True)
            )
        )

    def training(self, method: str, seed: int, steps: int) -> Training:
        teacher = teachers.none() if method == "student" else teachers.frozen(self.teacher, self.taught)
        objective = OBJECTIVES[method](self.anchors, self.boxes)
        kd = self._distill(self.student, teacher, objective, RATE, steps, seed)
        return Training(kd, self._whole(seed) if self._few is None else self._some(seed), steps, self.splits)

    def found(self, model: Model, variables: Variables, split: str, count: int | None = None) -> dict[str, np.ndarray]:
        """Returns the detections of a model on a split, or on its first images."""

        def apply(variables: Variables, batch: Batch, **options: Any) -> Any:
            outputs, state = model.apply(variables, self.boxes.normalize(batch), **options)
            found = dense.detections(
                outputs["logits"], outputs["offsets"], jnp.asarray(self.anchors), image_size=self.boxes.size
            )
            return found._asdict(), state

        arrays = {name: value[:count] for name, value in self.boxes.splits[split].items()}
        images = data.Resident(arrays, min(EVAL_BATCH, len(arrays["image"])), shuffle=False)
        pieces = list(training.predict(model._replace(apply=apply), variables, images))
        return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}

    def _scores(self, model: Model, variables: Variables) -> dict[str, float]:
        found = self.found(model, variables, "test")
        names = self.boxes.class_names
        scores = metrics.average_precision(found, self.boxes.splits["test"], class_names=names)
        return {name: value for name, value in scores.items() if np.isfinite(value)}  # a class may be in no test image

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        return self._scores(self.student, state.student)

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        return []

    def references(self) -> Mapping[str, Mapping[str, float]]:
        own = {"parameters": networks.parameters(self.taught)}
        return {"teacher": {**self._scores(self.teacher, self.taught), **own}}


def _flags(arrays: Mapping[str, np.ndarray], value: bool) -> np.ndarray:
    return np.full(len(arrays["image"]), value)


def _measures(anchors: Any, context: Context) -> Metrics:
    """Returns the labels' loss and its parts, to follow a training."""
    found = objectives.detection(anchors).apply({}, {}, context, None).metrics
    return {"loss": found[""], "classes": found["classes"], "boxes": found["boxes"]}


def task(title: str, about: str, few: int | None) -> Task:
    """Returns a task with some images that have labels, or with all of them."""
    percent = functools.partial(Measure, scale=100, digits=1)
    return Task(
        title=title,
        about=about + NETWORKS,
        measures={"ap": percent("AP (%)"), "ap50": percent("AP50 (%)"), "ap75": percent("AP75 (%)")},
        methods=METHODS,
        steps=700,
        evaluations=6,
        open=functools.partial(Detectors, few),
        figures={
            "detections": Figure(
                "Images of the test split: true boxes, the teacher's, the student's alone and distilled, of the first "
                "seed, with scores from 0.4",
                pictures.detections,
                pictures.shown,
            ),
            "classes": Figure("AP of each class, the mean over the seeds", pictures.classes),
        },
        any_set=True,
    )


NETWORKS = (
    "Images of 120 × 160 pixels are mirrored, scaled by 0.8 to 1.25 and shifted by up to a tenth, with their boxes. "
    "Both detectors have one stage, a pyramid of strides 8, 16 and 32, and six anchors at a position, whose sizes are "
    "spread over those of the training boxes; a softmax has the background as a class. Teacher: stages of 24, 48 and "
    "96 channels and a pyramid of 48, trained once on all labels. Student: 8, 16 and 32, and 16. A step has 16 images."
)
FEW_TASK = task(
    "Blood cells: twenty labeled images",
    f"BCCD, 205 images of platelets, red and white blood cells. Each seed has {FEW} labeled images of its own; a batch "
    f"has {LABELED} of them and {OTHERS} of all images without their labels, of which the teacher's parts learn (where "
    "a method needs boxes, from the teacher's with a score of at least 0.5). ",
    FEW,
)
ALL_TASK = task("Blood cells: all images labeled", "BCCD, 205 images of platelets, red and white blood cells. ", None)
