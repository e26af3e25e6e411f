"""Damaged and hostile caches: outputs are right, or an error says what to do."""

import itertools
import json
import os
import subprocess
import sys
import time

import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import data
from jaxkd._core.lock import alone
from jaxkd.cache import _read, _storage
from tests.cache.resume_test import ROOT, write_part
from tests.cache.toy import AUGMENT, SET, VARIABLES, files, write

INDEX = SET.arrays["index"]


@pytest.fixture
def cache(tmp_path):
    return write(tmp_path)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Files of an undamaged cache."""
    directory = tmp_path_factory.mktemp("whole")
    write(directory)
    return files(directory)


def flip(path, byte, bits=1):
    content = bytearray(path.read_bytes())
    content[byte] ^= bits
    path.write_bytes(content)
    _read._examples_of.cache_clear()  # a process that has read them before keeps the undamaged ones


def opened(cache):
    return jaxkd.cache.open_cache(cache.directory, transform=AUGMENT)


def streamed(cache):
    batches = jaxkd.cache.attach(opened(cache), data.Stream(SET, 23, epochs=3)).batches()
    try:
        return list(batches)
    finally:
        batches.close()


READS = {
    "outputs": lambda cache: [opened(cache).outputs(INDEX, view) for view in range(3)],
    "streamed": streamed,
    "resident": lambda cache: jaxkd.cache.attach(opened(cache), data.Resident(SET, 8)),
}
DAMAGE = {
    "values": ("shards/000004/logits.values.npy", -3, r"000004.*not (hold|those)"),
    "header": ("shards/000004/logits.values.npy", 34, r"000004"),
    "inputs": ("shards/000004/inputs.npy", -3, r"000004.*not (hold|those)"),
    "sums": ("shards/000004/sums.npy", -3, r"000004.*not (hold|those)"),
    "index": ("index.npy", -8, r"index.npy and digests.npy do not hold"),
    "digests": ("digests.npy", -8, r"index.npy and digests.npy do not hold"),
    "facts": ("shards/000004/shard.json", 30, r"1 of 9 shards are missing or incomplete, \[4\] first"),
}


@pytest.mark.parametrize("what", DAMAGE)
def test_a_flipped_bit_is_refused_by_every_reader_and_healed_by_write_cache(cache, whole, what):
    name, byte, message = DAMAGE[what]
    flip(cache.directory / name, byte)
    for read in READS.values():
        with pytest.raises(ValueError, match=f"(?s){message}.*write_cache"):
            read(cache)
    write(cache.directory)
    assert files(cache.directory) == whole
    READS["outputs"](cache)


@pytest.mark.parametrize("name", ["probes.npz", "manifest.json"])
def test_damage_that_cannot_be_healed_is_refused(cache, name):
    flip(cache.directory / name, 300)
    for use in (opened, lambda cache: write(cache.directory)):
        with pytest.raises(ValueError, match=rf"{name}.* (delete|Delete) .* and write the cache again"):
            use(cache)


def test_shards_in_each_others_place_are_refused(cache, whole):
    shards = cache.directory / "shards"
    for old, new in (("000000", "x"), ("000001", "000000"), ("x", "000001")):
        (shards / old).rename(shards / new)
    with pytest.raises(ValueError, match=r"2 of 9 shards are missing or incomplete, \[0, 1\] first"):
        opened(cache)
    write(cache.directory)
    assert files(cache.directory) == whole


def test_rows_in_each_others_place_are_refused(cache):
    """The digests of the files would be right in a cache that was written so."""
    values = np.load(cache.directory / "shards" / "000004" / "logits.values.npy")
    sums = _storage.row_sums(INDEX[8:16], 1, {"logits.values": values, "inputs": np.zeros((8, 1), np.float32)})
    again = _storage.row_sums(INDEX[8:16], 2, {"logits.values": values, "inputs": np.zeros((8, 1), np.float32)})
    other = _storage.row_sums(INDEX[9:17], 1, {"logits.values": values, "inputs": np.zeros((8, 1), np.float32)})
    assert (sums != again).all() and (sums != other).all() and len(set(sums.tolist())) == 8


def test_shards_of_another_teacher_are_not_adopted(cache):
    """Also if someone deletes the manifest that shows whose they are."""
    (cache.directory / "manifest.json").unlink()
    other = jaxkd.Variables({**VARIABLES.params, "out": VARIABLES.params["out"] + 1})
    again = write(cache.directory, variables=other)
    fresh = write(cache.directory.parent / f"{cache.directory.name}-fresh", variables=other)
    for view in range(3):
        np.testing.assert_array_equal(again.outputs(INDEX, view)["logits"], fresh.outputs(INDEX, view)["logits"])


def changed(manifest, path, value):
    manifest = json.loads(json.dumps(manifest))
    *parents, last = path.split("/")
    level = manifest
    for name in parents:
        level = level[name]
    level[last] = value
    return manifest


HOSTILE = {
    "no examples": ("identity/data/examples", 0, "examples: expected a number from 1"),
    "many examples": ("identity/data/examples", 10**15, "examples: expected a number from 1"),
    "more examples": ("identity/data/examples", 2 * 10**9, "examples_per_shard: expected at most 1000000 shards"),
    "examples by name": ("identity/data/examples", "23", "examples: expected a number from 1"),
    "a true number": ("identity/data/examples", True, "examples: expected a number from 1"),
    "0 a shard": ("examples_per_shard", 0, "examples_per_shard: expected a number from 1"),
    "a fraction": ("examples_per_shard", 0.5, "examples_per_shard: expected a number from 1"),
    "views": ("identity/views", 10**9, "views: expected a number from 1"),
    "negative views": ("identity/views", -3, "views: expected a number from 1"),
    "a field elsewhere": (
        "outputs/logits/fields",
        {"../../../secret": {"dtype": "float32", "shape": [7]}},
        "outputs, 'logits': expected the fields",
    ),
    "a field of objects": ("outputs/logits/fields/values/dtype", "object", "outputs, 'logits': expected the fields"),
    "a huge field": ("outputs/logits/shape", [10**9, 10**9], "outputs, 'logits': expected the shape of an output"),
    "a negative shape": ("outputs/logits/shape", [-7], "outputs, 'logits': expected the shape of an output"),
    "another shape": ("outputs/logits/shape", [6], "outputs, 'logits': expected the fields"),
    "another output": ("outputs", {"../x": {"shape": [7], "fields": {}}}, "outputs: expected those of the codecs"),
    "no output": ("outputs", [], "outputs: expected an object"),
    "codec": ("identity/codecs/logits", {"codec": "gzip"}, "codecs, 'logits': expected a cache written with"),
    "arguments": ("identity/codecs/logits", {"codec": "full", "x": 3}, "codecs, 'logits': .*unexpected keyword"),
    "a codec of lists": ("identity/codecs/logits", {"codec": []}, "codecs, 'logits'"),
    "top k": ("identity/codecs/logits", {"codec": "top_k", "k": "a"}, "codecs, 'logits'"),
    "identity": ("identity", [], "identity: expected an object"),
    "entries": ("identity/data/entries", {"image": 3}, "entries: expected texts by name"),
    "contents": ("identity/contents", None, "contents: expected a text"),
    "probes": ("probes", 3, "probes: expected a text"),
    "inputs": ("inputs", [3], "inputs: expected names"),
    "time": ("seconds", float("nan"), "seconds: expected a number of at least 0"),
    "complete": ("complete", "yes", "complete: expected true or false"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_manifest_is_refused_at_once(cache, what):
    path, value, message = HOSTILE[what]
    text = _storage.json_text(changed(cache.manifest, path, value))  # its digest is right
    (cache.directory / "manifest.json").write_text(text)
    start = time.monotonic()
    for use in (opened, lambda cache: write(cache.directory)):
        with pytest.raises(ValueError, match=f"manifest.json, {message}"):
            use(cache)
    assert time.monotonic() - start < 5


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", "[" * 100_000, "\x00", '{"format": []}', '{"format": 2}'])
def test_other_json_is_refused(cache, text):
    (cache.directory / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"manifest.json.* (write it|the cache) again"):
        opened(cache)


@pytest.mark.parametrize(
    ("name", "value"),
    [("files", {"../../index.npy": {"bytes": 3, "sha256": ""}}), ("files", []), ("number", 3), ("seconds", "x")],
)
def test_hostile_facts_of_a_shard_are_refused(cache, name, value):
    path = cache.directory / "shards" / "000004" / "shard.json"
    facts = _storage.read_json(path)
    path.write_text(_storage.json_text({**facts, name: value}))
    with pytest.raises(ValueError, match=r"1 of 9 shards are missing or incomplete, \[4\] first"):
        opened(cache)


def test_a_second_writer_waits_and_the_first_one_is_not_disturbed(tmp_path, whole):
    write_part(tmp_path, (0, 2))
    with alone(tmp_path, shared=True):  # an independent writer of a share
        assert write_part(tmp_path, (1, 2)) == 0
        with pytest.raises(ValueError, match=r"another run is using .*process \d+"):
            write(tmp_path)
    with alone(tmp_path):
        for second in (lambda: write(tmp_path), lambda: write_part(tmp_path, (1, 2))):
            with pytest.raises(ValueError, match=r"another run is using .*Wait until it ends"):
                second()
    write(tmp_path)
    with alone(tmp_path):  # a finished cache is only read
        write(tmp_path)
    assert files(tmp_path) == whole


WRITER = """
import pathlib, sys, time
from jaxkd import data
from tests.cache.toy import SET, write

