"""Questions by kind, of which few have a label: a probe of MiniLM teaches a small encoder."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

import jaxkd
from experiments.kit import inputs, measures
from experiments.kit.tasks import minilm
from experiments.kit.tasks.task import Measure, Method, Task, Training
from experiments.language import lm
from jaxkd import data, losses, metrics, models, teachers
from jaxkd.data import text
from jaxkd.types import Objective, TrainState

LABELS, CLASSES, LENGTH = 500, 6, 32
LABELED, OTHERS, RATE = 32, 96, 1e-3  # labeled questions in a batch, and questions without their labels

CE = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled")


def _soft(where: str | None = None) -> Objective:
    loss = losses.soft_target_kl
    return jaxkd.term(loss, "student/logits", "batch/teacher_logits", temperature=1.0, where=where)


def _both(**terms: Objective) -> Objective:
    return jaxkd.combine(ce=CE, **terms)


EMBEDDING = "student/pooled", "batch/teacher_embedding"
OBJECTIVES: dict[str, Objective] = {
    "student": CE,
    "kd_labeled": _both(kd=_soft("batch/labeled")),
    "kd": _both(kd=_soft()),
    "relations": _both(distance=jaxkd.term(losses.distance_relation, *EMBEDDING, weight=3.0)),
    "similarity": _both(similarity=jaxkd.term(losses.similarity_preserving, *EMBEDDING, weight=300.0)),
    "embedding": _both(embedding=jaxkd.objectives.embedding_transfer(*EMBEDDING, mse=0.0, cosine=3.0)),
    "kd_embedding": _both(kd=_soft(), embedding=jaxkd.objectives.embedding_transfer(*EMBEDDING, mse=0.0, cosine=3.0)),
}

METHODS = {
    "student": Method("student alone", "cross-entropy on 500 labeled questions"),
    "kd_labeled": Method("soft targets, labeled questions", "Hinton et al. (2015), on the 500 questions alone"),
    "kd": Method("soft targets, all questions", "Hinton et al. (2015), on 5,452 questions, 500 of them with a label"),
    "relations": Method("distances (RKD)", "Park et al. (2019), to MiniLM's embeddings of all questions"),
    "similarity": Method("similarities (SP)", "Tung & Mori (2019), to MiniLM's embeddings of all questions"),
    "embedding": Method("embeddings, cosine", "MiniLM's embeddings of all questions by a learned linear map"),
    "kd_embedding": Method("soft targets + embeddings", "both"),
}


class Trec:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        if config.data_dir is None:
            raise ValueError("--data-dir: expected the folder of prepared TFDS sets, with trec.")
        place = minilm.folder(config)
        tokenizer = minilm.load(place)[2]
        self._sets = {}
        for split in ("train", "test"):
            found = text.read_examples(data.source("trec", split, config.data_dir))
            made = minilm.rows(found["text"], tokenizer, LENGTH, label=np.array(found["label-coarse"], np.int32))
            embedded = minilm.embeddings(place, made, folder / f"{split}.npy")
            self._sets[split] = {**made, "teacher_embedding": embedded}
        self._model = minilm.encoder(
            models.EncoderConfig(
                vocabulary=tokenizer.vocabulary,
                width=64,
                layers=2,
                heads=4,
                max_length=LENGTH,
                classes=CLASSES,
                dropout_rate=0.1,
            )
        )
        self._probes: dict[int, Any] = {}

    def _few(self, seed: int) -> np.ndarray:
        """Returns the positions of a seed's labeled questions."""
        return np.random.default_rng(seed).permutation(len(self._sets["train"]["tokens"]))[:LABELS]

    def _taught(self, seed: int, split: str) -> np.ndarray:
        """Returns the logits of a seed's probe, fitted to the labeled questions."""
        if seed not in self._probes:
            few, train = self._few(seed), self._sets["train"]
            probe = LogisticRegression(C=30.0, max_iter=2000)
            self._probes[seed] = probe.fit(train["teacher_embedding"][few], train["label"][few])
        probe = self._probes[seed]
        logits = np.full((len(self._sets[split]["tokens"]), CLASSES), -20.0, np.float32)
        logits[:, probe.classes_] = probe.decision_function(self._sets[split]["teacher_embedding"])
        return logits

    def _set(self, split: str, seed: int) -> dict[str, np.ndarray]:
        count = len(self._sets[split]["tokens"])
        own = {"teacher_logits": self._taught(seed, split), "labeled": np.ones(count, bool)}
        return {**self._sets[split], **own}

    def training(self, method: str, seed: int, steps: int) -> Training:
        whole = self._set("train", seed)
        unknown = {"label": np.full_like(whole["label"], -1)}
        batches = inputs.few_labels(whole, self._few(seed), (LABELED, OTHERS), seed, unknown)
        kd = lm.distill(self._model, teachers.none(), OBJECTIVES[method], RATE, steps, metrics.classification)
        splits = {"test": data.Resident(self._set("test", seed), 250, shuffle=False)}
        return Training(kd, batches, steps, splits)

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        test = self._set("test", seed)
        logits = minilm.outputs_of(self._model, state.student, test, "logits")
        found = measures.describe(logits, test["label"], test["teacher_logits"])
        return {name: found[name] for name in ("accuracy", "agreement", "calibration_error", "nll")}

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        return []

    def references(self) -> Mapping[str, Mapping[str, float]]:
        test = self._sets["test"]["label"]
        hits = [np.mean(np.argmax(self._taught(seed, "test"), -1) == test) for seed in range(3)]
        return {"MiniLM + probe": {"accuracy": float(np.mean(hits)), "parameters": 22_713_216}}


TASK = Task(
    title="TREC: kinds of questions, 500 labels",
    about=(
        "Teacher: MiniLM-L6 (22.7 M parameters) with a logistic regression on 500 labeled questions. Student: an "
        "encoder of 2 layers of width 64, from random weights. Every method sees the same batches, 32 questions with "
        "labels and 96 of all 5,452 without. Each seed has its own labeled questions and its own probe."
    ),
    measures={
        "accuracy": Measure("accuracy (%)", scale=100, digits=1),
        "agreement": Measure("agreement (%)", scale=100, digits=1),
        "calibration_error": Measure("calibration error (%)", scale=100, digits=1, higher=False),
    },
    methods=METHODS,
    steps=400,
    evaluations=10,
    open=Trec,
    curve="test/accuracy",
    rises=True,
)
