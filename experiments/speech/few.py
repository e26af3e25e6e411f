"""Few labels: a recognizer of a tenth of the recordings teaches a small one with all others."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.kit import inputs
from experiments.kit.tasks import networks
from experiments.kit.tasks.task import Measure, Method, Task, Training
from experiments.speech import recognizers, sounds
from experiments.speech.recognizers import BOTH, EVAL_BATCH, STRING
from jaxkd import data, teachers
from jaxkd.types import Batch, Model, Objective, TrainState, Variables

SHARE = 0.1  # of the recordings
LABELED, OTHERS = 16, 16  # strings of labeled recordings in a batch, and of all recordings without their labels
FEW, TRAIN, VALIDATION, TEST, HELD_OUT = 1000, 2000, 200, 500, 300  # strings
TEACHER_STEPS = 600
BEAMS, THRESHOLD = 8, 0.9  # least probability of a pseudo-label
READ = 12

TEACHER, STUDENT = recognizers.lstm(96, 2), recognizers.lstm(48, 1)


def _ctc(where: str) -> Objective:
    return jaxkd.term(recognizers.ctc, "student/logits", *STRING, where=where)


SOFT = jaxkd.term(recognizers.frames, *BOTH, "student/mask", where="batch/unlabeled", blank_weight=1.0)
PARTS: dict[str, Objective] = {
    "student": _ctc("batch/labeled"),
    "pseudo": jaxkd.combine(ctc=_ctc("batch/labeled"), pseudo=_ctc("batch/confident")),
    "pseudo_all": jaxkd.combine(ctc=_ctc("batch/labeled"), pseudo=_ctc("batch/unlabeled")),
    "soft": jaxkd.combine(ctc=_ctc("batch/labeled"), kd=SOFT),
    "both": jaxkd.combine(ctc=_ctc("batch/labeled"), pseudo=_ctc("batch/confident"), kd=SOFT),
}

METHODS = {
    "student": Method("student alone", "CTC with the transcripts of labeled recordings"),
    "pseudo": Method("filtered pseudo-labels", "and CTC with what the teacher writes, where it is at least 90% sure"),
    "pseudo_all": Method("pseudo-labels, not filtered", "and CTC with everything that it writes"),
    "soft": Method("soft targets", "and KL of all frames, without labels"),
    "both": Method("filtered pseudo-labels + soft targets", "both"),
}


class Few:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        self._folder, self._recordings = folder, sounds.read(config)
        self._steps = networks.before(TEACHER_STEPS, config)
        self._sets = {
            split: self._memory(self._recordings[split], count)
            for split, count in (("validation", VALIDATION), ("test", TEST), ("held_out", HELD_OUT))
        }

    def _memory(self, arrays: sounds.Arrays, count: int, **options: Any) -> dict[str, np.ndarray]:
        return sounds.in_memory(sounds.strings(arrays, min(count, EVAL_BATCH), count, shuffle=False), **options)

    def _few(self, batch_size: int, seed: int) -> Any:
        """Returns strings of a seed's labeled recordings."""
        whole = data.Dataset(self._recordings["train"], 1 + recognizers.LABELS, sounds.SET)
        (few,) = data.split(whole, [SHARE], seed=seed)
        return sounds.strings(few.arrays, batch_size, FEW, seed, drop_remainder=True)

    @property
    def _splits(self) -> dict[str, Any]:
        return {"validation": recognizers.evaluated(self._sets["validation"])}

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def _taught(self, seed: int) -> Variables:
        """Returns the variables of a seed's teacher, which is trained once on its labeled recordings."""
        kd = recognizers.teaching(TEACHER, self._steps, functools.partial(sounds.heard, seed=seed))
        train = self._few(LABELED + OTHERS, seed)
        path = self._folder / f"teacher{seed}.safetensors"
        return networks.trained_once(path, kd, train, self._splits, steps=self._steps, seed=seed)

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def _pseudo(self, seed: int) -> dict[str, np.ndarray]:
        """Returns what a seed's teacher writes of the strings without labels, how probable it is, and whether right."""
        clean = self._memory(self._recordings["train"], TRAIN, prepare=sounds.features)
        found = recognizers.hypotheses(TEACHER, self._taught(seed), clean, BEAMS, 1)
        size = clean["label"].shape[1]  # a longer transcript is none that a string can have
        label, mask = found["hypotheses"][:, 0], found["hypotheses_mask"][:, 0]
        possible = mask.sum(axis=1) <= size
        label, mask = label[:, :size], mask[:, :size]
        right = possible & np.all(np.where(mask, label, 0) == clean["label"], axis=1)
        probability = np.where(possible, np.exp(found["log_posteriors"][:, 0]), 0)
        return {"label": label, "label_mask": mask, "confident": probability >= THRESHOLD, "right": right}

    def training(self, method: str, seed: int, steps: int) -> Training:
        pseudo = self._pseudo(seed) if method in ("pseudo", "pseudo_all", "both") else {}

        def prepare(batch: Batch) -> Batch:
            labeled = jnp.arange(LABELED + OTHERS) < LABELED
            found = {**sounds.heard(batch, seed), "labeled": labeled, "unlabeled": ~labeled}
            own = {name: jnp.asarray(value)[batch["index"] % len(value)] for name, value in pseudo.items()}
            for name in ("label", "label_mask"):
                unknown = own.get(name, jnp.zeros_like(found[name]))
                found[name] = jnp.where(labeled[:, None], found[name], unknown)
            return found | ({"confident": ~labeled & own["confident"]} if own else {})

        soft = method in ("soft", "both")
        teacher = teachers.frozen(TEACHER, self._taught(seed)) if soft else teachers.none()
        kd = recognizers.distill(STUDENT, teacher, PARTS[method], steps, prepare)
        others = sounds.strings(self._recordings["train"], OTHERS, TRAIN, seed, drop_remainder=True)
        return Training(kd, inputs.Joined(self._few(LABELED, seed), others), steps, self._splits)

    def _measured(self, model: Model, variables: Variables, seed: int) -> dict[str, float]:
        found = {}
        for split in ("test", "held_out"):
            known = recognizers.spoken(self._sets[split])
            ours, theirs = self._written(model, variables, split), self._written(TEACHER, self._taught(seed), split)
            found[f"{split}_error_rate"] = recognizers.error_rate(known, ours)
            found[f"{split}_exact"] = recognizers.shares(known, ours)
            found[f"{split}_agreement"] = recognizers.shares(theirs, ours)
        return found

    def _written(self, model: Model, variables: Variables, split: str) -> list[str]:
        return recognizers.transcripts(model, variables, self._sets[split])

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        pseudo = self._pseudo(seed)
        kept = pseudo["confident"]
        of_labels = {"kept": kept.mean(), "right": pseudo["right"].mean()}
        if kept.any():
            of_labels["kept_right"] = pseudo["right"][kept].mean()
        return self._measured(STUDENT, state.student, seed) | {name: float(x) for name, x in of_labels.items()}

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        part = {name: value[:READ] for name, value in self._sets["test"].items()}
        found = recognizers.transcripts(STUDENT, state.student, part)
        return [f"{known}: {ours}" for known, ours in zip(recognizers.spoken(part), found, strict=True)]

    def references(self) -> Mapping[str, Mapping[str, float]]:
        size = {"parameters": networks.parameters(self._taught(0))}
        return {"teacher, first seed": self._measured(TEACHER, self._taught(0), 0) | size}


TASK = Task(
    title="Spoken digits, a tenth of them labeled",
    about=(
        "Two to four digits by one of five speakers, as in `strings`, with labels of 200 of the 2,000 recordings. "
        "Teacher: a bidirectional LSTM of 2 layers of width 96, trained on strings of these alone. Student: one of 1 "
        "layer of width 48. Every method sees the same batches: 16 strings of labeled recordings and 16 of all "
        "recordings, without their transcripts. Each seed has labeled recordings and a teacher of its own. "
        "Pseudo-labels are found once, by a prefix beam search on the strings without noise."
    ),
    measures={
        "test_error_rate": Measure("word error rate (%)", scale=100, digits=2, higher=False),
        "test_exact": Measure("exact strings (%)", scale=100, digits=1),
        "test_agreement": Measure("agreement (%)", scale=100, digits=1),
        "held_out_error_rate": Measure("word error rate, held-out speaker (%)", scale=100, digits=2, higher=False),
        "kept": Measure("pseudo-labels kept (%)", scale=100, digits=1),
        "kept_right": Measure("of these right (%)", scale=100, digits=1),
    },
    methods=METHODS,
    steps=600,
    evaluations=6,
    open=Few,
    curve="validation/exact",
    rises=True,
)
