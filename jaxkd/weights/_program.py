"""A model as one file: the compiled forward pass with its weights."""

from __future__ import annotations

import hashlib
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import export

from jaxkd._core import batches, checks, tree_paths
from jaxkd._core.arrays import casts
from jaxkd._core.files import replacing
from jaxkd.types import Array, Batch, Model, Outputs, Variables
from jaxkd.weights import _tree

PLATFORMS = ("cpu", "cuda", "tpu")
_DIGEST = 32  # bytes of the SHA-256 at the end of the file, which jax.export does not read
_LIMIT = 2**31 - 2**24  # jax.export writes a flatbuffer, at most 2 GiB; the rest is for the program


def save_program(
    file: str | os.PathLike[str],
    model: Model,
    variables: Any,
    batch: Mapping[str, Any],
    *,
    preprocess: Callable[[Batch], Batch] | None = None,
    output_names: Sequence[str] | None = ("logits",),
    platforms: Sequence[str] = PLATFORMS,
    overwrite: bool = False,
) -> None:
    """Writes the model in inference mode with `jax.export`, to serve with JAX alone.

        program = jax.export.deserialize(bytearray(open(path, "rb").read()))
        logits = program.call({"image": images})["logits"]

    The SHA-256 of the program follows it as 32 bytes, which `load_program` verifies and `jax.export` ignores. JAX does
    not notice a damaged file: the process may die, or the program may compute something else.

    The first axis of every input may have any length. Weights keep their dtypes (`cast` narrows them) and are not bound
    to a device. The file is written completely or not at all. With several processes, the first one writes.

    JAX guarantees that versions up to six months newer, and up to three weeks older, read such a file. Keep the weights
    too, with `save_safetensors`, to export the program again.

    Args:
      file: path of the file.
      model: model from an adapter.
      variables: a `TrainState`, whose student is written, or weights in any form that an adapter accepts.
      batch: inputs of the model before ``preprocess``, and no others: the program requires all of them. Arrays or
        `jax.ShapeDtypeStruct`; values are not read. If a shape has dimensions of `jax.export.symbolic_shape`, exactly
        those may vary.
      preprocess: a pure function of the batch, such as the normalization; the same as in `jaxkd.distillers.preprocess`.
      output_names: names of the model outputs and taps that the program returns; None for all.
      platforms: platforms that the program runs on, of ``cpu``, ``cuda``, ``rocm`` and ``tpu``.
      overwrite: replace an existing file.

    Raises:
      FileExistsError: the file exists and ``overwrite`` is False.
      ValueError: an output or platform is unknown, the inputs do not share their first axis, the weights take 2 GiB or
        more, or the model depends on the size of the batch.

    >>> import pathlib, tempfile, jax.numpy as jnp, jaxkd
    >>> model = jaxkd.adapters.plain(lambda key, x: jnp.ones((3, 2)), lambda w, x: x @ w, inputs="x")
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.jax"
    >>> save_program(path, model, jaxkd.Variables(jnp.ones((3, 2))), {"x": jnp.zeros((1, 3))})
    >>> program = export.deserialize(bytearray(path.read_bytes()))
    >>> program.call({"x": jnp.ones((2, 3))})["logits"].tolist()
    [[3.0, 3.0], [3.0, 3.0]]
    """
    constants = _constants(variables)
    specification = _any_batch_size(batch)

    # An inner jit, so that the weights are its arguments. As constants, they would be folded with what the model
    # computes from them alone: a bfloat16 kernel cast to float32 would be stored in float32.
    @jax.jit
    def forward(variables: Variables, batch: Batch) -> Outputs:
        prepared = preprocess(batch) if preprocess else batch
        available, _ = model.apply(variables, prepared, key=None, train=False)
        shapes = {name: checks.shape(value) for name, value in available.items()}
        for name in () if output_names is None else output_names:
            checks.known(name, shapes, "output")
        return dict(available) if output_names is None else {name: available[name] for name in output_names}

    data = _exported(lambda batch: forward(constants, batch), specification, platforms, batch).serialize()
    if jax.process_index():
        return
    with replacing(file, overwrite=overwrite) as temporary:
        temporary.write_bytes(bytes(data) + hashlib.sha256(data).digest())


