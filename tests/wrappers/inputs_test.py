"""Views: models on other entries of the batch and on several views of each example."""

import jax
import numpy as np
import pytest

from jaxkd.wrappers import views, with_inputs
from tests import tiny
from tests.schemes.peers_toy import normed

KEY = jax.random.key(0)
BATCH = {**tiny.batch(6), "other": tiny.batch(6, 1)["image"], "third": tiny.batch(6, 2)["image"]}


def with_image(entry):
    return {**BATCH, "image": BATCH[entry]}


def test_reading_equals_the_model_on_the_other_entry():
    other = with_inputs(tiny.student, image="other")
    variables = tiny.student.init(KEY, with_image("other"))
    tiny.assert_equal(other.init(KEY, BATCH), variables)
    found, _ = other.apply(variables, BATCH, key=None, train=False)
    tiny.assert_equal(dict(found), dict(tiny.student.apply(variables, with_image("other"), key=None, train=False)[0]))
    # The replaced entry may be missing from the batch.
    alone, _ = other.apply(variables, {"other": BATCH["other"]}, key=None, train=False)
    tiny.assert_equal(dict(alone), dict(found))


def test_views_are_successive_forward_passes():
    """BatchNorm normalizes each view separately and updates its running statistics with each."""
    both = views(normed, {"second": {"image": "other"}, "last": {"image": "third"}})
    variables = both.init(KEY, BATCH)
    tiny.assert_equal(variables, normed.init(KEY, BATCH))
    outputs, state = both.apply(variables, BATCH, key=KEY, train=True)
    seen = variables
    for prefix, entry in (("", "image"), ("second/", "other"), ("last/", "third")):
        expected, new = normed.apply(seen, with_image(entry), key=KEY, train=True)
        for name, x in expected.items():
            np.testing.assert_allclose(outputs[prefix + name], x, rtol=1e-6)
        seen = seen._replace(state=new)
    tiny.assert_close(state, seen.state)
    assert not np.allclose(jax.tree.leaves(state)[0], jax.tree.leaves(variables.state)[0])


def test_a_batch_without_views_can_be_evaluated():
    both = views(tiny.student, {"second": {"image": "other"}})
    variables = both.init(KEY, BATCH)
    outputs, _ = both.apply(variables, tiny.batch(6), key=None, train=False)
    np.testing.assert_array_equal(outputs["second/logits"], outputs["logits"])
    with_view, _ = both.apply(variables, BATCH, key=None, train=False)
    assert not np.allclose(with_view["second/logits"], outputs["logits"])
    with pytest.raises(ValueError, match="view, batch entry 'other'"):
        both.apply(variables, tiny.batch(6), key=KEY, train=True)


def test_mistakes_raise_errors_that_teach():
    with pytest.raises(ValueError, match="views: expected at least one, got none"):
        views(tiny.student, {})
    with pytest.raises(ValueError, match=r"hold no slash, got \['a/b'\]"):
        views(tiny.student, {"a/b": {"image": "other"}})
    with pytest.raises(ValueError, match=r"batch entry 'othre'.*did you mean 'other'"):
        with_inputs(tiny.student, image="othre").init(KEY, BATCH)
