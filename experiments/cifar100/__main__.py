"""``python -m experiments.cifar100``: see `experiments.cifar100.config` for what it can be told."""

import os
import sys

if (cores := os.environ.get("JAXKD_CIFAR100_WORKER")) and hasattr(os, "sched_setaffinity"):  # before JAX counts them
    os.sched_setaffinity(0, {int(core) for core in cores.split(",")})

from experiments.cifar100.main import cli

if __name__ == "__main__":
    sys.exit(cli())
