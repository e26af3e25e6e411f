"""Tokens per second of on-policy distillation with Llamas of random weights.

The student continues prompts and learns from what it wrote with the generalized Jensen-Shannon divergence of hidden
states; sampling, teacher and update are one program. Sampling alone is measured beside.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

import jaxkd
from benchmarks.accelerator.options import Options
from benchmarks.accelerator.record import Case, memory_stats
from benchmarks.accelerator.timing import Box, seconds_of
from jaxkd import losses, models, schemes, teachers


class Sizes(NamedTuple):
    """Sizes of a comparison.

    Attributes:
      name: name in the results.
      student: width, layers and heads of the student.
      teacher: those of the teacher.
      words: size of the vocabulary.
      batch: sequences of a step.
      prompt: tokens of a prompt.
      length: new tokens of a sequence.
      least_bytes: memory of a device that is known to suffice.
    """

    name: str
    student: tuple[int, int, int]
    teacher: tuple[int, int, int]
    words: int
    batch: int
    prompt: int
    length: int
    least_bytes: int


SIZES = (
    Sizes("0.2 B from 1.1 B", (1024, 12, 16), (2048, 20, 32), 32_000, 32, 128, 128, 30 * 2**30),
    Sizes("0.1 B from 0.2 B", (768, 8, 12), (1024, 12, 16), 32_000, 16, 128, 128, 0),
)
TINY = Sizes("tiny", (16, 1, 2), (32, 1, 4), 64, 2, 4, 4, 0)


def cases(options: Options) -> list[Case]:
    """Returns the largest sizes that the device holds, or tiny ones."""
    available = memory_stats().get("bytes_limit", 0)
    sizes = TINY if options.rehearse else next(each for each in SIZES if available >= each.least_bytes)
    return [
        Case(f"{sizes.name}, sampling alone", 10, functools.partial(sampling, sizes)),
        Case(f"{sizes.name}, whole step", 20, functools.partial(step, sizes)),
    ]


def llama(sizes: tuple[int, int, int], words: int) -> Any:
    """Returns the constructor of a decoder that computes in bfloat16."""
    width, layers, heads = sizes
    config = models.DecoderConfig(
        vocabulary=words,
        width=width,
        layers=layers,
        heads=heads,
        key_value_heads=max(1, heads // 4),
        mlp_width=4 * width,
        tied=True,
        dtype=jnp.bfloat16,
    )
    return lambda rngs: models.Decoder(config, rngs=rngs)


def _model(build: Any) -> jaxkd.Model:
    return jaxkd.adapters.nnx(build, taps={"hidden": "hidden"}, inputs=models.token_inputs)


def _made(sizes: Sizes) -> tuple[Any, Any, dict[str, Any]]:
    """Returns the student's model and variables, and a batch."""
    model = _model(llama(sizes.student, sizes.words))
    tokens = jax.random.randint(jax.random.key(3), (sizes.batch, sizes.prompt + sizes.length), 0, sizes.words)
    batch = {"tokens": tokens, "label": jnp.roll(tokens, -1, axis=1), "mask": tokens >= 0}
    batch |= {
        "segments": jnp.ones_like(tokens),
        "positions": jnp.broadcast_to(jnp.arange(tokens.shape[1]), tokens.shape),
    }
    return model, jax.jit(model.init)(jax.random.key(0), {"tokens": tokens[:1, :8]}), batch


def _generator(sizes: Sizes) -> Any:
    build = llama(sizes.student, sizes.words)
    return models.generator(build, prompt=sizes.prompt, length=sizes.length)


def _row(found: Any, sizes: Sizes, compiled: float) -> dict[str, Any]:
    row = found.row()
    new, whole = sizes.batch * sizes.length, sizes.batch * (sizes.prompt + sizes.length)
    return {
        **{"new_tokens_per_second": new / row["seconds"], "tokens_per_second": whole / row["seconds"]},
        **{"compile_seconds": compiled, **row, "sizes": sizes._asdict()},
    }


def sampling(sizes: Sizes, box: Box) -> dict[str, Any]:
    """Returns the time in which the student writes a batch."""
    _, variables, batch = _made(sizes)
    write, keys, start = _generator(sizes), jax.random.split(jax.random.key(1), sizes.batch), box.clock()
    program = jax.jit(lambda variables, batch, keys: write(variables, batch, keys=keys)).lower(variables, batch, keys)
    compiled = program.compile()
    spent = box.clock() - start
    found = seconds_of(lambda: compiled(variables, batch, keys), box.part(8), rounds=3)
    return _row(found, sizes, spent)


def step(sizes: Sizes, box: Box) -> dict[str, Any]:
    """Returns the time of a step in which the student writes every sequence."""
    student, variables, batch = _made(sizes)
    teacher = _model(llama(sizes.teacher, sizes.words))

    def narrow(key: Any) -> Any:
        return jax.tree.map(lambda x: x.astype(jnp.bfloat16), teacher.init(key, {"tokens": batch["tokens"][:1, :8]}))

    weights = jax.jit(narrow)(jax.random.key(2))
    jsd = jaxkd.term(
        losses.linear_generalized_jsd,
        *("student/hidden", "student_params/embed/embedding", "teacher/hidden", "teacher_params/embed/embedding"),
        beta=0.5,
        transposed=True,
    )
    off_policy = jaxkd.distill(
        jaxkd.wrappers.pretrained(student, variables),
        teachers.frozen(teacher, weights),
        jaxkd.combine(jsd=jsd),
        optimizer=optax.adamw(1e-4),
        metrics=lambda context: {},
    )
    kd = schemes.on_policy(off_policy, _generator(sizes), fraction=1.0)
    state, start = [kd.init(jax.random.key(0), batch)], box.clock()
    program = jax.jit(kd.step, donate_argnums=0).lower(state[0], batch).compile()
    spent = box.clock() - start

    def run() -> Any:
        state[0], metrics = program(state[0], batch)
        return metrics

    parameters = {
        name: sum(x.size for x in jax.tree.leaves(tree))
        for name, tree in (("student", variables), ("teacher", weights))
    }
    row = _row(seconds_of(run, box.part(12), rounds=3), sizes, spent)
    return row | {"parameters": parameters, "process_peak_bytes": memory_stats().get("peak_bytes_in_use")}
