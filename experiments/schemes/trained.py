"""The networks that schemes begin with: teachers trained on all labels, one for each seed."""

from __future__ import annotations

import functools
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.schemes import problem as problems
from experiments.schemes import running
from experiments.schemes.trials import Own, Setting, Trial, offline, supervised
from jaxkd import data, weights, wrappers
from jaxkd.data._transforms import Transform
from jaxkd.types import Model


class Network(NamedTuple):
    """A network to be trained.

    Attributes:
      model: the network, for a setting.
      transforms: what it reads beside normalized images.
      classes: the part of the classes that it learns, ``(first, last)`` as shares of them.
    """

    model: Callable[[Setting], Model]
    transforms: tuple[Transform, ...] = ()
    classes: tuple[float, float] | None = None


def _size(name: str) -> Network:
    return Network(lambda setting: setting.problem.network(name))


LEFT = functools.partial(data.halves, entries=("left", "right"))
PEN = functools.partial(data.strokes, steps=24)

NETWORKS: dict[str, Network] = {
    **{name: _size(name) for name in ("huge", "wide", "teacher", "large", "middle", "student")},
    "half_a": Network(lambda setting: setting.problem.network("half"), classes=(0.0, 0.5)),
    "half_b": Network(lambda setting: setting.problem.network("half"), classes=(0.5, 1.0)),
    "lstm": Network(lambda setting: setting.problem.lstm("teacher")),
    "left": Network(lambda setting: wrappers.with_inputs(setting.problem.network("left"), image="left"), (LEFT,)),
}
"""Every network that can be had trained on all labels, by name."""

DISTILLED = "distilled"
"""The student of offline distillation, from what students learn from."""


def trial(setting: Setting, name: str) -> Trial:
    """The training of a network on all labels."""
    if name == DISTILLED:
        return offline(setting, setting.steps)
    network = NETWORKS[name]
    return supervised(setting, steps(setting, name), network.model(setting), *network.transforms)


def images(setting: Setting, name: str) -> data.Dataset:
    """What a network learns from; classes of a part are counted from 0."""
    whole, part = setting.problem.teachers, NETWORKS[name].classes
    if part is None:
        return whole
    first, last = (round(share * setting.problem.classes) for share in part)
    label = np.asarray(whole.arrays["label"])
    chosen = np.flatnonzero((label >= first) & (label < last))
    arrays = {key: np.asarray(value)[chosen] for key, value in whole.arrays.items()}
    arrays |= {"label": (label[chosen] - first).astype(np.int32), "index": np.arange(len(chosen), dtype=np.int32)}
    return whole._replace(arrays=arrays, num_classes=last - first)


def steps(setting: Setting, name: str) -> int:
    """Of a network's training."""
    config = setting.config
    if name == DISTILLED:
        return setting.steps
    return config.teacher_epochs * (len(images(setting, name).arrays["index"]) // config.batch)


def run(
    setting: Setting, name: str, own: list[Own], folder: pathlib.Path, on_eval: running.OnEval | None
) -> dict[str, Any]:
    """Trains a network for every seed, or reads what an earlier run trained.

    Args:
      setting: what it is made from.
      name: of the network.
      own: what each seed has that its training needs.
      folder: for checkpoints.
      on_eval: see `jaxkd.training.fit`.

    Returns:
      ``variables`` of every seed, and their ``accuracy`` on the test split where they know all classes.
    """
    config, problem = setting.config, setting.problem
    count = len(problems.numbers(config))
    if name == "teacher" and config.teacher_weights is not None:
        model = NETWORKS[name].model(setting)
        like = model.init(jax.random.key(0), {"image": jnp.zeros((1, *problem.shape))})
        given = jax.device_get(weights.fit_to(like, weights.load_safetensors(config.teacher_weights)))
        test = running.accuracy_of(model, given, problem)
        return {"accuracy": [test] * count, "variables": [given] * count}
    sets = None if name == DISTILLED else [images(setting, name)] * count
    return running.run(trial(setting, name), own, problem, config, name, folder, on_eval, sets)
