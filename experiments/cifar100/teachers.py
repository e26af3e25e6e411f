"""Teachers: trained once, measured once, shared by all students and all processes."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

import jaxkd
from experiments.cifar100 import inputs, measures, recipe, training, versions
from experiments.cifar100.config import Protocol
from jaxkd import data, teachers, weights
from jaxkd._core.files import write_atomically
from jaxkd.types import Variables

SEED = 0  # of every teacher: the literature's students of a pair have one teacher
CACHED = ("logits", "pooled")


class Trained(NamedTuple):
    """A teacher, ready to teach.

    Attributes:
      name: of the network.
      variables: its weights.
      test_logits: what it says of the test images, ``[examples, classes]``.
      directory: where it is kept.
    """

    name: str
    variables: Variables
    test_logits: np.ndarray
    directory: pathlib.Path


def folder(out: pathlib.Path, name: str, protocol: Protocol, file: str | None = None) -> pathlib.Path:
    """Where a teacher is kept; one from a file is known by what the file holds, and how that is computed with."""
    given = f"given-{digest(file)}{'-bf16' if protocol.bf16 else ''}" if file is not None else None
    return out / "teachers" / (given or protocol.teacher_name) / name


@functools.cache
def digest(file: str) -> str:
    """What tells a file of weights from another."""
    return hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:12]


@contextlib.contextmanager
def turn(path: pathlib.Path) -> Iterator[None]:
    """Waits until no other process is at work on a path; the lock goes with the process, however that ends."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(path.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            print(f"waiting for another process that is at work on {path}", flush=True)
            fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def ready(
    name: str,
    protocol: Protocol,
    data_dir: Any,
    out: pathlib.Path,
    given: Mapping[str, str] | None = None,
    progress: bool = True,
) -> Trained:
    """The teacher; trained and measured first, if it was not yet.

    Args:
      name: of the network.
      protocol: of the run.
      data_dir: where the data is.
      out: where everything is kept.
      given: files of weights that were trained elsewhere, by the network's name.
      progress: show it.

    Returns:
      The teacher.
    """
    file = (given or {}).get(name)
    directory = folder(out, name, protocol, file)
    with turn(directory):
        if not (directory / "teacher.json").exists():
            if file is not None:
                _adopt(name, file, protocol, data_dir, directory)
            else:
                _train(name, protocol, data_dir, directory, progress)
    return load(name, protocol, directory)


def load(name: str, protocol: Protocol, directory: pathlib.Path) -> Trained:
    """A teacher that is there."""
    variables = weights.fit_to(_shapes(name, protocol), weights.load_safetensors(directory / "weights.safetensors"))
    return Trained(name, variables, np.load(directory / "test_logits.npy"), directory)


def cache(trained: Trained, train: data.Dataset, protocol: Protocol, progress: bool = True) -> jaxkd.cache.Cache:
    """The teacher's logits and embedding of every view that a student will see, computed once.

    Args:
      trained: the teacher.
      train: the student's images.
      protocol: of the run.
      progress: show it.

    Returns:
      An opened cache.
    """
    part = f"{protocol.images or 'all'}-images" + (f"-holdout-{protocol.holdout}" if protocol.holdout else "")
    directory = trained.directory / f"outputs-{protocol.epochs}-views-{part}"
    keep = {"logits": jaxkd.cache.codecs.full("float16"), "pooled": jaxkd.cache.codecs.full("float16")}
    with turn(directory):
        return jaxkd.cache.write_cache(
            directory,
            recipe.model(trained.name, ("pooled",), protocol.bf16),
            trained.variables,
            train,
            transform=shared_augmentation(),
            views=protocol.epochs,
            codecs=keep,
            progress=progress,
        )


@functools.cache
def shared_augmentation() -> data.Transform:
    """The views that all seeds see where the teacher's outputs are cached."""
    return recipe.augmentation(0)


def _shapes(name: str, protocol: Protocol) -> Any:
    image = {"image": jax.ShapeDtypeStruct((2, 32, 32, 3), np.float32)}
    return jax.eval_shape(recipe.model(name, (), protocol.bf16).init, jax.random.key(0), image)


def _train(name: str, protocol: Protocol, data_dir: Any, directory: pathlib.Path, progress: bool) -> None:
    train, held = inputs.parts(data_dir, protocol, student=False)
    loader = inputs.training(train, protocol, SEED)
    model = recipe.model(name, (), protocol.bf16)
    optimizer = recipe.optimizer(name, protocol.teacher_epochs * loader.steps_per_epoch)
    kd = jaxkd.distill(model, teachers.none(), jaxkd.combine(ce=training.supervised()), optimizer=optimizer)
    splits = inputs.evaluations(data_dir, held)
    clock = training.Clock(directory / "seconds.json")
    result = training.run(
        training.placed(kd, model, recipe.augmentation(SEED)),
        loader,
        splits,
        protocol.teacher_epochs * loader.steps_per_epoch,
        1,  # whatever its students do: it is shared
        key=jax.random.key(SEED),
        best=training.judge(splits),
        directory=directory,
        config={"teacher": name, "batch_size": protocol.batch_size, "bf16": protocol.bf16, "holdout": protocol.holdout},
        on_eval=clock,
        progress=progress,
    )
    curve = training.curve(result.history)
    found = {
        "name": name,
        "source": "trained",
        "steps": int(result.state.step),
        "seconds": clock.seconds,
        "curve": curve,
        "best": training.best(curve),
    }
    _keep(name, result.state.student, found, protocol, data_dir, directory)


def _adopt(name: str, file: str, protocol: Protocol, data_dir: Any, directory: pathlib.Path) -> None:
    """Takes weights that were trained elsewhere: ours as safetensors, or a PyTorch state dict of reference names."""
    try:
        state_dict = weights.load_torch(file)
    except TypeError:  # a checkpoint of the reference repositories: the state dict, and other things beside it
        state_dict = weights.load_torch(file, key="model")
    if all("/" in array for array in state_dict):  # ours: params/Dense_0/kernel, where PyTorch has fc.weight
        variables = weights.fit_to(_shapes(name, protocol), state_dict)
    else:
        variables = weights.fit_torch_to(
            _shapes(name, protocol), state_dict, names=weights.torch_cifar(name), ignore=weights.NUM_BATCHES_TRACKED
        )
    directory.mkdir(parents=True, exist_ok=True)
    _keep(name, variables, {"name": name, "source": f"sha256 {digest(file)}"}, protocol, data_dir, directory)


def _keep(
    name: str, variables: Variables, found: dict[str, Any], protocol: Protocol, data_dir: Any, directory: pathlib.Path
) -> None:
    test = inputs.whole(data_dir, "test")
    logits = training.outputs_of(recipe.model(name, (), protocol.bf16), variables, test, ("logits",))["logits"]
    weights.save_safetensors(directory / "weights.safetensors", variables, overwrite=True)
    np.save(directory / "test_logits.npy", logits)
    found |= {
        "parameters": sum(x.size for x in jax.tree.leaves(variables.params)),
        "protocol": training.settings(protocol),
        "test": measures.describe(logits, test.arrays["label"]),
        **versions.found(),
    }
    write_atomically(directory / "teacher.json", json.dumps(found, indent=1) + "\n")  # last: where it is, all is there
