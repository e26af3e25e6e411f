"""One distillation for one process or several, which `hosts_test.py` runs in its own process and in others.

Run as a script, this is one of the hosts: ``python hosts.py WHAT RANK PORT DIRECTORY``.
"""

import faulthandler
import os
import pathlib
import pickle
import socket
import subprocess
import sys
import time

HOSTS, DEVICES_OF_HOST = 2, 2
DEVICES = HOSTS * DEVICES_OF_HOST
SECONDS = 400  # after which a host gives up; an idle machine needs a fraction of it
ROOT = pathlib.Path(__file__).parents[2]

if __name__ == "__main__":
    what, rank, port, directory = sys.argv[1], int(sys.argv[2]), sys.argv[3], pathlib.Path(sys.argv[4])
    os.environ["XLA_FLAGS"] = f"--xla_force_host_platform_device_count={DEVICES_OF_HOST}"
    os.environ["JAX_PLATFORMS"] = "cpu"

import flax.linen as nn  # noqa: E402
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from jax.sharding import Mesh  # noqa: E402

import jaxkd  # noqa: E402
from jaxkd import losses, objectives, parallel  # noqa: E402
from jaxkd.data import Resident, Stream, from_arrays, from_batches  # noqa: E402

FEATURES, CLASSES, EXAMPLES, WIDTH = 6, 3, 40, 8
PARTS = ((8, 8), (7, 5), (8, 1), (6, 0))  # rows of each batch on the first and the second host
ROWS = DEVICES_OF_HOST * 4  # to which both parts are padded


class Network(nn.Module):
    norm: bool

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(WIDTH, name="hidden")(x)
        if self.norm:
            x = nn.BatchNorm(use_running_average=not train, momentum=0.5, name="norm")(x)
        return nn.Dense(CLASSES, name="head")(nn.relu(x))


def distiller(weight=0.5):
    """A distiller with BatchNorm, a relation over the global batch, and a memory bank."""
    teacher = jaxkd.adapters.linen(Network(norm=False), taps={"hidden": "hidden"}, inputs="image")
    student = jaxkd.adapters.linen(Network(norm=True), taps={"norm": "norm"}, inputs="image")
    labels = np.arange(EXAMPLES) % CLASSES
    objective = jaxkd.combine(
        ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=weight),
        distance=jaxkd.term(losses.distance_relation, "student/norm", "teacher/hidden", weight=5.0),
        crd=objectives.crd("student/norm", "teacher/hidden", labels, negatives=5, embedding_size=4, weight=0.1),
    )
    frozen = jaxkd.teachers.frozen(teacher, teacher.init(jax.random.key(7), rows(np.arange(1))))
    return jaxkd.distill(student, frozen, objective, optimizer=optax.sgd(0.05, momentum=0.9))


def rows(index):
    x = np.random.default_rng(0).normal(size=(EXAMPLES, FEATURES)).astype(np.float32)
    return {"image": x[index], "label": (index % CLASSES).astype(np.int32), "index": index.astype(np.int32)}


def parts(step):
    """Each host's part of the batch of a step."""
    order = np.random.default_rng(step).permutation(EXAMPLES)
    first, second = PARTS[step % len(PARTS)]
    return rows(order[:first]), rows(order[first : first + second])


def mesh():
    return Mesh(np.array(jax.devices()[:DEVICES]), ("data",))


def train(placed, batch_of, steps=4, evaluates=True):
    """Trains; returns the state as NumPy arrays, and the metrics of every step and of an evaluation."""
    state, found = placed.init(jax.random.key(1), batch_of(0)), []
    for step in range(steps):
        state, metrics = placed(state, batch_of(step))
        found.append(jaxkd.metrics.compute(metrics))
    if evaluates:
        found.append(jaxkd.metrics.compute(placed.evaluate(state, batch_of(1))))
    return whole(state), found


def whole(state):
    def of(x):
        x = jax.random.key_data(x) if jnp.issubdtype(x.dtype, jax.dtypes.prng_key) else x
        if not x.is_fully_addressable:
            x = jax.jit(lambda x: x, out_shardings=jax.sharding.NamedSharding(x.sharding.mesh, jax.P()))(x)
        return np.asarray(x)

    return jax.tree.map(of, state)


def data_of(shift=0):
    every = rows(np.arange(EXAMPLES))
    return from_arrays(every["image"] + shift, every["label"])


def inputs():
    """Inputs to train and to evaluate on. Neither divides over the devices, and no batch is full."""
    data = data_of()
    return Stream(data, batch_size=16, seed=3), Resident(data, batch_size=14, shuffle=False)


def own_batches(rank, shift=0):
    """Batches of which each host makes a part of its own, of another size than the other host's."""

    def epoch_batches(epoch):
        mine = (parts(1 + step)[rank] for step in range(3))
        return ({**part, "image": part["image"] + np.float32(shift)} for part in mine)

    return from_batches(epoch_batches, steps_per_epoch=3)


