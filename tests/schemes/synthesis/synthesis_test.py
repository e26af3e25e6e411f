"""Parts of synthesizers: terms against NumPy, rounds, views, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import schemes
from jaxkd.models import Generator
from jaxkd.objectives.layers import dense_init
from jaxkd.schemes.synthesis import _rounds, _terms
from jaxkd.schemes.synthesis._cmi import contrast, resized_crop_and_flip
from jaxkd.schemes.synthesis._contract import gradient
from tests import tiny

RNG = np.random.default_rng(0)
LOGITS, OTHER = (3 * RNG.normal(size=(8, 4)).astype(np.float32) for _ in range(2))
IMAGES = RNG.normal(size=(8, 4, 5, 2)).astype(np.float32)
LABELS = RNG.integers(0, 4, 8).astype(np.int32)
MASK = np.array([True, True, False, True, False, True, True, True])
HEAD = [  # with biases, so that no ReLU leaves an image without a direction
    {**dense_init(jax.random.key(i), 3, 3), "bias": jnp.asarray(RNG.uniform(0.5, 1, 3), jnp.float32)} for i in range(2)
]
SEEN = {name: RNG.normal(size=(8, 3)).astype(np.float32) for name in ("local", "global")}
MEMORY = {name: RNG.normal(size=(5, 3)).astype(np.float32) for name in ("local", "global")}
REMEMBERED = np.array([True, True, True, False, False])


def log_softmax(z):
    z = np.asarray(z, np.float64)
    return z - z.max(-1, keepdims=True) - np.log(np.exp(z - z.max(-1, keepdims=True)).sum(-1, keepdims=True))


def cross_entropy(logits, labels):
    return -log_softmax(logits)[np.arange(len(logits)), labels].mean()


def activation(features):
    return -np.abs(np.float64(features)).mean()


def information_entropy(logits):
    p = np.exp(log_softmax(logits)).mean(0)
    return (p * np.log(p)).sum()


def total_variation(x):
    x = np.float64(x)
    pairs = [(x[:, :, :-1], x[:, :, 1:]), (x[:, :-1], x[:, 1:])]
    pairs += [(x[:, 1:, :-1], x[:, :-1, 1:]), (x[:, :-1, :-1], x[:, 1:, 1:])]
    return sum(np.sqrt(((a - b) ** 2).sum()) for a, b in pairs)


def norm(x):
    return np.sqrt((np.float64(x) ** 2).sum())


def kl(p, q):
    return (np.exp(p) * (p - q)).sum(-1)


def competition(student, teacher):
    p, q = log_softmax(np.float64(teacher) / 3), log_softmax(np.float64(student) / 3)
    m = np.log((np.exp(p) + np.exp(q)) / 2)
    return 1 - (0.5 * kl(p, m) + 0.5 * kl(q, m)).mean()


def disagreement(student, teacher):
    agree = student.argmax(-1) == teacher.argmax(-1)
    return -np.where(agree, kl(log_softmax(teacher), log_softmax(student)), 0).mean()


def contrastive(local, other):
    """All pairs in one matrix, batch first, then memory."""

    def embed(x):
        first, second = (jax.tree.map(np.float64, layer) for layer in HEAD)
        x = np.maximum(np.float64(x) @ first["kernel"] + first["bias"], 0) @ second["kernel"] + second["bias"]
        return x / np.linalg.norm(x, axis=1, keepdims=True)

    anchors, others = (
        embed(np.concatenate([x, MEMORY[name][REMEMBERED]])) for name, x in (("local", local), ("global", other))
    )
    values = -np.diag(log_softmax(anchors @ others.T / 0.1))
    return values[: len(local)].mean() + values[len(local) :].mean()


def of_memory(local, other, **options):
    return contrast(HEAD, {"local": local, "global": other}, MEMORY, REMEMBERED, **options)


TERMS = {
    "cross_entropy": (_terms.cross_entropy, cross_entropy, (LOGITS, LABELS)),
    "activation": (_terms.activation, activation, (IMAGES,)),
    "information_entropy": (_terms.information_entropy, information_entropy, (LOGITS,)),
    "total_variation": (_terms.total_variation, total_variation, (IMAGES,)),
    "norm": (_terms.norm, norm, (IMAGES,)),
    "competition": (_terms.competition, competition, (LOGITS, OTHER)),
    "disagreement": (_terms.disagreement, disagreement, (LOGITS, OTHER)),
    "contrast": (of_memory, contrastive, (SEEN["local"], SEEN["global"])),
}
every_term = pytest.mark.parametrize("name", TERMS)


def slope(function, x, *rest, **options):
    """Value and gradient by the first argument, on each device of its own examples."""
    axis_name = options.get("axis_name")
    value, _, own = gradient(lambda x: (function(x, *rest, **options), None), x, None)
    return value, own if axis_name is None else own / jax.lax.axis_size(axis_name)


def compiled(function):
    return jax.jit(lambda x, rest, options: slope(function, x, *rest, **options))


@every_term
def test_term_matches_float64_reference(name):
    function, reference, arguments = TERMS[name]
    np.testing.assert_allclose(jax.jit(function)(*arguments), reference(*arguments), rtol=2e-6)


@every_term
def test_term_gradient_matches_finite_differences(name):
    function, reference, (x, *rest) = TERMS[name]
    found = compiled(function)(x, rest, {})[1]
    for _ in range(3):
        direction = RNG.normal(size=x.shape)
        ahead, behind = (reference(np.float64(x) + h * direction, *rest) for h in (1e-6, -1e-6))
        np.testing.assert_allclose((found * direction).sum(), (ahead - behind) / 2e-6, rtol=1e-4, atol=1e-5)


@every_term
def test_term_masked_equals_dropped(name):
    function, _, (x, *rest) = TERMS[name]
    run = compiled(function)
    expected, own = run(x[MASK], [y[MASK] for y in rest], {})
    spoilt = np.where(MASK.reshape(-1, *[1] * (x.ndim - 1)), x, 1e6).astype(np.float32)
    found, whole = run(spoilt, rest, {"mask": MASK})
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    np.testing.assert_allclose(whole[MASK], own, rtol=1e-5, atol=1e-6)
    assert not whole[~MASK].any()


@every_term
def test_term_over_devices_equals_one_device(name):
    function, _, (x, *rest) = TERMS[name]
    options = {"mask": jnp.asarray(MASK)}
    expected, own = compiled(function)(x, rest, options)

    def local(x, rest, options):
        return slope(function, x, *rest, **options, axis_name="d")

    split = jax.tree.map(lambda x: x.reshape(4, 2, *x.shape[1:]), (jnp.asarray(x), tuple(rest), options))
    values, slopes = jax.pmap(local, axis_name="d", devices=jax.devices()[:4])(*split)
    np.testing.assert_allclose(values, np.full(4, expected), rtol=1e-5)
    np.testing.assert_allclose(slopes.reshape(x.shape), own, rtol=1e-4, atol=1e-6)


@every_term
def test_extremes_stay_finite(name):
    function, _, (x, *rest) = TERMS[name]
    run, all_count, none = compiled(function), {"mask": np.ones(8, bool)}, {"mask": np.zeros(8, bool)}
    found = {
        "huge": run(np.where(x > 0, 1e4, -1e4).astype(np.float32), rest, all_count),
        "zero": run(np.zeros_like(x), rest, all_count),
        "none": run(x, rest, none),
        "one": run(x[:1], [y[:1] for y in rest], {}),
    }
    for kind, (value, own) in found.items():
        assert np.isfinite(value), kind
        assert np.isfinite(own).all(), kind
    assert not found["none"][1].any()


def test_terms_are_lowest_at_their_ideal():
    """Value at the ideal input, and that other inputs are higher."""
    classes = 10 * np.eye(4, dtype=np.float32)
    entropy, compete, contrasted = (jax.jit(f) for f in (_terms.information_entropy, _terms.competition, of_memory))
    assert float(entropy(classes)) == pytest.approx(-np.log(4), abs=1e-4)
    assert float(entropy(classes)) < float(entropy(classes[[0, 0, 0, 1]]))
    assert float(compete(5 * classes, 5 * classes)) == pytest.approx(1)
    assert float(compete(5 * classes, 5 * classes[::-1])) == pytest.approx(1 - np.log(2), abs=1e-4)
    assert float(contrasted(SEEN["global"], SEEN["global"])) < float(contrasted(SEEN["global"][::-1], SEEN["global"]))


def test_contrast_trains_the_head_and_not_the_global_view():
    empty = np.zeros(5, bool)
    options = {"seen": SEEN, "memory": MEMORY}
    learn = jax.jit(jax.grad(lambda h, r: contrast(h, remembered=r, **options)))
    with_it, without = learn(HEAD, REMEMBERED), learn(HEAD, empty)
    assert (with_it[1]["kernel"] != without[1]["kernel"]).any()
    other = jax.jit(jax.grad(lambda g: of_memory(SEEN["local"], g)))(SEEN["global"])
    assert not other.any()


# --- Rounds -----------------------------------------------------------------------------------------------------------


def entries(value, rows=2):
    return {"image": jnp.full((rows, 2, 2, 1), value, jnp.float32), "label": jnp.full(rows, int(value), jnp.int32)}


def test_best_batch_of_a_round_enters_the_ring():
    state = _rounds.begin(jax.eval_shape(lambda: entries(0.0)), slots=2)
    described = jax.tree.map(jax.typeof, state)
    finish = jax.jit(lambda state, x, cost: _rounds.finish(state, x, cost, 3))
    # Rounds of three updates, with the lowest cost at the second, the first and the third.
    for value, cost in [(1, 5.0), (2, 3.0), (3, 4.0), (4, 1.0), (5, 2.0), (6, 3.0), (7, 9.0), (8, 8.0), (9, 7.0)]:
        state = finish(state, entries(float(value)), jnp.float32(cost))
    assert jax.tree.map(jax.typeof, state) == described
    assert state["pool"]["label"].tolist() == [[9, 9], [4, 4]]  # the first batch was replaced
    assert state["pool"]["image"][:, :, 0, 0, 0].tolist() == [[9, 9], [4, 4]]
    assert (int(state["rounds"]), int(state["age"])) == (3, 0)


def test_round_without_finite_costs_ends():
    state = _rounds.begin(jax.eval_shape(lambda: entries(0.0)), slots=2)
    for value, cost in [(1, jnp.nan), (2, jnp.inf)]:
        state = _rounds.finish(state, entries(float(value)), jnp.float32(cost), 2)
    assert state["pool"]["label"][0].tolist() == [2, 2]
    assert int(state["rounds"]) == 1


def test_draw_uses_filled_slots_only():
    state = _rounds.begin(jax.eval_shape(lambda: entries(0.0)), slots=3)
    places, key = jnp.arange(40), jax.random.key(0)
    now = entries(7.0, 40)
    draw = jax.jit(_rounds.draw)
    drawn = draw(state, key, places, now["image"], now["label"])
    tiny.assert_equal(drawn, now)
    for value in (1.0, 2.0):
        state = _rounds.finish(state, entries(value), jnp.float32(0), 1)
    drawn = draw(state, key, places, now["image"], now["label"])
    assert set(drawn["label"].tolist()) == {1, 2}  # nothing of the empty slot
    np.testing.assert_array_equal(drawn["image"][:, 0, 0, 0], drawn["label"])
    some = draw(state, key, places[10:20], now["image"][:10], now["label"][:10])
    np.testing.assert_array_equal(some["label"], drawn["label"][10:20])  # a draw depends on the position only


# --- Views and generators ---------------------------------------------------------------------------------------------


def test_resized_crop_is_a_part_of_the_image():
    ramp = jnp.arange(8.0)[:, None, None] + jnp.zeros((8, 8, 1))  # mirroring does not change it
    across = ramp.swapaxes(0, 1)
    keys = jax.random.split(jax.random.key(0), 200)
    views = jax.jit(jax.vmap(resized_crop_and_flip, in_axes=(0, None)))
    down, side = views(keys, ramp), views(keys, across)
    assert (np.diff(down[:, :, 0, 0], axis=1) >= -1e-5).all()
    mirrored = side[:, 0, 0, 0] > side[:, 0, -1, 0]
    assert 70 < int(mirrored.sum()) < 130
    spread = down[:, -1, 0, 0] - down[:, 0, 0, 0]
    assert float(spread.min()) < 4.5
    assert float(spread.max()) > 6.5
    assert float(down.min()) >= -1e-5
    assert float(down.max()) <= 7 + 1e-5
    # Constant images do not change.
    np.testing.assert_allclose(views(keys, jnp.ones((8, 8, 1))), np.ones((200, 8, 8, 1)), rtol=1e-6)


def test_generator_makes_normalized_images():
    generator = Generator((8, 4), 3, features=(8, 4, 4))
    noise = jax.random.normal(jax.random.key(0), (64, 5))
    variables = jax.jit(generator.init)(jax.random.key(1), noise)
    images, _ = jax.jit(lambda v, z: generator.apply(v, z, train=True, mutable=["batch_stats"]))(variables, noise)
    assert images["image"].shape == (64, 8, 4, 3)
    np.testing.assert_allclose(images["image"].mean(axis=(0, 1, 2)), np.zeros(3), atol=1e-4)
    np.testing.assert_allclose(images["image"].std(axis=(0, 1, 2)), np.ones(3), atol=1e-2)
    with pytest.raises(ValueError, match="a size divisible by 4"):
        Generator((8, 6), 3, features=(8, 4, 4)).init(jax.random.key(1), noise)
    with pytest.raises(ValueError, match=r"noise: expected \[batch, size\]"):
        generator.init(jax.random.key(1), noise[0])


# --- Errors -----------------------------------------------------------------------------------------------------------

NOISE = {"noise": jax.ShapeDtypeStruct((8, 5), jnp.float32), "label": jax.ShapeDtypeStruct((8,), jnp.int32)}
GENERATOR = jaxkd.adapters.linen(Generator((4, 4), 2, features=(3,)), inputs="noise")
NAMELESS = jaxkd.adapters.plain(lambda key, z: jnp.ones(()), lambda w, z: w * z, inputs="noise")
TEACHER, SGD = tiny.teacher(), optax.sgd(0.1)


def invert(*shape, batch=None, **options):
    made(schemes.synthesis.inversion(TEACHER, shape or (4, 4, 2), SGD, **options), batch or NOISE)


def contrasted(features="map", **options):
    made(schemes.synthesis.cmi(TEACHER, GENERATOR, SGD, feature_names=features, **options), NOISE)


def learnt(generator=GENERATOR, feature="map", batch=None):
    made(schemes.synthesis.dafl(TEACHER, generator, SGD, feature=feature), batch or NOISE)


def made(synthesis, batch):
    synthesis.init(jax.random.key(0), {**batch, **synthesis.shapes(batch)}, tiny.teacher_variables())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: learnt(feature=None), "dafl, feature: expected the name"),
        (lambda: learnt(feature="pooled"), "dafl, teacher output 'pooled': there is no such name"),
        (lambda: learnt(batch={"image": NOISE["noise"]}), "dafl, batch entry 'noise': there is no such name"),
        (lambda: learnt(NAMELESS), "generator output 'image': there is no such name"),
        (lambda: invert(4, 4), r"shape: expected \(height, width, channels\)"),
        (lambda: invert(iterations=0), "iterations: expected at least 1, got 0"),
        (lambda: invert(slots=0), "slots: expected at least 1, got 0"),
        (lambda: invert(jitter=-1), "jitter: expected a number of pixels"),
        (lambda: invert(competition=1.0), "a weight of 1.0; give student="),
        (invert, "'batch_statistics'.*with_batch_stat_distance"),
        (lambda: invert(batch={"noise": NOISE["noise"]}), "'label' if num_classes= is given"),
        (lambda: contrasted(features=[]), "feature_names: expected at least one"),
        (lambda: contrasted(temperature=0.0), "temperature: expected a positive"),
        (lambda: contrasted(adversarial=0.5), "a weight of 0.5; give student="),
        (lambda: contrasted(memory=4, statistics=0.0), "memory: expected at least a batch of 8"),
    ],
)
def test_invalid_arguments_raise(make, message):
    with pytest.raises(ValueError, match=message):
        make()
