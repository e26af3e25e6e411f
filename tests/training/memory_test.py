"""`keep_freed_memory`: a step gets its temporary memory without new pages."""

import platform
import subprocess
import sys

import pytest

CHILD = """
import resource, statistics
import jax, jax.numpy as jnp
from jaxkd.training import keep_freed_memory

if {kept}:
    assert keep_freed_memory()

@jax.jit
def step(x):  # 64 MiB of temporary memory
    return jnp.sum(jnp.sin(x @ x.T) @ x)

x = jnp.ones((4096, 8))
def pages():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    step(x).block_until_ready()
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(statistics.median(pages() for _ in range(21)))
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the setting is one of glibc")
def test_a_step_takes_no_new_pages():
    def pages(kept):
        done = subprocess.run(
            [sys.executable, "-c", CHILD.format(kept=kept)], capture_output=True, text=True, check=True, timeout=300
        )
        return float(done.stdout)

    assert pages(kept=True) < 500 < 8000 < pages(kept=False)  # a page has 4 KiB
