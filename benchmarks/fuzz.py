"""Fuzzed calls of every loss: finite values and gradients, no broadcast, errors that teach.

Run ``python -m benchmarks.fuzz``; ``--calls 200`` is a smoke test. A call draws a loss, and then either inputs (usual
numbers, zeros, ±1e4, duplicates, ``-inf`` and ``finfo.min`` for excluded classes, masked examples of NaN) or a mistake
(a shape that does not fit, a wrong dtype, mask or hyperparameter). Inputs have to give finite numbers: a NaN, or an
infinity without an excluded class, is a fault, and every gradient is finite. A mistake has to be a ValueError that says
what was expected and what came.

Mistakes are only traced. Inputs of one shape share a compiled program, and the programs of a loss are few, since
compiling takes far longer than running. The same seed draws the same calls.
"""

from __future__ import annotations

import collections
import functools
import inspect
import re
import time
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import rich
import tyro
from rich.table import Table

from jaxkd import losses

#: sizes that a dimension may have, by its letter; the others are from 1 to 3
SIZES = {
    "b": (0, 1, 2, 5),
    "c": (2, 3, 7),
    "h": (1, 2, 4),
    "w": (2, 3),
    "x": (2, 3),
    "y": (2, 3),
    "q": (1, 3),
    "4": (4,),
}
#: hyperparameters that a loss requires
REQUIRED: dict[str, dict[str, Any]] = {"contrastive_nce": {"num_data": 64.0}, "singular_vectors": {"rank": 1}}
#: numbers that may be negative
SIGNED = {("bounded_regression", "margin")}


class Loss(NamedTuple):
    """A loss and its arguments.

    Attributes:
      name: name of the loss in `jaxkd.losses`.
      arguments: kind and dimensions of each array, such as ``z:bc``: z logits, f features, p probabilities, + positive
        numbers, i classes of c, u different ones, ? masks. Equal letters are equal sizes.
      leading: dimensions of the result, which are also those of the mask.
      call: ``(loss, *arrays, **options) -> values``, where the arguments need another form.
      free: letters that other arguments may share or not, so that a change of them is no mistake.
    """

    name: str
    arguments: tuple[str, ...]
    leading: str = "b"
    call: Callable[..., Any] | None = None
    free: str = ""


def _pairs(loss: Callable[..., Any], a: Any, b: Any, c: Any, d: Any, **options: Any) -> Any:
    return loss((a, b), (c, d), **options)


