"""Bytes of a training state per device, replicated and fully sharded, on 2, 4 and 8 devices.

Run ``python -m benchmarks.placement``. A resnet8x4 learns from a resnet32x4. The devices are simulated, so that times
have no meaning; the bytes are those that real devices would hold.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
import tyro
from rich.table import Table

import jaxkd
from benchmarks.common import command, report
from jaxkd import losses, models

BATCH = {"image": np.zeros((8, 32, 32, 3), np.float32), "label": np.zeros(8, np.int32)}


def bytes_per_device(tree: Any) -> int:
    """Returns the largest number of bytes that a device holds of the arrays."""
    held: Counter[Any] = Counter()
    for array in jax.tree.leaves(tree):
        if jnp.issubdtype(array.dtype, jax.dtypes.extended):
            array = jax.random.key_data(array)
        for shard in array.addressable_shards:
            held[shard.device] += shard.data.nbytes
    return max(held.values())


def measure(kd: jaxkd.Distiller, batch: Any, devices: int) -> dict[str, Any]:
    """Returns the row of a number of devices: bytes of the initial state in both placements."""
    mesh = jax.make_mesh((devices,), ("data",), devices=jax.devices()[:devices])
    rules: dict[str, Any] = {"student/|teacher/": jaxkd.parallel.fully_sharded(mesh)}
    placed = {
        "replicated": jaxkd.parallel.shard(kd, mesh),
        "fully_sharded": jaxkd.parallel.shard(kd, mesh, rules=rules),
    }
    held = {name: bytes_per_device(each.init(jax.random.key(0), batch)) for name, each in placed.items()}
    return {"devices": devices, "bytes": held, "share": held["fully_sharded"] / held["replicated"]}


def distiller(student: Any, teacher: Any, image: Any) -> jaxkd.Distiller:
    """Builds soft targets with momentum; the state holds the teacher once and the student twice."""
    variables = teacher.init(jax.random.key(1), image[:1])
    return jaxkd.distill(
        jaxkd.adapters.linen(student),
        jaxkd.teachers.frozen(jaxkd.adapters.linen(teacher), variables),
        jaxkd.combine(kd=jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits")),
        optimizer=optax.sgd(0.05, momentum=0.9),
    )


def main(
    out: Annotated[Path | None, tyro.conf.arg(help="JSON file to write the results to")] = None,
) -> None:
    """Compares the bytes per device of two placements."""
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8)
    kd = distiller(models.create("resnet8x4", 100), models.create("resnet32x4", 100), BATCH["image"])
    rows = [measure(kd, BATCH, devices) for devices in (2, 4, 8)]
    table = Table(title="resnet8x4 from resnet32x4: state, MiB per device", title_justify="left")
    for column in ("devices", "replicated", "fully sharded", "share"):
        table.add_column(column, justify="right")
    for row in rows:
        sizes = (f"{row['bytes'][name] / 2**20:.2f}" for name in ("replicated", "fully_sharded"))
        table.add_row(str(row["devices"]), *sizes, f"{row['share']:.3f}")
    rich.print(table)
    report(rows, out)


if __name__ == "__main__":
    command(main)
