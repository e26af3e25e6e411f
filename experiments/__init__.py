"""A kit and a folder for each field, run as ``python -m experiments.NAME``."""

import os

# A worker of `kit.command.spawn` keeps to its share of the cores, which JAX counts when it starts.
if (_cores := os.environ.get("JAXKD_WORKER")) and hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {int(core) for core in _cores.split(",")})
