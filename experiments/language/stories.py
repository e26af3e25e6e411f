"""A Llama that writes stories, and students of a fifth of its size: what they learn from, and as drafts."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd
from experiments.kit import files
from experiments.kit.tasks import networks
from experiments.kit.tasks.task import Measure, Method, Task, Training
from experiments.language import lm
from jaxkd import data, losses, metrics, models, schemes, teachers, weights
from jaxkd.data import text
from jaxkd.types import Distiller, Objective, TrainState

LENGTH, BATCH, RATE = 128, 32, 3e-3
STORIES = {"train": 4096, "validation": 128, "test": 256}  # that the teacher writes
OWN = 128  # stories that a student writes to be measured
BOS, END = 1, 2


def student_config(teacher: models.DecoderConfig) -> models.DecoderConfig:
    """Returns the sizes of a student of a fifth of the teacher's parameters."""
    return models.DecoderConfig(
        vocabulary=teacher.vocabulary, width=48, layers=2, heads=6, key_value_heads=3, mlp_width=64, tied=True
    )


def _logits(loss: Any, **options: Any) -> Objective:
    return jaxkd.term(loss, "student/logits", "teacher/logits", **options)


FORWARD = _logits(losses.soft_target_kl, temperature=1.0)
REVERSE = _logits(losses.reverse_kl, temperature=1.0)
JSD = _logits(losses.generalized_jsd, beta=0.5)
TV = _logits(losses.total_variation)

OBJECTIVES: dict[str, tuple[Objective, float]] = {
    "forward": (FORWARD, 0.0),
    "reverse": (REVERSE, 0.0),
    "jsd": (JSD, 0.0),
    "on_policy_half_forward": (FORWARD, 0.5),
    "on_policy_half_jsd": (JSD, 0.5),
    "on_policy_reverse": (REVERSE, 1.0),
    "on_policy_jsd": (JSD, 1.0),
    "on_policy_tv": (TV, 1.0),
}
"""Objective and fraction of the student's own stories, by method."""

METHODS = {
    "student": Method("student alone", "cross-entropy on stories that the teacher sampled (T = 1)"),
    "sequence": Method(
        "sequence-level", "Kim & Rush (2016): cross-entropy on the teacher's likely stories (top-p 0.8)"
    ),
    "forward": Method("forward KL", "on the sampled stories"),
    "reverse": Method("reverse KL", "on the sampled stories"),
    "jsd": Method("JSD", "β = 0.5, on the sampled stories"),
    "on_policy_half_forward": Method("forward KL, λ = 0.5", "half of each batch is the student's own (GKD)"),
    "on_policy_half_jsd": Method("JSD, λ = 0.5", "half of each batch is the student's own (GKD)"),
    "on_policy_reverse": Method("reverse KL, λ = 1", "all stories are the student's own"),
    "on_policy_jsd": Method("JSD, λ = 1", "all stories are the student's own"),
    "on_policy_tv": Method("total variation, λ = 1", "1 − α itself, on the student's own stories"),
}


