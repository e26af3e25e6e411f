"""The digits: few labels, all images, and trainings of several values and seeds as one program.

The networks are so small that one program trains all values and seeds of a method in seconds. A layer is a dense layer
of patches, since XLA runs the gradient of a convolution in a loop many times slower on a CPU.
"""

import dataclasses
import functools
import pathlib
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import jaxkd
from experiments.classification.study import networks
from experiments.classification.study.response import ALPHAS, Setting
from experiments.classification.study.table import Part, Row, cosine
from experiments.kit import inputs, measures
from experiments.kit.rows import cost
from jaxkd import data, distillers, metrics, schemes, teachers
from jaxkd.types import Distiller, Model, Teacher

CURVE = 10  # evaluations of a training


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Settings of the trainings."""

    labels: int = 100  # labeled images of a seed
    batch: int = 16  # labeled images in a batch, and as many others
    steps: int = 800  # updates of a student
    rate: float = networks.RATE  # of Adam, which falls to 0 along a cosine


class _Functions(NamedTuple):
    """The parts of a training of one run."""

    init: Any  # (value, seed, student, table) -> state
    step: Any  # (value, seed, state, table, rows of the batch, number of the step) -> state
    accuracy: Any  # (state, table) -> accuracy on the validation split


class Digits:
    """The opened problem: images, the teacher's outputs, trainings and measures."""

    def __init__(self, folder: pathlib.Path, sizes: Sizes) -> None:
        self.sizes, self._train, validation = sizes, data.load("digits", "train"), data.load("digits", "validation")
        loader = data.Resident(validation, data.num_examples(validation), shuffle=False)
        self.taught = networks.train_teacher(folder, self._train, loader)
        self.model = networks.network("student")
        guess = self.taught.outputs["logits"].argmax(-1).astype(np.int32)
        held = self._normalized(validation)
        table = {**self._normalized(self._train), "guess": guess, "held": held["image"], "held_label": held["label"]}
        self._table = jax.tree.map(jnp.asarray, table)
        self._made: tuple[Any, Any] = (None, None)
        self._gather: Any = None
        self._known_orders: dict[int, Any] = {}

    def setting(self) -> Setting:
        return Setting(self.sizes.steps, self.taught)

    def distiller(self, row: Row, value: Any, seed: Any = 0, only: Part | None = None) -> Distiller:
        """Returns the distiller of a method and a value, which may be traced; with ``only``, that of one stage."""
        teacher: Teacher = self.taught.table(row.taps) if row.taught else teachers.none()
        student: Model = self.model if row.wrap is None else row.wrap(self.model)
        parts = row.parts(self.setting(), value) if only is None else [only]
        counts = self.lengths(parts)
        rates = [cosine(self.sizes.rate, n, part.rate) for part, n in zip(parts, counts, strict=True)]
        if len(parts) == 1:
            kd = jaxkd.distill(student, teacher, parts[0].objective, optimizer=optax.adam(rates[0]), metrics=_nothing)
        else:
            stages = [
                schemes.phases.Stage(
                    part.objective, optax.adam(rate), steps=n if part.share else None, student=part.student
                )
                for part, rate, n in zip(parts, rates, counts, strict=True)
            ]
            kd = schemes.staged(student, teacher, *stages, metrics=_nothing)
        if row.mix:
            kd = distillers.preprocess(
                kd, train_transform=functools.partial(mixed, kind=row.mix, value=value, seed=seed)
            )
        return kd

    def lengths(self, parts: Sequence[Part]) -> list[int]:
        """Returns the steps of each stage."""
        steps = self.sizes.steps
        first = [max(round(steps * part.share), 1) if part.share else 0 for part in parts]
        return [n or steps - sum(first) for n in first]

    def train(self, row: Row, values: Sequence[float], seeds: Sequence[int]) -> dict[str, Any]:
        """Trains each value with the seed beside it, all as one program unless the objective convolves.

        Returns:
          ``accuracy`` on the validation split, ``[runs]``; its ``curve``, ``[evaluations, runs]``; ``params`` of the
          students, with a leading axis of runs.
        """
        numbers, runs = jnp.asarray(seeds, jnp.uint32), (row.title, len(seeds))
        if self._made[0] != runs:  # one program at a time, as the next method needs another
            self._made = runs, (self._one_by_one if row.convolves else self._together)(self._functions(row))
        arguments = jnp.asarray(values, jnp.float32), numbers, self._students(numbers), self._orders(numbers)
        params, curve = self._made[1](*arguments, self._table)
        return {"accuracy": np.asarray(curve[-1]), "curve": np.asarray(curve), "params": jax.device_get(params)}

    def _functions(self, row: Row) -> _Functions:
        """Returns the parts of a training of one run."""
        half = self.sizes.batch

        def batch_of(table: Any, rows: Any, number: Any) -> Any:
            labeled = jnp.arange(2 * half) < half
            label, guess = table["label"][rows], table["guess"][rows]
            found = {"image": table["image"][rows], "labeled": labeled, "index": rows}
            found |= {"label": jnp.where(labeled, label, -1), "guess": jnp.where(labeled, label, guess)}
            return {**found, "epoch": jnp.full(rows.shape, number, jnp.int32)}

        def init(value: Any, seed: Any, student: Any, table: Any) -> Any:
            key, first = jax.random.fold_in(jax.random.key(0), seed), jnp.zeros(2 * half, jnp.int32)
            return self.distiller(row, value, seed).init(key, batch_of(table, first, 0))._replace(student=student)

        def step(value: Any, seed: Any, state: Any, table: Any, rows: Any, number: Any) -> Any:
            return self.distiller(row, value, seed).step(state, batch_of(table, rows, number))[0]

        def accuracy(state: Any, table: Any) -> Any:
            outputs, _ = self.model.apply(state.student, {"image": table["held"]}, key=None, train=False)
            return jnp.mean(outputs["logits"].argmax(-1) == table["held_label"])

        return _Functions(init, step, accuracy)

    @property
    def _every(self) -> int:
        return max(self.sizes.steps // CURVE, 1)

    def _together(self, functions: _Functions) -> Any:
        """Returns a program that trains all runs in a loop over the steps."""
        steps, every = self.sizes.steps, self._every

        @functools.partial(jax.jit, compiler_options=_quickly())
        def program(values: Any, seeds: Any, students: Any, orders: Any, table: Any) -> Any:
            one = jax.tree.map(lambda x: x[0], students)
            axes = _axes(jax.eval_shape(functions.init, values[0], seeds[0], one, table))
            state = jax.vmap(functions.init, (0, 0, 0, None), axes)(values, seeds, students, table)
            update = jax.vmap(functions.step, (0, 0, axes, None, 0, None), axes)

            def advance(state: Any, inputs: Any) -> Any:
                return update(values, seeds, state, table, *inputs), None

            def segment(state: Any, inputs: Any) -> Any:
                state, _ = jax.lax.scan(advance, state, inputs)
                return state, jax.vmap(functions.accuracy, (axes, None))(state, table)

            numbers = jnp.arange(steps).reshape(-1, every)
            state, curve = jax.lax.scan(segment, state, (orders.reshape(*numbers.shape, *orders.shape[1:]), numbers))
            return state.student.params, curve

        return program

    def _one_by_one(self, functions: _Functions) -> Any:
        """Returns a function that trains one run after the other, with one step in a dispatch."""
        init, accuracy = jax.jit(functions.init), jax.jit(functions.accuracy)
        step = jax.jit(functions.step, donate_argnums=2, compiler_options=_quickly())

        def program(values: Any, seeds: Any, students: Any, orders: Any, table: Any) -> Any:
            params, curves = [], []
            for i, (value, seed) in enumerate(zip(values, seeds, strict=True)):
                student = jax.tree.map(lambda x, i=i: x[i], students)
                state, curve = init(value, seed, student, table), []
                for number in range(self.sizes.steps):
                    state = step(value, seed, state, table, orders[number, i], number)
                    if (number + 1) % self._every == 0:
                        curve.append(accuracy(state, table))
                params.append(state.student.params)
                curves.append(curve)
            return jax.tree.map(lambda *x: jnp.stack(x), *params), np.array(curves).T

        return program

    def _students(self, seeds: Any) -> Any:
        """Returns the initial student of each seed, the same for all methods."""
        keys = jax.vmap(lambda seed: jax.random.fold_in(jax.random.key(0), seed))(seeds)
        return self._init(keys)

    @functools.cached_property
    def _init(self) -> Any:
        return jax.jit(jax.vmap(lambda key: self.model.init(key, {"image": jnp.zeros((1, 8, 8, 1))})))

    def _orders(self, seeds: Any) -> Any:
        """Returns the images of every batch, ``[steps, runs, batch]``."""
        return jnp.stack([self._order(int(seed)) for seed in seeds], axis=1)

    def _order(self, seed: int) -> Any:
        if seed not in self._known_orders:
            loader = self.loader(seed)
            self._gather = self._gather or jax.jit(
                lambda arrays, seed: jax.vmap(lambda i: loader.gather(arrays, i, seed=seed)["index"])(
                    jnp.arange(self.sizes.steps)
                )
            )
            self._known_orders[seed] = self._gather(loader.arrays, jnp.uint32(seed))
        return self._known_orders[seed]

    def loader(self, seed: int) -> Any:
        """Returns a seed's labeled images, and all images without their labels."""
        few = data.split(self._train, [self.sizes.labels], seed=seed)[0].arrays["index"]
        chosen = np.flatnonzero(np.isin(self._train.arrays["index"], few))
        label = np.asarray(self._train.arrays["label"], np.int32)
        return inputs.few_labels({"label": label}, chosen, (self.sizes.batch, self.sizes.batch), seed)

    def _normalized(self, dataset: data.Dataset) -> dict[str, np.ndarray]:
        image = inputs.normalize_digits({"image": jnp.asarray(dataset.arrays["image"])})["image"]
        return {"image": np.asarray(image, np.float32), "label": np.asarray(dataset.arrays["label"], np.int32)}

    @functools.cached_property
    def test(self) -> dict[str, Any]:
        """The test images and what the teacher says of them; only finished students are measured on them."""
        found = self._normalized(data.load("digits", "test"))
        return found | {
            "taught": networks.outputs_of(networks.network("teacher"), self.taught.variables, found["image"])
        }

    def references(self) -> dict[str, Any]:
        """Returns the measures of the teacher on the test split, and numbers of parameters."""
        found = measures.describe(self.test["taught"]["logits"], self.test["label"])
        sizes = {"teacher": self.taught.variables.params, "student": jax.eval_shape(self._one).params}
        counted = {which: sum(x.size for x in jax.tree.leaves(params)) for which, params in sizes.items()}
        kept = {name: found[name] for name in ("accuracy", "calibration_error", "nll")}
        return {"teacher": {**kept, "parameters": counted["teacher"]}, "student": {"parameters": counted["student"]}}

    def _one(self) -> Any:
        return self.model.init(jax.random.key(0), {"image": jnp.zeros((1, 8, 8, 1))})

    def measure(self, params: Any) -> dict[str, float]:
        """Returns the measures of a student on the test split."""
        outputs = networks.outputs_of(self.model, jaxkd.Variables(params, {}), self.test["image"])
        taught, last = self.test["taught"], networks.STAGES[-1]
        found = measures.describe(outputs["logits"], self.test["label"], taught["logits"])
        kept = {name: found[name] for name in ("accuracy", "agreement", "calibration_error", "nll", "kl_to_teacher")}
        pair = [jnp.asarray(one[last]).reshape(len(one[last]), -1) for one in (outputs, taught)]
        return kept | {"cka": float(metrics.linear_cka(*pair)), "svcca": float(metrics.svcca(*pair))}

    def flops(self, row: Row) -> dict[str, float]:
        """Returns the FLOPs of a step: with the teacher's outputs cached, and with the teacher evaluated."""
        rows = 2 * self.sizes.batch
        kinds = {"label": jnp.int32, "guess": jnp.int32, "index": jnp.int32, "epoch": jnp.int32, "labeled": bool}
        batch: dict[str, Any] = {name: jax.ShapeDtypeStruct((rows,), kind) for name, kind in kinds.items()}
        batch["image"] = jax.ShapeDtypeStruct((rows, 8, 8, 1), jnp.float32)
        parts = row.parts(self.setting(), row.published)
        total = 0.0
        for part, n in zip(parts, self.lengths(parts), strict=True):
            kd = self.distiller(row, row.published, 0, part)
            total += (
                n / self.sizes.steps * cost.flops(kd.step, jax.eval_shape(kd.init, jax.random.key(0), batch), batch)
            )
        return {"cached": total, "live": total + (self._teacher_flops(row) if row.taught else 0.0)}

    def _teacher_flops(self, row: Row) -> float:
        teacher = networks.network("teacher")
        if networks.GRADIENT in row.taps:
            teacher = jaxkd.wrappers.with_input_gradient(teacher)
        image = jax.ShapeDtypeStruct((2 * self.sizes.batch, 8, 8, 1), jnp.float32)
        return cost.flops(
            lambda v, image: teacher.apply(v, {"image": image}, key=None, train=False)[0], self.taught.variables, image
        )


def _quickly() -> dict[str, Any]:
    """Returns the compiler's options: on a CPU a program runs for seconds, and would compile for longer."""
    if jax.default_backend() != "cpu":
        return {}
    return {"xla_backend_optimization_level": 1, "xla_llvm_disable_expensive_passes": True}


def _nothing(context: Any) -> Any:
    return {}


def _axes(state: Any) -> Any:
    """Returns the axes of a state's arrays over runs: the step and the teacher's outputs have none."""
    return type(state)(*(None if name in ("teacher", "step") else 0 for name in state._fields))


def mixed(batch: Any, *, kind: str, value: Any, seed: Any) -> Any:
    """Returns the batch with its labeled images mixed, by the α that is nearest to the value."""
    labeled, whole = batch["image"].shape[0] // 2, batch["image"].shape[0]
    part = {name: x[:labeled] for name, x in batch.items()}
    mix = getattr(data, kind)
    made = [mix(part, seed=seed, alpha=alpha, classes=10) for alpha in ALPHAS]
    chosen = jnp.argmin(jnp.abs(jnp.asarray(ALPHAS) - value))
    image, soft = (jnp.stack([one[name] for one in made])[chosen] for name in ("image", "soft_label"))
    nothing = jnp.zeros((whole - labeled, 10), soft.dtype)
    return {
        **batch,
        "image": jnp.concatenate([image, batch["image"][labeled:]]),
        "soft_label": jnp.concatenate([soft, nothing]),
    }
