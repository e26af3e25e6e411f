"""Students of few bits, and students of few samples."""

import pathlib
import tempfile
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

import jaxkd
from experiments.schemes.method import BOTH, LABELS, Method, Own, Part, Setting, Training, deferred, offline, taught
from jaxkd import adapters, data, schemes, teachers, weights, wrappers
from jaxkd.types import Distiller, Model, Variables

BUCKET = 256


def _template(setting: Setting, size: str) -> Variables:
    image = {"image": jnp.zeros((1, *setting.problem.shape))}
    variables: Variables = setting.problem.network(size).init(jax.random.key(0), image)
    return variables


def on_disk(bits: int, points: bool = False) -> Callable[[Variables], Mapping[str, float]]:
    """Returns a function that measures a student's file, and one in float32."""

    def measure(variables: Variables) -> Mapping[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            path, dense = (pathlib.Path(folder, f"{name}.safetensors") for name in ("student", "dense"))
            source = variables
            options: dict[str, Any] = {"bits": bits}
            if points:
                kept = jax.tree.map(lambda x: jax.lax.bitcast_convert_type(x, jnp.float32), variables.state["weights"])
                source, options = Variables(kept, variables.state["model"]), {"points": variables.params}
            weights.save_quantized(path, source, bucket=BUCKET, **options)
            weights.save_safetensors(dense, source)
            small, large, found = path.stat().st_size, dense.stat().st_size, weights.quantized_size(path)
        return {"bytes": small, "float32_bytes": large, "codes": found.codes, "scales": found.scales}

    return measure


@deferred
def straight_through(setting: Setting, bits: int) -> Training:
    student = wrappers.quantized(setting.student, bits=bits, bucket=BUCKET)
    return taught(setting, setting.steps, student, setting.teacher)._replace(extra=on_disk(bits))


@deferred
def rounded(setting: Setting, bits: int) -> Training:
    model = wrappers.quantized(setting.student, bits=bits, bucket=BUCKET)
    return offline(setting, setting.steps)._replace(model=model, extra=on_disk(bits))


@deferred
def learned(setting: Setting, bits: int) -> Training:
    """Returns the training of the codebook of a distilled student, for as long again."""

    def student(variables: Variables) -> Model:
        return wrappers.learned_codebook(setting.student, variables, bits=bits, bucket=BUCKET)

    def kd(own: Own) -> Distiller:
        model = student(own["distilled"])
        return jaxkd.distill(model, setting.teacher(own), BOTH, optimizer=setting.optimizer())

    before, measured = offline(setting, setting.steps), student(_template(setting, "student"))
    extra, needs = on_disk(bits, points=True), ("teacher", "distilled")
    found = setting.training(kd, model=measured, needs=needs, extra=extra)
    return found._replace(parts=[Part(before.make, before.steps), Part(found.make, found.steps)])


# Few samples.

SAMPLES = 50
PRUNED = "large"  # the size that remains of a teacher: the first channels of each stage


def pruned(setting: Setting, variables: Variables) -> Variables:
    """Returns the first channels of a trained teacher of the digits, as a network of fewer."""
    like = _template(setting, PRUNED)

    def cut(path: Any, x: Any, small: Any) -> Any:
        if x.ndim < 2:
            return x[tuple(slice(size) for size in small.shape)]
        # The rows of a kernel are patches of 3 × 3, or positions of the last map, by channels.
        places = 4 if "Dense_0" in jax.tree_util.keystr(path[:1]) else 9
        rows = x.reshape(places, -1, x.shape[1])[:, : small.shape[0] // places, : small.shape[1]]
        return rows.reshape(small.shape)

    params = jax.tree_util.tree_map_with_path(cut, variables.params, like.params)
    return Variables(params, jax.tree_util.tree_map_with_path(cut, variables.state, like.state))


def _few(setting: Setting) -> Callable[[data.Dataset, int], data.Resident]:
    size = min(setting.config.batch, SAMPLES // 2)
    return lambda images, seed: data.Resident(data.split(images, [SAMPLES], seed=0)[0], size, drop_remainder=True)


def few_sample(setting: Setting) -> Training:
    """Returns least squares for each convolution, from few images without labels."""
    problem = setting.problem
    taps = {f"conv{i}": f"Stage_{i}/Convolution_0" for i in range(3)}
    student, teacher = (adapters.linen(problem.module(size), taps=taps) for size in (PRUNED, "teacher"))
    widths = problem.module(PRUNED).widths  # type: ignore[attr-defined]
    layers = {
        name: schemes.transfer.FewSampleLayer(name, name, f"{path}/Dense_0/kernel", channels=tuple(range(width)))
        for (name, path), width in zip(taps.items(), widths, strict=True)
    }
    steps = SAMPLES // min(setting.config.batch, SAMPLES // 2)

    def kd(own: Own) -> Distiller:
        frozen, begun = teachers.frozen(teacher, own["teacher"]), pruned(setting, own["teacher"])
        return schemes.few_sample(student, frozen, layers, steps=steps, ridge=1e-3, variables=begun)

    return setting.training(kd, steps=3 * steps, model=problem.network(PRUNED), loader=_few(setting))


@deferred
def _tuned(setting: Setting, steps: int, objective: jaxkd.Objective) -> Training:
    """Returns the training of the pruned network on the same few images."""
    model = setting.problem.network(PRUNED)

    def kd(own: Own) -> Distiller:
        begun = model._replace(init=lambda key, batch: pruned(setting, own["teacher"]))
        return jaxkd.distill(begun, setting.teacher(own), objective, optimizer=setting.optimizer(steps))

    return setting.training(kd, steps=steps, model=model, loader=_few(setting))


def _bits(name: str, title: str, build: Callable[..., Any], *bits: int) -> dict[str, Method]:
    return {f"{name}{count}": Method(f"{count} bits, {title}", "few bits", build(count)) for count in bits}


FSKD = f"pruned teacher, least squares, {SAMPLES} images (FSKD)"

METHODS = {
    **_bits("rounded", "rounded afterwards", rounded, 2, 4, 8),
    **_bits("quantized", "straight-through", straight_through, 2, 4, 8),
    **_bits("points", "learned points", learned, 2, 4),
    "few_sample": Method(FSKD, "few samples", few_sample, _tuned(LABELS), _tuned(BOTH), problems=("digits",)),
}
