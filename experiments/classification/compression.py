"""A large network pruned, distilled and quantized: accuracy and file size after each step."""

import functools
import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
from matplotlib.ticker import LogLocator

import jaxkd
from experiments.classification import images
from experiments.kit import plots
from experiments.kit.tasks import networks
from experiments.kit.tasks.task import Figure, Measure, Method, Task, Training
from jaxkd import adapters, data, losses, models, teachers, weights, wrappers
from jaxkd.types import Model, Objective, TrainState, Variables

KD = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.9, temperature=4.0)
BOTH = jaxkd.combine(ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=0.1), kd=KD)


class Sizes(NamedTuple):
    """The networks and trainings of a set."""

    depth: int  # layers of the teacher and of all students
    filters: tuple[int, ...]  # the teacher's channels of the stem and of each stage
    batch: int  # examples in a batch
    teacher_steps: int  # updates of the teacher
    rate: float  # highest learning rate


SIZES = {
    "digits": Sizes(8, (16, 16, 32, 64), 64, 500, 3e-3),
    "cifar100": Sizes(32, (32, 64, 128, 256), 128, 40_000, 1e-3),
}


class Step(NamedTuple):
    """A student: its width, with which weights it begins, what it learns from, and the bits of its weights."""

    title: str  # name in the table
    note: str  # settings, for the page
    divisor: int  # the teacher's width over its own
    pruned: bool  # whether it begins with the teacher's most important channels
    taught: bool  # whether it learns from the teacher too
    bits: int = 32  # bits of a weight


QUARTER = "a quarter of the teacher's channels"
STEPS = {
    "student": Step("student alone", f"{QUARTER}, from random weights; cross-entropy", 4, False, False),
    "kd": Step("soft targets", "Hinton et al. (2015), T = 4, from random weights", 4, False, True),
    "pruned": Step("pruned", "the teacher's channels of the largest filters; cross-entropy", 4, True, False),
    "pruned_kd": Step("pruned + soft targets", "both", 4, True, True),
    "pruned_8": Step("pruned, 8 bits", "8-bit weights in training; cross-entropy", 4, True, False, 8),
    "pruned_kd_8": Step(
        "pruned + soft targets, 8 bits", "quantized distillation, Polino et al. (2018)", 4, True, True, 8
    ),
    "pruned_4": Step("pruned, 4 bits", "4-bit weights; cross-entropy", 4, True, False, 4),
    "pruned_kd_4": Step("pruned + soft targets, 4 bits", "quantized distillation", 4, True, True, 4),
    "half": Step("half alone", "half of the teacher's channels, from random weights; cross-entropy", 2, False, False),
    "half_pruned": Step("half, pruned", "the teacher's channels; cross-entropy", 2, True, False),
    "half_pruned_kd": Step("half, pruned + soft targets", "both", 2, True, True),
    "half_pruned_kd_4": Step("half, pruned + soft targets, 4 bits", "quantized distillation", 2, True, True, 4),
}
METHODS = {
    name: Method(
        step.title,
        step.note,
        step._asdict(),
        student=f"1/{step.divisor}",
        baseline="half" if "half" in name else "student",
    )
    for name, step in STEPS.items()
}


def saved(variables: Variables, bits: int) -> tuple[Variables, int]:
    """Writes weights to a file; returns what it holds, and its size in bytes."""
    with tempfile.TemporaryDirectory() as folder:
        file = pathlib.Path(folder) / "weights.safetensors"
        if bits == 32:
            weights.save_safetensors(file, variables)
            found: Any = weights.load_safetensors(file)
        else:
            weights.save_quantized(file, variables, bits=bits)
            found = weights.load_quantized(file)
        return weights.fit_to(variables, found), file.stat().st_size


