"""The optimizer of an objective's parameters: which of the student's optimizers train them, and which are refused."""

import jax
import jax.numpy as jnp
import optax
import pytest

import jaxkd
from jaxkd import combine, losses, objectives, schemes, term
from jaxkd._core.train_state import optimizer_of_objective
from tests import tiny

PARAMS = {"hint": {"bias": jax.ShapeDtypeStruct((4,), "float32"), "kernel": jax.ShapeDtypeStruct((3, 4), "float32")}}
WARM_UP = optax.warmup_cosine_decay_schedule(0.0, 0.1, 10, 100)


def named(value, *names):
    """Returns a function from parameters to labels or masks: ``value`` for the paths that contain one of the names."""
    other = "frozen" if isinstance(value, str) else not value

    def of(path, _):
        return value if any(name in jax.tree_util.keystr(path) for name in names) else other

    return lambda params: jax.tree_util.tree_map_with_path(of, params)


def groups(*names, frozen=None):
    """Trains the parameters with these names and freezes all others."""
    frozen = optax.set_to_zero() if frozen is None else frozen
    return optax.multi_transform({"train": optax.adam(1e-2), "frozen": frozen}, named("train", *names))


def masked(*names):
    return optax.masked(optax.adam(1e-2), named(True, *names))


CLIP = optax.clip_by_global_norm(1.0)
TRAINING = {
    "sgd": optax.sgd(0.1, momentum=0.9),
    "warm-up from 0": optax.adamw(WARM_UP),
    "learning rate in the state": optax.inject_hyperparams(optax.sgd)(learning_rate=0.0),
    "clipping": optax.chain(CLIP, optax.adaptive_grad_clip(0.01), optax.sgd(WARM_UP)),
    "accumulation": optax.MultiSteps(optax.adam(1e-3), 4),
    "skipped steps": optax.apply_if_finite(optax.lamb(1e-3), 3),
    "chosen by signs": optax.rprop(1e-3),
    "adafactor": optax.adafactor(1e-3),
    "decay of kernels": optax.adamw(1e-3, mask=named(True, "kernel")),
    "a group that trains all": groups("hint"),
}
NOT_TRAINING = {
    "frozen group": (groups("Dense"), "hint/bias, hint/kernel"),
    "frozen part": (groups("kernel"), "hint/bias"),
    "group of rate 0": (groups("Dense", frozen=optax.sgd(0.0)), "hint/bias, hint/kernel"),
    "group of schedule 0": (groups("bias", frozen=optax.adam(optax.constant_schedule(0.0))), "hint/kernel"),
    "frozen, then clipped": (optax.chain(groups("Dense"), CLIP), "hint/bias, hint/kernel"),
    "frozen, with decay": (optax.chain(groups("Dense"), optax.add_decayed_weights(1e-4)), "hint/bias, hint/kernel"),
    "frozen, accumulated": (optax.MultiSteps(groups("bias"), 2), "hint/kernel"),
    "frozen, skipped": (optax.apply_if_finite(groups("bias"), 2), "hint/kernel"),
    "gradients outside of a mask": (masked("Dense"), "hint/bias, hint/kernel"),
    "clipped gradients outside of a mask": (optax.chain(CLIP, masked("bias")), "hint/kernel"),
    "frozen by a mask": (
        optax.chain(optax.sgd(0.1), optax.masked(optax.set_to_zero(), named(True, "bias"))),
        "hint/bias",
    ),
}


@pytest.mark.parametrize("name", TRAINING)
def test_an_optimizer_that_trains_the_objective_is_its_default(name):
    state = jax.eval_shape(optimizer_of_objective(TRAINING[name], None).init, PARAMS)
    assert state == jax.eval_shape(TRAINING[name].init, PARAMS)


@pytest.mark.parametrize("name", NOT_TRAINING)
def test_an_optimizer_that_does_not_train_the_objective_is_refused(name):
    optimizer, untrained = NOT_TRAINING[name]
    with pytest.raises(ValueError, match=rf"does not train {untrained}\. .*objective_optimizer=optax.adam"):
        jax.eval_shape(optimizer_of_objective(optimizer, None).init, PARAMS)
    assert jax.eval_shape(optimizer_of_objective(optax.sgd(0.1), optimizer).init, PARAMS) == jax.eval_shape(
        optimizer.init, PARAMS
    )


