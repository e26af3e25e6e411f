"""The configuration of the tests: the compilation cache, and the groups of tests for pytest-xdist."""

import os
import pathlib

import jax
from jax._src import lru_cache

ROOT = pathlib.Path(__file__).parents[1]


def test_compilation_cache_is_in_the_clone_unless_set_by_the_environment():
    assert jax.config.jax_compilation_cache_dir == os.environ["JAX_COMPILATION_CACHE_DIR"]
    assert jax.config.jax_persistent_cache_min_compile_time_secs == 0


def test_cache_entries_are_written_whole(tmp_path):
    cache = lru_cache.LRUCache(str(tmp_path), max_size=-1)
    cache.put("key", b"program")
    cache.put("key", b"another program")
    assert cache.get("key") == b"program"
    assert [path.name for path in tmp_path.iterdir()] == ["key-cache"]


def test_tests_of_a_module_are_in_one_group(request):
    name = pathlib.PurePath(__file__).stem
    assert request.node.get_closest_marker("xdist_group").args == (f"{name}-0",)


def test_the_list_of_slow_tests_names_tests_that_exist():
    for line in (ROOT / "tests" / "slow.txt").read_text(encoding="utf-8").split():
        path, _, name = line.partition("::")
        assert name.rpartition(".")[2] in (ROOT / path).read_text(encoding="utf-8"), f"{line}: run tests/tiers.py again"
