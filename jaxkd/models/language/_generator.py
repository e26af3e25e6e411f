"""Sequences that a language model writes, as entries of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
from flax import nnx

from jaxkd.models.language._decoder import Decoder
from jaxkd.models.language._encoder_decoder import EncoderDecoder
from jaxkd.models.language._generate import generate
from jaxkd.models.language._masks import token_positions
from jaxkd.models.language._recurrence import GatedRecurrence
from jaxkd.models.language._taps import source_inputs, token_mask
from jaxkd.types import Batch, Variables

if TYPE_CHECKING:
    from jaxtyping import Array, Bool, Int

Prompt = int | Callable[[Batch], tuple[Any, Any]]
"""Number of a batch's first tokens, or a function from the batch to tokens and their mask ``[batch, prompt]``."""

ENTRIES = ("tokens", "label", "mask", "segments", "positions")


Writer = Decoder | GatedRecurrence | EncoderDecoder


def bind(module: nnx.Module | Callable[[nnx.Rngs], nnx.Module], variables: Variables) -> Any:
    """Returns a module with other variables, in inference mode.

    It can be called, and decodes with `generate` and `beam_search`, inside of a jitted step, where a distillation has
    `Variables` only.

    Args:
      module: an nnx module, which stays unchanged, or its constructor, as for `jaxkd.adapters.nnx`.
      variables: parameters and state, as from ``init`` of the adapter's `Model`.

    >>> variables = Variables({"kernel": jnp.ones((2, 1)), "bias": jnp.ones(1)})
    >>> bind(lambda rngs: nnx.Linear(2, 1, rngs=rngs), variables)(jnp.ones((1, 2)))
    Array([[3.]], dtype=float32)
    """
    abstract = module if isinstance(module, nnx.Module) else nnx.eval_shape(lambda: module(nnx.Rngs(0)))
    parts: Any = nnx.split(abstract, nnx.Param, nnx.RngState, ...)
    graph, params, streams, state = parts
    params, state = jax.tree.map(lambda x: x, (params, state))  # unshared trees
    nnx.replace_by_pure_dict(params, variables.params)
    nnx.replace_by_pure_dict(state, variables.state)
    bound = nnx.merge(graph, params, streams, state)
    bound.eval()
    return bound


