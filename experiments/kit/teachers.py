"""Teachers: trained once, measured once, shared by all students and all processes."""

import functools
import hashlib
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.kit import command, files, inputs, measures, methods, training
from experiments.kit.recipe import Problem, Protocol, Transform
from jaxkd import cache, data, losses, models, teachers, weights
from jaxkd.types import Variables

SEED = 0  # of every teacher: the literature's students of a pair share one teacher
CACHED = ("logits", "pooled")


class Trained(NamedTuple):
    """A teacher that is trained and measured."""

    name: str  # name of the network
    variables: Variables  # its variables
    test_logits: np.ndarray  # its logits of the test images, ``[examples, classes]``
    directory: pathlib.Path  # its folder

    def margin(self, tap: str) -> Any:
        """Returns OFD's margins at a tap before a ReLU, from the BatchNorm before it."""
        norm: Any = self.variables.params
        for name in models.margin_norms(self.name)[tap].split("/"):
            norm = norm[name]
        return losses.overhaul_margin(jnp.asarray(norm["bias"]), jnp.asarray(norm["scale"]))


class Place(NamedTuple):
    """Problem, protocol and folders that the cells of a command share."""

    problem: Problem  # the field
    protocol: Protocol  # the settings that decide a number
    data_dir: Any  # folder of the data
    out: pathlib.Path  # output folder of the command
    given: Mapping[str, str] = {}  # files of teachers' weights that were trained elsewhere, by the network's name
    progress: bool = True  # whether to show progress

    @property
    def folder(self) -> pathlib.Path:
        """Folder of all cells that can be compared, and of their report."""
        given = "-".join(f"{name}-{digest(file)}" for name, file in sorted(self.given.items()))
        return self.out / (f"{self.protocol.name}-given-{given}" if given else self.protocol.name)

    def directory(self, cell: Any) -> pathlib.Path:
        return self.folder / cell.path

    def file(self, cell: Any) -> pathlib.Path:
        """Returns the file that exists when a cell is finished."""
        return self.directory(cell) / "cell.json"

    def teacher_file(self, name: str) -> pathlib.Path:
        """Returns the file that exists when a teacher is trained.

        The folder of a given teacher is named after the content of its file and the precision it is computed in.
        """
        folder = self.protocol.teacher_name
        if name in self.given:
            folder = f"given-{digest(self.given[name])}{'-bf16' if self.protocol.bf16 else ''}"
        return self.out / "teachers" / folder / name / "teacher.json"

    def teacher(self, name: str) -> Trained:
        """Returns a teacher, which is trained and measured first if it was not yet."""
        file = self.teacher_file(name)
        with files.claim(file.parent, wait=True):
            if not file.exists():
                _adopt(self, name) if name in self.given else _train(self, name)
        like = self.problem.parameters(name, self.protocol.bf16)
        variables = weights.fit_to(like, weights.load_safetensors(file.with_name("weights.safetensors")))
        return Trained(name, variables, np.load(file.with_name("test_logits.npy")), file.parent)

    @property
    def test(self) -> data.Dataset:
        return self.problem.load(self.data_dir, "test")

    def outputs(self, name: str, variables: Variables, taps: tuple[str, ...] = (), some: Any = ...) -> dict[str, Any]:
        """Returns a network's logits, or its outputs at some taps, for all test images or for some."""
        model, arrays = self.problem.model(name, taps, self.protocol.bf16), self.test.arrays
        part = self.test._replace(arrays={key: value[some] for key, value in arrays.items()})
        return training.outputs_of(model, variables, part, taps or ("logits",), self.problem.normalize)

    def keep(self, weights_file: pathlib.Path, file: pathlib.Path, variables: Variables, found: Any) -> dict[str, Any]:
        """Writes a network's weights, and then the JSON file that exists when it is complete; returns its content."""
        parameters = sum(x.size for x in jax.tree.leaves(variables.params))
        found = {**found, "parameters": parameters, "protocol": self.protocol.settings(), **command.record()}
        weights_file.parent.mkdir(parents=True, exist_ok=True)
        weights.save_safetensors(weights_file, variables, overwrite=True)
        files.write_json(file, found, indent=1)
        return found


