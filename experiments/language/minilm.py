"""The pretrained sentence encoder MiniLM-L6, its tokenizer and its embeddings."""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd import adapters, models, weights
from jaxkd.data import text
from jaxkd.types import Batch, Model, Variables

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
    """Returns an encoder of sentences as a model, with some of its taps; its outputs have ``embedding``."""
    paths = models.layer_taps(config)

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


def embeddings(place: pathlib.Path, made: dict[str, np.ndarray], keep: pathlib.Path) -> np.ndarray:
    """Returns MiniLM's embeddings of sentences ``[sentences, 384]``, computed once."""
    if keep.exists():
        return np.load(keep)  # type: ignore[no-any-return]
    fields, variables, _ = load(place)
    model = encoder(models.EncoderConfig(**fields))
    forward = jax.jit(lambda v, batch: model.apply(v, batch, key=None, train=False)[0]["embedding"])
    count, found = len(made["tokens"]), []
    for start in range(0, count, 128):
        rows = np.minimum(np.arange(start, start + 128), count - 1)
        batch = {name: made[name][rows] for name in ("tokens", "token_mask")}
        found.append(np.asarray(forward(variables, batch)))
    whole = np.concatenate(found)[:count]
    keep.parent.mkdir(parents=True, exist_ok=True)
    np.save(keep, whole)
    return whole