def load_program(file: str | os.PathLike[str]) -> export.Exported:
    """Returns a program that `save_program` wrote, after verifying its digest.

    Args:
      file: path of the file.

    Returns:
      A `jax.export.Exported`: ``load_program(file).call({"image": images})`` returns the outputs by name.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: the file is damaged, or `save_program` has not written it.

    >>> import tempfile, jax.numpy as jnp, jaxkd
    >>> model = jaxkd.adapters.plain(lambda key, x: jnp.ones((3, 2)), lambda w, x: x @ w, inputs="x")
    >>> path = pathlib.Path(tempfile.mkdtemp()) / "student.jax"
    >>> save_program(path, model, jaxkd.Variables(jnp.ones((3, 2))), {"x": jnp.zeros((1, 3))})
    >>> load_program(path).call({"x": jnp.ones((2, 3))})["logits"].tolist()
    [[3.0, 3.0], [3.0, 3.0]]
    """
    content = pathlib.Path(file).read_bytes()
    program, digest = content[:-_DIGEST], content[-_DIGEST:]
    if hashlib.sha256(program).digest() != digest:
        raise ValueError(
            f"{os.fspath(file)}: expected a program that save_program wrote, with its digest at the end. The file is "
            "damaged or cut, or something else wrote it: copy it again, or export the program again from its weights."
        )
    return export.deserialize(bytearray(program))


def _constants(variables: Any) -> Variables:
    """Returns the weights as NumPy arrays: constants of a trace, bound to no device."""
    variables = _tree.student_of(variables)
    arrays = {path: casts.cast(array) for path, array in _tree.on_host(variables).items()}
    size = sum(array.nbytes for array in arrays.values())
    if size > _LIMIT:
        raise ValueError(
            f"variables: expected less than 2 GiB of weights, which a program can hold, got {size / 2**30:.2f} GiB. "
            "Narrow them with cast(..., jnp.bfloat16), or store them apart from the program with save_safetensors."
        )
    collections = _tree.collections_of(variables)
    leaves = [arrays[path] for path in tree_paths.by_parts(collections)]
    return _tree.variables_of(jax.tree.unflatten(jax.tree.structure(collections), leaves), like=variables)


def _any_batch_size(batch: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {name: jax.eval_shape(lambda x: x, value) for name, value in batch.items()}
    if any(export.is_symbolic_dim(n) for value in shapes.values() for n in value.shape):
        return shapes
    batches.batch_size(shapes)
    (size,) = export.symbolic_shape("batch")
    return {name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for name, x in shapes.items()}


def _exported(
    forward: Callable[[Batch], Mapping[str, Array]],
    specification: Mapping[str, jax.ShapeDtypeStruct],
    platforms: Sequence[str],
    batch: Mapping[str, Any],
) -> export.Exported:
    known = {"cpu", "cuda", "rocm", "tpu"}
    if isinstance(platforms, str) or not platforms or not known.issuperset(platforms):
        raise ValueError(f"platforms: expected some of {sorted(known)}, got {platforms!r}.")
    try:
        return export.export(jax.jit(forward), platforms=tuple(platforms))(dict(specification))
    except (TypeError, ValueError, jax.errors.InconclusiveDimensionOperation) as error:
        if not _only_for_any_size(forward, batch, error):
            raise
        raise ValueError(
            "model: expected one that does not depend on the size of the batch, which the program leaves open. Write "
            "x.reshape(x.shape[0], -1) instead of a number or of len(x), and neither loop over the examples nor branch "
            f"on their number. JAX reports: {error}"
        ) from error


def _only_for_any_size(forward: Callable[[Batch], Any], batch: Mapping[str, Any], error: Exception) -> bool:
    """Returns whether a model that failed for any size of the batch runs for this one."""
    if isinstance(error, jax.errors.InconclusiveDimensionOperation) or "_DimExpr" in str(error):
        return True
    if any(export.is_symbolic_dim(n) for value in batch.values() for n in value.shape):
        return False
    try:
        jax.eval_shape(forward, dict(batch))
    except Exception:  # the model fails anyway, as its own error says
        return False
    return True
