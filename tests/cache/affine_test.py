"""Cached outputs under a geometric augmentation: those of the moved images, in every placement of the step."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import adapters, data, losses, parallel, teachers
from jaxkd.cache import codecs
from jaxkd.data import dense
from jaxkd.distillers import preprocess

EXAMPLES, CLASSES, VIEWS = 24, 3, 2
RNG = np.random.default_rng(0)
SET = {
    "image": RNG.integers(0, 256, (EXAMPLES, 8, 6, 3), np.uint8),
    "label": RNG.integers(0, CLASSES, (EXAMPLES, 8, 6), np.uint8),
    "boxes": np.tile(np.array([[0, 1, 3, 7], [0, 0, 0, 0]], np.float32), (EXAMPLES, 1, 1)),
    "box_label": np.zeros((EXAMPLES, 2), np.int32),
    "box_mask": np.tile([True, False], (EXAMPLES, 1)),
    "points": RNG.uniform(0, 6, (EXAMPLES, 2, 2)).astype(np.float32),
    "point_mask": np.ones((EXAMPLES, 2), bool),
}
MOVE = functools.partial(
    dense.random_affine, seed=0, scale=(0.7, 1.4), rotation=25.0, shift=0.1, swap=((0, 1),), fill=128
)


def forward(params, image):
    """A segmenter that reads the pixels as they are stored, so that its cache compares them bit for bit."""
    return {"logits": jnp.tanh(image.astype(jnp.float32) @ params["w"] / 64)}


MODEL = adapters.plain(lambda key, image: {"w": jax.random.normal(key, (3, CLASSES)) / 4}, forward)
VARIABLES = MODEL.init(jax.random.key(0), {"image": jnp.zeros((1, 8, 6, 3), jnp.uint8)})
LOADER = functools.partial(data.Resident, SET, 8, seed=1, epochs=4)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    options = {"transform": MOVE, "views": VIEWS, "batch_size": 6, "progress": False}
    directory = tmp_path_factory.mktemp("cache")
    return jaxkd.cache.write_cache(
        directory, MODEL, VARIABLES, LOADER(), codecs={"logits": codecs.full("float32")}, **options
    )


@pytest.mark.slow
def test_cached_outputs_equal_those_of_the_moved_images(cache):
    teacher = jax.jit(teachers.cached(cache).apply)
    live = jax.jit(lambda batch: forward(VARIABLES.params, MOVE(batch)["image"])["logits"])
    stored = jax.jit(lambda batch: forward(VARIABLES.params, batch["image"])["logits"])
    for step, batch in enumerate(jaxkd.cache.attach(cache, LOADER()).batches()):
        assert batch["epoch"].tolist() == [step // 3 % VIEWS] * 8
        found = teacher({}, batch, key=None)["logits"]
        np.testing.assert_allclose(found, live(batch), atol=1e-6)
        assert np.abs(np.asarray(found - stored(batch))).max() > 0.1


PLACEMENTS = {
    "jit": parallel.jit,
    "pmap": lambda kd: parallel.pmap(kd, jax.devices()[:4]),
    "shard": lambda kd: parallel.shard(
        kd, jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Explicit,))
    ),
}


def train(teacher, transform, loader, place):
    objective = jaxkd.term(losses.pixel_kl, "student/logits", "teacher/logits")
    kd = jaxkd.distill(MODEL, teacher, objective, optimizer=optax.sgd(0.1), metrics=lambda context: {})
    kd = preprocess(kd, train_transform=transform)
    placed = place(kd)
    batches = list(loader.batches())
    state, losses_ = placed.init(jax.random.key(3), batches[0]), []
    for batch in batches:
        state, metrics = placed.step(state, batch)
        losses_.append(jaxkd.metrics.compute(metrics)["loss"])
    return losses_


@pytest.mark.slow
def test_training_equals_that_with_a_live_teacher_in_every_placement(cache):
    """No example is one that the teacher saw otherwise, which would make the loss NaN."""
    frozen = teachers.frozen(MODEL, VARIABLES)
    replayed = lambda batch: MOVE({**batch, "epoch": batch["epoch"] % VIEWS})  # noqa: E731
    expected = train(frozen, replayed, LOADER(), parallel.jit)
    assert np.isfinite(expected).all() and expected[0] > 1e-3
    for name, place in PLACEMENTS.items():
        found = train(teachers.cached(cache), cache.transform, jaxkd.cache.attach(cache, LOADER()), place)
        np.testing.assert_allclose(found, expected, rtol=1e-4, err_msg=name)
