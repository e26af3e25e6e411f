"""Cells: a pair of networks, a method and a seed, run once by one process.

The seeds of a pair and a method can be trained as one program, which is for accelerators that one small student leaves
idle. Every seed then has the initial weights, the order of batches and the views of a run of its own, and the same
results up to rounding. A seed whose loss becomes infinite ends the training of all.
"""

import contextlib
import itertools
import pathlib
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.kit import files, inputs, measures, methods, taps, teachers, training
from experiments.kit.recipe import Problem, Protocol, Transform
from experiments.kit.teachers import Place
from jaxkd import data, models
from jaxkd.types import Distiller, Variables


class Cell(NamedTuple):
    """A student to be trained."""

    teacher: str
    student: str
    method: str
    seed: int  # seed of the initial weights, the order of batches, and the views unless all seeds share them

    @property
    def pair(self) -> str:
        return f"{self.teacher}:{self.student}"

    @property
    def path(self) -> pathlib.Path:
        """Folder below that of the protocol."""
        return pathlib.Path(f"{self.teacher}-{self.student}", self.method, f"seed{self.seed}")

    def __str__(self) -> str:
        return f"{self.pair} {self.method} seed {self.seed}"


def split(pair: str) -> tuple[str, str]:
    """Returns the two networks of a pair.

    >>> split("WRN-40-2:ShuffleNetV1")
    ('wrn_40_2', 'shufflenet_v1')
    """
    try:
        teacher, student = map(models.canonical, pair.split(":"))
    except ValueError:
        raise ValueError(f"--pair: expected TEACHER:STUDENT of {', '.join(models.names())}, got {pair!r}.") from None
    return teacher, student


def wanted(pairs: Sequence[str], names: Sequence[str], seeds: Sequence[int], problem: Problem) -> list[Cell]:
    """Returns the cells of pairs, seeds and those methods that exist for a pair, seed by seed."""
    cells = (Cell(*split(pair), name, seed) for pair, seed, name in itertools.product(pairs, seeds, names))
    return [cell for cell in cells if methods.defined(cell.method, *cell[:2], problem)]


def run_free(
    cells: Iterable[Cell], place: Place, finished: Callable[[], Any] = lambda: None, *, vmapped: bool = False
) -> int:
    """Runs every cell that is not finished and that no other process works on."""

    def say(text: str) -> None:
        print(text, flush=True)
        place.folder.mkdir(parents=True, exist_ok=True)
        with (place.folder / "log.txt").open("a") as log:
            log.write(f"{text}\n")

    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        groups.setdefault(cell[:3] if vmapped else cell, []).append(cell)
    busy = 0
    for number, group in enumerate(groups.values(), 1):
        head = f"[{number}/{len(groups)}]"
        left = [cell for cell in group if not place.file(cell).exists()]
        with contextlib.ExitStack() as held:
            with contextlib.ExitStack() as turn:
                if vmapped:  # two processes must not take some seeds each
                    turn.enter_context(files.claim(place.directory(group[0]).with_name("seeds"), wait=True))
                ours = [cell for cell in left if held.enter_context(files.claim(place.directory(cell)))]
            busy += len(left) - len(ours)
            ours = [cell for cell in ours if not place.file(cell).exists()]  # another process may have finished it
            for seeds in trainings(ours, place):
                together = [cell for cell in ours if cell.seed in seeds]
                say(f"{head} {together[0].pair} {together[0].method} seed {', '.join(map(str, seeds))}")
                for cell, kept in run(together, seeds, place):
                    say(f"{head} {cell}: {summary(kept)}")
                finished()
    return busy


def summary(kept: Mapping[str, Any]) -> str:
    test, best = kept["test"], f"best epoch {100 * kept['best']['test/accuracy']:.2f} %"
    shares = f"test accuracy {100 * test['accuracy']:.2f} % ({best}), agreement {100 * test['agreement']:.1f} %"
    return f"{shares}, {kept['seconds']:.0f} s"


def trainings(pending: Sequence[Cell], place: Place) -> list[list[int]]:
    """Returns the seeds that are trained together, interrupted trainings first.

    An interrupted training of several seeds is resumed even if some of its cells are finished, as when the process
    ended between two of them, but not if one of its seeds is neither finished nor pending.
    """
    if not pending:
        return []
    left, found = {cell.seed for cell in pending}, []
    begun = place.directory(pending[0]).parent.glob("seed*/checkpoints")
    for seeds in sorted(({*map(int, re.findall(r"\d+", path.parent.name))} for path in begun), key=len, reverse=True):
        others = [pending[0]._replace(seed=seed) for seed in seeds - left]
        if seeds & left and all(place.file(cell).exists() for cell in others):
            found.append(sorted(seeds))
            left -= seeds
    return [*found, sorted(left)] if left else found


class Work(NamedTuple):
    """Teacher, distiller and input of a cell; another seed changes order and views."""

    trained: teachers.Trained  # the teacher
    kd: Distiller  # the method as a distiller for normalized images
    student: jaxkd.Model  # the student's network
    loader: Any  # the input
    splits: Mapping[str, Any]  # inputs to evaluate on
    steps: int  # updates


def prepare(cell: Cell, place: Place, weights: methods.Weights | None = None) -> Work:
    """Returns what a cell is trained with, its teacher trained; weights replace the published ones of their terms."""
    problem, protocol, method = place.problem, place.protocol, methods.METHODS[cell.method]
    trained = place.teacher(cell.teacher)
    train, held = training_set(place)
    teacher, loader = source(cell, method, trained, train, place)
    student = problem.model(cell.student, method.student_taps(cell.teacher, cell.student), protocol.bf16)
    steps = protocol.epochs * loader.steps_per_epoch
    setting = methods.Setting(cell.teacher, cell.student, steps, train.arrays["label"], trained.margin)
    setting = setting._replace(weights=weights or {})
    kd = methods.build(method, setting, student, teacher, problem)
    splits = inputs.evaluations(place.test, held, trained.test_logits)
    return Work(trained, kd, student, loader, splits, steps + methods.initial_steps(method, steps))


