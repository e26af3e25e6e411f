"""Masked equals dropped, for every objective: value, gradients, new state, under masks of examples and of tokens."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import ObjectiveVars, combine, losses, objectives, term
from jaxkd._core.batch_norm import replicas
from jaxkd.objectives import continual
from jaxkd.objectives.discriminators import Discriminator, mlp
from tests import objective_runs, tiny

BATCH, TOKENS, CLASSES, DATA = 6, 5, 4, 12
EXAMPLES = np.array([True, True, False, True, False, True])
RAGGED = np.arange(TOKENS) < np.array([4, 2, 0, 3, 0, 1])[:, None]
CROP = (3, 2)
PIXELS = np.zeros((BATCH, 4, 4), bool)
PIXELS[EXAMPLES, : CROP[0], : CROP[1]] = True
SHAPES: dict[str, dict[str, tuple[int, ...]]] = {
    "student": {
        "logits": (CLASSES,),
        "vector": (4,),
        "map": (4, 4, 4),
        "small": (2, 2, 4),
        "tokens": (TOKENS, 4),
        "token_logits": (TOKENS, CLASSES),
        "loss": (),
        **{f"{peer}/logits": (CLASSES,) for peer in "abc"},
        **{f"{peer}/vector": (4,) for peer in "ab"},
        **{f"{peer}/tokens": (TOKENS, 4) for peer in "ab"},
    },
    "teacher": {
        "logits": (CLASSES,),
        "vector": (5,),
        "map": (4, 4, 5),
        "small": (2, 2, 5),
        "tokens": (TOKENS, 5),
        "token_logits": (TOKENS, CLASSES),
        **{f"{peer}/logits": (CLASSES,) for peer in "ab"},
        **{f"{peer}/token_logits": (TOKENS, CLASSES) for peer in "ab"},
    },
}
LOGITS, VECTORS, MAPS, TOKEN_FEATURES, TOKEN_LOGITS = (
    (f"student/{name}", f"teacher/{name}") for name in ("logits", "vector", "map", "tokens", "token_logits")
)
MARGIN = jnp.linspace(-1.0, 0.0, 5)
TASKS: Any = ([[0, 1], [2, 3]], [2, 5])  # the step of `objective_runs` is in the second task
CE = term(losses.cross_entropy, "student/logits", "batch/label")
KD = term(losses.soft_target_kl, *LOGITS, temperature=2.0)


class Row(NamedTuple):
    """An objective, and how its tokens are dropped.

    ``rows``: tokens are rows of vectors; ``sum``: these, of which each example has the sum; ``mean``: the mean of an
    example's tokens is its vector; ``zeros``: tokens are zero; ``crop``: a map is smaller.
    """

    objective: Any
    drop: str = ""


ROWS = {
    "term": Row(KD),
    "term_tokens": Row(term(losses.soft_target_kl, *TOKEN_LOGITS), "rows"),
    "combine": Row(combine(ce=CE, nested=combine(kd=KD, hint=objectives.hint(*TOKEN_FEATURES)))),
    "select": Row(objectives.select(KD, student="a", teacher="b")),
    "hint_vector": Row(objectives.hint(*VECTORS)),
    "hint_tokens": Row(objectives.hint(*TOKEN_FEATURES, weight=2.0), "rows"),
    "hint_same": Row(objectives.hint("student/tokens", "student/b/tokens"), "rows"),
    "hint_map": Row(objectives.hint(*MAPS), "crop"),
    "hint_strided": Row(objectives.hint("student/map", "teacher/small")),
    "variational": Row(objectives.variational("student/map", "teacher/small")),
    "variational_tokens": Row(objectives.variational(*TOKEN_FEATURES, hidden_size=3), "rows"),
    "variational_map": Row(objectives.variational(*MAPS, hidden_size=3), "crop"),
    "paraphraser": Row(objectives.paraphraser("teacher/map", weight=3.0), "crop"),
    "factor_translator": Row(objectives.factor_translator(*MAPS), "crop"),
    "factor_translator_norm": Row(objectives.factor_translator(*MAPS, batch_norm=True), "crop"),
    "factor_translator_sizes": Row(objectives.factor_translator("student/map", "teacher/small")),
    "overhaul": Row(objectives.overhaul_connector(*VECTORS, MARGIN)),
    "overhaul_tokens": Row(objectives.overhaul_connector(*TOKEN_FEATURES, MARGIN), "sum"),
    "overhaul_map": Row(objectives.overhaul_connector(*MAPS, MARGIN), "crop"),
    "boundary": Row(objectives.boundary_connector(*VECTORS, margin=0.5)),
    "boundary_tokens": Row(objectives.boundary_connector(*TOKEN_FEATURES, margin=0.5), "sum"),
    "review": Row(
        objectives.review(("student/map", "student/small"), ("teacher/map", "teacher/vector"), hidden_size=3)
    ),
    "on_embeddings": Row(objectives.on_embeddings(losses.distance_relation, *VECTORS, embedding_size=3)),
    "on_embeddings_tokens": Row(
        # As many features as tokens, which the mask must not be taken for.
        objectives.on_embeddings(losses.consecutive_correlation, *TOKEN_FEATURES, embedding_size=TOKENS),
        "zeros",
    ),
    "masked_generation": Row(objectives.masked_generation("student/map", "teacher/small", mask_ratio=0.5)),
    "masked_generation_map": Row(objectives.masked_generation(*MAPS, mask_ratio=0.0), "crop"),
    "dual_masked_generation": Row(objectives.dual_masked_generation(*MAPS), "crop"),
    "attention_graph": Row(
        objectives.attention_graph(
            ("student/map", "student/vector"), ("teacher/map", "teacher/vector"), heads=2, hidden_size=3
        ),
        "crop",
    ),
    "crd": Row(objectives.crd(*VECTORS, np.arange(DATA) % CLASSES, negatives=5, embedding_size=3)),
    "crd_tokens": Row(objectives.crd(*TOKEN_FEATURES, np.arange(DATA) % 3, negatives=5, embedding_size=4), "zeros"),
    "crd_queue": Row(objectives.crd_queue(*VECTORS, queue_size=8, embedding_size=3)),
    "crd_queue_tokens": Row(objectives.crd_queue(*TOKEN_FEATURES, queue_size=8, embedding_size=4), "zeros"),
    "crd_in_batch": Row(objectives.crd_in_batch(*VECTORS, embedding_size=3)),
    "crd_in_batch_tokens": Row(objectives.crd_in_batch(*TOKEN_FEATURES, embedding_size=4), "zeros"),
    "adversarial": Row(objectives.adversarial(*LOGITS, discriminator=mlp(5), label_path="batch/label")),
    "adversarial_tokens": Row(objectives.adversarial(*TOKEN_LOGITS, discriminator=mlp(5)), "zeros"),
    "wasserstein": Row(objectives.wasserstein(*LOGITS, condition="student/vector", discriminator=mlp(5))),
    "curriculum_temperature": Row(objectives.curriculum_temperature()),
    "curriculum_temperature_tokens": Row(objectives.curriculum_temperature(*TOKEN_LOGITS), "rows"),
    "instance_temperature": Row(objectives.instance_temperature(hidden_size=4)),
    "instance_temperature_tokens": Row(objectives.instance_temperature(*TOKEN_LOGITS, hidden_size=4), "rows"),
    "learned_ensemble": Row(objectives.learned_ensemble()),
    "learned_ensemble_tokens": Row(
        objectives.learned_ensemble(
            "student/token_logits", ("teacher/a/token_logits", "teacher/b/token_logits"), "batch/token_label"
        ),
        "rows",
    ),
    "dino": Row(objectives.dino(("student/logits", "student/a/logits"), ("teacher/logits", "teacher/a/logits"))),
    "progressive_self_kd": Row(objectives.progressive_self_kd(DATA, alpha=0.5)),
    "gated_ensemble": Row(objectives.gated_ensemble({"a": "a", "b": "b"}, "student/vector", own=CE, taught=KD)),
    "gated_ensemble_tokens": Row(
        objectives.gated_ensemble({"a": "a", "b": "b"}, "student/tokens", own=CE, taught=KD), "mean"
    ),
    "peer_attention": Row(objectives.peer_attention(["a", "b"], "c", "vector", own=CE, hidden_size=2)),
    "peer_attention_tokens": Row(objectives.peer_attention(["a", "b"], "c", "tokens", own=CE, hidden_size=2), "mean"),
    "task_cross_entropy": Row(continual.task_cross_entropy(*TASKS)),
    "old_class_kd": Row(continual.old_class_kd(*TASKS)),
    "new_class_kd": Row(continual.new_class_kd(*TASKS, temperature=2.0, teacher="teacher/a/logits")),
}


def arrays():
    rng = np.random.default_rng(0)
    draw = lambda shape: rng.normal(size=(BATCH, *shape)).astype(np.float32)  # noqa: E731
    drawn = {side: {name: draw(shape) for name, shape in own.items()} for side, own in SHAPES.items()}
    batch = {
        "label": np.array([2, 0, 1, 3, 1, 0], np.int32),
        "token_label": rng.integers(0, CLASSES, (BATCH, TOKENS)).astype(np.int32),
        "index": rng.permutation(DATA)[:BATCH].astype(np.int32),
    }
    return {**drawn, "batch": batch}


def variables(row):
    """The objective's variables with random offsets, since initial zeros would hide errors."""
    made = objective_runs.initialize(row.objective, arrays())
    rng = np.random.default_rng(1)
    move = lambda x: x + 0.1 * np.abs(rng.normal(size=x.shape)).astype(np.float32)  # noqa: E731
    params = jax.tree.map(move, made.params)
    # Banks and tables of integers stay; a running mean and variance move.
    state = jax.tree.map(lambda x: move(x) if x.dtype == np.float32 and x.ndim == 1 else x, made.state)
    if set(state) & {"queue", "past"}:  # which a first step fills
        state = objective_runs.run(row.objective, ObjectiveVars(params, state), arrays()).state
    return ObjectiveVars(params, state)


