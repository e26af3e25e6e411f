"""Bytes per device, of replicated and of sharded states."""

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from benchmarks import placement
from jaxkd import models


def test_bytes_are_of_the_fullest_device():
    mesh = jax.make_mesh((2,), ("data",), devices=jax.devices()[:2])
    split = jax.device_put(np.zeros(8, np.float32), NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(np.zeros(3, np.float32), NamedSharding(mesh, PartitionSpec()))
    alone = jax.device_put(np.zeros(1, np.int8), jax.devices()[1])
    assert placement.bytes_per_device({"split": split, "whole": whole, "alone": alone}) == 16 + 12 + 1


def test_sharded_state_takes_a_share_of_the_bytes():
    batch = {"image": np.zeros((4, 64), np.float32), "label": np.zeros(4, np.int32)}
    kd = placement.distiller(models.MLP((512,), 8), models.MLP((512,), 8), batch["image"])
    rows = {devices: placement.measure(kd, batch, devices) for devices in (1, 4)}
    assert rows[1]["share"] == 1
    assert 0.25 <= rows[4]["share"] < 0.4  # small arrays, such as heads and biases, are not sharded
    assert rows[1]["bytes"]["replicated"] == rows[4]["bytes"]["replicated"]
