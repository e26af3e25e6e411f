"""One cell: a pair, a method and a seed. Run once, by one process, and kept as ``cell.json``."""

from __future__ import annotations

import contextlib
import fcntl
import itertools
import json
import pathlib
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.cifar100 import inputs, measures, methods, objectives, points, recipe, teachers, training, versions
from experiments.cifar100.config import Protocol
from jaxkd import data, losses, models, weights
from jaxkd._core.files import write_atomically
from jaxkd.types import Variables


class Cell(NamedTuple):
    """A student to be trained.

    Attributes:
      teacher: name of the network.
      student: name of the network.
      method: name of the row.
      seed: of the initial weights, the order of batches, and the views unless these are shared.
    """

    teacher: str
    student: str
    method: str
    seed: int

    @property
    def pair(self) -> str:
        """``TEACHER:STUDENT``."""
        return f"{self.teacher}:{self.student}"

    @property
    def path(self) -> pathlib.Path:
        """Where it is kept, below the protocol's folder."""
        return pathlib.Path(f"{self.teacher}-{self.student}", self.method, f"seed{self.seed}")

    def __str__(self) -> str:
        return f"{self.pair} {self.method} seed {self.seed}"


class Place(NamedTuple):
    """What all cells of a command share.

    Attributes:
      protocol: of the run.
      data_dir: where the data is.
      out: where everything is kept.
      given: files of teachers' weights that were trained elsewhere.
      progress: show it.
    """

    protocol: Protocol
    data_dir: Any
    out: pathlib.Path
    given: Mapping[str, str]
    progress: bool = True

    @property
    def folder(self) -> pathlib.Path:
        """Of all cells that can be compared, and of their report."""
        files = "-".join(f"{name}-{teachers.digest(file)}" for name, file in sorted(self.given.items()))
        return self.out / (f"{self.protocol.name}-given-{files}" if files else self.protocol.name)

    def directory(self, cell: Cell) -> pathlib.Path:
        """Of a cell."""
        return self.folder / cell.path

    def file(self, cell: Cell) -> pathlib.Path:
        """That a cell leaves when it is finished."""
        return self.directory(cell) / "cell.json"

    def teacher_file(self, name: str) -> pathlib.Path:
        """That a teacher leaves when it is there."""
        return teachers.folder(self.out, name, self.protocol, self.given.get(name)) / "teacher.json"

    def teacher(self, name: str) -> teachers.Trained:
        """A teacher; trained first, if need be."""
        return teachers.ready(name, self.protocol, self.data_dir, self.out, self.given, self.progress)


def of(pairs: Sequence[str], names: Sequence[str], seeds: Sequence[int]) -> list[Cell]:
    """Every cell of some rows, seed by seed, so that a table is there early and its spreads follow.

    Args:
      pairs: ``TEACHER:STUDENT``.
      names: of methods.
      seeds: their numbers.

    Returns:
      The cells; methods that do not exist for a pair are left out.

    Raises:
      ValueError: there is no such network or method.
    """
    found = []
    for pair, seed, name in itertools.product(pairs, seeds, names):
        teacher, student = split(pair)
        if name not in methods.METHODS:
            raise ValueError(f"--method: expected some of {', '.join(methods.METHODS)}, or all, got {name!r}.")
        if methods.undefined(name, teacher, student) is None:
            found.append(Cell(teacher, student, name, seed))
    return found


def split(pair: str) -> tuple[str, str]:
    """The two networks of a pair.

    Raises:
      ValueError: these are not two networks of the zoo.

    >>> split("WRN-40-2:ShuffleNetV1")
    ('wrn_40_2', 'shufflenet_v1')
    """
    try:
        teacher, student = map(models.canonical, pair.split(":"))
    except ValueError:
        raise ValueError(f"--pair: expected TEACHER:STUDENT of {', '.join(models.names())}, got {pair!r}.") from None
    return teacher, student


