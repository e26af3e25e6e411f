"""A cached teacher: its outputs are computed once, and the student trains from the files, without the teacher.

Three views of each of 1,097 digits, shifted at random, pass a convolutional teacher once, and the logits are stored in
16 bits. A student learns from the live teacher, with a new view in each epoch, and another one from the cache, with the
three views in turn. With another teacher, transform or set, `write_cache` raises `StaleCacheError` instead of training
on outputs that do not belong to the images.

Prints accuracy and time of an epoch, and writes runs/examples/cached_teacher.png, both learning curves. Takes about
a minute on one core of a CPU. Needs `pip install "jaxkd-toolkit[experiments]"`.
"""

import functools
import pathlib
import time

import flax.linen as nn
import jax
import matplotlib.pyplot as plt
import optax

import jaxkd
from jaxkd import cache, data, losses
from jaxkd.distillers import preprocess
from jaxkd.training import fit

FOLDER, EPOCHS, VIEWS = pathlib.Path("runs/examples/cached_teacher"), 20, 3


class Net(nn.Module):
    width: int

    @nn.compact
    def __call__(self, x):
        x = nn.relu(nn.Conv(self.width, (3, 3))(x))
        x = nn.relu(nn.Conv(2 * self.width, (3, 3), strides=2)(x))
        return nn.Dense(10)(x.reshape(len(x), -1))


def scale(batch):
    return {**batch, "image": batch["image"].astype("float32") / 255}


# The shift is a function of (seed, epoch, index): the teacher's view of an image can be made again for the student.
shift = data.compose(functools.partial(data.shift, seed=0), scale)
train = data.Resident(data.load("digits", "train"), batch_size=64, seed=0)
test = data.Resident(data.load("digits", "test"), batch_size=64, shuffle=False)
large, small = jaxkd.adapters.linen(Net(32)), jaxkd.adapters.linen(Net(4))


def train_model(model, teacher, batches, held_out, epochs, **terms):
    kd = jaxkd.distill(model, teacher, jaxkd.combine(**terms), optimizer=optax.adam(2e-3))
    kd = preprocess(kd, train_transform=shift, eval_transform=scale)
    run = functools.partial(fit, kd, batches, key=jax.random.key(0), eval_data=held_out, progress=False)
    run(epochs=1)  # compiles, so that the time below is that of training
    start = time.perf_counter()
    return run(epochs=epochs), (time.perf_counter() - start) / epochs


ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=0.1)
kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.9, temperature=4.0)
taught, _ = train_model(large, jaxkd.teachers.none(), train, test, 10, ce=ce)
weights = taught.state.student
live = train_model(small, jaxkd.teachers.frozen(large, weights), train, test, EPOCHS, ce=ce, kd=kl)

stored = cache.write_cache(FOLDER / "train", large, weights, train, transform=shift, views=VIEWS, progress=False)
stored_test = cache.write_cache(FOLDER / "test", large, weights, test, transform=scale, progress=False)
batches, held_out = cache.attach(stored, train), cache.attach(stored_test, test)
cached = train_model(small, jaxkd.teachers.cached(stored), batches, held_out, EPOCHS, ce=ce, kd=kl)

print(f"{'teacher':<16} {100 * taught.history[-1]['eval/accuracy']:.1f} %")
for name, (result, seconds) in {"live teacher": live, "cached teacher": cached}.items():
    curve = [row["eval/accuracy"] for row in result.history if "eval/accuracy" in row]
    print(f"{name:<16} {100 * curve[-1]:.1f} %   {1000 * seconds:.0f} ms an epoch, with its evaluation")
    plt.plot(range(1, EPOCHS + 1), curve, label=name)
plt.gca().set(xlabel="epoch", ylabel="test accuracy of the student")
plt.legend()
plt.savefig("runs/examples/cached_teacher.png", dpi=120)
