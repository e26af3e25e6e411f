"""Letters to phonemes of English words: what a teacher says of each phoneme, or the words that it writes."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxkd
from experiments.kit.tasks import networks
from experiments.kit.tasks.task import Measure, Method, Task, Training
from experiments.language import lm
from jaxkd import adapters, data, losses, metrics, models, schemes, teachers
from jaxkd.data import text
from jaxkd.types import Batch, Distiller, Model, Objective, TrainState, Variables

LETTERS, PHONEMES = 22, 20  # of the longest training words, with the ends of each
TEST_LETTERS, TEST_PHONEMES = 36, 34  # every test word fits
BATCH, RATE, TEACHER_RATE = 128, 3e-3, 1e-3
TEACHER_STEPS = 1500
CURVE = 1000  # validation words
SAMPLES = 12  # words to read

SYMBOLS = (
    *("AA", "AE", "AH", "AO", "AW", "AY", "B", "CH", "D", "DH", "EH", "ER", "EY", "F", "G", "HH", "IH", "IY", "JH"),
    *("K", "L", "M", "N", "NG", "OW", "OY", "P", "R", "S", "SH", "T", "TH", "UH", "UW", "V", "W", "Y", "Z", "ZH"),
)


def sizes(vocabularies: tuple[int, int], width: int, layers: int, heads: int) -> models.EncoderDecoderConfig:
    """Returns the configuration of a transformer with rotary positions."""
    shared: dict[str, Any] = {"width": width, "layers": layers, "heads": heads}
    own: dict[str, Any] = {"types": 0, "pre_norm": True, "rope_base": 10_000.0}
    return models.EncoderDecoderConfig(
        encoder=models.EncoderConfig(vocabulary=vocabularies[0], **shared, **own),
        decoder=models.DecoderConfig(vocabulary=vocabularies[1], mlp_width=2 * width, **shared),
    )


def network(config: models.EncoderDecoderConfig) -> Model:
    """Returns a transformer that reads letters and phonemes, as a model."""
    return adapters.nnx(lambda rngs: models.EncoderDecoder(config, rngs=rngs), inputs=models.source_inputs)


Writer = Callable[[Variables, Batch], models.Generated]


def writer(config: models.EncoderDecoderConfig, start: int, end: int, length: int, beams: int = 1) -> Writer:
    """Returns a pure function that writes the phonemes of a batch's words: tokens and mask ``[batch, length]``."""
    abstract = nnx.eval_shape(lambda: models.EncoderDecoder(config, rngs=nnx.Rngs(0)))
    parts: Any = nnx.split(abstract, nnx.Param)
    graph, like = parts

    def write(variables: Variables, batch: Batch) -> models.Generated:
        params = jax.tree.map(lambda x: x, like)
        nnx.replace_by_pure_dict(params, jax.lax.stop_gradient(variables.params))
        model = nnx.merge(graph, params)
        first = jnp.full((len(batch["source"]), 1), start, jnp.int32)
        prefilled = model.prefill(batch["source"], first, batch["source_mask"], length=length)
        if beams == 1:
            return models.generate(model.next_logits, prefilled, length=length, temperature=0.0, end=end)
        found = models.beam_search(
            model.next_logits, prefilled, length=length, beams=beams, end=end, length_penalty=1.0
        )
        return models.Generated(found.tokens[:, 0], found.mask[:, 0], found.scores[:, :1])

    return write


KL = jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", temperature=1.0)
WORD = jaxkd.combine(
    ce=jaxkd.term(losses.cross_entropy, "student/logits", "batch/label", weight=0.5),
    kd=jaxkd.term(losses.soft_target_kl, "student/logits", "teacher/logits", weight=0.5, temperature=1.0),
)

PARTS: dict[str, tuple[Objective, int]] = {
    "student": (lm.CE, 0),
    "word": (WORD, 0),
    "word_only": (KL, 0),
    "sequence": (lm.CE, 1),
    "sequence_beam": (lm.CE, 4),
    "both": (WORD, 4),
}
"""Objective, and beams of the teacher's own phonemes: 0 for those of the dictionary."""

METHODS = {
    "student": Method("student alone", "cross-entropy with the dictionary's phonemes"),
    "word": Method("word-level", "Kim & Rush (2016), section 3.1: half cross-entropy, half KL, for each phoneme"),
    "word_only": Method("word-level, KL alone", "without the dictionary's phonemes as labels"),
    "sequence": Method("sequence-level, greedy", "Kim & Rush (2016), section 3.2, on the teacher's likeliest phonemes"),
    "sequence_beam": Method("sequence-level, 4 beams", "as they have it, with the mean log-probability as the score"),
    "both": Method("word- and sequence-level", "word-level, on the sequences of 4 beams"),
}


