"""Strings of digits: a recognizer teaches smaller ones, frame by frame or by what it writes."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.kit.rows import cost
from experiments.kit.tasks import networks
from experiments.kit.tasks.task import Figure, Measure, Method, Task, Training
from experiments.speech import alignment, recognizers, sounds
from experiments.speech.recognizers import BOTH, CTC, EVAL_BATCH, STRING
from jaxkd import teachers
from jaxkd.types import Batch, Model, Objective, TrainState, Variables

TRAIN, VALIDATION, TEST, HELD_OUT = 2000, 200, 500, 300  # strings
TEACHER_STEPS = 1200
BEAMS, N_BEST = 8, 4
READ = 12  # strings to read

TEACHERS = {"lstm": recognizers.lstm(96, 2), "cnn": recognizers.cnn(64, 4)}
STUDENTS = {
    "lstm": recognizers.lstm(48, 1),
    "cnn": recognizers.cnn(32, 2),
    "stream": recognizers.cnn(32, 2, right_context=1),
}
NAMES = {"lstm": "LSTM", "cnn": "CNN", "stream": "streaming CNN"}


def _frames(blank_weight: float, weight: float = 0.5) -> Objective:
    return jaxkd.term(recognizers.frames, *BOTH, "student/mask", weight=weight, blank_weight=blank_weight)


def _with_ctc(term: Objective) -> Objective:
    return jaxkd.combine(ctc=HALF, kd=term)


HALF = jaxkd.term(recognizers.ctc, "student/logits", *STRING, weight=0.5)
ALL_FRAMES = _with_ctc(_frames(1.0))
N_BEST_KD = _with_ctc(
    jaxkd.term(
        recognizers.n_best,
        "student/logits",
        "batch/hypotheses",
        "batch/hypotheses_mask",
        "batch/log_posteriors",
        "student/mask",
        weight=0.5,
    )
)
PARTS: dict[str, tuple[str, str, Objective]] = {
    "student": ("lstm", "", CTC),
    "frames": ("lstm", "lstm", ALL_FRAMES),
    "frames_spikes": ("lstm", "lstm", _with_ctc(_frames(0.0))),
    "posteriors": ("lstm", "lstm", _with_ctc(jaxkd.term(recognizers.sequence_frames, *BOTH, *STRING, weight=0.5))),
    "n_best": ("lstm", "n_best", N_BEST_KD),
    "dark": ("lstm", "lstm", CTC),
    "from_cnn": ("lstm", "cnn", ALL_FRAMES),
    "cnn": ("cnn", "", CTC),
    "cnn_from_lstm": ("cnn", "lstm", ALL_FRAMES),
    "stream": ("stream", "", CTC),
    "stream_frames": ("stream", "lstm", ALL_FRAMES),
    "stream_n_best": ("stream", "n_best", N_BEST_KD),
}
"""Student, teacher (or ``n_best``, what the recurrent one writes) and objective, by method."""

NOTES = {
    "student": ("alone", "Graves et al. (2006): CTC with the transcripts"),
    "frames": ("all frames", "half CTC, half KL of every frame, summed over a string's frames"),
    "frames_spikes": ("frames without blanks", "the same, of frames whose likeliest class of the teacher is a digit"),
    "posteriors": (
        "posteriors of the sequence",
        "Huang et al. (2018): half CTC, half cross-entropy with the teacher's posteriors of each frame given the whole "
        "string and its transcript, by the forward-backward algorithm",
    ),
    "n_best": (
        "N-best",
        "Takashima et al. (2019): half CTC of the transcript, half CTC of the teacher's 4 likeliest transcripts, "
        "weighted by their posteriors; they are found once, of the strings without noise",
    ),
    "dark": ("dark knowledge", "Tang et al. (2016): KL of every frame first, for half of the steps, then CTC"),
    "from_cnn": ("all frames, CNN teacher", "Xu et al. (2018), the other way round: from a CNN to an LSTM"),
    "cnn": ("alone", "CTC with the transcripts"),
    "cnn_from_lstm": ("all frames, LSTM teacher", "Xu et al. (2018): from an LSTM to a CNN, frame by frame"),
    "stream": ("alone", "CTC; an output looks 100 ms ahead"),
    "stream_frames": ("all frames", "of the recurrent teacher, which reads the whole string"),
    "stream_n_best": ("N-best", "of the same teacher, without its alignment"),
}
BASELINES = {"lstm": "student", "cnn": "cnn", "stream": "stream"}
METHODS = {
    name: Method(
        f"{NAMES[PARTS[name][0]]}, {title}", note, student=NAMES[PARTS[name][0]], baseline=BASELINES[PARTS[name][0]]
    )
    for name, (title, note) in NOTES.items()
}


class Strings:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        self._folder, self._recordings = folder, sounds.read(config)
        self._steps = networks.before(TEACHER_STEPS, config)
        self._sets = {
            split: self._memory(split, count)
            for split, count in (("validation", VALIDATION), ("test", TEST), ("held_out", HELD_OUT))
        }

    def _memory(self, split: str, count: int, **options: Any) -> dict[str, np.ndarray]:
        size = min(count, EVAL_BATCH)
        return sounds.in_memory(sounds.strings(self._recordings[split], size, count, shuffle=False), **options)

    def _loader(self, seed: int) -> Any:
        return sounds.strings(self._recordings["train"], recognizers.BATCH, TRAIN, seed, drop_remainder=True)

    @property
    def _splits(self) -> dict[str, Any]:
        return {"validation": recognizers.evaluated(self._sets["validation"])}

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _taught(self, name: str) -> Variables:
        """Returns the variables of a teacher, which is trained once."""
        kd = recognizers.teaching(TEACHERS[name], self._steps, functools.partial(sounds.heard, seed=0))
        path = self._folder / f"{name}.safetensors"
        return networks.trained_once(path, kd, self._loader(0), self._splits, steps=self._steps)

    @functools.cached_property
    def _hypotheses(self) -> dict[str, np.ndarray]:
        """Returns the recurrent teacher's transcripts of the training strings, by index, found once."""
        path = self._folder / "hypotheses.npz"
        if not path.exists():
            clean = self._memory("train", TRAIN, prepare=sounds.features)
            found = recognizers.hypotheses(TEACHERS["lstm"], self._taught("lstm"), clean, BEAMS, N_BEST)
            with path.with_suffix(".part").open("wb") as file:
                np.savez(file, **found)  # type: ignore[arg-type]
            path.with_suffix(".part").rename(path)
        with np.load(path) as file:
            return dict(file)

    def training(self, method: str, seed: int, steps: int) -> Training:
        student, teacher, objective = PARTS[method]
        heard = functools.partial(sounds.heard, seed=seed)
        known = self._hypotheses if teacher == "n_best" else {}

        def prepare(batch: Batch) -> Batch:
            return {**heard(batch), **{name: jnp.asarray(value)[batch["index"]] for name, value in known.items()}}

        if teacher in ("", "n_best"):
            kd = recognizers.distill(STUDENTS[student], teachers.none(), objective, steps, prepare)
        else:
            frozen = teachers.frozen(TEACHERS[teacher], self._taught(teacher))
            if method == "dark":
                soft = jaxkd.combine(kd=_frames(1.0, weight=1.0))
                then = jaxkd.combine(ctc=objective)
                kd = recognizers.staged(STUDENTS[student], frozen, soft, then, steps, prepare)
            else:
                kd = recognizers.distill(STUDENTS[student], frozen, objective, steps, prepare)
        before = {"flops": self._search_flops} if teacher == "n_best" else {}
        return Training(kd, self._loader(seed), steps, self._splits, before=before)

    @functools.cached_property
    def _search_flops(self) -> float:
        """FLOPs of the teacher on all training strings."""
        part = {name: self._sets["test"][name][:EVAL_BATCH] for name in ("features", "frame_mask")}
        forward = functools.partial(TEACHERS["lstm"].apply, key=None, train=False)
        return TRAIN / len(part["features"]) * cost.flops(forward, self._taught("lstm"), part)

    def _measured(self, model: Model, variables: Variables) -> dict[str, float]:
        rates = {}
        for split in ("test", "held_out"):
            known, found = (
                recognizers.spoken(self._sets[split]),
                recognizers.transcripts(model, variables, self._sets[split]),
            )
            rates[f"{split}_error_rate"] = recognizers.error_rate(known, found)
            rates[f"{split}_exact"] = recognizers.shares(known, found)
            rates[f"{split}_agreement"] = recognizers.shares(self._written(split), found)
        return rates

    @functools.lru_cache(maxsize=2)  # noqa: B019
    def _written(self, split: str) -> list[str]:
        """Returns the recurrent teacher's transcripts of a set."""
        return recognizers.transcripts(TEACHERS["lstm"], self._taught("lstm"), self._sets[split])

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        return self._measured(STUDENTS[PARTS[method][0]], state.student)

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        part = {name: value[:READ] for name, value in self._sets["test"].items()}
        found = recognizers.transcripts(STUDENTS[PARTS[method][0]], state.student, part)
        teacher = self._written("test")[:READ]
        rows = zip(recognizers.spoken(part), found, teacher, strict=True)
        return [
            f"{known}: {ours}" + ("" if ours == theirs else f" (teacher: {theirs})") for known, ours, theirs in rows
        ]

    def references(self) -> Mapping[str, Mapping[str, float]]:
        return {
            f"{NAMES[name]}, teacher": self._measured(model, self._taught(name))
            | {"parameters": networks.parameters(self._taught(name))}
            for name, model in TEACHERS.items()
        }

    def shown(self, method: str, state: TrainState) -> dict[str, Any]:
        """Returns what the figure shows: posteriors of a test string, and of the student alone what it reads."""
        one = {name: value[:1] for name, value in self._sets["test"].items()}
        found: dict[str, Any] = {"posteriors": recognizers.posteriors(STUDENTS[PARTS[method][0]], state.student, one)}
        if method == "student":
            found["teacher"] = recognizers.posteriors(TEACHERS["lstm"], self._taught("lstm"), one)
            found["features"] = one["features"][0, one["frame_mask"][0]].round(2).tolist()
            found["spoken"] = recognizers.spoken(one)[0]
        return found


