# %% [markdown]
# # What the teacher knows
#
# A label names one class. A teacher's output also says which other classes an image resembles, and how sure it is.
# This notebook looks at these soft targets, at the calibration of teacher and students, and at the similarity of their
# layers (CKA). It takes about a minute on a CPU.

# %%
import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax

import jaxkd
from jaxkd import Context, data, losses, metrics, models
from jaxkd.distillers import preprocess
from jaxkd.training import fit

plt.rcParams.update({"figure.dpi": 70, "axes.spines.top": False, "axes.spines.right": False})

digits = data.load("digits", "train").arrays
train = data.Resident({**digits, "labeled": digits["index"] % 11 == 0}, batch_size=64, seed=0)
test = data.load("digits", "test").arrays


def scale(batch):
    return {**batch, "image": batch["image"].astype("float32") / 255}


# Taps name the outputs of submodules, by their paths.
taps = {"hidden0": "Hidden_0", "hidden1": "Hidden_1"}
large = jaxkd.adapters.linen(models.MLP((64, 64), 10), taps=taps)
small = jaxkd.adapters.linen(models.MLP((16, 16), 10), taps=taps)
every_label = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
few_labels = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled")
soft = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0)


def train_model(model, teacher, objective, epochs):
    kd = jaxkd.distill(model, teacher, objective, optimizer=optax.adam(3e-3))
    return fit(preprocess(kd, train_transform=scale), train, epochs=epochs, key=jax.random.key(0), progress=False).state


def outputs_of(model, state):
    return model.apply(state.student, scale(test), key=None, train=False)[0]


taught = train_model(large, jaxkd.teachers.none(), every_label, 15)
teacher = jaxkd.teachers.frozen(large, taught.student)
alone = train_model(small, jaxkd.teachers.none(), few_labels, 40)
distilled = train_model(small, teacher, jaxkd.combine(ce=few_labels, kd=soft), 40)
outputs = {"teacher": outputs_of(large, taught), "student alone": outputs_of(small, alone)}
outputs["distilled"] = outputs_of(small, distilled)
for name, output in outputs.items():
    print(f"{name}: test accuracy {np.mean(output['logits'].argmax(-1) == test['label']):.3f}")

# %% [markdown]
# ## Soft targets
#
# The four test images of which the teacher is least sure. With a temperature of 4, the smaller probabilities are
# raised, so that they count in the loss as well.

# %%
logits = outputs["teacher"]["logits"]
unsure = np.argsort(jax.nn.softmax(logits).max(-1))[:4]
figure, panels = plt.subplots(2, 4, figsize=(10, 4), height_ratios=[1, 1.2])
for column, number in enumerate(unsure):
    panels[0, column].imshow(test["image"][number, ..., 0], cmap="gray_r")
    panels[0, column].set(xticks=[], yticks=[], title=f"label {test['label'][number]}")
    for offset, temperature in ((-0.2, 1.0), (0.2, 4.0)):
        shares = jax.nn.softmax(logits[number] / temperature)
        panels[1, column].bar(np.arange(10) + offset, shares, 0.4, label=f"T = {temperature:.0f}")
    panels[1, column].set(xticks=range(10), ylim=(0, 1))
panels[1, 0].legend()
panels[1, 0].set(ylabel="probability")
plt.show()
# %% [markdown]
# The mean of the soft targets over the images of each class shows which digits the teacher finds alike. No label has
# this information. The diagonal is left out.

# %%
shares = np.asarray(jax.nn.softmax(logits / 4.0))
mean = np.stack([shares[test["label"] == label].mean(0) for label in range(10)])
np.fill_diagonal(mean, np.nan)
plt.figure(figsize=(4.5, 3.8))
plt.imshow(mean, cmap="viridis")
plt.colorbar(label="mean soft target, T = 4")
plt.gca().set(xlabel="class", ylabel="label", xticks=range(10), yticks=range(10))
plt.show()
# %% [markdown]
# ## Calibration
#
# A model is calibrated if, of the predictions with a confidence of 0.8, 80 % are right. `metrics.calibration` gives
# the expected calibration error over 15 bins; the plot shows five.

# %%
figure, axes = plt.subplots(figsize=(4.5, 3.8))
axes.plot([0, 1], [0, 1], ":", color="black")
for name, output in outputs.items():
    context = Context({"logits": output["logits"]}, {}, {"label": jnp.asarray(test["label"])}, step=0)
    error = metrics.compute(metrics.calibration(context))["ece"]
    confidence = np.asarray(jax.nn.softmax(output["logits"]).max(-1))
    right = np.asarray(output["logits"].argmax(-1)) == test["label"]
    bins = np.minimum((5 * confidence).astype(int), 4)
    filled = [number for number in range(5) if (bins == number).sum() >= 5]
    points = [(confidence[bins == number].mean(), right[bins == number].mean()) for number in filled]
    axes.plot(*np.transpose(points), "o-", label=f"{name}: ECE {100 * error:.1f} %")
axes.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
axes.legend()
plt.show()
# %% [markdown]
# ## Similar layers
#
# Linear CKA compares two layers of any widths by what they say about the same images: 1 for features that agree up to
# a rotation and a scale. The soft targets constrain the logits alone, and the hidden layers follow.

# %%
layers = ["hidden0", "hidden1", "logits"]
figure, panels = plt.subplots(1, 2, figsize=(8, 3.4))
for panel, name in zip(panels, ("student alone", "distilled"), strict=True):
    cka = np.array([[metrics.linear_cka(outputs[name][a], outputs["teacher"][b]) for b in layers] for a in layers])
    panel.imshow(cka, vmin=0, vmax=1, cmap="viridis")
    panel.set(title=name, xticks=range(3), yticks=range(3), xticklabels=layers, yticklabels=layers)
    panel.set(xlabel="teacher", ylabel="student")
    for (row, column), value in np.ndenumerate(cka):
        panel.text(column, row, f"{value:.2f}", ha="center", va="center", color="white" if value < 0.6 else "black")
    print(f"{name}: CKA of the logits with the teacher's {cka[2, 2]:.2f}")
figure.tight_layout()
plt.show()
