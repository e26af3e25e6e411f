"""Sentiment of sentences: MiniLM, fine-tuned, teaches encoders of two layers, from its own layers or from nothing."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.kit import inputs, measures
from experiments.kit.tasks import minilm, networks
from experiments.kit.tasks.task import Measure, Method, Task, Training
from experiments.language import lm
from jaxkd import data, losses, metrics, models, objectives, teachers
from jaxkd.data import text
from jaxkd.types import Model, Objective, TrainState, Variables

CLASSES, LENGTH, LAYERS = 2, 40, 2
BATCH, LABELED = 32, 16  # sentences of a batch, and those with a label where few have one
SHARE = 0.05  # of the training sentences, where few have a label
TEACHER_STEPS, TEACHER_RATE = 400, 5e-5
RATES = {"random": 3e-4, "layers": 1e-4}
MAP = {0: 2, 1: 5}  # the teacher's layer for each of the student's
TAPS = ("embedded", *(f"{name}{number}" for number in (0, 1) for name in ("hidden", "scores", "values")))
TEACHER_TAPS = ("embedded", *(f"{name}{number}" for number in (2, 5) for name in ("hidden", "scores", "values")))

CE = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled")
KD = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0)
COSINE = jaxkd.term(losses.hidden_cosine, "student/hidden", "teacher/hidden")


def progressive(steps: int) -> Objective:
    """Returns layers one after the other for half of the training, and then labels and soft targets."""
    turn = max(steps // (2 * LAYERS), 1)

    def after(step: Any) -> Any:
        return jnp.where(step < LAYERS * turn, 0.0, 1.0)

    targets = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0, weight=after)
    ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled", weight=after)
    return jaxkd.combine(ce=ce, kd=targets, layers=objectives.mobilebert(MAP, steps_per_layer=turn))


def objective(loss: str, steps: int) -> Objective:
    """Returns the objective of a loss."""
    if loss == "mobilebert":
        return progressive(steps)
    features = {
        "distilbert": {"cosine": COSINE},
        "minilm": {"attention": objectives.minilm(1, 5)},
        "tinybert": {"layers": objectives.tinybert(MAP, embedding_name="embedded")},
    }
    return CE if loss == "alone" else jaxkd.combine(ce=CE, kd=KD, **features.get(loss, {}))


LOSSES = {
    "alone": ("alone", "cross-entropy with the labels"),
    "kd": ("soft targets", "Hinton et al. (2015), T = 2"),
    "distilbert": ("DistilBERT", "Sanh et al. (2019): soft targets and the cosine of the last hidden states"),
    "minilm": ("MiniLM", "Wang et al. (2020): soft targets, attention and value relations of the last layer"),
    "tinybert": ("TinyBERT", "Jiao et al. (2020): soft targets, embeddings, attention and hidden states of 2 layers"),
    "mobilebert": ("progressive", "Sun et al. (2020): one layer after the other for half of the steps, then targets"),
}
STARTS = {
    "random": ("random weights", ("alone", "kd", "minilm", "tinybert")),
    "layers": ("MiniLM's layers", tuple(LOSSES)),
}
SHARES = {"": "all labels", "_few": "5% of the labels"}


def name_of(start: str, loss: str, few: str) -> str:
    """Returns the name of a method.

    >>> name_of("random", "alone", ""), name_of("layers", "alone", "_few"), name_of("layers", "kd", "")
    ('student', 'layers_few', 'layers_kd')
    """
    begin = {"random": "student" if loss == "alone" else "random", "layers": "layers"}[start]
    return f"{begin}{'' if loss == 'alone' else '_' + loss}{few}"


PARTS = {
    name_of(start, loss, few): (start, loss, few)
    for few in SHARES
    for start, (_, taken) in STARTS.items()
    for loss in taken
}
"""Initial weights, loss and share of the labels, by method."""


def _method(start: str, loss: str, few: str) -> Method:
    title, note = LOSSES[loss]
    # Layers alone are compared with random weights alone, and all others with their own student alone.
    baseline = name_of("random" if loss == "alone" else start, "alone", few)
    return Method(f"{STARTS[start][0]}, {title}, {SHARES[few]}", note, baseline=baseline)


METHODS = {name: _method(*parts) for name, parts in PARTS.items()}


class Sst:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        if config.data_dir is None:
            raise ValueError("--data-dir: expected the folder of prepared TFDS sets, with sst_sentences/binary.")
        self._folder, self._steps = folder, networks.before(TEACHER_STEPS, config)
        fields, self._trained, tokenizer = minilm.load(minilm.folder(config))
        self._sets = {}
        for split in ("train", "validation", "test"):
            found = text.read_examples(data.source("sst_sentences/binary", split, config.data_dir))
            made = minilm.rows(found["sentence"], tokenizer, LENGTH, label=np.array(found["label"], np.int32))
            # The losses of tokens read the mask; a sentence counts where any of its tokens does.
            self._sets[split] = {**made, "mask": made["token_mask"], "labeled": np.ones(len(made["label"]), bool)}
        self._fields = fields | {"classes": CLASSES, "tap_attention": True}
        self._teacher = minilm.encoder(models.EncoderConfig(**self._fields), *TEACHER_TAPS)
        self._student = minilm.encoder(models.EncoderConfig(**self._fields | {"layers": LAYERS}), *TAPS)

    def _loader(self, split: str) -> data.Resident:
        return data.Resident(self._sets[split], 128, shuffle=False)

    @functools.cached_property
    def _taught(self) -> Variables:
        layers = range(self._fields["layers"])
        fields = self._fields | {"dropout_rate": 0.1, "tap_attention": False}
        model = minilm.beginning(minilm.encoder(models.EncoderConfig(**fields)), self._trained, layers)
        train = data.Resident(self._sets["train"], BATCH, seed=0, drop_remainder=True)
        return lm.trained_once(
            self._folder / "teacher.safetensors",
            model,
            train,
            {"validation": self._loader("validation")},
            TEACHER_RATE,
            self._steps,
            measures=metrics.classification,
        )

    def _inputs(self, few: str, seed: int) -> Any:
        """Returns batches of labeled sentences, half of them without their labels where few have one."""
        whole = self._sets["train"]
        if not few:
            return data.Resident(whole, BATCH, seed=seed, drop_remainder=True)
        count = len(whole["label"])
        chosen = np.random.default_rng(seed).permutation(count)[: max(int(SHARE * count), LABELED)]
        return inputs.few_labels(whole, chosen, (LABELED, BATCH - LABELED), seed)

    def _begun(self, start: str) -> Model:
        if start == "random":
            return self._student
        return minilm.beginning(self._student, self._trained, minilm.every(LAYERS, self._fields["layers"]))

    def training(self, method: str, seed: int, steps: int) -> Training:
        start, loss, few = PARTS[method]
        teacher = teachers.none() if loss == "alone" else teachers.frozen(self._teacher, self._taught)
        kd = lm.distill(
            self._begun(start), teacher, objective(loss, steps), RATES[start], steps, metrics.classification
        )
        return Training(kd, self._inputs(few, seed), steps, {"validation": self._loader("validation")})

    @functools.cached_property
    def _taught_logits(self) -> np.ndarray:
        return minilm.outputs_of(self._teacher, self._taught, self._sets["test"], "logits")

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        logits = minilm.outputs_of(self._student, state.student, self._sets["test"], "logits")
        found = measures.describe(logits, self._sets["test"]["label"], self._taught_logits)
        return {name: found[name] for name in ("accuracy", "agreement", "calibration_error", "nll")}

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        return []

    def references(self) -> Mapping[str, Mapping[str, float]]:
        found = measures.describe(self._taught_logits, self._sets["test"]["label"])
        named = {name: found[name] for name in ("accuracy", "calibration_error")}
        return {"MiniLM, fine-tuned": named | {"parameters": networks.parameters(self._taught)}}


TASK = Task(
    title="SST: sentiment of sentences, two layers of six",
    about=(
        "Teacher: MiniLM-L6 (22.7 M parameters), fine-tuned on all labels of the training split. Students: its first "
        "and its fourth layer, or 2 layers of the same width with random weights. Soft targets are part of every "
        "method but the students alone. Where 5% of the labels are given, half of each batch is of these sentences "
        "and half of all 6,920 without their labels; the teacher is the same."
    ),
    measures={
        "accuracy": Measure("accuracy (%)", scale=100, digits=1),
        "agreement": Measure("agreement (%)", scale=100, digits=1),
        "calibration_error": Measure("calibration error (%)", scale=100, digits=1, higher=False),
    },
    methods=METHODS,
    steps=300,
    evaluations=5,
    open=Sst,
    curve="validation/accuracy",
    rises=True,
)
