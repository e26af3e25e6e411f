"""A training of several seeds: as one program, or one after the other.

Every seed has its own images, its own variables to begin with (those of its teachers), initial weights and an order of
batches. A method that makes a `Training` is trained, measured and compared with others by the same few lines.
"""

import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.kit import inputs, training
from experiments.kit.recipe import Transform
from experiments.kit.rows import cost
from jaxkd import data, distillers
from jaxkd.types import Context, Distiller, Metrics, Model, PyTree, TrainState, Variables

Own = Mapping[str, Variables]  # the variables that a seed has before a method begins: those of its teachers, by name
Make = Callable[[Own], Distiller]  # makes a seed's distiller from what the seed has


class Part(NamedTuple):
    """A part of a training, to count its cost: a distiller, and its number of steps."""

    make: Make
    steps: int


class Training(NamedTuple):
    """A training of all seeds."""

    make: Make  # makes the distiller of a seed, for examples as they are stored
    steps: int  # its steps
    model: Model  # the model that is measured at the end, and exported
    loader: Callable[[data.Dataset, int], Any]  # makes the input of a seed from its images
    parts: Sequence[Part]  # one, unless steps differ in cost
    look: Transform  # transform of an example before it is measured
    pick: Callable[[TrainState], Variables] = lambda state: state.student  # the model's variables in the final state
    needs: tuple[str, ...] = ("teacher",)  # names of the networks that it begins with
    every: int | None = None  # steps between evaluations, where these must be at certain steps
    metrics: Callable[[Context], Metrics] | None = None  # metrics of an evaluation; by default those of a classifier
    extra: Callable[[Variables], Mapping[str, float]] | None = None  # further numbers about the first student, by name

    def measured(self, own: Own) -> Distiller:
        return training.measured(self.make(own), self.model, self.pick, self.look, self.metrics)

    def flops(self, own: Own, batch: Any) -> float:
        return sum(part.steps * cost.flops_of_step(part.make(own), batch) for part in self.parts)


def run(
    of: Training,
    own: Sequence[Own],
    images: Mapping[int, data.Dataset],
    splits: Mapping[str, Any],
    *,
    folder: pathlib.Path,
    mapped: bool,
    config: Mapping[str, Any],
    by: str = "accuracy",
) -> dict[str, list[Any]]:
    """Trains all seeds on the images of each, or resumes an interrupted training.

    ``splits`` are inputs to evaluate on: ``"validation"`` twelve times during the training, ``"test"`` at its end. The
    seeds are one program if ``mapped``, and are trained one after the other if not.

    Returns:
      The metric ``by`` on the test split, ``curve`` on the validation split and ``variables`` of the measured model,
      each a list of seeds.
    """
    loaders = [(seed, of.loader(one, seed)) for seed, one in images.items()]
    every, indices = of.every or max(of.steps // 12, 1), range(len(loaders))
    found: dict[str, list[Any]] = {by: [], "curve": [], "variables": []}
    for group in [indices] if mapped else [range(i, i + 1) for i in indices]:
        seeds, inner = zip(*(loaders[i] for i in group), strict=True)
        kd, result = run_seeds(
            of.measured,
            [own[i] for i in group],
            inputs.Seeds(inner, seeds),
            {"validation": splits["validation"]},
            steps=of.steps,
            eval_every=every,
            chunk=100 if mapped else 1,
            checkpoint_every=4 * every,
            directory=folder if mapped else folder / str(seeds[0]),
            config=config,
            progress=f"{folder.name}, seed {' to '.join(str(seeds[i]) for i in dict.fromkeys((0, len(seeds) - 1)))}",
        )
        tested = jaxkd.training.evaluate(kd, result.state, splits["test"])
        for i in range(len(group)):
            curve = validation(result.history, i, by)
            found[by].append(training.of_seed([tested], i)[0][by])
            found["curve"].append({name: [round(x, 5) for x in values] for name, values in curve.items()})
            found["variables"].append(jax.device_get(of.pick(distillers.select_run(result.state, i))))
    return found


def run_seeds(
    make: Callable[[PyTree], Distiller],
    own: Sequence[PyTree],
    train: inputs.Seeds,
    splits: Mapping[str, Any],
    **options: Any,
) -> tuple[Distiller, jaxkd.training.FitResult]:
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
    return kd, training.run(kd, train, splits, key=keys, log_every=options["eval_every"], tensorboard=False, **options)


def validation(history: Sequence[Mapping[str, float]], i: int, by: str = "accuracy") -> dict[str, list[float]]:
    """Returns ``step`` and a metric, with its parts, of one seed's evaluations on the validation split."""
    rows = [row for row in training.of_seed(history, i) if f"validation/{by}" in row]
    names = ["step", *(name for name in rows[0] if name.startswith(f"validation/{by}"))]
    return {name.removeprefix("validation/"): [row[name] for row in rows] for name in names}
