"""A student that sees other inputs than its cached teacher is noticed, and rounding is not."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import data, losses, teachers
from jaxkd.cache import StaleCacheError, _inputs
from jaxkd.distillers import preprocess, skip_nonfinite
from jaxkd.training import evaluate, fit
from jaxkd.types import UNSEEN
from tests.cache.toy import AUGMENT, MODEL, SET, VIEWS, augmentation, write

KD = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0)
LOADER = data.Resident(SET, 8, seed=1)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cache"))


def then(change):
    """The cache's transform, followed by a change of the images."""
    return lambda batch: (lambda seen: {**seen, "image": change(seen["image"])})(AUGMENT(batch))


def brighter(image):
    return image + 0.05


OTHER = {
    "seed": augmentation(seed=1),
    "normalization": augmentation(mean=0.51),
    "no normalization": functools.partial(data.random_crop_flip, seed=0, padding=1),
    "nothing": lambda batch: batch,
    "the true epoch": lambda batch: AUGMENT({**batch, "epoch": batch["epoch"] + 1}),
    "mixup": then(lambda image: 0.8 * image + 0.2 * image[::-1]),
    "flip": then(lambda image: image[:, :, ::-1]),
    "transpose": then(lambda image: image.transpose(0, 2, 1, 3)),
    "channels": then(lambda image: image[..., ::-1]),
    "brightness": then(brighter),
    "contrast": then(lambda image: 1.1 * image),
    "cutout": then(lambda image: image.at[:, 2:4, 2:4].set(0)),
    "size": then(lambda image: image[:, 1:-1, 1:-1]),
    "integers": then(lambda image: image.astype(jnp.int32)),
}


def unseen(cache, transform, batch):
    return teachers.cached(cache).apply({}, transform(batch), key=None)[UNSEEN]


@pytest.mark.parametrize("what", OTHER)
def test_other_inputs_are_noticed(cache, what):
    batch = next(jaxkd.cache.attach(cache, LOADER).batches({"step": 3}))
    assert unseen(cache, OTHER[what], batch).mean() > 0.7  # some draws of two seeds are equal
    assert not unseen(cache, AUGMENT, batch).any()


def test_rounding_is_not_noticed(cache):
    roundings = [lambda image: image.astype(jnp.bfloat16), lambda image: image * (1 + 1e-5), lambda image: image]

    @jax.jit
    def found(batch):
        return jnp.stack([unseen(cache, then(rounded), batch) for rounded in roundings])

    for batch in jaxkd.cache.attach(cache, data.Resident(SET, 5, seed=1, epochs=VIEWS)).batches():
        assert not found(batch).any()


def test_a_lacking_entry_is_an_error(cache):
    batch = next(jaxkd.cache.attach(cache, LOADER).batches())
    with pytest.raises(StaleCacheError, match=r"expected a batch with \['image'\].* without \['image'\]"):
        unseen(cache, lambda batch: {name: x for name, x in batch.items() if name != "image"}, batch)


def distiller(cache, transform, **options):
    kd = jaxkd.distill(MODEL, teachers.cached(cache, **options), KD, optimizer=optax.sgd(0.01))
    return preprocess(kd, train_transform=transform, eval_transform=transform)


@pytest.mark.parametrize(
    "mode",
    [
        "resident",
        pytest.param("stream", marks=pytest.mark.slow),
        pytest.param("skip_nonfinite", marks=pytest.mark.slow),
    ],
)
def test_fit_refuses_other_inputs_and_says_what_to_do(cache, mode):
    loader = jaxkd.cache.attach(cache, data.Stream(SET, 8, seed=1) if mode == "stream" else LOADER)
    kd = distiller(cache, augmentation(seed=1))
    kd = skip_nonfinite(kd) if mode == "skip_nonfinite" else kd
    message = (
        r"update 1: \d examples are not what the cached teacher saw.*preprocess\(kd, train_transform=cache.transform"
    )
    with pytest.raises(StaleCacheError, match=message):
        fit(kd, loader, epochs=2, key=jax.random.key(0), progress=False)


