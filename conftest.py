"""Configuration of every test and doctest: simulated devices, strict ranks, a compilation cache, the tier `slow`.

What must precede the first import of JAX is set at the top of this file, through environment variables, so that the
subprocesses of tests inherit it.
"""

import os
import pathlib
import zlib
from importlib import metadata

ROOT = pathlib.Path(__file__).parent

# JAX reads this flag when it starts its backend. Eight simulated devices let a laptop run the tests of pmap and
# shard_map. A flag that the developer has set already is kept.
DEVICES = "--xla_force_host_platform_device_count"
if DEVICES not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {DEVICES}=8".strip()
os.environ.setdefault("JAX_PLATFORMS", "cpu")

# Most of a test's time is compilation. Without XLA's optimizations it takes half as long, and the programs compute the
# same functions. A test about the optimized program asks for it with `as_users_compile` of tests/loss_runs.py. To
# compile every test as users do: JAX_DISABLE_MOST_OPTIMIZATIONS=false make test
QUICKLY = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
quick = os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "true") == "true"
if quick and metadata.version("jaxlib").startswith("0.10."):  # later versions no longer have the first of the two flags
    os.environ["XLA_FLAGS"] = f"{os.environ['XLA_FLAGS']} {QUICKLY}"

# Compiled programs are kept in the clone. The workers of one run share them, since many tests compile the same small
# programs, and the next run finds them again. An entry's key covers the program, its devices, the flags and the
# versions. To compile everything anew: JAX_ENABLE_COMPILATION_CACHE=false make test
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(ROOT / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")

import jax  # noqa: E402
import pytest  # noqa: E402
from jax._src import lru_cache  # noqa: E402


def _put_atomically(cache, key, value):
    """Writes an entry of the compilation cache such that a concurrent worker never reads a part of it.

    JAX 0.10 writes in place, without a lock unless the cache is bounded.
    """
    path = pathlib.Path(cache.path) / f"{key}-cache"
    if not path.exists():
        temporary = path.with_name(f"{path.name}.{os.getpid()}")
        temporary.write_bytes(value)
        temporary.replace(path)


lru_cache.LRUCache.put = _put_atomically  # type: ignore[method-assign]

if not hasattr(jax, "enable_x64"):  # JAX before 0.8
    from jax import experimental

    jax.enable_x64 = vars(experimental)["enable_x64"]

STRICT = {"jax_numpy_rank_promotion": "raise", "jax_enable_x64": False}
TESTS_DONE = pytest.StashKey[int]()
MAPS_BEFORE_CLEARING = 25_000
for name, value in STRICT.items():
    jax.config.update(name, value)


@pytest.fixture(autouse=True)
def _configuration_is_restored():
    """Fails a test that leaves JAX's configuration changed: float64 belongs in ``with jax.enable_x64(True):``."""
    yield
    changed = {name: current for name, value in STRICT.items() if (current := getattr(jax.config, name)) != value}
    for name in changed:
        jax.config.update(name, STRICT[name])
    assert not changed, f"the test left the configuration of JAX changed: {changed}; change it in a `with` block"


@pytest.fixture(autouse=True)
def _compiled_programs_are_bounded(request):
    """Clears JAX's caches when the process nears its limit of memory maps.

    XLA maps each compiled program in pieces. Linux allows a process 65,530 maps (``vm.max_map_count``), which a few
    thousand tests reach; the compiler then aborts. Counting takes milliseconds, so one test in ten does it.
    """
    yield
    done = request.config.stash.get(TESTS_DONE, 0) + 1
    request.config.stash[TESTS_DONE] = done
    if done % 10 == 0 and _memory_maps() > MAPS_BEFORE_CLEARING:
        jax.clear_caches()


def _memory_maps() -> int:
    try:
        return pathlib.Path("/proc/self/maps").read_bytes().count(b"\n")
    except OSError:  # not Linux, which alone is known to have such a limit
        return 0


# Test functions of the slow tier, beside those that are marked where they are written: @pytest.mark.slow. The list is
# made by tests/tiers.py from measured times.
SLOW = frozenset((ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").split())
# Consecutive tests share compiled programs and fixtures of their module, so that one worker should run them. A longer
# module is divided, so that no worker is left with it at the end.
TESTS_IN_A_GROUP = 60


# The slow tier can be run in parts, such as JAXKD_SLOW_PART=1/2; a module lies in one part.
PART, PARTS = map(int, os.environ.get("JAXKD_SLOW_PART", "1/1").split("/"))


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist reads the groups
def pytest_collection_modifyitems(config, items):
    """Marks the slow tests, selects a part, and groups the tests of a module for ``--dist loadgroup``."""
    place = {}
    for item in items:
        if item.nodeid.partition("[")[0] in SLOW:
            item.add_marker(pytest.mark.slow)
        module = item.nodeid.partition("::")[0]
        place[module] = place.get(module, -1) + 1
        if item.get_closest_marker("xdist_group") is None:
            name = pathlib.PurePath(module).stem
            item.add_marker(pytest.mark.xdist_group(f"{name}-{place[module] // TESTS_IN_A_GROUP}"))
    other = {item for item in items if item.get_closest_marker("slow") and _part_of(item) != PART}
    if other:
        config.hook.pytest_deselected(items=list(other))
        items[:] = [item for item in items if item not in other]


def _part_of(item) -> int:
    return zlib.crc32(item.nodeid.partition("::")[0].encode()) % PARTS + 1
