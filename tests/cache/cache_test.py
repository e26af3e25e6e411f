"""Cached outputs equal the teacher's outputs on the images that the student sees."""

import functools
import pickle
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import data, losses, teachers
from jaxkd.cache import codecs
from jaxkd.distillers import preprocess
from jaxkd.training import fit
from tests.cache.toy import AUGMENT, EXAMPLES, FLOAT32, MODEL, SET, VARIABLES, VIEWS, write

KEEP = {"logits": codecs.full("float32"), "hidden": codecs.full("bfloat16"), "map": codecs.eight_bit()}
LIVE = teachers.frozen(MODEL, VARIABLES)
KD = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cache"), codecs=KEEP)


@jax.jit
def live(batch):
    """Evaluates the teacher on the images that the student sees in this batch."""
    return LIVE.apply(VARIABLES, AUGMENT(batch), key=None)


def loaders(batch_size=8, **options):
    return {
        "resident": data.Resident(SET, batch_size, seed=1, epochs=5, **options),
        "stream": data.Stream(SET, batch_size, seed=1, epochs=5, **options),
    }


class Plain:
    """A user's loader with only the attributes that the loop needs."""

    def __init__(self, loader):
        self._loader, self.batch_size, self.steps_per_epoch = loader, loader.batch_size, loader.steps_per_epoch

    def batches(self, state=None):
        return self._loader.batches(state)


@pytest.mark.parametrize("mode", ["resident", "stream", "plain"])
def test_outputs_are_those_of_the_images_that_the_student_sees_in_every_epoch(cache, mode):
    loader = Plain(loaders()["resident"]) if mode == "plain" else loaders()[mode]
    teacher, seen, views = jax.jit(teachers.cached(cache).apply), set(), {}
    raw = loader.batches()
    for step, batch in enumerate(jaxkd.cache.attach(cache, loader).batches()):
        epoch = step // loader.steps_per_epoch
        original = next(raw)
        assert batch["epoch"].tolist() == [epoch % VIEWS] * 8
        for name in set(original) - {"epoch"}:
            np.testing.assert_array_equal(batch[name], original[name])
        found, expected = teacher({}, batch, key=None), live(batch)
        np.testing.assert_allclose(found["logits"], expected["logits"], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(found["hidden"], expected["hidden"], rtol=2**-8)
        np.testing.assert_allclose(found["map"], expected["map"], atol=2 / 510)
        seen |= {(int(index), epoch) for index in batch["index"][np.asarray(batch["mask"])]}
        for index, logits in zip(batch["index"].tolist(), np.asarray(found["logits"]), strict=True):
            views.setdefault((index, epoch % VIEWS), []).append(logits)
    assert len(seen) == 5 * EXAMPLES  # every pair of example and epoch
    assert all((logits == same[0]).all() for same in views.values() for logits in same)
    first = [np.stack([views[index, view][0] for index in SET.arrays["index"]]) for view in range(VIEWS)]
    assert all((first[0] != other).any(-1).mean() > 0.5 for other in first[1:])  # the views differ


def test_the_epoch_of_a_batch_is_the_view(cache):
    """With the true epoch, the student of epoch 3 would see other images than the teacher of view 0."""
    loader = loaders(shuffle=False)["resident"]
    batch = next(jaxkd.cache.attach(cache, loader).batches({"step": 3 * loader.steps_per_epoch}))
    cached = teachers.cached(cache).apply({}, batch, key=None)["logits"]
    np.testing.assert_allclose(cached, live(batch)["logits"], rtol=1e-5, atol=1e-5)
    assert np.abs(cached - live({**batch, "epoch": jnp.full(8, 3)})["logits"]).max() > 0.1


@pytest.mark.slow
def test_training_equals_training_with_a_live_teacher(cache):
    """Same losses and parameters as with a teacher that is evaluated on the same views in each step."""
    loader, student = loaders()["resident"], MODEL

    def run(teacher, augment, given):
        kd = preprocess(jaxkd.distill(student, teacher, KD, optimizer=optax.sgd(0.05)), train_transform=augment)
        return fit(kd, given, epochs=5, key=jax.random.key(3), progress=False, log_every=3)

    def replayed(batch):
        return AUGMENT({**batch, "epoch": batch["epoch"] % VIEWS})

    with_cache = run(teachers.cached(cache), cache.transform, jaxkd.cache.attach(cache, loader))
    with_live = run(LIVE, replayed, loader)
    assert [row["train/loss"] for row in with_cache.history] == pytest.approx(
        [row["train/loss"] for row in with_live.history], rel=1e-4
    )
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=2e-4),
        with_cache.state.student.params,
        with_live.state.student.params,
    )
    assert jax.tree.leaves(with_cache.state.teacher) == []


