"""A distillation step and an epoch written by hand for one experiment, with Flax and optax.

Cross-entropy, soft targets and a learned hint, with SGD and momentum. The code follows good practice: the step is
compiled once, the state is donated, the teacher is an argument that is neither donated nor returned, the metrics are
scalars on the device, and an epoch is one `jax.lax.scan` over rows of a set on the device. The two losses are optax's,
which have no masks, no guards for excluded classes, and a KL with rounding errors for small divergences.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

TEMPERATURE, KD_WEIGHT, CE_WEIGHT, HINT_WEIGHT = 4.0, 0.9, 0.1, 10.0


class Losses(NamedTuple):
    """Losses of ``(logits, labels)`` and of ``(student logits, teacher logits)``, per example."""

    cross_entropy: Callable[[Any, Any], Any]
    soft_target_kl: Callable[[Any, Any], Any]


def _kl(student: Any, teacher: Any) -> Any:
    target = jax.nn.softmax(teacher / TEMPERATURE)
    return optax.kl_divergence(jax.nn.log_softmax(student / TEMPERATURE), target) * TEMPERATURE**2


OPTAX = Losses(optax.softmax_cross_entropy_with_integer_labels, _kl)


def make_state(params: Any, regressor: Any, batch_stats: Any, optimizer: optax.GradientTransformation) -> Any:
    """Builds the state of a run; it copies the arrays, since a step donates them."""
    params, regressor, batch_stats = jax.tree.map(jnp.copy, (params, regressor, batch_stats))
    return {
        "params": params,
        "regressor": regressor,
        "batch_stats": batch_stats,
        "opt_state": optimizer.init((params, regressor)),
        "step": jnp.zeros((), jnp.int32),
    }


def make_step(
    student: nn.Module, teacher: nn.Module, tap: str, optimizer: optax.GradientTransformation, losses: Losses = OPTAX
) -> Callable[[Any, Any, Any], Any]:
    """Returns ``(state, teacher variables, batch) -> (state, metrics)``, not yet compiled."""
    path = tap.split("/")

    def forward(model: nn.Module, variables: Any, image: Any, train: bool) -> Any:
        logits, changed = model.apply(
            variables,
            image,
            train=train,
            mutable=["intermediates", "batch_stats"] if train else ["intermediates"],
            capture_intermediates=lambda module, _: list(module.path) == path,
        )
        feature = changed["intermediates"]
        for name in path:
            feature = feature[name]
        return logits, feature["__call__"][0], changed.get("batch_stats", {})

    def step(state: Any, teacher_variables: Any, batch: Any) -> Any:
        teacher_logits, teacher_feature, _ = forward(teacher, teacher_variables, batch["image"], False)

        def loss_fn(trained: Any) -> Any:
            params, regressor = trained
            variables = {"params": params, "batch_stats": state["batch_stats"]}
            logits, feature, batch_stats = forward(student, variables, batch["image"], True)
            ce = losses.cross_entropy(logits, batch["label"]).mean()
            kd = losses.soft_target_kl(logits, teacher_logits).mean()
            if feature.shape != teacher_feature.shape:
                feature = feature @ regressor["kernel"].reshape(feature.shape[-1], -1)
                feature += regressor["bias"].reshape((1,) * (feature.ndim - 1) + (-1,))
            hint = jnp.mean((feature - teacher_feature) ** 2)
            loss = CE_WEIGHT * ce + KD_WEIGHT * kd + HINT_WEIGHT * hint
            return loss, (batch_stats, {"loss": loss, "ce": ce, "kd": kd, "hint": hint})

        trained = (state["params"], state["regressor"])
        (_, (batch_stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        updates, opt_state = optimizer.update(grads, state["opt_state"], trained)
        params, regressor = optax.apply_updates(trained, updates)
        new = {"params": params, "regressor": regressor, "batch_stats": batch_stats, "opt_state": opt_state}
        return {**new, "step": state["step"] + 1}, metrics

    return step


def make_epoch(step: Callable[[Any, Any, Any], Any], batch_size: int) -> Callable[..., Any]:
    """Returns ``(state, teacher variables, arrays, key) -> (state, stacked metrics)``, a shuffled epoch."""

    def epoch(state: Any, teacher_variables: Any, arrays: Any, key: Any) -> Any:
        count = len(arrays["label"])
        order = jax.random.permutation(key, count)[: count // batch_size * batch_size]
        return in_order(step, state, teacher_variables, arrays, order.reshape(-1, batch_size))

    return epoch


def in_order(step: Callable[[Any, Any, Any], Any], state: Any, teacher_variables: Any, arrays: Any, order: Any) -> Any:
    """Runs steps over the batches of rows ``[steps, batch]`` in a scan."""

    def one(state: Any, rows: Any) -> Any:
        return step(state, teacher_variables, {name: value[rows] for name, value in arrays.items()})

    return jax.lax.scan(one, state, order)
