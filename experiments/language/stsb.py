"""Sentence embeddings: MiniLM's, by students of one to three layers and by a bag of words."""

import functools
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import jaxkd
from experiments.kit import plots
from experiments.kit.tasks import minilm, networks
from experiments.kit.tasks.task import Figure, Measure, Method, Task, Training
from jaxkd import adapters, data, metrics, models, objectives, teachers
from jaxkd.data import text
from jaxkd.types import Batch, Context, Metrics, Model, Objective, TrainState, Variables

LENGTH, TEST_LENGTH = 24, 64
CAPTIONS = 10_000  # sentences of Multi30k beside those of the training pairs
BATCH = 64  # sentences
RATES = {"bag": 1e-3, "layers": 1e-4}
PUBLISHED = {12: 0.854, 6: 0.852, 3: 0.844, 1: 0.809}
"""Spearman's correlation by number of layers, of other teachers and texts: sentence-transformers' documentation."""

EMBEDDING = "student/embedding", "batch/teacher_embedding"
TRANSFERS: dict[str, Objective] = {
    # Embeddings of length 1 would make it the cosine: their squared distance is 2 - 2 cos.
    "mse": objectives.embedding_transfer("student/pooled", "batch/teacher_pooled"),
    "cosine": objectives.embedding_transfer(*EMBEDDING, mse=0.0, cosine=1.0),
    "contrastive": objectives.embedding_transfer(*EMBEDDING, mse=0.0, contrastive=1.0),
    "relational": objectives.embedding_transfer(*EMBEDDING, mse=0.0, relational=1.0),
}
"""Objectives by loss, of embeddings that were computed before."""

LOSSES = {
    "alone": ("alone", "squared error of the cosine from the score of a pair, divided by 5; 5,749 scored pairs"),
    "mse": ("MSE", "Reimers & Gurevych (2020), of the means of the last hidden states"),
    "cosine": ("cosine", "cosine distance of the embeddings"),
    "contrastive": ("InfoNCE", "which of the batch's embeddings is the teacher's of the same sentence, T = 0.07"),
    "relational": ("distances (RKD)", "Park et al. (2019), distances between the sentences of a batch"),
}
STUDENTS = {2: "2 layers", 3: "3 layers", 1: "1 layer", 0: "bag of words"}


def name_of(layers: int, loss: str) -> str:
    """Returns the name of a method.

    >>> name_of(2, "alone"), name_of(1, "alone"), name_of(0, "mse")
    ('student', 'layers1', 'bag_mse')
    """
    if loss == "alone":
        return {2: "student", 0: "bag"}.get(layers, f"layers{layers}")
    return f"{f'layers{layers}' if layers else 'bag'}_{loss}"


PARTS = {name_of(layers, loss): (layers, loss) for layers in STUDENTS for loss in LOSSES}
"""Number of layers and loss, by method."""

METHODS = {
    name: Method(
        f"{STUDENTS[layers]}, {LOSSES[loss][0]}",
        LOSSES[loss][1],
        student=STUDENTS[layers],
        baseline=name_of(layers, "alone"),
    )
    for name, (layers, loss) in PARTS.items()
}


class Bag(nnx.Module):
    """Mean of the words' embeddings, behind a linear map."""

    def __init__(self, vocabulary: int, width: int, *, rngs: nnx.Rngs) -> None:
        self.words = nnx.Embed(vocabulary, width, rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=nnx.initializers.orthogonal(), rngs=rngs)

    def __call__(self, tokens: Any, mask: Any) -> dict[str, Any]:
        """Returns the embedding ``pooled`` of texts."""
        exists = mask[..., None].astype(jnp.float32)
        total = jnp.sum(exists * self.words(tokens), axis=1)
        return {"pooled": self.out(total / jnp.maximum(jnp.sum(exists, axis=1), 1))}


def pair_texts(batch: Batch) -> tuple[Any, Any]:
    """Returns the sentences of a batch of pairs ``[batch, 2, tokens]``, one after the other."""
    tokens, mask = minilm.texts_of(batch)
    return tuple(x.reshape(-1, x.shape[-1]) for x in (tokens, mask))


def pair_cosine(embedding: Any) -> Any:
    """Returns the cosine of pairs of embeddings of length 1, which follow each other."""
    pairs = embedding.reshape(-1, 2, embedding.shape[-1])
    return jnp.sum(pairs[:, 0] * pairs[:, 1], axis=-1)


def squared_error(cosine: Any, score: Any, *, where: Any = None) -> Any:
    """Returns the squared error of the cosine of each pair."""
    error = (cosine - score) ** 2
    return error if where is None else jnp.where(where, error, 0)


def score_error(context: Context) -> Metrics:
    """Returns the mean squared error of the cosines of pairs."""
    error = squared_error(context.student["cosine"], context.batch["score"])
    return {"error": metrics.from_values(error, context.batch.get("mask"))}


