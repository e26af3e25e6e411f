"""Reads and writes directories of Hugging Face models."""

from __future__ import annotations

import json
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxkd._core import checks, files, tree_paths
from jaxkd.types import Variables
from jaxkd.weights import _fitting, _tree, layouts
from jaxkd.weights import names as names_lib
from jaxkd.weights._huggingface._bert import bert_form, bert_heads
from jaxkd.weights._huggingface._form import HuggingFace
from jaxkd.weights._huggingface._gpt2 import hf_gpt2
from jaxkd.weights._huggingface._llama import hf_llama
from jaxkd.weights._huggingface._mobilebert import hf_mobilebert
from jaxkd.weights._safetensors_file import write_arrays
from jaxkd.weights._torch_state import fit_torch_to, load_torch

Path = str | os.PathLike[str]

_CONFIG, _WEIGHTS = "config.json", "model.safetensors"
_FILES = (_WEIGHTS, f"{_WEIGHTS}.index.json", "pytorch_model.bin")


def load_hf_config(directory: Path) -> dict[str, Any]:
    """Reads the ``config.json`` of a directory of a Hugging Face model.

    Raises:
      FileNotFoundError: the directory or the file does not exist.
      ValueError: it is not a JSON object.
    """
    file = pathlib.Path(directory) / _CONFIG
    try:
        hf_config = json.loads(file.read_bytes())
    except ValueError as error:
        raise ValueError(f"{file}: expected JSON: {error}.") from error
    if not isinstance(hf_config, dict):
        raise ValueError(f"{file}: expected a JSON object, got {checks.kind(hf_config)}.")
    return hf_config


