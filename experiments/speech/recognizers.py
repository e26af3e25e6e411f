"""Recognizers of strings: networks, losses in nats a string, transcripts and error rates."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import jiwer
import numpy as np

import jaxkd
from experiments.kit import training
from experiments.kit.tasks import networks
from experiments.speech import sounds
from jaxkd import adapters, data, distillers, losses, metrics, models, schemes, teachers
from jaxkd.schemes import phases
from jaxkd.types import Batch, Context, Distiller, Metrics, Model, Objective, Teacher, Variables

LABELS = len(sounds.WORDS)
BATCH, RATE, TEACHER_RATE = 32, 5e-3, 3e-3
EVAL_BATCH = 100

Set = Mapping[str, np.ndarray]


def lstm(width: int, layers: int, *, outputs: Any = None, **options: Any) -> Model:
    """Returns a bidirectional recurrent recognizer as a model, with its outputs by an adapter's ``outputs``."""
    config = models.AcousticLSTMConfig(
        bands=sounds.BANDS, labels=LABELS, width=width, layers=layers, subsampling=2, **options
    )
    return adapters.nnx(
        lambda rngs: models.AcousticLSTM(config, rngs=rngs), inputs=models.speech_inputs, outputs=outputs
    )


def cnn(width: int, layers: int, **options: Any) -> Model:
    """Returns a convolutional recognizer as a model."""
    config = models.AcousticCNNConfig(
        bands=sounds.BANDS, labels=LABELS, width=width, layers=layers, subsampling=2, mlp_width=2 * width, **options
    )
    return adapters.nnx(lambda rngs: models.AcousticCNN(config, rngs=rngs), inputs=models.speech_inputs)


# Losses of strings: arrays first, so that each is a term of paths.


def ctc(logits: Any, label: Any, label_mask: Any, frame_mask: Any, where: Any = None) -> Any:
    """Returns the CTC loss of each string."""
    return losses.ctc(logits, label, label_where=label_mask, frame_where=frame_mask, where=where)


def frames(student: Any, teacher: Any, frame_mask: Any, *, blank_weight: float, temperature: float = 1.0) -> Any:
    """Returns the divergence of each string's frames, summed."""
    found = losses.frame_kl(student, teacher, blank_weight=blank_weight, temperature=temperature, where=frame_mask)
    return jnp.sum(found, axis=1)


def n_best(logits: Any, hypotheses: Any, masks: Any, log_posteriors: Any, frame_mask: Any) -> Any:
    """Returns the CTC loss of each string's N-best hypotheses of the teacher."""
    return losses.ctc_n_best(logits, hypotheses, log_posteriors, label_where=masks, frame_where=frame_mask)


def occupancy(logits: Any, label: Any, label_mask: Any, frame_mask: Any) -> Any:
    """Returns the posterior of each frame's class given the whole string and its transcript.

    The sum over the alignments that go through a class at a frame, by the sum over all alignments. The gradient of the
    CTC loss by the logits is the softmax minus it.
    """
    gradient = jax.grad(lambda z: jnp.sum(ctc(z, label, label_mask, frame_mask)))(logits)
    found = jnp.maximum(jax.nn.softmax(logits) - gradient, 0)
    return jnp.where(frame_mask[..., None], found, 0)


def sequence_frames(student: Any, teacher: Any, label: Any, label_mask: Any, frame_mask: Any) -> Any:
    """Returns the cross-entropy of each string's frames with the teacher's posteriors given the transcript."""
    targets = jax.lax.stop_gradient(occupancy(teacher, label, label_mask, frame_mask))
    return jnp.sum(losses.soft_cross_entropy(student, targets, where=frame_mask), axis=1)


STRING = "batch/label", "batch/label_mask", "student/mask"
BOTH = "student/logits", "teacher/logits"
CTC = jaxkd.term(ctc, "student/logits", *STRING)


def recognized(context: Context) -> Metrics:
    """Returns the share of strings that are recognized without an error, and the CTC loss."""
    logits, mask, batch = context.student["logits"], context.student["mask"], context.batch
    where = batch.get("mask")
    return {
        "exact": metrics.from_values(exact(logits, mask, batch), where),
        "ctc": metrics.from_values(ctc(logits, batch["label"], batch["label_mask"], mask, where), where),
    }


def exact(logits: Any, mask: Any, batch: Batch) -> Any:
    """Returns which strings are recognized without an error."""
    known = jnp.where(batch["label_mask"], batch["label"], 0)
    found = models.ctc_greedy(logits, where=mask).labels  # 0 behind the last label
    size = max(found.shape[1], known.shape[1])
    first, second = (jnp.pad(x, ((0, 0), (0, size - x.shape[1]))) for x in (found, known))
    return jnp.all(first == second, axis=1)


