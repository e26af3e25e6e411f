"""One training: its evaluation, its outputs and its curve."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.kit import inputs
from experiments.kit.recipe import Transform
from jaxkd import data, training
from jaxkd.types import Batch, Context, Distiller, Metrics, Model, TrainState, Variables


def measured(
    kd: Distiller,
    model: Model,
    pick: Callable[[TrainState], Variables] = lambda state: state.student,
    look: Transform | None = None,
    metrics: Callable[[Context], Metrics] | None = None,
) -> Distiller:
    """Returns a distiller whose evaluation runs one model and not the teacher.

    The teacher's outputs for an image that is not augmented never change: where the batch has them, as
    ``teacher_logits``, agreement is measured. So every method is measured in the same way, at the cost of one forward
    pass of the student.
    """

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        given = look(batch) if look is not None else batch
        outputs, _ = model.apply(pick(state), given, key=None, train=False)
        teacher = {"logits": given["teacher_logits"]} if "teacher_logits" in given else {}
        context = Context(outputs, teacher, given, state.step, jaxkd.distillers.mapped_axis())
        return (metrics or jaxkd.metrics.classification)(context)

    return kd._replace(evaluate=evaluate)


def run(
    kd: Distiller, train: Any, splits: Mapping[str, Any], *, chunk: int | None = None, **options: Any
) -> training.FitResult:
    """Trains, or resumes an interrupted training, and keeps one checkpoint.

    A dispatch has one step on a CPU, where XLA runs gradients of convolutions in a loop of its own many times slower.
    Without splits, nothing is evaluated.
    """
    if not splits:
        options.pop("eval_every", None)
    chunk = chunk or (1 if jax.default_backend() == "cpu" else 100)
    return training.fit(kd, train, eval_data=splits or None, keep=1, chunk=chunk, **options)


def by_epoch(kd: Distiller, train: Any, splits: Mapping[str, Any], **options: Any) -> training.FitResult:
    """Returns the result of `run` with a checkpoint at every epoch and the best one."""
    return run(kd, train, splits, **{"best": judge(splits), "checkpoint_every": train.steps_per_epoch, **options})


def judge(splits: Iterable[str]) -> str:
    """Returns the metric that chooses the best epoch: that of the held-out images, if there are any."""
    return "validation/accuracy" if any(name.startswith("validation") for name in splits) else "test/accuracy"


def outputs_of(
    model: Model, variables: Variables, dataset: data.Dataset, names: tuple[str, ...], normalize: Transform
) -> dict[str, np.ndarray]:
    """Returns a model's outputs for a set, float32 ``[examples, ...]`` by name."""

    def apply(variables: Variables, batch: Batch, **options: Any) -> Any:
        outputs, state = model.apply(variables, normalize(batch), **options)
        return {name: jnp.asarray(outputs[name], jnp.float32) for name in names}, state

    images = data.Resident(dataset, min(inputs.EVAL_BATCH, data.num_examples(dataset)), shuffle=False)
    pieces = list(training.predict(model._replace(apply=apply), variables, images))
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in names}


def curve(history: Iterable[Mapping[str, float]]) -> dict[str, list[float]]:
    """Returns the evaluations of a run, and the mean training loss before each."""
    found: dict[str, list[float]] = {}
    losses: list[float] = []
    for row in history:
        losses += [row["train/loss"]] if "train/loss" in row else []
        kept = {name: value for name, value in row.items() if name.startswith(("test/", "validation/"))}
        if kept:
            kept = {"epoch": row["epoch"]} | kept | ({"train/loss": float(np.mean(losses))} if losses else {})
            losses = []
        for name, value in kept.items():
            found.setdefault(name, []).append(value)
    return found


def best(curve: Mapping[str, Sequence[float]]) -> dict[str, Any]:
    """Returns the first of the best evaluations of a curve."""
    by = judge(curve)
    where = curve[by].index(max(curve[by]))
    return {"epoch": curve["epoch"][where], "by": by, "test/accuracy": curve["test/accuracy"][where]}


def of_seed(history: Iterable[Mapping[str, float]], i: int) -> tuple[dict[str, float], ...]:
    """Returns the history of one of several seeds that were trained as one program.

    >>> of_seed([{"step": 50, "train/loss[seed=0]": 4.0, "train/loss[seed=7]": 3.0}], 1)
    ({'step': 50, 'train/loss': 3.0},)
    """
    history = list(history)
    # The first row has the metrics of all seeds, in their order.
    end = list(dict.fromkeys("[" + name.partition("[")[2] for row in history for name in row if "[" in name))[i]
    return tuple(
        {name.removesuffix(end): value for name, value in row.items() if name.endswith(end) or "[" not in name}
        for row in history
    )