def load_hf(directory: Path) -> tuple[dict[str, Any], Variables]:
    """Reads a directory of a Hugging Face model: BERT, MobileBERT, GPT-2 or Llama.

    It holds ``config.json`` and the arrays in ``model.safetensors``, in several files with
    ``model.safetensors.index.json``, or in ``pytorch_model.bin``, which PyTorch reads. Which heads a BERT has is known
    by the arrays. Dtypes are those of the file; see `cast`.

    Args:
      directory: path of the directory.

    Returns:
      The fields of the configuration of the model in `jaxkd.models` (``DecoderConfig``, or ``EncoderConfig`` for BERT
      and MobileBERT) and its weights, for `jaxkd.wrappers.pretrained` and `jaxkd.teachers.frozen`.

    Raises:
      FileNotFoundError: the directory lacks the configuration, the arrays, or one of several files.
      ImportError: the arrays are a pickle, and PyTorch is not installed.
      ValueError: the kind of model, or an entry of the configuration, is unknown; or a file is damaged.
      WeightsError: the arrays are not those of the configuration, or a tied head differs from the embedding.

    A teacher: the directory of a language model in one call, then the module and its weights.

    >>> from jaxkd import adapters, models, teachers, weights
    >>> def language_model(directory):
    ...     config, variables = weights.load_hf(directory)
    ...     decoder = models.Decoder
    ...     model = adapters.nnx(lambda rngs: decoder(models.DecoderConfig(**config), rngs=rngs), inputs="tokens")
    ...     return teachers.frozen(model, variables)
    """
    directory, hf_config = pathlib.Path(directory), load_hf_config(directory)
    file = next((directory / name for name in _FILES if (directory / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{directory}: expected one of {', '.join(_FILES)}, found none.")
    arrays = load_torch(file)
    form = _form_of(hf_config, arrays)
    arrays = _without_copies(arrays, form)
    renamed = names_lib.renamer(form.names)
    dtypes = {place: array.dtype for name, array in arrays.items() for place in renamed(name)}
    template = _template(form, dtypes)
    return form.config, fit_torch_to(template, arrays, names=form.names, layouts=form.layouts, ignore=form.ignore)


def save_hf(directory: Path, source: Any, hf_config: Mapping[str, Any], *, overwrite: bool = False) -> None:
    """Writes weights as a directory of a Hugging Face model, which Transformers loads.

    ``model.safetensors`` has the names, layouts and dtypes that ``save_pretrained`` of the class in ``architectures``
    writes; a tied head is not repeated. ``config.json`` is the given one. Files of a tokenizer are not written. With
    several processes, the first one writes.

    Args:
      directory: path of the directory, which may exist.
      source: a `TrainState`, whose student is written, or weights in any form that `flatten` takes.
      hf_config: the content of ``config.json``: of the teacher, from `load_hf_config`, with the sizes of the student.
      overwrite: replace existing files.

    Raises:
      FileExistsError: a file exists and ``overwrite`` is False.
      ValueError: the kind of model, or an entry of the configuration, is unknown.
      WeightsError: the arrays are not those of the configuration.

    >>> import tempfile, jax.numpy as jnp
    >>> sizes = {"hidden_size": 4, "num_attention_heads": 1, "num_hidden_layers": 1, "intermediate_size": 2}
    >>> hf_config = {"model_type": "llama", "vocab_size": 3, "max_position_embeddings": 9, **sizes}
    >>> shapes = hf_llama(hf_config).shapes
    >>> student = Variables(tree_paths.nest({name: jnp.ones(shape) for name, shape in shapes.items()}))
    >>> directory = pathlib.Path(tempfile.mkdtemp())
    >>> save_hf(directory, student, hf_config)
    >>> load_hf(directory)[1].params["layers"][0]["mlp"]["gate"]["kernel"].shape
    (4, 2)
    """
    directory, variables = pathlib.Path(directory), _tree.student_of(source)
    if jax.tree.leaves(variables.state):
        raise _fitting.WeightsError(f"expected parameters alone, got also state: {', '.join(variables.state)}.")
    given = {"/".join(path[1:]): array for path, array in _tree.on_host(variables).items()}
    form = _form_of(hf_config, given)
    template = _template(form, {name: array.dtype for name, array in given.items()})
    arrays = tree_paths.by_path(_fitting.fit_to(template, given).params)
    made: dict[str, np.ndarray] = {}
    written: set[str] = set()
    for name, places in form.names.items():
        if not written & set(places):  # the first name is the one to write
            made[name] = _out({place: arrays[place] for place in places}, form)
            written |= set(places)
    if jax.process_index():
        return
    directory.mkdir(exist_ok=True)
    with files.replacing(directory / _CONFIG, overwrite=overwrite) as temporary:
        write_arrays(directory / _WEIGHTS, made, {"format": "pt"}, overwrite=overwrite)
        temporary.write_text(json.dumps(dict(hf_config), indent=2) + "\n", encoding="utf-8")


def _form_of(hf_config: Mapping[str, Any], names: Iterable[str]) -> HuggingFace:
    """Returns the form of a model by the names of its arrays, in a file or in a model."""
    model_type = hf_config.get("model_type")
    checks.known(str(model_type), _FORMS, "config.json, model_type")
    return _FORMS[str(model_type)](hf_config, names)


_FORMS: dict[str, Callable[[Mapping[str, Any], Iterable[str]], HuggingFace]] = {
    "bert": lambda hf_config, names: bert_form(hf_config, bert_heads(names)),
    "gpt2": lambda hf_config, names: hf_gpt2(hf_config),
    "llama": lambda hf_config, names: hf_llama(hf_config),
    "mobilebert": lambda hf_config, names: hf_mobilebert(hf_config),
}


def _template(form: HuggingFace, dtypes: Mapping[str, Any]) -> Variables:
    """Returns the shapes of a model, with the floating-point dtypes of given arrays."""
    leaves = {}
    for place, shape in form.shapes.items():
        dtype = dtypes.get(place, jnp.float32)
        path = tuple(int(part) if part.isdigit() else part for part in place.split("/"))
        leaves[path] = jax.ShapeDtypeStruct(shape, dtype if jnp.issubdtype(dtype, jnp.floating) else jnp.float32)
    return Variables(tree_paths.nest(leaves))


def _without_copies(arrays: Mapping[str, np.ndarray], form: HuggingFace) -> dict[str, np.ndarray]:
    """Returns the arrays of a file without those that repeat another one.

    Files that name a shared array once may keep either of its names.

    Raises:
      WeightsError: two arrays that the configuration ties differ.
    """
    arrays = dict(arrays)
    for copy, place in form.copies.items():
        if copy not in arrays:
            continue
        repeated = arrays.pop(copy)
        names = [name for name, places in form.names.items() if places == (place,)]
        original = next((name for name in names if name in arrays), None)
        if original is None:
            arrays[names[0]] = repeated
        elif not np.array_equal(arrays[original], repeated):
            raise _fitting.WeightsError(
                f"{copy!r}: expected the values of {original!r}, because the configuration ties them "
                "(tie_word_embeddings), got others. If the model has a head of its own, set tie_word_embeddings to "
                "false in config.json."
            )
    return arrays


def _out(arrays: Mapping[str, Any], form: HuggingFace) -> np.ndarray:
    """Returns an array of the file from the one or several arrays that it fills."""
    if len(arrays) > 1:
        return np.concatenate([np.asarray(array) for array in arrays.values()], -1)
    ((place, array),) = arrays.items()
    matching = [layout for pattern, layout in form.layouts.items() if names_lib.matcher(pattern, "layouts")(place)]
    # Both layouts, `as_is` and the transpose that `usual` applies, are their own inverses.
    made = matching[0](array) if matching else layouts.usual(place, np.asarray(array))
    return np.ascontiguousarray(made)
