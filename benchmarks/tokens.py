"""Distillation of language models: on-policy beside TRL, composed beside hand-written, top-k caches.

Run ``pip install -e '.[experiments,peers]'`` and ``python -m benchmarks.tokens --weights DIR`` (or ``make bench``),
where DIR holds the Llama stories260K in Hugging Face's form; otherwise, random weights of its sizes are used, since the
times do not depend on their values. The student has two layers of width 48; a batch has 32 sequences of 128 tokens.

Three comparisons, whose sides take turns in one process:

- on-policy distillation (GKD, λ = 1, JSD), where each step samples the batch from the student, with TRL's trainer: the
  same prompts, lengths, weights, loss and optimizer. The losses of the same sequences must agree. That of jaxkd is the
  loss of hidden states, in chunks (`linear_generalized_jsd`);
- cross-entropy and soft targets, composed with jaxkd and written by hand (`handwritten_step`), as in `benchmarks.step`;
- an epoch with a cache of the teacher's top k (`codecs.packed_top_k`) and one of the student alone.

``--cpu-time`` compares seconds of the processor, of one thread each, instead of seconds of the clock. On a machine that
does other work, only these are comparable: with several threads, PyTorch's wait for each other. The memory of a loss of
hidden states and kernels is in `benchmarks.memory`.
"""

from __future__ import annotations

import importlib.metadata
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import rich
import tyro
from flax import nnx
from rich.table import Table

import jaxkd
from benchmarks import handwritten, step
from benchmarks.common import command, costs, make_chunk, quartiles, report, seconds_in_turn
from benchmarks.handwritten import CE_WEIGHT, KD_WEIGHT, TEMPERATURE
from jaxkd import data, losses, models, schemes, teachers, weights

TEACHER = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 172,
    "num_hidden_layers": 5,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "vocab_size": 512,
    "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "hidden_act": "silu",
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
STUDENT = TEACHER | {
    "hidden_size": 48,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
}
RATE, BETA, KEPT = 1e-3, 0.5, 16
CHUNK = 256  # tokens whose logits the on-policy loss holds at once: they fit a core's cache
BOS, FIRST_WORD = 1, 3
OURS, TRL = "jaxkd", "TRL"
COMPOSED, HANDWRITTEN = "composed", "handwritten"
ALONE, CACHED = "alone", "cached"
#: claims: lower limits of the speed ratios to TRL and to the hand-written step, upper limits of the other ratios
FASTER, SPEED, COST, EPOCH, LOSS = 3.0, 0.98, 1.005, 1.1, 1e-5

Clock = Callable[[], float]


class Sizes(NamedTuple):
    """Shapes of a batch: ``[batch, prompt + length]``."""

    batch: int = 32
    prompt: int = 8
    length: int = 120


SIZES = Sizes()


class Llama(NamedTuple):
    """A language model, its weights, and the directory that holds both."""

    config: models.DecoderConfig
    model: jaxkd.Model
    variables: Any
    directory: Path

    def build(self, rngs: nnx.Rngs) -> models.Decoder:
        return models.Decoder(self.config, rngs=rngs)


def llama(directory: Path, random: Mapping[str, Any] | None = None, seed: int = 0) -> Llama:
    """Loads a model, or makes one of random weights and writes it first."""
    if random is not None:
        config = models.DecoderConfig(**weights.hf_llama(random).config)
        built = models.Decoder(config, rngs=nnx.Rngs(seed))
        weights.save_hf(directory, jaxkd.Variables(nnx.to_pure_dict(nnx.state(built, nnx.Param))), random)
    fields, variables = weights.load_hf(directory)
    config = models.DecoderConfig(**fields)

    def build(rngs: nnx.Rngs) -> models.Decoder:
        return models.Decoder(config, rngs=rngs)

    return Llama(config, jaxkd.adapters.nnx(build, inputs=models.token_inputs), variables, directory)


def with_hidden(llama: Llama) -> Llama:
    """Returns a model that also has the inputs of its head as an output."""
    return llama._replace(model=jaxkd.adapters.nnx(llama.build, taps={"hidden": "hidden"}, inputs=models.token_inputs))


def sequences(teacher: Llama, sizes: Sizes, count: int) -> dict[str, np.ndarray]:
    """Returns sequences that the teacher writes, with next tokens as labels and a mask of those after the prompts."""
    write = models.generator(teacher.build, prompt=1, length=sizes.prompt + sizes.length - 1)
    begin = {"tokens": jnp.full((count, 1), BOS, jnp.int32)}
    made = jax.jit(write)(teacher.variables, begin, keys=jax.random.split(jax.random.key(1), count))
    after = np.arange(sizes.prompt + sizes.length) >= sizes.prompt - 1
    return {name: np.asarray(x) & after if name == "mask" else np.asarray(x) for name, x in made.items()}


