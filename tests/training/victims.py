"""A real distillation, small enough to be started and killed often, and the process that starts it.

Run as a script, this imports everything once, without starting a backend, and forks a process for each line of JSON
that it reads: ``{"mode": ..., "directory": ..., "log": ..., "settings": ...}``. It prints the process id, and when the
process has ended its exit status. A fork takes milliseconds, imports take seconds.
"""

import json
import logging
import os
import resource
import signal
import subprocess
import sys
import time
import traceback

import jax
import jax.numpy as jnp
import optax

import jaxkd
from jaxkd import data, losses
from jaxkd.training import fit

STEPS = 96
SETTINGS = {"steps": STEPS, "eval_every": 6, "checkpoint_every": 3, "log_every": 4, "chunk": 3, "progress": False}


def distillation():
    """Digits, an untrained teacher, and an objective with parameters, all of it reproducible bit for bit."""

    def model(width):
        def init(key, x):
            first, second = jax.random.split(key)
            return {"w": 0.1 * jax.random.normal(first, (64, width)), "v": jax.random.normal(second, (width, 10))}

        def apply(params, x):
            hidden = jnp.tanh(x.reshape(-1, 64) / 255 @ params["w"])
            return {"logits": hidden @ params["v"], "hidden": hidden}

        return jaxkd.adapters.plain(init, apply, inputs="image")

    teacher = model(12)
    weights = teacher.init(jax.random.key(5), {"image": jnp.zeros((1, 8, 8, 1))})
    objective = jaxkd.combine(
        ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=0.1),
        kd=jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.9, temperature=4.0),
        hint=jaxkd.objectives.hint("student/hidden", "teacher/hidden", weight=optax.linear_schedule(1.0, 0.0, STEPS)),
    )
    return jaxkd.distill(model(6), jaxkd.teachers.frozen(teacher, weights), objective, optimizer=optax.adam(0.01))


def run(mode, directory, train="train", **settings):
    """Calls `fit`; the last batch of a pass is ragged."""
    make = {"resident": data.Resident, "streaming": data.Stream}[mode]
    val = data.Resident(data.load("digits", "test"), batch_size=200, shuffle=False)
    settings = {**SETTINGS, "eval_data": val, "best": "eval/nll", "best_mode": "min", "tensorboard": False, **settings}
    train = make(data.load("digits", train), batch_size=128, seed=3)
    return fit(distillation(), train, key=jax.random.key(0), directory=directory, **settings)


def twice(step, *_):
    for _ in range(2):
        os.kill(os.getpid(), signal.SIGTERM)


def orphan(step, *_):
    """Forks a child that outlives the run, such as a worker that reads data."""
    if step == 6 and not os.fork():
        time.sleep(30)
        os._exit(0)


HOOKS = {"twice": twice, "orphan": orphan}


def child(command):
    log = os.open(command["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(log, stream)
    status = 1
    try:
        if "full_beyond" in command:  # as if the disk were full for files beyond this size in bytes
            logging.disable()
            resource.setrlimit(resource.RLIMIT_FSIZE, (command["full_beyond"], command["full_beyond"]))
        hook = HOOKS.get(command.get("on_eval"))
        run(command["mode"], command["directory"], on_eval=hook, **command.get("settings", {}))
        status = 0
    except SystemExit as error:
        status = error.code
    except BaseException:
        if "full_beyond" in command:
            os.ftruncate(log, 0)  # messages of orbax and asyncio may have filled the log file too
        traceback.print_exc(limit=-3, chain=False)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def serve(cache):
    jax.config.update("jax_compilation_cache_dir", cache)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)
    data.load("digits", "test")
    for line in sys.stdin:
        process = os.fork()
        if not process:
            child(json.loads(line))
        print(process, flush=True)
        print(os.waitpid(process, 0)[1], flush=True)


class Nursery:
    """Starts victims, one at a time."""

    def __init__(self, folder):
        self.folder = folder
        root = os.path.dirname(os.path.dirname(jaxkd.__file__))
        environment = {**os.environ, "PYTHONPATH": root, "XLA_FLAGS": "", "JAX_PLATFORMS": "cpu"}
        self.server = subprocess.Popen(
            [sys.executable, __file__, str(folder / "compiled")], env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip

    def start(self, mode, directory, **command):
        """Starts a process that calls `run`, and returns its id."""
        command = {"mode": mode, "directory": str(directory), "log": str(directory) + ".log", **command}
        self.server.stdin.write(json.dumps(command) + "\n")
        self.server.stdin.flush()
        return int(self.server.stdout.readline())

    def wait(self):
        """Waits for the process and returns its exit status, negative for a signal."""
        return os.waitstatus_to_exitcode(int(self.server.stdout.readline()))

    def close(self):
        self.server.kill()
        for stream in (self.server.stdin, self.server.stdout):
            stream.close()
        self.server.wait()


if __name__ == "__main__":
    serve(sys.argv[1])
