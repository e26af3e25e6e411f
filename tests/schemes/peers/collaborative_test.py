"""`schemes.collaborative`: the formula, different views, masks, errors."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import combine, losses, objectives, term
from jaxkd.losses import ensembles
from jaxkd.schemes import collaborative
from jaxkd.wrappers import get_member, with_inputs
from tests import tiny
from tests.schemes.peers_toy import CE, CLIPPED, KL, SGD, normed, run

ENSEMBLES = (ensembles.best_logits, ensembles.combined_logits, ensembles.min_logits)
MODELS = {"a": tiny.student, "b": tiny.teacher_model}


def two_views(size, seed=0):
    return {**tiny.batch(size, seed), "second": tiny.batch(size, seed + 50)["image"]}


@pytest.mark.parametrize("ensemble", ENSEMBLES)
def test_step_matches_the_formula(ensemble):
    """Two students with different views and weight λ, written out."""
    views = {"a": tiny.student, "b": with_inputs(tiny.teacher_model, image="second")}
    taught = term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0, weight=0.6)
    kd = collaborative(views, own=CE, taught=taught, ensemble=ensemble, optimizer=optax.sgd(0.5))
    start = kd.init(jax.random.key(1), two_views(8))
    state, (found,) = run(kd, 1, state=start, batch=two_views)
    batch = two_views(8)
    z = [
        model.apply(get_member(start.student, n), batch, key=None, train=True)[0]["logits"]
        for n, model in views.items()
    ]
    target = ensemble(jnp.stack(z), batch["label"])
    total = 0.0
    for name, model in views.items():
        own = get_member(start.student, name)

        def loss(params, model=model):
            logits = model.apply(jaxkd.Variables(params), batch, key=None, train=True)[0]["logits"]
            kl = losses.soft_target_kl(logits, target, temperature=2.0)
            return (losses.cross_entropy(logits, batch["label"]) + 0.6 * kl).mean()

        value, slope = jax.jit(jax.value_and_grad(loss))(own.params)
        expected = jax.tree.map(lambda x, g: x - 0.5 * g, own.params, slope)
        tiny.assert_close(get_member(state.student, name).params, expected, rtol=1e-4, atol=1e-5)
        total += float(value)
    assert found["loss"] == pytest.approx(total, rel=1e-5)


def test_ensemble_of_one_student_has_zero_gradient():
    """The ensemble equals the student, so that the gradient of the KL is 0."""
    kd = collaborative({"a": tiny.student}, own=CE, taught=KL, ensemble=ensembles.best_logits, optimizer=CLIPPED)
    start = kd.init(jax.random.key(1), tiny.batch(8))
    state, _ = run(kd, 3, state=start)
    plain = jaxkd.distill(tiny.student, jaxkd.teachers.none(), CE, optimizer=CLIPPED)
    begin = plain.init(jax.random.key(1), tiny.batch(8))._replace(student=get_member(start.student, "a"))
    tiny.assert_close(get_member(state.student, "a"), run(plain, 3, state=begin)[0].student, rtol=1e-5, atol=1e-6)


def test_copies_equal_models_by_name():
    options = {"own": CE, "taught": KL, "optimizer": CLIPPED}
    state, _ = run(collaborative(normed, peers=2, **options), 2)
    expected, _ = run(collaborative({"0": normed, "1": normed}, **options), 2)
    for name in "01":
        tiny.assert_close(get_member(state.student, name), get_member(expected.student, name), rtol=1e-4, atol=1e-5)


def test_values_of_masked_examples_are_ignored():
    kd = collaborative(MODELS, own=CE, taught=KL, optimizer=SGD)
    start, step = kd.init(jax.random.key(1), tiny.batch(8)), jax.jit(kd.step)
    batch = {**tiny.batch(8), "mask": np.arange(8) < 6}
    batch["image"] = np.where(batch["mask"][:, None, None, None], batch["image"], np.float32(1e30))
    batch["label"] = np.where(batch["mask"], batch["label"], -1)
    expected, _ = step(start, {name: x[:6] for name, x in tiny.batch(8).items()})
    tiny.assert_close(step(start, batch)[0].student, expected.student, rtol=1e-4, atol=1e-5)


def test_taught_objective_may_own_parameters():
    """Each student has its own parameters of the objective, clipped separately."""
    taught = combine(kl=KL, ctkd=objectives.curriculum_temperature())
    state, _ = run(collaborative(MODELS, own=CE, taught=taught, optimizer=CLIPPED), 2)
    raw = {name: float(x["ctkd"]["raw"]) for name, x in state.objective.params["objective"]["taught"].items()}
    assert raw.keys() == MODELS.keys()
    assert raw["a"] != raw["b"]


def test_invalid_arguments_raise():
    options = {"own": CE, "taught": KL, "optimizer": SGD}
    with pytest.raises(ValueError, match="the name 'ensemble' is reserved"):
        collaborative({"ensemble": tiny.student}, **options)
    with pytest.raises(ValueError, match="collaborative, peers"):
        collaborative(tiny.student, **options)
    with pytest.raises(ValueError, match=r"'lable'.*did you mean 'label'"):
        collaborative(MODELS, label_path="batch/lable", **options).init(jax.random.key(0), tiny.batch(8))
