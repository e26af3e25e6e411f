"""A model as one file that serves by itself: the compiled forward pass, the weights in it, for batches of any size."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
from jax import export

from jaxkd import checks
from jaxkd.types import Array, Batch, Model, Outputs, Variables
from jaxkd.weights import tree
from jaxkd.weights.replacing import replacing

PLATFORMS = ("cpu", "cuda", "tpu")
_LIMIT = 2**31 - 2**24  # a flatbuffer, which jax.export writes, ends at 2 GiB; the program has to fit in as well


def save_program(
    path: str | os.PathLike[str],
    model: Model,
    variables: Any,
    batch: Mapping[str, Any],
    *,
    preprocess: Callable[[Batch], Batch] | None = None,
    outputs: Sequence[str] | None = ("logits",),
    platforms: Sequence[str] = PLATFORMS,
    overwrite: bool = False,
) -> None:
    """Writes the model in inference mode with `jax.export`: one file, to be served with JAX alone.

        program = jax.export.deserialize(bytearray(open(path, "rb").read()))
        logits = program.call({"image": images})["logits"]

    The first axis of every input may have any length. Weights keep their dtypes (`cast` makes them smaller) and belong
    to no device. The file is there whole or not at all. With several processes, the first one writes.

    Versions of JAX up to six months newer are promised to read such a file, and those up to three weeks older. Keep the
    weights beside it, from `save_safetensors`, to make it anew.

    Args:
      path: of the file.
      model: from an adapter.
      variables: a `TrainState`, of which the student is written, or weights in any form that an adapter knows.
      batch: what the model reads, before ``preprocess``, and no more: the program will ask for all of it. Arrays or
        `jax.ShapeDtypeStruct`; values are not read. Where a shape has dimensions of `jax.export.symbolic_shape`, those
        are what varies, and nothing else is.
      preprocess: a pure function of the batch, such as the normalisation; the same as in `jaxkd.training.preprocess`.
      outputs: which of the model's outputs the program returns, taps among them; None for all.
      platforms: where it can run, of ``cpu``, ``cuda``, ``rocm`` and ``tpu``.
      overwrite: whether a file may be there already.

    Raises:
      FileExistsError: it is there, and ``overwrite`` is False.
      ValueError: there is no such output or platform, the inputs do not share their first axis, the weights take 2 GiB
        or more, or the model needs to know the size of the batch.

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

    @jax.jit  # within it the weights are arguments; what is computed of them alone would else be stored, wider, instead
    def forward(variables: Variables, batch: Batch) -> Outputs:
        prepared = preprocess(batch) if preprocess else batch
        found, _ = model.apply(variables, prepared, key=None, train=False)
        shapes = {name: checks.shape(value) for name, value in found.items()}
        for name in () if outputs is None else outputs:
            checks.known(name, shapes, "output")
        return dict(found) if outputs is None else {name: found[name] for name in outputs}

    data = _exported(lambda batch: forward(constants, batch), specification, platforms).serialize()
    if jax.process_index():
        return
    with replacing(path, overwrite=overwrite) as temporary:
        temporary.write_bytes(data)


def _constants(variables: Any) -> Variables:
    """The weights as NumPy arrays, which a traced function holds as constants, on no device."""
    variables = tree.student_of(variables)
    arrays = tree.on_host(variables)
    size = sum(array.nbytes for array in arrays.values())
    if size > _LIMIT:
        raise ValueError(
            f"variables: {size / 2**30:.2f} GiB of weights; a program holds less than 2 GiB. Save them with cast(..., "
            "jnp.bfloat16), or beside a program of your own: save_safetensors."
        )

    collections = tree.collections_of(variables)
    leaves = [arrays[path] for path in tree.paths(collections)]
    return tree.variables_of(jax.tree.unflatten(jax.tree.structure(collections), leaves), like=variables)


def _any_batch_size(batch: Mapping[str, Any]) -> dict[str, jax.ShapeDtypeStruct]:
    shapes = {name: jax.eval_shape(lambda x: x, value) for name, value in batch.items()}
    if any(export.is_symbolic_dim(n) for value in shapes.values() for n in value.shape):
        return shapes
    checks.batch_size(shapes)
    (size,) = export.symbolic_shape("batch")
    return {name: jax.ShapeDtypeStruct((size, *x.shape[1:]), x.dtype) for name, x in shapes.items()}


def _exported(
    forward: Callable[[Batch], Mapping[str, Array]],
    specification: Mapping[str, jax.ShapeDtypeStruct],
    platforms: Sequence[str],
) -> export.Exported:
    known = {"cpu", "cuda", "rocm", "tpu"}
    if isinstance(platforms, str) or not platforms or not known.issuperset(platforms):
        raise ValueError(f"platforms: expected some of {sorted(known)}, got {platforms!r}.")
    try:
        return export.export(jax.jit(forward), platforms=tuple(platforms))(dict(specification))
    except jax.errors.InconclusiveDimensionOperation as error:
        raise ValueError(
            "the model asks for the size of the batch, which the program leaves open. Write x.reshape(x.shape[0], -1) "
            f"where it has a number for it, and decide nothing by it. JAX says: {error}"
        ) from error