def distiller(student: Llama, teacher: jaxkd.Teacher, optimizer: Any, **terms: jaxkd.Objective) -> jaxkd.Distiller:
    start = jaxkd.wrappers.pretrained(student.model, student.variables)
    objective = jaxkd.combine(**terms)
    return jaxkd.distill(start, teacher, objective, optimizer=optimizer, metrics=lambda context: {})


def on_policy(student: Llama, teacher: Llama, sizes: Sizes, rounds: int, clock: Clock) -> dict[str, Any]:
    """Returns the row of on-policy distillation, beside TRL where it is installed."""
    batch = sequences(teacher, sizes, sizes.batch)
    write = models.generator(student.build, prompt=sizes.prompt, length=sizes.length)
    jsd = jaxkd.term(
        losses.linear_generalized_jsd,
        *("student/hidden", "student_params/embed/embedding", "teacher/hidden", "teacher_params/embed/embedding"),
        beta=BETA,
        transposed=True,
        chunk=CHUNK,
    )
    frozen = teachers.frozen(with_hidden(teacher).model, teacher.variables)
    off_policy = distiller(with_hidden(student), frozen, optax.adamw(RATE, weight_decay=0.0), jsd=jsd)
    kd = schemes.on_policy(off_policy, write, fraction=1.0)
    states = [kd.init(jax.random.key(0), batch)]
    same = {OURS: jaxkd.metrics.compute(off_policy.evaluate(states[0], batch))["loss"]}
    program = jax.jit(kd.step, donate_argnums=0).lower(states[0], batch).compile()
    sampler = jax.jit(lambda variables, batch, keys: write(variables, batch, keys=keys))
    keys, variables = jax.random.split(jax.random.key(2), sizes.batch), jax.tree.map(jnp.copy, states[0].student)

    def run() -> Any:
        states[0], reported = program(states[0], batch)
        return reported

    sides = {OURS: run, "jaxkd, sampling alone": lambda: sampler(variables, batch, keys)}
    row: dict[str, Any] = {"case": "on-policy", "batch": list(sizes), "flops": {OURS: costs(program)["flops"]}}
    try:
        from benchmarks.peers import trl
    except ModuleNotFoundError as error:
        row["error"] = f"{type(error).__name__}: {error}"
    else:
        options: Any = {"beta": BETA, "rate": RATE, "threads": len(os.sched_getaffinity(0))}
        peer = trl.gkd(student.directory, teacher.directory, batch["tokens"], sizes.prompt, **options)
        same[TRL] = peer.loss(batch["tokens"])
        row["loss_difference"] = abs(same[OURS] - same[TRL])
        sides[TRL] = peer.step
    seconds = seconds_in_turn(sides, rounds, clock)
    tokens = sizes.batch * (sizes.prompt + sizes.length)
    row |= {"losses": same, "seconds": {side: statistics.median(each) for side, each in seconds.items()}}
    row["tokens_per_second"] = {side: tokens / row["seconds"][side] for side in (OURS, TRL) if side in seconds}
    if TRL in seconds:
        row["times_as_fast"] = quartiles(seconds[TRL], seconds[OURS])
    return row


def handwritten_step(
    student: Llama, teacher: Llama, optimizer: Any, own: handwritten.Losses = handwritten.OPTAX
) -> Callable[[Any, Any, Any], Any]:
    """Returns ``(state, teacher params, batch) -> (state, metrics)``: cross-entropy and soft targets, not compiled."""

    def forward(llama: Llama) -> Callable[[Any, Any], Any]:
        parts: Any = nnx.split(nnx.eval_shape(lambda: llama.build(nnx.Rngs(0))), nnx.Param, ...)
        graph, like, rest = parts

        def logits(params: Any, batch: Any) -> Any:
            filled = jax.tree.map(lambda x: x, like)
            nnx.replace_by_pure_dict(filled, params)
            return nnx.merge(graph, filled, rest)(batch["tokens"])

        return logits

    of_student, of_teacher = forward(student), forward(teacher)

    def step(state: Any, teacher_params: Any, batch: Any) -> Any:
        teacher_logits = of_teacher(teacher_params, batch)

        def loss_fn(params: Any) -> Any:
            logits = of_student(params, batch)
            ce = own.cross_entropy(logits, batch["label"]).mean()
            kd = own.soft_target_kl(logits, teacher_logits).mean()
            loss = CE_WEIGHT * ce + KD_WEIGHT * kd
            return loss, {"loss": loss, "ce": ce, "kd": kd}

        (_, metrics), grads = jax.value_and_grad(loss_fn, has_aux=True)(state["params"])
        updates, opt_state = optimizer.update(grads, state["opt_state"], state["params"])
        params = optax.apply_updates(state["params"], updates)
        return {"params": params, "opt_state": opt_state, "step": state["step"] + 1}, metrics

    return step


