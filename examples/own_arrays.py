"""One's own arrays and models from start to end: a set in memory, taps, an objective of three terms, `fit`, a picture.

The set is made here: points on three spirals, of which 24 have a label. The teacher, a wide network, has learned from
the labels of all 1,500 points. The student is narrow, and learns from the 24 labels, from the teacher's outputs and
from one of its features, whose 256 values a regressor matches to the student's 32.

Prints the accuracies on other points and writes runs/examples/own_arrays.png, the regions of the classes. Takes about
20 seconds on one core of a CPU. Needs `pip install "jaxkd-toolkit[experiments]"`.
"""

import pathlib

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxkd
from jaxkd import data, losses
from jaxkd.training import fit


def spirals(count, seed):
    rng = np.random.default_rng(seed)
    label, radius = rng.integers(0, 3, count), rng.uniform(0.1, 1.0, count)
    angle = 2 * np.pi * (label / 3 + 0.75 * radius) + rng.normal(0, 0.15, count)
    points = radius[:, None] * np.stack([np.cos(angle), np.sin(angle)], axis=1)
    return {"point": points.astype(np.float32), "label": label.astype(np.int32)}


class Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, point):
        x = nn.relu(nn.Dense(self.width, name="first")(point))
        x = nn.relu(nn.Dense(self.width, name="second")(x))
        return nn.Dense(3, name="head")(x)


train, test = spirals(1500, seed=0), spirals(1000, seed=1)
train["labeled"] = np.arange(1500) < 24  # any entry of a batch may say which examples a term reads
batches = data.Resident(train, batch_size=250, seed=0)

large, small = (jaxkd.adapters.linen(Net(width), inputs="point", taps={"feature": "second"}) for width in (256, 32))
every = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
few = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled")
soft = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=2.0)
hint = jaxkd.objectives.hint("student/feature", "teacher/feature", weight=0.1)


def train_model(model, teacher, **terms):
    kd = jaxkd.distill(model, teacher, jaxkd.combine(**terms), optimizer=optax.adam(3e-3))
    return fit(kd, batches, epochs=150, key=jax.random.key(0), progress=False).state


teacher_state = train_model(large, jaxkd.teachers.none(), ce=every)
teacher = jaxkd.teachers.frozen(large, teacher_state.student)
alone = train_model(small, jaxkd.teachers.none(), ce=few)
distilled = train_model(small, teacher, ce=few, kd=soft, hint=hint)


def classes(model, state, point):
    outputs, _ = model.apply(state.student, {"point": point}, key=None, train=False)
    return outputs["logits"].argmax(-1)


trained = {"teacher": (large, teacher_state), "student alone": (small, alone), "student, distilled": (small, distilled)}
grid = np.stack(np.meshgrid(*[np.linspace(-1.2, 1.2, 150, dtype=np.float32)] * 2), axis=-1)
figure, panels = plt.subplots(1, 3, figsize=(10, 3.5), layout="constrained")
for (name, (model, state)), panel in zip(trained.items(), panels, strict=True):
    print(f"{name:<20} {100 * np.mean(classes(model, state, test['point']) == test['label']):.1f} %")
    panel.contourf(grid[..., 0], grid[..., 1], classes(model, state, grid), levels=[-1, 0.5, 1.5, 3], alpha=0.4)
    known = train["point"] if name == "teacher" else train["point"][:24]
    panel.scatter(*known.T, s=5, c=train["label"][: len(known)])
    panel.set(title=name, xticks=[], yticks=[])
pathlib.Path("runs/examples").mkdir(parents=True, exist_ok=True)
figure.savefig("runs/examples/own_arrays.png", dpi=120)
