"""Self-distillation without labels: features by nearest neighbors and a probe, and as a smaller student's teacher."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn.linear_model import LogisticRegression

import jaxkd
from experiments.classification import images
from experiments.kit import inputs, training
from experiments.kit.recipe import Transform
from experiments.kit.tasks import networks
from experiments.kit.tasks.task import Measure, Method, Task, Training
from jaxkd import adapters, data, distillers, losses, metrics, models, objectives, teachers, wrappers
from jaxkd.types import Distiller, Model, Objective, TrainState, Variables

CLASSES, LABELS, NEIGHBORS = 10, 100, 10  # labeled images of a seed; neighbors that vote
LABELED, BATCH = 16, 64  # labeled images in a batch, and all of its images
LARGE, SMALL = (16, 32, 64), (4, 8, 16)  # channels of the convolutions
PROTOTYPES, CROPS = 256, 2  # outputs of the projection head; small crops of an image
MOMENTUM = 0.99  # of the teacher at the beginning; it rises to 1

CE = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled")
FEATURES = objectives.embedding_transfer("student/pooled", "teacher/pooled", mse=0.0, cosine=1.0)

METHODS = {
    "student": Method("student alone", f"supervised, {LABELS} labeled images"),
    "dino": Method("DINO", f"Caron et al. (2021), 2 large and {CROPS} small crops of all images, no labels"),
    "uncentered": Method(
        "DINO, no center", "the center stays 0: outputs collapse unless something else keeps them apart"
    ),
    "small": Method("small, alone", f"supervised, {LABELS} labeled images", student="small", baseline="small"),
    "small_dino": Method("small, DINO itself", "as DINO, no labels", student="small", baseline="small"),
    "small_features": Method(
        "small, features of DINO",
        "cosine to the large network's features, no labels",
        student="small",
        baseline="small",
    ),
    "small_both": Method("small, labels + features of DINO", "both", student="small", baseline="small"),
}


class Convolutions(nn.Module):
    """Convolutions with BatchNorm, each but the first with a stride of 2: features, and logits of them."""

    filters: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Any, train: bool = False) -> dict[str, Any]:
        """Returns ``pooled`` features and ``logits`` of images."""
        for number, features in enumerate(self.filters):
            x = nn.Conv(features, (3, 3), strides=1 if number == 0 else 2, use_bias=False)(x)
            x = nn.relu(nn.BatchNorm(use_running_average=not train, momentum=0.9)(x))
        pooled = x.mean(axis=(1, 2))
        return {"pooled": pooled, "logits": nn.Dense(CLASSES)(pooled)}


def backbone(filters: tuple[int, ...]) -> Model:
    """Returns a convolutional network with its features."""
    return adapters.linen(Convolutions(filters))


def projected(model: Model) -> Model:
    """Returns a network with a projection head on its features."""
    head = models.ProjectionHead(PROTOTYPES, hidden_features=128, bottleneck=32)
    return wrappers.with_exits(model, {"dino": wrappers.Exit("pooled", adapters.linen(head, inputs="feature"))})


def optimizer(steps: int) -> optax.GradientTransformation:
    """Returns the optimizer of all trainings."""
    rate = optax.warmup_cosine_decay_schedule(0.0, 2e-3, max(steps // 10, 1), max(steps, 2), 1e-5)
    return optax.chain(optax.clip_by_global_norm(3.0), optax.adamw(rate, weight_decay=0.01))


def crops(seed: int, normalize: Transform) -> Transform:
    """Returns a transform that draws two large and several small crops of an image."""

    def view(**options: Any) -> Transform:
        return data.compose(functools.partial(data.random_resized_crop, seed=seed, flip=False, **options), normalize)

    large, small = view(area=(0.5, 1.0)), view(area=(0.2, 0.5), size=4)
    return data.multi_crop({"image": large, "second": large, **{f"small{i}": small for i in range(CROPS)}})


def self_distilled(model: Model, seed: int, steps: int, centered: bool, normalize: Transform) -> Distiller:
    """Returns DINO's distiller of a network: its views, its teacher, its center."""
    names = ["second", *(f"small{i}" for i in range(CROPS))]
    student = wrappers.views(projected(model), {name: {"image": name} for name in names})
    taught = wrappers.views(projected(model), {"second": {"image": "second"}})
    rise = optax.cosine_decay_schedule(1 - MOMENTUM, max(steps, 1))
    teacher = teachers.ema(taught, decay=lambda step: 1 - rise(step), train=True)
    objective = objectives.dino(
        ["student/dino/logits", *(f"student/{name}/dino/logits" for name in names)],
        ["teacher/dino/logits", "teacher/second/dino/logits"],
        center_momentum=0.9 if centered else 1.0,
    )
    kd = jaxkd.distill(
        student, teacher, jaxkd.combine(dino=objective), optimizer=optimizer(steps), metrics=lambda context: {}
    )
    views = crops(seed, normalize)
    return distillers.preprocess(kd, train_transform=views, eval_transform=views)


