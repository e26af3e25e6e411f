"""Spans of two tokenizers: alignment and merged probabilities, against enumeration on tiny vocabularies."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxkd import Context, losses
from jaxkd.objectives import span_aligned
from tests import references

STUDENT, TEACHER = ["a", "b", "ab", "ba"], ["a", "b", "bb", "aba", "abb"]
MATCHES = np.array([[STUDENT.index(word), TEACHER.index(word)] for word in STUDENT if word in TEACHER])
TEXTS = [(["ab", "b", "a"], ["a", "bb", "a"]), (["a", "ba", "b", "b"], ["aba", "bb"]), (["ab"], ["a", "b"])]
LENGTHS = (5, 4)


def side(words, vocabulary, length):
    """Returns labels and ends of a text, padded."""
    ends = np.cumsum([len(word) for word in words])
    pad = length - len(words)
    label = np.array([vocabulary.index(word) for word in words] + [0] * pad)
    return label, np.concatenate([ends, np.full(pad, -1)])


def batch():
    sides = [
        [side(text[i], vocabulary, LENGTHS[i]) for text in TEXTS] for i, vocabulary in enumerate((STUDENT, TEACHER))
    ]
    (label, ends), (teacher_label, teacher_ends) = (map(np.stack, zip(*rows, strict=True)) for rows in sides)
    return {"label": label, "ends": ends, "teacher_label": teacher_label, "teacher_ends": teacher_ends}


RNG = np.random.default_rng(0)
GIVEN = Context(
    {"logits": jnp.asarray(RNG.normal(size=(3, LENGTHS[0], len(STUDENT))), jnp.float32)},
    {"logits": jnp.asarray(RNG.normal(size=(3, LENGTHS[1], len(TEACHER))), jnp.float32)},
    batch(),
    0,
)


def spans_of(first, second):
    """Splits two tokenizations of a text where both end a token, by their strings."""
    found, one, two = [], [], []
    first, second = list(enumerate(first)), list(enumerate(second))
    while first or second:
        shorter = one if len("".join(w for _, w in one)) <= len("".join(w for _, w in two)) else two
        shorter.append((first if shorter is one else second).pop(0))
        if "".join(w for _, w in one) == "".join(w for _, w in two):
            found.append((one, two))
            one, two = [], []
    return found


def merged(log_p, span, vocabulary):
    """The measure of a span: each first token, and the text's further tokens, as a product of probabilities."""
    p = np.exp(log_p)
    further = np.prod([p[place, vocabulary.index(word)] for place, word in span[1:]])
    return p[span[0][0]] * further


def expected(weight, temperature=1.0):
    """Returns the loss of every span of every text."""
    log_s, log_t = (
        references.log_softmax(np.float64(x["logits"]) / temperature) for x in (GIVEN.student, GIVEN.teacher)
    )
    values = []
    for row, (own, theirs) in enumerate(TEXTS):
        for one, two in spans_of(own, theirs):
            s, t = merged(log_s[row], one, STUDENT), merged(log_t[row], two, TEACHER)
            a, b = s[MATCHES[:, 0]], t[MATCHES[:, 1]]
            matched = (b * np.log(b / a) - b + a).sum()
            rest = [np.sort(np.delete(x, ids))[::-1] for x, ids in ((s, MATCHES[:, 0]), (t, MATCHES[:, 1]))]
            pairs = itertools.zip_longest(*rest, fillvalue=0.0)
            values.append(weight * matched + (1 - weight) * sum(abs(x - y) for x, y in pairs))
    return values


@pytest.mark.parametrize(("weight", "temperature"), [(None, 1.0), (1.0, 2.0), (0.0, 1.0)])
def test_the_loss_is_that_of_spans_found_by_strings(weight, temperature):
    objective = span_aligned(MATCHES, matched_weight=weight, temperature=temperature)
    want = expected(2 / 5 if weight is None else weight, temperature)
    assert len(want) == 5
    out = jax.jit(lambda context: objective.apply({}, {}, context, None))(GIVEN)
    np.testing.assert_allclose(out.value, np.mean(want), rtol=1e-5)
    assert out.metrics[""].count == 5


def test_a_span_has_the_probability_of_its_text():
    """Of all pairs of tokens, those that begin with a span have its probability together."""
    p = np.exp(references.log_softmax(np.float64(GIVEN.student["logits"][0])))
    one = [[(0, "ab")], [(0, "a"), (1, "b")]]
    enumerated = {  # by (first, second) token, given the logits at both positions
        (x, y): p[0, STUDENT.index(x)] * p[1, STUDENT.index(y)] for x in STUDENT for y in STUDENT
    }
    np.testing.assert_allclose(sum(enumerated.values()), 1)
    np.testing.assert_allclose(merged(np.log(p), one[1], STUDENT)[STUDENT.index("a")], enumerated["a", "b"])
    np.testing.assert_allclose(
        merged(np.log(p), one[0], STUDENT)[STUDENT.index("ab")], sum(enumerated["ab", y] for y in STUDENT)
    )


def test_equal_tokenizers_give_the_kl_divergence():
    label, ends = side(["ab", "b", "a"], STUDENT, 5)
    shared = {"label": label[None], "ends": ends[None], "teacher_label": label[None], "teacher_ends": ends[None]}
    student, teacher = RNG.normal(size=(2, 1, 5, 4)).astype(np.float32)
    given = Context({"logits": student}, {"logits": teacher}, shared, 0)
    objective = span_aligned(np.stack([np.arange(4)] * 2, axis=1))
    want = losses.soft_target_kl(student, teacher, temperature=1.0)[0, :3].mean()
    found = jax.jit(lambda context: objective.apply({}, {}, context, None).value)(given)
    np.testing.assert_allclose(found, want, rtol=1e-5)


def test_masks_select_spans_and_padding_has_no_gradient():
    objective = span_aligned(MATCHES)
    mask = np.zeros((3, 5), bool)
    mask[0, :3] = True  # the first text
    masked = GIVEN._replace(batch={**GIVEN.batch, "mask": mask})
    out = jax.jit(lambda context: objective.apply({}, {}, context, None))(masked)
    np.testing.assert_allclose(out.value, np.mean(expected(2 / 5)[:2]), rtol=1e-5)
    spoiled = jnp.asarray(GIVEN.student["logits"]).at[2, 1:].set(jnp.nan)
    gradient = jax.jit(jax.grad(lambda x: objective.apply({}, {}, GIVEN._replace(student={"logits": x}), None).value))
    found = gradient(spoiled)
    assert np.isfinite(found).all() and (found[2, 1:] == 0).all() and (found[2, 0] != 0).any()


def test_wrong_arguments_are_named():
    with pytest.raises(ValueError, match="span_aligned, matches: expected each id at most once"):
        span_aligned(np.array([[0, 0], [0, 1]]))
    with pytest.raises(ValueError, match=r"span_aligned, matches: expected integers \[n, 2\]"):
        span_aligned(np.zeros((2, 3), int))
    with pytest.raises(ValueError, match="span_aligned, matches: expected ids below 4 and 5"):
        span_aligned(np.array([[4, 0]])).init(jax.random.key(0), jax.eval_shape(lambda: GIVEN))
    wrong = GIVEN._replace(batch={**GIVEN.batch, "ends": GIVEN.batch["ends"][:, :2]})
    with pytest.raises(ValueError, match=r"batch/ends: expected integers \[batch, tokens\]"):
        span_aligned(MATCHES).init(jax.random.key(0), jax.eval_shape(lambda: wrong))
