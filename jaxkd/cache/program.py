"""The teacher as one compiled program: a raw batch in, what a cache keeps of its outputs out."""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd import checks
from jaxkd.teachers.cache.codecs import Codec
from jaxkd.teachers.cache.probes import Transform
from jaxkd.types import Batch, Model, PyTree, Variables

__all__ = ["Keep", "Program", "bytes_of", "file_name", "local"]

Keep = Mapping[str, Codec]


class Program:
    """The teacher, compiled once for all views: raw batch in, what is kept out."""

    def __init__(
        self,
        model: Model,
        variables: Variables,
        transform: Transform | None,
        keep: Keep,
        batch_size: int,
        devices: Sequence[jax.Device] | None,
    ) -> None:
        self.keep, self.batch_size, self.variables = keep, batch_size, variables
        self._split: NamedSharding | None = None
        if devices is not None:
            if batch_size % len(devices):
                raise ValueError(f"batch_size: {batch_size} does not divide among {len(devices)} devices.")
            mesh = Mesh(np.array(devices), ("batch",))
            self._split = NamedSharding(mesh, PartitionSpec("batch"))
            self.variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))

        def run(variables: PyTree, batch: Batch) -> Any:
            batch = dict(batch) if transform is None else transform(batch)
            outputs = model.apply(variables, batch, key=None, train=False)[0]
            encoded, storable, sample = {}, {}, {}
            for name, codec in keep.items():
                checks.known(name, {key: checks.shape(value) for key, value in outputs.items()}, "keep, teacher output")
                output = outputs[name]
                if not jnp.issubdtype(output.dtype, jnp.floating) or output.shape[:1] != (batch_size,):
                    raise ValueError(
                        f"keep: expected {name!r} to be floating point, [batch, ...] with a batch of {batch_size}, got "
                        f"{checks.shape(output)}."
                    )
                encoded[name], storable[name] = codec.encode(output), codec.storable(output)
                sample[name] = output.reshape(batch_size, -1)[:, :64].astype(jnp.float32)
            return encoded, storable, sample, outputs

        self._run = jax.jit(lambda variables, batch: run(variables, batch)[:3])
        self._outputs = run

    def shapes(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """What is stored of each output: its shape, and dtype and shape of each field, of one example."""
        encoded, _, _, outputs = jax.eval_shape(self._outputs, self.variables, self._ready(batch, 0))
        return {
            name: {
                "shape": list(outputs[name].shape[1:]),
                "fields": {
                    field: {"dtype": value.dtype.name, "shape": list(value.shape[1:])}
                    for field, value in fields.items()
                },
            }
            for name, fields in encoded.items()
        }

    def sample(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Some numbers of each output for a few examples, by which a teacher is known."""
        rows, parts = len(batch["index"]), []
        for start in range(0, rows, self.batch_size):
            part = {name: value[start : start + self.batch_size] for name, value in batch.items()}
            found = jax.device_get(self._run(self.variables, self._ready(part, 0))[2])
            parts.append({name: value[: len(part["index"])] for name, value in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in self.keep}

    def encode(self, batch: Mapping[str, np.ndarray], view: int) -> dict[str, np.ndarray]:
        """What is kept of a batch, by file name.

        Raises:
          ValueError: an output cannot be kept as it is asked for.
        """
        rows = len(batch["index"])
        encoded, storable, _ = self._run(self.variables, self._ready(batch, view))
        encoded, storable = jax.device_get((encoded, storable))
        for name, valid in storable.items():
            if not valid[:rows].all():
                index = int(batch["index"][np.flatnonzero(~valid[:rows])[0]])
                raise ValueError(
                    f"{name}: the teacher's output for index {index} in view {view} is not finite, and "
                    f"{self.keep[name].settings['codec']} cannot keep it. Look at the teacher on that example."
                )
        return {file_name(name, field): x[:rows] for name, fields in encoded.items() for field, x in fields.items()}

    def _ready(self, batch: Mapping[str, np.ndarray], view: int) -> Any:
        """Filled up to the compiled size with rows of its own, and where it is to be."""
        rows = np.arange(self.batch_size) % len(batch["index"])
        filled = {name: value[rows] for name, value in batch.items()}
        filled["epoch"] = np.full(self.batch_size, view, np.int32)
        return filled if self._split is None else jax.device_put(filled, self._split)


def file_name(output: str, field: str) -> str:
    """The file of a shard that holds a field of an output; an output may have any name.

    >>> file_name("block/1", "values")
    'block%2F1.values'
    """
    return f"{urllib.parse.quote(output, safe='')}.{field}"


def bytes_of(field: Mapping[str, Any]) -> int:
    """The bytes that one example takes in a field."""
    return int(np.prod(field["shape"], dtype=np.int64)) * int(jnp.dtype(field["dtype"]).itemsize)


def local(variables: Variables) -> Variables:
    """Weights that this host has to itself, so that hosts can run the same program on different batches."""

    def of(leaf: Any) -> Any:
        if not isinstance(leaf, jax.Array) or leaf.is_fully_addressable:
            return leaf
        if leaf.is_fully_replicated:
            return leaf.addressable_data(0)
        from jax.experimental import multihost_utils

        return multihost_utils.process_allgather(leaf, tiled=True)

    return Variables(*jax.tree.map(of, tuple(variables)))
