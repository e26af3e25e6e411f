"""The smallest language model: a table of logits for the next token, given the last one; 0 ends a sequence."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxkd

WORDS, TOKENS = 4, 5

model = jaxkd.adapters.plain(
    lambda key, token: jax.random.normal(key, (WORDS, WORDS)), lambda table, token: table[token], inputs="token"
)


def teacher():
    return jaxkd.teachers.frozen(model, model.init(jax.random.key(5), batch(1)))


def batch(size, seed=0):
    """Returns sequences of several lengths: token, the next token, and the mask of those before the end."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(1, WORDS, (size, TOKENS + 1)).astype(np.int32)
    length = rng.integers(1, TOKENS + 1, (size, 1))
    mask = np.arange(TOKENS) < length
    return {
        "token": np.where(mask, tokens[:, :-1], 0),
        "label": np.where(mask, tokens[:, 1:], 0),
        "mask": mask,
        "index": np.arange(size, dtype=np.int32),
    }


def generate(student, batch, *, keys):
    """Continues the first token of each sequence until it ends."""

    def draw(carry, place):
        token, alive = carry
        own = jax.vmap(lambda key: jax.random.fold_in(key, place))(keys)
        label = jnp.where(alive, jax.vmap(jax.random.categorical)(own, student.params[token]), 0).astype(token.dtype)
        return (label, alive & (label > 0)), (jnp.where(alive, token, 0), label, alive)

    first = jnp.asarray(batch["token"])[:, 0]
    made = jax.lax.scan(draw, (first, first > 0), jnp.arange(TOKENS))[1]
    return dict(zip(("token", "label", "mask"), (x.T for x in made), strict=True))
