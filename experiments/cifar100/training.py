"""One training of the recipe, of a teacher or a student, and the logits of what it leaves."""

from __future__ import annotations

import dataclasses
import json
import pathlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.cifar100 import inputs, recipe
from experiments.cifar100.config import Protocol
from jaxkd import data, distillers, losses, metrics, training
from jaxkd._core.files import write_atomically
from jaxkd.types import Batch, Context, Distiller, Metrics, TrainState, Variables

OnEval = Callable[[int, Mapping[str, float], TrainState], Any]


class Clock:
    """How long a run has been at work, over all processes that were.

    Args:
      path: of a file that keeps it; called after each evaluation, it writes the time until then.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path, self._began, self._before, self.seconds = path, time.monotonic(), 0.0, 0.0
        if path.exists():
            self._before = self.seconds = float(json.loads(path.read_text())["seconds"])

    def __call__(self, step: int, metrics: Mapping[str, float], state: TrainState) -> None:
        """For `jaxkd.training.fit`, as ``on_eval``."""
        self.seconds = self._before + time.monotonic() - self._began
        self._path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(self._path, json.dumps({"step": step, "seconds": self.seconds}) + "\n")


def supervised() -> jaxkd.Objective:
    """Cross-entropy."""
    return jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")


def measured(kd: Distiller, model: jaxkd.Model) -> Distiller:
    """A distiller whose evaluation looks at the student alone.

    What the teacher says of an image that is not augmented never changes: where there is one, its logits are in the
    batch as ``teacher_logits``. Every method is then measured in the same way, at the cost of the student's forward.
    """

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        outputs, _ = model.apply(state.student, batch, key=None, train=False)
        teacher = {"logits": batch["teacher_logits"]} if "teacher_logits" in batch else {}
        return metrics.classification(Context(outputs, teacher, batch, state.step))

    return kd._replace(evaluate=evaluate)


def placed(kd: Distiller, model: jaxkd.Model, transform: data.Transform) -> Distiller:
    """A distiller for images as they are stored: augmented and normalized to train, normalized to evaluate."""
    return distillers.preprocess(measured(kd, model), train_transform=transform, eval_transform=recipe.normalize)


def run(
    kd: Distiller,
    train: Any,
    splits: Mapping[str, Any],
    steps: int,
    eval_every: int,
    *,
    key: Any,
    best: str | None,
    directory: pathlib.Path,
    config: Mapping[str, Any],
    on_eval: OnEval,
    progress: bool,
) -> training.FitResult:
    """Trains as every teacher and student is trained, and goes on where an interrupted training was.

    Args:
      kd: as `placed` makes it.
      train: the input.
      splits: inputs to evaluate on.
      steps: how many updates to make.
      eval_every: epochs between evaluations.
      key: of the initial weights.
      best: the metric whose best checkpoint is kept, if any.
      directory: for checkpoints and logs.
      config: what tells this run from others.
      on_eval: see `jaxkd.training.fit`.
      progress: show it.

    Returns:
      What `jaxkd.training.fit` returns.
    """
    return training.fit(
        kd,
        train,
        steps=steps,
        key=key,
        eval_data=splits,
        eval_every=eval_every * train.steps_per_epoch,
        best=best,
        directory=directory,
        checkpoint_every=train.steps_per_epoch,
        keep=1,
        config={"steps": steps, **config},
        log_every=50,
        on_eval=on_eval,
        progress=progress,
        chunk=1 if jax.default_backend() == "cpu" else 100,
    )


def judge(splits: Mapping[str, Any]) -> str:
    """The metric that says which epoch is best: of the held-out images, where there are any."""
    return f"{'validation' if 'validation' in splits else 'test'}/accuracy"


def outputs_of(model: jaxkd.Model, variables: Variables, dataset: data.Dataset, names: tuple[str, ...]) -> Any:
    """What a trained model says of every image of a set, in the set's order.

    Args:
      model: for normalized images, with what is asked for tapped.
      variables: its weights.
      dataset: the set; images are not augmented.
      names: of outputs.

    Returns:
      A float32 NumPy array ``[examples, ...]`` for each name.
    """

    @jax.jit
    def forward(variables: Variables, image: Any) -> dict[str, Any]:
        outputs, _ = model.apply(variables, recipe.normalize({"image": image}), key=None, train=False)
        return {name: outputs[name].astype(jnp.float32) for name in names}

    images = dataset.arrays["image"]
    size = min(inputs.EVAL_BATCH, len(images))
    pieces = []
    for start in range(0, len(images), size):
        piece = images[start : start + size]
        filled = np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)])  # one shape, one program
        pieces.append(jax.device_get(forward(variables, filled)))
    return {name: np.concatenate([piece[name] for piece in pieces])[: len(images)] for name in names}


def curve(history: tuple[dict[str, float], ...]) -> dict[str, list[float]]:
    """The evaluations of a run, and the training loss over the steps before each.

    >>> curve(({"step": 1, "train/loss": 4.0}, {"step": 2, "epoch": 1.0, "train/loss": 2.0, "test/accuracy": 0.5}))
    {'epoch': [1.0], 'test/accuracy': [0.5], 'train/loss': [3.0]}
    """
    found: dict[str, list[float]] = {}
    losses_seen: list[float] = []
    for row in history:
        if "train/loss" in row:
            losses_seen.append(row["train/loss"])
        if not any(name.startswith(("test/", "validation/")) for name in row):
            continue
        kept = {name: row[name] for name in row if name == "epoch" or name.startswith(("test/", "validation/"))}
        if losses_seen:
            kept["train/loss"] = float(np.mean(losses_seen))
        losses_seen = []
        for name, value in kept.items():
            found.setdefault(name, []).append(value)
    return found


def best(curve: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """The best evaluation of a curve: the first of the highest.

    >>> best({"epoch": [1.0, 2.0, 3.0], "test/accuracy": [0.25, 0.5, 0.5]})
    {'epoch': 2.0, 'by': 'test/accuracy', 'test/accuracy': 0.5}
    """
    by = "validation/accuracy" if "validation/accuracy" in curve else "test/accuracy"
    where = curve[by].index(max(curve[by]))
    return {"epoch": curve["epoch"][where], "by": by, "test/accuracy": curve["test/accuracy"][where]}


def settings(protocol: Protocol) -> dict[str, Any]:
    """The protocol as JSON can hold it, without what changes no number."""
    return dataclasses.asdict(protocol)