def kept(tree, keep):
    return jax.tree.map(lambda x: x[keep], tree)


def over(mask, name):
    """Returns whether a mask is over the tokens or positions of an array, and not over its examples alone."""
    return mask.ndim == 3 if name == "map" else mask.ndim == 2 and "token" in name


def spoiled(tree, mask, garbage):
    """Fills masked entries: floats with garbage, labels and indices with numbers that are out of range."""

    def fill(name, x):
        own = mask if over(mask, name) else mask.reshape(BATCH, -1).any(1)
        where = own.reshape(*own.shape, *[1] * (x.ndim - own.ndim))
        return np.where(where, x, np.asarray(garbage if x.dtype == np.float32 else -7, x.dtype))

    filled = {side: {name: fill(name, x) for name, x in own.items()} for side, own in tree.items()}
    filled["batch"]["mask"] = mask
    return filled


def token_arrays(tree):
    return {side: {name: x for name, x in own.items() if over(RAGGED, name)} for side, own in tree.items()}


def assert_equal(found, want, gradient, scale=1.0):
    np.testing.assert_allclose(found.value, scale * want.value, rtol=2e-5, atol=1e-6)
    scaled = jax.tree.map(lambda g: scale * g, want.params)
    tiny.assert_close((found.params, found.state), (scaled, want.state), rtol=2e-4, atol=2e-5)
    tiny.assert_close(gradient, jax.tree.map(lambda g: scale * g, want.student), rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", ROWS)
def test_masked_examples_equal_dropped_ones(name):
    row, given = ROWS[name], arrays()
    made = variables(row)
    want = objective_runs.run(row.objective, made, kept(given, EXAMPLES))
    assert any(np.abs(g).max() > 0 for g in jax.tree.leaves((want.student, want.params)))
    for garbage in np.nan, 1e30:
        filled = spoiled(given, EXAMPLES, garbage)
        found = objective_runs.run(row.objective, made, filled)
        assert_equal(found, want, kept(found.student, EXAMPLES))
        assert all((g == 0).all() for g in jax.tree.leaves(kept(found.student, ~EXAMPLES)))


def dropped(row, given):
    """Returns the arrays without masked tokens, and the number of tokens for each example of a sum."""
    own = token_arrays(given)
    examples = RAGGED.any(1)
    if row.drop in ("rows", "sum"):
        # Arrays of examples have other leading sizes then; the objective does not read them.
        return jax.tree.map(lambda x: x[RAGGED], own), RAGGED.sum() / examples.sum() if row.drop == "sum" else 1.0
    counts = RAGGED.sum(1)[examples, None]
    rest = jax.tree.map(lambda x: x[examples], given)
    for side, tokens in own.items():
        for name, x in tokens.items():
            zeros = np.where(RAGGED.reshape(BATCH, TOKENS, *[1] * (x.ndim - 2)), x, 0)[examples]
            rest[side][name] = zeros if row.drop == "zeros" or x.ndim == 2 else zeros.sum(1) / counts
    return rest, 1.0


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].drop not in ("", "crop")])
def test_masked_tokens_equal_dropped_ones(name):
    row, given = ROWS[name], arrays()
    made = variables(row)
    rest, scale = dropped(row, given)
    want = objective_runs.run(row.objective, made, rest)
    for garbage in np.nan, 1e30:
        filled = spoiled(given, RAGGED, garbage)
        found = objective_runs.run(row.objective, made, filled)
        np.testing.assert_allclose(found.value, scale * want.value, rtol=2e-5, atol=1e-6)
        scaled = jax.tree.map(lambda g: scale * g, want.params)
        tiny.assert_close((found.params, found.state), (scaled, want.state), rtol=2e-4, atol=2e-5)
        for output, gradient in found.student.items():
            over_tokens = over(RAGGED, output)
            keep = RAGGED if over_tokens else RAGGED.any(1)
            assert (gradient[~keep] == 0).all()
            if over_tokens and row.drop in ("rows", "sum"):
                np.testing.assert_allclose(gradient[keep], scale * want.student[output], rtol=2e-4, atol=2e-5)
            elif not over_tokens and row.drop in ("zeros", "mean"):
                np.testing.assert_allclose(gradient[keep], want.student[output], rtol=2e-4, atol=2e-5)
            elif over_tokens and row.drop == "mean":
                counts = RAGGED.sum(1)[RAGGED.any(1)]
                shares = np.repeat(want.student[output] / counts[:, None], counts, axis=0)
                np.testing.assert_allclose(gradient[keep], shares, rtol=2e-4, atol=2e-5)


