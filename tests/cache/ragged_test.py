"""Caches of sequences of several lengths hold the tokens of the mask alone, and give back padded arrays."""

import shutil
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import data
from jaxkd.cache import StaleCacheError, codecs
from tests.cache.toy import files

EXAMPLES, TOKENS, VOCABULARY, VIEWS, PER_SHARD = 9, 11, 300, 2, 4
_RNG = np.random.default_rng(0)
MASK = np.arange(TOKENS)[None, :] < _RNG.integers(1, TOKENS + 1, EXAMPLES)[:, None]
MASK[1] = _RNG.random(TOKENS) < 0.4  # holes, and a first token that is none
MASK[1, 0], MASK[4] = False, False  # and an example of no token
SET = data.Dataset(
    {
        "tokens": _RNG.integers(0, VOCABULARY, (EXAMPLES, TOKENS)).astype(np.int32),
        "mask": MASK,
        "index": _RNG.permutation(50)[:EXAMPLES].astype(np.int32),
    },
    0,
    "sequences",
)
TABLE = 2 * jax.random.normal(jax.random.key(0), (VOCABULARY, VOCABULARY))
KEEP = {"logits": codecs.packed_top_k(8, levels=16), "drawn": codecs.sampled(6), "features": codecs.full("float32")}


def forward(table, tokens, mask):
    logits = jnp.where(mask[..., None], table[tokens], jnp.nan)  # as of an attention without any key
    return {"logits": logits, "drawn": logits, "features": table[tokens][..., :2]}


def model(inputs=("tokens", "mask")):
    return jaxkd.adapters.plain(lambda key, *inputs: TABLE, forward, inputs=inputs)


def masks(view):
    """The masks of a view: the second loses every third token."""
    return MASK & (np.arange(TOKENS)[None, :] % 3 > 0) if view else MASK


def shortened(batch):
    kept = (jnp.arange(TOKENS)[None, :] % 3 > 0) | (batch["epoch"] == 0)[:, None]
    return {**batch, "mask": batch["mask"] & kept}


def write(directory, source=SET, keep=KEEP, **changed):
    settings = {"transform": shortened, "views": VIEWS, "batch_size": 3, "examples_per_shard": PER_SHARD} | changed
    variables = jaxkd.Variables(TABLE)
    return jaxkd.cache.write_cache(directory, model(), variables, source, codecs=keep, progress=False, **settings)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cache"))


def expected(name, view):
    """The field of a codec for every token, by the definition: that of the last token before it that is included."""
    codec, mask = KEEP[name], masks(view)
    logits = jnp.where(mask[..., None], TABLE[SET.arrays["tokens"]], 0)
    keys = jaxkd.cache.codecs._codec.example_keys(SET.arrays["index"], np.full(EXAMPLES, view))
    packed = np.array(jax.jit(codec.encode)(logits, keys)["packed"])
    for row, included in enumerate(mask):
        places = np.flatnonzero(included) if included.any() else np.array([0])
        for token in range(TOKENS):
            before = places[places <= token]
            packed[row, token] = packed[row, before[-1] if len(before) else places[0]]
    return packed


def test_the_files_hold_a_row_for_each_token_of_the_mask(cache):
    for number in range(6):
        view, part = divmod(number, 3)
        kept = masks(view)[part * PER_SHARD : (part + 1) * PER_SHARD]
        lengths = np.maximum(kept.sum(1), 1)
        folder = cache.directory / "shards" / f"{number:06d}"
        for name in ("logits.packed", "logits.step", "logits.log_tail", "drawn.packed"):
            assert len(np.load(folder / f"{name}.npy")) == lengths.sum()
        assert np.load(folder / "features.values.npy").shape == (len(kept), TOKENS, 2), "another codec stores all"
        np.testing.assert_array_equal(np.load(folder / "ends.npy"), np.cumsum(lengths))
        bits = np.unpackbits(np.load(folder / "mask.npy"), axis=1, count=TOKENS, bitorder="little").astype(bool)
        np.testing.assert_array_equal(bits[kept.any(1)], kept[kept.any(1)])