def _shown(work: Any, method: str, state: TrainState) -> dict[str, Any]:
    found: dict[str, Any] = work.shown(method, state)
    return found


TASK = Task(
    title="Strings of spoken digits",
    about=(
        "Two to four digits by one of five speakers, with pauses, at another speed and with white noise 0 to 20 dB "
        "below the speech: 2,000 training strings of 2,000 recordings. Teachers: a bidirectional LSTM of 2 layers of "
        "width 96, and a CNN of 4 layers of width 64, trained with CTC. Students: a bidirectional LSTM of 1 layer of "
        "width 48, a CNN of 2 layers of width 32, and the same CNN with less look-ahead. Test strings, with noise, are "
        "of recordings that no training string contains; those of the held-out speaker are of a sixth one. Transcripts "
        "are those of each frame's likeliest class. Agreement is the share of strings of which a network and the "
        "recurrent teacher write the same."
    ),
    measures={
        "test_error_rate": Measure("word error rate (%)", scale=100, digits=2, higher=False),
        "test_exact": Measure("exact strings (%)", scale=100, digits=1),
        "test_agreement": Measure("agreement (%)", scale=100, digits=1),
        "held_out_error_rate": Measure("word error rate, held-out speaker (%)", scale=100, digits=2, higher=False),
    },
    methods=METHODS,
    steps=600,
    evaluations=6,
    open=Strings,
    curve="validation/exact",
    rises=True,
    figures={
        "alignments": Figure(
            "What networks read of a test string, and the classes of its frames", alignment.draw, _shown
        )
    },
)