class Compression(images.Opened):
    """The opened task."""

    def __init__(self, name: str, config: Any, folder: pathlib.Path) -> None:
        super().__init__(name, config, folder)
        self._sizes = sizes = SIZES[name]
        self._large = self._network(1)
        self._taught = self.trained("teacher", self._large, sizes.rate, sizes.teacher_steps, sizes.batch)
        self._batch = {"image": jax.ShapeDtypeStruct((1, *self.images.train.arrays["image"].shape[1:]), "float32")}

    def _network(self, divisor: int) -> Model:
        filters = tuple(n // divisor for n in self._sizes.filters)
        return adapters.linen(models.ResNet(self._sizes.depth, filters, num_classes=self.images.classes))

    def pruned(self, divisor: int) -> Variables:
        """Returns the weights of the teacher's channels whose filters are the largest."""
        groups = weights.channel_groups(self._large, self._taught, self._batch)
        sizes = {name: group.size // divisor for name, group in groups.items()}
        return weights.prune_channels(self._taught, groups, weights.filter_norms(self._taught, groups), sizes)

    def training(self, method: str, seed: int, steps: int) -> Training:
        step = STEPS[method]
        student = self._network(step.divisor)
        if step.pruned:
            student = wrappers.pretrained(student, self.pruned(step.divisor))
        if step.bits < 32:
            student = wrappers.quantized(student, bits=step.bits)
        teacher = teachers.frozen(self._large, self._taught) if step.taught else teachers.none()
        objective: Objective = BOTH if step.taught else images.CE
        views = data.compose(self.images.moved(seed), self.images.normalize)
        optimizer = images.adam(self._sizes.rate, steps)
        kd = images.distill(self.images, student, teacher, objective, optimizer, views)
        train = data.Resident(self.images.train, self._sizes.batch, seed=seed, drop_remainder=True)
        return Training(kd, train, steps, self.splits)

    def _point(self, divisor: int, variables: Variables, bits: int = 32) -> dict[str, float]:
        stored, size = saved(variables, bits)
        found = self.outputs(self._network(divisor), stored)["logits"]
        taught = self.outputs(self._large, self._taught)["logits"]
        return {**self.measured(found, taught), "kilobytes": size / 1000}

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        return self._point(STEPS[method].divisor, state.student, STEPS[method].bits)

    def references(self) -> Mapping[str, Mapping[str, float]]:
        half, quarter = self.pruned(2), self.pruned(4)
        points: dict[str, tuple[int, Variables, int]] = {
            "teacher": (1, self._taught, 32),
            "teacher, 8 bits, not trained": (1, self._taught, 8),
            "teacher, 4 bits, not trained": (1, self._taught, 4),
            "half, pruned, not trained": (2, half, 32),
            "pruned, not trained": (4, quarter, 32),
        }
        return {
            name: {**self._point(*point), "parameters": networks.parameters(point[1])} for name, point in points.items()
        }


def pareto(results: Mapping[str, Any]) -> bytes:
    """Draws accuracy by file size, a point for each student and for the networks that are not trained.

    Networks far below all students are arrows at the lower edge, with their accuracy in the legend.
    """
    trained = [one["measures"]["accuracy"] for name, one in results["rows"].items() if "@" not in name]
    lowest = min((100 * (one["mean"] - (one["half"] or 0)) for one in trained), default=0.0) - 3
    with plots.figure(1, 1, 10.0, 5.6) as (figure, axes, save):
        for number, (name, one) in enumerate(results["references"].items()):
            style = {"marker": "*" if number == 0 else "x", "color": plots.ALONE, "alpha": 0.4 + 0.6 * (number == 0)}
            accuracy = 100 * one["accuracy"]
            if accuracy < lowest:
                style, name = style | {"marker": 11}, f"{name}: {accuracy:.1f}"  # 11 is an arrow down
            axes.scatter(one["kilobytes"], max(accuracy, lowest + 0.5), s=90, label=name, **style)
        for number, (name, one) in enumerate((k, v) for k, v in results["rows"].items() if "@" not in k):
            style = plots.style("student") if name == "student" else plots.numbered(number - 1)
            found, size = one["measures"]["accuracy"], one["measures"]["kilobytes"]
            half = None if found["half"] is None else 100 * found["half"]
            options = {"color": style["color"], "marker": style["marker"], "capsize": 3, "linestyle": ""}
            axes.errorbar(size["mean"], 100 * found["mean"], yerr=half, label=one["title"], **options)
        axes.set(xscale="log", xlabel="file (kB)", ylabel="test accuracy (%)", ylim=(lowest, None))
        axes.xaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter("{x:g}")
        axes.grid(alpha=0.3)
        if axes.get_legend_handles_labels()[0]:
            figure.legend(loc="outside right center", frameon=False, fontsize=9)
        return save()


def task(name: str, about: str, steps: int) -> Task:
    """Returns the task on a set of images."""
    opened: Callable[[Any, pathlib.Path], Compression] = functools.partial(Compression, name)
    return Task(
        title=f"Compression of a ResNet on {name}",
        about=about,
        measures={
            "accuracy": Measure("accuracy (%)", scale=100, digits=1),
            "kilobytes": Measure("file (kB)", digits=1, higher=False),
            "agreement": Measure("agreement (%)", scale=100, digits=1),
            "nll": Measure("cross-entropy (nats)", digits=3, higher=False),
        },
        methods=METHODS,
        steps=steps,
        evaluations=10,
        open=opened,
        curve="validation/accuracy",
        rises=True,
        figures={"pareto": Figure("Accuracy by the size of the saved file", pareto)},
    )


CHAIN = (
    "The chain is: teacher; its channels of the largest L1 norm, not trained; trained again with labels, or with the "
    "teacher too; with weights of 8 and 4 bits in that training. All students have as many steps. The size is "
    "that of the file that was written, with BatchNorm's statistics, names and shapes; the accuracy is that of the "
    "network that was read from it."
)
TASKS = {
    "compression": task("digits", f"Teacher: a ResNet-8 with 16 to 64 channels on digits of 8×8 pixels. {CHAIN}", 300),
    "compression_cifar100": task("cifar100", f"Teacher: ResNet-32x4 on CIFAR-100. {CHAIN}", 20_000),
}