def test_the_bytes_of_a_token_are_those_of_the_codec_however_much_is_padding(tmp_path):
    tokens, lengths = 400, np.array([3, 37, 1, 12])
    mask = np.arange(tokens)[None, :] < lengths[:, None]
    arrays = {"tokens": np.zeros((4, tokens), np.int32), "mask": mask, "index": np.arange(4, dtype=np.int32)}
    source = data.Dataset(arrays, 0, "padded")
    codec = {"logits": codecs.packed_top_k(50, levels=16)}
    write(tmp_path, source, codec, transform=None, views=1, batch_size=4)
    kept = jax.eval_shape(codec["logits"].encode, jax.ShapeDtypeStruct((1, 1, VOCABULARY), jnp.float32))
    per_token = sum(x.size * x.dtype.itemsize for x in kept.values())
    stored = sum(np.load(path).nbytes for path in tmp_path.glob("shards/*/logits.*.npy"))
    assert stored == per_token * lengths.sum()
    rest = sum(np.load(path).nbytes for path in tmp_path.glob("shards/*/*.npy")) - stored
    assert rest == 4 * (tokens // 8 + 8 + 8 + 8 + 4 + 2 * 4), "mask, end, index, digest, sum, inputs"


def test_padded_arrays_come_back(cache):
    for view in range(VIEWS):
        found = cache.reader.read(np.arange(EXAMPLES), np.full(EXAMPLES, view))
        for name in ("logits", "drawn"):
            np.testing.assert_array_equal(found[f"cached/{name}/packed"], expected(name, view))
        decoded = cache.outputs(SET.arrays["index"], view)
        np.testing.assert_array_equal(decoded["features"], TABLE[SET.arrays["tokens"]][..., :2])
        for name, value in decoded.items():
            assert value.shape[:2] == (EXAMPLES, TOKENS) and not np.isnan(value).any(), name


@pytest.mark.parametrize("loader", [data.Resident, data.Stream, "any"])
def test_every_loader_gives_what_is_read(cache, loader):
    batches = (data.Resident if loader == "any" else loader)(SET, 2, seed=0, epochs=VIEWS)
    if loader == "any":  # one that neither gathers nor maps
        batches = types.SimpleNamespace(batch_size=2, steps_per_epoch=5, batches=batches.batches)
    attached = jaxkd.cache.attach(cache, batches)
    place, seen = {int(index): row for row, index in enumerate(SET.arrays["index"])}, 0
    iterator = attached.batches()
    for batch in iterator:
        batch = jax.device_get(batch)
        rows = np.array([place[int(index)] for index in batch["index"]])
        known = cache.reader.read(rows, np.asarray(batch["epoch"]))
        for name in cache.reader.entries:
            np.testing.assert_array_equal(batch[name], known[name], err_msg=name)
        assert not np.asarray(cache.unseen(shortened(batch), 0.0))[batch["mask"].any(1)].any()
        seen += len(rows)
    iterator.close()
    assert seen >= VIEWS * (EXAMPLES - 1)


def test_a_resident_set_has_no_padding_on_the_device(cache):
    arrays = jaxkd.cache.attach(cache, data.Resident(SET, 2)).arrays
    stored = sum(np.maximum(masks(view).sum(1), 1).sum() for view in range(VIEWS))
    assert arrays["cached/logits/packed"].shape[0] == arrays["cached/drawn/packed"].shape[0] == stored
    assert arrays["cached/place"].shape == (VIEWS, EXAMPLES, TOKENS)


def test_a_student_that_includes_other_tokens_is_noticed(cache):
    batch = dict(next(iter(jaxkd.cache.attach(cache, data.Resident(SET, 4)))))
    assert "mask" in cache.manifest["inputs"]
    assert not cache.unseen(batch, 0.0).any()
    batch["mask"] = batch["mask"].at[2, 0].set(~batch["mask"][2, 0])
    assert cache.unseen(batch, 0.0).tolist() == [False, False, True, False]


@pytest.mark.slow
def test_several_writers_and_a_repair_write_the_same_files(cache, tmp_path):
    whole = files(cache.directory)
    settings = {"transform": shortened, "views": VIEWS, "batch_size": 2, "examples_per_shard": PER_SHARD}
    for writer in (1, 0):
        given = (tmp_path, model(), jaxkd.Variables(TABLE), SET)
        jaxkd.cache.write_shards(*given, codecs=KEEP, **settings, shard=(writer, 2), progress=False)
    (tmp_path / "shards/000002/ends.npy").unlink()
    write(tmp_path)
    assert files(tmp_path) == whole


@pytest.mark.parametrize("name", ["mask", "ends", "logits.packed", "drawn.packed", "sums"])
def test_damage_is_found(cache, tmp_path, name):
    copy = shutil.copytree(cache.directory, tmp_path / "copy")
    path, opened = copy / f"shards/000001/{name}.npy", jaxkd.cache.open_cache(copy, transform=shortened)
    whole = path.read_bytes()
    for byte in (-1, -9, 128 + 1):
        content = bytearray(whole)
        content[byte] ^= 4
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"000001.*(not those|damaged)"):
            opened.reader.read(np.arange(EXAMPLES), np.zeros(EXAMPLES, int))
        with pytest.raises(ValueError, match=r"000001.*not hold"):
            jaxkd.cache.attach(opened, data.Resident(SET, 2))


@pytest.mark.slow
def test_shards_of_one_cache_have_one_layout(tmp_path):
    """As a cache written when all tokens were stored: it can be read, and not be finished otherwise."""
    dense = {name: codec._replace(masked=False) for name, codec in KEEP.items()}
    table = jaxkd.adapters.plain(lambda key, x: TABLE, lambda w, x: {n: w[x] for n in KEEP}, inputs="tokens")
    given = (tmp_path, table, jaxkd.Variables(TABLE), SET)
    settings = {"transform": None, "batch_size": 3, "examples_per_shard": PER_SHARD, "progress": False}
    old = jaxkd.cache.write_cache(*given, codecs=dense, **settings)
    assert old.reader.tokens == 0
    assert jaxkd.cache.write_cache(*given, codecs=KEEP, **settings).manifest == old.manifest
    (tmp_path / "shards/000001/sums.npy").unlink()
    with pytest.raises(StaleCacheError, match=r"outputs: .*'masked': True.* given"):
        jaxkd.cache.write_cache(*given, codecs=KEEP, **settings)


def test_a_mask_of_another_form_leaves_all_tokens(tmp_path):
    arrays = {**SET.arrays, "mask": MASK.any(1)}
    plain = jaxkd.adapters.plain(lambda key, x: TABLE, lambda w, x: {"logits": w[x]}, inputs="tokens")
    cache = jaxkd.cache.write_cache(
        tmp_path,
        plain,
        jaxkd.Variables(TABLE),
        data.Dataset(arrays, 0, "sequences"),
        transform=None,
        codecs={"logits": codecs.packed_top_k(2)},
        batch_size=9,
        progress=False,
    )
    assert np.load(tmp_path / "shards/000000/logits.packed.npy").shape[:2] == (EXAMPLES, TOKENS)
    assert cache.reader.tokens == 0 and cache.manifest["inputs"] == ["tokens"]
