"""Teacher and student of the digits, and the teacher's outputs, which are computed once."""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

import jaxkd
from experiments.kit import inputs
from experiments.kit.recipe import adam
from experiments.kit.tasks import networks
from jaxkd import adapters, data, losses, teachers, wrappers
from jaxkd.types import Model, Teacher, Variables

STAGES = ("stage1", "stage2", "stage3")
WIDTHS = {"student": (4, 8, 8), "teacher": (16, 32, 32)}
STRIDES = (2, 1, 2)
RATE, TEACHER_STEPS = 3e-3, 800
GRADIENT = "input_gradient"


class Layer(nn.Module):
    """A 3 × 3 convolution, as a dense layer of patches, and a ReLU."""

    channels: int
    stride: int

    @nn.compact
    def __call__(self, x: Float[Array, "batch height width channels"]) -> Float[Array, "batch h w c"]:
        x = nn.Dense(self.channels, kernel_init=nn.initializers.he_normal())(inputs.patches(x, self.stride))
        return nn.relu(x)


class Net(nn.Module):
    """8 × 8 pixels to maps of 4 × 4, 4 × 4 and 2 × 2 positions, flattened for a linear classifier."""

    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: Float[Array, "batch 8 8 1"]) -> Float[Array, "batch classes"]:
        for width, stride in zip(self.widths, STRIDES, strict=True):
            x = Layer(width, stride)(x)
        return nn.Dense(10)(x.reshape(x.shape[0], -1))


def network(which: str) -> Model:
    """Returns the student's or the teacher's network, with a tap of each stage after and before its ReLU."""
    taps = {stage: f"Layer_{i}" for i, stage in enumerate(STAGES)}
    taps |= {f"{stage}_preact": f"Layer_{i}/Dense_0" for i, stage in enumerate(STAGES)}
    return adapters.linen(Net(WIDTHS[which]), taps=taps)


class Taught(NamedTuple):
    """A trained teacher and its outputs for all training images, without augmentation."""

    variables: Variables  # its weights
    outputs: Mapping[str, np.ndarray]  # ``[images, ...]`` by tap
    importance: Mapping[str, Any]  # DELTA's weight of each channel, by stage

    def margin(self, stage: str) -> Array:
        """Returns OFD's margin of each channel: the mean of its negative values before the ReLU."""
        values = self.outputs[f"{stage}_preact"]
        negative = values < 0
        axes = tuple(range(values.ndim - 1))
        return jnp.asarray((values * negative).sum(axes) / np.maximum(negative.sum(axes), 1), jnp.float32)

    def table(self, taps: tuple[str, ...]) -> Teacher:
        """Returns a teacher that looks its outputs up by the index of an image."""

        def init(key: Any, batch: Any, student: Any) -> Any:
            return {tap: jnp.array(self.outputs[tap]) for tap in ("logits", *taps)}

        def apply(state: Any, batch: Any, *, key: Any) -> Any:
            return {tap: jax.lax.stop_gradient(values[batch["index"]]) for tap, values in state.items()}

        return Teacher(init, apply, lambda state, student, step: state)


def train_teacher(folder: pathlib.Path, train: data.Dataset, validation: data.Resident) -> Taught:
    """Returns the teacher, which is trained once, on all images and their labels."""
    model, ce = network("teacher"), jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    kd = jaxkd.distill(model, teachers.none(), ce, optimizer=adam(RATE, TEACHER_STEPS), metrics=lambda context: {})
    kd = jaxkd.distillers.preprocess(
        kd, train_transform=inputs.normalize_digits, eval_transform=inputs.normalize_digits
    )
    loader = data.Resident(train, 32, seed=0, drop_remainder=True)
    path = folder / "teacher.safetensors"
    variables = networks.trained_once(path, kd, loader, {"validation": validation}, steps=TEACHER_STEPS)
    images = jnp.asarray(inputs.normalize_digits({"image": train.arrays["image"]})["image"])
    outputs = outputs_of(wrappers.with_input_gradient(model), variables, images)
    labels = jnp.asarray(train.arrays["label"])
    return Taught(variables, outputs, {stage: _importance(model, variables, images, labels, stage) for stage in STAGES})


def outputs_of(model: Model, variables: Variables, images: Any) -> dict[str, np.ndarray]:
    """Returns all outputs of a network for normalized images."""
    return {name: np.asarray(value, np.float32) for name, value in _apply(model.apply, variables, images).items()}


@functools.partial(jax.jit, static_argnums=0)
def _apply(apply: Any, variables: Variables, images: Any) -> Any:
    return apply(variables, {"image": images}, key=None, train=False)[0]


def _importance(model: Model, variables: Variables, images: Any, labels: Any, stage: str) -> Array:
    """Returns DELTA's weight of each channel of a stage, from the loss without its filter."""
    layer = f"Layer_{STAGES.index(stage)}"

    @jax.jit
    @functools.partial(jax.vmap, in_axes=0)
    def loss(kept: Array) -> Array:
        filters = jax.tree.map(lambda x: x * jnp.expand_dims(kept, tuple(range(x.ndim - 1))), variables.params[layer])
        changed = variables._replace(params={**variables.params, layer: filters})
        logits = model.apply(changed, {"image": images}, key=None, train=False)[0]["logits"]
        return losses.cross_entropy(logits, labels).mean()

    channels = WIDTHS["teacher"][STAGES.index(stage)]
    everything = jnp.ones((1, channels))
    return losses.channel_importance(loss(1 - jnp.eye(channels)), loss(everything)[0])
