"""The teacher as one compiled program, from a raw batch to encoded outputs.

Transform, network and encoding are one jitted function, so that full-precision outputs never leave the device. The view
is data (the batch's ``epoch``) and the last batch is padded to the common size: one compilation serves the whole cache.
"""

from __future__ import annotations

import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxkd._core import checks
from jaxkd.cache._inputs import checksums, entries_read
from jaxkd.cache._probes import Transform
from jaxkd.cache._tokens import MASK
from jaxkd.cache.codecs import Codec
from jaxkd.cache.codecs._codec import example_keys
from jaxkd.types import Batch, Model, PyTree, Variables

Codecs = Mapping[str, Codec]
"""A codec for each output that is stored."""

INPUTS, SUMS = "inputs", "sums"
"""File names of the checksums of what the teacher saw, and of those of the rows of a shard."""


class Program:
    """The teacher, compiled once for all views.

    ``transform`` is that of the student's training, or None. Each call evaluates ``batch_size`` examples, split over
    ``devices``, or on the default device if they are None.

    Attributes:
      inputs: entries of a transformed batch that the stored outputs depend on; known once `shapes` was called.
      masked: file names of the fields of which only the tokens of the batch's mask are stored; known at the same time.
    """

    def __init__(
        self,
        model: Model,
        variables: Variables,
        transform: Transform | None,
        codecs: Codecs,
        *,
        batch_size: int,
        devices: Sequence[jax.Device] | None,
    ) -> None:
        self.codecs, self.batch_size, self.variables = codecs, batch_size, variables
        self.inputs: list[str] = []
        self.masked: set[str] = set()
        self._sharding: NamedSharding | None = None
        if devices is not None:
            if batch_size % len(devices):
                raise ValueError(
                    f"batch_size: expected a multiple of the number of devices, {len(devices)}, got {batch_size}."
                )
            mesh = Mesh(np.array(devices), ("batch",))
            self._sharding = NamedSharding(mesh, PartitionSpec("batch"))
            self.variables = jax.device_put(variables, NamedSharding(mesh, PartitionSpec()))

        def kept(variables: PyTree, batch: Batch) -> dict[str, Any]:
            found = model.apply(variables, batch, key=None, train=False)[0]
            return {name: value for name, value in found.items() if name in codecs}

        def run(variables: PyTree, batch: Batch) -> Any:
            keys = example_keys(batch["index"], batch["epoch"])  # of the set, as the transform may drop these entries
            batch = dict(batch) if transform is None else transform(batch)
            outputs = model.apply(variables, batch, key=None, train=False)[0]
            mask, self.masked = jnp.asarray(batch.get("mask", False)), set()
            encoded, storable, sample = {}, {}, {}
            for name, codec in codecs.items():
                checks.known(name, checks.shapes(outputs), "codecs, teacher output")
                output = outputs[name]
                if not jnp.issubdtype(output.dtype, jnp.floating) or output.shape[:1] != (batch_size,):
                    raise ValueError(
                        f"codecs: expected {name!r} to be floating point, [batch, ...] with a batch of {batch_size}, "
                        f"got {checks.shape(output)}."
                    )
                sample[name] = output.reshape(batch_size, -1)[:, :64].astype(jnp.float32)
                masked = codec.masked and output.ndim == 3 and mask.dtype == bool and mask.shape == output.shape[:2]
                if masked:  # another token may well be NaN
                    output = jnp.where(mask[..., None], output, 0)
                encoded[name], storable[name] = codec.encode(output, keys), codec.storable(output)
                self.masked |= {file_name(name, field) for field in encoded[name] if masked}
            read = entries_read(lambda batch: kept(variables, batch), batch)
            # A student that includes other tokens would read what is not stored.
            self.inputs = sorted({*read, "mask"}) if self.masked else read
            more = {MASK: mask} if self.masked else {}
            return (encoded, {INPUTS: checksums(batch, self.inputs), **more}), storable, sample, outputs

        self._run = jax.jit(lambda variables, batch: run(variables, batch)[:3])
        self._outputs = run

    def shapes(self, batch: Mapping[str, np.ndarray]) -> dict[str, Any]:
        """Returns each output's shape and its fields, for one example with all tokens."""
        (encoded, _), _, _, outputs = jax.eval_shape(self._outputs, self.variables, self._padded(batch, 0))
        return {
            name: {
                "shape": list(outputs[name].shape[1:]),
                "fields": {
                    field: {"dtype": value.dtype.name, "shape": list(value.shape[1:])}
                    for field, value in fields.items()
                },
            }
            | ({"masked": True} if any(file_name(name, field) in self.masked for field in fields) else {})
            for name, fields in encoded.items()
        }

    def sample(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Returns up to 64 numbers of each output in view 0, to identify the teacher."""
        rows, parts = len(batch["index"]), []
        for start in range(0, rows, self.batch_size):
            part = {name: value[start : start + self.batch_size] for name, value in batch.items()}
            found = jax.device_get(self._run(self.variables, self._padded(part, 0))[2])
            parts.append({name: value[: len(part["index"])] for name, value in found.items()})
        return {name: np.concatenate([part[name] for part in parts]) for name in self.codecs}

    def encode(self, batch: Mapping[str, np.ndarray], view: int) -> dict[str, np.ndarray]:
        """Returns the fields and `INPUTS` of a batch in a view, by file name.

        Fields of `masked` hold all tokens, and `MASK` says which of them to store.

        Raises:
          ValueError: an output holds values that its codec cannot represent.
        """
        rows = len(batch["index"])
        encoded, storable, _ = self._run(self.variables, self._padded(batch, view))
        (encoded, more), storable = jax.device_get((encoded, storable))
        for name, valid in storable.items():
            if not valid[:rows].all():
                index = int(batch["index"][np.flatnonzero(~valid[:rows])[0]])
                raise ValueError(
                    f"{name}: the teacher's output for index {index} in view {view} is not finite, and "
                    f"{self.codecs[name].settings['codec']} cannot store it. Check the teacher on that example."
                )
        fields = {file_name(name, field): x[:rows] for name, parts in encoded.items() for field, x in parts.items()}
        return {**fields, **{name: x[:rows] for name, x in more.items()}}

    def _padded(self, batch: Mapping[str, np.ndarray], view: int) -> Any:
        """Returns a batch padded to the compiled size with its own rows, on the devices."""
        rows = np.arange(self.batch_size) % len(batch["index"])
        padded = {name: value[rows] for name, value in batch.items()}
        padded["epoch"] = np.full(self.batch_size, view, np.int32)
        return padded if self._sharding is None else jax.device_put(padded, self._sharding)


def file_name(output: str, field: str) -> str:
    """Returns the file name of a field in a shard, with the output percent-encoded.

    >>> file_name("block/1", "values")
    'block%2F1.values'
    """
    return f"{urllib.parse.quote(output, safe='')}.{field}"


def bytes_per_row(outputs: Mapping[str, Any]) -> int:
    """Returns the most bytes of one example in one view, from `Program.shapes`."""
    fields = [field for output in outputs.values() for field in output["fields"].values()]
    return sum(int(np.prod(f["shape"], dtype=np.int64)) * int(jnp.dtype(f["dtype"]).itemsize) for f in fields)
