"""Writing in shards: several writers, kills and damage end with the same bytes."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

import jaxkd
from jaxkd import data
from jaxkd.cache import StaleCacheError, _probes
from tests.cache.toy import AUGMENT, FLOAT32, MODEL, SET, VARIABLES, VIEWS, files, write

ROOT = pathlib.Path(__file__).parents[2]
SHARDS = VIEWS * 3


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files of a writer that was never interrupted."""
    directory = tmp_path_factory.mktemp("whole")
    write(directory)
    return files(directory)


def write_part(directory, shard, source=SET):
    options = {"transform": AUGMENT, "views": VIEWS, "codecs": FLOAT32, "batch_size": 4, "examples_per_shard": 8}
    return jaxkd.cache.write_shards(directory, MODEL, VARIABLES, source, **options, shard=shard, progress=False)


def times(directory):
    return {path.name: path.stat().st_mtime_ns for path in (directory / "shards").iterdir() if path.name.isdigit()}


class Dying:
    """A set whose reading raises after some batches."""

    def __init__(self, batches):
        self.num_examples, self._left, self._set = len(SET.arrays["index"]), batches, data.Stream(SET, 4)

    def take(self, rows):
        self._left -= 1
        if self._left < 0:
            raise OSError("the disk is gone")
        return self._set.take(rows)


@pytest.mark.parametrize("batches", [2, 14])
def test_a_failed_writer_resumes_without_rewriting_shards(tmp_path, whole, batches):
    with pytest.raises(OSError, match="the disk is gone"):
        write_part(tmp_path, (0, 1), Dying(batches))
    done = times(tmp_path) if (tmp_path / "shards").exists() else {}
    assert (len(done) > 0) == (batches == 14)  # one read for the probes, two for a shard, and reads ahead of the device
    with pytest.raises(ValueError, match=r"\d of 9 shards are missing or incomplete, .*Call write_cache again"):
        jaxkd.cache.open_cache(tmp_path, transform=AUGMENT)
    write(tmp_path)
    assert files(tmp_path) == whole
    assert done.items() <= times(tmp_path).items()  # finished shards are not written again


def test_writers_in_any_order_write_the_same_files(tmp_path, whole):
    assert [write_part(tmp_path, (i, 3)) for i in (2, 0, 1)] == [6, 3, 0]
    done = times(tmp_path)
    cache = write(tmp_path)
    assert files(tmp_path) == whole and times(tmp_path) == done
    assert cache.manifest["complete"] and not list((tmp_path / "shards").glob("*unfinished*"))


WRITER = """
import sys, time
from tests.cache import resume_test as test

class Slow:
    def __init__(self):
        self.num_examples, self.stream = 23, test.data.Stream(test.SET, 4)
    def take(self, rows):
        time.sleep(float(sys.argv[3]))
        return self.stream.take(rows)

print(test.write_part(test.pathlib.Path(sys.argv[1]), (int(sys.argv[2]), 2), Slow()))
"""


