"""One loss of jaxkd in a training loop of one's own: Flax nnx models, `nnx.Optimizer`, and nothing else of the toolkit.

A teacher learns from the labels of 1,097 handwritten digits. Its student, a network of an eighth of the size, has the
labels of 100 of them. With `losses.soft_target_kl` it also learns from the teacher's outputs for the other images.

Prints the test accuracies and writes runs/examples/one_loss.png, the learning curves. Takes about 15 seconds on one
core of a CPU. Needs scikit-learn, which has the images, and matplotlib: `pip install "jaxkd-toolkit[experiments]"`.
"""

import pathlib

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import optax
from flax import nnx
from sklearn.datasets import load_digits

from jaxkd import losses

LABELED, STEPS, BATCH = 100, 1000, 128
images, labels = load_digits(return_X_y=True)
images = jnp.asarray(images, jnp.float32) / 16
train, test = slice(0, 1097), slice(1097, None)


class Net(nnx.Module):
    def __init__(self, width, *, rngs):
        self.hidden = nnx.Linear(64, width, rngs=rngs)
        self.head = nnx.Linear(width, 10, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.relu(self.hidden(x)))


def cross_entropy(model, teacher, index):
    return losses.cross_entropy(model(images[index]), jnp.asarray(labels)[index]).mean()


def few_labels(model, teacher, index):  # the first 100 images have a label, the others do not
    return cross_entropy(model, teacher, index % LABELED)


def distillation(model, teacher, index):
    kd = losses.soft_target_kl(model(images[index]), teacher(images[index]), temperature=4.0).mean()
    return kd + few_labels(model, teacher, index)


def fit(model, loss, teacher=None):
    """Trains a model in place; returns its test accuracies."""
    optimizer = nnx.Optimizer(model, optax.adam(2e-3), wrt=nnx.Param)

    @nnx.jit
    def step(model, optimizer, teacher, index):
        gradients = nnx.grad(loss)(model, teacher, index)  # by the first argument: the teacher gets no gradient
        optimizer.update(model, gradients)

    curve = []
    for number in range(STEPS):
        index = jax.random.randint(jax.random.fold_in(jax.random.key(0), number), (BATCH,), 0, train.stop)
        step(model, optimizer, teacher, index)
        if number % 50 == 49:
            curve.append(float(jnp.mean(model(images[test]).argmax(-1) == labels[test])))
    return curve


teacher = Net(128, rngs=nnx.Rngs(0))
curves = {"teacher": fit(teacher, cross_entropy)}
curves["student alone"] = fit(Net(16, rngs=nnx.Rngs(1)), few_labels)
curves["student, distilled"] = fit(Net(16, rngs=nnx.Rngs(1)), distillation, teacher)

for name, curve in curves.items():
    print(f"{name:<20} {100 * curve[-1]:.1f} %")
    plt.plot(range(50, STEPS + 1, 50), curve, label=name)
plt.gca().set(xlabel="step", ylabel="test accuracy", ylim=(0.5, 1))
plt.legend()
pathlib.Path("runs/examples").mkdir(parents=True, exist_ok=True)
plt.savefig("runs/examples/one_loss.png", dpi=120)
