"""Byte language models of English novels, held out by book: which part of the teacher's distribution is enough."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

import jaxkd
from experiments.kit.tasks import networks
from experiments.kit.tasks.task import Measure, Method, Task, Training
from experiments.language import lm
from jaxkd import cache, data, losses, models, teachers
from jaxkd.cache import codecs
from jaxkd.data import text
from jaxkd.types import Objective, TrainState

TEACHER = models.DecoderConfig(vocabulary=256, width=192, layers=4, heads=6, mlp_width=512)
STUDENT = models.DecoderConfig(vocabulary=256, width=96, layers=2, heads=3, mlp_width=256)
LENGTH, BATCH, RATE = 128, 16, 3e-3
TEACHER_STEPS = 4000
BYTES = {"train": 200_000, "validation": 60_000, "test": 120_000}  # of each book, from its beginning
KEPT = (1, 2, 4, 8, 16, 64)  # classes of top-k targets


def top_k(student: Any, teacher: Any, *, k: int, where: Any = None) -> Any:
    """Returns the divergence to the k likeliest classes and a tail."""
    log_probs, indices = jax.lax.top_k(jax.nn.log_softmax(teacher), k)
    return losses.top_k_kl(student, log_probs, indices, where=where)


def renormalized(student: Any, teacher: Any, *, k: int, where: Any = None) -> Any:
    """Returns the divergence of the k likeliest classes, renormalized for both networks."""
    values, indices = jax.lax.top_k(teacher, k)
    return losses.soft_target_kl(jnp.take_along_axis(student, indices, -1), values, temperature=1.0, where=where)


def without_tail(student: Any, teacher: Any, *, k: int, where: Any = None) -> Any:
    """Returns the cross-entropy with the k likeliest probabilities, which do not sum to 1."""
    probs, indices = jax.lax.top_k(jax.nn.softmax(teacher), k)
    return losses.sparse_cross_entropy(student, probs, indices, where=where)


def _logits(loss: Any, **options: Any) -> Objective:
    return jaxkd.term(loss, "student/logits", "teacher/logits", **options)


ONLINE: dict[str, Objective] = {
    "kl": _logits(losses.soft_target_kl, temperature=1.0),
    "reverse": _logits(losses.reverse_kl, temperature=1.0),
    "distillm": _logits(losses.skew_kl),
    **{f"top{k}": _logits(functools.partial(top_k, k=k)) for k in KEPT},
    "top4_no_tail": _logits(functools.partial(without_tail, k=4)),
    "top4_renormalized": _logits(functools.partial(renormalized, k=4)),
}
"""Objectives by method, of a teacher that runs in every step."""

CACHED: dict[str, tuple[codecs.Codec, Objective]] = {
    "cached_top16": (
        codecs.packed_top_k(16),
        jaxkd.term(losses.top_k_kl, "student/logits", "teacher/logits/log_probs", "teacher/logits/indices"),
    ),
    "sampled12": (
        codecs.sampled(12),
        jaxkd.term(losses.sparse_cross_entropy, "student/logits", "teacher/logits/weights", "teacher/logits/indices"),
    ),
}
"""Codec and objective by method, of a teacher that was evaluated before."""

METHODS = {
    "student": Method("student alone", "cross-entropy with the next byte"),
    "kl": Method("KL, online", "the teacher's whole distribution, T = 1"),
    "reverse": Method("reverse KL, online", "KL from the student's distribution to the teacher's"),
    "distillm": Method("skewed KL (DistiLLM)", "Ko et al. (2024), skew 0.1, on the data"),
    **{f"top{k}": Method(f"top {k} with tail", "all other bytes as one bucket") for k in KEPT},
    "top4_no_tail": Method("top 4, no tail", "probabilities of 4 bytes, which do not sum to 1"),
    "top4_renormalized": Method("top 4, renormalized", "both distributions renormalized to 4 bytes"),
    "cached_top16": Method("top 16, cached", "packed on disk; the teacher does not run in training"),
    "sampled12": Method("12 draws, cached (RS-KD)", "Anshumann et al. (2025), unbiased; on disk"),
}


class Novels:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        if config.data_dir is None:
            raise ValueError("--data-dir: expected the folder of prepared TFDS sets, with english_novels.")
        self._folder, self._steps = folder, config.steps
        self._teacher_steps = networks.before(TEACHER_STEPS, config)
        self._splits = {name: self._packed(name, config.data_dir) for name in ("train", "validation", "test")}
        self._teacher, self._student = lm.decoder(TEACHER), lm.decoder(STUDENT)

    @staticmethod
    def _packed(split: str, data_dir: pathlib.Path) -> data.Resident:
        books = text.read_examples(data.source("english_novels", split, data_dir))["text"]
        rows = text.packed([book[: BYTES[split]] for book in books], text.ByteTokenizer(()), LENGTH)
        return data.Resident(
            rows, BATCH if split == "train" else 64, shuffle=split == "train", drop_remainder=split == "train"
        )

    @functools.cached_property
    def _taught(self) -> Any:
        part = {"validation": self._splits["validation"]}
        path = self._folder / "teacher.safetensors"
        return lm.trained_once(path, self._teacher, self._splits["train"], part, RATE / 2, self._teacher_steps)

    def training(self, method: str, seed: int, steps: int) -> Training:
        inputs = data.Resident(self._splits["train"].arrays, BATCH, seed=seed, drop_remainder=True)
        teacher, objective, loader = teachers.none(), lm.CE, inputs
        if method in CACHED:
            codec, objective = CACHED[method]
            made = cache.write_cache(
                self._folder / method,
                self._teacher,
                self._taught,
                inputs,
                transform=None,
                codecs={"logits": codec},
                batch_size=64,
                name="cached",
            )
            teacher, loader = teachers.cached(made), cache.attach(made, inputs)
        elif method != "student":
            teacher, objective = teachers.frozen(self._teacher, self._taught), ONLINE[method]
        kd = lm.distill(self._student, teacher, objective, RATE, steps)
        return Training(kd, loader, steps, {"validation": self._splits["validation"]})

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        return lm.measure(self._student, state.student, self._teacher, self._taught, self._splits["test"])

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        return lm.continuations(
            STUDENT, state.student, ["It was a ", '"My dear ', "The old man "], text.ByteTokenizer(())
        )

    def references(self) -> Mapping[str, Mapping[str, float]]:
        found = lm.measure(self._teacher, self._taught, self._teacher, self._taught, self._splits["test"])
        return {"teacher": found | {"parameters": networks.parameters(self._taught)}}


TASK = Task(
    title="English novels, byte by byte",
    about=(
        "Teacher: a decoder of 4 layers of width 192, trained on the training books. Students: 2 layers of width 96, "
        "on the same books, 2,048 bytes a step. Test books are of other authors. Every method sees the same batches."
    ),
    measures={
        "bits_per_byte": Measure("bits per byte", digits=3, higher=False),
        "forward_kl": Measure("KL to the teacher (nats)", digits=3, higher=False),
        "acceptance": Measure("acceptance α (%)", scale=100, digits=1),
        "ece": Measure("calibration error (%)", scale=100, digits=1, higher=False),
    },
    methods=METHODS,
    steps=1500,
    evaluations=10,
    open=Novels,
    curve="validation/bits_per_byte",
)
