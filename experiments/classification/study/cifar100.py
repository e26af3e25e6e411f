"""CIFAR-100: the methods of the literature's table, with multiples of their published weights.

Each training is a run of its own, which resumes from its last checkpoint. 5,000 training images are held out for the
choice.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.classification.study.table import GRID, Part, Row, Rows
from experiments.kit import cell, inputs, measures, methods, recipe, taps, training
from experiments.kit.rows import cost
from experiments.kit.teachers import Place
from jaxkd import metrics, weights
from jaxkd.types import Variables

TEACHER, STUDENT = "resnet20", "resnet8"
PROTOCOL = recipe.Protocol(epochs=12, teacher_epochs=12, holdout=5000)
PROBLEM = inputs.CIFAR100
GROUPS = {"response": ("student", "kd", "dkd", "dist", "logit_std"), "relations": ("rkd", "sp", "pkt", "cc", "crd")}


def weighted(name: str, value: Any) -> dict[str, Any]:
    """Returns a method's weights times a value; that of the labels stays."""
    known = methods.METHODS[name].weights
    if name == "review":
        known = {"review": methods.review_weight(TEACHER, STUDENT)}
    return {term: weight * (1.0 if term == "ce" else value) for term, weight in known.items()}


def _parts(name: str) -> Any:
    def parts(setting: methods.Setting, value: Any) -> list[Part]:
        method, own = methods.METHODS[name], setting._replace(weights=weighted(name, value))
        first = [] if method.initial is None else [Part(method.initial_objective(own), share=methods.INITIAL)]
        return [*first, Part(method.objective(own))]

    return parts


def rows() -> Rows:
    """Returns the rows, by the names of `experiments.kit.methods`."""
    found = {}
    for name, method in methods.METHODS.items():
        group = next((group for group, names in GROUPS.items() if name in names), "features")
        grid = GRID if set(weighted(name, 1.0)) - {"ce"} else (1.0,)
        source = "multiple of the published weights" if len(grid) > 1 else "the published recipe, without a weight"
        found[name] = Row(method.title, _parts(name), 1.0, source, group=group, grid=grid, taught=name != "student")
    return found


class Cifar100:
    """The opened problem."""

    def __init__(self, folder: pathlib.Path, data_dir: Any, protocol: recipe.Protocol = PROTOCOL) -> None:
        self._place, self._folder = Place(PROBLEM, protocol, data_dir, folder), folder / "trainings"
        self._names = {method.title: name for name, method in methods.METHODS.items()}

    def train(self, row: Row, values: Sequence[float], seeds: Sequence[int]) -> dict[str, Any]:
        """Trains each value with the seed beside it, one after the other; finished ones are read."""
        found = [self._train(self._names[row.title], value, seed) for value, seed in zip(values, seeds, strict=True)]
        curves = np.array([curve for _, curve in found])
        stacked = jax.tree.map(lambda *x: np.stack(x), *(variables for variables, _ in found))
        return {"accuracy": curves[:, -1], "curve": curves.T, "params": stacked}

    def _train(self, name: str, value: float, seed: int) -> tuple[Variables, list[float]]:
        folder = self._folder / name / f"{value:g}" / f"seed{seed}"
        file = folder / "student.safetensors"
        work = cell.prepare(cell.Cell(TEACHER, STUDENT, name, seed), self._place, weighted(name, value))
        kd = cell.placed(work, seed, self._place)
        result = training.run(
            kd,
            work.loader,
            {"validation": work.splits["validation"]},
            steps=work.steps,
            key=jax.random.key(seed),
            eval_every=work.loader.steps_per_epoch,
            checkpoint_every=work.loader.steps_per_epoch,
            directory=folder,
            config={"method": name, "value": value, "seed": seed, "protocol": self._place.protocol.settings()},
        )
        if not file.exists():
            weights.save_safetensors(file, result.state.student)
        curve = [row["validation/accuracy"] for row in result.history if "validation/accuracy" in row]
        return jax.device_get(result.state.student), curve

    def measure(self, params: Any) -> dict[str, float]:
        """Returns the measures of a student's variables on the test split."""
        taught = self._place.teacher(TEACHER)
        test, last = self._place.test, taps.stages(STUDENT)[-1]
        logits = self._place.outputs(STUDENT, params)["logits"]
        found = measures.describe(logits, test.arrays["label"], taught.test_logits)
        some = measures.subset(len(logits))
        networks = ((STUDENT, params), (TEACHER, taught.variables))
        pair = [jnp.asarray(self._place.outputs(name, of, (last,), some)[last]).mean((1, 2)) for name, of in networks]
        kept = {name: found[name] for name in ("accuracy", "agreement", "calibration_error", "nll", "kl_to_teacher")}
        return kept | {"cka": float(metrics.linear_cka(*pair)), "svcca": float(metrics.svcca(*pair))}

    def flops(self, row: Row) -> dict[str, float]:
        """Returns the FLOPs of a step without and with the teacher; of a method with stages, those of a whole step."""
        name = self._names[row.title]
        work = cell.prepare(cell.Cell(TEACHER, STUDENT, name, 0), self._place)
        kd, batch = cell.placed(work, 0, self._place), next(iter(work.loader.batches()))
        live = cost.flops(kd.step, jax.eval_shape(kd.init, jax.random.key(0), batch), batch)
        if name == "student":
            return {"cached": live, "live": live}
        method, image = methods.METHODS[name], PROBLEM.normalize(batch)
        model = PROBLEM.model(TEACHER, method.teacher_taps(TEACHER, STUDENT))
        forward = cost.flops(lambda v: model.apply(v, image, key=None, train=False)[0], work.trained.variables)
        return {"cached": live - forward, "live": live}

    def references(self) -> Mapping[str, Any]:
        """Returns the measures of the teacher on the test split."""
        taught = self._place.teacher(TEACHER)
        found = measures.describe(taught.test_logits, self._place.test.arrays["label"])
        return {"teacher": {name: found[name] for name in ("accuracy", "calibration_error", "nll")}}