class Slow:
    def __init__(self):
        self.num_examples, self.stream = 23, data.Stream(SET, 4)
    def take(self, rows):
        time.sleep(0.05)
        return self.stream.take(rows)

write(pathlib.Path(sys.argv[1]), Slow())
"""


@pytest.mark.slow
def test_writers_that_start_at_once_end_with_one_whole_cache(tmp_path, whole):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu"}
    command = [sys.executable, "-c", WRITER, str(tmp_path)]
    options = {"env": environment, "cwd": ROOT, "stderr": subprocess.PIPE, "text": True}
    processes = [subprocess.Popen(command, **options) for _ in range(3)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert 0 in codes
    assert all(code == 0 or "another run is using" in error for code, error in zip(codes, errors, strict=True)), errors
    assert files(tmp_path) == whole


@pytest.mark.slow
def test_ten_thousand_flips_never_change_an_output(tmp_path):
    """Each is refused with an error of one kind, or has no effect."""
    few = SET._replace(arrays={name: value[:6] for name, value in SET.arrays.items()})
    options = {"transform": None, "views": 1, "examples_per_shard": 3}
    model = jaxkd.adapters.plain(
        lambda key, image: jnp.zeros(3), lambda w, image: image.reshape(-1, 108)[:, :3] * w[None]
    )
    variables = jaxkd.Variables(jnp.arange(1.0, 4))
    write(tmp_path, few, model=model, variables=variables, **options)
    expected = np.asarray(few.arrays["image"].reshape(6, 108)[:, :3] * np.arange(1.0, 4), np.float32)
    paths = sorted(path for path in tmp_path.rglob("*") if path.is_file() and path.name != ".lock")
    drawn = np.random.default_rng(0)
    refused = 0
    for number, path in zip(range(10_000), itertools.cycle(paths)):
        content = path.read_bytes()
        byte = int(drawn.integers(len(content)))
        flip(path, byte, int(1 << drawn.integers(8) if number % 2 else drawn.integers(1, 256)))
        try:
            found = jaxkd.cache.open_cache(tmp_path, transform=None).outputs(few.arrays["index"])["logits"]
        except ValueError as error:
            assert str(tmp_path) in str(error), (path, byte, error)
            refused += 1
        else:
            np.testing.assert_array_equal(found, expected, err_msg=f"{path}, byte {byte}")
        path.write_bytes(content)
    assert refused > 5_000