def fit(directory, placed, train_on, evaluate_on=None, steps=72, **settings):
    """On a stream, hosts agree on a stop every 16 steps and stop 16 steps later, hence the number of steps."""
    if directory is not None:
        settings |= {"directory": directory, "checkpoint_every": 8, "tensorboard": False}
    every = None if evaluate_on is None else 8
    return jaxkd.training.fit(
        placed, train_on, steps=steps, key=jax.random.key(1), eval_data=evaluate_on, eval_every=every, log_every=3,
        progress=False, **settings,
    )  # fmt: skip


def refusal(attempt):
    try:
        attempt()
    except ValueError as error:
        return str(error)
    raise AssertionError("it was not refused")


def start(what, directory):
    """Starts the hosts; a ``with`` block ends them in any case."""
    return _Hosts(what, directory)


class _Hosts:
    def __init__(self, what, directory):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        environment = {
            **os.environ,
            "JAX_COMPILATION_CACHE_DIR": str(directory.parent / "programs"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
            "PYTHONPATH": str(ROOT),
        }
        self.processes = [
            subprocess.Popen(
                [sys.executable, __file__, what, str(rank), str(port), str(directory)],
                env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            )
            for rank in range(HOSTS)
        ]  # fmt: skip

    def __enter__(self):
        return self

    def wait(self, seconds=SECONDS + 60):
        """Waits for the hosts; returns their output and exit statuses."""
        said = [process.communicate(timeout=seconds)[0] for process in self.processes]
        return said, [process.returncode for process in self.processes]

    def __exit__(self, *_):
        for process in self.processes:
            process.kill()
            process.communicate()


def _numbers(directory):
    """Trains with each placement, each host giving its own rows, and collects refusals."""
    rank, kd = jax.process_index(), distiller()
    data, other = inputs()
    mine = lambda step: parts(step)[rank]  # noqa: E731
    sharded = parallel.shard(kd, mesh(), rules={"": parallel.fully_sharded(mesh(), min_size=8)}, replicas=1)
    state = sharded.init(jax.random.key(1), mine(0))
    found = {
        "shard": train(parallel.shard(kd, mesh()), mine),
        "fully sharded": train(sharded, mine, evaluates=False),
        "pmap": train(parallel.pmap(kd), lambda step: parts(0)[rank], steps=2, evaluates=False),
        "kernel": {shard.data.shape for shard in state.student.params["hidden"]["kernel"].addressable_shards},
        "too many": refusal(lambda: sharded.step(state, rows(np.arange(ROWS + 1)))),
        "alone": refusal(lambda: fit(None, parallel.jit(kd), data)),
        "wrapped": refusal(lambda: fit(None, jaxkd.distillers.preprocess(parallel.shard(kd, mesh())), data)),
        "resident": whole(fit(None, parallel.shard(kd, mesh()), other, steps=2).state),
    }
    (directory / f"{rank}.pickle").write_bytes(pickle.dumps(found))


def _fit(directory):
    """Runs `fit` slowly enough to be stopped."""
    result = fit(directory, parallel.shard(distiller(), mesh()), *inputs(), on_eval=lambda *_: time.sleep(0.3))
    (directory / f"{jax.process_index()}.pickle").write_bytes(pickle.dumps((whole(result.state), result.history)))


def _identity(directory):
    """Calls `fit` again on its directory, and with other runs, which every host has to refuse."""
    data, _ = inputs()
    sharded = lambda **options: parallel.shard(distiller(**options), mesh())  # noqa: E731
    own = lambda shift=0: fit(  # noqa: E731
        directory / "own", sharded(), own_batches(jax.process_index(), shift), steps=3
    )
    first, again = (fit(directory, sharded(), data, steps=16) for _ in range(2))
    longer = fit(directory, sharded(), data, steps=24)
    found = {
        "equal": whole(first.state),
        "again": whole(again.state),
        "steps": int(whole(longer.state).step),
        "weight": refusal(lambda: fit(directory, sharded(weight=0.25), data, steps=24)),
        "data": refusal(lambda: fit(directory, sharded(), Stream(data_of(1), batch_size=16, seed=3), steps=24)),
        "own": [whole(own().state) for _ in range(2)],
        "own data": refusal(lambda: own(shift=1)),
    }
    (directory / f"{jax.process_index()}.pickle").write_bytes(pickle.dumps(found))


if __name__ == "__main__":
    faulthandler.dump_traceback_later(SECONDS, exit=True)  # prints where a host waits for the other
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.config.update("jax_disable_most_optimizations", True)
    jax.distributed.initialize(f"127.0.0.1:{port}", HOSTS, rank)
    {"numbers": _numbers, "fit": _fit, "identity": _identity}[what](directory)
