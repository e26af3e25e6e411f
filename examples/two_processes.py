"""Two processes train one student, as two hosts do: `jax.distributed`, a mesh over both, a sharded state.

Without arguments the script starts itself twice, with a coordinator on the loopback interface; on CPUs, gloo exchanges
the arrays. On two hosts you start it once on each: `python two_processes.py HOST:PORT 0` and `HOST:PORT 1`. Every
process reads its half of each batch, stores its half of the large arrays, and gets the same metrics.

Prints one line a process, with equal accuracies, and writes runs/examples/two_processes.png, the learning curve, and
checkpoints and metrics of both trainings below runs/examples/two_processes, which is emptied first. Takes about a
minute on one core of a CPU. Needs `pip install "jaxkd-toolkit[experiments]"`.
"""

import os
import pathlib
import shutil
import socket
import subprocess
import sys

FOLDER = pathlib.Path("runs/examples/two_processes").absolute()


def launch():
    """Starts both processes and waits for them; returns the first exit status that is not 0, or 0."""
    shutil.rmtree(FOLDER, ignore_errors=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        coordinator = f"127.0.0.1:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_CPU_COLLECTIVES_IMPLEMENTATION": "gloo"}
    environment["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"  # two simulated devices a process
    command = [sys.executable, os.path.abspath(__file__), coordinator]
    processes = [subprocess.Popen([*command, str(rank)], env=environment) for rank in range(2)]
    return max(process.wait() for process in processes)


def main(coordinator, rank):
    import jax

    jax.distributed.initialize(coordinator, num_processes=2, process_id=rank)  # before any other use of JAX
    import optax

    import jaxkd
    from jaxkd import data, losses, models, parallel

    mesh = jax.make_mesh((jax.device_count(),), ("data",))
    large, small = jaxkd.adapters.linen(models.MLP((256,), 10)), jaxkd.adapters.linen(models.MLP((32,), 10))
    train = data.Stream(data.load("digits", "train"), batch_size=64, seed=0)  # the global batch; each process its half
    test = data.Resident(data.load("digits", "test"), batch_size=64, shuffle=False)
    ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0)

    def scale(batch):
        return {**batch, "image": batch["image"].astype("float32") / 255}

    def train_model(model, teacher, objective, directory):
        kd = jaxkd.distill(model, teacher, objective, optimizer=optax.adam(2e-3))
        kd = jaxkd.distillers.preprocess(kd, train_transform=scale, eval_transform=scale)
        whole = parallel.fully_sharded(mesh, min_size=1024)  # larger arrays are split over the mesh
        placed = parallel.shard(kd, mesh, rules={"": whole})
        options = {"eval_data": test, "directory": directory, "progress": False}
        return jaxkd.training.fit(placed, train, epochs=10, key=jax.random.key(0), **options)

    taught = train_model(large, jaxkd.teachers.none(), ce, FOLDER / "teacher").state.student
    result = train_model(small, jaxkd.teachers.frozen(large, taught), jaxkd.combine(ce=ce, kd=kl), FOLDER / "student")
    curve = [row["eval/accuracy"] for row in result.history if "eval/accuracy" in row]
    where = f"process {jax.process_index()} of {jax.process_count()}, {jax.device_count()} devices"
    print(f"{where}: test accuracy {100 * curve[-1]:.1f} %\n", end="", flush=True)  # in one piece
    if rank == 0:
        import matplotlib.pyplot as plt

        plt.plot(range(1, len(curve) + 1), curve)
        plt.gca().set(xlabel="epoch", ylabel="test accuracy of the student")
        plt.savefig(FOLDER.with_suffix(".png"), dpi=120)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], int(sys.argv[2])) if len(sys.argv) == 3 else launch())
