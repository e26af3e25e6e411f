"""The networks that methods begin with, and the search for a chain."""

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import files
from experiments.kit import training as kit_training
from experiments.kit.recipe import Transform
from experiments.schemes import method
from experiments.schemes.method import Own, Setting, Training, offline, supervised, taught
from experiments.schemes.problem import SIZES
from jaxkd import data, schemes, weights, wrappers
from jaxkd.types import Model, Variables


class Network(NamedTuple):
    """A network to be trained on all labels."""

    model: Callable[[Setting], Model]  # the network, for a setting
    transforms: tuple[Transform, ...] = ()  # transforms of normalized images that it reads
    classes: tuple[float, float] | None = None  # the part that it learns, ``(first, last)`` as shares of all classes


def _of_size(size: str) -> Callable[[Setting], Model]:
    return lambda setting: setting.problem.network(size)


LEFT = functools.partial(data.halves, entries=("left", "right"))
PEN = functools.partial(data.strokes, steps=24)

NETWORKS: dict[str, Network] = {
    **{size: Network(_of_size(size)) for size in SIZES},
    "half_a": Network(_of_size("half"), classes=(0.0, 0.5)),
    "half_b": Network(_of_size("half"), classes=(0.5, 1.0)),
    "lstm": Network(lambda setting: setting.problem.lstm("teacher")),
    "left": Network(lambda setting: wrappers.with_inputs(setting.problem.network("left"), image="left"), (LEFT,)),
}
"""The networks that are trained on all labels, by name."""

DISTILLED = "distilled"  # the student of offline distillation, from the students' images


def images(setting: Setting, name: str) -> data.Dataset:
    """Returns the images that a network learns from, with classes counted from 0."""
    whole, part = setting.problem.teachers, NETWORKS[name].classes
    if part is None:
        return whole
    first, last = (round(share * setting.problem.classes) for share in part)
    label = np.asarray(whole.arrays["label"])
    chosen = np.flatnonzero((label >= first) & (label < last))
    arrays = {key: np.asarray(value)[chosen] for key, value in whole.arrays.items()}
    arrays |= {"label": (label[chosen] - first).astype(np.int32), "index": np.arange(len(chosen), dtype=np.int32)}
    return whole._replace(arrays=arrays, num_classes=last - first)


def training(setting: Setting, name: str) -> Training:
    if name == DISTILLED:
        return offline(setting, setting.steps)
    network, config = NETWORKS[name], setting.config
    steps = config.teacher_epochs * (data.num_examples(images(setting, name)) // config.batch)
    return supervised(setting, steps, network.model(setting), *network.transforms)


def run(setting: Setting, name: str, own: list[Own], folder: pathlib.Path) -> dict[str, Any]:
    """Trains a network for every seed, or reads what an earlier run trained."""
    config, problem = setting.config, setting.problem
    if name == "teacher" and config.teacher_weights is not None:
        model = NETWORKS[name].model(setting)
        like = model.init(jax.random.key(0), {"image": jnp.zeros((1, *problem.shape))})
        given = jax.device_get(weights.fit_to(like, weights.load_safetensors(config.teacher_weights)))
        logits = kit_training.outputs_of(model, given, problem.test, ("logits",), problem.normalize)["logits"]
        accuracy = float(np.mean(logits.argmax(-1) == np.asarray(problem.test.arrays["label"])))
        return {"accuracy": [accuracy] * config.seeds, "variables": [given] * config.seeds}
    sets = None if name == DISTILLED else [images(setting, name)] * config.seeds
    return method.run(training(setting, name), own, setting, name, folder, sets)


CHAIN = ("large", "middle", "student")  # the networks that a chain may go through, and the student


def chain(
    setting: Setting, own: list[Own], train: Callable[..., dict[str, Any]], path: pathlib.Path
) -> tuple[str, ...]:
    """Returns the best chain by validation accuracy, searched for once; ``train`` trains all seeds of a link."""
    network = setting.problem.network
    score_of: dict[str, float] = {}

    def search() -> dict[str, Any]:
        best: dict[str | None, tuple[float, list[Variables]]] = {None: (0.0, [one["teacher"] for one in own])}

        def score(before: str | None, model: str) -> float:
            first = before or "teacher"
            teacher, needs = (lambda own: setting.teacher(own, "before", first)), ("before",)
            link = taught(setting, setting.steps, network(model), teacher, needs=needs)
            found = train(f"link-{first}-{model}", link, [{"before": one} for one in best[before][1]])
            accuracy = float(np.mean([curve["accuracy"][-1] for curve in found["curve"]]))
            score_of[f"{first} to {model}"] = accuracy
            if model not in best or accuracy > best[model][0]:
                best[model] = accuracy, found["variables"]
            return accuracy

        chosen, _ = schemes.phases.best_chain(CHAIN, score)
        return {"chain": list(chosen), "validation accuracy": score_of}

    return tuple(files.once(path, search, indent=2)["chain"])