def generator(
    module: Writer | Callable[[nnx.Rngs], Writer],
    *,
    prompt: Prompt,
    length: int,
    temperature: float = 1.0,
    top_k: int | None = None,
    top_p: float | None = None,
    end: int | None = None,
    entries: Sequence[str] = ENTRIES,
) -> Callable[..., dict[str, Any]]:
    """Returns a function that continues a batch's prompts with a model's variables.

    ``(variables, batch, *, keys) -> entries`` calls `generate` with `jaxkd.types.Variables`, such as those of a student
    in training, and a key for each example. It is pure, for use in a jitted step. The model is in inference mode, and
    no gradient reaches the variables.

    Args:
      module: a `Decoder`, `GatedRecurrence` or `EncoderDecoder`, whose own weights are not used, or its constructor
        ``rngs -> Decoder``, as for `jaxkd.adapters.nnx`. An `EncoderDecoder` reads the batch's ``source``, and its
        prompt is the start token, with ``prompt=1``.
      prompt: number of the first tokens of ``batch["tokens"]`` (where the batch has ``segments``, those of the last of
        their segments), masked as by `token_inputs`; or a function ``batch -> (tokens, mask)``.
      length: number of new tokens.
      temperature: as for `generate`.
      top_k: as for `generate`.
      top_p: as for `generate`.
      end: the token that ends a sequence.
      entries: names of the entries to return; by default all.

    Returns:
      A function that returns entries ``[batch, prompt + length]``: ``tokens``, the prompts with their padding moved to
      the left, and the new tokens; ``label``, the next token of each; ``mask``, True where the next token is a new one
      that exists, the end token included; ``segments``, 1 for tokens that exist and 0 for padding; and ``positions``.

    Raises:
      ValueError: an entry has no such name, or a hyperparameter is out of its range.

    >>> from jaxkd.models.language._decoder import DecoderConfig
    >>> config = DecoderConfig(vocabulary=11, width=8, layers=1, heads=2)
    >>> build = lambda rngs: Decoder(config, rngs=rngs)
    >>> variables = Variables(nnx.to_pure_dict(nnx.state(build(nnx.Rngs(0)), nnx.Param)))
    >>> batch = {"tokens": jnp.array([[3, 1, 4, 1, 5]])}
    >>> made = generator(build, prompt=2, length=3)(variables, batch, keys=jax.random.split(jax.random.key(0), 1))
    >>> made["tokens"].shape, made["mask"].tolist()
    ((1, 5), [[False, True, True, True, False]])
    """
    if unknown := [name for name in entries if name not in ENTRIES]:
        raise ValueError(f"generator, entries: expected names among {list(ENTRIES)}, got {unknown}.")

    def made(variables: Variables, batch: Batch, *, keys: Array) -> dict[str, Any]:
        model = bind(module, jax.lax.stop_gradient(variables))
        tokens, exists = _left_padded(*_prompts(batch, prompt))
        if isinstance(model, EncoderDecoder):
            source, _, source_mask, _ = source_inputs(batch)
            prefilled = model.prefill(source, tokens, source_mask, exists, length=length)
        else:
            prefilled = model.prefill(tokens, exists, length=length)
        new = generate(
            model.next_logits,
            prefilled,
            length=length,
            keys=keys,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            end=end,
        )
        whole = _entries(tokens, exists, new.tokens, new.mask)
        return {name: whole[name] for name in entries}

    return made


def _prompts(batch: Mapping[str, Any], prompt: Prompt) -> tuple[Any, Any]:
    """Returns the prompts of a batch, and the mask of their tokens."""
    if callable(prompt):
        return prompt(batch)
    tokens = jnp.asarray(batch["tokens"])
    if not 1 <= prompt <= tokens.shape[1]:
        raise ValueError(
            f"generator, prompt: expected a number of tokens from 1 to {tokens.shape[1]}, as the batch's have, got "
            f"{prompt}."
        )
    tokens = tokens[:, :prompt]
    mask = token_mask(batch)
    exists = tokens == tokens if mask is None else jnp.asarray(mask)[:, :prompt]
    if "segments" in batch:
        segments = jnp.asarray(batch["segments"])[:, :prompt]
        exists = exists & (segments == jnp.max(segments, axis=1, keepdims=True)) & (segments != 0)
    return tokens, exists


def _left_padded(
    tokens: Int[Array, "batch prompt"], exists: Bool[Array, "batch prompt"]
) -> tuple[Int[Array, "batch prompt"], Bool[Array, "batch prompt"]]:
    """Moves the padding at the end of each prompt to its front."""
    size = tokens.shape[1]
    index = (jnp.arange(size)[None, :] - jnp.argmax(exists[:, ::-1], axis=1)[:, None]) % size
    tokens, exists = (jnp.take_along_axis(x, index, axis=1) for x in (tokens, exists))
    return tokens, exists


def _entries(tokens: Array, exists: Array, new: Array, mask: Array) -> dict[str, Array]:
    """Returns the entries of prompts and the tokens that follow them."""
    size = tokens.shape[1]
    whole = jnp.concatenate([tokens, new.astype(tokens.dtype)], axis=1)
    real = jnp.concatenate([exists, mask], axis=1)
    return {
        "tokens": whole,
        "label": jnp.pad(whole[:, 1:], ((0, 0), (0, 1))),
        "mask": jnp.pad(mask, ((0, 0), (size - 1, 1))),
        "segments": real.astype(jnp.int32),
        "positions": token_positions(whole, real),
    }