def test_evaluation_refuses_other_inputs(cache):
    attached = jaxkd.cache.attach(cache, data.Resident(SET, 23, shuffle=False))
    right, wrong = (distiller(cache, transform) for transform in (AUGMENT, augmentation(mean=0.6)))
    state = right.init(jax.random.key(0), next(attached.batches()))
    found = evaluate(right, state, attached)
    assert np.isfinite(found["loss"]) and "unseen_inputs" not in found
    with pytest.raises(StaleCacheError, match="evaluation: 23 examples are not what"):
        evaluate(wrong, state, attached)


def test_a_loop_of_ones_own_has_a_loss_of_nan_and_a_metric(cache):
    batch = next(jaxkd.cache.attach(cache, LOADER).batches({"step": 2}))  # the last batch of an epoch: 7 and a filler
    right, wrong = (distiller(cache, transform) for transform in (AUGMENT, augmentation(mean=0.6)))
    state = right.init(jax.random.key(0), batch)
    for kd, share in ((right, 0.0), (wrong, 1.0)):
        metrics = jax.jit(kd.step)(state, batch)[1]
        sum_, count = map(float, metrics["unseen_inputs"])
        assert (sum_, count) == (7 * share, 7) and np.isnan(metrics["loss"].sum) == (share > 0)


@pytest.mark.slow
def test_other_views_for_the_student_can_be_asked_for(cache):
    kd = distiller(cache, augmentation(seed=1), tolerance=None)
    result = fit(kd, jaxkd.cache.attach(cache, LOADER), epochs=1, key=jax.random.key(0), progress=False)
    assert np.isfinite(result.history[-1]["train/loss"])
    right = fit(
        distiller(cache, AUGMENT),
        jaxkd.cache.attach(cache, LOADER),
        epochs=1,
        key=jax.random.key(0),
        progress=False,
    )
    assert right.history[-1].keys() == result.history[-1].keys()  # the metric is no column of the log


def test_a_negative_tolerance_is_an_error(cache):
    with pytest.raises(ValueError, match="tolerance: expected a number of at least 0, or None, got -1"):
        teachers.cached(cache, tolerance=-1)


def test_a_member_of_an_ensemble_makes_the_whole_unseen(cache):
    both = teachers.ensemble({"a": teachers.cached(cache), "b": teachers.cached(cache, tolerance=None)})
    kd = preprocess(jaxkd.distill(MODEL, both, KD, optimizer=optax.sgd(0.01)), train_transform=OTHER["seed"])
    batch = next(jaxkd.cache.attach(cache, LOADER).batches())
    metrics = jax.jit(kd.step)(kd.init(jax.random.key(0), batch), batch)[1]
    assert metrics["unseen_inputs"].sum > 4 and np.isnan(metrics["loss"].sum)


