"""Exponential moving average of the student, often the better final model."""

from __future__ import annotations

from jaxkd._core import checks, moving_average, train_state
from jaxkd._core.arrays import casts
from jaxkd.types import Array, Batch, Distiller, Metrics, TrainState, Variables

_SLOT = "average"


def with_ema(kd: Distiller, *, decay: moving_average.Decay = 0.999) -> Distiller:
    """Returns a distiller that also keeps a moving average of its student.

    Also known as: EMA (exponential moving average), Polyak averaging.

    After every step, ``θ' ← decay · θ' + (1 − decay) · θ``. Polyak & Juditsky, "Acceleration of stochastic
    approximation by averaging", 1992, in its exponential form. Training itself is unchanged. Floating-point state, such
    as BatchNorm statistics, is averaged too; integers and PRNG keys are those of the student. The average has at least
    float32 precision.

    Args:
      kd: any distiller, from `jaxkd.distill` or a scheme.
      decay: a number in [0, 1], or a schedule of the number of updates made before, such as ``ema_warmup(0.999)``.

    Returns:
      A `Distiller`. The average is part of the state, ``opt_state["average"]``; `ema_params` reads it. ``evaluate``
      reports the student's metrics, and those of the average as ``average/...``, at twice the cost.

    Raises:
      ValueError: the decay is a number outside [0, 1].

    >>> import jax, jaxkd, jax.numpy as jnp, optax
    >>> model = jaxkd.adapters.plain(lambda key, x: jnp.zeros((2, 3)), lambda w, x: x @ w, inputs="x")
    >>> teacher = jaxkd.teachers.frozen(model, Variables(jnp.ones((2, 3)).at[0, 0].set(5.0)))
    >>> objective = jaxkd.term(jaxkd.losses.soft_target_kl, "student/logits", "teacher/logits")
    >>> kd = with_ema(jaxkd.distill(model, teacher, objective, optimizer=optax.sgd(1.0)), decay=0.5)
    >>> batch = {"x": jnp.ones((4, 2))}
    >>> state, _ = kd.step(kd.init(jax.random.key(0), batch), batch)
    >>> bool((ema_params(state).params == 0.5 * state.student.params).all())  # it was 0 before
    True
    >>> sorted(kd.evaluate(state, batch))[:3]
    ['agreement', 'average/agreement', 'average/loss']
    """
    checks.contract("with_ema, kd", kd, Distiller)
    moving_average.check_decay("with_ema", decay)

    def init(key: Array, batch: Batch) -> TrainState:
        state = kd.init(key, batch)
        return train_state.put(state, _SLOT, moving_average.begin(state.student), "with_ema")

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        inner, average = train_state.take(state, _SLOT, "with_ema")
        new, metrics = kd.step(inner, batch)
        average = moving_average.follow(average, new.student, decay, state.step)
        return train_state.put(new, _SLOT, average, "with_ema"), metrics

    def evaluate(state: TrainState, batch: Batch) -> Metrics:
        inner, _ = train_state.take(state, _SLOT, "with_ema")
        student = kd.evaluate(inner, batch)
        average = kd.evaluate(inner._replace(student=ema_params(state)), batch)
        return {**student, **{f"{_SLOT}/{name}": mean for name, mean in average.items()}}

    return Distiller(init, step, evaluate)


def ema_params(state: TrainState) -> Variables:
    """Returns the averaged student of a state, in the student's dtypes.

    Raises:
      ValueError: the state has no average.
    """
    _, average = train_state.take(state, _SLOT, "ema_params")
    variables: Variables = casts.cast_like(average, state.student)
    return variables