def composition(student: Llama, teacher: Llama, sizes: Sizes, rounds: int, clock: Clock) -> dict[str, Any]:
    """Returns the row of the composed and the hand-written step."""
    made = sequences(teacher, sizes, sizes.batch)
    batch = {name: jnp.asarray(made[name]) for name in ("tokens", "label")}
    optimizer = optax.adamw(RATE)
    ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=CE_WEIGHT)
    kd = jaxkd.term(
        losses.soft_target_kl, "student/logits", "teacher/logits", weight=KD_WEIGHT, temperature=TEMPERATURE
    )
    composed = distiller(student, teachers.frozen(teacher.model, teacher.variables), optimizer, ce=ce, kd=kd)
    state = composed.init(jax.random.key(0), batch)
    taught = teacher.variables.params
    params = jax.tree.map(jnp.copy, state.student.params)
    by_hand = {"params": params, "opt_state": optimizer.init(params), "step": jnp.int32(0)}
    same_losses = handwritten_step(student, teacher, optimizer, step.LIBRARY)
    same = jax.jit(same_losses, donate_argnums=0).lower(by_hand, taught, batch).compile()
    programs: dict[str, Any] = {
        COMPOSED: jax.jit(composed.step, donate_argnums=0).lower(state, batch).compile(),
        HANDWRITTEN: jax.jit(handwritten_step(student, teacher, optimizer), donate_argnums=0)
        .lower(by_hand, taught, batch)
        .compile(),
    }
    row: dict[str, Any] = {
        "case": "composed",
        "flops": {side: costs(program)["flops"] for side, program in programs.items()}
        | {"handwritten, the same losses": costs(same)["flops"]},
    }
    row["flops_ratio"] = row["flops"][COMPOSED] / costs(same)["flops"]
    states, metrics = {COMPOSED: state, HANDWRITTEN: by_hand}, {}
    others: dict[str, tuple[Any, ...]] = {COMPOSED: (batch,), HANDWRITTEN: (taught, batch)}

    def steps_of(side: str) -> Callable[[], Any]:
        def run() -> Any:
            states[side], metrics[side] = programs[side](states[side], *others[side])
            return states[side]

        return run

    seconds = seconds_in_turn({side: steps_of(side) for side in programs}, rounds, clock)
    last = jaxkd.metrics.compute(metrics[COMPOSED])["loss"], float(metrics[HANDWRITTEN]["loss"])
    return row | {
        "last_losses": dict(zip(programs, last, strict=True)),
        "seconds": {side: statistics.median(each) for side, each in seconds.items()},
        "speed_ratio": quartiles(seconds[HANDWRITTEN], seconds[COMPOSED]),
    }


