"""One row per loss: what `tests/losses` holds each of them to.

A new loss needs a row here and a reference of its name in `tests/references.py`; `values_test.py` fails without them.
The row says what inputs look like, where a golden value or one derived by hand comes from, and which changes of the
input the loss does not see. Everything else is the same for every loss and is tested for every row.
"""

import dataclasses
import functools
import inspect
import pathlib
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from jaxkd import losses
from tests import references
from tests.loss_changes import (
    Arrays,
    flip_signs,
    mirror,
    permute_labelled,
    permute_last,
    permute_student_last,
    permuted_result,
    rotate,
    scale_each,
    shift_both,
    shift_each,
    translate,
)

Change = Callable[[np.random.Generator, Arrays], Arrays]


def normal(rng: np.random.Generator, *shapes: tuple[int, ...]) -> Arrays:
    return tuple(rng.normal(size=shape) for shape in shapes)


def labelled(rng: np.random.Generator, logits: tuple[int, ...], labels: tuple[int, ...]) -> Arrays:
    return rng.normal(size=logits), rng.integers(0, logits[-1], size=labels)


@dataclasses.dataclass(frozen=True)
class Hand:
    """A value (and a gradient with respect to the first argument) that a reader can verify on paper."""

    arguments: tuple[Any, ...]
    value: Any
    gradient: Any
    hyper: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """What is particular to one loss. The first entry of `shapes` is the main one: several examples, all different."""

    name: str
    module: str
    shapes: tuple[tuple[tuple[int, ...], ...], ...]
    make: Callable[..., Arrays] = normal
    hyper: tuple[Mapping[str, Any], ...] = ({},)
    #: a change of the input -> the result stays as it is; a change in `mapped` also changes the result, as it says
    invariances: Mapping[str, Change] = dataclasses.field(default_factory=dict)
    mapped: Mapping[str, Callable[[np.random.Generator, Arrays], tuple[Arrays, Callable]]] = dataclasses.field(
        default_factory=dict
    )
    #: inputs at which a careless derivative is NaN or infinite
    extremes: Mapping[str, Arrays] = dataclasses.field(default_factory=dict)
    #: golden case -> what it is a value of, given `jaxkd.losses` or the references
    golden: Mapping[str, Callable[[Any], Callable]] = dataclasses.field(default_factory=dict)
    hand: tuple[Hand, ...] = ()
    identical_is_zero: bool = True
    #: a loss takes `where` and returns one value per example; a function of logits returns its input's shape
    per_example: bool = True
    #: an example's value depends on the other examples: the loss takes `axis_name`
    relational: bool = False
    #: jax.jvp works: not where a rule for the reverse mode keeps memory in bounds
    forward_mode: bool = True
    #: what float32 loses besides a relative error, at inputs of order one
    rounding: float = 1e-7
    #: leading dimensions of the first argument that the result has, given its rank
    leading: Callable[[int], int] = lambda rank: 1

    def __str__(self) -> str:
        return self.name

    @property
    def function(self) -> Callable:
        return getattr(getattr(losses, self.module), self.name)

    @property
    def reference(self) -> Callable:
        return getattr(references, self.name)

    @functools.cached_property
    def parameters(self) -> tuple[str, ...]:
        """The names of the array arguments, as an error message has to call them."""
        kinds = inspect.signature(self.function).parameters.values()
        return tuple(parameter.name for parameter in kinds if parameter.kind is parameter.POSITIONAL_OR_KEYWORD)

    def inputs(self, shapes: tuple[tuple[int, ...], ...] | None = None, seed: int = 0, scale: float = 1.0) -> Arrays:
        arrays = self.make(np.random.default_rng(seed), *(shapes or self.shapes[0]))
        return tuple(array if is_integer(array) else array * scale for array in arrays)

    def result_shape(self, arrays: Arrays) -> tuple[int, ...]:
        return arrays[0].shape[: self.leading(arrays[0].ndim)]


def floating(arrays: Arrays) -> tuple[int, ...]:
    """The positions of what can be differentiated: labels cannot."""
    return tuple(index for index, array in enumerate(arrays) if not is_integer(array))


