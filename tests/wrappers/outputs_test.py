"""Computed outputs: unchanged other outputs, selected and placed classes, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import adapters, losses, teachers
from jaxkd.wrappers import expand_classes, select_classes, with_outputs
from tests import tiny
from tests.adapters import models

BATCH = tiny.batch(5)
LINEN = adapters.linen(models.Net(), taps={"stem": "stem"})
KEY = jax.random.key(1)


def run(model, train=False):
    variables = model.init(KEY, BATCH)
    return model.apply(variables, BATCH, key=KEY, train=train)


@pytest.mark.parametrize("train", [False, True])
@pytest.mark.parametrize(
    ("extend", "new"),
    [
        (lambda m: with_outputs(m, double=lambda out: 2 * out["logits"]), {"double"}),
        (lambda m: select_classes(m, {"of_a": [1], "of_b": [1, 0]}), {"of_a", "of_b"}),
        (lambda m: expand_classes(m, [3, 1], 5), {"known"}),
    ],
    ids=["with", "select", "place"],
)
def test_adds_outputs_and_changes_no_other(extend, new, train):
    (want, want_state), (found, state) = run(LINEN, train), run(extend(LINEN), train)
    assert extend(LINEN).init is LINEN.init
    assert found.keys() == {*want, *new}
    tiny.assert_equal(state, want_state)
    np.testing.assert_array_equal(found["stem"], want["stem"])


def test_functions_get_all_outputs():
    """Several functions at once; names may hold slashes."""
    computed = {"pooled": lambda out: out["map"].mean(axis=(1, 2)), "of/norm": lambda out: jnp.abs(out["vector"])}
    found, _ = run(with_outputs(tiny.student, **computed))
    np.testing.assert_allclose(found["pooled"], found["vector"], rtol=1e-6)
    np.testing.assert_array_equal(found["of/norm"], np.abs(found["vector"]))


def test_selected_logits_give_the_conditional_distribution():
    found, _ = run(select_classes(tiny.student, {"some": [2, 0]}))
    np.testing.assert_array_equal(found["some"], found["logits"][:, [2, 0]])
    whole = jax.nn.softmax(found["logits"])[:, [2, 0]]
    np.testing.assert_allclose(jax.nn.softmax(found["some"]), whole / whole.sum(axis=1, keepdims=True), rtol=1e-5)


def test_gradients_reach_the_selected_logits_alone():
    model = select_classes(tiny.student, {"some": [2, 0]})
    variables = model.init(KEY, BATCH)

    def loss(variables):
        found, _ = model.apply(variables, BATCH, key=None, train=True)
        return losses.soft_target_kl(found["some"], jnp.ones_like(found["some"])).mean()

    gradient = np.asarray(jax.grad(loss)(variables).params["second"])
    assert (gradient[:, [0, 2]] != 0).all() and (gradient[:, 1] == 0).all()


def test_placed_logits_give_the_distribution_over_all_classes():
    model = expand_classes(tiny.student, [4, 0, 2], 6)
    found, _ = run(model)
    probabilities = np.asarray(jax.nn.softmax(found["logits"]))
    np.testing.assert_allclose(probabilities[:, [4, 0, 2]], jax.nn.softmax(found["known"]), rtol=1e-6)
    assert (probabilities[:, [1, 3, 5]] == 0).all()
    kl = losses.soft_target_kl(jnp.ones((5, 6)), found["logits"])
    assert np.isfinite(kl).all()


def test_an_ensemble_of_placed_classes_is_a_mixture():
    """Each class has its teacher's probability times the teacher's weight, at the temperature of the average."""

    def member(seed, classes):
        return teachers.frozen(expand_classes(tiny.student, classes, 6), tiny.student.init(jax.random.key(seed), BATCH))

    both = teachers.ensemble(
        {"a": member(1, [0, 1, 2]), "b": member(2, [5, 4, 3])},
        weights={"a": 0.25, "b": 0.75},
        average=teachers.average_probabilities(4.0),
    )
    out = both.apply(both.init(KEY, BATCH, None), BATCH, key=None)
    expected = np.concatenate(
        [0.25 * jax.nn.softmax(out["a/known"] / 4), 0.75 * jax.nn.softmax(out["b/known"] / 4)[:, ::-1]], axis=1
    )
    np.testing.assert_allclose(jax.nn.softmax(out["logits"] / 4), expected, rtol=1e-5)


def test_mistakes_raise_errors_that_teach():
    for make, message in (
        (lambda: with_outputs(LINEN), "with_outputs: expected at least one output"),
        (lambda: select_classes(LINEN, {}), "select_classes: expected at least one list of classes"),
        (lambda: select_classes(LINEN, {"a": []}), r"select_classes, 'a': expected different class numbers.*got \[\]"),
        (lambda: select_classes(LINEN, {"a": [1, 1]}), r"expected different class numbers.*got \[1, 1\]"),
        (lambda: select_classes(LINEN, {"a": [-1]}), r"expected different class numbers.*got \[-1\]"),
        (lambda: select_classes(LINEN, {"a": [0.5]}), r"expected different class numbers.*got \[0.5\]"),
        (lambda: expand_classes(LINEN, [0, 5], 5), "expected classes below the total of 5, got 5"),
        (
            lambda: run(with_outputs(LINEN, stem=lambda out: 0)),
            "with_outputs: 'stem' is an output of the model already",
        ),
        (lambda: run(select_classes(LINEN, {"a": [1, 2]})), "'a': expected classes below the 2 of 'logits', got 2"),
        (lambda: run(select_classes(LINEN, {"a": [0]}, output="x")), r"model output 'x'.*'logits' float32\[5, 2\]"),
        (lambda: run(expand_classes(LINEN, [0, 1, 2], 5)), r"expected logits of 3 classes at 'logits'.*\[5, 2\]"),
        (lambda: run(expand_classes(LINEN, [0, 1], 5, name="stem")), "'stem' is an output of the model already"),
    ):
        with pytest.raises(ValueError, match=message):
            make()