class Dino(images.Opened):
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        super().__init__("digits", config, folder)
        self._large, self._small = backbone(LARGE), backbone(SMALL)
        kd = self._unlabeled("dino", 0, config.steps)
        trained = networks.trained_once(
            folder / "teacher.safetensors", kd, self._loader(0), self.splits, steps=config.steps
        )
        self._taught = wrappers.get_member(trained, "model")

    def _loader(self, seed: int) -> data.Resident:
        return data.Resident(self.images.train, BATCH, seed=seed, drop_remainder=True)

    def _is_dino(self, method: str) -> bool:
        return method in ("dino", "uncentered", "small_dino")

    def _unlabeled(self, method: str, seed: int, steps: int) -> Distiller:
        model = self._small if method == "small_dino" else self._large
        return self_distilled(model, seed, steps, method != "uncentered", self.images.normalize)

    def _few(self, seed: int) -> np.ndarray:
        """Returns the positions of a seed's labeled images."""
        return np.random.default_rng(seed).permutation(data.num_examples(self.images.train))[:LABELS]

    def training(self, method: str, seed: int, steps: int) -> Training:
        if self._is_dino(method):
            return Training(self._unlabeled(method, seed, steps), self._loader(seed), steps, self.splits)
        objective: Objective = {
            "small_features": jaxkd.combine(features=FEATURES),
            "small_both": jaxkd.combine(ce=CE, features=FEATURES),
        }.get(method, CE)
        student = self._large if method == "student" else self._small
        taught = method in ("small_features", "small_both")
        teacher = teachers.frozen(self._large, self._taught) if taught else teachers.none()
        views = data.compose(self.images.moved(seed), self.images.normalize)
        kd = images.distill(self.images, student, teacher, objective, optimizer(steps), views)
        arrays = self.images.train.arrays
        batches = inputs.few_labels(
            {name: arrays[name] for name in ("image", "label")}, self._few(seed), (LABELED, BATCH - LABELED), seed
        )
        return Training(kd, batches, steps, self.splits)

    def _scores(self, model: Model, variables: Variables, seed: int) -> dict[str, float]:
        """Returns how well classes are read from a network's features."""
        normalize, names = self.images.normalize, ("pooled",)
        features = {
            split: training.outputs_of(model, variables, getattr(self.images, split), names, normalize)["pooled"]
            for split in ("train", "test")
        }
        label = {split: getattr(self.images, split).arrays["label"] for split in ("train", "test")}
        few, found = self._few(seed), {}
        for name, chosen in (("", few), ("_all", np.arange(len(label["train"])))):
            known, classes = features["train"][chosen], label["train"][chosen]
            rows = jnp.asarray(features["test"]), jnp.asarray(known), jnp.asarray(classes)
            votes = metrics.neighbor_votes(*rows, neighbors=NEIGHBORS)
            found[f"neighbors{name}"] = float(np.mean(votes.argmax(-1) == label["test"]))
            center, scale = known.mean(0), known.std(0) + 1e-6
            probe = LogisticRegression(max_iter=2000).fit((known - center) / scale, classes)
            found[f"probe{name}"] = float(probe.score((features["test"] - center) / scale, label["test"]))
        return found

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        model = self._small if method.startswith("small") else self._large
        variables = wrappers.get_member(state.teacher, "model") if self._is_dino(method) else state.student
        return self._scores(model, variables, seed)

    def references(self) -> Mapping[str, Mapping[str, float]]:
        batch = {"image": jnp.zeros((1, 8, 8, 1))}
        found = {"DINO of seed 0": self._scores(self._large, self._taught, 0)}
        for name, model in (("random features", self._large), ("small, random features", self._small)):
            seeds = [self._scores(model, model.init(jax.random.key(seed), batch), seed) for seed in range(3)]
            found[name] = {key: float(np.mean([one[key] for one in seeds])) for key in seeds[0]}
        return found


percent = functools.partial(Measure, scale=100, digits=1)
TASK = Task(
    title="DINO: features of digits without labels",
    about=(
        "A network of three convolutions learns 64 features of 1,097 digits without labels. Classes are read from the "
        f"frozen features by the {NEIGHBORS} nearest neighbors and by a logistic regression, with {LABELS} labeled "
        "images, other ones for each seed, or with all; features are those of the mean teacher. The student alone is "
        "the same network, supervised with these labels. A network of a quarter of the channels learns from them, "
        "by DINO itself, or from the features of the large one. The learning curve is the entropy of the mean target, "
        f"at most log {PROTOTYPES} = {np.log(PROTOTYPES):.2f} nats: 0 is a collapse."
    ),
    measures={
        "probe": percent(f"probe, {LABELS} labels (%)"),
        "neighbors": percent(f"neighbors, {LABELS} labels (%)"),
        "probe_all": percent("probe, all labels (%)"),
        "neighbors_all": percent("neighbors, all labels (%)"),
    },
    methods=METHODS,
    steps=800,
    evaluations=10,
    open=Dino,
    curve="validation/dino/marginal_entropy",
    rises=True,
)
TASKS = {"dino": TASK}
