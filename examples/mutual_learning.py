"""Deep mutual learning: two networks teach each other from random weights, without a trained teacher.

A small and a larger network learn from the labels of 200 digits, each for itself, and then the same two as peers: each
also learns from the other's outputs, on all 1,097 images. A scheme is a distiller like any other, so that the same
`fit` trains it.

Prints the test accuracies and writes runs/examples/mutual_learning.png, the learning curves. Takes about half a minute
on one core of a CPU. Needs `pip install "jaxkd-toolkit[experiments]"`.
"""

import pathlib

import jax
import matplotlib.pyplot as plt
import optax

import jaxkd
from jaxkd import data, losses, models, schemes, wrappers
from jaxkd.training import fit

EPOCHS = 60
arrays = {split: dict(data.load("digits", split).arrays) for split in ("train", "test")}
for of_split in arrays.values():
    of_split["image"] = of_split["image"].astype("float32") / 255
arrays["train"]["labeled"] = arrays["train"]["index"] % 11 < 2  # about 200 of the images have a label
arrays["test"]["labeled"] = arrays["test"]["index"] >= 0  # and all of the test
train = data.Resident(arrays["train"], batch_size=64, seed=0)
test = data.Resident(arrays["test"], batch_size=64, shuffle=False)

ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", where="batch/labeled")
kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0)
networks = {
    "small": jaxkd.adapters.linen(models.MLP((16,), 10)),
    "large": jaxkd.adapters.linen(models.MLP((64, 64), 10)),
}


def run(kd):
    return fit(kd, train, epochs=EPOCHS, key=jax.random.key(0), eval_data=test, progress=False)


def curve(result, name):
    return [row[f"eval/{name}"] for row in result.history if f"eval/{name}" in row]


alone = {}
for name, network in networks.items():
    alone[name] = curve(run(jaxkd.distill(network, jaxkd.teachers.none(), ce, optimizer=optax.adam(2e-3))), "accuracy")
peers = run(schemes.mutual(networks, own=ce, mutual=kl, optimizer=optax.adam(2e-3)))
together = {name: curve(peers, f"accuracy/{name}") for name in networks}

# Each peer leaves as a plain network, without the other one.
one = wrappers.get_member(peers.state.student, "small")
outputs, _ = networks["small"].apply(one, arrays["test"], key=None, train=False)
accuracy = (outputs["logits"].argmax(-1) == arrays["test"]["label"]).mean()

print("test accuracy    alone     with a peer")
for name, color in zip(networks, ("tab:blue", "tab:orange"), strict=True):
    print(f"{name:<16} {100 * alone[name][-1]:.1f} %    {100 * together[name][-1]:.1f} %")
    plt.plot(range(1, EPOCHS + 1), alone[name], "--", color=color, label=f"{name}, alone")
    plt.plot(range(1, EPOCHS + 1), together[name], color=color, label=f"{name}, with a peer")
print(f"the small peer, taken out of the pair: {100 * accuracy:.1f} %")
plt.gca().set(xlabel="epoch", ylabel="test accuracy", ylim=(0.6, 1))
plt.legend()
pathlib.Path("runs/examples").mkdir(parents=True, exist_ok=True)
plt.savefig("runs/examples/mutual_learning.png", dpi=120)