@pytest.mark.slow
def test_resident_fields_are_arguments_in_the_stored_dtype_and_seeds_can_be_vmapped(cache):
    attached = jaxkd.cache.attach(cache, loaders()["resident"])
    stored = {name: value for name, value in attached.arrays.items() if name.startswith("cached/") and value.ndim > 1}
    assert {name: value.dtype.name for name, value in stored.items()} == {
        "cached/logits/values": "float32",
        "cached/hidden/values": "bfloat16",
        "cached/map/values": "uint8",
        "cached/map/low": "float32",
        "cached/map/scale": "float32",
        "cached/inputs": "float32",
    }
    assert sum(value.nbytes for value in stored.values()) == (7 * 4 + 16 * 2 + 16 + 4 * 8 + 4) * EXAMPLES * VIEWS
    assert all(np.size(constant) <= 1 for constant in jax.make_jaxpr(attached.gather)(attached.arrays, 0).consts)
    batches = jax.vmap(lambda seed: attached.gather(attached.arrays, 7, seed=seed))(jnp.array([1, 5]))
    for lane in range(2):
        batch = {name: value[lane] for name, value in batches.items()}
        found = teachers.cached(cache).apply({}, batch, key=None)["logits"]
        np.testing.assert_allclose(found, live(batch)["logits"], rtol=1e-5, atol=1e-5)
    assert (batches["index"][0] != batches["index"][1]).any()


def test_attached_loader_without_a_fingerprint_is_recognized_by_its_first_batch(cache):
    def prints(image):
        first = {"image": np.full((2, 3), image), "index": np.arange(2), "epoch": np.zeros(2, np.int32)}
        bare = types.SimpleNamespace(batch_size=2, steps_per_epoch=1, batches=lambda state=None: iter([first]))
        return jaxkd.cache.attach(cache, bare).fingerprint()

    assert prints(1.0) == prints(1.0)
    assert prints(1.0) != prints(2.0) and prints(1.0)["first_batch"]["index"] == prints(2.0)["first_batch"]["index"]


def test_attached_loaders_delegate_to_the_loader(cache):
    for loader in loaders().values():
        attached = jaxkd.cache.attach(cache, loader)
        assert isinstance(attached, data.Loader) and attached.steps_per_epoch == 3 and attached.num_examples == EXAMPLES
        assert attached.fingerprint().items() > loader.fingerprint().items()
        batches = attached.batches({"step": 4})
        fifth = next(batches)
        assert batches.get_state() == {"step": 5}
        again = attached.batches()
        again.set_state({"step": 4})
        jax.tree.map(np.testing.assert_array_equal, next(again), fifth)
        batches.close(), again.close()


def test_a_subset_in_another_order_finds_its_outputs(cache):
    part = SET._replace(arrays={name: value[[20, 3, 11, 7]] for name, value in SET.arrays.items()})
    batch = next(jaxkd.cache.attach(cache, data.Resident(part, 4, shuffle=False)).batches())
    np.testing.assert_allclose(
        teachers.cached(cache).apply({}, batch, key=None)["logits"], live(batch)["logits"], rtol=1e-5, atol=1e-5
    )


def test_outputs_by_example_and_view(cache):
    index = SET.arrays["index"][[4, 9]]
    batch = {name: value[[4, 9]] for name, value in SET.arrays.items()} | {"epoch": np.full(2, 2, np.int32)}
    np.testing.assert_allclose(cache.outputs(index, view=2)["logits"], live(batch)["logits"], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="view: expected 0 to 2, got 3"):
        cache.outputs(index, view=3)
    with pytest.raises(ValueError, match=r"1 of 2 examples are not in the cache .* of 23, index 999 for one"):
        cache.outputs([index[0], 999])


def test_a_stream_writes_the_same_cache_and_the_reader_can_be_pickled(cache, tmp_path):
    stream = loaders()["stream"]
    streamed = write(tmp_path, stream, codecs=KEEP)
    assert streamed.manifest["identity"] == cache.manifest["identity"]
    for view in range(VIEWS):
        index = SET.arrays["index"]
        jax.tree.map(np.testing.assert_array_equal, cache.outputs(index, view), streamed.outputs(index, view))
    batch = stream.take([5, 2]) | {"epoch": np.full(2, 4, np.int32)}
    sent = pickle.loads(pickle.dumps(cache.reader))
    jax.tree.map(np.testing.assert_array_equal, sent(batch), cache.reader(batch))


