"""One training: evaluation, clock, curve, and several seeds as one program."""

import json
import pathlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.kit import files, inputs
from experiments.kit.recipe import Transform
from jaxkd import data, distillers, training
from jaxkd.types import Batch, Context, Distiller, Metrics, Model, PyTree, TrainState, Variables

OnEval = Callable[[int, Mapping[str, float], TrainState], Any]


class Clock:
    """The time that a run has trained, over all its processes."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path, self._began, self._before, self.seconds = path, time.monotonic(), 0.0, 0.0
        if path.exists():
            self._before = self.seconds = float(json.loads(path.read_text())["seconds"])

    def __call__(self, step: int, metrics: Mapping[str, float], state: TrainState) -> None:
        """Notes the time; an ``on_eval`` of `jaxkd.training.fit`."""
        self.seconds = self._before + time.monotonic() - self._began
        files.write_json(self._path, {"step": step, "seconds": self.seconds})


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
        context = Context({"logits": outputs["logits"]}, teacher, given, state.step, jaxkd.distillers.mapped_axis())
        return (metrics or jaxkd.metrics.classification)(context)

    return kd._replace(evaluate=evaluate)


def run(
    kd: Distiller, train: Any, splits: Mapping[str, Any], *, chunk: int | None = None, **options: Any
) -> training.FitResult:
    """Trains, or resumes an interrupted training, and keeps one checkpoint.

    A dispatch has one step on a CPU, where XLA runs gradients of convolutions in a loop of its own many times slower.
    """
    chunk = chunk or (1 if jax.default_backend() == "cpu" else 100)
    return training.fit(kd, train, eval_data=splits, keep=1, chunk=chunk, **options)


def timed(
    kd: Distiller, train: Any, splits: Mapping[str, Any], directory: pathlib.Path, **options: Any
) -> tuple[training.FitResult, float]:
    """Returns the result of `run` with a checkpoint at every epoch and the best one, and its seconds."""
    clock, best = (
        Clock(directory / "seconds.json"),
        "validation/accuracy" if "validation" in splits else "test/accuracy",
    )
    options = {"best": best, "checkpoint_every": train.steps_per_epoch, "on_eval": clock, **options}
    return run(kd, train, splits, directory=directory, **options), clock.seconds


def outputs_of(
    model: Model, variables: Variables, dataset: data.Dataset, names: tuple[str, ...], normalize: Transform
) -> Any:
    """Returns a model's outputs for a set, float32 ``[examples, ...]`` by name."""

    @jax.jit
    def forward(variables: Variables, image: Any) -> dict[str, Any]:
        outputs, _ = model.apply(variables, normalize({"image": image}), key=None, train=False)
        return {name: jnp.asarray(outputs[name], jnp.float32) for name in names}

    images = dataset.arrays["image"]
    size = min(inputs.EVAL_BATCH, len(images))
    pieces = []
    for start in range(0, len(images), size):
        piece = images[start : start + size]
        filled = np.concatenate([piece, np.repeat(piece[-1:], size - len(piece), axis=0)])  # one shape, one program
        pieces.append(jax.device_get(forward(variables, filled)))
    return {name: np.concatenate([piece[name] for piece in pieces])[: len(images)] for name in names}


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
    by = "validation/accuracy" if "validation/accuracy" in curve else "test/accuracy"
    where = curve[by].index(max(curve[by]))
    return {"epoch": curve["epoch"][where], "by": by, "test/accuracy": curve["test/accuracy"][where]}


def run_seeds(
    make: Callable[[PyTree], Distiller],
    own: Sequence[PyTree],
    train: inputs.Seeds,
    splits: Mapping[str, Any],
    **options: Any,
) -> tuple[Distiller, training.FitResult]:
    """Trains several seeds as one distiller, which is returned with the result.

    ``make`` makes a seed's distiller from the arrays that only this seed has, such as its teacher's weights. Initial
    weights depend on the seed's own number only. Batches are ``[seeds, batch, ...]`` to train on, ``[batch, ...]`` to
    evaluate on.
    """
    stacked = jax.tree.map(lambda *x: jnp.stack([jnp.asarray(one) for one in x]), *own)
    kd = distillers.sweep(
        lambda seed: make(jax.tree.map(lambda x: x[seed], stacked)), batch_axis=0, seed=np.arange(len(own))
    )
    keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(train.arrays["seed"])
    return kd, run(kd, train, splits, key=keys, log_every=options["eval_every"], tensorboard=False, **options)


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