class Stories:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        if config.pretrained is None:
            raise ValueError("--pretrained: expected the folder that holds stories260K.")
        place = config.pretrained / "stories260K"
        fields, self._taught = weights.load_hf(place)
        self._config = models.DecoderConfig(**fields)
        self._tokenizer = text.load_tokenizer(place / "tokenizer_scores.json")
        self._small = student_config(self._config)
        self._teacher, self._student = lm.decoder(self._config), lm.decoder(self._small)
        self._folder = folder

    def _written(self, config: models.DecoderConfig, top_p: float | None = None) -> Any:
        build = functools.partial(models.Decoder, config)
        return models.generator(lambda rngs: build(rngs=rngs), prompt=1, length=LENGTH - 1, end=END, top_p=top_p)

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def _stories(self, split: str, top_p: float | None = None) -> dict[str, np.ndarray]:
        """Returns stories of the teacher, which are written once."""
        count, part = STORIES[split], list(STORIES).index(split)
        path = self._folder / f"{split}{'' if top_p is None else f'-top-{top_p}'}.npz"
        with files.claim(path, wait=True):
            if not path.exists():
                write = jax.jit(self._written(self._config, top_p))
                prompts, found = {"tokens": jnp.full((64, 1), BOS, jnp.int32)}, []
                keys = jax.random.split(jax.random.fold_in(jax.random.key(2024), part), count)
                for start in range(0, count, 64):
                    found.append(jax.device_get(write(self._taught, prompts, keys=keys[start : start + 64])))
                with path.with_suffix(".part").open("wb") as file:
                    arrays: Any = {name: np.concatenate([one[name] for one in found]) for name in found[0]}
                    np.savez(file, **arrays)
                path.with_suffix(".part").rename(path)
        return {**np.load(path), "index": np.arange(count, dtype=np.int32)}

    def _loader(self, split: str) -> data.Resident:
        return data.Resident(self._stories(split), 64, shuffle=False)

    def training(self, method: str, seed: int, steps: int) -> Training:
        stories = self._stories("train", 0.8 if method == "sequence" else None)
        inputs = data.Resident(stories, BATCH, seed=seed, drop_remainder=True)
        objective, fraction = OBJECTIVES.get(method, (lm.CE, 0.0))
        teacher = teachers.frozen(self._teacher, self._taught) if method in OBJECTIVES else teachers.none()
        kd: Distiller = lm.distill(self._student, teacher, objective, RATE, steps, metrics.tokens)
        if fraction:
            evaluate, kd = kd.evaluate, schemes.on_policy(kd, self._written(self._small), fraction=fraction)
            kd = kd._replace(evaluate=evaluate)
        return Training(kd, inputs, steps, {"validation": self._loader("validation")})

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        student, taught = state.student, self._taught
        found = lm.measure(self._student, student, self._teacher, taught, self._loader("test"), asked=metrics.tokens)
        keys = jax.random.split(jax.random.fold_in(jax.random.key(99), seed), OWN)
        own = jax.jit(self._written(self._small))(student, {"tokens": jnp.full((OWN, 1), BOS, jnp.int32)}, keys=keys)
        loader = data.Resident({**jax.device_get(own), "index": np.arange(OWN, dtype=np.int32)}, 64, shuffle=False)
        there = lm.measure(self._student, student, self._teacher, taught, loader, asked=metrics.tokens)
        found |= {f"own_{name}": value for name, value in there.items()}
        return found | {"own_distinct_2": metrics.distinct_n(own["label"], 2, where=own["mask"])}

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        prompts = ["Once upon a time", "Lily and Tom", "The dog"]
        return lm.continuations(self._small, state.student, prompts, self._tokenizer)

    def references(self) -> Mapping[str, Mapping[str, float]]:
        found = lm.measure(
            self._teacher, self._taught, self._teacher, self._taught, self._loader("test"), asked=metrics.tokens
        )
        return {"teacher": found | {"parameters": networks.parameters(self._taught)}}


TASK = Task(
    title="Stories: a Llama and students of a fifth of its size",
    about=(
        "Teacher: stories260K, a Llama of 260,032 parameters. Students: 2 layers of width 48. Stories to learn from "
        "and to test on are sampled from the teacher (T = 1), 127 tokens each; a student's own are sampled from it. "
        "α is the share of a student's proposals that the teacher accepts in speculative decoding."
    ),
    measures={
        "own_reverse_kl": Measure("KL on own stories (nats)", digits=3, higher=False),
        "own_acceptance": Measure("α on own stories (%)", scale=100, digits=1),
        "own_accepted_length": Measure("tokens a teacher pass", digits=2),
        "nll": Measure("test NLL (nats a token)", digits=3, higher=False),
        "forward_kl": Measure("test KL (nats)", digits=3, higher=False),
        "acceptance": Measure("test α (%)", scale=100, digits=1),
        "own_distinct_2": Measure("distinct-2 (%)", scale=100, digits=1),
    },
    methods=METHODS,
    steps=1500,
    evaluations=10,
    open=Stories,
    curve="validation/nll",
)