def test_two_caches_for_one_student_one_of_top_k(cache, tmp_path):
    narrow = write(tmp_path, codecs={"logits": codecs.top_k(3)}, name="narrow")
    loader = jaxkd.cache.attach(narrow, jaxkd.cache.attach(cache, loaders()["resident"]))
    both = teachers.ensemble({"wide": teachers.cached(cache), "narrow": teachers.cached(narrow)})
    batch = next(loader.batches({"step": 10}))

    @jax.jit
    def compared(batch):
        found, teacher = both.apply(both.init(None, batch, None), batch, key=None), live(batch)["logits"]
        student = jnp.roll(teacher, 1, axis=0)
        kept = found["narrow/logits/log_probs"], found["narrow/logits/indices"]
        expected = losses.top_k_kl(student, *jax.lax.top_k(jax.nn.log_softmax(teacher), 3))
        return found["wide/logits"], teacher, losses.top_k_kl(student, *kept), expected

    wide, teacher, top, expected = compared(batch)
    np.testing.assert_allclose(wide, teacher, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(top, expected, rtol=1e-2, atol=1e-3)
    with pytest.raises(ValueError, match="attached cache has 3 views, as this cache has, got 2"):
        jaxkd.cache.attach(cache, types.SimpleNamespace(views=2))
    with pytest.raises(TypeError, match=r"attach: expected a loader, which has batches"):
        jaxkd.cache.attach(cache, SET)


def test_evaluation_uses_its_own_cache(cache, tmp_path):
    normalize = functools.partial(data.normalize, mean=(0.5,) * 3, std=(0.25,) * 3)
    held_out = write(tmp_path, views=1, transform=normalize, codecs=KEEP)
    val = data.Resident(SET, EXAMPLES, shuffle=False)
    kd = jaxkd.distill(MODEL, teachers.cached(cache), KD, optimizer=optax.sgd(0.05))
    kd = preprocess(kd, train_transform=AUGMENT, eval_transform=normalize)
    state = kd.init(jax.random.key(0), next(jaxkd.cache.attach(cache, loaders()["resident"]).batches()))
    found = jaxkd.training.evaluate(kd, state, jaxkd.cache.attach(held_out, val))

    @jax.jit
    def expected(variables, batch):
        batch = normalize(batch)
        student = MODEL.apply(variables, batch, key=None, train=False)[0]["logits"]
        teacher = LIVE.apply(VARIABLES, batch, key=None)["logits"]
        agree = jnp.argmax(student, -1) == jnp.argmax(teacher, -1)
        return losses.soft_target_kl(student, teacher, temperature=4.0).mean(), agree.mean()

    loss, agreement = map(float, expected(state.student, SET.arrays))
    assert found["loss"] == pytest.approx(loss, rel=1e-4) and found["agreement"] == pytest.approx(agreement)
    with pytest.raises(ValueError, match=r"expected a batch with \['cached/.*attach\(cache, loader\).*its own cache"):
        jaxkd.training.evaluate(kd, state, val)


def test_a_loader_that_is_not_attached_is_an_error(cache):
    kd = jaxkd.distill(MODEL, teachers.cached(cache), KD, optimizer=optax.sgd(0.05))
    with pytest.raises(
        ValueError, match=r"teachers.cached: expected a batch with .*Train on jaxkd.cache.attach\(cache, loader\)"
    ):
        kd.init(jax.random.key(0), next(loaders()["resident"].batches()))


def test_the_size_said_is_the_size_on_disk(tmp_path):
    """Per example and view: 36 bytes of top-k logits, two checksums, and in view 0 index and digest, both twice."""
    many = {"image": np.zeros((3000, 1), np.float32), "index": np.arange(3000, dtype=np.int32)}
    model = jaxkd.adapters.plain(lambda key, x: jnp.zeros((1, 1000)), lambda w, x: x @ w)
    options = {"transform": None, "views": 1, "codecs": {"logits": codecs.top_k(8)}, "examples_per_shard": 3000}
    variables = jaxkd.Variables(jnp.zeros((1, 1000)))
    cache = write(
        tmp_path, data.Dataset(many, 1000, "many"), model=model, variables=variables, batch_size=500, **options
    )
    assert cache.bytes == sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert cache.bytes_per_example == pytest.approx(cache.bytes / 3000)
    assert cache.bytes_per_example == pytest.approx(8 * 2 + 8 * 2 + 4 + 2 * 4 + 2 * 16, abs=5)  # and headers, probes
    assert f"{cache.bytes_per_example:.4g} bytes each" in cache.summary()


def test_summary_reports_size_and_time(cache, capsys):
    assert cache.bytes_per_example * EXAMPLES * VIEWS == pytest.approx(cache.bytes)
    assert cache.seconds > 0
    assert cache.seconds_saved(3) == 0 and cache.seconds_saved(30) == pytest.approx(9 * cache.seconds)
    text = cache.summary(epochs=30)
    assert "logits (full float32), hidden (full bfloat16), map (eight_bit) of 23 examples in 3 views" in text
    assert f"{cache.bytes_per_example:.4g} bytes each" in text and "30 epochs" in text


def test_batch_size_and_devices_of_the_writer_change_only_rounding(cache, tmp_path):
    other = write(tmp_path, devices=jax.devices()[:2], batch_size=6, codecs=FLOAT32, examples_per_shard=None)
    for view in range(VIEWS):
        found, expected = (one.outputs(SET.arrays["index"], view)["logits"] for one in (other, cache))
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