def models_of(build: Callable[[nnx.Rngs], nnx.Module]) -> tuple[Model, Model]:
    """Returns a network as a model of sentences, and as one of pairs that gives their ``cosine``."""

    def embedded(found: Any) -> Any:
        return {"pooled": found["pooled"], "embedding": minilm.normalized(found["pooled"])}

    def compared(found: Any) -> Any:
        return {"cosine": pair_cosine(embedded(found)["embedding"])}

    return (
        adapters.nnx(build, inputs=minilm.texts_of, outputs=embedded),
        adapters.nnx(build, inputs=pair_texts, outputs=compared),
    )


class Stsb:
    """The opened task."""

    def __init__(self, config: Any, folder: pathlib.Path) -> None:
        if config.data_dir is None:
            raise ValueError("--data-dir: expected the folder of prepared TFDS sets: stsb_multi_mt/en, multi30k.")
        place = minilm.folder(config)
        self._fields, self._trained, tokenizer = minilm.load(place)

        def sentences(texts: Sequence[str], length: int) -> dict[str, np.ndarray]:
            return minilm.rows(texts, tokenizer, length)

        self._pairs, found = {}, {}
        for split, length in (("train", LENGTH), ("validation", LENGTH), ("test", TEST_LENGTH)):
            found[split] = text.read_examples(data.source("stsb_multi_mt/en", split, config.data_dir))
            both = [sentences(found[split][f"sentence{number}"], length) for number in (1, 2)]
            score = np.array(found[split]["similarity_score"], np.float32)
            self._pairs[split] = {k: np.stack([one[k] for one in both], axis=1) for k in both[0]} | {"score": score / 5}
        captions = text.read_examples(data.source("multi30k", "train", config.data_dir))["en"][:CAPTIONS]
        texts = list(dict.fromkeys([*found["train"]["sentence1"], *found["train"]["sentence2"], *captions]))
        made = sentences(texts, LENGTH)
        taught = minilm.embeddings(place, made, folder / "train.npy", "pooled")
        unit = np.asarray(minilm.normalized(taught))
        self._sentences = {**made, "teacher_pooled": taught, "teacher_embedding": unit}
        self._taught = minilm.embeddings(place, self._flat(), folder / "test.npy")

    def _flat(self) -> dict[str, np.ndarray]:
        """Returns the sentences of the test pairs, one after the other."""
        both = self._pairs["test"]
        return {name: both[name].reshape(-1, both[name].shape[-1]) for name in ("tokens", "token_mask")}

    @functools.lru_cache(maxsize=8)  # noqa: B019
    def _models(self, layers: int) -> tuple[Model, Model]:
        """Returns the models of sentences and of pairs, which begin with weights of MiniLM."""
        if not layers:
            pair = models_of(lambda rngs: Bag(self._fields["vocabulary"], self._fields["width"], rngs=rngs))
            return (_with_words(pair[0], self._trained), _with_words(pair[1], self._trained))
        config = models.EncoderConfig(**self._fields | {"layers": layers})
        kept = minilm.every(layers, self._fields["layers"])
        pair = models_of(lambda rngs: models.Encoder(config, rngs=rngs))
        return (minilm.beginning(pair[0], self._trained, kept), minilm.beginning(pair[1], self._trained, kept))

    def training(self, method: str, seed: int, steps: int) -> Training:
        layers, loss = PARTS[method]
        of_sentences, of_pairs = self._models(layers)
        if loss == "alone":
            model, objective = of_pairs, jaxkd.term(squared_error, "student/cosine", "batch/score")
            loader = data.Resident(self._pairs["train"], BATCH // 2, seed=seed, drop_remainder=True)
        else:
            model, objective = of_sentences, TRANSFERS[loss]
            loader = data.Resident(self._sentences, BATCH, seed=seed, drop_remainder=True)
        optimizer = networks.adam(RATES["layers" if layers else "bag"], steps)
        kd = jaxkd.distill(model, teachers.none(), objective, optimizer=optimizer, metrics=lambda context: {})

        def evaluate(state: TrainState, batch: Batch) -> Metrics:
            outputs, _ = of_pairs.apply(state.student, batch, key=None, train=False)
            return score_error(Context(outputs, {}, batch, state.step))

        splits = {"validation": data.Resident(self._pairs["validation"], 100, shuffle=False)}
        return Training(kd._replace(evaluate=evaluate), loader, steps, splits)

    def _compared(self, embedding: Any) -> tuple[Any, Any, Any]:
        """Returns the cosines of the test pairs, those of MiniLM, and the scores."""
        return pair_cosine(embedding), pair_cosine(self._taught), self._pairs["test"]["score"]

    def _measured(self, layers: int, variables: Variables) -> dict[str, float]:
        found = minilm.outputs_of(self._models(layers)[0], variables, self._flat(), "embedding")
        cosine, theirs, score = self._compared(found)
        return {
            "spearman": metrics.spearman(cosine, score),
            "agreement": metrics.spearman(cosine, theirs),
            "teacher_cosine": float(np.mean(np.sum(found * self._taught, axis=-1))),
        }

    def measure(self, method: str, seed: int, state: TrainState) -> Mapping[str, float]:
        return self._measured(PARTS[method][0], state.student)

    def samples(self, method: str, state: TrainState) -> Sequence[str]:
        return []

    def references(self) -> Mapping[str, Mapping[str, float]]:
        batch = {name: value[:1] for name, value in self._sentences.items()}
        found: dict[str, dict[str, float]] = {
            "MiniLM": {
                "spearman": metrics.spearman(*self._compared(self._taught)[1:]),
                "parameters": networks.parameters(self._trained),
            }
        }
        for layers in (3, 2, 1):
            found[f"{STUDENTS[layers]}, not trained"] = self._measured(
                layers, self._models(layers)[0].init(jax.random.key(0), batch)
            )
        for layers, value in PUBLISHED.items():
            found[f"sentence-transformers, {layers} layer{'s' if layers > 1 else ''}, published"] = {"spearman": value}
        return found


def _with_words(model: Model, trained: Variables) -> Model:
    """Returns a bag of words that begins with MiniLM's embeddings of words."""

    def init(key: Any, batch: Batch) -> Variables:
        own = model.init(key, batch)
        words = jax.tree.map(jnp.array, trained.params["embed"]["words"])
        return own._replace(params={**own.params, "words": words})

    return Model(init, model.apply)


def by_layers(results: Mapping[str, Any]) -> bytes:
    """Draws Spearman's correlation by the number of layers, a line for each loss, beside the published curve."""
    places = {layers: place for place, layers in enumerate((0, 1, 2, 3, 6, 12))}
    rows, references = results["rows"], results["references"]
    with plots.figure(1, 1, 8.5, 5.2) as (figure, axes, save):
        for number, (loss, (title, _)) in enumerate(LOSSES.items()):
            found = {
                layers: rows.get(name_of(layers, loss), {}).get("measures", {}).get("spearman") for layers in STUDENTS
            }
            known = sorted(layers for layers, one in found.items() if one and one["mean"] is not None)
            style = plots.style("student") if loss == "alone" else plots.numbered(number - 1)
            # Places side by side, so that intervals do not hide each other. A bag is no student of 0 layers: no line.
            x = [places[layers] + 0.07 * (number - 2) for layers in known]
            y = [100 * found[layers]["mean"] for layers in known]
            half = [100 * (found[layers]["half"] or 0) for layers in known]
            axes.errorbar(x, y, yerr=half, fmt=style["marker"], color=style["color"], capsize=3, label=title)
            line = [place for place, layers in enumerate(known) if layers]
            axes.plot([x[i] for i in line], [y[i] for i in line], color=style["color"], linestyle=style["linestyle"])
        untrained = {n: references.get(f"{STUDENTS[n]}, not trained", {}).get("spearman") for n in (1, 2, 3)}
        for name, curve, linestyle in (
            ("layers of MiniLM, not trained", untrained, ":"),
            ("sentence-transformers, published", PUBLISHED, "--"),
        ):
            curve = {layers: value for layers, value in sorted(curve.items()) if value is not None}
            x, y = [places[layers] for layers in curve], [100 * value for value in curve.values()]
            axes.plot(x, y, color="0.55", linestyle=linestyle, marker=".", label=name)
        if teacher := references.get("MiniLM"):
            axes.plot(
                places[6],
                100 * teacher["spearman"],
                color="0.2",
                marker="*",
                markersize=12,
                linestyle="",
                label="MiniLM, the teacher",
            )
        axes.set_xticks([*places.values()], ["bag of words", *map(str, list(places)[1:])])
        axes.set(xlabel="layers", ylabel="Spearman on the test pairs (%), 95% interval")
        axes.grid(axis="y", alpha=0.3)
        figure.legend(loc="outside right center", frameon=False, fontsize=9)
        return save()


TASK = Task(
    title="STS-B: sentence embeddings by fewer layers",
    about=(
        "Teacher: MiniLM-L6, whose embeddings of 384 numbers are computed once, of the sentences of STS-B's training "
        "pairs and of 10,000 captions of Multi30k, without any score. Students: 1, 2 or 3 of its layers, evenly spread "
        "from the first on, and a bag of words: MiniLM's embeddings of words, their mean and a linear map. A student "
        "alone learns the scores of the training pairs. Spearman's correlation is that of cosines and scores of the "
        "1,379 test pairs. Published figures are of other teachers and texts: the curve counts, not the level."
    ),
    measures={
        "spearman": Measure("Spearman (%)", scale=100, digits=1),
        "agreement": Measure("Spearman with the teacher (%)", scale=100, digits=1),
        "teacher_cosine": Measure("cosine to the teacher", digits=3),
    },
    methods=METHODS,
    steps=400,
    evaluations=5,
    open=Stsb,
    curve="validation/error",
    figures={"layers": Figure("Spearman's correlation by the number of layers", by_layers)},
)