def start(directory, part, delay):
    """Starts a process that writes every other shard, with a delay per read."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WRITER, str(directory), str(part), str(delay)]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_cache_survives_the_kill_of_one_of_two_writers(tmp_path, whole):
    processes = [start(tmp_path, 0, 0.3), start(tmp_path, 1, 0)]
    try:
        deadline = time.monotonic() + 120
        while not (tmp_path / "shards" / "000002").exists():  # second shard of writer 0: it is between two shards
            assert time.monotonic() < deadline and processes[0].poll() is None
            time.sleep(0.01)
        processes[0].send_signal(signal.SIGKILL)
        assert processes[1].wait(timeout=120) == 0 and processes[0].wait() == -signal.SIGKILL
    finally:
        for process in processes:
            process.kill()
            process.wait()
            process.stdout.close()
    done = times(tmp_path)
    assert {f"{number:06d}" for number in range(1, SHARDS, 2)} <= done.keys() < whole_names()
    write(tmp_path)
    assert files(tmp_path) == whole
    assert done.items() <= times(tmp_path).items()
    assert not list((tmp_path / "shards").glob("*unfinished*"))


def whole_names():
    return {f"{number:06d}" for number in range(SHARDS)}


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete", "empty"])
def test_a_damaged_shard_of_an_unfinished_cache_is_written_again(tmp_path, whole, harm):
    write_part(tmp_path, (0, 2))
    damage(tmp_path / "shards" / "000004", harm)
    before = times(tmp_path)
    write(tmp_path)
    assert files(tmp_path) == whole
    assert {name for name, when in before.items() if times(tmp_path)[name] != when} == {"000004"}


def damage(folder, harm):
    path = folder / "logits.values.npy"
    content = bytearray(path.read_bytes())
    if harm == "delete":
        return path.unlink()
    if harm == "flip":
        content[-3] ^= 1
    path.write_bytes(content if harm == "flip" else content[:-5] if harm == "truncate" else b"")


def test_damage_to_a_finished_cache_is_reported_and_repaired(tmp_path, whole):
    cache = write(tmp_path)
    damage(tmp_path / "shards" / "000004", "flip")
    opened = jaxkd.cache.open_cache(tmp_path, transform=AUGMENT)  # sizes are equal; digests are compared on use
    for use in (opened.reader.verify, lambda: jaxkd.cache.attach(cache, data.Resident(SET, 8))):
        with pytest.raises(ValueError, match=r"000004/logits.values.npy does not hold the bytes.*Call write_cache"):
            use()
    write(tmp_path)  # verifies a finished cache too
    assert files(tmp_path) == whole
    damage(tmp_path / "shards" / "000004", "truncate")
    with pytest.raises(ValueError, match=r"1 of 9 shards are missing or incomplete, \[4\] first"):
        jaxkd.cache.open_cache(tmp_path, transform=AUGMENT)
    write(tmp_path)
    assert files(tmp_path) == whole
    cache.reader.verify()


def test_a_set_that_changes_during_writing_is_refused(tmp_path):
    image = SET.arrays["image"].copy()
    changed = SET._replace(arrays={**SET.arrays, "image": image})
    assert 12 not in _probes.rows(23)  # so that only the digests of the examples can show it
    write_part(tmp_path, (0, 2), data.Stream(changed, 4))
    image[12] += 1
    with pytest.raises(StaleCacheError, match=r"data: examples 8 to 15: sha256:\w+ in the cache, sha256:\w+ given"):
        write(tmp_path, changed)
    write_part(tmp_path, (1, 2), data.Stream(changed, 4))
    with pytest.raises(ValueError, match="shard 4 was written from other examples than the same rows in view 0"):
        write(tmp_path, data.Stream(changed, 4))


def test_files_are_plain_npy(tmp_path):
    cache = write(tmp_path, codecs={"hidden": jaxkd.cache.codecs.full("bfloat16")})
    bits = np.load(tmp_path / "shards" / "000000" / "hidden.values.npy", mmap_mode="r")
    assert bits.dtype == np.uint16 and bits.shape == (8, 16)
    expected = cache.outputs(np.load(tmp_path / "index.npy")[:8])["hidden"]
    np.testing.assert_array_equal((bits.astype(np.uint32) << 16).view(np.float32), expected)
    facts = json.loads((tmp_path / "shards" / "000000" / "shard.json").read_text())
    assert facts["rows"] == 8 and len(facts["files"]["hidden.values.npy"]["sha256"]) == 64
    assert cache.manifest["made_with"]["jax"]


def test_progress_is_shown_with_the_time_left(tmp_path, capsys):
    write(tmp_path, progress=True, views=1)
    assert "teacher outputs 23/23  (" in capsys.readouterr().out
    write(tmp_path, progress=True, views=1)
    assert capsys.readouterr().out == ""
