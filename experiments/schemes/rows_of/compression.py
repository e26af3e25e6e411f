"""Students of few bits, and students of few samples."""

from __future__ import annotations

import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import jaxkd
from experiments.schemes.trials import CE, Own, Part, Row, Setting, Trial, both, offline
from jaxkd import adapters, data, schemes, teachers, weights, wrappers
from jaxkd.types import Distiller, Model, Variables

BUCKET = 256
Build = Callable[[Setting], Trial]


def on_disk(bits: int, points: bool = False) -> Callable[[Variables], Mapping[str, float]]:
    """The size of a student's file, and how many times smaller it is than in float32."""

    def measure(variables: Variables) -> Mapping[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            path = pathlib.Path(folder) / "student.safetensors"
            if points:
                kept = jax.tree.map(lambda x: jax.lax.bitcast_convert_type(x, jnp.float32), variables.state["weights"])
                source = Variables(kept, variables.state["model"])
                weights.save_quantized(path, source, codebook=variables.params, bucket=BUCKET)
            else:
                weights.save_quantized(path, variables, bits=bits, bucket=BUCKET)
            dense = pathlib.Path(folder) / "dense.safetensors"
            weights.save_safetensors(dense, variables if not points else source)
            small, large = path.stat().st_size, dense.stat().st_size
            found = weights.quantized_size(path)
        return {"bytes": small, "float32_bytes": large, "codes": found.codes, "scales": found.scales}

    return measure


def straight_through(bits: int) -> Build:
    """Soft targets with rounded weights in every step."""

    def build(setting: Setting) -> Trial:
        student = wrappers.quantized(setting.student, bits=bits, bucket=BUCKET)

        def make(own: Own) -> Distiller:
            return setting.placed(jaxkd.distill(student, setting.teacher(own), both(), optimizer=setting.optimizer()))

        return Trial(make, setting.steps, student, extra=on_disk(bits))

    return build


def rounded(bits: int) -> Build:
    """Offline distillation, rounded when it is over."""

    def build(setting: Setting) -> Trial:
        model = wrappers.quantized(setting.student, bits=bits, bucket=BUCKET)
        return offline(setting, setting.steps)._replace(model=model, extra=on_disk(bits))

    return build


def learned(bits: int) -> Build:
    """The points that the weights of a distilled student are rounded to, learned for as long again."""

    def build(setting: Setting) -> Trial:
        def student(variables: Variables) -> Model:
            return wrappers.learned_codebook(setting.student, variables, bits=bits, bucket=BUCKET)

        def make(own: Own) -> Distiller:
            optimizer = setting.problem.optimizer(setting.steps)
            return setting.placed(
                jaxkd.distill(student(own["distilled"]), setting.teacher(own), both(), optimizer=optimizer)
            )

        shape = (1, *setting.problem.shape)
        template = setting.student.init(jax.random.key(0), {"image": jnp.zeros(shape)})
        before = offline(setting, setting.steps)
        return Trial(
            make,
            setting.steps,
            student(template),
            parts=[Part(before.make, before.steps), Part(make, setting.steps)],
            needs=("teacher", "distilled"),
            extra=on_disk(bits, points=True),
        )

    return build


# --- few samples -----------------------------------------------------------------------------------------------------

SAMPLES = 50
PRUNED = "large"
"""The size that is left of a teacher: the first channels of each stage."""


def pruned(setting: Setting, variables: Variables) -> Variables:
    """The first channels of a trained teacher, as a network of fewer."""
    like = setting.problem.network(PRUNED).init(jax.random.key(0), {"image": jnp.zeros((1, *setting.problem.shape))})

    def cut(path: Any, x: Any, small: Any) -> Any:
        if x.ndim < 2:
            return x[tuple(slice(size) for size in small.shape)]
        # Rows of a kernel are patches of 3 × 3, or positions of the last map, by channels.
        places = 4 if "Dense_0" in jax.tree_util.keystr(path[:1]) else 9
        rows = x.reshape(places, -1, x.shape[1])[:, : small.shape[0] // places, : small.shape[1]]
        return rows.reshape(small.shape)

    params = jax.tree_util.tree_map_with_path(cut, variables.params, like.params)
    return Variables(params, jax.tree_util.tree_map_with_path(cut, variables.state, like.state))


def _few(images: data.Dataset, batch: int) -> Any:
    return data.Resident(data.split(images, [SAMPLES], seed=0)[0], min(batch, SAMPLES // 2), drop_remainder=True)


def few_sample(setting: Setting) -> Trial:
    """Least squares for each stage's convolution, from few images without labels."""
    problem = setting.problem
    taps = {f"conv{i}": f"Stage_{i}/Convolution_0" for i in range(3)}
    student = adapters.linen(problem.module(PRUNED), taps=taps)
    teacher = adapters.linen(problem.module("teacher"), taps=taps)
    widths = problem.module(PRUNED).widths  # type: ignore[attr-defined]
    layers = {
        name: schemes.transfer.FewSampleLayer(name, name, f"{path}/Dense_0/kernel", channels=tuple(range(width)))
        for (name, path), width in zip(taps.items(), widths, strict=True)
    }
    steps = SAMPLES // min(setting.config.batch, SAMPLES // 2)

    def make(own: Own) -> Distiller:
        kd = schemes.few_sample(
            student,
            teachers.frozen(teacher, own["teacher"]),
            layers,
            steps=steps,
            ridge=1e-3,
            variables=pruned(setting, own["teacher"]),
        )
        return setting.placed(kd)

    batch = setting.config.batch
    model = problem.network(PRUNED)
    return Trial(make, 3 * steps, model, loader=lambda images, seed: _few(images, batch))


def _tuned(objective: jaxkd.Objective) -> Callable[[Setting, int], Trial]:
    """The pruned network, trained further on the same few images."""

    def build(setting: Setting, steps: int) -> Trial:
        model = setting.problem.network(PRUNED)
        batch = setting.config.batch

        def make(own: Own) -> Distiller:
            begun = model._replace(init=lambda key, batch: pruned(setting, own["teacher"]))
            kd = jaxkd.distill(begun, setting.teacher(own), objective, optimizer=setting.optimizer(steps))
            return setting.placed(kd)

        return Trial(make, steps, model, loader=lambda images, seed: _few(images, batch))

    return build


ROWS = {
    **{f"rounded{bits}": Row(f"{bits} bits, rounded afterwards", "few bits", rounded(bits)) for bits in (2, 4, 8)},
    **{
        f"quantized{bits}": Row(f"{bits} bits, straight-through", "few bits", straight_through(bits))
        for bits in (2, 4, 8)
    },
    **{f"points{bits}": Row(f"{bits} bits, learned points", "few bits", learned(bits)) for bits in (2, 4)},
    "few_sample": Row(
        f"pruned teacher, least squares, {SAMPLES} images (FSKD)",
        "few samples",
        few_sample,
        _tuned(jaxkd.combine(ce=CE)),
        _tuned(both()),
        problems=("digits",),  # whose networks `pruned` knows how to cut
    ),
}
