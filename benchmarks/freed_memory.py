"""The time of a CPU step whose temporary memory the process keeps or gives back.

Run ``python -m benchmarks.freed_memory`` (or ``make bench``), on Linux. Soft targets from a ResNet-20 to a ResNet-8
(batch 64), and the gradient of a transformer of two layers of width 48 (32 × 128 tokens), each in one process with
`jaxkd.training.keep_freed_memory` and one without. The processes take turns; each reports milliseconds of the processor
in user and system mode, and new pages, of one step.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import optax
import rich
import tyro

import jaxkd
from benchmarks.common import costs, report
from jaxkd import losses, models, teachers
from jaxkd.training import keep_freed_memory

STEPS = 12
LEAST_SAVING = 0.1  # claim: share of the time of a step that is saved


def resnet() -> tuple[Any, tuple[Any, ...]]:
    """Returns a distillation step and its arguments."""
    student, teacher = (jaxkd.adapters.linen(models.create(name, 100)) for name in ("resnet8", "resnet20"))
    batch = {"image": jnp.ones((64, 32, 32, 3)), "label": jnp.zeros(64, jnp.int32)}
    ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    kl = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=4.0)
    frozen = teachers.frozen(teacher, teacher.init(jax.random.key(1), batch))
    kd = jaxkd.distill(student, frozen, jaxkd.combine(ce=ce, kd=kl), optimizer=optax.sgd(0.1))
    return kd.step, (kd.init(jax.random.key(0), batch), batch)


def transformer() -> tuple[Any, tuple[Any, ...]]:
    """Returns the gradient of a decoder's loss and its arguments."""
    config = models.DecoderConfig(vocabulary=512, width=48, layers=2, heads=6, key_value_heads=3, mlp_width=64)
    model = jaxkd.adapters.nnx(lambda rngs: models.Decoder(config, rngs=rngs), inputs="tokens")
    tokens = jax.random.randint(jax.random.key(1), (32, 128), 0, 512)
    variables = model.init(jax.random.key(0), {"tokens": tokens})

    def loss(params: Any, tokens: Any) -> Any:
        outputs, _ = model.apply(variables._replace(params=params), {"tokens": tokens}, key=None, train=True)
        return losses.cross_entropy(outputs["logits"][:, :-1], tokens[:, 1:]).mean()

    return jax.grad(loss), (variables.params, tokens)


CASES = {"resnet20 to resnet8": resnet, "transformer": transformer}


def measured(case: str, keep: bool) -> dict[str, float]:
    """Returns the medians over steps, in a process that has done nothing before."""
    if keep and not keep_freed_memory():
        raise SystemExit("keep_freed_memory: this system has no glibc; there is nothing to compare.")
    step, arguments = CASES[case]()
    program = jax.jit(step).lower(*arguments).compile()
    jax.block_until_ready(program(*arguments))
    used = []
    for _ in range(STEPS):
        before = resource.getrusage(resource.RUSAGE_SELF)
        jax.block_until_ready(program(*arguments))
        after = resource.getrusage(resource.RUSAGE_SELF)
        fields = {"user_ms": "ru_utime", "system_ms": "ru_stime", "pages": "ru_minflt"}
        used.append({name: getattr(after, field) - getattr(before, field) for name, field in fields.items()})
    found = {name: statistics.median(one[name] for one in used) for name in used[0]}
    found |= {name: 1e3 * found[name] for name in ("user_ms", "system_ms")}
    return found | {
        "ms": found["user_ms"] + found["system_ms"],
        "temporary_mib": costs(program)["temporary_bytes"] / 2**20,
    }


def main(
    rounds: Annotated[int, tyro.conf.arg(help="processes of each side and case")] = 3,
    out: Annotated[Path | None, tyro.conf.arg(help="JSON file to write the results to")] = None,
    one: Annotated[str | None, tyro.conf.arg(help="a single case in this process, for the command itself")] = None,
    keep: Annotated[bool, tyro.conf.arg(help="whether that process keeps its memory")] = False,
) -> None:
    """Compares steps with and without kept memory."""
    if one is not None:
        print(json.dumps(measured(one, keep)))
        return
    rows: list[dict[str, Any]] = []
    for case in CASES:
        found: dict[bool, list[dict[str, float]]] = {False: [], True: []}
        for _ in range(rounds):
            for kept, sides in found.items():
                flag = "--keep" if kept else "--no-keep"
                command = [sys.executable, "-m", "benchmarks.freed_memory", "--one", case, flag]
                sides.append(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout))
        medians = {
            "kept" if kept else "given back": {name: statistics.median(x[name] for x in each) for name in each[0]}
            for kept, each in found.items()
        }
        ratio = medians["kept"]["ms"] / medians["given back"]["ms"]
        rows.append({"case": case, **medians, "time_over_given_back": ratio})
        rich.print(rows[-1])
    broken = [row["case"] for row in rows if row["time_over_given_back"] > 1 - LEAST_SAVING]
    rich.print("all measured claims hold" if not broken else f"violated claims: {', '.join(broken)}")
    report(rows, out)


if __name__ == "__main__":
    tyro.cli(main)