def distill(
    student: Model,
    teacher: Teacher,
    objective: Objective,
    steps: int,
    prepare: Callable[[Batch], Batch],
    measures: Any = recognized,
    *,
    rate: float | None = None,
) -> Distiller:
    """Returns a distiller of recordings, whose features are computed in the step; evaluations read features."""
    kd: Distiller = networks.distill(student, teacher, objective, rate or RATE, steps, measures)
    return distillers.preprocess(kd, train_transform=prepare)


def staged(
    student: Model,
    teacher: Teacher,
    first: Objective,
    then: Objective,
    steps: int,
    prepare: Callable[[Batch], Batch],
    measures: Any = recognized,
) -> Distiller:
    """Returns a distiller of two objectives, of which each has half of the steps and an optimizer of its own."""
    half = max(steps // 2, 1)
    stages = (
        phases.Stage(first, networks.adam(RATE, half), steps=half),
        phases.Stage(then, networks.adam(RATE, max(steps - half, 1))),
    )
    kd = schemes.staged(student, teacher, *stages, metrics=lambda context: {})
    kd = training.measured(kd, student, metrics=measures)
    return distillers.preprocess(kd, train_transform=prepare)


def teaching(model: Model, steps: int, prepare: Callable[[Batch], Batch]) -> Distiller:
    """Returns a distiller of a teacher, which learns from the transcripts."""
    return distill(model, teachers.none(), CTC, steps, prepare, rate=TEACHER_RATE)


def evaluated(arrays: Set) -> data.Resident:
    """Returns batches of a set for evaluations during a training."""
    return data.Resident(arrays, min(EVAL_BATCH, len(arrays["label"])), shuffle=False)


def outputs_of(model: Model, variables: Variables, arrays: Set, *names: str) -> list[np.ndarray]:
    """Returns outputs of a model for all rows of a set."""
    forward = jax.jit(lambda v, batch: [model.apply(v, batch, key=None, train=False)[0][name] for name in names])
    count, size = len(arrays["features"]), min(EVAL_BATCH, len(arrays["features"]))
    found = []
    for start in range(0, count, size):
        rows = np.minimum(np.arange(start, start + size), count - 1)  # one shape, one program
        found.append(forward(variables, {name: arrays[name][rows] for name in ("features", "frame_mask")}))
    return [np.concatenate([np.asarray(part) for part in parts])[:count] for parts in zip(*found, strict=True)]


def transcripts(model: Model, variables: Variables, arrays: Set) -> list[str]:
    """Returns what a network writes of each string, by each frame's likeliest class."""
    logits, mask = outputs_of(model, variables, arrays, "logits", "mask")
    found = jax.device_get(jax.jit(lambda z, w: models.ctc_greedy(z, where=w))(logits, mask))
    return [sounds.words(*row) for row in zip(found.labels, found.mask, strict=True)]


def spoken(arrays: Set) -> list[str]:
    """Returns the transcripts of a set."""
    return [sounds.words(*row) for row in zip(arrays["label"], arrays["label_mask"], strict=True)]


def error_rate(known: Sequence[str], found: Sequence[str]) -> float:
    """Returns the word error rate."""
    return float(jiwer.wer(list(known), list(found)))


def shares(known: Sequence[str], found: Sequence[str]) -> float:
    """Returns the share of strings that are equal."""
    return float(np.mean([a == b for a, b in zip(known, found, strict=True)]))


def hypotheses(model: Model, variables: Variables, arrays: Set, beams: int, count: int) -> dict[str, np.ndarray]:
    """Returns the N likeliest transcripts of each string, with their log-probabilities, by a prefix beam search."""
    logits, mask = outputs_of(model, variables, arrays, "logits", "mask")
    length = arrays["label"].shape[1] + 1
    search = jax.jit(lambda z, w: models.ctc_beam_search(z, beams=beams, n_best=count, length=length, where=w))
    parts = []
    for start in range(0, len(logits), EVAL_BATCH):
        rows = np.minimum(np.arange(start, start + min(EVAL_BATCH, len(logits))), len(logits) - 1)
        parts.append(jax.device_get(search(logits[rows], mask[rows])))
    names = ("hypotheses", "hypotheses_mask", "log_posteriors")
    joined = [np.concatenate(values)[: len(logits)] for values in zip(*parts, strict=True)]
    return dict(zip(names, joined, strict=True))


def posteriors(model: Model, variables: Variables, arrays: Set) -> list[list[float]]:
    """Returns the probabilities of the classes of the first string's frames, rounded."""
    logits, mask = outputs_of(model, variables, arrays, "logits", "mask")
    probabilities = np.asarray(jax.nn.softmax(logits[0]))[mask[0]]
    return probabilities.round(3).tolist()  # type: ignore[no-any-return]