# --- in a distiller --------------------------------------------------------------------------------------------------

CE = term(losses.cross_entropy, "student/logits", "batch/label")
HINT = combine(ce=CE, hint=objectives.hint("student/vector", "teacher/vector"))
LABELS = {"first": "frozen", "second": "train"}
OF_THE_STUDENT = {
    "labels": optax.multi_transform({"frozen": optax.set_to_zero(), "train": optax.sgd(0.1)}, LABELS),
    "mask": optax.adamw(0.1, mask={"first": True, "second": False}),
}


def init(objective, **optimizers):
    kd = jaxkd.distill(tiny.student, tiny.teacher(), objective, **optimizers)
    return kd, kd.init(jax.random.key(0), tiny.batch(8))


@pytest.mark.parametrize("name", OF_THE_STUDENT)
def test_trees_of_the_student_work_if_nothing_is_learned(name):
    kd, state = init(CE, optimizer=OF_THE_STUDENT[name])
    assert not jax.tree.leaves(state.opt_state["objective"])
    new, _ = kd.step(state, tiny.batch(8))

    def loss(params):
        logits = tiny.student.apply(jaxkd.Variables(params), tiny.batch(8), key=None, train=True)[0]["logits"]
        return optax.softmax_cross_entropy_with_integer_labels(logits, tiny.batch(8)["label"]).mean()

    old = state.student.params
    updates, _ = OF_THE_STUDENT[name].update(jax.grad(loss)(old), OF_THE_STUDENT[name].init(old), old)
    tiny.assert_close(new.student.params, optax.apply_updates(old, updates))


@pytest.mark.parametrize("name", OF_THE_STUDENT)
def test_trees_of_the_student_need_another_optimizer_of_the_objective(name):
    with pytest.raises(ValueError, match=r"expected one for the objective's parameters, hint/.*objective_optimizer="):
        init(HINT, optimizer=OF_THE_STUDENT[name])
    kd, state = init(HINT, optimizer=OF_THE_STUDENT[name], objective_optimizer=optax.sgd(0.1))
    new, _ = kd.step(state, tiny.batch(8))
    moved = jax.tree.map(lambda a, b: bool(jnp.any(a != b)), new.objective.params, state.objective.params)
    assert all(jax.tree.leaves(moved))


def test_a_frozen_regressor_is_refused_in_distill():
    optimizer = optax.multi_transform(
        {"train": optax.sgd(0.1), "frozen": optax.set_to_zero()}, named("train", "first", "second")
    )
    with pytest.raises(ValueError, match="does not train hint/"):
        init(HINT, optimizer=optimizer)
    kd, state = init(HINT, optimizer=optimizer, objective_optimizer=optax.set_to_zero())  # on purpose
    tiny.assert_equal(kd.step(state, tiny.batch(8))[0].objective.params, state.objective.params)


SCHEMES = {
    "online": lambda optimizer: schemes.online(
        tiny.student, tiny.teacher_model, HINT, teacher_objective=CE, optimizer=optimizer
    ),
    "mutual": lambda optimizer: schemes.mutual(
        tiny.student,
        peers=2,
        own=CE,
        mutual=objectives.variational("student/vector", "teacher/vector"),
        optimizer=optimizer,
    ),
    "staged": lambda optimizer: schemes.phases.staged(
        tiny.student,
        tiny.teacher(),
        schemes.phases.Stage(HINT, optimizer, steps=1),
        schemes.phases.Stage(CE, optax.sgd(0.1)),
    ),
}


@pytest.mark.parametrize("name", SCHEMES)
def test_a_frozen_regressor_is_refused_in_a_scheme(name):
    optimizer = optax.multi_transform(
        {"train": optax.sgd(0.1), "frozen": optax.set_to_zero()}, named("train", "first", "second")
    )
    kd = SCHEMES[name](optimizer)
    with pytest.raises(ValueError, match="does not train"):
        jax.eval_shape(lambda: kd.init(jax.random.key(0), tiny.batch(8)))