def _heads(loss: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    return loss(*arrays[:4], student_bias=arrays[4], teacher_bias=arrays[5], **options)


def _one_head(loss: Callable[..., Any], *arrays: Any, **options: Any) -> Any:
    return loss(*arrays[:-1], student_bias=arrays[-1], **options)


def _known(loss: Callable[..., Any], hidden: Any, kernel: Any, known: Any, *arrays: Any, **options: Any) -> Any:
    """Calls a chunked loss of known classes, whose log-probabilities have no gradient."""
    return _one_head(loss, hidden, kernel, jax.lax.stop_gradient(known), *arrays, **options)


def _votes(loss: Callable[..., Any], student: Any, *teachers: Any, **options: Any) -> Any:
    return loss(student, teachers, **options)


def _group(names: str, *arguments: str, **options: Any) -> list[Loss]:
    return [Loss(name, arguments, **options) for name in names.split()]


LOSSES = (
    *_group("soft_target_kl reverse_kl generalized_jsd skew_kl skew_reverse_kl logit_mse dist", "z:bc", "z:bc"),
    *_group("total_variation", "z:bc", "z:bc"),
    *_group("class_weighted_cross_entropy", "z:bc", "z:bc"),
    *_group("decoupled_kd", "z:bc", "z:bc", "i:b"),
    *_group("decoupled_kd", "z:bc", "z:bc", "p:bc"),
    *_group("top_k_kl", "z:bc", "l:bk", "u:bk"),
    *_group("cross_entropy label_smoothing virtual_teacher_kl", "z:bc", "i:b"),
    *_group("soft_cross_entropy", "z:bc", "p:bc"),
    *_group("sparse_cross_entropy", "z:bc", "p:bk", "i:bk"),
    *_group("binary_cross_entropy sigmoid_focal", "z:bk", "p:bk"),
    *_group("binary_kl", "z:bk", "z:bk"),
    *_group("hint_mse", "f:bhwk", "f:bxyk", free="hwxy"),
    *_group("activation_boundary hierarchical_context", "f:bhwk", "f:bhwk"),
    *_group("overhaul channel_weighted_mse", "f:bhwk", "f:bhwk", "f:k"),
    *_group("gaussian_nll", "f:bhwk", "f:bhwk", "+:k"),
    *_group("attention_transfer factor_transfer neuron_selectivity pair_affinity", "f:bhwk", "f:bxyj"),
    *_group("channel_kl", "z:bhwk", "z:bxyk"),
    Loss("solution_flow", ("f:bhwk", "f:bxyj", "f:bhwk", "f:bxyj"), call=_pairs, free="hwxy"),
    Loss("singular_vectors", ("f:bhwk", "f:bxyk", "f:bhwk", "f:bxyk"), call=_pairs, free="hwxy"),
    *_group(
        "distance_relation angle_relation similarity_preserving correlation_congruence probabilistic_transfer "
        "darkrank_soft darkrank_hard",
        "f:bk",
        "f:bj",
    ),
    *_group("consecutive_correlation mean_discrepancy jacobian_matching", "f:bk", "f:bk"),
    *_group("info_nce", "f:bk", "f:bk"),
    Loss("voted_dissimilarity", ("f:bk", "f:bj", "f:bk"), call=_votes, free="k"),
    *_group("contrastive_nce", "+:bc"),
    *_group("attention_kl attention_mse", "z:bjqq", "z:bjqq", leading="bq"),
    *_group("value_relation_kl", "f:bqkj", "f:bqkh", leading="bq"),
    *_group("hidden_cosine hidden_mse", "f:bqk", "f:bqk", leading="bq"),
    *_group("ctc", "z:bwc", "i:bk"),
    *_group("ctc_n_best", "z:bwc", "i:bnk", "l:bn"),
    *_group("n_best_nll", "l:bn", "l:bn"),
    *_group("frame_kl", "z:bwc", "z:bwc", leading="bw"),
    *_group("pixel_kl", "z:bhwc", "z:bhwc", leading="bhw"),
    *_group(
        "linear_soft_target_kl linear_reverse_kl linear_generalized_jsd linear_skew_kl linear_skew_reverse_kl "
        "linear_total_variation",
        "f:bk",
        "f:kc",
        "f:bj",
        "f:jc",
        "z:c",
        "z:c",
        call=_heads,
    ),
    *_group("linear_cross_entropy", "f:bk", "f:kc", "i:b", "z:c", call=_one_head),
    *_group("linear_sparse_cross_entropy", "f:bh", "f:hc", "p:bk", "i:bk", "z:c", call=_known),
    *_group("linear_top_k_kl", "f:bh", "f:hc", "l:bk", "u:bk", "z:c", call=_known),
    *_group("focal_global", "f:bhwk", "f:bhwk", "f:bn4"),
    *_group("pearson_features", "f:bhwk", "f:bxyk", free="hwxy"),
    *_group("margin_mse", "f:bc", "f:bc"),
    *_group("universal_logit_distance", "z:bc", "z:bx", free="cx"),
    *_group("bounded_regression", "f:b4", "f:b4", "f:b4"),
    *_group("smooth_l1", "f:b4", "f:b4"),
    *_group("feature_imitation", "f:bhwk", "f:bhwk", "?:bhw"),
    *_group("heatmap_mse joint_structure", "f:bhwk", "f:bhwk"),
    *_group("region_affinity", "f:bhwk", "f:bxyj", "?:bhwn", free="hwxy"),
)


class Program(NamedTuple):
    """A compiled value and gradient, and the shapes and the dtype of its arrays."""

    shapes: tuple[tuple[int, ...], ...]
    sizes: dict[str, int]
    dtype: Any
    masked: bool
    run: Callable[..., Any]


def sizes(loss: Loss, random: np.random.Generator) -> dict[str, int]:
    """Draws a size for each letter."""
    letters = sorted({letter for argument in loss.arguments for letter in argument[2:]})
    drawn = {letter: int(random.choice(SIZES.get(letter, (1, 2, 3)))) for letter in letters}
    return drawn | ({"k": min(drawn["k"], drawn["c"])} if loss.name == "top_k_kl" else {})


def shapes(loss: Loss, size: dict[str, int]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(size[letter] for letter in argument[2:]) for argument in loss.arguments)


def draw(
    kind: str, shape: tuple[int, ...], dtype: Any, classes: int, random: np.random.Generator
) -> tuple[np.ndarray, bool]:
    """Returns an array, and whether a value may be infinite."""
    if kind == "i":
        return random.integers(0, classes, shape).astype(np.int32), False
    if kind == "u":
        return np.argsort(random.random((*shape[:-1], classes)))[..., : shape[-1]].astype(np.int32), False
    if kind == "?":
        return random.random(shape) < 0.6, False
    # float16 has no room for the gradients of 1e4
    large = 100.0 if dtype == jnp.float16 else 1e4
    x = random.normal(size=shape) * random.choice([1e-3, 1.0, 1.0, 30.0])
    match random.integers(6):
        case 0:
            x = np.zeros(shape)
        case 1:
            x = np.where(random.random(shape) < 0.5, large, -large)
        case 2:
            x = np.full(shape, random.choice([0.1, -0.3, large]))
        case 3 if shape and shape[0] > 1:
            x[1:] = x[:1]
        case _:
            pass
    if kind == "+":
        return np.abs(x) + 1e-3, False
    if kind == "p":
        x = np.exp(np.minimum(np.abs(x), 30))
        return x / np.maximum(x.sum(-1, keepdims=True), 1e-30), False
    infinite = False
    if kind in "zl" and random.random() < 0.4:
        lowest = float(jnp.finfo(dtype).min) if random.random() < 0.5 else -np.inf
        excluded = random.random(shape) < 0.3
        if lowest == -np.inf and shape[-1:] > (0,):  # a distribution of no class is none
            excluded[..., 0] = False
        x, infinite = np.where(excluded, lowest, x), True
    if kind == "l":  # log-probabilities
        top = np.max(x, axis=-1, keepdims=True, initial=-1e30)
        x = x - top - np.log(np.maximum(np.exp(np.maximum(x - top, -1e4)).sum(-1, keepdims=True), 1))
    return x, infinite


def function(loss: Loss) -> Callable[..., Any]:
    """Returns the loss as a function of its arrays."""
    of = functools.partial(getattr(losses, loss.name), **REQUIRED.get(loss.name, {}))
    return functools.partial(loss.call, of) if loss.call else of


def program(loss: Loss, random: np.random.Generator, temperature: bool) -> Program:
    """Returns a program of drawn shapes, dtype and, as a constant, temperature."""
    size, of = sizes(loss, random), function(loss)
    dtype = random.choice(np.array([jnp.float32, jnp.float32, jnp.bfloat16, jnp.float16], object))
    masked = bool(random.random() < 0.5)
    options = {"temperature": float(random.choice([0.07, 1.0, 3.0, 7.0]))} if temperature else {}
    floats = [i for i, argument in enumerate(loss.arguments) if argument[0] not in "iu?"]

    @jax.jit
    def run(arrays: list[Any], mask: Any) -> Any:
        def total(*parts: Any) -> Any:
            full = list(arrays)
            for position, part in zip(floats, parts, strict=True):
                full[position] = part
            value = of(*full, **options, **({"where": mask} if masked else {}))
            return jnp.sum(value), value

        (_, value), gradients = jax.value_and_grad(total, range(len(floats)), has_aux=True)(
            *(arrays[i] for i in floats)
        )
        return value, gradients

    return Program(shapes(loss, size), size, dtype, masked, run)


def check_inputs(loss: Loss, program: Program, random: np.random.Generator) -> str | None:
    """Runs a program on drawn inputs and returns its fault."""
    classes = program.sizes.get("c", 2)
    drawn = [
        draw(a[0], shape, program.dtype, classes, random)
        for a, shape in zip(loss.arguments, program.shapes, strict=True)
    ]
    # Labels that have no alignment with the frames are infinitely unlikely.
    infinite = loss.name.startswith("ctc") or any(flag for _, flag in drawn)
    leading = tuple(program.sizes[letter] for letter in loss.leading)
    mask = random.random(leading) < 0.6
    arrays = []
    for argument, (array, _) in zip(loss.arguments, drawn, strict=True):
        if program.masked and argument[0] in "zf" and argument[2 : 2 + len(loss.leading)] == loss.leading:
            array = np.where(mask.reshape(*mask.shape, *[1] * (array.ndim - mask.ndim)), array, np.nan)
        with np.errstate(over="ignore"):  # a logarithm below finfo.min is -inf
            arrays.append(array if argument[0] in "iu?" else jnp.asarray(array, program.dtype))
    value, gradients = (np.asarray(x) if i == 0 else x for i, x in enumerate(program.run(arrays, mask)))
    case = f"{loss.name} {loss.arguments} of {program.shapes}, {np.dtype(program.dtype).name}, masked {program.masked}"
    if value.shape != leading or value.dtype != np.float32:
        return f"{case}: {value.dtype}{list(value.shape)} in place of float32{list(leading)}"
    if np.isnan(value).any() or (value == -np.inf).any() or (np.isinf(value).any() and not infinite):
        return f"{case}: value {value.ravel()[:4]}"
    if program.masked and (value[~mask] != 0).any():
        return f"{case}: {value} where masked by {mask}"
    # A gradient may be too large for float16, to which it is rounded at last, but not NaN.
    known = np.isfinite if program.dtype != jnp.float16 else lambda gradient: ~np.isnan(gradient)
    if not all(known(np.asarray(gradient, np.float32)).all() for gradient in gradients):
        return f"{case}: a gradient that is not finite"
    return None


def mistake(loss: Loss, random: np.random.Generator) -> tuple[str, Callable[[], Any]] | None:
    """Draws a wrong call: its description, and the call, which only traces."""
    size = sizes(loss, random) | {"b": 3}
    of, wrong = function(loss), random.integers(4)
    kinds = {"i": jnp.int32, "u": jnp.int32, "?": jnp.bool_}
    arrays = [
        jax.ShapeDtypeStruct(shape, kinds.get(argument[0], jnp.float32))
        for argument, shape in zip(loss.arguments, shapes(loss, size), strict=True)
    ]
    at = int(random.integers(len(arrays)))
    options: dict[str, Any] = {}
    leading = tuple(size[letter] for letter in loss.leading)
    if wrong == 0:
        letters = loss.arguments[at][2:]
        others = "".join(argument[2:] for i, argument in enumerate(loss.arguments) if i != at)
        shared = [i for i, letter in enumerate(letters) if letter in others and letter not in loss.free]
        if not shared:
            return None
        shape, axis = list(arrays[at].shape), int(random.choice(shared))
        match random.integers(3):
            case 0:
                shape[axis] = 1 if shape[axis] != 1 else 2
            case 1:
                shape[axis] += 1
            case _:
                shape.insert(0, 1)
        if loss.name == "top_k_kl" and at == 1 and axis == 1:
            return None
        arrays[at] = jax.ShapeDtypeStruct(tuple(shape), arrays[at].dtype)
    elif wrong == 1:
        floating = jnp.issubdtype(arrays[at].dtype, jnp.floating)
        if loss.name in ("binary_cross_entropy", "sigmoid_focal") and at == 1:  # labels may be integers
            return None
        if loss.name == "decoupled_kd" and at == 2:
            return None
        arrays[at] = jax.ShapeDtypeStruct(arrays[at].shape, jnp.int32 if floating else jnp.float32)
    elif wrong == 2:
        other = [(), (1,), (*leading, 1), (leading[0] + 1, *leading[1:])][random.integers(4)]
        dtype = jnp.bool_ if other != leading and random.random() < 0.7 else jnp.float32
        options["where"] = jax.ShapeDtypeStruct(other, dtype)
        if loss.name.startswith("binary") and other == arrays[0].shape:
            return None
    else:
        parameters = inspect.signature(getattr(losses, loss.name)).parameters.values()
        names = [p.name for p in parameters if isinstance(p.default, float | int) or p.name == "num_data"]
        if not names:
            return None
        name = names[random.integers(len(names))]
        values = [np.nan, np.inf, "1", True, None, np.ones((2, 2)), -2.0]
        if isinstance(inspect.signature(getattr(losses, loss.name)).parameters[name].default, bool):
            values.remove(True)
        value = values[random.integers(len(values) - ((loss.name, name) in SIGNED))]
        options[name] = value
    constant = {key: value for key, value in options.items() if key != "where"}
    traced = {key: value for key, value in options.items() if key == "where"}
    came = ", ".join(f"{a.dtype.name}{list(a.shape)}" for a in arrays)
    text = f"{loss.name}({came}, {options})"
    return text, lambda: jax.eval_shape(lambda a, o: of(*a, **o, **constant), arrays, traced)


def check_mistake(text: str, call: Callable[[], Any]) -> str | None:
    """Returns a fault: no error, or one that does not teach."""
    try:
        result = call()
    except ValueError as error:
        if re.search(r"expected.*got", str(error), re.DOTALL):
            return None
        return f"{text}: {error}"
    except Exception as error:  # every other error is a fault
        return f"{text}: {type(error).__name__}: {error}"
    return f"{text}: accepted, {result.dtype}{list(result.shape)}"


def fuzz(
    calls: int = 10_000, *, seed: int = 0, programs: int = 2, seconds: float = 1500.0, only: tuple[str, ...] = ()
) -> tuple[collections.Counter[tuple[str, str]], list[str]]:
    """Returns how many calls there were of each loss and kind, and the faults."""
    with jax.numpy_rank_promotion("raise"):
        return _fuzz(calls, seed, programs, seconds, only)


def _fuzz(
    calls: int, seed: int, programs: int, seconds: float, only: tuple[str, ...]
) -> tuple[collections.Counter[tuple[str, str]], list[str]]:
    random = np.random.default_rng(seed)
    chosen = [loss for loss in LOSSES if not only or loss.name in only]
    compiled: dict[tuple[int, int], Program] = {}
    counts: collections.Counter[tuple[str, str]] = collections.Counter()
    faults: list[str] = []
    start = time.monotonic()
    while sum(counts.values()) < calls and time.monotonic() - start < seconds:
        position = int(random.integers(len(chosen)))
        loss = chosen[position]
        if random.random() < 0.4:
            drawn = mistake(loss, random)
            if drawn is None:
                continue
            counts[loss.name, "mistakes"] += 1
            fault = check_mistake(*drawn)
        else:
            key = position, int(random.integers(programs))
            if key not in compiled:
                temperature = "temperature" in inspect.signature(getattr(losses, loss.name)).parameters
                compiled[key] = program(loss, np.random.default_rng([seed, *key]), temperature)
            counts[loss.name, "inputs"] += 1
            fault = check_inputs(loss, compiled[key], random)
        if fault:
            faults.append(fault)
    return counts, faults


def main(
    calls: Annotated[int, tyro.conf.arg(help="number of calls")] = 10_000,
    seed: Annotated[int, tyro.conf.arg(help="seed of the draws")] = 0,
    programs: Annotated[int, tyro.conf.arg(help="compiled shapes of each loss")] = 2,
    seconds: Annotated[float, tyro.conf.arg(help="no call starts later than this")] = 1500.0,
    only: Annotated[tuple[str, ...], tyro.conf.arg(help="names of the losses to call, all by default")] = (),
) -> None:
    """Calls the losses, prints a table and the faults, and fails if there are any."""
    start = time.monotonic()
    counts, faults = fuzz(calls, seed=seed, programs=programs, seconds=seconds, only=only)
    table = Table("loss", "inputs", "mistakes", "faults")
    for name in sorted({name for name, _ in counts}):
        of_loss = sum(fault.startswith((f"{name} ", f"{name}(")) for fault in faults)
        table.add_row(name, str(counts[name, "inputs"]), str(counts[name, "mistakes"]), str(of_loss))
    rich.print(table)
    rich.print(f"{sum(counts.values())} calls in {time.monotonic() - start:.0f} s, seed {seed}: {len(faults)} faults")
    for fault in faults[:40]:
        print(fault)
    if faults:
        raise SystemExit(1)


if __name__ == "__main__":
    tyro.cli(main)
