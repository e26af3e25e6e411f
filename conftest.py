"""What holds for every test and for every doctest of jaxkd: simulated devices, strict ranks, nothing left behind."""

import os
import pathlib
from importlib import metadata

# Read when JAX starts its backend, hence before jax is imported. Eight devices let a laptop test what pmap and
# shard_map do; a developer's own flags stay.
DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most of a test is compiling. Without XLA's optimisations it takes half as long, and the programs are as right; where
# the optimised one is what a test is about, it asks for it with `as_users_compile` of tests/loss_runs.py. To run
# everything as users compile it: JAX_DISABLE_MOST_OPTIMIZATIONS=false make test
QUICKLY = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
quick = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true") == "true"
if quick and metadata.version("jaxlib").startswith("0.10."):  # later versions have lost the first of the two
    os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {QUICKLY}"

import jax  # noqa: E402
import pytest  # noqa: E402

STRICT = {"jax_numpy_rank_promotion": "raise", "jax_enable_x64": False}
TESTS_DONE = pytest.StashKey[int]()
MAPS_BEFORE_FORGETTING = 25_000
for name, value in STRICT.items():
    jax.config.update(name, value)


@pytest.fixture(autouse=True)
def _configuration_is_left_as_found():
    """A test that needs float64 asks for it within ``with jax.enable_x64(True):``, so that the next one has float32."""
    yield
    changed = {name: found for name, value in STRICT.items() if (found := getattr(jax.config, name)) != value}
    for name in changed:
        jax.config.update(name, STRICT[name])
    assert not changed, f"the test left the configuration of JAX changed: {changed}; change it in a `with` block"


@pytest.fixture(autouse=True)
def _compiled_programs_are_forgotten(request):
    """When they fill the process: XLA maps each into memory in pieces, and a process may only have so many of those.

    On Linux that is 65,530 (``vm.max_map_count``), which a few thousand tests reach; the compiler then aborts. Looking
    takes some milliseconds, so it is done after one test in ten.
    """
    yield
    done = request.config.stash.get(TESTS_DONE, 0) + 1
    request.config.stash[TESTS_DONE] = done
    if done % 10 == 0 and _maps() > MAPS_BEFORE_FORGETTING:
        jax.clear_caches()


def _maps() -> int:
    try:
        return pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # not Linux: no such limit is known
        return 0
