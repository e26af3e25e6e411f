"""What is meant by a string of digits: a network that reads text teaches one that hears, in two stages."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np
from sklearn.neural_network import MLPClassifier

import jaxkd
from experiments.kit import inputs, measures
from experiments.kit.tasks import minilm
from experiments.kit.tasks.task import Measure, Method, Task, Training
from experiments.speech import recognizers, sounds
from experiments.speech.recognizers import EVAL_BATCH
from jaxkd import losses, metrics, objectives, teachers
from jaxkd.types import Batch, Objective, TrainState

BOUNDS = (7, 11, 15, 20)  # of the sum of the digits, where the next class begins
CLASSES = ("below 7", "7 to 10", "11 to 14", "15 to 19", "from 20")
LABELED, OTHERS = 16, 16  # strings with a class in a batch, and with a transcript alone
FEW, TRAIN, TEST, HELD_OUT = 200, 2000, 500, 300  # strings
FEW_SEED = 1000  # of the strings with a class, and the seed is added
LENGTH = 6  # pieces of a text, with the ends


def _outputs(found: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a recognizer's outputs, with its classes of the whole string as ``logits``."""
    return {**found, "ctc_logits": found["logits"], "logits": found["class_logits"]}


STUDENT = recognizers.lstm(48, 1, classes=len(CLASSES), outputs=_outputs)

CE = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled")
KL = jaxkd.term(losses.soft_target_kl, "student/logits", "batch/teacher_logits", temperature=1.0)
WORDS = jaxkd.term(recognizers.ctc, "student/ctc_logits", "batch/words", "batch/words_mask", "student/mask")
EMBEDDING = objectives.embedding_transfer("student/pooled", "batch/teacher_embedding", mse=0.0, cosine=1.0)
FIRST: dict[str, Objective] = {
    "ctc": jaxkd.combine(words=WORDS),
    "embedding": jaxkd.combine(embedding=EMBEDDING),
    "two_stages": jaxkd.combine(embedding=EMBEDDING),
}
"""Objective of the first half of the steps."""
THEN: dict[str, Objective] = {"logits": jaxkd.combine(ce=CE, kd=KL), "two_stages": jaxkd.combine(ce=CE, kd=KL)}
"""Objective of the others, where it is not cross-entropy alone."""

METHODS = {
    "student": Method("student alone", "cross-entropy with the classes of 200 strings"),
    "ctc": Method("transcripts first", "CTC with the transcripts of all strings, for half of the steps: no teacher"),
    "embedding": Method("embeddings first", "cosine to MiniLM's embeddings of all transcripts, by a linear map"),
    "logits": Method("logits", "cross-entropy, and KL to the text teacher's classes of the transcripts of all strings"),
    "two_stages": Method("embeddings first, then logits", "Kim et al. (2021)"),
}


def sums(labels: Any, mask: Any) -> Any:
    """Returns the class of each string's sum.

    >>> sums(np.array([[10, 10, 5], [1, 7, 0]]), np.array([[True, True, True], [True, True, False]])).tolist()
    [4, 0]
    """
    total = jnp.sum(jnp.where(mask, labels - 1, 0), axis=1)
    return jnp.sum(total[:, None] >= jnp.array(BOUNDS)[None], axis=1, dtype=jnp.int32)


