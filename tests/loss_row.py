"""Rows of the loss table, and their parts: inputs, values by hand, golden values, extremes."""

import dataclasses
import functools
import importlib
import inspect
import pathlib
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests import references
from tests.loss_changes import Arrays

Change = Callable[[np.random.Generator, Arrays], Arrays]
Shapes = tuple[tuple[int, ...], ...]


def normal(rng: np.random.Generator, *shapes: tuple[int, ...]) -> Arrays:
    return tuple(rng.normal(size=shape) for shape in shapes)


def labeled(rng: np.random.Generator, logits: tuple[int, ...], *rest: tuple[int, ...]) -> Arrays:
    """Returns logits (of one or more networks), and labels last."""
    *others, labels = rest
    return (*normal(rng, logits, *others), rng.integers(0, logits[-1], size=labels))


@dataclasses.dataclass(frozen=True)
class Hand:
    """A value, and a gradient with respect to the first argument, that a reader can verify on paper."""

    arguments: tuple[Any, ...]
    value: Any
    gradient: Any = None
    hyper: Mapping[str, Any] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Row:
    """The properties of one loss. The first of `shapes` is the main one, with several different examples."""

    name: str
    #: the module within `jaxkd.losses`, such as "logits" or "features.attention"
    module: str
    shapes: tuple[Shapes, ...]
    make: Callable[..., Arrays] = normal
    hyper: tuple[Mapping[str, Any], ...] = ({},)
    #: calls the loss, if not every array is one argument: ``call(loss, *arrays, **options)``
    call: Callable[..., Any] | None = None
    #: the argument that each array belongs to, if `call` is set
    arguments: tuple[str, ...] = ()
    #: positions of arrays without a batch dimension
    shared: tuple[int, ...] = ()
    #: positions of floating arrays that are not differentiated
    constant: tuple[int, ...] = ()
    #: changes of the input that leave the result unchanged; a change in `mapped` also returns the change of the result
    invariances: Mapping[str, Change] = dataclasses.field(default_factory=dict)
    mapped: Mapping[str, Callable[[np.random.Generator, Arrays], tuple[Arrays, Callable]]] = dataclasses.field(
        default_factory=dict
    )
    #: inputs at which a careless derivative is NaN or infinite
    extremes: Mapping[str, Arrays] = dataclasses.field(default_factory=dict)
    #: golden case -> the function of its inputs, given the module `jaxkd.losses` or the references
    golden: Mapping[str, Callable[[Any], Callable]] = dataclasses.field(default_factory=dict)
    hand: tuple[Hand, ...] = ()
    identical_is_zero: bool = True
    #: arrays with equal student and teacher; by default the teacher's array is replaced by the student's
    perfect: Callable[[Arrays], Arrays] = lambda arrays: (arrays[0], arrays[0], *arrays[2:])
    #: hyperparameters with which such arrays have no loss; all by default
    perfect_hyper: tuple[Mapping[str, Any], ...] | None = None
    #: True for a loss, with `where` and one value per example; False for a function that returns the shape of its input
    per_example: bool = True
    #: an example's value depends on the other examples: the loss takes `axis_name`
    relational: bool = False
    #: a relation with no gradient for a batch of one
    needs_others: bool = True
    #: the inputs of a relation, given the number of examples and of features
    relation_shapes: Callable[[int, int], Shapes] = lambda batch, features: ((batch, features), (batch, features - 2))
    #: hyperparameters of the computation, which the formula does not have
    execution: tuple[str, ...] = ()
    #: True if the order of the examples matters
    ordered: bool = False
    #: True if jax.jvp works; a custom_vjp, which bounds the memory, excludes it
    forward_mode: bool = True
    #: absolute error in float32 besides the relative one, at inputs of order one
    rounding: float = 1e-7
    #: number of leading dimensions of the first argument that the result has, given its rank
    leading: Callable[[int], int] = lambda rank: 1
    #: shape of the result, if it is not those leading dimensions
    result: Callable[[Arrays], tuple[int, ...]] | None = None
    #: masking that is more than dropping rows: ``drop(reference, where, arrays) -> result``, 0 where masked,
    #: and ``spoil(arrays, where, garbage) -> arrays``
    drop: Callable[..., np.ndarray] | None = None
    spoil: Callable[..., Arrays] | None = None
    #: (argument that the error names, shapes): mismatched shapes, and shapes of too low a rank
    mismatches: tuple[tuple[str, Any], ...] = ()
    ranks: tuple[tuple[str, Any], ...] = ()
    #: shapes of drawn inputs, the first two by default; and a function that makes drawn arrays valid inputs
    drawn: tuple[Shapes, ...] = ()
    valid: Callable[[Arrays], Arrays] = lambda arrays: arrays

    def __str__(self) -> str:
        return self.name

    @property
    def loss(self) -> Callable:
        return getattr(importlib.import_module(f"jaxkd.losses.{self.module}"), self.name)

    @functools.cached_property
    def function(self) -> Callable:
        """The loss as a function of the row's arrays."""
        return functools.partial(self.call, self.loss) if self.call else self.loss

    @functools.cached_property
    def reference(self) -> Callable:
        """The reference as a function of the row's arrays."""
        reference = getattr(references, self.name)
        return functools.partial(self.call, reference) if self.call else reference

    @functools.cached_property
    def parameters(self) -> tuple[str, ...]:
        """The names of the array arguments, as an error message has to call them."""
        if self.arguments:
            return self.arguments
        kinds = inspect.signature(self.loss).parameters.values()
        return tuple(parameter.name for parameter in kinds if parameter.kind is parameter.POSITIONAL_OR_KEYWORD)

    def inputs(self, shapes: Shapes | None = None, seed: int = 0, scale: float = 1.0) -> Arrays:
        arrays = self.make(np.random.default_rng(seed), *(shapes or self.shapes[0]))
        kept = {*self.shared, *self.constant}
        return tuple(a if discrete(a) or i in kept else a * scale for i, a in enumerate(arrays))

    def result_shape(self, arrays: Arrays) -> tuple[int, ...]:
        return self.result(arrays) if self.result else arrays[0].shape[: self.leading(arrays[0].ndim)]

    def floating(self, arrays: Arrays) -> tuple[int, ...]:
        """Returns the positions of the arrays that are differentiated, not labels and masks."""
        return tuple(i for i, array in enumerate(arrays) if not discrete(array) and i not in self.constant)

    def batched(self, arrays: Arrays, change: Callable[[np.ndarray], np.ndarray]) -> Arrays:
        """Applies a change to the arrays with a batch dimension."""
        return tuple(a if i in self.shared else change(a) for i, a in enumerate(arrays))

    def keep(self, where: np.ndarray, arrays: Arrays) -> np.ndarray:
        """Returns the reference of the included examples, each at its place, and 0 for masked ones."""
        if self.drop:
            return self.drop(self.reference, where, arrays)
        result = np.zeros(where.shape)
        result[where] = self.reference(*self.batched(arrays, lambda array: array[where]))
        return result

    def spoiled(self, arrays: Arrays, where: np.ndarray, value: float, label: int) -> Arrays:
        """Returns the arrays with garbage in the masked examples."""
        if self.spoil:
            return self.spoil(arrays, where, value)

        def spoil(array: np.ndarray) -> np.ndarray:
            array = np.array(array)
            array[~where] = label if discrete(array) else value
            return array

        return self.batched(arrays, spoil)


