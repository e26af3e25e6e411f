"""The pretrained sentence encoder MiniLM-L6, its tokenizer and its embeddings."""

import functools
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from experiments.kit import files
from jaxkd import adapters, models, weights
from jaxkd.data import text
from jaxkd.types import Array, Batch, Model, Variables

FOLDER = "all-MiniLM-L6-v2"


def folder(config: Any) -> pathlib.Path:
    """Returns the folder of the pretrained model."""
    if config.pretrained is None or not (config.pretrained / FOLDER / "model.safetensors").exists():
        raise ValueError(
            f"--pretrained: expected a folder with {FOLDER}/model.safetensors, config.json, tokenizer.json."
        )
    return pathlib.Path(config.pretrained) / FOLDER


def texts_of(batch: Batch) -> tuple[Any, Any]:
    """Returns the tokens of a batch of sentences, and which of them exist."""
    return batch["tokens"], batch["token_mask"]


def encoder(config: models.EncoderConfig, *taps: str) -> Model:
    """Returns an encoder of sentences as a model, with some of its taps; its outputs have ``embedding``.

    The tap of the words' embeddings is ``embedded``.
    """
    paths = models.layer_taps(config)
    paths["embedded"] = paths.pop("embedding")

    def outputs(found: Any) -> Any:
        return found | {"embedding": normalized(found["pooled"])}

    return adapters.nnx(
        lambda rngs: models.Encoder(config, rngs=rngs),
        inputs=texts_of,
        outputs=outputs,
        taps={name: paths[name] for name in taps},
    )


def normalized(x: Any) -> Any:
    """Returns vectors of length 1."""
    return x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


@functools.lru_cache(maxsize=1)
def load(place: pathlib.Path) -> tuple[dict[str, Any], Variables, text.Tokenizer]:
    """Returns the configuration, the weights without BERT's pooler, and the tokenizer."""
    fields, variables = weights.load_hf(place)
    params = {name: value for name, value in variables.params.items() if name != "pooler"}
    return fields | {"pooler": False}, Variables(params), text.load_tokenizer(place / "tokenizer.json")


def rows(texts: Any, tokenizer: text.Tokenizer, length: int, **others: Any) -> dict[str, np.ndarray]:
    """Returns sentences as arrays: ``tokens`` and ``token_mask``, and others."""
    made = text.sentences(texts, tokenizer, length=length, **others)
    return {("token_mask" if name == "mask" else name): value for name, value in made.items()}


def beginning(model: Model, taught: Variables, layers: Sequence[int]) -> Model:
    """Returns an encoder that begins with some layers of trained weights, and what they lack, at random."""
    kept = weights.drop_layers(taught, layers).params

    def init(key: Array, batch: Batch) -> Variables:
        own = model.init(key, batch)
        # Copies, since a step's state is donated.
        return own._replace(params={**own.params, **jax.tree.map(jnp.array, kept)})

    return Model(init, model.apply)


def every(count: int, layers: int = 6) -> range:
    """Returns the numbers of evenly spread layers, from the first on.

    >>> list(every(3))
    [0, 2, 4]
    """
    return range(0, layers, layers // count)


def outputs_of(
    model: Model, variables: Variables, made: Mapping[str, np.ndarray], name: str, size: int = 128
) -> np.ndarray:
    """Returns an output of a model for all rows of a set."""
    forward = jax.jit(lambda v, batch: model.apply(v, batch, key=None, train=False)[0][name])
    count = len(made["tokens"])
    size, found = min(size, count), []
    for start in range(0, count, size):
        numbers = np.minimum(np.arange(start, start + size), count - 1)  # one shape, one program
        batch = {key: made[key][numbers] for key in ("tokens", "token_mask")}
        found.append(np.asarray(forward(variables, batch), np.float32))
    return np.concatenate(found)[:count]


def embeddings(
    place: pathlib.Path, made: Mapping[str, np.ndarray], keep: pathlib.Path, name: str = "embedding"
) -> np.ndarray:
    """Returns MiniLM's embeddings of sentences ``[sentences, 384]``, computed once; as ``pooled``, of any length."""
    with files.claim(keep, wait=True):
        if not keep.exists():
            fields, variables, _ = load(place)
            whole = outputs_of(encoder(models.EncoderConfig(**fields)), variables, made, name)
            with keep.with_suffix(".part").open("wb") as file:
                np.save(file, whole)
            keep.with_suffix(".part").rename(keep)
    return np.load(keep)  # type: ignore[no-any-return]