def cached(place: Place, trained: Trained, train: data.Dataset) -> cache.Cache:
    """Returns the teacher's outputs on every view of the students, computed once."""
    protocol = place.protocol
    part = f"{protocol.images or 'all'}-images" + (f"-holdout-{protocol.holdout}" if protocol.holdout else "")
    directory = trained.directory / f"outputs-{protocol.epochs}-views-{part}"
    with files.claim(directory, wait=True):
        return cache.write_cache(
            directory,
            place.problem.model(trained.name, ("pooled",), protocol.bf16),
            trained.variables,
            train,
            transform=shared_views(place.problem),
            views=protocol.epochs,
            codecs={name: cache.codecs.full("float16") for name in CACHED},
            progress=place.progress,
        )


@functools.cache
def digest(file: str) -> str:
    return hashlib.sha256(pathlib.Path(file).read_bytes()).hexdigest()[:12]


@functools.cache
def shared_views(problem: Problem) -> Transform:
    """Returns the augmentation that all seeds share where outputs are cached."""
    return problem.augment(0)


def _train(place: Place, name: str) -> None:
    problem, protocol = place.problem, place.protocol
    train, held = inputs.parts(problem.load(place.data_dir, "train"), protocol, student=False)
    loader = data.Resident(train, protocol.batch_size, SEED)
    steps, model = protocol.teacher_epochs * loader.steps_per_epoch, problem.model(name, (), protocol.bf16)
    ce, optimizer = jaxkd.combine(ce=methods.cross_entropy()), problem.optimizer(name, steps)
    kd = training.measured(jaxkd.distill(model, teachers.none(), ce, optimizer=optimizer), model)
    settings = {key: protocol.settings()[key] for key in ("batch_size", "bf16", "holdout")}
    result = training.by_epoch(
        jaxkd.distillers.preprocess(kd, train_transform=problem.augment(SEED), eval_transform=problem.normalize),
        loader,
        inputs.evaluations(place.test, held),
        directory=place.teacher_file(name).parent,
        steps=steps,
        eval_every=loader.steps_per_epoch,  # students with other intervals of evaluations share the teacher
        key=jax.random.key(SEED),
        config={"steps": steps, "teacher": name, **settings},
        progress=place.progress and f"teacher {name}",
    )
    curve, seconds = training.curve(result.history), result.history[-1]["seconds"]
    found = {"source": "trained", "steps": int(result.state.step), "seconds": seconds}
    _keep(place, name, result.state.student, found | {"curve": curve, "best": training.best(curve)})


def _adopt(place: Place, name: str) -> None:
    """Takes weights from safetensors, or a PyTorch state dict of reference names."""
    file, like = place.given[name], place.problem.parameters(name, place.protocol.bf16)
    try:
        state_dict = weights.load_torch(file)
    except TypeError:  # a checkpoint of the reference repositories holds the state dict among other things
        state_dict = weights.load_torch(file, state_dict_key="model")
    if all("/" in array for array in state_dict):  # our params/Dense_0/kernel is fc.weight in PyTorch
        variables = weights.fit_to(like, state_dict)
    else:
        names = weights.torch_cifar(name)
        variables = weights.fit_torch_to(like, state_dict, names=names, ignore=weights.NUM_BATCHES_TRACKED)
    _keep(place, name, variables, {"source": f"sha256 {digest(file)}"})


def _keep(place: Place, name: str, variables: Variables, found: dict[str, Any]) -> None:
    file, logits = place.teacher_file(name), place.outputs(name, variables)["logits"]
    file.parent.mkdir(parents=True, exist_ok=True)
    np.save(file.with_name("test_logits.npy"), logits)
    test = measures.describe(logits, place.test.arrays["label"])
    place.keep(file.with_name("weights.safetensors"), file, variables, {"name": name, **found, "test": test})
