"""Caches of token sequences: written, read, and trained on, with the packed and the sampled codec."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxkd
from jaxkd import data, losses, teachers
from jaxkd.cache import codecs
from tests.cache.toy import files

EXAMPLES, TOKENS, VOCABULARY = 11, 5, 40
_RNG = np.random.default_rng(0)
LENGTHS = _RNG.integers(1, TOKENS + 1, EXAMPLES)
SET = data.Dataset(
    {
        "tokens": _RNG.integers(0, VOCABULARY, (EXAMPLES, TOKENS)).astype(np.int32),
        "mask": np.arange(TOKENS)[None, :] < LENGTHS[:, None],
        "index": np.arange(7, 7 + EXAMPLES, dtype=np.int32),
    },
    0,
    "tokens",
)


def forward(table, tokens):
    logits = table[tokens]
    return {"logits": logits, "drawn": logits}


MODEL = jaxkd.adapters.plain(lambda key, tokens: jnp.zeros((VOCABULARY, VOCABULARY)), forward, inputs="tokens")
TABLE = 2 * jax.random.normal(jax.random.key(0), (VOCABULARY, VOCABULARY))
KEEP = {"logits": codecs.packed_top_k(8, levels=16), "drawn": codecs.sampled(6)}


def write(directory, batch_size):
    return jaxkd.cache.write_cache(
        directory,
        MODEL,
        jaxkd.Variables(TABLE),
        SET,
        transform=None,
        codecs=KEEP,
        batch_size=batch_size,
        examples_per_shard=20,
        progress=False,
    )


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return write(tmp_path_factory.mktemp("cache"), 4)


def test_the_files_do_not_depend_on_the_batch_size(cache, tmp_path):
    assert files(write(tmp_path, 3).directory) == files(cache.directory)


def test_outputs_are_those_of_the_codecs(cache):
    rows = cache.reader.rows(np.array([9, 7]))
    found = jax.jit(cache.decode)(cache.reader.read(rows, np.zeros(2, int)))

    @jax.jit
    def direct(logits):
        return KEEP["logits"].decode(KEEP["logits"].encode(logits), (TOKENS, VOCABULARY))

    expected = direct(TABLE[SET.arrays["tokens"][[2, 0]]])
    included = SET.arrays["mask"][[2, 0]]
    for suffix in ("/log_probs", "/indices", "/log_tail", "/error"):
        np.testing.assert_allclose(found[f"logits{suffix}"][included], expected[suffix][included], rtol=1e-5)
    np.testing.assert_allclose(found["drawn/probs"].sum(-1), 1, rtol=1e-5)
    assert "drawn" not in found


def test_a_student_learns_from_a_cache_of_tokens(cache):
    objective = jaxkd.combine(
        top=jaxkd.term(losses.top_k_kl, "student/logits", "teacher/logits/log_probs", "teacher/logits/indices"),
        drawn=jaxkd.term(
            losses.sparse_cross_entropy, "student/logits", "teacher/drawn/weights", "teacher/drawn/indices"
        ),
    )
    kd = jaxkd.distill(MODEL, teachers.cached(cache), objective, optimizer=optax.adam(0.3))
    loader = jaxkd.cache.attach(cache, data.Resident(SET, 4, seed=0, epochs=20))
    history = jaxkd.training.fit(kd, loader, epochs=20, key=jax.random.key(0), progress=False).history
    assert history[-1]["train/top"] < 0.5 * history[0]["train/top"]
    assert history[-1]["train/drawn"] < history[0]["train/drawn"]