def training_set(place: Place) -> tuple[data.Dataset, data.Dataset | None]:
    """Returns the students' images with their ``row``, and held-out images, if any."""
    train, held = inputs.parts(place.problem.load(place.data_dir, "train"), place.protocol, student=True)
    rows = np.arange(data.num_examples(train), dtype=np.int32)
    return train._replace(arrays={**train.arrays, "row": rows}), held


def source(
    cell: Cell, method: methods.Method, trained: teachers.Trained, train: data.Dataset, place: Place
) -> tuple[jaxkd.Teacher, Any]:
    """Returns the teacher of a method (none, cached or live) and the input."""
    loader = data.Resident(train, place.protocol.batch_size, cell.seed)
    if cell.method == "student":
        return jaxkd.teachers.none(), loader
    if reads_cache(cell, place.protocol):
        cache = teachers.cached(place, trained, train)
        return jaxkd.teachers.cached(cache), jaxkd.cache.attach(cache, loader)
    model = place.problem.model(cell.teacher, method.teacher_taps(cell.teacher, cell.student), place.protocol.bf16)
    return jaxkd.teachers.frozen(model, trained.variables), loader


def reads_cache(cell: Cell, protocol: Protocol) -> bool:
    """Returns whether all that a cell's method reads of the teacher is cached."""
    method = methods.METHODS[cell.method]
    read = set(method.teacher_taps(cell.teacher, cell.student))
    return protocol.cached and method.initial is None and read <= set(teachers.CACHED)


def views(seed: Any, place: Place) -> Transform:
    """Returns the transform of training images, shared where outputs are cached."""
    return teachers.shared_views(place.problem) if place.protocol.cached else place.problem.augment(seed)


def placed(work: Work, seed: Any, place: Place) -> Distiller:
    """Returns the distiller of a seed, which may be traced, for stored images."""
    kd, look = training.measured(work.kd, work.student), place.problem.normalize
    return jaxkd.distillers.preprocess(kd, train_transform=views(seed, place), eval_transform=look)


def run(pending: Sequence[Cell], seeds: Sequence[int], place: Place) -> list[tuple[Cell, dict[str, Any]]]:
    """Trains seeds of a pair and a method, keeps the pending cells, and returns these with their ``cell.json``.

    The seeds are those of the pending cells, and others of an interrupted training.
    """
    each = [pending[0]._replace(seed=seed) for seed in seeds]
    work, several = prepare(each[0], place), len(seeds) > 1
    directory, loader, own = place.directory(each[0]), work.loader, {"cell": list(each[0])}
    kd, keys, options = placed(work, seeds[0], place), jax.random.key(seeds[0]), {}
    if several:
        directory, own = (
            directory.with_name("seeds-" + "-".join(map(str, seeds))),
            {"cells": [list(cell) for cell in each]},
        )
        loader, keys = inputs.Seeds([work.loader], seeds), jnp.stack([jax.random.key(seed) for seed in seeds])
        kd = jaxkd.distillers.sweep(lambda seed: placed(work, seed, place), batch_axis=0, seed=seeds)
        options = {"best": None}  # each of several seeds has its own best epoch
    result = training.by_epoch(
        kd,
        loader,
        work.splits,
        directory=directory,
        steps=work.steps,
        eval_every=place.protocol.eval_every * loader.steps_per_epoch,
        key=keys,
        config={"steps": work.steps, **own, "protocol": place.protocol.settings()},
        progress=place.progress and f"{each[0].method}, seed {', '.join(map(str, seeds))}",
        **options,
    )
    kept = []
    for i, cell in enumerate(each):
        if cell in pending:
            state = jaxkd.distillers.select_run(result.state, i) if several else result.state
            history = training.of_seed(result.history, i) if several else result.history
            kept.append((cell, keep(cell, work, state.student, history, len(seeds), place)))
    shutil.rmtree(directory / "checkpoints", ignore_errors=True)  # all cells are finished; their weights are kept
    return kept


def keep(
    cell: Cell, work: Work, variables: Variables, history: Sequence[Mapping[str, float]], sharing: int, place: Place
) -> dict[str, Any]:
    """Measures a student, writes its weights and ``cell.json``, and returns these; so many seeds share the time."""
    curve, seconds = training.curve(history), history[-1]["seconds"] / sharing
    found = {
        **{"pair": cell.pair, "method": cell.method, "seed": cell.seed, "steps": work.steps, "seconds": seconds},
        "images_per_second": work.steps * place.protocol.batch_size / seconds,
        **{"curve": curve, "best": training.best(curve), "test": measure(cell, variables, work.trained, place)},
    }
    return place.keep(place.directory(cell) / "student.safetensors", place.file(cell), variables, found)


def measure(cell: Cell, variables: Any, trained: teachers.Trained, place: Place) -> dict[str, Any]:
    labels, both = place.test.arrays["label"], ((cell.student, variables), (cell.teacher, trained.variables))
    some, logits = measures.subset(len(labels)), place.outputs(cell.student, variables)["logits"]
    features = [place.outputs(name, of, tuple(taps.stages(name)), some) for name, of in both]
    return measures.describe(logits, labels, trained.test_logits, *features)