class Intent:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        place = minilm.folder(config)
        self._recordings = sounds.read(config)
        self._sets = {split: self._memory(split, count) for split, count in (("test", TEST), ("held_out", HELD_OUT))}
        most = sounds.DIGITS[1]
        numbers = [f"{n:0{size}d}" for size in range(1, most + 1) for n in range(10**size)]
        spoken = [" ".join(sounds.WORDS[int(digit)] for digit in number) for number in numbers]
        made = minilm.rows(spoken, minilm.load(place)[2], LENGTH)
        embedded = minilm.embeddings(place, made, folder / "embeddings.npy")
        kinds = [np.searchsorted(BOUNDS, sum(map(int, number)), side="right") for number in numbers]
        reader = MLPClassifier((128,), max_iter=60, random_state=0).fit(embedded, kinds)
        logits = np.log(np.maximum(reader.predict_proba(embedded), 1e-9))
        self._rows = dict(zip(spoken, range(len(spoken)), strict=True))
        self._text = {"teacher_embedding": embedded, "teacher_logits": logits.astype(np.float32)}

    def _memory(self, split: str, count: int) -> dict[str, np.ndarray]:
        loader = sounds.strings(self._recordings[split], min(count, EVAL_BATCH), count, shuffle=False)
        return sounds.in_memory(loader)

    def _loaders(self, seed: int) -> list[Any]:
        """Returns the strings with a class, and all strings."""
        sizes = ((LABELED, FEW, FEW_SEED + seed), (OTHERS, TRAIN, 0))
        return [
            sounds.strings(self._recordings["train"], size, count, seed, string_seed=own, drop_remainder=True)
            for size, count, own in sizes
        ]

    def _read(self, arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns the text teacher's embeddings and logits of transcripts."""
        rows = [self._rows[spoken] for spoken in recognizers.spoken(arrays)]
        return {name: value[rows] for name, value in self._text.items()}

    def training(self, method: str, seed: int, steps: int) -> Training:
        loaders = self._loaders(seed)
        # The strings with a class are in front of the others.
        read = [self._read(loader.take(np.arange(loader.num_examples))) for loader in loaders]
        text = {name: np.concatenate([part[name] for part in read]) for name in self._text}

        def prepare(batch: Batch) -> Batch:
            labeled = jnp.arange(LABELED + OTHERS) < LABELED
            found = classified(sounds.heard(batch, seed))
            rows = jnp.where(labeled, batch["index"], FEW + batch["index"])
            return {**found, "labeled": labeled, **{name: jnp.asarray(x)[rows] for name, x in text.items()}}

        then, arguments = THEN.get(method, jaxkd.combine(ce=CE)), (steps, prepare, metrics.classification)
        if method in FIRST:
            kd = recognizers.staged(STUDENT, teachers.none(), FIRST[method], then, *arguments)
        else:
            kd = recognizers.distill(STUDENT, teachers.none(), then, *arguments)
        splits = {"test": recognizers.evaluated(classified(self._sets["test"]))}
        return Training(kd, inputs.Joined(*loaders), steps, splits)

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        found: dict[str, float] = {}
        for split, arrays in self._sets.items():
            (logits,) = recognizers.outputs_of(STUDENT, state.student, arrays, "logits")
            label, theirs = (
                np.asarray(sums(arrays["label"], arrays["label_mask"])),
                self._read(arrays)["teacher_logits"],
            )
            of_split = measures.describe(logits, label, theirs)
            found |= {f"{split}_{name}": of_split[name] for name in ("accuracy", "agreement", "nll")}
        return found

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        part = {name: value[:12] for name, value in self._sets["test"].items()}
        (logits,) = recognizers.outputs_of(STUDENT, state.student, part, "logits")
        rows = zip(recognizers.spoken(part), logits.argmax(axis=-1), strict=True)
        return [f"{spoken}: {CLASSES[number]}" for spoken, number in rows]

    def references(self) -> Mapping[str, Mapping[str, float]]:
        found = {}
        for split, arrays in self._sets.items():
            label = np.asarray(sums(arrays["label"], arrays["label_mask"]))
            found[f"{split}_accuracy"] = float(np.mean(self._read(arrays)["teacher_logits"].argmax(-1) == label))
        return {"MiniLM + MLP, reads the transcript": found | {"parameters": 22_713_216}}


def classified(batch: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a batch with the class as its label, and the transcript as ``words``."""
    words = {"words": batch["label"], "words_mask": batch["label_mask"]}
    others = {name: value for name, value in batch.items() if name != "label_mask"}
    return {**others, **words, "label": sums(batch["label"], batch["label_mask"])}


TASK = Task(
    title="Spoken digits: the class of their sum",
    about=(
        "Is the sum of two to four spoken digits below 7, 7 to 10, 11 to 14, 15 to 19, or 20 and more? Teacher: "
        "MiniLM-L6 and an MLP on its embeddings, which know this of all 11,110 texts of one to four digits and hear "
        "nothing. Student: a bidirectional LSTM of width 48 on the recordings of `strings`, whose mean state is "
        "classified. The class of 200 strings is known, and the transcripts of 2,000 others, which the student alone "
        "does not use. Each seed has strings with a class of its own."
    ),
    measures={
        "test_accuracy": Measure("accuracy (%)", scale=100, digits=1),
        "test_agreement": Measure("agreement (%)", scale=100, digits=1),
        "test_nll": Measure("NLL (nats)", digits=3, higher=False),
        "held_out_accuracy": Measure("accuracy, held-out speaker (%)", scale=100, digits=1),
    },
    methods=METHODS,
    steps=600,
    evaluations=6,
    open=Intent,
    curve="test/accuracy",
    rises=True,
)