def cached(student: Llama, teacher: Llama, sizes: Sizes, rounds: int, clock: Clock) -> dict[str, Any]:
    """Returns the row of an epoch with a cached teacher and of one of the student alone."""
    arrays = sequences(teacher, sizes, 4 * sizes.batch)
    count = len(arrays["tokens"])
    loader = data.Resident({**arrays, "index": np.arange(count, dtype=np.int32)}, sizes.batch, drop_remainder=True)
    ce = jaxkd.term(losses.cross_entropy, "student/logits", "batch/label")
    top_k = jaxkd.term(losses.top_k_kl, "student/logits", "teacher/logits/log_probs", "teacher/logits/indices")
    with tempfile.TemporaryDirectory() as directory:
        codecs = {"logits": jaxkd.cache.codecs.packed_top_k(KEPT)}
        options: Any = {"transform": None, "codecs": codecs, "progress": False}
        cache = jaxkd.cache.write_cache(Path(directory) / "c", teacher.model, teacher.variables, loader, **options)
        optimizer = optax.adamw(RATE)
        pair: dict[str, tuple[jaxkd.Distiller, Any]] = {
            ALONE: (distiller(student, teachers.none(), optimizer, ce=ce), loader),
            CACHED: (
                distiller(student, teachers.cached(cache), optimizer, ce=ce, kd=top_k),
                jaxkd.cache.attach(cache, loader),
            ),
        }
        states, programs, runs = {}, {}, {}
        for side, (kd, inputs) in pair.items():
            states[side] = kd.init(jax.random.key(0), next(iter(inputs)))
            chunk: Any = make_chunk(kd.step, inputs.gather)
            steps = inputs.steps_per_epoch
            programs[side] = chunk.lower(states[side], inputs.arrays, jnp.int32(0), length=steps).compile()

            def epoch(side: str = side, arrays: Any = inputs.arrays) -> Any:
                states[side], _ = programs[side](states[side], arrays, jnp.int32(0))
                return states[side]

            runs[side] = epoch
        seconds = seconds_in_turn(runs, rounds, clock)
        return {
            "case": "cached",
            "flops": {side: costs(program)["flops"] for side, program in programs.items()},
            "seconds": {side: statistics.median(each) for side, each in seconds.items()},
            "cached_time_over_alone": quartiles(seconds[CACHED], seconds[ALONE]),
            "cache": {"k": KEPT, "bytes_per_token": cache.bytes_per_example / (sizes.prompt + sizes.length)},
        }


def broken(rows: list[dict[str, Any]]) -> list[str]:
    """Returns the violated claims."""
    found = []
    for row in rows:
        if row.get("loss_difference", 0) > LOSS:
            found.append(f"on-policy: losses differ by {row['loss_difference']:.1e}")
        if "times_as_fast" in row and row["times_as_fast"][1] < FASTER:
            found.append(f"on-policy: {row['times_as_fast'][1]:.2f} times as fast as TRL")
        if "speed_ratio" in row and row["speed_ratio"][1] < SPEED:
            found.append(f"composed: speed ratio {row['speed_ratio'][1]:.3f}")
        if row.get("flops_ratio", 1) > COST:
            found.append(f"composed: FLOPs ratio {row['flops_ratio']:.4f}")
        if "cached_time_over_alone" in row and row["cached_time_over_alone"][1] > EPOCH:
            found.append(f"cached: {row['cached_time_over_alone'][1]:.3f} times the student alone")
    return found


def show(rows: list[dict[str, Any]]) -> None:
    """Prints a table of all sides, and the ratios."""
    table = Table(title="student 2 × 48 from a Llama of 5 × 64", title_justify="left")
    for column in ("", "side", "ms", "FLOPs"):
        table.add_column(column, justify="left" if column in ("", "side") else "right")
    for row in rows:
        for side, seconds in row["seconds"].items():
            flops = row["flops"].get(side)
            table.add_row(row["case"], side, f"{1e3 * seconds:,.1f}", f"{flops:,.4g}" if flops else "")
    rich.print(table)
    for row in rows:
        rich.print({name: x for name, x in row.items() if name not in ("seconds", "flops")})


def versions() -> dict[str, str]:
    found = {}
    for package in ("trl", "transformers", "torch"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = "not installed"
    return found


def main(
    weights: Annotated[Path | None, tyro.conf.arg(help="directory of stories260K; otherwise, random weights")] = None,
    rounds: Annotated[int, tyro.conf.arg(help="number of timed rounds")] = 11,
    sizes: Annotated[Sizes, tyro.conf.arg(help="batch, tokens of a prompt, and new tokens")] = SIZES,
    cpu_time: Annotated[bool, tyro.conf.arg(help="compare seconds of the processor, with one thread")] = False,
    out: Annotated[Path | None, tyro.conf.arg(help="JSON file to write the results to")] = None,
) -> None:
    """Compares distillations of a small Llama."""
    if cpu_time:  # before JAX and PyTorch start their threads
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    clock = time.process_time if cpu_time else time.perf_counter
    with tempfile.TemporaryDirectory() as directory:
        teacher = llama(Path(directory) / "teacher", TEACHER, 1) if weights is None else llama(weights)
        student = llama(Path(directory) / "student", STUDENT)
        rows = [compare(student, teacher, sizes, rounds, clock) for compare in (on_policy, composition, cached)]
    show(rows)
    claims = broken(rows)
    rich.print("all measured claims hold" if not claims else "violated claims: " + "; ".join(claims))
    report(rows, out, {**versions(), "clock": clock.__name__, "weights": "random" if weights is None else weights.name})


if __name__ == "__main__":
    command(main)
