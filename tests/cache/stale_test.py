"""A cache of something else is refused, and the message says what differs and how."""

import functools
import json

import jax.numpy as jnp
import numpy as np
import pytest

import jaxkd
from jaxkd import data, teachers
from jaxkd.teachers import StaleCacheError, codecs
from tests.teachers.cached_toy import AUGMENT, MODEL, SET, VARIABLES, VIEWS, augmentation, forward, write


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
    "weights": ({"variables": other_weights()}, r"teacher: params/out float32\[16, 7\] sha256:\w+ there, .*\w+ here"),
    "state": (
        {"variables": VARIABLES._replace(state={"mean": jnp.zeros(2)})},
        r"teacher: state/mean missing there, float32\[2\] sha256:\w+ here",
    ),
    "dtype": (
        {"variables": jaxkd.Variables({**VARIABLES.params, "out": VARIABLES.params["out"].astype(jnp.bfloat16)})},
        r"teacher: params/out float32\[16, 7\] .* there, bfloat16\[16, 7\] .* here",
    ),
    "network": ({"model": OTHER_MODEL}, "teacher: the same weights give other outputs: 'logits' of the probes"),
    "seed": (
        {"transform": augmentation(seed=1)},
        r"transform: compose\(random_crop_flip\(seed=0, .* there, compose\(random_crop_flip\(seed=1, .* here: 'image'",
    ),
    "mean": ({"transform": augmentation(mean=0.51)}, r"normalize\(mean=\(0.5, .* there, .*mean=\(0.51.* here: 'image'"),
    "no transform": (
        {"transform": None, "views": 1},
        r"views: 3 there, 1 here\n.*there, none here: 'image' is float32",
    ),
    "views": ({"views": 2}, "views: 3 there, 2 here"),
    "keep": ({"keep": {"logits": codecs.full("float16")}}, "keep: logits.dtype float32 there, float16 here"),
    "codec": ({"keep": {"hidden": codecs.eight_bit()}}, "keep: hidden.codec missing there, eight_bit here"),
    "image": ({"source": other_set("image")}, r"contents: sha256:\w+ there, sha256:\w+ here"),
    "label": ({"source": other_set("label")}, r"contents: sha256:\w+ there, sha256:\w+ here"),
    "index": ({"source": other_set("index", value=77)}, r"contents: sha256:\w+ there, sha256:\w+ here"),
    "size": (
        {"source": SET._replace(arrays={name: value[:20] for name, value in SET.arrays.items()})},
        "data: examples 23 there, 20 here",
    ),
    "stream": (
        {"source": data.Stream(other_set("image", row=0), 8)},
        r"data: 1 of 16 examples have other contents \(image, label\), the first is index \d+: digest \w+ there",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_writing_on_is_refused(cache, what):
    changed, message = REFUSED[what]
    with pytest.raises(StaleCacheError, match=f"(?s)holds the outputs of something else.*{message}"):
        write(cache.directory, **changed)


def test_what_is_the_same_is_accepted(cache):
    """New objects with the same effect, other sizes of batches and of shards, a set with one entry more."""
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
        ({"views": 2}, "views: 3 there, 2 here"),
        ({"keep": {"logits": codecs.top_k(2)}}, "keep: logits.codec full there, top_k here"),
        ({"transform": augmentation(seed=2)}, r"transform: .*seed=0.* there, .*seed=2.* here"),
    ],
)
def test_opening_compares_what_is_given(cache, given, message):
    with pytest.raises(StaleCacheError, match=message):
        teachers.open_cache(cache.directory, **{"transform": AUGMENT, **given})


def test_opening_needs_no_teacher(cache):
    opened = teachers.open_cache(cache.directory, transform=AUGMENT, variables=VARIABLES, views=VIEWS)
    assert opened.manifest == cache.manifest and opened.transform is AUGMENT


def test_other_examples_are_refused_when_they_are_attached_and_when_they_are_read(cache):
    changed = other_set("image", row=9)
    message = rf"1 of \d+ examples have other contents \(image, label\), the first is index {SET.arrays['index'][9]}"
    with pytest.raises(StaleCacheError, match=message):
        cache.attach(data.Resident(changed, 8))
    batches = cache.attach(data.Stream(changed, 8, epochs=1)).batches()
    with pytest.raises(StaleCacheError, match=message):
        list(batches)
    batches.close()
    unknown = SET._replace(arrays={**SET.arrays, "index": SET.arrays["index"] + 100})
    with pytest.raises(ValueError, match="23 of 23 examples are not in the cache"):
        cache.attach(data.Resident(unknown, 8))
    grey = SET._replace(arrays={**SET.arrays, "image": SET.arrays["image"][..., :1]})
    with pytest.raises(StaleCacheError, match=r"'image' was uint8\[6, 6, 3\] and is uint8\[6, 6, 1\]"):
        cache.attach(data.Resident(grey, 8))


def test_a_transform_that_mixes_examples_is_refused(tmp_path):
    def mixup(batch):
        image = batch["image"] / 255.0
        return {**batch, "image": (image + image[::-1] * 0.5 + image[:1])}

    with pytest.raises(ValueError, match="'image' depends on the other examples in the batch"):
        write(tmp_path, transform=mixup)
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"keep, teacher output 'logit': .*did you mean 'logits'.*'hidden' float32"):
        write(tmp_path, keep={"logit": codecs.full()})
    with pytest.raises(ValueError, match="3 views without a transform are all the same"):
        write(tmp_path, transform=None)
    with pytest.raises(ValueError, match=r"shard: expected \(i, n\) with 0 <= i < n, got \(2, 2\)"):
        teachers.write_shards(tmp_path, MODEL, VARIABLES, SET, transform=None, shard=(2, 2))
    with pytest.raises(ValueError, match="views: expected at least 1, got 0"):
        write(tmp_path, views=0)
    with pytest.raises(TypeError, match=r"data: expected a set in memory .* got list"):
        write(tmp_path, [1, 2])
    twice = SET._replace(arrays={**SET.arrays, "index": np.arange(23, dtype=np.int32) // 2})
    with pytest.raises(ValueError, match="an index of its own for every example, got 0 2 times"):
        write(tmp_path / "twice", twice, transform=None, views=1, model=RAW)
    broken = jaxkd.Variables({**VARIABLES.params, "out": VARIABLES.params["out"].at[0, 0].set(jnp.nan)})
    with pytest.raises(
        ValueError, match=r"logits: the teacher's output for index \d+ in view 0 is not finite, and full"
    ):
        write(tmp_path / "broken", transform=None, views=1, model=RAW, variables=broken)


RAW = jaxkd.adapters.plain(MODEL.init, lambda params, image: forward(params, image / 255.0))


def test_a_missing_or_foreign_cache_is_said(cache, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"there is no cache here. Write one"):
        teachers.open_cache(tmp_path, transform=None)
    (tmp_path / "manifest.json").write_text("{")
    with pytest.raises(ValueError, match="expected JSON"):
        teachers.open_cache(tmp_path, transform=None)
    (tmp_path / "manifest.json").write_text(json.dumps({**cache.manifest, "format": 2}))
    with pytest.raises(ValueError, match="expected format 1, got 2"):
        teachers.open_cache(tmp_path, transform=None)
