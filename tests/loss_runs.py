"""Values and gradients of the rows of the loss table, compiled once per shape."""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from tests import references
from tests.loss_changes import Arrays
from tests.loss_row import Row, discrete
from tests.loss_table import BY_NAME

# The tests compile without XLA's optimizations (conftest.py). Tests of rounding errors ask for them (`optimized=True`),
# since a fused Gram matrix rounds differently.
_AS_USERS_COMPILE = {
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_use_fusion_emitters": True,
    "xla_cpu_parallel_codegen_split_count": 32,
}


@functools.cache
def as_users_compile() -> dict[str, Any]:
    """Returns the compiler options of a user without conftest.py, those that this version of XLA has."""

    def known(option):
        try:
            jax.jit(lambda x: x, compiler_options=dict([option]))(0.0)
        except jax.errors.JaxRuntimeError:
            return False
        return True

    return dict(filter(known, _AS_USERS_COMPILE.items()))


@functools.cache
def _compiled(name: str, hyper: tuple[tuple[str, Any], ...], differentiable: tuple[int, ...], optimized: bool):
    function = functools.partial(BY_NAME[name].function, **dict(hyper))

    @functools.partial(jax.jit, compiler_options=as_users_compile() if optimized else None)
    def value_and_gradients(arrays, cotangent, options):
        def of(*floats):
            full = list(arrays)
            for position, array in zip(differentiable, floats, strict=True):
                full[position] = array
            return function(*full, **options)

        value, pullback = jax.vjp(of, *(arrays[position] for position in differentiable))
        return value, pullback(jnp.asarray(cotangent, value.dtype))

    return value_and_gradients


def cast(arrays: Arrays, dtype: Any) -> list[jax.Array]:
    """Returns jax arrays, floating ones in `dtype`; float64 needs ``jax.enable_x64(True)``."""
    return [jnp.asarray(a, (bool if a.dtype == bool else jnp.int32) if discrete(a) else dtype) for a in arrays]


def run(
    row: Row,
    arrays: Arrays,
    *,
    where: np.ndarray | None = None,
    cotangent: Any = None,
    dtype: Any = np.float64,
    hyper: Mapping[str, Any] = {},
    optimized: bool = False,
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Returns the result and the gradients of ``(cotangent * result).sum()`` as NumPy arrays."""
    arrays = tuple(np.asarray(array) for array in arrays)
    if cotangent is None:
        cotangent = np.ones(row.result_shape(arrays))
    with jax.enable_x64(dtype == np.float64):
        compiled = _compiled(row.name, tuple(sorted(hyper.items())), row.floating(arrays), optimized)
        value, gradients = compiled(cast(arrays, dtype), cotangent, {} if where is None else {"where": where})
        return np.asarray(value), tuple(np.asarray(gradient) for gradient in gradients)


def reference_gradients(
    row: Row,
    arrays: Arrays,
    cotangent: np.ndarray,
    hyper: Mapping[str, Any] = {},
) -> list[np.ndarray]:
    """Returns difference quotients of the reference, which are the gradients that `run` should return."""
    gradients = []
    for position in row.floating(arrays):

        def weighted(array, position=position):
            result = row.reference(*arrays[:position], array, *arrays[position + 1 :], **hyper)
            finite = np.isfinite(result)
            return (cotangent * result)[finite].sum()

        gradients.append(references.finite_difference(weighted, arrays[position]))
    return gradients


def reference_slope(
    row: Row, arrays: Arrays, directions: Arrays, cotangent: np.ndarray, where: np.ndarray | None = None
) -> float:
    """Returns a difference quotient along one direction, for inputs with many coordinates."""

    def moved(step):
        at = (a if d is None else a + step * d for a, d in zip(arrays, directions, strict=True))
        at = tuple(at)
        result = row.reference(*at) if where is None else row.keep(where, at)
        return (cotangent * result).sum()

    return float(references.finite_difference(moved, np.zeros(())))