def run_free(cells: Iterable[Cell], place: Place, finished: Callable[[], Any] = lambda: None) -> int:
    """Runs every cell that is not finished and that no other process is at work on.

    Args:
      cells: in the order in which to try them.
      place: what they share.
      finished: called after each.

    Returns:
      How many other processes are at work on.
    """
    busy = 0
    cells = list(cells)
    for number, cell in enumerate(cells, 1):
        if place.file(cell).exists():
            continue
        with taken(cell, place) as ours:
            busy += not ours
            if ours and not place.file(cell).exists():
                print(f"[{number}/{len(cells)}] {cell}", flush=True)
                found = run(cell, place)
                print(f"[{number}/{len(cells)}] {cell}: {summary(found)}", flush=True)
                finished()
    return busy


@contextlib.contextmanager
def taken(cell: Cell, place: Place) -> Iterator[bool]:
    """Takes a cell for this process; False where another one has it. The lock goes with the process as well."""
    directory = place.directory(cell)
    directory.parent.mkdir(parents=True, exist_ok=True)
    with directory.with_name(directory.name + ".lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


def summary(found: Mapping[str, Any]) -> str:
    """A finished cell in a line."""
    test, best = found["test"], found["best"]
    return (
        f"test accuracy {100 * test['accuracy']:.2f} % (best epoch {100 * best['test/accuracy']:.2f} %), agreement "
        f"{100 * test['agreement']:.1f} %, {found['seconds']:.0f} s"
    )


class Work(NamedTuple):
    """What a cell is trained with. Of another seed, only the order of the input and the views are others.

    Attributes:
      trained: the teacher.
      kd: the method as a distiller, for normalized images.
      student: the network.
      loader: the input.
      splits: inputs to evaluate on.
      steps: how many updates to make.
    """

    trained: teachers.Trained
    kd: jaxkd.Distiller
    student: jaxkd.Model
    loader: Any
    splits: Mapping[str, Any]
    steps: int


def prepared(cell: Cell, place: Place) -> Work:
    """Everything that a cell needs, its teacher trained."""
    protocol = place.protocol
    trained = place.teacher(cell.teacher)
    train, held = training_set(place)
    loader: Any = inputs.training(train, protocol, cell.seed)
    method = methods.METHODS[cell.method]
    teacher, loader = source(cell, method, trained, train, loader, place)
    student = recipe.model(cell.student, method.student_taps(cell.teacher, cell.student), protocol.bf16)
    steps = protocol.epochs * loader.steps_per_epoch
    setting = objectives.Setting(
        cell.teacher, cell.student, steps, train.arrays["label"], lambda tap: margin(trained, tap)
    )
    kd = methods.build(method, setting, student, teacher)
    splits = inputs.evaluations(place.data_dir, held, trained.test_logits)
    return Work(trained, kd, student, loader, splits, steps + methods.initial_steps(method, steps))


def run(cell: Cell, place: Place) -> dict[str, Any]:
    """Trains, measures and keeps a cell; what an interrupted process has done is not done again."""
    directory, work = place.directory(cell), prepared(cell, place)
    clock = training.Clock(directory / "seconds.json")
    result = training.run(
        training.placed(work.kd, work.student, views(cell.seed, place.protocol)),
        work.loader,
        work.splits,
        work.steps,
        place.protocol.eval_every,
        key=jax.random.key(cell.seed),
        best=training.judge(work.splits),
        directory=directory,
        config={"cell": list(cell), "protocol": training.settings(place.protocol)},
        on_eval=clock,
        progress=place.progress,
    )
    curve = training.curve(result.history)
    return keep(cell, work.trained, result.state.student, work.steps, clock.seconds, curve, place)


def keep(
    cell: Cell,
    trained: teachers.Trained,
    variables: Variables,
    steps: int,
    seconds: float,
    curve: Mapping[str, Any],
    place: Place,
) -> dict[str, Any]:
    """Measures a trained student, and leaves ``student.safetensors`` and then ``cell.json``.

    Args:
      cell: which.
      trained: its teacher.
      variables: the student's, after its last step.
      steps: how many updates were made.
      seconds: what it took.
      curve: its evaluations.
      place: where.

    Returns:
      What is in ``cell.json``.
    """
    directory = place.directory(cell)
    found = {
        "pair": cell.pair,
        "method": cell.method,
        "seed": cell.seed,
        "protocol": training.settings(place.protocol),
        "steps": steps,
        "seconds": seconds,
        "images_per_second": steps * place.protocol.batch_size / seconds,
        "parameters": sum(x.size for x in jax.tree.leaves(variables.params)),
        "curve": curve,
        "best": training.best(curve),
        "test": measured(cell, variables, trained, place),
        **versions.found(),
    }
    directory.mkdir(parents=True, exist_ok=True)
    weights.save_safetensors(directory / "student.safetensors", variables, overwrite=True)
    write_atomically(place.file(cell), json.dumps(found, indent=1) + "\n")
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # the cell is finished; its weights are kept
    return found


def training_set(place: Place) -> tuple[data.Dataset, data.Dataset | None]:
    """The students' images, each with its ``row`` among them, and those that are held out."""
    train, held = inputs.parts(place.data_dir, place.protocol, student=True)
    rows = np.arange(data.num_examples(train), dtype=np.int32)
    return train._replace(arrays={**train.arrays, "row": rows}), held


def source(
    cell: Cell, method: methods.Method, trained: teachers.Trained, train: data.Dataset, loader: Any, place: Place
) -> tuple[jaxkd.Teacher, Any]:
    """Where a method's teacher outputs come from: nowhere, the cache, or the network itself.

    Returns:
      The teacher, and the input that goes with it.
    """
    protocol = place.protocol
    taps = method.teacher_taps(cell.teacher, cell.student)
    if cell.method == "student":
        return jaxkd.teachers.none(), loader
    if reads_cache(cell, protocol):
        cache = teachers.cache(trained, train, protocol, place.progress)
        return jaxkd.teachers.cached(cache), jaxkd.cache.attach(cache, loader)
    model = recipe.model(cell.teacher, taps, protocol.bf16)
    return jaxkd.teachers.frozen(model, trained.variables), loader


def views(seed: Any, protocol: Protocol) -> data.Transform:
    """The transform of training images: of all seeds where the teacher's outputs are cached, else of a seed's own.

    Args:
      seed: it may be traced.
      protocol: of the run.
    """
    return teachers.shared_augmentation() if protocol.cached else recipe.augmentation(seed)


def reads_cache(cell: Cell, protocol: Protocol) -> bool:
    """Whether all that a cell's method reads of the teacher is among what is computed once."""
    method = methods.METHODS[cell.method]
    read = set(method.teacher_taps(cell.teacher, cell.student))
    return protocol.cached and method.initial is None and read <= set(teachers.CACHED)


def margin(trained: teachers.Trained, tap: str) -> Any:
    """OFD's margin of a teacher's channels before a ReLU, from the BatchNorm that they come from."""
    norm: Any = trained.variables.params
    for name in models.margin_norms(trained.name)[tap].split("/"):
        norm = norm[name]
    return losses.overhaul_margin(jnp.asarray(norm["bias"]), jnp.asarray(norm["scale"]))


def measured(cell: Cell, variables: Any, trained: teachers.Trained, place: Place) -> dict[str, Any]:
    """What is reported of a student, after its last step, on the test images."""
    test = inputs.whole(place.data_dir, "test")
    labels, bf16 = test.arrays["label"], place.protocol.bf16
    logits = training.outputs_of(recipe.model(cell.student, (), bf16), variables, test, ("logits",))["logits"]
    some = measures.subset(len(labels))
    part = test._replace(arrays={name: value[some] for name, value in test.arrays.items()})

    def features(name: str, trained_variables: Any) -> dict[str, np.ndarray]:
        taps = tuple(points.stages(name))
        return training.outputs_of(recipe.model(name, taps, bf16), trained_variables, part, taps)

    ours, theirs = features(cell.student, variables), features(cell.teacher, trained.variables)
    return measures.describe(logits, labels, trained.test_logits, ours, theirs)
