"""The outermost mistakes: each has an error that says what was expected, what came and what to do."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from flax import nnx

import jaxkd
from jaxkd import adapters, distillers, losses, parallel, schemes, teachers, term, wrappers
from tests import tiny

CE = term(losses.cross_entropy, "student/logits", "batch/label")
OPTIMIZER = optax.sgd(0.1)
BATCH = tiny.batch(8)


def distill(student=tiny.student, teacher=None, objective=CE, optimizer=OPTIMIZER, **options):
    return jaxkd.distill(
        student, teachers.none() if teacher is None else teacher, objective, optimizer=optimizer, **options
    )


def haiku_like(key, x):
    return x


class Net(nnx.Module):
    def __init__(self, rngs):
        self.out = nnx.Linear(2, 3, rngs=rngs)


# Of any type, since a type checker would refuse the calls below.
MODULE: Any = nn.Dense(3)
CLASS: Any = nn.Dense
NET: Any = Net(nnx.Rngs(0))
MODEL: Any = tiny.student
TEACHER: Any = tiny.teacher()
VARIABLES: Any = jaxkd.Variables({})
NOTHING: Any = {}
COMPOSED = {
    "a module for the student": (
        lambda: distill(MODULE),
        "distill, student: expected a Model, got a Dense.*adapters.linen",
    ),
    "a class for the student": (lambda: distill(CLASS), "expected a Model, got the class Dense"),
    "an nnx module for the student": (lambda: distill(NET), "expected a Model, got a Net"),
    "a function for the student": (lambda: distill(haiku_like), "expected a Model, got the function haiku_like"),
    "a teacher for the student": (lambda: distill(TEACHER), "student: expected a Model, got a Teacher"),
    "an objective for the student": (lambda: distill(CE), "student: expected a Model, got an Objective"),
    "a model for the teacher": (
        lambda: distill(teacher=MODEL),
        r"expected a Teacher, got a Model.*frozen\(model, variables\)",
    ),
    "a module for the teacher": (lambda: distill(teacher=MODULE), "expected a Teacher, got a Dense"),
    "variables for the teacher": (lambda: distill(teacher=VARIABLES), "expected a Teacher, got a Variables"),
    "a dict for the objective": (
        lambda: distill(objective={"ce": CE}),
        r"expected an Objective, got a dict of 'ce'.*combine\(ce=...\)",
    ),
    "a bare loss for the objective": (
        lambda: distill(objective=losses.soft_target_kl),
        r"got the function soft_target_kl.*jaxkd.term\(soft_target_kl",
    ),
    "a model for the objective": (lambda: distill(objective=MODEL), "expected an Objective, got a Model"),
    "an uncalled optimizer": (
        lambda: distill(optimizer=optax.adam),
        r"optimizer: .*such as optax.adam\(1e-3\).*Call it",
    ),
    "a number for the optimizer": (lambda: distill(optimizer=0.1), "expected an optax transformation.*got 0.1"),
    "an uncalled second optimizer": (
        lambda: distill(objective_optimizer=optax.sgd),
        "objective_optimizer: expected an optax transformation",
    ),
    "a module in frozen": (lambda: teachers.frozen(MODULE, VARIABLES), "frozen, model: expected a Model, got a Dense"),
    "weights before the model": (lambda: teachers.frozen(VARIABLES, MODEL), "expected a Model, got a Variables"),
    "a module in ema": (lambda: teachers.ema(MODULE), "ema, model: expected a Model"),
    "a teacher in ema": (lambda: teachers.ema(TEACHER), "ema, model: expected a Model, got a Teacher"),
    "a module in placeholder": (lambda: teachers.placeholder(MODULE), "placeholder, model: expected a Model"),
    "one teacher in ensemble": (lambda: teachers.ensemble(TEACHER), "expected several teachers, a dict by name"),
    "models in ensemble": (
        lambda: teachers.ensemble({"a": MODEL}),
        "ensemble, 'a': expected a Teacher, got a Model",
    ),
    "a class in linen": (lambda: adapters.linen(CLASS), "expected an instance.*got the class Dense"),
    "an nnx module in linen": (lambda: adapters.linen(NET), "linen, module.*got a Net.*adapters.nnx"),
    "a linen module in nnx": (lambda: adapters.nnx(MODULE), "nnx, module.*got a Dense.*adapters.linen"),
    "a module in plain": (lambda: adapters.plain(NOTHING, haiku_like), "plain, init: expected a function, got a dict"),
    "a model in with_ema": (
        lambda: distillers.with_ema(MODEL),
        "with_ema, kd: expected a Distiller, got a Model",
    ),
    "a model in skip_nonfinite": (lambda: distillers.skip_nonfinite(MODEL), "expected a Distiller"),
    "a model in preprocess": (lambda: distillers.preprocess(MODEL), "expected a Distiller"),
    "an uncalled optimizer in per_model": (
        lambda: distillers.per_model({"a": optax.adam}),
        "per_model, a: expected an optax",
    ),
    "an uncalled optimizer in a scheme": (
        lambda: schemes.mutual(MODEL, peers=2, own=CE, mutual=CE, optimizer=optax.adam),
        "expected an optax",
    ),
}


@pytest.mark.parametrize("name", COMPOSED)
def test_a_wrong_part_is_refused(name):
    function, message = COMPOSED[name]
    with pytest.raises(TypeError, match=message):
        function()


WRAPPERS = {
    "accumulate": lambda model: wrappers.accumulate(model, 2),
    "joint": lambda model: wrappers.joint({"model": model}),
    "learned_codebook": lambda model: wrappers.learned_codebook(model, {}),
    "precision": wrappers.precision,
    "quantized": wrappers.quantized,
    "remat": wrappers.remat,
    "replicate": lambda model: wrappers.replicate(model, 2),
    "select_classes": lambda model: wrappers.select_classes(model, {"a": [0]}),
    "views": lambda model: wrappers.views(model, {"pair": {"image": "pair"}}),
    "with_batch_stat_distance": wrappers.with_batch_stat_distance,
    "with_exits": lambda model: wrappers.with_exits(model, {}),
    "with_input_gradient": wrappers.with_input_gradient,
    "with_inputs": wrappers.with_inputs,
    "with_outputs": wrappers.with_outputs,
}


@pytest.mark.parametrize("name", WRAPPERS)
def test_a_module_in_a_wrapper_is_refused(name):
    with pytest.raises(TypeError, match=f"{name}, .*model.*: expected a Model, got a Dense"):
        WRAPPERS[name](MODULE)


def test_duck_types_are_accepted():
    class Own:
        init, apply = staticmethod(tiny.student.init), staticmethod(tiny.student.apply)

    assert isinstance(distill(Own()).init(jax.random.key(0), BATCH), jaxkd.TrainState)


KD = distill()
STATE = jax.eval_shape(lambda: KD.init(jax.random.key(0), BATCH))
CALLED = {
    "a number for the key": (
        lambda kd: kd.init(0, BATCH),
        r"init, key: expected a PRNG key, such as jax.random.key\(0\), got 0",
    ),
    "an array for the key": (lambda kd: kd.init(jnp.zeros((), int), BATCH), r"expected a PRNG key.*got int32\[\]"),
    "the batch for the key": (
        lambda kd: kd.init(BATCH, jax.random.key(0)),
        "expected a PRNG key.*got a dict of 'image'",
    ),
    "a tuple for the batch of init": (
        lambda kd: kd.init(jax.random.key(0), tuple(BATCH.values())),
        "a dict of arrays by name",
    ),
    "a tuple for the batch": (
        lambda kd: kd.step(STATE, tuple(BATCH.values())),
        "step, batch: expected a dict.*got a tuple",
    ),
    "a tuple to evaluate": (lambda kd: kd.evaluate(STATE, tuple(BATCH.values())), "evaluate, batch: expected a dict"),
    "a list in the batch": (
        lambda kd: kd.step(STATE, {**BATCH, "label": [0, 1]}),
        "expected arrays, got {'label': 'a list'}",
    ),
    "None in the batch": (
        lambda kd: kd.step(STATE, {**BATCH, "label": None}),
        "expected arrays, got {'label': 'None'}",
    ),
    "a pair for the state": (
        lambda kd: kd.step((STATE, {}), BATCH),
        "step, state: expected a TrainState.*state, metrics = step",
    ),
    "variables for the state": (
        lambda kd: kd.evaluate(VARIABLES, BATCH),
        "evaluate, state: expected a TrainState.*Variables",
    ),
}


@pytest.mark.parametrize("name", CALLED)
def test_a_wrong_argument_is_refused(name):
    function, message = CALLED[name]
    with pytest.raises(TypeError, match=message):
        function(KD)


@pytest.mark.parametrize("wrap", [distillers.with_ema, distillers.skip_nonfinite, distillers.preprocess])
def test_wrapped_distillers_refuse_them_as_well(wrap):
    kd = wrap(KD)
    with pytest.raises(TypeError, match="expected a TrainState"):
        kd.step((STATE, {}), BATCH)
    with pytest.raises(TypeError, match="expected a dict of arrays by name"):
        kd.init(jax.random.key(0), tuple(BATCH.values()))


@pytest.mark.parametrize(
    "place",
    ["none", "jit", pytest.param("pmap", marks=pytest.mark.slow), pytest.param("shard", marks=pytest.mark.slow)],
)
def test_a_donated_state_is_refused(place):
    placed = {
        "none": lambda: KD,
        "jit": lambda: parallel.jit(KD),
        "pmap": lambda: parallel.pmap(KD, jax.devices()[:2]),
        "shard": lambda: parallel.shard(KD, jax.make_mesh((2,), ("data",))),
    }[place]()
    state = placed.init(jax.random.key(0), BATCH)
    jax.jit(lambda state: state, donate_argnums=0)(state) if place == "none" else placed.step(state, BATCH)
    jax.tree.map(lambda x: x.delete(), state)  # a backend may ignore the donation
    for function in (placed.step, placed.evaluate):
        with pytest.raises(ValueError, match=r"donated to an earlier step\. Use the state that this step returned"):
            function(state, BATCH)
