"""Tunix's `DistillationTrainer` with its `LogitStrategy`, whose loss is the same."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from tunix.distillation import distillation_trainer, strategies
from tunix.sft import hooks

from benchmarks.peers import setting
from benchmarks.peers.setting import CLASSES, KD_WEIGHT, TEMPERATURE, Setting, Side, Weights


class _Network(nnx.Module):
    def __init__(self, weights: Weights) -> None:
        layers = []
        for kernel, bias in weights:
            layer: Any = nnx.Linear(*kernel.shape, rngs=nnx.Rngs(0))
            layer.kernel[...], layer.bias[...] = jnp.asarray(kernel), jnp.asarray(bias)
            layers.append(layer)
        self.layers = nnx.List(layers)

    def __call__(self, x: Any) -> Any:
        for layer in self.layers[:-1]:
            x = nnx.relu(layer(x))
        return self.layers[-1](x)


class _Losses(hooks.TrainingHooks):
    """Records the loss of each step."""

    def __init__(self) -> None:
        self.found: list[float] = []

    def on_train_step_end(self, train_ctx: Any, train_step: int, train_loss: float) -> None:
        self.found.append(float(train_loss))

    def on_train_start(self, train_ctx: Any) -> None: ...
    def on_train_end(self, train_ctx: Any) -> None: ...
    def on_train_step_start(self, train_ctx: Any) -> None: ...
    def on_eval_step_start(self, train_ctx: Any) -> None: ...
    def on_eval_step_end(self, train_ctx: Any, eval_loss: float) -> None: ...


def _trainer(of: Setting) -> Any:
    # Tunix's inputs, tokens and mask, hold images and labels here.
    strategy = strategies.LogitStrategy(
        student_forward_fn=lambda model, input_tokens, input_mask: model(input_tokens),
        teacher_forward_fn=lambda model, input_tokens, input_mask: model(input_tokens),
        labels_fn=lambda input_tokens, input_mask: jax.nn.one_hot(input_mask, CLASSES),
        temperature=TEMPERATURE,
        alpha=KD_WEIGHT,
    )
    return distillation_trainer.DistillationTrainer(
        _Network(setting.weights(of.student)),
        _Network(setting.weights(of.teacher)),
        strategy,
        optax.sgd(setting.LEARNING_RATE, momentum=setting.MOMENTUM),
        distillation_trainer.TrainingConfig(eval_every_n_steps=10**9),
    )


def train(of: Setting, steps: int) -> Side:
    """Builds the side of ``trainer.train`` over batches on the device."""
    batches = [
        distillation_trainer.TrainingInput(input_tokens=jnp.asarray(image), input_mask=jnp.asarray(label))
        for image, label in of.batches()
    ]
    trainer = _trainer(of)
    trainer.is_managed_externally = True  # otherwise the trainer would end after one round

    def first() -> list[float]:
        fresh, losses = _trainer(of), _Losses()
        fresh.with_training_hooks(losses)
        fresh.train(batches)
        return losses.found

    def many() -> Any:
        trainer.train(batches[number % len(batches)] for number in range(steps))
        return jax.tree.leaves(nnx.state(trainer.model, nnx.Param))

    return Side(first, many, steps)