def is_integer(array: np.ndarray) -> bool:
    """By kind, as NumPy does not count bfloat16 among its floating types."""
    return array.dtype.kind in "iu"


# --- golden values ----------------------------------------------------------------------------------------------------


@functools.cache
def golden_file() -> Mapping[str, np.ndarray]:
    with np.load(pathlib.Path(__file__).parent / "golden" / "reference_values.npz") as file:
        return dict(file)


def golden(case: str, kind: str) -> dict[str, np.ndarray]:
    """What the case holds of one kind: `in`, `arg` or `grad`, by name."""
    prefix = f"{case}/{kind}/"
    return {key.removeprefix(prefix): value for key, value in golden_file().items() if key.startswith(prefix)}


def standardized_kd(module: ModuleType) -> Callable:
    def loss(student, teacher, *, temperature):
        standardized = module.standardize_logits(student), module.standardize_logits(teacher)
        return module.soft_target_kl(*standardized, temperature=temperature)

    return loss


# --- extremes ---------------------------------------------------------------------------------------------------------

# All of one shape, so that each loss compiles once for them.
LOGITS = (5, 6)
MAPS = (5, 4, 4, 3)
EMBEDDINGS = (5, 4)


def far_apart(sign: float = 1.0) -> np.ndarray:
    return sign * 1e4 * np.where(np.arange(30).reshape(LOGITS) % 4 < 2, 1.0, -1.0)


def without(*classes: int) -> np.ndarray:
    """Logits of which some classes are masked out."""
    (logits,) = normal(np.random.default_rng(3), LOGITS)
    logits[:, classes] = -np.inf
    return logits


def logit_extremes() -> dict[str, Arrays]:
    usual, other = normal(np.random.default_rng(1), LOGITS, LOGITS)
    only = np.where(np.arange(6) == 2, 1.0, -np.inf) * np.ones(LOGITS)
    return {
        "opposite ±1e4": (far_apart(), far_apart(-1)),
        "equal ±1e4": (far_apart(), far_apart()),
        "student ±1e4": (far_apart(), usual),
        "teacher ±1e4": (usual, far_apart()),
        "zeros": (np.zeros(LOGITS), np.zeros(LOGITS)),
        "constant": (np.full(LOGITS, 0.1), np.full(LOGITS, 1e4)),
        "-inf classes in both": (without(0, 4), without(0, 4)),
        "-inf classes in both, ±1e4": (np.where(np.isinf(without(1)), -np.inf, far_apart()), without(1)),
        "-inf classes in the teacher": (usual, without(0, 4)),
        "one class left": (only, only),
        "duplicates": (np.repeat(usual[:1], 5, 0), np.repeat(other[:1], 5, 0)),
    }


def feature_extremes(shape: tuple[int, ...]) -> dict[str, Arrays]:
    usual, other = normal(np.random.default_rng(2), shape, shape)
    zeros = np.zeros(shape)
    some = usual * (np.arange(shape[0]) % 2).reshape(-1, *[1] * (len(shape) - 1))
    return {
        "zeros": (zeros, zeros),
        "student of zeros": (zeros, other),
        "teacher of zeros": (usual, zeros),
        "some zero examples": (some, other),
        "one position": (np.where(np.arange(shape[-1]) == 0, usual, 0.0), other),
        "all duplicates": (np.repeat(usual[:1], shape[0], 0), np.repeat(other[:1], shape[0], 0)),
        "student of duplicates": (np.repeat(usual[:1], shape[0], 0), other),
        "teacher of duplicates": (usual, np.repeat(other[:1], shape[0], 0)),
        "some duplicates": (usual[[0, 1, 0, 1, 2]], other),
        "the same duplicates": (usual[[0, 1, 0, 1, 2]], other[[0, 1, 0, 1, 2]]),
        "identical": (usual, usual),
        "large": (1e4 * usual, 1e4 * other),
        "small": (1e-3 * usual, 1e-3 * other),
        "vanishing": (1e-10 * usual, 1e-10 * other),
        "vanishing student": (1e-30 * usual, other),
        "constant": (np.full(shape, 0.1), np.full(shape, 0.3)),
    }