@pytest.mark.parametrize("name", [name for name in ROWS if ROWS[name].drop == "crop"])
def test_masked_positions_of_a_map_equal_a_crop(name):
    row, given = ROWS[name], arrays()
    made = variables(row)
    crop = lambda x: x[:, : CROP[0], : CROP[1]] if x.shape[1:3] == (4, 4) and x.ndim == 4 else x  # noqa: E731
    want = objective_runs.run(row.objective, made, jax.tree.map(lambda x: crop(x[EXAMPLES]), given))
    filled = spoiled(given, PIXELS, np.nan)
    found = objective_runs.run(row.objective, made, filled)
    assert_equal(found, want, jax.tree.map(lambda g: crop(g[EXAMPLES]), found.student))
    assert (found.student["map"][~PIXELS] == 0).all()


def test_masked_positions_do_not_reach_a_review():
    """Its coarser levels average over all positions, with zeros where they are masked."""
    row, given = ROWS["review"], arrays()
    made = variables(row)
    found = []
    for garbage in 0.0, np.nan:
        filled = spoiled(given, PIXELS, garbage)
        found.append(objective_runs.run(row.objective, made, filled))
    tiny.assert_equal(*found)
    assert (found[1].student["map"][~PIXELS] == 0).all()


def test_gradient_penalty_is_over_the_tokens_of_the_mask():
    def score(kernel, x):
        return jnp.sum(jnp.tanh(x @ kernel), axis=1)

    critic = Discriminator(lambda key, shape, outputs: jax.random.normal(key, (shape[-1], outputs)), score)
    row, given, columns = Row(objectives.wasserstein(*TOKEN_LOGITS, discriminator=critic)), arrays(), [0, 1, 3]
    made = variables(row)
    mask = EXAMPLES[:, None] & np.isin(np.arange(TOKENS), columns)
    rest = jax.tree.map(lambda x: x[EXAMPLES][:, columns], token_arrays(given))
    want = objective_runs.run(row.objective, made, rest)
    found = objective_runs.run(row.objective, made, spoiled(given, mask, np.nan))
    assert_equal(found, want, {name: found.student[name][EXAMPLES][:, columns] for name in rest["student"]})


