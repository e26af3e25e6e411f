"""A small distiller written by hand, inputs for it, and helpers that run and compare it."""

import csv
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxkd.metrics import from_values
from jaxkd.training import _logs, fit
from jaxkd.training._clock import SECONDS, SPEED, TOKEN_SPEED
from jaxkd.types import Distiller, ObjectiveVars, TrainState, Variables

EXAMPLES, FEATURES, BATCH = 40, 5, 8
TRACES: list[str] = []


class Resident:
    """A resident input; ``poison`` is a step whose batch holds a NaN."""

    def __init__(self, examples=EXAMPLES, batch_size=BATCH, shuffle=True, poison=None):
        x = np.random.default_rng(0).normal(size=(examples, FEATURES)).astype(np.float32)
        self.arrays = {
            "x": jnp.asarray(x),
            "y": jnp.asarray(x.sum(axis=1) + 0.1 * x[:, 0]),
            "index": jnp.arange(examples),
        }
        self.batch_size, self.examples, self.shuffle, self.poison = batch_size, examples, shuffle, poison
        self.steps_per_epoch = -(-examples // batch_size)

    def gather(self, arrays, step):
        epoch, within = jnp.divmod(jnp.int32(step), self.steps_per_epoch)
        position = within * self.batch_size + jnp.arange(self.batch_size)
        rows = position % self.examples
        if self.shuffle:
            rows = (7 * rows + 11 * epoch) % self.examples  # another order in each epoch, cheap to compile
        batch = {name: value[rows] for name, value in arrays.items()}
        if self.poison is not None:
            batch["y"] = jnp.where(step == self.poison, jnp.nan, batch["y"])
        return batch | {"mask": position < self.examples}

    def batches(self, state=None):
        raise AssertionError("resident data is gathered on the device")


class Streaming:
    """The same batches as a stream; ``on_next`` is called with the step of each batch before it is returned."""

    def __init__(self, resident, on_next=lambda step: None, end=None):
        self.resident, self.on_next, self.end = resident, on_next, end
        self.batch_size, self.steps_per_epoch = resident.batch_size, resident.steps_per_epoch
        self.gather_here = jax.jit(resident.gather)

    def batches(self, state=None):
        return StreamingIterator(self, state)


class StreamingIterator:
    def __init__(self, stream, state):
        self.stream, self.step = stream, 0 if state is None else state["step"]

    def __iter__(self):
        return self

    def __next__(self):
        self.stream.on_next(self.step)
        if self.step == self.stream.end:
            raise StopIteration
        batch = self.stream.gather_here(self.stream.resident.arrays, self.step)
        self.step += 1
        return batch

    def get_state(self):
        return {"step": self.step}


def toy():
    """Linear student with dropout and momentum, an EMA teacher, an objective with parameters and a state."""
    optimizer = optax.sgd(optax.linear_schedule(0.05, 0.01, 50), momentum=0.9)

    def init(key, batch):
        params = {"w": 0.1 * jax.random.normal(key, (batch["x"].shape[1],)), "b": jnp.zeros(())}
        loss = ObjectiveVars({"scale": jnp.ones(())}, {"seen": jnp.zeros((), jnp.int32)})
        opt_state = {"student": optimizer.init(params), "objective": optimizer.init(loss.params)}
        # The teacher shares its arrays with the student, and the key with the caller, as a careless init would.
        return TrainState(Variables(params), params, loss, opt_state, jnp.zeros((), jnp.int32), key)

    def terms(params, scale, teacher, batch, keep=1.0):
        predicted = (batch["x"] * keep) @ params["w"] + params["b"]
        taught = batch["x"] @ teacher["w"] + teacher["b"]
        return {"ce": (predicted - batch["y"]) ** 2, "kd": jax.nn.sigmoid(scale) * (predicted - taught) ** 2}

    def means(values, mask):
        found = {name: from_values(value, mask) for name, value in values.items()}
        return found | {"loss": from_values(sum(values.values()), mask)}

    def step(state, batch):
        TRACES.append("step")
        keep = jax.random.bernoulli(jax.random.fold_in(state.key, state.step), 0.8, batch["x"].shape) / 0.8

        def loss(trained):
            values = terms(trained["student"], trained["objective"]["scale"], state.teacher, batch, keep)
            metrics = means(values, batch["mask"])
            return metrics["loss"].sum / metrics["loss"].count, metrics

        trained = {"student": state.student.params, "objective": state.objective.params}
        grads, metrics = jax.grad(loss, has_aux=True)(trained)
        opt_state = {}
        for name in trained:
            updates, opt_state[name] = optimizer.update(grads[name], state.opt_state[name])
            trained[name] = optax.apply_updates(trained[name], updates)
        teacher = optax.incremental_update(trained["student"], state.teacher, 0.1)
        variables = ObjectiveVars(
            trained["objective"], {"seen": state.objective.state["seen"] + jnp.sum(batch["mask"])}
        )
        student = Variables(trained["student"])
        return TrainState(student, teacher, variables, opt_state, state.step + 1, state.key), metrics

    def evaluation(state, batch):
        values = terms(state.student.params, state.objective.params["scale"], state.teacher, batch)
        return means(values, batch["mask"]) | {"accuracy": from_values(values["ce"] < 0.5, batch["mask"])}

    return Distiller(init, step, evaluation)


KD = toy()
TRAIN, VAL = Resident(), Resident(examples=21, shuffle=False)
STEPS = 36
# Intervals of rows, evaluations, checkpoints and chunks that do not divide each other.
SETTINGS = {"steps": STEPS, "eval_every": 6, "checkpoint_every": 12, "log_every": 5, "chunk": 4, "progress": False}


def data(mode, **kwargs):
    return TRAIN if mode == "resident" else Streaming(TRAIN, **kwargs)


def run(mode, directory=None, train=None, **settings):
    train = data(mode) if train is None else train
    settings = {
        **SETTINGS,
        "eval_data": VAL,
        "best": "eval/loss",
        "best_mode": "min",
        "config": {"lr": 0.05},
        **settings,
    }
    if directory is None:
        settings |= {"checkpoint_every": None}
    return fit(KD, train, directory=directory, key=jax.random.key(1), **settings)


def bits(tree):
    def raw(x):
        return jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x

    return [np.asarray(raw(x)).tobytes() for x in jax.tree.leaves(tree)]


def timeless(rows):
    """Rows without the columns that depend on the clock."""
    return [{name: value for name, value in row.items() if name not in (SECONDS, SPEED, TOKEN_SPEED)} for row in rows]


def files(directory):
    """Content of a run's log files, without wall clock times; checkpoints are not included."""
    from tensorboardX.proto.event_pb2 import Event

    found = {"config.json": (directory / "config.json").read_text()}
    with (directory / "metrics.csv").open() as file:
        found["metrics.csv"] = timeless(csv.DictReader(file))
    found["metrics.jsonl"] = timeless(map(json.loads, (directory / "metrics.jsonl").read_text().splitlines()))
    events = []
    for path in (directory / "tensorboard").glob("events.*"):
        for record in _logs.event_records(path.read_bytes()):
            event = Event.FromString(record[12:-4])
            values = [value for value in event.summary.value if value.tag not in (SECONDS, SPEED, TOKEN_SPEED)]
            events += [(event.step, value.tag, value.simple_value) for value in values]
    return found | {"events": sorted(events)}


class Died(Exception):
    pass


def raising(at, error):
    def hook(step, *_):
        if step == at:
            raise error

    return hook