def discrete(array: np.ndarray) -> bool:
    """Returns whether an array is of labels or a mask; NumPy does not know bfloat16 as a floating type."""
    return array.dtype.kind in "iub"


# --- golden values ----------------------------------------------------------------------------------------------------


@functools.cache
def golden_file() -> Mapping[str, np.ndarray]:
    with np.load(pathlib.Path(__file__).parent / "golden" / "reference_values.npz") as file:
        return dict(file)


def golden(case: str, kind: str) -> dict[str, np.ndarray]:
    """Returns the arrays of a case by name, of one kind: `in`, `arg` or `grad`."""
    prefix = f"{case}/{kind}/"
    return {key.removeprefix(prefix): value for key, value in golden_file().items() if key.startswith(prefix)}


# --- extremes ---------------------------------------------------------------------------------------------------------

# All have one shape, so that each loss compiles once for them.
LOGITS = (5, 6)
MAPS = (5, 4, 4, 3)
EMBEDDINGS = (5, 4)


def far_apart(sign: float = 1.0) -> np.ndarray:
    return sign * 1e4 * np.where(np.arange(30).reshape(LOGITS) % 4 < 2, 1.0, -1.0)


def without(*classes: int) -> np.ndarray:
    """Returns logits with some classes at -inf."""
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


# --- mismatched shapes ------------------------------------------------------------------------------------------------

SAME_LOGITS = tuple(
    ("teacher", shapes)
    for shapes in [
        ((4, 1, 10), (4, 10)),
        ((4, 10), (4, 1, 10)),
        ((4, 10), (1, 10)),
        ((1, 10), (4, 10)),
        ((4, 10), (4, 1)),
        ((4, 1), (4, 10)),
        ((4, 10), (10,)),
        ((4, 10), (4, 12)),
        ((2, 3, 10), (3, 10)),
        ((2, 3, 10), (2, 1, 10)),
    ]
)
BATCHES = tuple(
    ("teacher", shapes)
    for shapes in [((4, 10), (1, 10)), ((1, 10), (4, 10)), ((4, 10), (3, 10)), ((4, 2, 2, 3), (2, 2, 2, 3))]
)
MAP_BATCHES = tuple(
    ("teacher", shapes)
    for shapes in [((4, 8, 8, 3), (1, 8, 8, 3)), ((1, 8, 8, 3), (4, 8, 8, 3)), ((4, 8, 8, 3), (3, 4, 4, 5))]
)
MAP_RANKS = (("student", ((4, 10), (4, 10))), ("student", ((4, 8, 3), (4, 8, 3))))