def test_hint_averages_over_the_tokens_of_the_mask():
    """The value of the formula in float64, with its gradient by the regressor."""
    given = arrays()
    objective = objectives.hint(*TOKEN_FEATURES)
    made = variables(Row(objective))
    s, t = (np.float64(given[side]["tokens"][RAGGED]) for side in ("student", "teacher"))
    kernel, bias = (np.float64(made.params[name]) for name in ("kernel", "bias"))
    error = s @ kernel + bias - t
    filled = spoiled(given, RAGGED, np.nan)
    found = objective_runs.run(objective, made, filled)
    np.testing.assert_allclose(found.value, np.mean(error**2), rtol=1e-5)
    np.testing.assert_allclose(found.params["kernel"], 2 * s.T @ error / error.size, rtol=1e-4, atol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("mask", ["examples", "tokens"])
def test_devices_with_unequal_counts_equal_one(mask):
    """The first of two devices has three unmasked examples, the second two or, of tokens, one."""
    for row in ROWS.values():
        if mask == "tokens" and row.drop in ("", "crop"):
            continue
        given, own = arrays(), np.array([1, 1, 1, 0, 1, 0], bool) if mask == "examples" else RAGGED
        filled = spoiled(given, own, np.nan)
        made = variables(row)
        want = objective_runs.run(row.objective, made, filled)
        with replicas(1):
            found = objective_runs.on_devices(row.objective, "pmap", 2)(made, filled)
        assert_equal(found, want, found.student)