# --- the table --------------------------------------------------------------------------------------------------------

ROWS = (
    Row(
        "cross_entropy",
        "logits",
        shapes=(((6, 10), (6,)), ((2, 3, 7), (2, 3)), ((4, 1), (4,)), ((5,), ())),
        make=labelled,
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "renamed classes": permute_labelled},
        extremes={
            name: (student, np.arange(5) % 4 + 1)
            for name, (student, _) in logit_extremes().items()
            if "one class" not in name and "-inf" not in name
        }
        | {
            "-inf classes": (without(0, 5), np.arange(5) % 4 + 1),
            "one class left": (logit_extremes()["one class left"][0], np.full(5, 2)),
        },
        hand=(
            # softmax([0, log 3]) = [1/4, 3/4]
            Hand((np.array([[0.0, np.log(3)]]), np.array([1])), [np.log(4 / 3)], [[0.25, -0.25]]),
            Hand((np.array([[0.0, np.log(3)]]), np.array([0])), [np.log(4)], [[-0.75, 0.75]]),
        ),
        identical_is_zero=False,
    ),
    Row(
        "soft_target_kl",
        "logits",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 1),) * 2, ((5,),) * 2),
        hyper=({}, {"temperature": 1.0}, {"temperature": 0.5}),
        rounding=1e-5,  # T² times that of the logarithms, whose difference is the loss
        leading=lambda rank: rank - 1,
        invariances={"shift": shift_each, "permuted classes": permute_last},
        extremes=logit_extremes(),
        golden={"kd_T1": lambda m: m.soft_target_kl, "kd_T4": lambda m: m.soft_target_kl},
        hand=(
            # p_t = [3/4, 1/4], p_s = [1/2, 1/2]; the gradient is T (p_s - p_t)
            Hand(
                ([[0.0, 0.0]], [[np.log(3), 0.0]]),
                [0.75 * np.log(1.5) + 0.25 * np.log(0.5)],
                [[-0.25, 0.25]],
                {"temperature": 1.0},
            ),
            Hand(
                ([[0.0, 0.0]], [[2 * np.log(3), 0.0]]),
                [4 * (0.75 * np.log(1.5) + 0.25 * np.log(0.5))],
                [[-0.5, 0.5]],
                {"temperature": 2.0},
            ),
        ),
    ),
    Row(
        "logit_mse",
        "logits",
        shapes=(((6, 10),) * 2, ((2, 3, 7),) * 2, ((4, 1),) * 2, ((5,),) * 2),
        leading=lambda rank: rank - 1,
        invariances={"shift of both": shift_both, "permuted classes": permute_last},
        extremes={name: arrays for name, arrays in logit_extremes().items() if name != "-inf classes in the teacher"},
        hand=(Hand(([[1.0, 2.0]], [[3.0, -1.0]]), [6.5], [[-2.0, 3.0]]),),
    ),
    Row(
        "standardize_logits",
        "logits",
        shapes=(((6, 10),), ((2, 3, 7),), ((4, 1),), ((5,),)),
        leading=lambda rank: rank,
        invariances={"shift": shift_each},
        mapped={"permuted classes": permuted_result},
        extremes={name: (student,) for name, (student, _) in logit_extremes().items()},
        golden={"logit_standardised_kd": standardized_kd},
        # mean 3, squared deviations 4 + 0 + 4 over ddof = 1: std 2
        hand=(Hand(([[1.0, 3.0, 5.0]],), [[-1 / (1 + 5e-8), 0.0, 1 / (1 + 5e-8)]], None),),
        identical_is_zero=False,
        per_example=False,
    ),
    Row(
        "hint_mse",
        "features",
        shapes=(
            ((5, 3, 4, 2),) * 2,
            ((3, 7, 5, 2), (3, 4, 3, 2)),
            ((3, 4, 3, 2), (3, 7, 5, 2)),
            ((3, 5, 2, 2), (3, 3, 4, 2)),
            ((4, 5, 3),) * 2,
            ((4, 7),) * 2,
        ),
        invariances={"shift of both": shift_both, "permuted channels": permute_last, "mirror": mirror},
        extremes=feature_extremes(MAPS),
        golden={"hint": lambda m: m.hint_mse},
        hand=(
            Hand(([[1.0, 2.0]], [[3.0, -1.0]]), [6.5], [[-2.0, 3.0]]),
            # five rows pooled to two: windows 0-2 and 2-4, the third row is in both
            Hand(
                (np.arange(5.0).reshape(1, 5, 1, 1), np.zeros((1, 2, 1, 1))),
                [(1 + 9) / 2],
                np.array([1, 1, 4, 3, 3]).reshape(1, 5, 1, 1) / 3,
            ),
        ),
    ),
    Row(
        "attention_transfer",
        "features",
        shapes=(
            ((5, 3, 4, 2), (5, 3, 4, 3)),
            ((3, 7, 5, 2), (3, 4, 3, 4)),
            ((3, 4, 3, 2), (3, 7, 5, 1)),
            ((3, 5, 2, 2), (3, 3, 4, 2)),
            ((4, 1, 1, 3),) * 2,
        ),
        hyper=({}, {"p": 1}, {"p": 3}),
        invariances={
            "scale": scale_each,
            "signs": flip_signs,
            "permuted channels": permute_student_last,
            "mirror": mirror,
        },
        extremes=feature_extremes(MAPS),
        golden={f"attention_{stage}": lambda m: m.attention_transfer for stage in range(3)},
        hand=(
            # Q_s = [4, 3]/5 of squares, Q_t = [0, 1]: ((4/5)² + (2/5)²) / 2
            Hand((np.array([2.0, 3**0.5]).reshape(1, 1, 2, 1), np.array([0.0, 5.0]).reshape(1, 1, 2, 1)), [0.4], None),
            # the same of absolute values
            Hand(
                (np.array([4.0, -3.0]).reshape(1, 1, 2, 1), np.array([0.0, 5.0]).reshape(1, 1, 2, 1)),
                [0.4],
                None,
                {"p": 1},
            ),
        ),
    ),
    Row(
        "distance_relation",
        "relations",
        shapes=(((6, 13), (6, 21)), ((7, 2, 2, 3), (7, 5)), ((5, 1), (5, 3)), ((2, 4), (2, 4))),
        invariances={"translation": translate, "rotation": rotate, "scale": scale_each},
        extremes=feature_extremes(EMBEDDINGS),
        golden={"rkd_distance": lambda m: m.distance_relation},
        hand=(
            # student distances 1, 3, 2 over their mean 2; the teacher's are all equal
            Hand(([[0.0], [1.0], [3.0]], np.eye(3)), [1 / 12, 1 / 24, 1 / 24], None),
        ),
        relational=True,
        rounding=2e-6,
    ),
    Row(
        "angle_relation",
        "relations",
        shapes=(((6, 13), (6, 21)), ((7, 2, 2, 3), (7, 5)), ((5, 1), (5, 3)), ((2, 4), (2, 4))),
        invariances={"translation": translate, "rotation": rotate, "scale": scale_each},
        extremes=feature_extremes(EMBEDDINGS),
        golden={"rkd_angle": lambda m: m.angle_relation},
        hand=(
            # student: a right angle at the first point; teacher: the first between the others (cosine -1), which see
            # the two others in one direction (cosine 1, the student's 1/√2); each twice among nine pairs
            Hand(
                ([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0]], [[0.0], [1.0], [-1.0]]),
                [1 / 9, (1 - 0.5**0.5) ** 2 / 9, (1 - 0.5**0.5) ** 2 / 9],
                None,
            ),
        ),
        forward_mode=False,
        relational=True,
        rounding=2e-6,
    ),
)

BY_NAME = {row.name: row for row in ROWS}
PER_EXAMPLE = tuple(row for row in ROWS if row.per_example)
RELATIONAL = tuple(row for row in ROWS if row.relational)
