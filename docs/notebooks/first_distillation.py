# %% [markdown]
# # A first distillation
#
# A network of 1,210 parameters learns handwritten digits, of which 88 have a label. Alone, it has nothing else; from
# a teacher, it also learns what the teacher says about the other images. The notebook takes about a minute on a CPU.

# %%
import jax
import matplotlib.pyplot as plt
import optax

import jaxkd
from jaxkd import data, losses, models
from jaxkd.distillers import preprocess
from jaxkd.training import fit

plt.rcParams.update({"figure.dpi": 70, "axes.spines.top": False, "axes.spines.right": False})

# %% [markdown]
# ## Data
#
# `data.load("digits", ...)` gives 1,797 images of 8 × 8 pixels, in three splits. A `Resident` keeps a set on the
# device, and any entry that is added to the arrays is an entry of each batch. Here `labeled` says which labels the
# student may read.

# %%
digits = data.load("digits", "train").arrays
train = data.Resident({**digits, "labeled": digits["index"] % 11 == 0}, batch_size=64, seed=0)
held_out = data.load("digits", "validation").arrays
validation = data.Resident({**held_out, "labeled": held_out["index"] >= 0}, batch_size=64, shuffle=False)
print("images:", len(digits["label"]), " with a label:", int((digits["index"] % 11 == 0).sum()))

figure, panels = plt.subplots(1, 10, figsize=(10, 1.4))
for panel, image, label in zip(panels, digits["image"], digits["label"], strict=False):
    panel.imshow(image[..., 0], cmap="gray_r")
    panel.set(xticks=[], yticks=[], title=str(label))
plt.show()

# %% [markdown]
# ## Models and objectives
#
# A model comes from an adapter, here that of Flax linen. A term binds a loss to its inputs, which are named by their
# paths: outputs of the student and the teacher, and entries of the batch.

# %%
large = jaxkd.adapters.linen(models.MLP((128, 128), 10))
small = jaxkd.adapters.linen(models.MLP((16,), 10))

every_label = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
few_labels = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled")


def soft_targets(temperature):
    return jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=temperature)


def scale(batch):
    return {**batch, "image": batch["image"].astype("float32") / 255}


def train_model(model, teacher, objective, epochs=40):
    kd = jaxkd.distill(model, teacher, objective, optimizer=optax.adam(3e-3))
    kd = preprocess(kd, train_transform=scale, eval_transform=scale)
    return fit(kd, train, epochs=epochs, key=jax.random.key(0), eval_data=validation, progress=False)


# %% [markdown]
# ## Training
#
# The teacher learns from all labels. The student trains twice with the same initial weights and batches.

# %%
taught = train_model(large, jaxkd.teachers.none(), every_label, epochs=15)
teacher = jaxkd.teachers.frozen(large, taught.state.student)
results = {
    "student alone": train_model(small, jaxkd.teachers.none(), few_labels),
    "distilled": train_model(small, teacher, jaxkd.combine(ce=few_labels, kd=soft_targets(4.0))),
}


def curve(result, name="eval/accuracy"):
    return [row[name] for row in result.history if name in row]


print(f"teacher: {curve(taught)[-1]:.3f}")
for name, result in results.items():
    plt.plot(range(1, 41), curve(result), label=name)
    print(f"{name}: {curve(result)[-1]:.3f}")
plt.axhline(curve(taught)[-1], color="black", linestyle=":", label="teacher")
plt.gca().set(xlabel="epoch", ylabel="validation accuracy", ylim=(0.5, 1))
plt.legend()
plt.show()
# %% [markdown]
# ## The terms of the objective
#
# `history` has each term without its weight, so that terms can be compared between runs with other weights. The
# distilled student also fits the labels earlier: the images without a label help with those that have one.


# %%
def steps(result, name):
    return [row["step"] for row in result.history if name in row]


figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
for name, result, entry in (
    ("student alone", results["student alone"], "train/loss"),
    ("distilled", results["distilled"], "train/ce"),
):
    left.plot(steps(result, entry), curve(result, entry), label=name)
left.set(xlabel="step", ylabel="cross-entropy on the labels", yscale="log")
left.legend()
distilled = results["distilled"]
right.plot(steps(distilled, "train/kd"), curve(distilled, "train/kd"), color="tab:orange")
right.set(xlabel="step", ylabel="KL to the teacher, T = 4", yscale="log")
plt.show()

# %% [markdown]
# ## The temperature
#
# A temperature may be a number, a schedule of the step, or an array. `distillers.sweep` would train all of them as one
# program; here they are trained one after the other, for 20 epochs each.

# %%
temperatures = [1.0, 2.0, 4.0, 8.0]
accuracies = []
for temperature in temperatures:
    result = train_model(small, teacher, jaxkd.combine(ce=few_labels, kd=soft_targets(temperature)), epochs=20)
    accuracies.append(curve(result)[-1])
plt.figure(figsize=(5, 3))
plt.plot(temperatures, accuracies, "o-")
plt.gca().set(xlabel="temperature", ylabel="validation accuracy", ylim=(0.8, 1), xticks=temperatures)
print({temperature: round(accuracy, 3) for temperature, accuracy in zip(temperatures, accuracies, strict=True)})
plt.show()

# %% [markdown]
# One seed says little about differences of a point: the [demo](../../experiments/digits/README.md) compares methods
# over ten seeds with intervals. Next: [what the teacher knows](what_the_teacher_knows.ipynb).