class G2p:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        if config.data_dir is None:
            raise ValueError("--data-dir: expected the folder of prepared TFDS sets, with cmudict.")
        self._folder, self._steps = folder, networks.before(TEACHER_STEPS, config)
        self._letters, self._phonemes = text.ByteTokenizer(), text.WordTokenizer(SYMBOLS)
        self._sets = {}
        for split in ("train", "validation", "test"):
            found = text.read_examples(data.source("cmudict", split, config.data_dir))["text"][0]
            # Curves need no more than a quarter of the words.
            lines = found.splitlines()[: CURVE if split == "validation" else None]
            self._sets[split] = self._set(lines, split == "train")
        vocabularies = self._letters.vocabulary, self._phonemes.vocabulary
        self._large, self._small = sizes(vocabularies, 128, 3, 4), sizes(vocabularies, 48, 1, 3)
        self._teacher, self._student = network(self._large), network(self._small)

    def _set(self, lines: Sequence[str], train: bool) -> dict[str, np.ndarray]:
        """Returns the words of a dictionary, without stress; to train on, without the few longest ones."""
        pairs = [line.split("\t") for line in lines]
        words = [(word, " ".join(one.rstrip("012") for one in phonemes.split())) for word, phonemes in pairs]
        if train:
            words = [(a, b) for a, b in words if len(a) + 2 <= LETTERS and len(b.split()) + 1 <= PHONEMES]
        shape = (LETTERS, PHONEMES) if train else (TEST_LETTERS, TEST_PHONEMES)
        made = text.translations(
            [word for word, _ in words],
            [phonemes for _, phonemes in words],
            self._letters,
            self._phonemes,
            length=shape[0],
            second_length=shape[1],
        )
        return {**made, "index": np.arange(len(words), dtype=np.int32)}

    def _loader(self, split: str) -> data.Resident:
        return data.Resident(self._sets[split], 250, shuffle=False)

    def _written(self, config: models.EncoderDecoderConfig, length: int, beams: int = 1) -> Writer:
        bos, eos = (self._phonemes.specials[name] for name in ("bos", "eos"))
        return writer(config, bos, eos, length, beams)

    def _train(self, seed: int) -> data.Resident:
        return data.Resident(self._sets["train"], BATCH, seed=seed, drop_remainder=True)

    @functools.cached_property
    def _taught(self) -> Variables:
        part = {"validation": self._loader("validation")}
        path = self._folder / "teacher.safetensors"
        return lm.trained_once(
            path, self._teacher, self._train(0), part, TEACHER_RATE, self._steps, measures=metrics.tokens
        )

    def _decoded(self, kd: Distiller, beams: int) -> Distiller:
        """Returns the distiller on the teacher's phonemes, of which each word's are found once."""
        write, bos = self._written(self._large, PHONEMES, beams), self._phonemes.specials["bos"]

        def entries(teacher: Variables, batch: Batch, *, keys: Any) -> dict[str, Any]:
            del keys  # nothing is drawn
            found = write(teacher, batch)
            first = jnp.full_like(found.tokens[:, :1], bos)
            tokens = jnp.concatenate([first, found.tokens[:, :-1]], axis=1)
            return {"tokens": tokens, "label": found.tokens, "mask": found.mask}

        return schemes.sequence_level(kd, entries, examples=len(self._sets["train"]["index"]))

    def training(self, method: str, seed: int, steps: int) -> Training:
        objective, beams = PARTS[method]
        teacher = teachers.none() if method == "student" else teachers.frozen(self._teacher, self._taught)
        kd = lm.distill(self._student, teacher, objective, RATE, steps, metrics.tokens)
        kd = self._decoded(kd, beams) if beams else kd
        return Training(kd, self._train(seed), steps, {"validation": self._loader("validation")})

    def _read(
        self, config: models.EncoderDecoderConfig, variables: Variables, test: Mapping[str, np.ndarray]
    ) -> tuple[Any, Any]:
        """Returns the phonemes that a network writes of words, and their mask, without the end."""
        write, size = jax.jit(self._written(config, TEST_PHONEMES)), min(250, len(test["source"]))
        found = []
        for start in range(0, len(test["source"]), size):
            numbers = np.minimum(np.arange(start, start + size), len(test["source"]) - 1)  # one shape, one program
            made = write(variables, {name: test[name][numbers] for name in ("source", "source_mask")})
            found.append((np.asarray(made.tokens), np.asarray(made.mask)))
        tokens, mask = (np.concatenate(part)[: len(test["source"])] for part in zip(*found, strict=True))
        return tokens, mask & (tokens < len(SYMBOLS))

    def _measured(self, config: models.EncoderDecoderConfig, model: Model, variables: Variables) -> dict[str, float]:
        test: dict[str, Any] = self._sets["test"]
        tokens, mask = self._read(config, variables, test)
        known: Any = test["mask"] & (test["label"] < len(SYMBOLS))
        distance = metrics.edit_distance(tokens, test["label"], where=mask, y_where=known)
        rates = {"error_rate": distance.sum() / known.sum(), "word_error_rate": np.mean(distance > 0)}
        taught = self._taught
        asked = lm.measure(model, variables, self._teacher, taught, self._loader("test"), asked=metrics.tokens)
        return {name: float(value) for name, value in rates.items()} | asked

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        return self._measured(self._small, self._student, state.student)

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        test = {name: value[:SAMPLES] for name, value in self._sets["test"].items()}
        tokens, mask = self._read(self._small, state.student, test)
        words = [self._letters.decode(row) for row in test["source"]]
        return [
            f"{word}: {self._phonemes.decode(row[kept])}" for word, row, kept in zip(words, tokens, mask, strict=True)
        ]

    def references(self) -> Mapping[str, Mapping[str, float]]:
        found = self._measured(self._large, self._teacher, self._taught)
        return {"teacher": found | {"parameters": networks.parameters(self._taught)}}


TASK = Task(
    title="CMUdict: letters to phonemes",
    about=(
        "Teacher: an encoder and a decoder of 3 layers of width 128 each. Students: one layer of width 48 each. The "
        "dictionary's 39 phonemes are without stress. Every method sees the same words in the same order. The phoneme "
        "error rate is that of greedy decoding of the 4,000 test words: insertions, deletions and substitutions by the "
        "number of phonemes."
    ),
    measures={
        "error_rate": Measure("phoneme error rate (%)", scale=100, digits=2, higher=False),
        "word_error_rate": Measure("word error rate (%)", scale=100, digits=1, higher=False),
        "nll": Measure("test NLL (nats a phoneme)", digits=3, higher=False),
        "forward_kl": Measure("KL to the teacher (nats)", digits=3, higher=False),
    },
    methods=METHODS,
    steps=1500,
    evaluations=5,
    open=G2p,
    curve="validation/nll",
)