def test_checksums_by_hand():
    """Sums with the weights of each axis, in float64; integers modulo 2³², of which the upper 24 bits are stored."""
    x = np.random.default_rng(0).normal(size=(3, 4, 5)).astype(np.float32)

    def weights(length, axis):
        wave = np.cos(np.arange(1, length + 1) ** 2 * (1 + 5**0.5) / 2 + axis)
        return wave, 1 + 0.75 * (wave - wave.mean()) / wave.std()

    expected = np.einsum("bij,i,j->b", x.astype(np.float64), weights(4, 1)[1], weights(5, 2)[1])
    token = np.array([[5, 9, -1], [5, 9, 0]], np.int32)
    factors = [(int(np.round((w + 1) * 2**30)) << 1 | 1) % 2**32 for w in weights(3, 1)[0]]
    hashed = [sum(int(t) * f for t, f in zip(row, factors, strict=True)) % 2**32 >> 8 for row in token]
    np.testing.assert_allclose(_inputs.checksums({"x": x}, ["x"])[:, 0], expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(_inputs.checksums({"token": token}, ["token"])[:, 0], hashed)


def test_one_token_of_many_is_noticed_and_a_label_that_the_teacher_does_not_read_is_not(tmp_path):
    drawn = np.random.default_rng(0)
    arrays = {
        "token": drawn.integers(0, 50_000, (9, 200)).astype(np.int32),
        "label": np.arange(9, dtype=np.int32),
        "index": np.arange(9, dtype=np.int32),
    }
    model = jaxkd.adapters.plain(
        lambda key, token: jnp.ones((64, 3)), jax.jit(lambda w, token: {"logits": w[token % 64].sum(1)}), inputs="token"
    )
    variables = jaxkd.Variables(jax.random.normal(jax.random.key(0), (64, 3)))
    cache = write(tmp_path, data.Dataset(arrays, 9, "text"), model=model, variables=variables, transform=None, views=1)
    assert cache.manifest["inputs"] == ["token"]
    batch = next(jaxkd.cache.attach(cache, data.Resident(data.Dataset(arrays, 9, "text"), 9, shuffle=False)).batches())
    assert not unseen(cache, lambda batch: {**batch, "label": batch["label"] * 0}, batch).any()
    for row, column, to in ((2, 199, 3), (4, 0, 49_000), (8, 57, 12)):
        changed = {**batch, "token": batch["token"].at[row, column].set(to)}
        found = unseen(cache, dict, changed)
        assert found.tolist() == [number == row for number in range(9)]


def test_entries_read_are_found_through_jit():
    batch = {name: jnp.ones((2, 3)) for name in ("image", "label", "text", "index")}
    inner = jax.jit(lambda batch: batch["image"] + batch["text"] * batch["index"])
    assert _inputs.entries_read(inner, batch) == ["image", "text"]
    assert _inputs.entries_read(lambda batch: batch["label"], batch) == ["label"]
    assert _inputs.entries_read(lambda batch: jnp.ones(2), batch) == []


def tokens_of(mask):
    drawn = np.random.default_rng(0)
    token = drawn.integers(0, 50, (9, 6)).astype(np.int32)
    return data.Dataset({"token": token, "mask": mask, "index": np.arange(9, dtype=np.int32)}, 3, "text")


def attending(key_or_table, token, mask):
    return {"logits": (key_or_table[token] * mask[..., None]).sum(1)}


ATTENDING = jaxkd.adapters.plain(lambda key, token, mask: jnp.ones((50, 3)), attending, inputs=("token", "mask"))


@pytest.mark.parametrize("mode", ["resident", "stream"])
def test_another_mask_over_tokens_is_noticed(tmp_path, mode):
    mask = np.arange(6) < np.array([6, 3, 1, 5, 2, 4, 6, 3, 2])[:, None]
    other = mask.copy()
    other[4, 1] = False
    table = jaxkd.Variables(jax.random.normal(jax.random.key(0), (50, 3)))
    settings = {"model": ATTENDING, "variables": table, "transform": None, "views": 1}
    cache = write(tmp_path, tokens_of(mask), **settings)
    assert cache.manifest["inputs"] == ["mask", "token"]
    with pytest.raises(StaleCacheError, match=r"data: .*contents"):
        write(tmp_path, tokens_of(other), **settings)
    make = {"resident": data.Resident, "stream": data.Stream}[mode]
    with pytest.raises(StaleCacheError, match="1 of 9 examples have other contents"):
        list(jaxkd.cache.attach(cache, make(tokens_of(other), 9, shuffle=False, epochs=1)).batches())
    # The last batch of four is filled up with masked examples, whose tokens do not count.
    batches = list(jaxkd.cache.attach(cache, make(tokens_of(mask), 4, shuffle=False, epochs=1)).batches())
    assert [int(batch["mask"].any(1).sum()) for batch in batches] == [4, 4, 1]
    for batch in batches:
        assert not (unseen(cache, dict, batch) & batch["mask"].any(1)).any()
    changed = {**batches[0], "mask": batches[0]["mask"].at[2].set(True)}
    assert unseen(cache, dict, changed).tolist() == [False, False, True, False]
