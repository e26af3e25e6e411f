"""A recurrent network that predicts where asking the teacher is worth its cost."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from jaxkd.types import Array, PyTree


def init_selector(key: Array, channels: int, *, hidden_size: int = 32) -> dict[str, Array]:
    """Returns the initial parameters of an LSTM that selects key frames.

    Args:
      key: a PRNG key.
      channels: number of values of a frame's feature, as of its mean over the positions.
      hidden_size: width of the LSTM.

    Returns:
      Arrays of one layer: ``input``, ``hidden`` and ``bias`` of the gates, whose forget gates begin open, and the
      logit's ``output`` and ``output_bias``. A frame is a key frame with the probability ½ at first.

    Raises:
      ValueError: a size is not positive.

    >>> {name: x.shape for name, x in init_selector(jax.random.key(0), 3, hidden_size=2).items()}
    {'input': (3, 8), 'hidden': (2, 8), 'bias': (8,), 'output': (2,), 'output_bias': ()}
    """
    if channels < 1 or hidden_size < 1:
        raise ValueError(f"init_selector: expected positive sizes, got {channels} channels, {hidden_size} units.")
    first, second = jax.random.split(key)
    return {
        "input": jax.random.normal(first, (channels, 4 * hidden_size)) / channels**0.5,
        "hidden": jax.random.normal(second, (hidden_size, 4 * hidden_size)) / hidden_size**0.5,
        "bias": jnp.zeros(4 * hidden_size).at[hidden_size : 2 * hidden_size].set(1.0),
        "output": jnp.zeros(hidden_size),
        "output_bias": jnp.zeros(()),
    }


def selector_logits(params: PyTree, features: Float[Array, "batch frames channels"]) -> Float[Array, "batch frames"]:
    """Returns the logit of each frame: whether it should be a key frame.

    With `jaxkd.adapters.plain` and `jaxkd.losses.binary_cross_entropy` it is trained like any other model, on streams
    whose frames are labeled by whether the adaptation lowered the loss.

    Args:
      params: parameters from `init_selector`.
      features: features of the frames of each stream ``[batch, frames, channels]``, in their order.

    Returns:
      Logits ``[batch, frames]``. That of a frame depends on this frame and the ones before it.

    Raises:
      ValueError: the features have another rank or number of channels.

    >>> params = init_selector(jax.random.key(0), 3)
    >>> selector_logits(params, jnp.ones((2, 5, 3))).shape
    (2, 5)
    """
    if features.ndim != 3 or features.shape[-1] != params["input"].shape[0]:
        raise ValueError(
            f"selector_logits, features: expected [batch, frames, {params['input'].shape[0]}], got "
            f"{list(features.shape)}."
        )
    features = features.astype(jnp.float32)
    carry = initial_carry(params, features.shape[0])
    _, logits = jax.lax.scan(lambda carry, x: advance(params, carry, x), carry, features.swapaxes(0, 1))
    return logits.swapaxes(0, 1)


def initial_carry(params: PyTree, size: int) -> tuple[Array, Array]:
    """Returns the memory before the first frame, zeros.

    >>> initial_carry({"output": jnp.ones(2)}, 1)
    (Array([[0., 0.]], dtype=float32), Array([[0., 0.]], dtype=float32))
    """
    zeros = jnp.zeros((size, params["output"].shape[0]))
    return zeros, zeros


def advance(params: PyTree, carry: tuple[Array, Array], x: Array) -> tuple[tuple[Array, Array], Array]:
    """Returns the memory after a frame ``[batch, channels]`` and its logit.

    Hochreiter & Schmidhuber, 1997, with forget gates; the gates are those of input, forgetting, cell and output.

    >>> params = init_selector(jax.random.key(0), 3)
    >>> advance(params, initial_carry(params, 1), jnp.ones((1, 3)))[1]
    Array([0.], dtype=float32)
    """
    cell, hidden = carry
    gates = x @ params["input"] + hidden @ params["hidden"] + params["bias"][None]
    into, forget, new, out = jnp.split(gates, 4, axis=-1)
    cell = jax.nn.sigmoid(forget) * cell + jax.nn.sigmoid(into) * jnp.tanh(new)
    hidden = jax.nn.sigmoid(out) * jnp.tanh(cell)
    return (cell, hidden), hidden @ params["output"] + params["output_bias"][None]
