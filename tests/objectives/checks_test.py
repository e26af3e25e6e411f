"""Invalid hyperparameters of objectives are refused by name: out of range, NaN, and of the wrong kind."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import Context, ObjectiveVars, losses, objectives, term
from jaxkd.objectives import continual
from tests import tiny

F = ("student/f", "teacher/f")
LABELS = np.arange(12) % 3
TASKS = ([[0, 1], [2, 3]], 5)
CE = term(losses.cross_entropy, "student/logits", "batch/label")
NAN, INF = float("nan"), float("inf")
SIZES = [0, -1, 2.5, NAN, True, "3", None]
POSITIVE = [0.0, -1.0, NAN, INF, True, "1", None, np.ones(2), jnp.float32(-1)]
NOT_NEGATIVE = [-1.0, NAN, INF, False, "1", None, np.ones(2)]
SHARE = [-0.1, 1.1, NAN, "1", None]

CASES = {
    ("crd", "negatives"): (lambda **o: objectives.crd(*F, LABELS, **o), SIZES),
    ("crd", "embedding_size"): (lambda **o: objectives.crd(*F, LABELS, **o), SIZES),
    ("crd", "temperature"): (lambda **o: objectives.crd(*F, LABELS, **o), POSITIVE),
    ("crd", "momentum"): (lambda **o: objectives.crd(*F, LABELS, **o), SHARE),
    ("crd_queue", "queue_size"): (lambda **o: objectives.crd_queue(*F, **o), SIZES),
    ("crd_queue", "embedding_size"): (lambda **o: objectives.crd_queue(*F, **o), SIZES),
    ("crd_queue", "temperature"): (lambda **o: objectives.crd_queue(*F, **o), POSITIVE),
    ("crd_in_batch", "embedding_size"): (lambda **o: objectives.crd_in_batch(*F, **o), SIZES),
    ("crd_in_batch", "temperature"): (lambda **o: objectives.crd_in_batch(*F, **o), POSITIVE),
    ("on_embeddings", "embedding_size"): (lambda **o: objectives.on_embeddings(losses.hint_mse, *F, **o), SIZES),
    ("variational", "hidden_size"): (lambda **o: objectives.variational(*F, **o), SIZES[:-1]),
    ("review", "hidden_size"): (lambda **o: objectives.review(F[:1], F[1:], **o), SIZES[:-1]),
    ("boundary_connector", "margin"): (lambda **o: objectives.boundary_connector(*F, **o), NOT_NEGATIVE),
    ("paraphraser", "rate"): (lambda **o: objectives.paraphraser(F[1], **o), POSITIVE),
    ("factor_translator", "rate"): (lambda **o: objectives.factor_translator(*F, **o), POSITIVE),
    ("masked_generation", "mask_ratio"): (lambda **o: objectives.masked_generation(*F, **o), [*SHARE, 1.0]),
    ("dual_masked_generation", "threshold"): (lambda **o: objectives.dual_masked_generation(*F, **o), POSITIVE),
    ("dual_masked_generation", "temperature"): (lambda **o: objectives.dual_masked_generation(*F, **o), POSITIVE),
    ("attention_graph", "heads"): (lambda **o: objectives.attention_graph(F, F, **o), SIZES),
    ("attention_graph", "hidden_size"): (lambda **o: objectives.attention_graph(F, F, **o), SIZES),
    ("adversarial", "num_classes"): (lambda **o: objectives.adversarial(*F, **o), SIZES[:-1]),
    ("wasserstein", "penalty"): (lambda **o: objectives.wasserstein(*F, **o), NOT_NEGATIVE),
    ("curriculum_temperature", "start"): (objectives.curriculum_temperature, POSITIVE),
    ("curriculum_temperature", "span"): (objectives.curriculum_temperature, POSITIVE),
    ("curriculum_temperature", "difficulty"): (objectives.curriculum_temperature, [NAN, INF, "1", None]),
    ("instance_temperature", "hidden_size"): (objectives.instance_temperature, SIZES),
    ("cosine_curriculum", "high"): (lambda **o: objectives.cosine_curriculum(5, **o), [NAN, "1", None]),
    ("learned_ensemble", "temperature"): (objectives.learned_ensemble, POSITIVE),
    ("progressive_self_kd", "alpha"): (lambda **o: objectives.progressive_self_kd(5, **o), SHARE),
    ("progressive_self_kd", "steps"): (lambda **o: objectives.progressive_self_kd(5, **o), SIZES[:-1]),
    ("progressive_self_kd", "examples"): (objectives.progressive_self_kd, SIZES),
    ("peer_attention", "temperature"): (lambda **o: objectives.peer_attention(["a"], "b", "f", own=CE, **o), POSITIVE),
    ("peer_attention", "hidden_size"): (
        lambda **o: objectives.peer_attention(["a"], "b", "f", own=CE, **o),
        SIZES[:-1],
    ),
    ("old_class_kd", "temperature"): (lambda **o: continual.old_class_kd(*TASKS, **o), POSITIVE),
    ("new_class_kd", "temperature"): (lambda **o: continual.new_class_kd(*TASKS, teacher="teacher/e", **o), POSITIVE),
}


@pytest.mark.parametrize(("name", "argument"), CASES)
def test_invalid_hyperparameter_is_named(name, argument):
    make, values = CASES[name, argument]
    for value in values:
        with pytest.raises(ValueError, match=rf"{name}, {argument}: expected .*got "):
            make(**{argument: value})


@pytest.mark.parametrize("weight", [NAN, INF, "1", True, np.ones(2)])
def test_invalid_weight_is_named(weight):
    given = Context({"f": np.ones((2, 3))}, {"f": np.ones((2, 3))}, {}, 0)
    with pytest.raises(ValueError, match="weight: expected a finite number, got"):
        objectives.hint(*F, weight=weight).init(jax.random.key(0), given)


def test_traced_hyperparameter_passes():
    logits = {"logits": np.eye(3, dtype=np.float32)}

    def value(temperature):
        objective = continual.old_class_kd([[0, 1], [2]], 5, temperature=temperature)
        return objective.apply({}, {}, Context(logits, {"logits": np.ones((3, 3))}, {}, 6), None).value

    np.testing.assert_allclose(jax.jit(value)(2.0), value(2.0), rtol=1e-5)


# --- what is no objective ---------------------------------------------------------------------------------------------

ANY: Any = None
WRAPPED: dict[str, Any] = {
    "combine": lambda x: jaxkd.combine(kd=x),
    "select": objectives.select,
    "with_derived_outputs": functools.partial(objectives.with_derived_outputs, ANY, ANY),
    "with_projection": functools.partial(objectives.with_projection, ANY, ANY),
}


@pytest.mark.parametrize("wrap", WRAPPED)
def test_dict_and_loss_in_place_of_an_objective_raise(wrap):
    with pytest.raises(
        TypeError, match=rf"{wrap}.*: expected an Objective, got a dict of 'ce'. Sum .* jaxkd.combine\(ce=...\)"
    ):
        WRAPPED[wrap]({"ce": CE})
    with pytest.raises(
        TypeError, match=r"expected an Objective, got the function cross_entropy. Bind .* jaxkd.term\(cross_entropy, "
    ):
        WRAPPED[wrap](losses.cross_entropy)


def test_objective_in_place_of_a_loss_raises():
    with pytest.raises(TypeError, match=r"term: expected a loss, a function of arrays, got Objective. .*combine"):
        term(CE, "student/logits")


def test_derived_output_of_an_outputs_name_raises():
    derived = objectives.with_derived_outputs(
        lambda key, context: ObjectiveVars(), lambda p, s, c, key: ({"logits": jnp.ones((2, 3))}, s), CE
    )
    given = Context({"logits": np.ones((2, 3), np.float32)}, {}, {"label": np.array([0, 1])}, 0)
    with pytest.raises(ValueError, match="expected names that the model's outputs do not have, got logits"):
        derived.init(jax.random.key(0), given)


# --- indices ---------------------------------------------------------------------------------------------------------

CRD = objectives.crd("student/vector", "teacher/vector", LABELS, negatives=4, embedding_size=3)
PS_KD = objectives.progressive_self_kd(12)


@pytest.mark.parametrize(("objective", "name"), [(CRD, "crd"), (PS_KD, "progressive_self_kd")])
@pytest.mark.parametrize("index", [-1, 12, 40])
def test_index_of_another_set_is_named_by_init(objective, name, index):
    """A split's labels, for an index into the whole set, would give NaN in every step."""
    kd = jaxkd.distill(tiny.student, tiny.teacher(), objective, optimizer=optax.sgd(0.1))
    batch = {**tiny.batch(4), "index": np.array([0, 5, index, 11], np.int32)}
    with pytest.raises(ValueError, match=rf"{name}, index: expected positions in \[0, 12\), got {index}. Give"):
        kd.init(jax.random.key(0), batch)
    kd.init(jax.random.key(0), {**batch, "mask": np.array([True, True, False, True])})
    kd.init(jax.random.key(0), jax.eval_shape(lambda: batch))
