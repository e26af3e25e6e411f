"""A cache with another identity is refused, and the message names the difference."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import data
from jaxkd.cache import StaleCacheError, codecs
from tests.cache.toy import AUGMENT, MODEL, SET, VARIABLES, VIEWS, augmentation, forward, write


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cache"))


def other_set(name, row=5, value=1):
    changed = {key: array.copy() for key, array in SET.arrays.items()}
    changed[name][row] = changed[name][row] * 0 + value
    return SET._replace(arrays=changed)


def other_weights():
    return jaxkd.Variables({**VARIABLES.params, "out": VARIABLES.params["out"] + 1e-7})


OTHER_MODEL = jaxkd.adapters.plain(MODEL.init, functools.partial(forward, activation=jnp.sin))
REFUSED = {
    "weights": (
        {"variables": other_weights()},
        r"teacher: params/out float32\[16, 7\] sha256:\w+ in the cache, .*\w+ given",
    ),
    "state": (
        {"variables": VARIABLES._replace(state={"mean": jnp.zeros(2)})},
        r"teacher: state/mean missing in the cache, float32\[2\] sha256:\w+ given",
    ),
    "dtype": (
        {"variables": jaxkd.Variables({**VARIABLES.params, "out": VARIABLES.params["out"].astype(jnp.bfloat16)})},
        r"teacher: params/out float32\[16, 7\] .* in the cache, bfloat16\[16, 7\] .* given",
    ),
    "network": ({"model": OTHER_MODEL}, "teacher: the same weights give other outputs: 'logits' of the probes"),
    "seed": (
        {"transform": augmentation(seed=1)},
        r"transform: compose\(random_crop_flip\(seed=0, .* in the cache, compose\(.*seed=1, .* given: 'image'",
    ),
    "mean": (
        {"transform": augmentation(mean=0.51)},
        r"normalize\(mean=\(0.5, .* in the cache, .*mean=\(0.51.* given: 'image'",
    ),
    "no transform": (
        {"transform": None, "views": 1},
        r"views: 3 in the cache, 1 given\n.*in the cache, none given: 'image' is float32",
    ),
    "views": ({"views": 2}, "views: 3 in the cache, 2 given"),
    "codecs": (
        {"codecs": {"logits": codecs.full("float16")}},
        "codecs: logits.dtype float32 in the cache, float16 given",
    ),
    "codec": ({"codecs": {"hidden": codecs.eight_bit()}}, "codecs: hidden.codec missing in the cache, eight_bit given"),
    "image": ({"source": other_set("image")}, r"contents: sha256:\w+ in the cache, sha256:\w+ given"),
    "label": ({"source": other_set("label")}, r"contents: sha256:\w+ in the cache, sha256:\w+ given"),
    "index": ({"source": other_set("index", value=77)}, r"contents: sha256:\w+ in the cache, sha256:\w+ given"),
    "size": (
        {"source": SET._replace(arrays={name: value[:20] for name, value in SET.arrays.items()})},
        "data: examples 23 in the cache, 20 given",
    ),
    "stream": (
        {"source": data.Stream(other_set("image", row=0), 8)},
        r"data: 1 of 16 examples have other contents \(image, label\), the first is index \d+: digest \w+ in the cache",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_resuming_with_another_argument_is_refused(cache, what):
    changed, message = REFUSED[what]
    with pytest.raises(StaleCacheError, match=f"(?s)holds the outputs of another.*{message}"):
        write(cache.directory, **changed)


def test_equal_arguments_are_accepted(cache):
    """New objects with the same effect, other batch and shard sizes, and a set with a further entry."""
    same = {name: jnp.array(value) for name, value in VARIABLES.params.items()}
    more = SET._replace(arrays={**SET.arrays, "extra": np.zeros(23)})
    again = write(
        cache.directory,
        more,
        variables=jaxkd.Variables(same),
        transform=augmentation(),
        batch_size=5,
        examples_per_shard=3,
    )
    assert again.manifest == cache.manifest


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"variables": other_weights()}, "teacher: params/out"),
        ({"views": 2}, "views: 3 in the cache, 2 given"),
        ({"codecs": {"logits": codecs.top_k(2)}}, "codecs: logits.codec full in the cache, top_k given"),
        ({"transform": augmentation(seed=2)}, r"transform: .*seed=0.* in the cache, .*seed=2.* given"),
    ],
)
def test_open_cache_compares_its_arguments(cache, given, message):
    with pytest.raises(StaleCacheError, match=message):
        jaxkd.cache.open_cache(cache.directory, **{"transform": AUGMENT, **given})


def test_open_cache_needs_no_model(cache):
    opened = jaxkd.cache.open_cache(cache.directory, transform=AUGMENT, variables=VARIABLES, views=VIEWS)
    assert opened.manifest == cache.manifest and opened.transform is AUGMENT


def test_changed_examples_are_refused_by_attach_or_when_read(cache):
    changed = other_set("image", row=9)
    message = rf"1 of \d+ examples have other contents \(image, label\), the first is index {SET.arrays['index'][9]}"
    with pytest.raises(StaleCacheError, match=message):
        jaxkd.cache.attach(cache, data.Resident(changed, 8))
    batches = jaxkd.cache.attach(cache, data.Stream(changed, 8, epochs=1)).batches()
    with pytest.raises(StaleCacheError, match=message):
        list(batches)
    batches.close()
    unknown = SET._replace(arrays={**SET.arrays, "index": SET.arrays["index"] + 100})
    with pytest.raises(ValueError, match="23 of 23 examples are not in the cache"):
        jaxkd.cache.attach(cache, data.Resident(unknown, 8))
    gray = SET._replace(arrays={**SET.arrays, "image": SET.arrays["image"][..., :1]})
    with pytest.raises(StaleCacheError, match=r"'image' is uint8\[6, 6, 3\] in the cache, uint8\[6, 6, 1\] given"):
        jaxkd.cache.attach(cache, data.Resident(gray, 8))


def test_a_transform_that_mixes_examples_is_refused(tmp_path):
    def mixup(batch):
        image = batch["image"] / 255.0
        return {**batch, "image": (image + image[::-1] * 0.5 + image[:1])}

    with pytest.raises(ValueError, match="result 'image' for an example depends on the other examples in the batch"):
        write(tmp_path, transform=mixup)
    assert not list(tmp_path.iterdir())


def test_arguments_that_cannot_be_written_are_errors(tmp_path):
    with pytest.raises(ValueError, match=r"codecs, teacher output 'logit': .*did you mean 'logits'.*'hidden' float32"):
        write(tmp_path, codecs={"logit": codecs.full()})
    with pytest.raises(ValueError, match="views: expected 1 without a transform, as all views are equal, got 3"):
        write(tmp_path, transform=None)
    with pytest.raises(ValueError, match=r"shard: expected \(i, n\) with 0 <= i < n, got \(2, 2\)"):
        jaxkd.cache.write_shards(tmp_path, MODEL, VARIABLES, SET, transform=None, shard=(2, 2))
    with pytest.raises(ValueError, match="views: expected at least 1, got 0"):
        write(tmp_path, views=0)
    with pytest.raises(TypeError, match=r"data: expected a set in memory.* got list"):
        write(tmp_path, [1, 2])
    twice = SET._replace(arrays={**SET.arrays, "index": np.arange(23, dtype=np.int32) // 2})
    with pytest.raises(ValueError, match="a different index for every example, got 0 2 times"):
        write(tmp_path / "twice", twice, transform=None, views=1, model=RAW)
    broken = jaxkd.Variables({**VARIABLES.params, "out": VARIABLES.params["out"].at[0, 0].set(jnp.nan)})
    with pytest.raises(
        ValueError, match=r"logits: the teacher's output for index \d+ in view 0 is not finite, and full"
    ):
        write(tmp_path / "broken", transform=None, views=1, model=RAW, variables=broken)


RAW = jaxkd.adapters.plain(MODEL.init, lambda params, image: forward(params, image / 255.0))


def test_a_missing_or_unreadable_cache_is_reported(cache, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected a cache, found no manifest.json. Write one"):
        jaxkd.cache.open_cache(tmp_path, transform=None)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        jaxkd.cache.open_cache(tmp_path, transform=None)
    (tmp_path / "manifest.json").write_text(json.dumps({**cache.manifest, "format": 3}))
    with pytest.raises(ValueError, match="expected format 2, got 3"):
        jaxkd.cache.open_cache(tmp_path, transform=None)
