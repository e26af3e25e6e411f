"""What a composed step costs over a hand-written one: compiled FLOPs and memory (exact), traces, and time (a ratio).

Run ``python -m benchmarks.step`` (or ``make bench``). The step is cross-entropy + soft targets + a learned hint with
SGD and momentum, once composed with jaxkd and once written out with Flax, jax.numpy and optax, for an MLP (bound by
dispatch) and for a CIFAR resnet (bound by computation). Both run in turn in one process, so that whatever else the
machine does falls on both; the ratio is the median over the rounds.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
import tyro
from rich.table import Table

import jaxkd
from benchmarks.common import costs, ratio, report, seconds_in_turn
from jaxkd import losses, models

TEMPERATURE, KD_WEIGHT, CE_WEIGHT, HINT_WEIGHT = 4.0, 0.9, 0.1, 10.0


class Case(NamedTuple):
    """A pair of networks, the path of the feature that is hinted, and a batch."""

    student: nn.Module
    teacher: nn.Module
    tap: str
    batch: dict[str, np.ndarray]


def cases(resnet_batch: int) -> dict[str, Case]:
    """The two sizes at which overhead shows differently."""
    random = np.random.default_rng(0)

    def batch(size: int, shape: tuple[int, ...], classes: int) -> dict[str, np.ndarray]:
        image = random.normal(size=(size, *shape)).astype(np.float32)
        return {"image": image, "label": random.integers(0, classes, size).astype(np.int32)}

    return {
        "MLP 64-64-64-10 from 64-512-512-10, batch 128": Case(
            models.MLP((64, 64), 10), models.MLP((512, 512), 10), "Hidden_1", batch(128, (64,), 10)
        ),
        f"resnet8 from resnet20, batch {resnet_batch}": Case(
            models.create("resnet8", 100),
            models.create("resnet20", 100),
            "ResNetStage_1",
            batch(resnet_batch, (32, 32, 3), 100),
        ),
    }


def composed(case: Case, teacher_variables: Any) -> tuple[Any, Callable[..., Any]]:
    """State and step as jaxkd composes them."""
    tap = {"feature": case.tap}
    objective = jaxkd.combine(
        ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=CE_WEIGHT),
        kd=jaxkd.term(
            losses.soft_target_kl, "student/logits", "teacher/logits", weight=KD_WEIGHT, temperature=TEMPERATURE
        ),
        hint=jaxkd.objectives.hint("student/feature", "teacher/feature", weight=HINT_WEIGHT),
    )
    kd = jaxkd.distill(
        jaxkd.adapters.linen(case.student, taps=tap),
        jaxkd.teachers.frozen(jaxkd.adapters.linen(case.teacher, taps=tap), teacher_variables),
        objective,
        optimizer=optax.sgd(0.05, momentum=0.9),
    )
    return kd.init(jax.random.key(0), case.batch), kd.step


def handwritten(case: Case, teacher_variables: Any, like: Any) -> tuple[Any, Callable[..., Any]]:
    """The same step, written out by someone who needs only this one; it starts from the same parameters."""
    optimizer = optax.sgd(0.05, momentum=0.9)
    path = case.tap.split("/")

    def forward(model: nn.Module, variables: Any, image: Any, train: bool) -> Any:
        logits, changed = model.apply(
            variables,
            image,
            train=train,
            mutable=["intermediates", "batch_stats"] if train else ["intermediates"],
            capture_intermediates=lambda module, _: list(module.path) == path,
        )
        feature = changed["intermediates"]
        for name in path:
            feature = feature[name]
        return logits, feature["__call__"][0], changed.get("batch_stats", {})

    def step(state: Any, batch: Any) -> Any:
        teacher_logits, teacher_feature, _ = forward(case.teacher, state["teacher"], batch["image"], False)

        def loss_fn(trained: Any) -> Any:
            params, regressor = trained
            variables = {"params": params, "batch_stats": state["batch_stats"]}
            logits, feature, batch_stats = forward(case.student, variables, batch["image"], True)
            ce = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
            target = jax.nn.softmax(teacher_logits / TEMPERATURE)
            kl = optax.kl_divergence(jax.nn.log_softmax(logits / TEMPERATURE), target).mean() * TEMPERATURE**2
            if feature.shape != teacher_feature.shape:
                feature = feature @ regressor["kernel"].reshape(feature.shape[-1], -1) + regressor["bias"]
            hint = jnp.mean((feature - teacher_feature) ** 2)
            loss = CE_WEIGHT * ce + KD_WEIGHT * kl + HINT_WEIGHT * hint
            return loss, (batch_stats, {"loss": loss, "ce": ce, "kd": kl, "hint": hint})

        trained = (state["params"], state["regressor"])
        (_, (batch_stats, metrics)), grads = jax.value_and_grad(loss_fn, has_aux=True)(trained)
        updates, opt_state = optimizer.update(grads, state["opt_state"], trained)
        params, regressor = optax.apply_updates(trained, updates)
        new = {"params": params, "regressor": regressor, "batch_stats": batch_stats, "opt_state": opt_state}
        return {**state, **new, "step": state["step"] + 1}, metrics

    params, regressor = jax.tree.map(jnp.copy, (like.student.params, like.loss.params.get("hint", {})))
    state = {
        "params": params,
        "regressor": regressor,
        "batch_stats": jax.tree.map(jnp.copy, like.student.state.get("batch_stats", {})),
        "teacher": jax.tree.map(jnp.copy, dict(teacher_variables)),
        "opt_state": optimizer.init((params, regressor)),
        "step": jnp.zeros((), jnp.int32),
    }
    return state, step


class Measured(NamedTuple):
    """One side of a comparison."""

    flops: float
    temporary_bytes: int
    traces: int
    seconds: list[float]
    after_one: Any


def measure(
    sides: dict[str, tuple[Any, Callable[..., Any]]], batch: Any, rounds: int, steps: int
) -> dict[str, Measured]:
    """Compiles both sides, then runs them in turn: ``rounds`` times ``steps`` steps each, alternating who is first."""
    states, programs, traces = {}, {}, dict.fromkeys(sides, 0)
    for name, (state, step) in sides.items():

        def counted(state: Any, batch: Any, name: str = name, step: Callable[..., Any] = step) -> Any:
            traces[name] += 1
            return step(state, batch)

        programs[name] = jax.jit(counted, donate_argnums=0)
        states[name] = state
    on_device = jax.device_put(batch)
    compiled = {
        name: costs(jax.jit(step).lower(states[name], on_device).compile()) for name, (_, step) in sides.items()
    }
    after_one = {}
    for name in sides:  # one step, before rounding differences have had time to grow
        states[name], _ = programs[name](states[name], on_device)
        after_one[name] = jax.device_get(states[name])

    def round_of(name: str) -> Callable[[], Any]:
        def run() -> Any:
            for _ in range(steps):
                states[name], _ = programs[name](states[name], on_device)
            return states[name]

        return run

    seconds = seconds_in_turn({name: round_of(name) for name in sides}, rounds)
    return {
        name: Measured(
            compiled[name]["flops"],
            int(compiled[name]["temporary_bytes"]),
            traces[name],
            [second / steps for second in seconds[name]],
            after_one[name],
        )
        for name in sides
    }


def compare(name: str, case: Case, rounds: int, steps: int) -> dict[str, Any]:
    """One row of the result."""
    teacher_variables = case.teacher.init(jax.random.key(1), case.batch["image"][:1])
    state, step = composed(case, teacher_variables)
    sides = {"composed": (state, step), "handwritten": handwritten(case, teacher_variables, state)}
    found = measure(sides, case.batch, rounds, steps)
    ours, theirs = found["composed"], found["handwritten"]
    gap = jax.tree.map(
        lambda a, b: float(np.max(np.abs(a - b))), ours.after_one.student.params, theirs.after_one["params"]
    )
    return {
        "case": name,
        "flops": {side: m.flops for side, m in found.items()},
        "flops_ratio": ours.flops / theirs.flops,
        "temporary_bytes": {side: m.temporary_bytes for side, m in found.items()},
        "traces": {side: m.traces for side, m in found.items()},
        "milliseconds": {side: 1e3 * statistics.median(m.seconds) for side, m in found.items()},
        "time_ratio": ratio(ours.seconds, theirs.seconds),
        "parameter_difference_after_a_step": max(jax.tree.leaves(gap)),
    }


def main(
    rounds: Annotated[int, tyro.conf.arg(help="timed rounds")] = 15,
    mlp_steps: Annotated[int, tyro.conf.arg(help="steps of the MLP in a round")] = 300,
    resnet_steps: Annotated[int, tyro.conf.arg(help="steps of the resnet in a round")] = 2,
    resnet_batch: int = 32,
    out: Annotated[Path | None, tyro.conf.arg(help="also write the figures there, as JSON")] = None,
) -> None:
    """Compares a composed distillation step with a hand-written one."""
    rows = [
        compare(name, case, rounds, mlp_steps if "MLP" in name else resnet_steps)
        for name, case in cases(resnet_batch).items()
    ]
    for row in rows:
        table = Table(title=row["case"], title_justify="left")
        for column in ("", "composed", "hand-written", "ratio"):
            table.add_column(column, justify="right" if column else "left")
        for label, key, unit in (
            ("FLOPs", "flops", 1),
            ("temporary memory, MiB", "temporary_bytes", 2**20),
            ("traces", "traces", 1),
            ("milliseconds a step", "milliseconds", 1),
        ):
            ours, theirs = row[key]["composed"] / unit, row[key]["handwritten"] / unit
            ratio = row["time_ratio"] if key == "milliseconds" else ours / theirs
            table.add_row(label, f"{ours:,.7g}", f"{theirs:,.7g}", f"{ratio:.5f}" if key == "flops" else f"{ratio:.3f}")
        table.caption = (
            f"largest difference of a parameter after one step: {row['parameter_difference_after_a_step']:.1e}"
        )
        rich.print(table)
    report(rows, out)


if __name__ == "__main__":
    tyro.cli(main)
